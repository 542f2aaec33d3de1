// One volume: how it stands, where its blocks are, what became of it.

import * as actions from "./actions.js";
import { get, ofVolume } from "./api.js";
import { announce, by, change, h, keep, mark, put, row, set, show, table } from "./dom.js";
import { bytes, moment, rate, seconds } from "./format.js";
import { Poll } from "./poll.js";
import { ResidencyMap, legend } from "./residency.js";
import { Snapshots } from "./snapshots.js";
import { Timeline } from "./timeline.js";

const REPLICA_COLUMNS = [
  { name: "node", title: "Replica" },
  { name: "state", title: "State" },
  { name: "behind", title: "Behind", number: true },
  { name: "send", title: "To send", number: true },
  { name: "watermark", title: "Holds up to", number: true },
  { name: "mode", title: "Sent data" },
];

/** How often is looked while something moves, and while nothing does, in milliseconds. */
const [QUICK, CALM] = [700, 2500];
/** How often progress is read aloud, in milliseconds. */
const SPOKEN = 10000;

export class VolumeView {
  constructor() {
    this.name = null;
    this.status = null;
    this.maps = new Map();
    this.legend = legend();
    by("maps").before(this.legend);
    this.facts = h("dl", { class: "facts" });
    by("facts").append(this.facts);
    this.replicas = table("replicas-title", REPLICA_COLUMNS);
    by("replicas").append(this.replicas.element);
    this.noReplicas = h("p", { class: "empty", hidden: true }, "None: the loss of its owner would be the loss of the volume.");
    by("replicas").append(this.noReplicas);
    this.timeline = new Timeline(by("timeline"));
    this.snapshots = new Snapshots(by("snapshots"));
    this.spoken = 0;
    this.makeActions();
    const every = () => (this.isMoving() ? QUICK : CALM);
    this.polls = [
      new Poll({ ask: () => get(ofVolume(this.name)), show: (status) => this.drawStatus(status), fail: (error) => this.failed(error), every }),
      new Poll({ ask: () => this.askMaps(), show: () => {}, every }),
      new Poll({ ask: () => get(ofVolume(this.name, "/timeline")), show: (timeline) => this.drawTimeline(timeline), every: () => (this.isMoving() ? 1000 : 4000) }),
      new Poll({ ask: () => get(ofVolume(this.name, "/snapshots")), show: (snapshots) => this.snapshots.draw(snapshots), every: 4000 }),
    ];
  }

  makeActions() {
    const button = (text, act, kind) => h("button", { type: "button", class: kind, onclick: () => act(this.name, this.status, this.summary) }, text);
    this.move = button("Move…", actions.move, "primary");
    this.snap = button("Make a snapshot…", actions.snapshot);
    this.size = button("Resize…", actions.resize);
    this.back = button("Take the move back", actions.cancel);
    this.take = button("Take over…", actions.takeOver, "danger");
    by("actions").append(this.move, this.snap, this.size, this.back, this.take);
  }

  /** Shows this volume; `null` shows none. */
  open(name) {
    if (this.name === name) return;
    this.name = name;
    this.status = null;
    this.summary = null;
    this.changes = null;
    for (const poll of this.polls) {
      poll.stop();
      poll.at = null;
    }
    by("volume").classList.remove("untold");
    show(by("volume"), name !== null);
    if (name === null) return;
    put(by("volume-title"), name);
    put(by("volume-summary"), "");
    show(by("volume-problem"), false);
    this.facts.replaceChildren();
    this.replicas.body.replaceChildren();
    by("maps").replaceChildren();
    this.maps.clear();
    this.timeline.clear();
    this.snapshots.clear();
    this.enable();
    for (const poll of this.polls) poll.start();
  }

  /** What is known of it without its owner: enough to act when that does not answer. */
  note(rows) {
    const found = rows.find((volume) => volume.name === this.name);
    if (!found) return;
    this.summary = found;
    this.enable();
  }

  isMoving() {
    const is = this.status;
    return Boolean(is && (is.stale_bytes > 0 || is.replicas.some((replica) => replica.stale_bytes > 0 || replica.bytes_behind > 0)))
      || Boolean(this.changes?.some((change) => change.outcome === "running"));
  }

