// What can be done with a volume from here. Each asks before, and says what the node said.

import { get, ofVolume, post, remove } from "./api.js";
import { ask } from "./dialog.js";
import { h } from "./dom.js";
import { bytes, ms, seconds, sizeOf, sizeText } from "./format.js";
import { run } from "./tasks.js";

const p = (...text) => h("p", {}, ...text);

function choice(name, options) {
  return h("fieldset", { class: "choice" }, h("legend", {}, name.title), options.map((option, index) =>
    h("label", {}, h("input", { type: "radio", name: name.key, value: option.value, checked: index === 0 }),
      h("span", {}, h("b", {}, option.title), h("span", { class: "quiet" }, option.note)))));
}

const chosenOf = (place, key) => place.querySelector(`input[name="${key}"]:checked`)?.value ?? null;

/** The group of a volume moves as one. */
const moves = (name, status) => (status.group ? { what: `group ${status.group}`, path: `/v1/groups/${encodeURIComponent(status.group)}` } : { what: name, path: ofVolume(name) });

/** What the owner says, in bounded time, of a handover that waits for the new one: asked again, it answers for the same handover. */
const GOES_ON = "the handover goes on, and `--cancel` ends it";

/** Asks for a handover until it is known what became of it. */
async function handOver(path, request) {
  for (;;) {
    try {
      return await post(path, request);
    } catch (error) {
      if (!(error.kind === "Busy" && error.message.endsWith(GOES_ON))) throw error;
    }
  }
}

/** Hands a volume over: at once, when everything is there, or when it is written there. */
export async function move(name, status) {
  const reach = (replica) => (replica.error ? 1 : 0);
  const better = (a, b) => reach(a) - reach(b) || a.bytes_behind - b.bytes_behind;
  const replicas = status.replicas.filter((replica) => !replica.tail).sort(better);
  if (replicas.length === 0) {
    await ask({ title: `Move ${name}`, body: [p("It has no replica that it could go to.")], yes: "Very well" });
    return;
  }
  const { what, path } = moves(name, status);
  const to = choice({ title: "Where to", key: "to" }, replicas.map((replica) => ({
    value: replica.node,
    title: replica.node,
    note: replica.error ? `cannot be reached: ${replica.error}` : replica.bytes_behind === 0 ? "has everything" : `lacks ${bytes(replica.bytes_behind)}, ${seconds(replica.seconds_behind)} behind`,
  })));
  const how = choice({ title: "When", key: "how" }, [
    { value: "instant", title: "Now", note: "what it lacks is fetched when it is wanted; until then the present owner is needed" },
    { value: "synced", title: "When everything is there", note: "the loss of the present owner costs nothing from then on" },
    { value: "on-write", title: "When it is written there", note: "for a virtual machine that moves: its first write takes the volume with it" },
  ]);
  const group = status.group ? [p(`It is in group ${status.group}, whose volumes go together.`)] : [];
  const isMeant = await ask({ title: `Move ${what}`, body: [p(`It is at ${status.owner}. Whoever is connected stays connected, and waits for a moment.`), ...group, to, how], yes: "Move it" });
  if (!isMeant) return;
  const [target, mode] = [chosenOf(to, "to"), chosenOf(how, "how")];
  if (mode === "on-write") {
    await run(`Letting ${what} go to ${target}`, async () => {
      await post(`${path}/on-write`, { to: target });
      return `${what} goes to ${target} with the first write there.`;
    });
    return;
  }
  await run(`Moving ${what} to ${target}${mode === "synced" ? " when it has everything" : ""}`, async () => {
    const report = await handOver(`${path}/migrate`, { to: target, synced: mode === "synced" });
    const left = report.stale_bytes_at_handover > 0 ? `; ${bytes(report.stale_bytes_at_handover)} were left to fetch` : "";
    return `${what} is at ${target}: writers were held for ${ms(report.handover_ms)}${left}.`;
  });
}

/** Ends a handover that is not decided yet. */
export async function cancel(name, status) {
  const { what, path } = moves(name, status);
  const isMeant = await ask({ title: `Take the move of ${what} back`, body: [p("A handover that is under way ends, if it is not decided yet, and a write elsewhere takes nothing with it any more.")], yes: "Take it back" });
  if (!isMeant) return;
  await run(`Taking the move of ${what} back`, async () => {
    const report = await remove(`${path}/migrate`);
    if (report.handover) return `The handover of ${what} was told to end.`;
    return report.on_write ? `${what} does not go to ${report.on_write} by a write any more.` : `There was nothing to take back: ${what} stays where it is.`;
  });
}

