// Numbers for people: the same rules as html/numbers.py.

const WORDS = [
  [1e12, "trillion"],
  [1e9, "billion"],
  [1e6, "million"],
];

/** A number as a person would write it: 15.7 trillion, 12,300, 3.14, 0.012, 0.0001. */
export function people(value) {
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "-" : value > 0 ? "∞" : "-∞";
  if (size > 0 && size < 1e-6) return "nearly 0";
  for (const [unit, word] of WORDS)
    if (size >= unit * 0.9995) return `${digits(value / unit)} ${word}`;
  if (size >= 999.5) return Math.round(value).toLocaleString("en-US");
  return digits(value);
}

function digits(value) {
  const size = Math.abs(value);
  let places = size >= 99.95 ? 0 : size >= 9.995 ? 1 : size >= 0.9995 ? 2 : 3;
  if (size < 0.0005) places = size === 0 ? 0 : Math.ceil(-Math.log10(size));
  const text = value.toFixed(places);
  const short = text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text;
  return short === "-0" ? "0" : short;
}

/** A share as percent. */
export function percent(share, places = 0) {
  return `${(100 * share).toFixed(places)} %`;
}

/** A time in ms or s. */
export function time(seconds) {
  if (seconds >= 120) return `${people(seconds / 60)} min`;
  return seconds < 1 ? `${people(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`;
}
