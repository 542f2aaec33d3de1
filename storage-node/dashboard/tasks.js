// What was asked for from this page, while it goes on and when it has ended.

import { by, h, put } from "./dom.js";
import { refresh } from "./poll.js";

/** Ended tasks that stay to be read; those that went well only for so many milliseconds. */
const [KEPT, READ_MS] = [4, 30000];

/** Runs `work`, which gets a function that says how far it is and returns what to say at the end. */
export async function run(title, work) {
  const text = h("span", {}, title);
  const close = h("button", { type: "button", class: "small", hidden: true, "aria-label": `Dismiss: ${title}`, onclick: () => task.remove() }, "Dismiss");
  const sign = h("span", { class: "sign", "aria-hidden": "true" }, "…");
  const task = h("p", { class: "task running" }, sign, text, close);
  const list = by("tasks");
  list.append(task);
  const end = (kind, glyph, said) => {
    task.className = `task ${kind}`;
    put(sign, glyph);
    put(text, said);
    close.hidden = false;
    if (kind === "good") setTimeout(() => task.remove(), READ_MS);
    const ended = [...list.querySelectorAll(".task:not(.running)")];
    for (const old of ended.slice(0, Math.max(0, ended.length - KEPT))) old.remove();
    refresh();
  };
  try {
    end("good", "✓", await work((said) => put(text, said)));
    return true;
  } catch (error) {
    if (error.kind === undefined) console.error(error);
    end("bad", "✕", `${title}: ${error.message}`);
    return false;
  }
}
