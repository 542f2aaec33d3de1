//! `helio node drain`: hands everything that a node owns, or all nodes of a provider, to replicas elsewhere, so that it may be stopped.
//!
//! Each volume goes to the replica that lacks least, when that holds everything, and a group of volumes goes as one: nobody needs the drained
//! nodes afterwards. What is
//! to happen, when it will have happened and what the loss of the next owner would cost then is shown first. Safe to interrupt
//! and to repeat: what has moved has moved.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::Args;
use client_lib::wire::admin::{
    ClusterStatus, GroupMigrateReport, Migrate, MigrateReport, ReplicaStatus, VolumeStatus, VolumeSummary,
};
use client_lib::{GroupName, NodeName, ProviderId};
use serde::Serialize;

mod forecast;

use self::forecast::Look;
use super::catch_up::hand_over;
use super::client::{Client, print_json, print_table};
use super::{Common, counted, members};
use crate::size;

/// Hand everything that a node owns to other nodes, so that it may be stopped
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio node drain a --dry-run           # what would go where, and how long that takes\n  helio node drain a\n  helio node drain --provider cloud-1 --to cloud-2-a\n\nVolumes stay in use meanwhile. The node keeps its replicas, and follows again when it is back; nothing keeps volumes from being moved to it or made at it."
)]
pub(super) struct Drain {
    /// The node
    #[arg(required_unless_present = "provider", conflicts_with = "provider")]
    node: Option<NodeName>,
    /// All nodes of this provider
    #[arg(long)]
    provider: Option<ProviderId>,
    /// Where everything goes [default: for each volume the replica that lacks least]
    #[arg(long, value_name = "NODE")]
    to: Option<NodeName>,
    /// Also where a class of durability can never be met
    #[arg(long)]
    accept_unmet: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How long it is looked how fast replicas catch up, before it is said how long they will take: what comes in a second, a mebibyte at a time, tells little.
const LOOK: Duration = Duration::from_secs(3);

/// What is to happen to a volume.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Step {
    volume: String,
    /// The group that goes in one step with it.
    group: Option<String>,
    from: String,
    /// Where it goes; `null` when no replica can have it.
    to: Option<String>,
    /// What that lacks, in bytes.
    behind_bytes: u64,
    /// What of that is still to be sent to it.
    to_send_bytes: u64,
    /// In how many seconds it will have moved, the volumes before it included, at the rate at which its link was seen to carry what is sent; the last
    /// one's is that of the whole drain. `null` when it, or one before it, does not catch up.
    finish_seconds: Option<f64>,
    /// How far the best replica that is left then is behind now, in seconds: what the loss of the next owner would cost;
    /// `null` when none is left.
    rpo_seconds: Option<f64>,
}

pub(super) fn run(arguments: &Drain, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let drained = drained(arguments, &client)?;
    let to = arguments.to.as_ref().map(ToString::to_string);
    if let Some(to) = to.as_ref().filter(|to| drained.contains(*to)) {
        bail!("node {to} is to be drained itself");
    }
    let owned: Vec<String> = client
        .get::<Vec<VolumeSummary>>("/v1/volumes")?
        .into_iter()
        .filter(|volume| drained.contains(&volume.owner))
        .map(|volume| volume.name)
        .collect();
    let look = || {
        owned
            .iter()
            .map(|volume| client.get(&format!("/v1/volumes/{volume}")))
            .collect::<anyhow::Result<Vec<VolumeStatus>>>()
    };
    let before = look()?;
    let is_behind = before.iter().any(|status| status.replicas.iter().any(|replica| replica.bytes_behind > 0));
    let began = Instant::now();
    let (now, looked) = if is_behind {
        std::thread::sleep(LOOK);
        // Each look is as of its end: that of many volumes takes its time.
        (look()?, began.elapsed())
    } else {
        (before.clone(), LOOK)
    };
    let heirs = heirs(&now, &drained, to.as_deref());
    let plan = |now: &VolumeStatus| {
        let to = now.group.as_ref().map_or(to.clone(), |group| Some(heirs.get(group).cloned().unwrap_or_default()));
        step(now, &drained, to.as_deref())
    };
    let mut steps: Vec<Step> = now.iter().map(plan).collect();
    let looks = |((before, now), step): ((&VolumeStatus, &VolumeStatus), &Step)| (seen(before, step), seen(now, step));
    let looks: Vec<_> = before.iter().zip(&now).zip(&steps).map(looks).collect();
    forecast::forecast(&mut steps, &looks, looked);
    if !arguments.json && !steps.is_empty() {
        print_plan(&steps);
    }
    if !arguments.dry_run {
        if let Some(stuck) = steps.iter().find(|step| step.to.is_none()) {
            bail!("volume {} has no replica in reach that could own it: nothing was moved", stuck.volume);
        }
        for step in &steps {
            match &step.group {
                None => move_away(step, arguments, &client)?,
                // With the first volume of it.
                Some(group) if steps.iter().find(|other| other.group == step.group) == Some(step) => {
                    let all = steps.iter().filter(|other| other.group == step.group).collect::<Vec<_>>();
                    move_group_away(&group.parse()?, &all, arguments, &client)?;
                }
                Some(_) => {}
            }
        }
    }
    if !arguments.dry_run {
        still_needed(&drained, &client)?;
    }
    if arguments.json {
        return print_json(&steps);
    }
    let names = drained.iter().cloned().collect::<Vec<_>>().join(", ");
    if arguments.dry_run || steps.is_empty() {
        let volumes = counted(steps.len(), "volume", "volumes");
        println!("{names}: {volumes} to move{}", ended(&steps));
    }
    if !arguments.dry_run {
        println!("{names}: owns nothing, and nobody needs it; it can be stopped");
    }
    Ok(())
}

