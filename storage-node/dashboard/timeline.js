// The last changes of a volume's owner: what was done when, and how long writers were held.

import { change, h, keep, mark, put, set, show } from "./dom.js";
import { bytes, moment, ms } from "./format.js";

export class Timeline {
  constructor(place) {
    this.list = h("ol", { class: "changes" });
    this.empty = h("p", { class: "empty" }, "None since the nodes were started.");
    this.silent = h("p", { class: "quiet", hidden: true });
    place.append(this.list, this.empty, this.silent);
  }

  draw(timeline) {
    show(this.empty, timeline.changes.length === 0);
    show(this.list, timeline.changes.length > 0);
    show(this.silent, timeline.silent.length > 0);
    put(this.silent, `What ${timeline.silent.join(", ")} carried out is not in it: no answer.`);
    keep(this.list, timeline.changes, (change) => `${change.told_by} ${change.began_ms} ${change.epoch}`, make, fill);
  }

  clear() {
    this.list.replaceChildren();
    show(this.empty, false);
    show(this.silent, false);
  }
}

function make() {
  return h("li", { class: "change" },
    h("p", { class: "what" }, h("strong", {}), h("span", { class: "quiet" })),
    h("p", { class: "how" }),
    h("div", { class: "bar", "aria-hidden": "true" }),
    h("details", {}, h("summary", {}, "Phases"), h("table", { class: "phases" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Phase"), h("th", { scope: "col" }, "What"), h("th", { scope: "col", class: "number" }, "From"), h("th", { scope: "col", class: "number" }, "Took"), h("th", { scope: "col" }, "Writers"))), h("tbody", {}))));
}

function fill(item, it) {
  const [what, how, bar, details] = item.children;
  const kind = it.kind === "handover" ? `handover, ${it.mode}` : "takeover";
  put(what.children[0], `${it.from} → ${it.to}`);
  put(what.children[1], `${kind} · ${moment(it.began_ms)} · epoch ${it.epoch} → ${it.epoch + 1}${it.volumes > 1 ? ` · with ${it.volumes - 1} more of its group` : ""}`);
  const said = outcome(it);
  change(how, said[1], mark(...said));
  const whole = Math.max(it.took_ms, 0.001);
  keep(bar, it.phases, (phase, index) => index, () => h("span", {}), (part, phase) => {
    set(part, "class", `part ${phase.holds_writers ? "holds" : "free"}`);
    part.style.flexGrow = String(Math.max(phase.took_ms / whole, 0.004));
    set(part, "title", `${phase.name}: ${ms(phase.took_ms)}`);
    put(part, phase.took_ms / whole > 0.16 ? `${phase.name} ${ms(phase.took_ms)}` : "");
  });
  keep(details.querySelector("tbody"), it.phases, (phase, index) => index, () => h("tr", {}, h("th", { scope: "row" }), h("td", {}), h("td", { class: "number" }), h("td", { class: "number" }), h("td", {})), (row, phase) => {
    const [name, doing, from, took, writers] = row.cells;
    put(name, phase.name);
    put(doing, phase.doing);
    put(from, ms(phase.began_ms));
    put(took, ms(phase.took_ms));
    put(writers, phase.holds_writers ? "held" : it.kind === "takeover" ? "wait for an owner" : "go on");
  });
}

function outcome(change) {
  if (change.outcome === "failed") return ["bad", `came to nothing after ${ms(change.took_ms)}: ${change.error}`];
  const now = change.phases.at(-1);
  if (change.outcome === "running") return ["warn", `under way for ${ms(change.took_ms)}${now ? `: ${now.doing}` : ""}`];
  if (change.kind === "takeover") {
    return ["good", `took ${ms(change.took_ms)}; ${change.stale_bytes > 0 ? `${bytes(change.stale_bytes)} were lost` : "nothing that was known of was lost"}`];
  }
  const left = change.stale_bytes > 0 ? `${bytes(change.stale_bytes)} were left to fetch` : "everything was there already";
  return ["good", `writers held for ${ms(change.held_ms)} of ${ms(change.took_ms)}; ${left}`];
}
