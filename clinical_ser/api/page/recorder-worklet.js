// Runs where the sound arrives: turns it into 16-bit samples and sends them on in blocks, with their peak.

const BLOCK = 2048;
const FULL_SCALE = 32767;

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.listening = true;
    this.alive = true;
    this.start();
    this.port.onmessage = ({ data }) => {
      if (data === "pause" || data === "resume") this.listening = data === "resume";
      if (data !== "stop") return;
      this.send();
      this.port.postMessage("stopped");
      this.alive = false;
    };
  }

  start() {
    this.samples = new Int16Array(BLOCK);
    this.filled = 0;
    this.peak = 0;
    this.clipped = 0;
  }

  send() {
    if (!this.filled) return;
    const samples = this.samples.slice(0, this.filled);
    this.port.postMessage({ samples, peak: this.peak, clipped: this.clipped }, [samples.buffer]);
    this.start();
  }

  process([input]) {
    if (!this.listening || !input.length) return this.alive;
    for (const sample of input[0]) {
      const value = Math.round(Math.max(-1, Math.min(1, sample)) * FULL_SCALE);
      this.samples[this.filled++] = value;
      this.peak = Math.max(this.peak, Math.abs(value) / FULL_SCALE);
      this.clipped += Math.abs(value) === FULL_SCALE ? 1 : 0;
      if (this.filled === BLOCK) this.send();
    }
    return this.alive;
  }
}

registerProcessor("recorder", Recorder);
