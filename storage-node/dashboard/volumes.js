// The list of volumes: searched, sorted and cut into pages by the node, so that a thousand are no more work than ten.

import { by, change, h, keep, mark, put, row, set, show, table } from "./dom.js";
import { bytes, count, many, seconds } from "./format.js";

const ROWS = 50;

const COLUMNS = [
  { name: "name", title: "Volume" },
  { name: "owner", title: "Owner" },
  { name: "replicas", title: "Replicas" },
  { name: "durability", title: "Class" },
  { name: "size", title: "Size", number: true },
  { name: "lag", title: "RPO", number: true },
  { name: "behind", title: "To send", number: true },
  { name: "stale", title: "To fetch", number: true },
  { name: "state", title: "State" },
];

/** Columns that the node can sort by; the first click on a quantity shows the largest. */
const SORTABLE = new Set(["name", "owner", "size", "lag", "behind", "stale"]);

export class Volumes {
  /** `ask` is called when something else is to be shown. */
  constructor(ask) {
    this.ask = ask;
    this.sort = "name";
    this.descending = false;
    this.offset = 0;
    this.table = table("volumes-title", COLUMNS);
    this.empty = h("p", { class: "empty", hidden: true });
    by("list").append(this.table.element, this.empty);
    this.table.heads.forEach((head, index) => this.makeSortable(head, COLUMNS[index]));
    this.first = h("button", { type: "button", onclick: () => this.turn(-ROWS) }, "← Before");
    this.next = h("button", { type: "button", onclick: () => this.turn(ROWS) }, "After →");
    this.where = h("span", { role: "status" });
    by("pages").append(this.first, this.where, this.next);
    let pause;
    const again = () => {
      this.offset = 0;
      this.ask();
    };
    by("search").addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(again, 150);
    });
    by("owner").addEventListener("change", again);
    by("waiting").addEventListener("change", again);
    by("filter").addEventListener("submit", (event) => event.preventDefault());
    this.showSort();
  }

  makeSortable(head, column) {
    if (!SORTABLE.has(column.name)) return;
    head.replaceChildren(h("button", { type: "button", class: "sort", onclick: () => this.sortBy(column) }, column.title, h("span", { class: "turn", "aria-hidden": "true" })));
  }

  sortBy(column) {
    this.descending = this.sort === column.name ? !this.descending : Boolean(column.number);
    this.sort = column.name;
    this.offset = 0;
    this.showSort();
    this.ask();
  }

  showSort() {
    this.table.heads.forEach((head, index) => {
      const isSorted = COLUMNS[index].name === this.sort;
      set(head, "aria-sort", isSorted ? (this.descending ? "descending" : "ascending") : null);
      const turn = head.querySelector(".turn");
      if (turn) put(turn, isSorted ? (this.descending ? "▾" : "▴") : "");
    });
  }

  turn(by) {
    this.offset = Math.max(0, this.offset + by);
    this.ask();
  }

  /** The path that asks for what is to be shown. */
  path() {
    const query = new URLSearchParams({ sort: this.sort, descending: this.descending, offset: this.offset, limit: ROWS });
    if (by("search").value.trim()) query.set("search", by("search").value.trim());
    if (by("owner").value) query.set("owner", by("owner").value);
    if (by("waiting").checked) query.set("waiting", "true");
    return `/v1/overview?${query}`;
  }

  /** Shows what was asked for. */
  draw(overview) {
    if (this.offset > 0 && overview.rows.length === 0) {
      this.offset = 0;
      this.ask();
      return;
    }
    const waits = overview.waiting === 0 ? "nothing waits" : `something waits at ${count(overview.waiting)}`;
    put(by("volumes-summary"), overview.volumes === 0 ? "" : `${many(overview.volumes, "volume")}, ${bytes(overview.size_bytes)}; ${waits}`);
    const chosen = by("owner").value;
    keep(by("owner"), [{ node: "", title: "any node" }, ...overview.owners], (owner) => owner.node, (owner) => h("option", { value: owner.node }), (option, owner) =>
      put(option, owner.title ?? `${owner.node} (${count(owner.volumes)})`));
    by("owner").value = chosen;
    keep(this.table.body, overview.rows, (volume) => volume.id, () => row(COLUMNS), fill);
    show(this.table.element, overview.rows.length > 0);
    show(this.empty, overview.rows.length === 0);
    put(this.empty, overview.volumes === 0
      ? "There is no volume yet. `helio volume create disk --size 10G` makes one, and it is here at once."
      : "No volume fits. Search for something else, or show all nodes.");
    const last = this.offset + overview.rows.length;
    put(this.where, overview.matching === 0 ? "" : `${count(this.offset + 1)} to ${count(last)} of ${count(overview.matching)}`);
    this.first.disabled = this.offset === 0;
    this.next.disabled = last >= overview.matching;
    show(by("pages"), overview.matching > ROWS);
  }
}

/** How far the replica is that is furthest behind. */
export const behind = (volume) => Math.max(0, ...volume.replicas.map((replica) => replica.bytes_behind ?? 0));

function fill(made, volume) {
  const [name, owner, replicas, durability, size, lag, send, fetch, state] = made.cells;
  const [kind, said] = stateOf(volume);
  change(name, `${volume.name} ${volume.group} ${volume.waits} ${volume.on_write}`, h("a", { href: `#/volume/${encodeURIComponent(volume.name)}` }, volume.name),
    volume.group ? h("span", { class: "tag" }, h("span", { class: "hidden" }, " in group "), volume.group) : null,
    ...whyOf(volume).map((text) => h("span", { class: "why" }, h("span", {}, text))));
  put(owner, volume.owner);
  keep(replicas, volume.replicas, (replica) => replica.node, () => h("span", { class: "chip" }), (chip, replica) => {
    const isLost = replica.reachable === false;
    put(chip, `${replica.node}${isLost ? " ✕" : replica.seconds_behind > 0.05 ? ` −${seconds(replica.seconds_behind)}` : ""}`);
    set(chip, "class", isLost ? "chip bad" : replica.seconds_behind > 0.05 ? "chip warn" : "chip");
    set(chip, "title", isLost ? `${replica.node} cannot be brought up to date` : `${replica.node} lacks ${bytes(replica.bytes_behind ?? 0)}`);
  });
  if (volume.replicas.length === 0) put(replicas, "none");
  put(durability, volume.durability);
  put(size, bytes(volume.size_bytes));
  put(lag, volume.rpo_seconds === null ? "–" : seconds(volume.rpo_seconds));
  put(send, volume.seconds_old === null ? "–" : behind(volume) === 0 ? "0" : bytes(behind(volume)));
  put(fetch, volume.stale_bytes === null ? "–" : volume.stale_bytes === 0 ? "0" : bytes(volume.stale_bytes));
  change(state, said, mark(kind, said));
}

function stateOf(volume) {
  if (volume.stepped_down) return ["bad", "not served"];
  if (volume.waits.length > 0) return ["warn", "waits"];
  return volume.seconds_old === null ? ["idle", "not told"] : ["good", "in order"];
}

/** What waits, and why; beneath the name, as wide as the row. */
function whyOf(volume) {
  const goes = volume.on_write ? [`goes to ${volume.on_write} when it is written there`] : [];
  return [...volume.waits, ...goes];
}
