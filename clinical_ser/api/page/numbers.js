// How numbers are written: as in the reports (reports/numbers.py), so that page and report never show two of one.
// The one idea: a number that is written more exactly than it is known says something false.

const MINUS = "\u2212";

/** Write with so many decimals, ties to the even digit, as Python does. */
function fixed(value, decimals) {
  const shift = 10 ** decimals;
  // Only a number that binary holds exactly can lie halfway.
  const halfway = (value * 2 ** (decimals + 1)) % 1 === 0 && Math.abs(value * shift) % 1 === 0.5;
  return (halfway ? (2 * Math.round((value * shift) / 2)) / shift : value).toFixed(decimals);
}

const twoDigits = value => (value >= 9.95 || !value ? fixed(value, 0) : fixed(value, 1));

/** Write a probability in percent: 23 %, 4.3 %, > 99 %, < 0.1 %. */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return value > 99 && value < 100 ? "> 99 %" : `${twoDigits(value)} %`;
}

/** Write a change of a probability in points of percent, with its sign. */
export function points(effect) {
  const value = 100 * effect;
  if (!value) return "0";
  const sign = value > 0 ? "+" : MINUS;
  const size = Math.abs(value);
  if (size < 0.01) return `${value > 0 ? "<" : ">"} ${sign}0.01`;
  return size < 0.1 ? `${sign}${fixed(size, 2)}` : `${sign}${twoDigits(size)}`;
}

/** Write a measured value with two significant digits. */
export function brief(value) {
  if (!value) return "0";
  const after = 1 - Math.floor(Math.log10(Math.abs(value)));
  const rounded = after >= 0 ? Number(fixed(value, after)) : Number(fixed(value / 10 ** -after, 0)) * 10 ** -after;
  const size = Math.abs(rounded);
  const decimals = Math.max(0, 1 - Math.floor(Math.log10(size)));
  return `${rounded < 0 ? MINUS : ""}${size.toFixed(decimals)}`;
}

/** Write a time within a recording: 1:05. */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** Write a count with its thousands set apart. */
export const count = n => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");

/** Write a number of bytes in MB. */
export const megabytes = bytes => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
