// A WAV file of mono 16-bit samples (RIFF, "WAVE", PCM), from blocks as they were recorded.

const HEADER = 44;
const BYTES = 2;
export const TYPE = "audio/wav";

/** Return how many bytes a file of so many samples has. */
export const bytesOf = samples => HEADER + BYTES * samples;

/** Return the file. Samples are little-endian, as on every machine that a browser runs on. */
export function wav(blocks, rate) {
  const samples = blocks.reduce((sum, block) => sum + block.length, 0);
  const header = new DataView(new ArrayBuffer(HEADER));
  const tag = (at, text) => [...text].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
  tag(0, "RIFF");
  header.setUint32(4, bytesOf(samples) - 8, true);
  tag(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, rate * BYTES, true);
  header.setUint16(32, BYTES, true);
  header.setUint16(34, 8 * BYTES, true);
  tag(36, "data");
  header.setUint32(40, BYTES * samples, true);
  return new Blob([header, ...blocks], { type: TYPE });
}
