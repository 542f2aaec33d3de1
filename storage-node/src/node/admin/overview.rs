//! All volumes at a glance: each owner tells of its own in one answer, and whoever is asked puts the answers together.
//!
//! Nobody waits for an owner that is slow or lost: what it told last is shown with its age, and it is asked again meanwhile.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client_lib::wire::admin::{
    Backlog, DurabilityStatus, Overview, OverviewQuery, OwnerRow, ReplicaRow, RpoStatus, StoreFault, VolumeRow,
};
use client_lib::{BLOCK_SIZE, Epoch, Error, ErrorKind, NodeId, VolumeId};
use consensus::{MetaState, Volume};
use futures_util::StreamExt;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::elsewhere::elsewhere;
use super::members::NodeAbout;
use super::volumes::rpo_told;
use super::{NodeAdmin, ask, deleted};
use crate::node::reach;
use crate::ownership::gate::Phase;
use crate::peer::client::PeerClient;
use crate::peer::message::AdminForward;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::size;
use crate::stores::FULL;

/// How old what an owner told may be before it is asked again.
const FRESH: Duration = Duration::from_secs(1);
/// How long an answer waits for owners; those that take longer are in the next one.
const PATIENCE: Duration = Duration::from_millis(120);
/// How long an owner may take to tell before it is silent.
const SILENCE: Duration = Duration::from_secs(5);
/// Rows of an answer, if it is not said how many, and at most.
const ROWS: u64 = 100;
const ROWS_MAX: u64 = 500;
/// Volumes that are looked at together: enough to keep the shards busy, few enough to leave their queues to guests.
const LOOKS: usize = 16;

/// What an owner tells of a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::node) struct Glance {
    volume: VolumeId,
    epoch: Epoch,
    rpo_seconds: Option<f64>,
    mapped_bytes: u64,
    stale_bytes: u64,
    waits: Vec<String>,
    replicas: Vec<ReplicaGlance>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ReplicaGlance {
    node: NodeId,
    reachable: bool,
    seconds_behind: f64,
    bytes_behind: u64,
}

/// What a node told last of the volumes that it owns.
#[derive(Debug, Default)]
struct Heard {
    told: Option<(Instant, Arc<BTreeMap<VolumeId, Glance>>)>,
    is_asked: bool,
    silence: Option<String>,
    store_faults: Vec<StoreFault>,
}

/// What the owners told last.
#[derive(Debug, Default)]
pub(in crate::node) struct Glances {
    by_owner: Mutex<BTreeMap<NodeId, Heard>>,
}

impl Glances {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Heard>> {
        self.by_owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `owner` is to be asked now; if so it counts as asked.
    fn begin(&self, owner: NodeId) -> bool {
        let mut heard = self.lock();
        let heard = heard.entry(owner).or_default();
        let is_fresh = heard.told.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH);
        let is_due = !heard.is_asked && !is_fresh;
        heard.is_asked |= is_due;
        is_due
    }

    fn end(&self, owner: NodeId, told: Result<(Vec<Glance>, Vec<StoreFault>), Error>) {
        let mut heard = self.lock();
        let heard = heard.entry(owner).or_default();
        heard.is_asked = false;
        match told {
            Ok((told, store_faults)) => {
                heard.store_faults = store_faults;
                let by_id = told.into_iter().map(|glance| (glance.volume, glance)).collect();
                (heard.told, heard.silence) = (Some((Instant::now(), Arc::new(by_id))), None);
            }
            Err(error) => heard.silence = Some(error.to_string()),
        }
    }
}

