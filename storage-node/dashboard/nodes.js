// The nodes and the links between them, as tables.

import { by, change, h, keep, mark, put, row, table } from "./dom.js";
import { bytes, cap, count, many, moment, ms, rate, seconds } from "./format.js";
import { rateOf } from "./traffic.js";

const NODE_COLUMNS = [
  { name: "node", title: "Node" },
  { name: "state", title: "State" },
  { name: "owns", title: "Owns", number: true },
  { name: "drain", title: "" },
];

const LINK_COLUMNS = [
  { name: "way", title: "From → to" },
  { name: "rate", title: "Now, cap", number: true },
  { name: "waits", title: "Waits", number: true },
  { name: "rtt", title: "RTT", number: true },
];

/** Which store takes no writes, why, and since when. */
const faultOf = (fault) => `${fault.store} ${fault.fault}${fault.since_ms === null ? "" : `, since ${moment(fault.since_ms)}`}`;

export class Nodes {
  /** `drain` is called with the name of a node. */
  constructor(drain) {
    this.drain = drain;
    this.nodes = table("nodes-title", NODE_COLUMNS);
    this.links = table("links-title", LINK_COLUMNS);
    this.nodes.heads[3].append(h("span", { class: "hidden" }, "Actions"));
    by("nodes").append(this.nodes.element);
    by("links").append(this.links.element);
  }

  /** Shows the members, with what they own. */
  draw(cluster, owners) {
    const lost = cluster.members.filter((member) => !member.reachable);
    const leader = cluster.members.find((member) => member.leader);
    const reach = lost.length === 0 ? "all answer" : `${lost.map((member) => member.name).join(", ")} ${lost.length === 1 ? "does" : "do"} not answer`;
    put(by("cluster-summary"), `${many(cluster.members.length, "node")}, ${reach}; ${leader ? `${leader.name} leads term ${cluster.term}` : "nobody leads: no change of metadata is possible"}`);
    const make = (member) => {
      const made = row(NODE_COLUMNS);
      made.cells[3].append(h("button", { type: "button", class: "small", onclick: () => this.drain(member.name) }, "Drain…", h("span", { class: "hidden" }, ` node ${member.name}`)));
      return made;
    };
    keep(this.nodes.body, cluster.members, (member) => member.name, make, (made, member) => {
      const [name, state, owns, drain] = made.cells;
      const provider = member.provider === member.name ? null : h("span", { class: "below" }, member.provider);
      const role = member.leader ? "★ leads" : member.voter ? "votes" : "follows";
      const here = member.name === cluster.node ? " · shows this" : "";
      const owner = owners.find((owner) => owner.node === member.name);
      const faults = member.reachable ? owner?.store_faults ?? [] : [];
      change(name, `${member.name} ${member.provider} ${role}${here} ${faults.map(faultOf)}`, member.name, provider, h("span", { class: "below" }, `${role}${here}`),
        ...faults.map((fault) => h("span", { class: "why bad" }, h("span", {}, faultOf(fault)))));
      const far = member.reachable && member.rtt_ms !== null ? h("span", { class: "below" }, `in ${ms(member.rtt_ms)}`) : null;
      const said = !member.reachable ? "does not answer" : faults.length === 0 ? "answers" : faults.length === 1 ? "a store has failed" : `${faults.length} stores have failed`;
      change(state, `${said} ${member.rtt_ms}`, mark(said === "answers" ? "good" : "bad", said), far);
      put(owns, owner ? count(owner.volumes) : "–");
      drain.firstElementChild.disabled = !owner || owner.volumes === 0;
    });
  }

  /** Shows the links, with what waits to be sent over each. */
  drawLinks(list, backlogs) {
    keep(this.links.body, list.links, (link) => `${link.from} ${link.to}`, () => row(LINK_COLUMNS), (made, link) => {
      const [way, now, waits, rtt] = made.cells;
      const backlog = backlogs.find((backlog) => backlog.from === link.from && backlog.to === link.to);
      put(way, `${link.from} → ${link.to}`);
      const limit = cap(link.limit_bytes_per_second);
      change(now, `${rate(rateOf(link))} ${limit}`, rate(rateOf(link)), h("span", { class: "below" }, limit));
      change(waits, backlog ? `${backlog.bytes} ${backlog.seconds}` : "0", backlog ? bytes(backlog.bytes) : "0",
        backlog ? h("span", { class: "below" }, `${seconds(backlog.seconds)} behind`) : null);
      put(rtt, ms(link.rtt_ms));
    });
  }
}
