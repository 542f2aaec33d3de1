// Whether the node answers, and how old what is shown is when it does not.

import { by, put, show } from "./dom.js";
import { seconds } from "./format.js";
import { secret } from "./secret.js";

/** So old may the picture be before it is said how old it is, in milliseconds. */
const OLD_MS = 6000;

let node = null;
/** Since when the page has been looked at. */
let shown = performance.now();

document.addEventListener("visibilitychange", () => (shown = performance.now()));

/** The node that answers. */
export function answers(name) {
  node = name;
}

/** Keeps saying how it is with these requests, each of which has `at` and `error`. */
export function watch(polls) {
  const say = () => {
    const now = performance.now();
    const heard = polls.map((poll) => poll.at).filter((at) => at !== null);
    const newest = heard.length ? Math.max(...heard) : null;
    const who = node === null ? "The node" : `Node ${node}`;
    const isUnknown = polls.some((poll) => poll.error?.kind === "NoSecret");
    const isSilent = polls.every((poll) => poll.error?.kind === "NoAnswer");
    const age = newest === null ? null : (now - newest) / 1000;
    // In the background nothing is asked for.
    const isOld = newest !== null && now - Math.max(newest, shown) > OLD_MS && !document.hidden;
    document.documentElement.classList.toggle("old", isSilent || isOld || isUnknown);
    if (isUnknown) {
      const what = secret() === null ? "This page has no secret of the node, so it is told nothing." : "The secret that this page has is not the node's.";
      put(by("outage-says"), `${what} Run “helio dashboard” on the node's machine, and open the link that it prints.`);
      put(by("outage-age"), "");
      put(by("connection"), "✕ no secret");
    } else if (isSilent || isOld) {
      // Read aloud once; the age is not, each second.
      put(by("outage-says"), `${who} does not answer. It is asked again, and this goes on by itself.`);
      put(by("outage-age"), age === null ? "Nothing has been shown yet." : `What is shown is ${seconds(Math.max(age, 1))} old.`);
      put(by("connection"), "✕ no answer");
    } else if (age === null) {
      put(by("connection"), "connecting…");
    } else {
      put(by("connection"), "✓ live");
    }
    by("connection").classList.toggle("bad", isSilent || isOld || isUnknown);
    show(by("outage"), isSilent || isOld || isUnknown);
  };
  say();
  setInterval(say, 1000);
}
