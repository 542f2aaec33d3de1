// The page: who asks for what, and where the answers go.

import { get } from "./api.js";
import * as connection from "./connection.js";
import { by, put } from "./dom.js";
import { drain } from "./drain.js";
import { Nodes } from "./nodes.js";
import { Poll } from "./poll.js";
import { Ring } from "./ring.js";
import * as theme from "./theme.js";
import * as traffic from "./traffic.js";
import { VolumeView } from "./volume.js";
import { Volumes } from "./volumes.js";

const known = { cluster: null, links: { links: [], silent: [] }, overview: null };

const ring = new Ring(by("ring"));
const nodes = new Nodes(drain);
const volume = new VolumeView();
const volumes = new Volumes(() => overviewPoll.now());

function drawCluster() {
  if (!known.cluster) return;
  const { owners, backlogs } = known.overview ?? { owners: [], backlogs: [] };
  ring.draw(known.cluster, known.links.links, backlogs);
  nodes.draw(known.cluster, owners);
  nodes.drawLinks(known.links, backlogs);
}

const clusterPoll = new Poll({
  ask: () => get("/v1/cluster"),
  show: (cluster) => {
    known.cluster = cluster;
    connection.answers(cluster.node);
    put(by("seen-from"), `seen from node ${cluster.node}`);
    document.title = `Heliotrope – ${cluster.node}`;
    drawCluster();
  },
  every: 2000,
});

const linksPoll = new Poll({
  ask: () => get("/v1/links"),
  show: (links) => {
    traffic.note(links.links);
    known.links = links;
    drawCluster();
  },
  every: 1500,
});

const overviewPoll = new Poll({
  ask: () => get(volumes.path()),
  show: (overview) => {
    known.overview = overview;
    volumes.draw(overview);
    drawCluster();
  },
  every: 2000,
});

/** `#/` is all volumes, `#/volume/NAME` one. */
function route(isMoved) {
  const found = /^#\/volume\/(.+)$/.exec(location.hash);
  const name = found ? decodeURIComponent(found[1]) : null;
  by("main").dataset.view = name === null ? "all" : "one";
  volume.open(name);
  if (!isMoved) return;
  // Whoever reads along is brought to what has changed.
  const place = by(name === null ? "volumes" : "volume");
  place.focus({ preventScroll: true });
  place.scrollIntoView({ block: "nearest" });
}

addEventListener("hashchange", () => route(true));
by("skip").addEventListener("click", (event) => {
  event.preventDefault();
  by(volume.name === null ? "volumes" : "volume").focus();
});
theme.follow(by("theme"), () => {
  drawCluster();
  for (const map of volume.maps.values()) map.draw();
});
route(false);
for (const poll of [clusterPoll, linksPoll, overviewPoll]) poll.start();
connection.watch([clusterPoll, linksPoll, overviewPoll]);