impl NodeAdmin {
    /// All volumes at a glance, at once.
    pub(super) async fn look_over(&self, query: OverviewQuery) -> Result<Overview, Error> {
        let order = Order::asked(query.sort.as_deref())?;
        let state = self.meta.state();
        let due: Vec<NodeId> = state.nodes().map(|node| node.id).filter(|node| self.glances.begin(*node)).collect();
        let (mut own, mut asked) = (None, Vec::new());
        // Whoever asks may go away. Who counts as asked is asked all the same, this node too, and nothing is waited for before.
        for node in due {
            if node == self.this.id {
                own = Some(self.look_here());
                continue;
            }
            let (glances, peers) = (self.glances.clone(), self.peers.clone());
            asked.push(tokio::spawn(async move {
                let told = tokio::time::timeout(SILENCE, ask_glances(&peers, node)).await;
                let late = |_| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {SILENCE:?}")));
                glances.end(node, told.unwrap_or_else(late));
            }));
        }
        if let Some(own) = own {
            let _ = own.await;
        }
        // Whoever has not told by then is asked on, and is in the next answer.
        let _ = tokio::time::timeout(PATIENCE, join_all(asked)).await;
        Ok(self.overview_of(&state, &query, order))
    }

    /// Has this node tell of its own volumes.
    fn look_here(&self) -> JoinHandle<()> {
        let (glances, admin, node) = (self.glances.clone(), self.itself.clone(), self.this.id);
        tokio::spawn(async move {
            let told = match admin.upgrade() {
                Some(admin) => admin.glances_here().await.map(|told| (told, admin.store_faults())),
                None => Err(Error::new(ErrorKind::Closed, "the node stops")),
            };
            glances.end(node, told);
        })
    }

    fn overview_of(&self, state: &MetaState, query: &OverviewQuery, order: Order) -> Overview {
        let heard = self.glances.lock();
        let groups: BTreeMap<VolumeId, String> = state
            .groups()
            .flat_map(|group| group.members.iter().map(|volume| (*volume, group.name.to_string())))
            .collect();
        let mut overview = Overview { node: self.this.name.to_string(), ..Overview::default() };
        let mut backlogs: BTreeMap<(NodeId, NodeId), Backlog> = BTreeMap::new();
        let mut owned: BTreeMap<NodeId, u64> = BTreeMap::new();
        let mut rows = Vec::new();
        for volume in state.volumes() {
            *owned.entry(volume.owner).or_default() += 1;
            let of_owner = heard.get(&volume.owner);
            let told = of_owner.and_then(|heard| heard.told.as_ref());
            let glance = told.and_then(|(at, told)| Some((*at, told.get(&volume.id)?)));
            // What was told of an earlier ownership says nothing any more.
            let glance = glance.filter(|(_, glance)| glance.epoch == volume.epoch);
            for replica in glance.iter().flat_map(|(_, glance)| &glance.replicas).filter(|it| it.bytes_behind > 0) {
                let backlog = backlogs.entry((volume.owner, replica.node)).or_insert_with(|| Backlog {
                    from: state.name_of(volume.owner),
                    to: state.name_of(replica.node),
                    ..Backlog::default()
                });
                backlog.bytes += replica.bytes_behind;
                backlog.volumes += 1;
                backlog.seconds = backlog.seconds.max(replica.seconds_behind);
            }
            let silence = of_owner.and_then(|heard| heard.silence.as_ref());
            let row = row(state, volume, groups.get(&volume.id), glance, silence);
            overview.volumes += 1;
            overview.size_bytes += row.size_bytes;
            overview.waiting += u64::from(!row.waits.is_empty());
            if fits(&row, query) {
                rows.push(row);
            }
        }
        overview.matching = rows.len() as u64;
        order.sort(&mut rows, query.descending);
        let limit = query.limit.unwrap_or(ROWS).min(ROWS_MAX);
        overview.rows = rows.into_iter().skip(query.offset as usize).take(limit as usize).collect();
        overview.backlogs = backlogs.into_values().collect();
        let owner = |node: &consensus::Node| {
            let heard = heard.get(&node.id);
            OwnerRow {
                node: node.name.to_string(),
                volumes: owned.get(&node.id).copied().unwrap_or(0),
                seconds_old: heard.and_then(|heard| heard.told.as_ref()).map(|(at, _)| at.elapsed().as_secs_f64()),
                silence: heard.and_then(|heard| heard.silence.clone()),
                store_faults: heard.map(|heard| heard.store_faults.clone()).unwrap_or_default(),
            }
        };
        overview.owners = state.nodes().map(owner).collect();
        overview
    }

