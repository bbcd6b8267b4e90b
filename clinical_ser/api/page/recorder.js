// Records one microphone as it is: mono, 16 bits, at the rate of the device, with nothing that a browser would do to it for a call.
// The one idea: echo cancelling, noise suppression and automatic gain change the very things that are measured, so they are off.

import { bytesOf, wav } from "./wav.js";

const AS_IT_IS = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
const SILENCE_DBFS = -90;
const LAST_BLOCK_MS = 1000;

/** A microphone that is being recorded. Made by `Recorder.start`. */
export class Recorder {
  #stream;
  #context;
  #node;
  #blocks = [];
  #samples = 0;
  #most;
  #onEnd;
  #stopped = null;

  /**
   * Ask for the microphone and start; throws the DOMException of getUserMedia where there is none, or it may not be used.
   * `onLevel` gets {dbfs, clipped} some twenty times a second; `onEnd` gets why, where recording ends by itself: `full`, `gone`.
   */
  static async start({ maxSeconds, maxBytes, onLevel, onEnd }) {
    if (!navigator.mediaDevices?.getUserMedia || !globalThis.AudioWorkletNode) throw new DOMException("no microphone here", "NotSupportedError");
    const recorder = new Recorder();
    recorder.#stream = await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS });
    try {
      await recorder.#open(onLevel, onEnd, maxSeconds, maxBytes);
    } catch (error) {
      recorder.discard();
      throw error;
    }
    return recorder;
  }

  async #open(onLevel, onEnd, maxSeconds, maxBytes) {
    this.#context = new AudioContext();
    this.#onEnd = onEnd;
    this.#most = Math.min(maxSeconds * this.rate, Math.floor((maxBytes - bytesOf(0)) / 2));
    await this.#context.audioWorklet.addModule("/page/recorder-worklet.js");
    this.#node = new AudioWorkletNode(this.#context, "recorder", { channelCount: 1, channelCountMode: "explicit" });
    this.#node.port.onmessage = ({ data }) => (data === "stopped" ? this.#stopped?.() : this.#take(data, onLevel));
    this.#context.createMediaStreamSource(this.#stream).connect(this.#node);
    // What leads nowhere is not run; what comes out is silence.
    this.#node.connect(this.#context.destination);
    for (const track of this.#stream.getAudioTracks()) track.addEventListener("ended", () => this.#onEnd?.("gone"));
    await this.#context.resume();
  }

  #take({ samples, peak, clipped }, onLevel) {
    const room = this.#most - this.#samples;
    if (room <= 0) return;
    this.#blocks.push(samples.length > room ? samples.slice(0, room) : samples);
    this.#samples += Math.min(samples.length, room);
    onLevel({ dbfs: peak > 0 ? Math.max(SILENCE_DBFS, 20 * Math.log10(peak)) : SILENCE_DBFS, clipped: clipped > 0 });
    if (this.#samples >= this.#most) this.#onEnd?.("full");
  }

  /** Samples a second. */
  get rate() {
    return this.#context.sampleRate;
  }

  /** How long the recording is by now. */
  get seconds() {
    return this.#samples / this.rate;
  }

  pause() {
    this.#node.port.postMessage("pause");
  }

  resume() {
    this.#node.port.postMessage("resume");
  }

  /** Return the last seconds so far as a WAV file. */
  last(seconds) {
    let from = this.#blocks.length;
    for (let samples = 0; from > 0 && samples < seconds * this.rate; from -= 1) samples += this.#blocks[from - 1].length;
    return wav(this.#blocks.slice(from), this.rate);
  }

  /** Stop, and return all of it as a WAV file. */
  async stop() {
    this.#onEnd = null;
    await new Promise(resolve => {
      this.#stopped = resolve;
      this.#node.port.postMessage("stop");
      // A device that is gone may leave nobody to answer.
      setTimeout(resolve, LAST_BLOCK_MS);
    });
    const file = wav(this.#blocks, this.rate);
    this.discard();
    return file;
  }

  /** Let go of the microphone and of what was recorded. */
  discard() {
    this.#onEnd = null;
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    if (this.#context && this.#context.state !== "closed") this.#context.close();
    this.#blocks = [];
  }
}
