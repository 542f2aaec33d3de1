// Asks for something again and again, as long as the page is looked at, and remembers how old the last answer is.

const polls = new Set();

export class Poll {
  /** `ask` returns a promise; `show` gets every answer, `fail` every error. `every` is in milliseconds, or a function that returns them. */
  constructor({ ask, show, fail = () => {}, every }) {
    Object.assign(this, { ask, show, fail, every });
    this.at = null;
    this.error = null;
    this.timer = null;
    this.round = 0;
    this.isOn = false;
  }

  start() {
    if (this.isOn) return;
    this.isOn = true;
    polls.add(this);
    this.now();
  }

  stop() {
    this.isOn = false;
    this.round += 1;
    polls.delete(this);
    clearTimeout(this.timer);
  }

  /** Asks at once; what was asked before is not waited for any more. */
  async now() {
    if (!this.isOn) return;
    clearTimeout(this.timer);
    const round = ++this.round;
    try {
      const answer = await this.ask();
      if (round !== this.round) return;
      this.at = performance.now();
      this.error = null;
      this.show(answer);
    } catch (error) {
      if (round !== this.round) return;
      if (error.kind === undefined) console.error(error);
      this.error = error;
      this.fail(error);
    }
    const every = typeof this.every === "function" ? this.every() : this.every;
    if (!document.hidden) this.timer = setTimeout(() => this.now(), every);
  }
}

/** Everything is asked for again. */
export function refresh() {
  for (const poll of [...polls]) poll.now();
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