    /// What this node tells of the volumes that it owns.
    pub(super) async fn glances_here(&self) -> Result<Vec<Glance>, Error> {
        let state = self.meta.state();
        let looks = self.volumes.all().into_iter().filter(|volume| volume.gate.view().phase == Phase::Owner);
        let looks = futures_util::stream::iter(looks).map(|volume| {
            let state = state.clone();
            async move { self.glance(&state, &volume).await }
        });
        let mut told: Vec<Glance> =
            looks.buffer_unordered(LOOKS).filter_map(|told| async { told.ok() }).collect().await;
        let troubled = state.volumes().filter(|volume| volume.owner == self.this.id);
        told.extend(troubled.filter_map(|volume| {
            let trouble = self.volumes.trouble(volume.id)?;
            let waits = vec![format!("its owner does not serve it: {trouble}")];
            let (rpo_seconds, replicas) = (None, Vec::new());
            let (volume, epoch) = (volume.id, volume.epoch);
            Some(Glance { volume, epoch, rpo_seconds, mapped_bytes: 0, stale_bytes: 0, waits, replicas })
        }));
        Ok(told)
    }

    async fn glance(&self, state: &MetaState, volume: &ServedVolume) -> Result<Glance, Error> {
        let meta = state.volume(volume.id).ok_or_else(|| deleted(volume))?;
        let report = volume.shard.report(volume.id).await.map_err(store_failure)?;
        let marks = self.reconciler.watermarks(volume.id);
        if let Some(marks) = &marks {
            marks.note_head(report.head);
        }
        let mut progress = marks.as_ref().map(|marks| reach::known(marks, self.peers.links())).unwrap_or_default();
        let elsewhere = elsewhere(state, meta, report.stale_blocks, &progress);
        let (mut replicas, mut waits) = (Vec::with_capacity(meta.replicas.len()), Vec::new());
        for replica in &meta.replicas {
            let seen = progress.remove(replica).unwrap_or_default();
            let name = state.name_of(*replica);
            // Nearly all volumes are idle nearly always: the shard is asked only where something is lacking.
            let is_level = seen.position.watermark >= report.head && seen.rejoining.is_none() && seen.tail.is_none();
            let lacked = match is_level {
                true => 0,
                false => volume.shard.changed_blocks(volume.id, seen.base()).await.map_err(store_failure)?,
            };
            let lacked = lacked + seen.rejoining.map_or(0, |rejoining| rejoining.discarded);
            let marks = marks.as_ref().filter(|_| lacked > 0);
            let behind = marks.map_or(Duration::ZERO, |marks| marks.behind(seen.position.watermark));
            match (&seen.tail, &seen.error) {
                (Some(_), _) => waits.push(format!("node {name} has left it, and keeps what a takeover cut off")),
                (None, Some(error)) => waits.push(format!("node {name} cannot be brought up to date: {error}")),
                (None, None) if seen.rejoining.is_some() => waits.push(format!("node {name} is on its way back to it")),
                (None, None) if lacked > 0 && self.peers.links().limit(*replica) == Some(0) => {
                    waits.push(format!("node {name} is sent nothing, as the link to it is set"));
                }
                _ => {}
            }
            replicas.push(ReplicaGlance {
                node: *replica,
                reachable: seen.error.is_none(),
                seconds_behind: behind.as_secs_f64(),
                bytes_behind: lacked * u64::from(BLOCK_SIZE),
            });
        }
        let stale_bytes = report.stale_blocks * u64::from(BLOCK_SIZE);
        let durability = self.durability_here(state, meta, volume, stale_bytes).await?;
        let rpo = marks.map(|marks| rpo_told(volume, &marks)).unwrap_or_default();
        waits.extend(durability_waits(&durability));
        waits.extend(rpo_waits(&rpo));
        if let Some(fault) = report.fault {
            let stays = self.not_given_away(state, meta, volume);
            let stays = stays.map_or_else(String::new, |why| format!("; it could not be given to a replica: {why}"));
            waits.push(format!("its owner takes no writes until it is restarted: {fault}{stays}"));
        }
        if report.is_full {
            waits.push(format!("its owner's store {FULL}"));
        }
        if report.damaged_blocks > 0 {
            waits.push(format!("{} blocks are damaged and not repaired yet", report.damaged_blocks));
        }
        if let Some(elsewhere) = elsewhere {
            waits.push(format!(
                "its owner has {} to fetch from {} until then",
                size::human(stale_bytes),
                elsewhere.told()
            ));
        }
        if let Some(unmade) = meta.snapshots.iter().find(|snapshot| snapshot.made.is_none()) {
            waits.push(format!("snapshot {} is not made yet", unmade.name));
        }
        Ok(Glance {
            volume: volume.id,
            epoch: meta.epoch,
            rpo_seconds: rpo.seconds,
            mapped_bytes: report.mapped_blocks * u64::from(BLOCK_SIZE),
            stale_bytes,
            waits,
            replicas,
        })
    }
}