/** Makes a snapshot. */
export async function snapshot(name, status) {
  const today = new Date().toLocaleDateString("en-CA");
  const input = h("input", { type: "text", value: today, spellcheck: "false", autocomplete: "off", required: true });
  const body = [p(status.group ? `It is made at once, of every volume of group ${status.group} at one cut.` : "It is made at once, and costs nothing until something is written."), h("label", { class: "field" }, "Its name", input)];
  if (!(await ask({ title: `Make a snapshot of ${status.group ?? name}`, body, yes: "Make it" }))) return;
  const given = input.value.trim();
  await run(`Making ${name}@${given}`, async () => {
    if (status.group) {
      const report = await post(`/v1/groups/${encodeURIComponent(status.group)}/snapshots`, { name: given });
      return `${given} is made of ${report.volumes.length} volumes: writers were held for ${ms(report.held_ms)}.`;
    }
    await post(ofVolume(name, "/snapshots"), { name: given });
    return `${name}@${given} is made.`;
  });
}

/** Gives a volume another size. */
export async function resize(name, status) {
  const input = h("input", { type: "text", value: sizeText(status.size_bytes), spellcheck: "false", autocomplete: "off", required: true });
  const shrink = h("input", { type: "checkbox" });
  const body = [
    p(`It has ${bytes(status.size_bytes)}. Clients see another size when they connect again.`),
    h("label", { class: "field" }, "New size, such as 20 GiB", input),
    h("label", { class: "check" }, shrink, "It may become smaller: what lies beyond the new end is dropped for good"),
  ];
  const check = () => {
    const size = sizeOf(input.value);
    if (size === null) return `${JSON.stringify(input.value)} is no size. Write 512M, 20G or 1.5T.`;
    if (size < status.size_bytes && !shrink.checked) return "That is smaller than it is. Say that it may become smaller, if that is meant.";
    return null;
  };
  if (!(await ask({ title: `Resize ${name}`, body, yes: "Resize it", check }))) return;
  const size = sizeOf(input.value);
  await run(`Resizing ${name} to ${bytes(size)}`, async () => {
    const now = await post(ofVolume(name, "/resize"), { size_bytes: size, shrink: shrink.checked });
    return `${name} has ${bytes(now.size_bytes)} now.`;
  });
}

/** Takes a volume over from an owner that is lost. */
export async function takeOver(name, status, summary) {
  const owner = status?.owner ?? summary.owner;
  const replicas = (status?.replicas ?? summary.replicas).map((replica) => replica.node);
  const to = h("select", {}, h("option", { value: "" }, "the one that holds most"), replicas.map((node) => h("option", { value: node }, node)));
  const typed = h("input", { type: "text", spellcheck: "false", autocomplete: "off", required: true });
  const behind = h("input", { type: "checkbox" });
  const body = [
    p(`For when ${owner} is lost. A replica goes on with what it holds: what ${owner} had not sent is lost, or kept there apart until somebody looks at it. It waits until the lease of ${owner} is out, and is refused while ${owner} lives, unless its store has failed: then it steps down at once. To move a volume that is well, use Move.`),
    h("label", { class: "field" }, "Which replica", to),
    h("label", { class: "check" }, behind, "Also if another replica holds more, or may hold what was flushed: that is cut off"),
    h("label", { class: "field" }, h("span", {}, "Type ", h("code", {}, name), " to say that it is meant"), typed),
  ];
  const check = () => (typed.value.trim() === name ? null : `Type ${name}, the name of the volume.`);
  if (!(await ask({ title: `Take ${name} over`, body, yes: "Take it over", danger: true, check }))) return;
  const request = { behind: behind.checked };
  if (to.value) request.to = to.value;
  await run(`Taking ${name} over from ${owner}`, async (say) => {
    const look = setInterval(async () => {
      const progress = await fetchProgress(name);
      if (progress) say(`Taking ${name} over from ${progress.from}: ${progress.doing}${progress.remaining_ms ? `, ${seconds(progress.remaining_ms / 1000)}` : ""}`);
    }, 1000);
    try {
      const report = await post(ofVolume(name, "/takeover"), request);
      const lost = report.lost_bytes > 0 ? `${report.lost_writes} writes of ${bytes(report.lost_bytes)} were lost, ${seconds(report.lost_seconds)}` : "nothing that was known of was lost";
      return `${name} is at ${report.to} after ${seconds(report.took_seconds)}: ${lost}.`;
    } finally {
      clearInterval(look);
    }
  });
}

async function fetchProgress(name) {
  try {
    return await get(ofVolume(name, "/takeover"));
  } catch {
    // It has ended, or the next look tells.
    return null;
  }
}