  enable() {
    const isKnown = this.status !== null;
    for (const button of [this.move, this.snap, this.size]) button.disabled = !isKnown;
    this.take.disabled = !isKnown && !this.summary;
    const isUnderWay = Boolean(this.changes?.some((change) => change.outcome === "running" && change.kind === "handover"));
    show(this.back, isUnderWay || Boolean(this.status?.on_write));
  }

  failed(error) {
    // That the node does not answer is said above.
    if (error.kind === "NoAnswer") return;
    const { at } = this.polls[0];
    const old = at === null ? "" : ` What is shown beneath was told ${seconds(Math.max(1, (performance.now() - at) / 1000))} ago.`;
    put(by("volume-problem"), `${error.message}.${old}`);
    show(by("volume-problem"), true);
    by("volume").classList.add("untold");
    this.status = null;
    this.enable();
    this.lookUp();
  }

  /** Asks who owns it, and who follows, of those who know without its owner. */
  async lookUp() {
    try {
      const overview = await get(`/v1/overview?${new URLSearchParams({ search: this.name, limit: 500 })}`);
      this.note(overview.rows);
    } catch {
      // It is asked again with the next look.
    }
  }

  drawStatus(status) {
    this.status = status;
    show(by("volume-problem"), false);
    by("volume").classList.remove("untold");
    put(by("volume-summary"), `${bytes(status.size_bytes)} at ${status.owner}${status.group ? `, in group ${status.group}` : ""}`);
    keep(this.facts, factsOf(status), (fact) => fact.name, (fact) => h("div", {}, h("dt", {}, fact.name), h("dd", {})), (made, fact) => {
      const place = made.lastElementChild;
      change(place, `${fact.kind} ${fact.text}`, fact.kind ? mark(fact.kind, fact.text) : fact.text);
    });
    show(this.noReplicas, status.replicas.length === 0);
    show(this.replicas.element, status.replicas.length > 0);
    keep(this.replicas.body, status.replicas, (replica) => replica.node, () => row(REPLICA_COLUMNS), fillReplica);
    this.keepMaps([status.owner, ...status.replicas.map((replica) => replica.node)]);
    this.speak();
    this.enable();
  }

  drawTimeline(timeline) {
    this.changes = timeline.changes;
    this.timeline.draw(timeline);
    this.enable();
  }

  keepMaps(nodes) {
    for (const [node, map] of this.maps) {
      if (!nodes.includes(node)) {
        map.element.remove();
        this.maps.delete(node);
      }
    }
    const fresh = nodes.filter((node) => !this.maps.has(node));
    for (const node of fresh) this.maps.set(node, new ResidencyMap(node));
    if (fresh.length > 0) this.polls[1].now();
    // The owner first, the others as they are called.
    keep(by("maps"), nodes, (node) => node, (node) => this.maps.get(node).element, () => {});
  }

  async askMaps() {
    const name = this.name;
    const one = async (map) => {
      try {
        const told = await get(ofVolume(name, `/residency?node=${encodeURIComponent(map.node)}`));
        if (this.name === name) map.tell(told);
      } catch (error) {
        map.fail(error.kind === "NoAnswer" ? "no answer" : error.message);
      }
    };
    await Promise.all([...this.maps.values()].map(one));
  }

  /** Progress for those who hear the page: now and then. */
  speak() {
    const { status } = this;
    if (status.stale_bytes === 0) {
      if (this.spoken > 0) announce(`${status.name}: everything is at ${status.owner}.`);
      this.spoken = 0;
      return;
    }
    if (performance.now() - this.spoken < SPOKEN) return;
    this.spoken = performance.now();
    announce(`${status.name}: ${bytes(status.stale_bytes)} still to be fetched at ${status.owner}.`);
  }
}

