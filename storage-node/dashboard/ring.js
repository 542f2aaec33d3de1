// The nodes in a ring, and what goes between them. What it shows is in the tables beneath it, too.

import { keep, s, set } from "./dom.js";
import { bytes, cap, many, ms, rate } from "./format.js";
import { rateOf } from "./traffic.js";

/** More nodes than so many: links are drawn without words. */
const LABELLED_NODES = 5;
const NODE_RADIUS = 30;
/** From so many pixels on there is room for all words. */
const WIDE = 420;

/** Where each node is, by name: those of a provider beside each other. */
function places(members, width, height) {
  const sorted = [...members].sort((a, b) => a.provider.localeCompare(b.provider) || a.name.localeCompare(b.name));
  if (sorted.length === 1) return new Map([[sorted[0].name, { x: width / 2, y: height / 2 }]]);
  const turn = sorted.length === 2 ? Math.PI : -Math.PI / 2;
  const points = sorted.map((_, index) => turn + (2 * Math.PI * index) / sorted.length).map((angle) => [Math.cos(angle), Math.sin(angle)]);
  // The picture is filled, whatever the ring's shape: words need some room above and below.
  const spread = (axis, from, to) => {
    const [low, high] = [Math.min(...points.map((point) => point[axis])), Math.max(...points.map((point) => point[axis]))];
    return (value) => (high - low < 0.01 ? (from + to) / 2 : from + ((value - low) / (high - low)) * (to - from));
  };
  const half = Math.min(width / 2 - NODE_RADIUS - 26, height * 0.72);
  const [x, y] = [spread(0, width / 2 - half, width / 2 + half), spread(1, NODE_RADIUS + 36, height - NODE_RADIUS - 40)];
  return new Map(sorted.map((member, index) => [member.name, { x: x(points[index][0]), y: y(points[index][1]) }]));
}

/** The way from `a` to `b`, bent so that there and back are beside each other. */
function bend(a, b) {
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const length = Math.hypot(dx, dy) || 1;
  const [ux, uy] = [dx / length, dy / length];
  const [nx, ny] = [-uy, ux];
  const out = Math.min(26, length * 0.12);
  const gap = NODE_RADIUS + 5;
  const start = { x: a.x + ux * gap + nx * 7, y: a.y + uy * gap + ny * 7 };
  const end = { x: b.x - ux * (gap + 5) + nx * 7, y: b.y - uy * (gap + 5) + ny * 7 };
  const middle = { x: (a.x + b.x) / 2 + nx * out * 1.6, y: (a.y + b.y) / 2 + ny * out * 1.6 };
  // Its words are nearer to where it begins, so that those of there and back are apart.
  const [p, q] = [0.36, 0.64];
  const at = (axis) => q * q * start[axis] + 2 * p * q * middle[axis] + p * p * end[axis];
  return { path: `M${start.x} ${start.y}Q${middle.x} ${middle.y} ${end.x} ${end.y}`, sign: { x: at("x"), y: at("y") } };
}

/** What is said of a link in the ring: the first of it where there is little room. */
function words(link, backlog, isWide) {
  const now = rateOf(link);
  const said = [];
  const isBusy = now !== null && now >= 512;
  const limit = link.limit_bytes_per_second;
  if (isBusy) said.push(rate(now) + (limit && isWide ? ` of ${rate(limit)}` : ""));
  else if (limit !== null) said.push(cap(limit));
  if (backlog) said.push(`${bytes(backlog.bytes)} waits`);
  return isWide ? said : said.slice(0, 1);
}