/// What `node` tells of the volumes that it owns, and of its stores.
async fn ask_glances(peers: &PeerClient, node: NodeId) -> Result<(Vec<Glance>, Vec<StoreFault>), Error> {
    let (glances, about) =
        tokio::join!(ask(peers, node, AdminForward::Glances), ask::<NodeAbout>(peers, node, AdminForward::About));
    // A program that cannot say what it is tells of its volumes all the same.
    Ok((glances?, about.map(|about| about.store_faults).unwrap_or_default()))
}

fn durability_waits(status: &DurabilityStatus) -> Option<String> {
    let cause = status.cause.as_ref()?;
    let waiting = match status.waiting {
        0 => String::new(),
        waiting => format!("; {waiting} flushes have waited for up to {:.0} s", status.waiting_seconds),
    };
    Some(format!("class {} is {}: {cause}{waiting}", status.class, status.state))
}

fn rpo_waits(status: &RpoStatus) -> Option<String> {
    let (target_ms, missed) = (status.target_ms?, status.missed_seconds?);
    let slowed = status.limit_bytes_per_second.map(|rate| format!("; writes are slowed to {}/s", size::human(rate)));
    Some(format!(
        "further behind than its target of {} s, for {missed:.0} s{}",
        target_ms as f64 / 1000.0,
        slowed.unwrap_or_default()
    ))
}

fn row(
    state: &MetaState,
    volume: &Volume,
    group: Option<&String>,
    glance: Option<(Instant, &Glance)>,
    silence: Option<&String>,
) -> VolumeRow {
    let (at, glance) = (glance.map(|(at, _)| at), glance.map(|(_, glance)| glance));
    let replica = |node: &NodeId| {
        let told = glance.and_then(|glance| glance.replicas.iter().find(|replica| replica.node == *node));
        ReplicaRow {
            node: state.name_of(*node),
            reachable: told.map(|told| told.reachable),
            seconds_behind: told.map(|told| told.seconds_behind),
            bytes_behind: told.map(|told| told.bytes_behind),
        }
    };
    let owner = state.name_of(volume.owner);
    let mut waits = glance.map(|glance| glance.waits.clone()).unwrap_or_default();
    if let Some(silence) = silence {
        waits.insert(0, format!("its owner, node {owner}, does not answer: {silence}"));
    }
    let stepped_down = state.has_stepped_down(volume.id);
    if stepped_down {
        waits.insert(0, stepped_down_told(state, volume));
    }
    VolumeRow {
        name: volume.name.to_string(),
        id: volume.id.0,
        size_bytes: volume.size.bytes(),
        owner,
        epoch: volume.epoch.0,
        durability: volume.durability.class.to_string(),
        group: group.cloned(),
        snapshots: volume.snapshots.len() as u64,
        on_write: volume.on_write.map(|to| state.name_of(to)),
        replicas: volume.replicas.iter().map(replica).collect(),
        rpo_seconds: glance.and_then(|glance| glance.rpo_seconds),
        rpo_target_ms: volume.rpo.map(|rpo| rpo.target_ms),
        mapped_bytes: glance.map(|glance| glance.mapped_bytes),
        stale_bytes: glance.map(|glance| glance.stale_bytes),
        waits,
        stepped_down,
        seconds_old: at.map(|at| at.elapsed().as_secs_f64()),
    }
}

