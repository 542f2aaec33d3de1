// How fast links are now: what two looks at their counts differ by.

/** Over so many milliseconds rates are taken, so that they are calm and still move. */
const SPAN_MS = 6000;

const looks = new Map();

const keyOf = (link) => `${link.from} ${link.to}`;

/** Takes note of the links as they are told. */
export function note(links) {
  const now = performance.now();
  for (const link of links) {
    const seen = looks.get(keyOf(link)) ?? [];
    const last = seen.at(-1);
    const bytes = link.freight.wire_bytes;
    // A node that was restarted counts from the beginning.
    if (last && bytes < last.bytes) seen.length = 0;
    seen.push({ at: now, bytes });
    while (seen.length > 2 && now - seen[1].at > SPAN_MS) seen.shift();
    looks.set(keyOf(link), seen);
  }
}

/** Bytes per second from a node to another; `null` when that was not looked at twice. */
export function rateOf(link) {
  const seen = looks.get(keyOf(link)) ?? [];
  if (seen.length < 2) return null;
  const [first, last] = [seen[0], seen.at(-1)];
  return ((last.bytes - first.bytes) * 1000) / Math.max(1, last.at - first.at);
}
