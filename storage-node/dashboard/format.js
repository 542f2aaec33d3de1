// Quantities as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes, to three figures. */
export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let unit = 0;
  let value = count;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${figures(value, unit)} ${UNITS[unit]}`;
}

function figures(value, unit) {
  if (unit === 0 || value >= 99.95) return String(Math.round(value));
  return value.toFixed(value >= 9.995 ? 1 : 2).replace(/\.?0+$/, "");
}

/** Bytes per second. */
export const rate = (perSecond) => (perSecond === null || perSecond === undefined ? "–" : `${bytes(perSecond)}/s`);

/** A limit of a link: none, nothing at all, or a rate. */
export const cap = (perSecond) => (perSecond === null || perSecond === undefined ? "no cap" : perSecond === 0 ? "closed" : `cap ${rate(perSecond)}`);

/** Milliseconds. */
export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} ms`;
  if (value < 10000) return `${Math.round(value)} ms`;
  return seconds(value / 1000);
}

/** Seconds. */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.05) return "0 s";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return `${Math.round(value / 3600)} h`;
}

/** Whole numbers. */
export const count = (value) => new Intl.NumberFormat("en").format(value);

/** So many of something. */
export const many = (value, one, several = `${one}s`) => `${count(value)} ${value === 1 ? one : several}`;

/** A moment, by the clock of whoever looks. */
export function moment(unixMs) {
  const date = new Date(unixMs);
  const isToday = date.toDateString() === new Date().toDateString();
  const day = isToday ? "" : `${date.toLocaleDateString("en-CA")} `;
  return day + date.toLocaleTimeString("en-GB");
}

/** What sizes of volumes are multiples of: sectors. */
const SECTOR = 512;

/** A size as it is typed: 10G, 512M, 1.5T; not less than that, and one that a volume can have. `null` when it is none. */
export function sizeOf(text) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\s*$/i.exec(text);
  if (!found) return null;
  const power = " kmgtp".indexOf(found[2].toLowerCase() || " ");
  return Math.ceil((Number(found[1]) * 1024 ** power) / SECTOR) * SECTOR;
}

/** A size so that it is read as what it is: to the byte, unless the figures that are shown are enough. */
export function sizeText(count) {
  const shown = bytes(count);
  return sizeOf(shown) === count ? shown : String(count);
}
