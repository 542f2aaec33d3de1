// The snapshots of a volume.

import { h, keep, put, row, show, table } from "./dom.js";
import { bytes, moment } from "./format.js";

const COLUMNS = [
  { name: "name", title: "Snapshot" },
  { name: "made", title: "Made" },
  { name: "size", title: "Size", number: true },
  { name: "held", title: "Holds alone", number: true },
  { name: "complete", title: "Complete at" },
];

export class Snapshots {
  constructor(place) {
    this.table = table("snapshots-title", COLUMNS);
    this.empty = h("p", { class: "empty" }, "None.");
    place.append(this.table.element, this.empty);
  }

  draw(snapshots) {
    show(this.empty, snapshots.length === 0);
    show(this.table.element, snapshots.length > 0);
    keep(this.table.body, snapshots, (snapshot) => snapshot.id, () => row(COLUMNS), (made, snapshot) => {
      const [name, when, size, held, complete] = made.cells;
      put(name, `${snapshot.volume}@${snapshot.name}`);
      put(when, snapshot.created_ms === null ? "not yet: its owner is waited for" : moment(snapshot.created_ms));
      put(size, snapshot.created_ms === null ? "–" : bytes(snapshot.size_bytes));
      put(held, bytes(snapshot.held_bytes));
      put(complete, snapshot.complete_at.join(", ") || "nowhere yet");
    });
  }

  clear() {
    this.table.body.replaceChildren();
    show(this.table.element, false);
    show(this.empty, false);
  }
}