/// The nodes that are to be drained.
fn drained(arguments: &Drain, client: &Client) -> anyhow::Result<BTreeSet<String>> {
    let members = client.get::<ClusterStatus>("/v1/cluster")?.members;
    let is_meant = |name: &str, provider: &str| match (&arguments.node, &arguments.provider) {
        (Some(node), _) => node.as_str() == name,
        (None, Some(wanted)) => wanted.as_str() == provider,
        (None, None) => false,
    };
    let drained: BTreeSet<String> = members
        .iter()
        .filter(|member| is_meant(&member.name, &member.provider))
        .map(|member| member.name.clone())
        .collect();
    if let Some(provider) = &arguments.provider {
        let known = members.iter().map(|member| member.provider.as_str()).collect::<BTreeSet<_>>();
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        ensure!(!drained.is_empty(), "no node is of provider {provider}; there are nodes of {known}");
    }
    for node in arguments.node.iter().chain(&arguments.to) {
        members::require(&members, node.as_str())?;
    }
    Ok(drained)
}

/// Whether a replica may be the next owner.
fn can_own(replica: &ReplicaStatus, drained: &BTreeSet<String>) -> bool {
    replica.reachable && replica.tail.is_none() && !drained.contains(&replica.node)
}

/// Where each group goes: to the node that may own all of its volumes, and lacks least of them together.
fn heirs(now: &[VolumeStatus], drained: &BTreeSet<String>, to: Option<&str>) -> BTreeMap<String, String> {
    let mut volumes: BTreeMap<&String, Vec<&VolumeStatus>> = BTreeMap::new();
    for status in now {
        if let Some(group) = &status.group {
            volumes.entry(group).or_default().push(status);
        }
    }
    let heir = |all: &[&VolumeStatus]| {
        let nodes = all.first()?.replicas.iter().map(|replica| &replica.node);
        let lacks = |node: &String| {
            let of = |status: &&VolumeStatus| {
                let replica = status.replicas.iter().find(|replica| replica.node == *node)?;
                can_own(replica, drained).then_some(replica.bytes_behind)
            };
            all.iter().map(of).sum::<Option<u64>>()
        };
        let able = nodes.filter(|node| to.is_none_or(|to| to == node.as_str()));
        let able = able.filter_map(|node| Some((lacks(node)?, node)));
        able.min().map(|(_, node)| node.clone())
    };
    volumes.into_iter().filter_map(|(group, all)| Some((group.clone(), heir(&all)?))).collect()
}

/// What is still to be sent to a replica.
fn still_to_send(replica: &ReplicaStatus) -> u64 {
    replica.to_send_bytes.unwrap_or(replica.bytes_behind)
}

/// What a look at a volume tells of its way to where it goes.
fn seen(status: &VolumeStatus, step: &Step) -> Look {
    let replica = status.replicas.iter().find(|replica| Some(&replica.node) == step.to.as_ref());
    let of = |replica: &ReplicaStatus| {
        let freight = &replica.freight;
        let carried = freight.sent_bytes + freight.same_bytes + freight.relayed_bytes;
        Look { to_send: still_to_send(replica), carried }
    };
    replica.map(of).unwrap_or_default()
}

