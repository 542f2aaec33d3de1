// The one dialog of the page: something is asked before it is done.

import { by, put, show } from "./dom.js";

let decide = null;

/** Asks. `body` is what is shown, `yes` the word on the button, `check` returns what is wrong with what was entered, or nothing. Resolves to whether it
 * is meant. */
export function ask({ title, body, yes, danger = false, check = () => null }) {
  put(by("dialog-title"), title);
  by("dialog-body").replaceChildren(...body);
  put(by("dialog-yes"), yes);
  by("dialog-yes").className = danger ? "danger" : "primary";
  show(by("dialog-problem"), false);
  const dialog = by("dialog");
  return new Promise((resolve) => {
    decide = (isMeant) => {
      const problem = isMeant ? check() : null;
      if (problem) {
        put(by("dialog-problem"), problem);
        show(by("dialog-problem"), true);
        return;
      }
      decide = null;
      dialog.close();
      resolve(isMeant);
    };
    dialog.showModal();
    // What is dangerous is not a key away.
    (danger ? dialog.querySelector("#dialog-body input, #dialog-body select") ?? by("dialog-no") : dialog.querySelector("#dialog-body input, #dialog-body select") ?? by("dialog-yes")).focus();
  });
}

by("dialog-form").addEventListener("submit", (event) => {
  event.preventDefault();
  decide?.(true);
});
by("dialog-no").addEventListener("click", () => decide?.(false));
by("dialog").addEventListener("cancel", (event) => {
  event.preventDefault();
  decide?.(false);
});