export class Ring {
  constructor(place) {
    this.place = place;
    this.title = s("title", { id: "ring-says" });
    this.ways = s("g", {});
    this.signs = s("g", {});
    this.nodes = s("g", {});
    const arrow = (id) => s("marker", { id, viewBox: "0 0 8 8", refX: 5, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" },
      s("path", { d: "M0 0L8 4L0 8z", class: id }));
    this.picture = s("svg", { role: "img", "aria-labelledby": "ring-says" }, this.title, s("defs", {}, arrow("arrow"), arrow("arrow-busy")), this.ways, this.signs, this.nodes);
    place.append(this.picture);
    this.last = null;
    new ResizeObserver(() => this.last && this.draw(...this.last)).observe(place);
  }

  /** Draws the cluster, its links, and what waits to be sent. */
  draw(cluster, links, backlogs) {
    this.last = [cluster, links, backlogs];
    const width = Math.max(280, Math.round(this.place.clientWidth));
    const height = Math.round(Math.min(Math.max(width * 0.82, 290), 440));
    set(this.picture, "viewBox", `0 0 ${width} ${height}`);
    set(this.picture, "width", width);
    set(this.picture, "height", height);
    const at = places(cluster.members, width, height);
    const lost = new Set(cluster.members.filter((member) => !member.reachable).map((member) => member.name));
    this.title.textContent = says(cluster, lost);
    const drawn = links.filter((link) => at.has(link.from) && at.has(link.to));
    const key = (link) => `${link.from} ${link.to}`;
    const backlogOf = (link) => backlogs.find((backlog) => backlog.from === link.from && backlog.to === link.to);
    keep(this.ways, drawn, key, () => s("path", { fill: "none" }), (path, link) => {
      const isLost = lost.has(link.from) || lost.has(link.to);
      const now = isLost ? 0 : (rateOf(link) ?? 0);
      const kind = isLost ? "lost" : now >= 512 ? "busy" : "calm";
      set(path, "d", bend(at.get(link.from), at.get(link.to)).path);
      set(path, "class", `way ${kind}`);
      set(path, "marker-end", isLost ? null : `url(#${kind === "busy" ? "arrow-busy" : "arrow"})`);
      path.style.strokeWidth = `${now >= 512 ? Math.min(6, 1.6 + Math.log10(now / 512) * 0.7) : 1.4}px`;
    });
    const isLabelled = cluster.members.length <= LABELLED_NODES;
    const labels = isLabelled ? drawn.filter((link) => !lost.has(link.from) && !lost.has(link.to) && words(link, backlogOf(link), width >= WIDE).length > 0) : [];
    const pairs = isLabelled ? drawn.filter((link) => link.rtt_ms !== null && link.from < link.to && !lost.has(link.from) && !lost.has(link.to)) : [];
    const signs = [
      ...pairs.map((link) => ({ key: `rtt ${key(link)}`, link, lines: [ms(link.rtt_ms)], isRtt: true })),
      ...labels.map((link) => ({ key: `says ${key(link)}`, link, lines: words(link, backlogOf(link), width >= WIDE), isRtt: false })),
    ];
    const taken = [];
    keep(this.signs, signs, (sign) => sign.key, () => s("text", { "text-anchor": "middle" }), (text, sign) => {
      const [a, b] = [at.get(sign.link.from), at.get(sign.link.to)];
      const place = sign.isRtt ? { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 } : { ...bend(a, b).sign };
      const half = { x: Math.max(...sign.lines.map((line) => line.length)) * 3.3 + 2, y: sign.lines.length * 8 };
      place.x = Math.min(Math.max(place.x, half.x), width - half.x);
      // Words that would lie on others go below them.
      for (const other of taken) {
        const isOver = Math.abs(other.x - place.x) < other.half.x + half.x && Math.abs(other.y - place.y) < other.half.y + half.y;
        if (isOver) place.y = other.y + other.half.y + half.y;
      }
      taken.push({ ...place, half });
      set(text, "class", sign.isRtt ? "rtt" : "says");
      keep(text, sign.lines, (_, index) => index, () => s("tspan", {}), (line, words) => {
        if (line.textContent !== words) line.textContent = words;
      });
      [...text.children].forEach((line, index) => {
        set(line, "x", Math.round(place.x));
        set(line, "y", Math.round(place.y + 4 + (index - (sign.lines.length - 1) / 2) * 15));
      });
    });
    keep(this.nodes, cluster.members, (member) => member.name, makeNode, (group, member) => {
      const { x, y } = at.get(member.name);
      set(group, "transform", `translate(${Math.round(x)} ${Math.round(y)})`);
      set(group, "class", `node${member.reachable ? "" : " lost"}${member.leader ? " leader" : ""}${member.voter ? "" : " learner"}`);
      const [name, provider, role] = group.querySelectorAll("text");
      name.textContent = member.name.length > 8 ? `${member.name.slice(0, 7)}…` : member.name;
      provider.textContent = member.provider === member.name ? "" : member.provider;
      role.textContent = !member.reachable ? "✕ no answer" : member.leader ? "★ leads" : member.voter ? "votes" : "follows";
      // Words are on the outside of the ring.
      const isAbove = y < height / 2 - 20;
      set(role, "y", isAbove ? -NODE_RADIUS - 9 : NODE_RADIUS + 17);
      set(provider, "y", isAbove ? -NODE_RADIUS - 24 : NODE_RADIUS + 32);
    });
  }
}

function makeNode() {
  return s("g", {}, s("circle", { r: NODE_RADIUS }), s("text", { class: "name", "text-anchor": "middle", y: 5 }),
    s("text", { class: "provider", "text-anchor": "middle" }), s("text", { class: "role", "text-anchor": "middle" }));
}

function says(cluster, lost) {
  const providers = new Set(cluster.members.map((member) => member.provider)).size;
  const leader = cluster.members.find((member) => member.leader);
  const reach = lost.size === 0 ? "all answer" : `${[...lost].join(", ")} ${lost.size === 1 ? "does" : "do"} not answer`;
  return `${many(cluster.members.length, "node")} of ${many(providers, "provider")}, ${reach}; ${leader ? `${leader.name} leads` : "nobody leads"}. The tables below tell the same.`;
}