/// Where a volume goes, as it is now.
fn step(now: &VolumeStatus, drained: &BTreeSet<String>, to: Option<&str>) -> Step {
    let can_own = |replica: &&ReplicaStatus| can_own(replica, drained);
    let wanted = |replica: &&ReplicaStatus| to.is_none_or(|to| replica.node == to);
    let heir = now.replicas.iter().filter(can_own).filter(wanted).min_by_key(|replica| replica.bytes_behind);
    let behind_bytes = heir.map_or(0, |replica| replica.bytes_behind);
    let rest = now.replicas.iter().filter(can_own).filter(|replica| heir.is_some_and(|heir| heir.node != replica.node));
    Step {
        volume: now.name.clone(),
        group: now.group.clone(),
        from: now.owner.clone(),
        to: heir.map(|replica| replica.node.clone()),
        behind_bytes,
        to_send_bytes: heir.map_or(0, still_to_send),
        finish_seconds: None,
        rpo_seconds: rest.map(|replica| replica.seconds_behind).min_by(f64::total_cmp),
    }
}

fn print_plan(steps: &[Step]) {
    let row = |step: &Step| {
        let (to, finish) = match (&step.to, step.finish_seconds) {
            (None, _) => ("no replica in reach", "-".to_owned()),
            (Some(to), None) => {
                (to.as_str(), "not as it is: it, or one before it, is written faster than it is sent".to_owned())
            }
            (Some(to), Some(0.0)) => (to.as_str(), "at once".to_owned()),
            (Some(to), Some(seconds)) => (to.as_str(), format!("in {}", duration(seconds))),
        };
        let rpo = match step.rpo_seconds {
            None => "no other replica".to_owned(),
            Some(seconds) => format!("{seconds:.1} s"),
        };
        let volume = match &step.group {
            Some(group) => format!("{} (of {group})", step.volume),
            None => step.volume.clone(),
        };
        vec![volume, step.from.clone(), to.to_owned(), size::human(step.behind_bytes), finish, rpo]
    };
    print_table(&["volume", "from", "to", "lacks", "moves", "rpo then"], steps.iter().map(row).collect());
}

/// When all of them will have moved.
fn ended(steps: &[Step]) -> String {
    match steps.last().map(|step| step.finish_seconds) {
        None | Some(Some(0.0)) => String::new(),
        Some(Some(seconds)) => format!(", done in about {}", duration(seconds)),
        Some(None) => ", and no end to be seen as long as one does not catch up".to_owned(),
    }
}

fn duration(seconds: f64) -> String {
    match seconds.ceil() as u64 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h", seconds.div_ceil(3600)),
    }
}

/// Hands the volume over when the next owner holds everything.
fn move_away(step: &Step, arguments: &Drain, client: &Client) -> anyhow::Result<()> {
    let Some(to) = &step.to else { return Ok(()) };
    let path = format!("/v1/volumes/{}", step.volume);
    let report: MigrateReport = hand_over(client, &path, &[&step.volume], || request(to, arguments))?;
    if !arguments.json {
        println!(
            "volume {} is at node {to} (epoch {}): writers waited {:.1} ms",
            step.volume, report.epoch, report.handover_ms
        );
    }
    Ok(())
}

fn request(to: &str, arguments: &Drain) -> Migrate {
    Migrate { to: to.to_owned(), accept_unmet: arguments.accept_unmet, synced: true, deadline_ms: None }
}

/// The same with all volumes of a group, in one step.
fn move_group_away(group: &GroupName, steps: &[&Step], arguments: &Drain, client: &Client) -> anyhow::Result<()> {
    let Some(to) = steps.first().and_then(|step| step.to.clone()) else { return Ok(()) };
    let volumes: Vec<&str> = steps.iter().map(|step| step.volume.as_str()).collect();
    let report: GroupMigrateReport =
        hand_over(client, &format!("/v1/groups/{group}"), &volumes, || request(&to, arguments))?;
    if !arguments.json {
        println!("{}", super::group::told(group, &to, true, &report));
    }
    Ok(())
}