/// That the owner acts no more, and what comes next; from the metadata, so that every node can say it.
pub(super) fn stepped_down_told(state: &MetaState, volume: &Volume) -> String {
    let owner = state.name_of(volume.owner);
    let next = match volume.takeover_after_ms {
        _ if volume.replicas.is_empty() => {
            format!("node {owner} is restarted with a store that works: no other node has its data")
        }
        None => format!("a replica has taken it over: `helio volume takeover {}`", volume.name),
        Some(_) => {
            format!("a replica has taken it over, which one does by itself if it can (`helio why {}`)", volume.name)
        }
    };
    format!(
        "its owner, node {owner}, has stepped down, since its store there has failed: nothing is read or written until {next}"
    )
}

/// Whether a row is one of those that are asked for.
fn fits(row: &VolumeRow, query: &OverviewQuery) -> bool {
    let wanted = query.search.as_deref().unwrap_or("").trim().to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&wanted);
    let is_found = wanted.is_empty()
        || has(&row.name)
        || has(&row.owner)
        || row.group.as_deref().is_some_and(has)
        || row.replicas.iter().any(|replica| has(&replica.node));
    let is_owned = query.owner.as_deref().is_none_or(|owner| owner.is_empty() || owner == row.owner);
    is_found && is_owned && (!query.waiting || !row.waits.is_empty())
}

/// In which order rows are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Name,
    Owner,
    Size,
    Lag,
    Behind,
    Stale,
}