function factsOf(status) {
  const { durability, rpo } = status;
  const facts = [
    status.stepped_down
      ? { name: "Owner", text: `${status.owner}, epoch ${status.epoch}, has stepped down, since its store has failed: nothing is read or written until a replica has taken the volume over, or it is restarted with a store that works`, kind: "bad" }
      : { name: "Owner", text: `${status.owner}, epoch ${status.epoch}` },
    { name: "Occupies", text: `${bytes(status.mapped_bytes)} of ${bytes(status.size_bytes)}` },
    { name: "Class", text: `${durability.class}: ${durability.state}${durability.cause ? `, ${durability.cause}` : ""}${durability.waiting > 0 ? `; ${durability.waiting} flushes wait` : ""}`, kind: durability.state === "met" ? "good" : "warn" },
    rpoOf(rpo),
  ];
  if (status.elsewhere) {
    facts.push({ name: "To fetch", text: toFetch(status.elsewhere), kind: "warn" });
  } else if (status.stale_bytes > 0) {
    facts.push({ name: "To fetch", text: `${bytes(status.stale_bytes)}; until then ${status.source_needed ?? "who has it"} is needed`, kind: "warn" });
  } else {
    facts.push({ name: "To fetch", text: "nothing: its owner has everything", kind: "good" });
  }
  if (rpo.limit_bytes_per_second) facts.push({ name: "Writes slowed to", text: rate(rpo.limit_bytes_per_second), kind: "warn" });
  if (status.on_write) facts.push({ name: "Goes by itself", text: `to ${status.on_write}, when it is written there` });
  if (status.fault) facts.push({ name: "Fault", text: `no writes until ${status.owner} is restarted: ${status.fault}${status.fault_since_ms === null ? "" : `, since ${moment(status.fault_since_ms)}`}${status.stepped_down ? "" : "; reads go on"}`, kind: "bad" });
  if (status.not_given_away) facts.push({ name: "Not given away", text: status.not_given_away, kind: "bad" });
  if (status.damaged_blocks > 0) facts.push({ name: "Damaged", text: `${status.damaged_blocks} blocks, not repaired yet`, kind: "bad" });
  if (status.clone_of?.volume) facts.push({ name: "Clone of", text: `${status.clone_of.volume}${status.clone_of.snapshot ? `@${status.clone_of.snapshot}` : ""}` });
  facts.push({ name: "Newest write", text: status.head });
  return facts;
}

function toFetch({ bytes: rest, all_at: all, some_at: some }) {
  if (all.length > 0) return `${bytes(rest)}; until then ${all.join(" or ")} is needed`;
  if (some.length === 0) return `${bytes(rest)}; no node that is left is known to have any of it`;
  return `${bytes(rest)}; until then ${some.join(" and ")} ${some.length === 1 ? "is" : "are"} needed`;
}

function rpoOf(rpo) {
  const target = rpo.target_ms === null ? "no target" : `target ${seconds(rpo.target_ms / 1000)}`;
  const missed = rpo.missed_seconds === null ? "" : `, missed for ${seconds(rpo.missed_seconds)}`;
  const kind = rpo.target_ms === null ? null : rpo.missed_seconds === null ? "good" : "bad";
  return { name: "RPO", text: rpo.seconds === null ? "no replica" : `${seconds(rpo.seconds)} (${target}${missed})`, kind };
}

function fillReplica(made, replica) {
  const [node, state, behind, send, watermark, mode] = made.cells;
  put(node, replica.provider === replica.node ? replica.node : `${replica.node} of ${replica.provider}`);
  const [kind, said] = replicaState(replica);
  change(state, said, mark(kind, said));
  put(behind, replica.bytes_behind === 0 ? "nothing" : seconds(replica.seconds_behind));
  set(behind, "title", replica.consistent_ms === null ? null : `shows the volume as of ${moment(replica.consistent_ms)}`);
  put(send, replica.bytes_behind === 0 ? "nothing" : bytes(replica.bytes_behind));
  put(watermark, replica.watermark);
  const every = replica.policy.interval_ms ? ` every ${seconds(replica.policy.interval_ms / 1000)}` : "";
  const limited = replica.limit_bytes_per_second;
  const limit = limited === null ? "" : limited === 0 ? ", its link is closed" : `, at most ${rate(limited)}`;
  put(mode, `${replica.policy.propagation || "eager"}${every}${limit}`);
}

function replicaState(replica) {
  if (replica.tail) return ["bad", `left the volume; keeps ${bytes(replica.tail.bytes)} as ${replica.tail.export}`];
  if (replica.error) return ["bad", replica.error];
  if (replica.is_rejoining) return ["warn", "on its way back"];
  if (replica.bytes_behind > 0) return ["warn", "behind"];
  return ["good", "has everything"];
}