/// Refuses to call a node unneeded that a volume still fetches from, or that owns one again.
fn still_needed(drained: &BTreeSet<String>, client: &Client) -> anyhow::Result<()> {
    for volume in client.get::<Vec<VolumeSummary>>("/v1/volumes")? {
        ensure!(
            !drained.contains(&volume.owner),
            "volume {} was moved to node {} or made there meanwhile: drain it again",
            volume.name,
            volume.owner
        );
        let status: VolumeStatus = client.get(&format!("/v1/volumes/{}", volume.name))?;
        if let Some(elsewhere) = status.fetched_from().filter(|it| it.needs(|node| drained.contains(node))) {
            bail!(
                "volume {} still fetches {} from {} until `helio volume status {}` says that every block is at the owner",
                volume.name,
                size::human(elsewhere.bytes),
                elsewhere.told(),
                volume.name
            );
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn replica(node: &str, bytes_behind: u64) -> ReplicaStatus {
        ReplicaStatus {
            node: node.to_owned(),
            provider: node.to_owned(),
            watermark: String::new(),
            known: String::new(),
            bytes_behind,
            to_send_bytes: None,
            seconds_behind: bytes_behind as f64 / 1e6,
            consistent_ms: None,
            stale_bytes: 0,
            reachable: true,
            counts: true,
            is_rejoining: false,
            is_joining: false,
            tail: None,
            error: None,
            freight: Default::default(),
            policy: Default::default(),
            limit_bytes_per_second: None,
        }
    }

    fn status(replicas: Vec<ReplicaStatus>) -> VolumeStatus {
        let json = serde_json::json!({
            "name": "disk", "size_bytes": 1, "owner": "a", "epoch": 1, "head": "1.1", "mapped_bytes": 0,
            "stale_bytes": 0, "replicas": [], "source_needed": null,
        });
        let status: VolumeStatus = serde_json::from_value(json).expect("the rest has defaults");
        VolumeStatus { replicas, ..status }
    }

    fn plan(now: Vec<ReplicaStatus>, drained: &[&str], to: Option<&str>) -> Step {
        let drained = drained.iter().map(|node| (*node).to_owned()).collect();
        step(&status(now), &drained, to)
    }

    #[test]
    fn a_volume_goes_to_the_replica_that_lacks_least_and_is_not_drained() {
        let all = || vec![replica("b", 9_000_000), replica("c", 8_000_000), replica("d", 0)];
        let found = plan(all(), &["a", "d"], None);
        assert_eq!((found.to.as_deref(), found.behind_bytes), (Some("c"), 8_000_000));
        assert_eq!(found.rpo_seconds, Some(9.0), "b is left");
        assert_eq!(plan(all(), &["a", "d"], Some("b")).to.as_deref(), Some("b"));
        assert_eq!(plan(all(), &["a"], None).to.as_deref(), Some("d"));
        let half_there = ReplicaStatus { to_send_bytes: Some(3_000_000), ..replica("b", 9_000_000) };
        assert_eq!(plan(vec![half_there], &["a"], None).to_send_bytes, 3_000_000);
        assert_eq!(
            plan(vec![replica("b", 9_000_000)], &["a"], None).to_send_bytes,
            9_000_000,
            "an older node does not tell"
        );
    }

    #[test]
    fn a_group_goes_to_the_node_that_lacks_least_of_all_its_volumes_and_may_own_each() {
        let of_group = |replicas| VolumeStatus { group: Some("db".into()), ..status(replicas) };
        let all = |b: (u64, u64), c: (u64, u64)| {
            [of_group(vec![replica("b", b.0), replica("c", c.0)]), of_group(vec![replica("b", b.1), replica("c", c.1)])]
        };
        let drained: BTreeSet<String> = ["a".to_owned()].into();
        let heir = |all: &[VolumeStatus], to| heirs(all, &drained, to).get("db").cloned();
        assert_eq!(heir(&all((1, 9), (4, 4)), None).as_deref(), Some("c"));
        assert_eq!(heir(&all((1, 9), (4, 4)), Some("b")).as_deref(), Some("b"));
        let away = ReplicaStatus { reachable: false, ..replica("c", 0) };
        let mut half = all((1, 9), (4, 4));
        half[1].replicas[1] = away.clone();
        assert_eq!(heir(&half, None).as_deref(), Some("b"), "c cannot have one of them");
        half[0].replicas[0] = ReplicaStatus { node: "b".into(), ..away };
        assert_eq!(heir(&half, None), None);
    }

    #[test]
    fn who_cannot_be_reached_owns_nothing() {
        let away = ReplicaStatus { reachable: false, ..replica("b", 0) };
        let found = plan(vec![away.clone()], &["a"], None);
        assert_eq!((found.to, found.rpo_seconds), (None, None));
        let found = plan(vec![away, replica("c", 0)], &["a"], None);
        assert_eq!((found.to.as_deref(), found.rpo_seconds), (Some("c"), None), "no other is left");
    }

    #[test]
    fn times_are_told_in_their_unit() {
        let told: Vec<String> = [0.2, 100.0, 121.0, 9000.0].into_iter().map(duration).collect();
        assert_eq!(told, ["1 s", "100 s", "3 min", "3 h"]);
    }
}
