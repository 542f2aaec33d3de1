// Where a volume's blocks are at one node, as a picture: cells from the first block to the last.

import { h, put, set, show } from "./dom.js";
import { bytes } from "./format.js";
import { colour } from "./theme.js";

/** The width of a cell, in pixels of the page. */
const CELL = 7;
/** As many parts as the node tells of. */
const PARTS_MAX = 4096;

export class ResidencyMap {
  constructor(node) {
    this.node = node;
    this.title = h("h4", {}, node);
    this.figures = h("p", { class: "quiet" });
    this.canvas = h("canvas", { role: "img" });
    this.problem = h("p", { class: "quiet", hidden: true });
    this.element = h("figure", { class: "map" }, h("figcaption", {}, this.title, this.figures), this.canvas, this.problem);
    this.map = null;
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** Shows what was told, or why nothing was. */
  tell(map) {
    this.map = map;
    show(this.problem, false);
    show(this.canvas, true);
    const [size, local, stale] = [map.size_bytes, map.local_bytes, map.stale_bytes];
    const about = map.exact ? "" : "about ";
    const known = local + stale;
    const share = known === 0 ? 100 : Math.floor((100 * local) / known);
    put(this.title, `${map.node}${map.owner ? " – owner" : ""}`);
    const said = map.cut_off
      ? "left the volume: what it holds was cut off by a takeover"
      : stale === 0 ? `${about}${bytes(local)} here, all there is` : `${share} % here: ${about}${bytes(local)}; ${bytes(stale)} elsewhere`;
    put(this.figures, said);
    set(this.canvas, "aria-label", `Blocks at ${map.node}: ${said}; ${bytes(Math.max(0, size - known))} never written or zero.`);
    this.draw();
  }

  /** Nothing was told. */
  fail(message) {
    show(this.problem, true);
    put(this.problem, message);
    this.canvas.classList.add("faded");
  }

  draw() {
    const map = this.map;
    const width = this.element.clientWidth;
    if (!map || width === 0) return;
    this.canvas.classList.remove("faded");
    const columns = Math.max(16, Math.floor(width / CELL));
    // As many cells as make a calm picture of about 7:2: parts are put together to fit.
    const rows = Math.max(6, Math.min(Math.ceil(PARTS_MAX / columns), Math.round(columns / 3.2)));
    const cells = Math.min(columns * rows, map.local.length);
    const used = Math.ceil(cells / columns);
    const ratio = window.devicePixelRatio || 1;
    const [pixelWidth, pixelHeight] = [Math.round(columns * CELL * ratio), Math.round(used * CELL * ratio)];
    if (this.canvas.width !== pixelWidth || this.canvas.height !== pixelHeight) {
      this.canvas.width = pixelWidth;
      this.canvas.height = pixelHeight;
      this.canvas.style.width = `${columns * CELL}px`;
      this.canvas.style.height = `${used * CELL}px`;
    }
    const paint = this.canvas.getContext("2d");
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.clearRect(0, 0, columns * CELL, used * CELL);
    const [empty, local, stale] = ["--map-zero", "--map-local", "--map-stale"].map((name) => colour(this.element, name));
    const size = CELL - 1;
    for (let cell = 0; cell < cells; cell += 1) {
      const [first, end] = [Math.floor((cell * map.local.length) / cells), Math.floor(((cell + 1) * map.local.length) / cells)];
      let [here, away] = [0, 0];
      for (let part = first; part < end; part += 1) {
        here += map.local[part];
        away += map.stale[part];
      }
      const whole = (end - first) * map.part_bytes;
      const [x, y] = [(cell % columns) * CELL, Math.floor(cell / columns) * CELL];
      paint.fillStyle = empty;
      paint.fillRect(x, y, size, size);
      // The least that is there can be seen.
      const of = (bytes) => (bytes === 0 ? 0 : Math.max(1.5, (size * bytes) / whole));
      const [high, low] = [Math.min(size, of(away)), Math.min(size, of(here))];
      paint.fillStyle = local;
      paint.fillRect(x, y + size - low, size, low);
      if (high > 0) {
        // What is elsewhere is striped, besides its colour.
        paint.save();
        paint.beginPath();
        paint.rect(x, y + (here > 0 ? Math.max(0, size - low - high) : size - high), size, high);
        paint.clip();
        paint.strokeStyle = stale;
        paint.lineWidth = 1.6;
        paint.beginPath();
        for (let at = -size; at <= size; at += 3.5) {
          paint.moveTo(x + at, y + size);
          paint.lineTo(x + at + size, y);
        }
        paint.stroke();
        paint.restore();
      }
    }
  }
}

/** What the colours mean. */
export function legend() {
  const entry = (kind, text) => h("span", { class: "key" }, h("i", { class: `swatch ${kind}`, "aria-hidden": "true" }), text);
  return h("p", { class: "legend quiet" }, entry("local", "here"), entry("stale", "elsewhere, fetched when it is wanted"), entry("zero", "never written, or zero"));
}
