// Everything that a node owns goes elsewhere, so that it may be stopped: one after the other, as `helio node drain` does it.

import { get, ofVolume, post } from "./api.js";
import { ask } from "./dialog.js";
import { by, h, put } from "./dom.js";
import { forecast } from "./forecast.js";
import { bytes, many, moment, seconds } from "./format.js";
import { run } from "./tasks.js";

/** Rows of an answer. */
const ROWS = 500;
/** Steps that are listed before it is begun; the others are counted. */
const LISTED = 12;
/** How long it is looked how fast replicas catch up, in milliseconds. */
const LOOK_MS = 3000;
/** Volumes that are asked for at once. */
const AT_ONCE = 8;

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
    const step = steps.get(key) ?? { what: key, group: volume.group, name: volume.name, volumes: [], lacks: null };
    const able = new Map(volume.replicas.filter((replica) => replica.reachable !== false && replica.node !== node)
      .map((replica) => [replica.node, replica.bytes_behind ?? 0]));
    step.volumes.push(volume.name);
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

/** What each of these volumes has sent to where it goes, and what is still to be sent, by name. */
async function look(steps) {
  const looks = new Map();
  const wanted = steps.flatMap((step) => step.volumes.map((name) => [name, step.to]));
  const some = async () => {
    for (let next = wanted.pop(); next; next = wanted.pop()) {
      const [name, to] = next;
      const status = await get(ofVolume(name));
      const replica = status.replicas.find((one) => one.node === to);
      const { sent_bytes = 0, same_bytes = 0, relayed_bytes = 0 } = replica?.freight ?? {};
      looks.set(name, { from: status.owner, toSend: replica?.to_send_bytes ?? replica?.bytes_behind ?? 0, carried: sent_bytes + same_bytes + relayed_bytes });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, some));
  return looks;
}

/** In how many seconds each step will be over, and when that was said. */
async function foresee(steps) {
  const before = await look(steps);
  const began = performance.now();
  const isLevel = [...before.values()].every((one) => one.toSend === 0);
  if (!isLevel) await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  const now = isLevel ? before : await look(steps);
  const passed = isLevel ? LOOK_MS : performance.now() - began;
  const looks = (step) => step.volumes.map((name) => ({ from: now.get(name).from, before: before.get(name), now: now.get(name) }));
  return { over: forecast(steps.map((step) => ({ to: step.to, looks: looks(step) })), passed / 1000), at: Date.now() };
}

const said = (over) => (over === null ? "not as it is: it, or one before it, is written faster than it is sent" : over === 0 ? "moves at once" : `moves in ${seconds(over)}`);

/** When all of it will be over. */
function sum(over) {
  const last = over.at(-1);
  if (last === undefined || last === 0) return "It will be over at once.";
  return last === null ? "No end is to be seen as long as one does not catch up." : `All of it will be over in about ${seconds(last)}.`;
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
  const whens = steps.map(() => h("span", { class: "quiet" }));
  const list = h("ul", { class: "plan" }, steps.slice(0, LISTED).map((step, index) =>
    h("li", {}, `${step.what} → ${step.to ?? "nowhere: no replica in reach"}`, step.behind > 0 ? h("span", { class: "quiet" }, ` lacks ${bytes(step.behind)}`) : null, whens[index])));
  const end = h("p", { role: "status" });
  let foreseen = null;
  if (steps.length > 0 && stuck.length === 0) {
    put(end, `It is looked for ${seconds(LOOK_MS / 1000)} how fast it goes…`);
    foresee(steps).then((told) => {
      foreseen = told;
      whens.forEach((when, index) => put(when, ` ${said(told.over[index])}`));
      put(end, sum(told.over));
    }, (error) => put(end, `When it will be over cannot be told: ${error.message}`));
  }
  const more = steps.length > LISTED ? [h("p", { class: "quiet" }, `and ${many(steps.length - LISTED, "other")}`)] : [];
  const isMeant = await ask({
    title: `Drain node ${node}`,
    body: [
      h("p", {}, `${many(steps.length, "step")}: each goes when the node it goes to has everything, so that nobody needs ${node} afterwards. Volumes stay in use. This page has to stay open; what has moved has moved, and it can be asked for again.`),
      list, ...more, end,
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
        const last = foreseen?.over.at(-1);
        const until = last ? `; all of it will be over at about ${moment(foreseen.at + last * 1000)}` : "";
        say(`Draining ${node}: ${step.what} goes to ${step.to} (${index + 1} of ${steps.length})${until}`);
        const path = step.group ? `/v1/groups/${encodeURIComponent(step.group)}` : ofVolume(step.name);
        await post(`${path}/migrate`, { to: step.to, synced: true });
      }
      return `${node} owns nothing that it owned, and nobody needs it for that.`;
    } finally {
      stop.remove();
    }
  });
}
