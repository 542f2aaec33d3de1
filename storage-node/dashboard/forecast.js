// When each step of a drain will be over, as `helio node drain` tells it. Why it is so is in `storage-node/src/cli/drain/forecast.rs`, and
// `cases.json` beside that is what both are tested with.

/** What is no longer waited for, in bytes: it is written in a moment. */
const LEFT_MAX = 4 * 1024 ** 2;
/** What a step that had to be waited for takes beside that. */
const STEP_SECONDS = 0.4;

/** What a volume has of its link, from two looks with so many seconds between them. */
function load({ before, now }, seconds) {
  const gained = (before.toSend - now.toSend) / seconds;
  const sent = Math.max(Math.max(0, now.carried - before.carried) / seconds, gained);
  return { toSend: now.toSend <= LEFT_MAX ? 0 : now.toSend, sent, grown: sent - gained };
}

/** When each of those that share a link will be over; `null` for those that never are. */
function shared(loads) {
  const sum = (some) => some.reduce((all, one) => all + one.sent, 0);
  const rest = loads.map((one) => ({ ...one, over: one.toSend <= 0 ? 0 : null, left: one.toSend }));
  const carries = sum(loads.filter((one) => one.toSend > 0));
  let at = 0;
  for (;;) {
    const open = rest.filter((one) => one.over === null);
    const sent = sum(open);
    const gains = (one) => carries * (sent > 0 ? one.sent / sent : 1 / open.length) - one.grown;
    const passing = open.map((one) => [one, gains(one)]);
    const next = passing.filter(([, gain]) => gain > 0).map(([one, gain]) => one.left / gain);
    if (next.length === 0) return rest.map((one) => one.over);
    const step = Math.min(...next);
    at += step;
    for (const [one, gain] of passing) {
      one.left -= gain * step;
      // Rounding leaves less than a byte.
      if (one.left < 1) one.over = at;
    }
  }
}

/** In how many seconds each of `steps` is over, those before it included; `null` for one that is not, as it is. A step is `to`, and `looks` at each of its
 * volumes: `from`, and `before` and `now`, which are `toSend` and `carried` in bytes, so many `seconds` apart. */
export function forecast(steps, seconds) {
  const links = new Map();
  const looks = steps.flatMap((step) => step.looks.map((look) => ({ step, look, over: null })));
  for (const one of looks) {
    const link = JSON.stringify([one.look.from, one.step.to]);
    links.set(link, [...(links.get(link) ?? []), one]);
  }
  for (const onLink of links.values()) {
    shared(onLink.map((one) => load(one.look, seconds))).forEach((over, index) => (onLink[index].over = over));
  }
  let at = 0;
  return steps.map((step) => {
    const ready = looks.filter((one) => one.step === step).map((one) => one.over);
    if (at !== null) {
      const last = ready.includes(null) ? null : Math.max(0, ...ready);
      at = last === null ? null : Math.max(at, last) + (last > 0 ? STEP_SECONDS : 0);
    }
    return step.to === null ? null : at;
  });
}