impl Order {
    fn asked(name: Option<&str>) -> Result<Order, Error> {
        match name.unwrap_or("name") {
            "name" => Ok(Order::Name),
            "owner" => Ok(Order::Owner),
            "size" => Ok(Order::Size),
            "lag" => Ok(Order::Lag),
            "behind" => Ok(Order::Behind),
            "stale" => Ok(Order::Stale),
            other => Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("volumes are not sorted by {other:?}: use name, owner, size, lag, behind or stale"),
            )),
        }
    }

    /// Rows that are alike are sorted by name, always upwards.
    fn sort(self, rows: &mut [VolumeRow], descending: bool) {
        let behind = |row: &VolumeRow| row.replicas.iter().filter_map(|replica| replica.bytes_behind).max();
        rows.sort_by(|a, b| {
            let order = match self {
                Order::Name => a.name.cmp(&b.name),
                Order::Owner => a.owner.cmp(&b.owner),
                Order::Size => a.size_bytes.cmp(&b.size_bytes),
                Order::Lag => {
                    let (a, b) = (a.rpo_seconds.unwrap_or(-1.0), b.rpo_seconds.unwrap_or(-1.0));
                    a.partial_cmp(&b).unwrap_or(Ordering::Equal)
                }
                Order::Behind => behind(a).cmp(&behind(b)),
                Order::Stale => a.stale_bytes.cmp(&b.stale_bytes),
            };
            let order = if descending { order.reverse() } else { order };
            order.then_with(|| a.name.cmp(&b.name))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, owner: &str, size_bytes: u64, rpo_seconds: Option<f64>) -> VolumeRow {
        let (name, owner) = (name.to_owned(), owner.to_owned());
        let replicas =
            vec![ReplicaRow { node: "b".to_owned(), bytes_behind: Some(size_bytes), ..ReplicaRow::default() }];
        VolumeRow { name, owner, size_bytes, rpo_seconds, replicas, ..VolumeRow::default() }
    }

    fn sorted(order: &str, descending: bool) -> String {
        let mut rows = [row("x", "b", 5, Some(1.0)), row("y", "a", 9, None), row("w", "a", 5, Some(0.5))];
        Order::asked(Some(order)).expect("is an order").sort(&mut rows, descending);
        rows.map(|row| row.name).concat()
    }

    #[test]
    fn rows_are_sorted_as_asked_and_alike_ones_by_name() {
        assert_eq!(sorted("name", false), "wxy");
        assert_eq!(sorted("name", true), "yxw");
        assert_eq!(sorted("owner", false), "wyx");
        assert_eq!(sorted("owner", true), "xwy", "alike ones upwards");
        assert_eq!(sorted("size", true), "ywx");
        assert_eq!(sorted("lag", true), "xwy", "what is not known comes last");
        assert_eq!(sorted("behind", false), "wxy");
        let refused = Order::asked(Some("colour")).expect_err("is none");
        assert!(refused.message().contains("use name, owner"), "{refused}");
    }

    #[test]
    fn a_search_finds_names_groups_and_nodes_whatever_their_case() {
        let mut volume = row("Web-1", "node-a", 1, None);
        volume.group = Some("shop".to_owned());
        let found = |search: &str, owner: Option<&str>, waiting| {
            let (search, owner) = (Some(search.to_owned()), owner.map(str::to_owned));
            fits(&volume, &OverviewQuery { search, owner, waiting, ..OverviewQuery::default() })
        };
        for (search, is_found) in
            [("", true), ("web", true), (" SHOP ", true), ("node", true), ("b", true), ("c", false)]
        {
            assert_eq!(found(search, None, false), is_found, "{search}");
        }
        assert!(found("", Some("node-a"), false) && !found("", Some("b"), false), "the owner, not a replica");
        assert!(!found("", None, true), "nothing waits");
    }

    #[test]
    fn what_waits_is_told_in_words() {
        let mut durability = DurabilityStatus { class: "geo:1".to_owned(), ..DurabilityStatus::default() };
        assert_eq!(durability_waits(&durability), None);
        durability.state = "unmet".to_owned();
        durability.cause = Some("node b cannot be reached".to_owned());
        assert_eq!(durability_waits(&durability).as_deref(), Some("class geo:1 is unmet: node b cannot be reached"));
        (durability.waiting, durability.waiting_seconds) = (2, 4.4);
        let told = durability_waits(&durability).expect("waits");
        assert!(told.ends_with("; 2 flushes have waited for up to 4 s"), "{told}");
        let mut rpo = RpoStatus { target_ms: Some(1500), ..RpoStatus::default() };
        assert_eq!(rpo_waits(&rpo), None);
        (rpo.missed_seconds, rpo.limit_bytes_per_second) = (Some(3.2), Some(1 << 20));
        let told = rpo_waits(&rpo).expect("waits");
        assert!(told.starts_with("further behind than its target of 1.5 s, for 3 s; writes are slowed to "), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_is_asked_once_at_a_time_and_not_again_while_its_answer_is_fresh() {
        let glances = Glances::default();
        assert!(glances.begin(NodeId(1)) && !glances.begin(NodeId(1)) && glances.begin(NodeId(2)));
        glances.end(NodeId(1), Ok((Vec::new(), Vec::new())));
        assert!(!glances.begin(NodeId(1)), "that was just now");
        tokio::time::advance(FRESH).await;
        assert!(glances.begin(NodeId(1)));
        glances.end(NodeId(1), Err(Error::new(ErrorKind::Unavailable, "no route")));
        assert!(glances.begin(NodeId(1)), "a silent one is asked again");
        let heard = glances.lock();
        assert!(heard[&NodeId(1)].told.is_some(), "what it told last is kept");
        assert!(heard[&NodeId(1)].silence.is_some());
    }
}
