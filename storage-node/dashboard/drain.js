// Everything that a node owns goes elsewhere, so that it may be stopped: one after the other, as `helio node drain` does it.

import { get, ofVolume, post } from "./api.js";
import { ask } from "./dialog.js";
import { by, h } from "./dom.js";
import { bytes, many } from "./format.js";
import { run } from "./tasks.js";

/** Rows of an answer. */
const ROWS = 500;
/** Steps that are listed before it is begun; the others are counted. */
const LISTED = 12;

async function owned(node) {
  const rows = [];
  for (;;) {
    const query = new URLSearchParams({ owner: node, offset: rows.length, limit: ROWS });
    const overview = await get(`/v1/overview?${query}`);
    rows.push(...overview.rows);
    if (overview.rows.length === 0 || rows.length >= overview.matching) return rows;
  }
}

/** Where a volume, or all of a group, goes: to the node that lacks least. */
function plan(rows, node) {
  const steps = new Map();
  for (const volume of rows) {
    const key = volume.group ? `group ${volume.group}` : volume.name;
    const step = steps.get(key) ?? { what: key, group: volume.group, name: volume.name, volumes: 0, lacks: null };
    const able = new Map(volume.replicas.filter((replica) => replica.reachable !== false && replica.node !== node)
      .map((replica) => [replica.node, replica.bytes_behind ?? 0]));
    step.volumes += 1;
    step.lacks = step.lacks === null ? able : new Map([...step.lacks].filter(([name]) => able.has(name)).map(([name, lacks]) => [name, lacks + able.get(name)]));
    steps.set(key, step);
  }
  for (const step of steps.values()) {
    const [best] = [...step.lacks].sort((a, b) => a[1] - b[1] || a[0].localeCompare(b[0]));
    step.to = best?.[0] ?? null;
    step.behind = best?.[1] ?? 0;
  }
  return [...steps.values()];
}

/** Asks, and moves everything. */
export async function drain(node) {
  let steps;
  try {
    steps = plan(await owned(node), node);
  } catch (error) {
    await run(`Draining ${node}`, () => Promise.reject(error));
    return;
  }
  const stuck = steps.filter((step) => step.to === null);
  const list = h("ul", { class: "plan" }, steps.slice(0, LISTED).map((step) =>
    h("li", {}, `${step.what} → ${step.to ?? "nowhere: no replica in reach"}`, step.behind > 0 ? h("span", { class: "quiet" }, ` lacks ${bytes(step.behind)}`) : null)));
  const more = steps.length > LISTED ? [h("p", { class: "quiet" }, `and ${many(steps.length - LISTED, "other")}`)] : [];
  const isMeant = await ask({
    title: `Drain node ${node}`,
    body: [
      h("p", {}, `${many(steps.length, "step")}: each goes when the node it goes to has everything, so that nobody needs ${node} afterwards. Volumes stay in use. This page has to stay open; what has moved has moved, and it can be asked for again.`),
      list, ...more,
    ],
    yes: "Drain it",
    check: () => (stuck.length > 0 ? `${stuck[0].what} has no replica in reach that could own it: nothing is moved.` : null),
  });
  if (!isMeant) return;
  let isWanted = true;
  const stop = h("button", { type: "button", class: "small", onclick: () => (isWanted = false) }, `Stop draining ${node}`);
  await run(`Draining ${node}`, async (say) => {
    by("tasks").lastElementChild.append(stop);
    try {
      for (const [index, step] of steps.entries()) {
        if (!isWanted) return `Draining ${node} was stopped: ${many(index, "step")} of ${steps.length} were done.`;
        say(`Draining ${node}: ${step.what} goes to ${step.to} (${index + 1} of ${steps.length})`);
        const path = step.group ? `/v1/groups/${encodeURIComponent(step.group)}` : ofVolume(step.name);
        await post(`${path}/migrate`, { to: step.to, synced: true });
      }
      return `${node} owns nothing that it owned, and nobody needs it for that.`;
    } finally {
      stop.remove();
    }
  });
}
