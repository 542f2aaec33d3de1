//! `helio why`: what is not as it should be with a volume, and what happens next, in a sentence each.

use clap::Args;
use client_lib::VolumeName;
use client_lib::wire::admin::{ClusterStatus, GroupStatus, OwnerStatus, ReplicaStatus, VolumeStatus};

use super::client::{Client, print_json};
use super::{Common, members, place, policy, snapshot, space};
use crate::size;

/// Say what is not as it should be with a volume, and what happens next
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  helio why disk")]
pub(super) struct Why {
    /// The volume
    volume: VolumeName,
    /// Print JSON: a list of sentences, empty when all is well
    #[arg(long)]
    json: bool,
}

/// A replica that has not applied what is older than this is behind: some deltas are always on their way.
const BEHIND_SECONDS: f64 = 5.0;

pub(super) fn run(why: &Why, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let path = format!("/v1/volumes/{}", why.volume);
    let ask_for_owner = || client.get::<OwnerStatus>(&format!("{path}/owner"));
    let mut owner = ask_for_owner()?;
    let cluster: ClusterStatus = client.get("/v1/cluster")?;
    let mut sentences = Vec::from_iter(members::lost_majority(&cluster));
    let has_majority = sentences.is_empty();
    let idle = |owner: &OwnerStatus| of_idle_owner(why.volume.as_str(), owner, has_majority);
    match idle(&owner) {
        Some(sentence) => sentences.push(sentence),
        None => match client.get(&path) {
            Ok(status) => sentences.extend(of_status(&status)),
            Err(error) => {
                // It may have been lost, or have stepped down, between the two questions.
                owner = ask_for_owner()?;
                sentences.push(idle(&owner).ok_or(error)?);
            }
        },
    }
    let groups: Vec<GroupStatus> = client.get("/v1/groups")?;
    let is_in = |group: &&GroupStatus| group.volumes.iter().any(|volume| volume.name == why.volume.as_str());
    if let Some(group) = groups.iter().find(is_in) {
        sentences.extend(of_group(group, owner.reachable));
    }
    if why.json {
        return print_json(&sentences);
    }
    match sentences.is_empty() {
        true if owner.replicas.as_ref().is_some_and(Vec::is_empty) => {
            println!("volume {} is well: node {} owns it, and no other node has its data", why.volume, owner.owner);
        }
        true => println!("volume {} is well: node {} owns it, and its replicas follow", why.volume, owner.owner),
        false => sentences.iter().for_each(|sentence| println!("{sentence}")),
    }
    Ok(())
}

/// What there is to say of an owner that does nothing for the volume.
fn of_idle_owner(volume: &str, owner: &OwnerStatus, has_majority: bool) -> Option<String> {
    match owner.reachable {
        _ if owner.stepped_down => Some(of_owner_that_stepped_down(volume, owner, has_majority)),
        true => None,
        false => Some(of_lost_owner(volume, owner, has_majority)),
    }
}

fn of_lost_owner(volume: &str, owner: &OwnerStatus, has_majority: bool) -> String {
    let seconds = |ms: u64| format!("{} s", ms.div_ceil(1000));
    let lease = match owner.lease_left_ms {
        0 => "and its lease is out".to_owned(),
        left => format!("and its lease is out in {} if it is not renewed", seconds(left)),
    };
    let to = heir(owner);
    let next = match owner.takeover_after_ms {
        _ if owner.replicas.as_ref().is_some_and(Vec::is_empty) => {
            format!("no other node has its data: the volume is back when node {} is", owner.owner)
        }
        _ if !has_majority => "it can be taken over when there is a majority again".to_owned(),
        _ if owner.takeover_refused.is_some() => no_heir(volume, owner),
        None => format!("`helio volume takeover {volume}` gives the volume to {to}"),
        Some(after) => match (owner.lease_left_ms + after).saturating_sub(owner.lease_out_for_ms) {
            0 => format!("{to} is taking the volume over now, as its policy says"),
            left => format!("{to} takes the volume over in {}, as its policy says", seconds(left)),
        },
    };
    format!("node {}, which owns the volume in epoch {}, does not answer, {lease}; {next}", owner.owner, owner.epoch)
}

/// That the owner acts no more for the volume, what comes next by itself, and what there is to do.
pub(super) fn of_owner_that_stepped_down(volume: &str, owner: &OwnerStatus, has_majority: bool) -> String {
    let to = heir(owner);
    let next = match owner.takeover_after_ms {
        _ if owner.replicas.as_ref().is_some_and(Vec::is_empty) => "no other node has its data".to_owned(),
        _ if !has_majority => "it can be taken over when there is a majority again".to_owned(),
        _ if owner.takeover_refused.is_some() => no_heir(volume, owner),
        None => format!("`helio volume takeover {volume}` gives the volume to {to} at once"),
        Some(after) => format!(
            "{to} takes the volume over within {} s of that, as its policy says, or at once by `helio volume takeover {volume}`",
            after.div_ceil(1000)
        ),
    };
    let ago =
        owner.stepped_down_for_ms.map_or_else(String::new, |ms| format!(", as has been known for {} s", ms / 1000));
    format!(
        "node {0}, which owns the volume in epoch {1}, has stepped down, since the store of the volume there has failed{ago}: nothing is read or written; {next}; \
         `helio node space --node {0}` and the log of node {0} say what has failed, and restarted with a store that works it goes on as the owner",
        owner.owner, owner.epoch
    )
}

/// Who takes the volume over, as far as that is known.
fn heir(owner: &OwnerStatus) -> String {
    owner.takeover_to.as_ref().map_or_else(|| "a replica".to_owned(), |node| format!("node {node}"))
}

/// What keeps all replicas from taking the volume over, and what then comes of itself.
fn no_heir(volume: &str, owner: &OwnerStatus) -> String {
    let reason = owner.takeover_refused.as_deref().unwrap_or_default();
    let then = match owner.takeover_after_ms {
        Some(_) => "it is tried again all the time, as its policy says".to_owned(),
        None => format!("then `helio volume takeover {volume}` gives it to a replica"),
    };
    let behind = match reason.contains("--behind") {
        true => format!(" (`helio volume takeover {volume} --behind`)"),
        false => String::new(),
    };
    format!("no replica can take it over now: {reason}{behind}; {then}")
}

fn of_group(group: &GroupStatus, is_owner_reachable: bool) -> Option<String> {
    let name = &group.name;
    match (&group.advice, is_owner_reachable) {
        (Some(advice), _) => Some(format!("it is in group {name}: {advice}")),
        (None, false) => Some(format!(
            "it is in group {name}, whose volumes are taken over one by one, and not necessarily as of one moment; `helio group status \
             {name}` shows whether they are together"
        )),
        (None, true) => {
            let half = group
                .snapshots
                .iter()
                .find(|snapshot| snapshot.is_made && snapshot.volumes.len() < group.volumes.len());
            half.map(|snapshot| {
                format!(
                    "snapshot {name}@{} is there of {} only: with other volumes it is no moment of the group",
                    snapshot.name,
                    snapshot.volumes.join(", ")
                )
            })
        }
    }
}

fn of_status(status: &VolumeStatus) -> Vec<String> {
    let mut sentences = Vec::new();
    if let Some(fault) = &status.fault {
        let since = status.fault_since_ms.map_or_else(String::new, |at_ms| format!(", found {}", snapshot::age(at_ms)));
        let stays = status.not_given_away.as_ref();
        let stays = stays.map_or_else(String::new, |why| format!("; it could not be given to a replica: {why}"));
        sentences.push(format!(
            "node {} takes no writes until it is restarted: {fault}{since}{stays}; reads go on; `helio volume takeover {}` has a replica go on, which ends them there",
            status.owner, status.name
        ));
    }
    if status.is_full {
        sentences.push(space::full(&format!("store {} of node {}", status.space.store, status.owner)));
    }
    if status.damaged_blocks > 0 {
        sentences.push(format!(
            "{} blocks are damaged at node {}, and are fetched from other nodes as far as those have them",
            status.damaged_blocks, status.owner
        ));
    }
    if let Some(elsewhere) = status.fetched_from() {
        let (rest, from) = (size::human(elsewhere.bytes), elsewhere.told());
        sentences.push(format!("{rest} are still fetched from {from} until they are here"));
    }
    sentences.extend(status.placement.iter().flat_map(place::departures));
    sentences.extend(policy::sentences(status));
    sentences.extend(policy::rpo_sentence(status));
    sentences.extend(status.replicas.iter().filter_map(|replica| of_replica(status, replica)));
    sentences
}

fn of_replica(status: &VolumeStatus, replica: &ReplicaStatus) -> Option<String> {
    let node = &replica.node;
    if let Some(tail) = &replica.tail {
        return Some(format!(
            "node {node} has left the volume with {} writes ({}) that a takeover cut off, shows them as {}, and follows again after \
             `helio volume rejoin {} --node {node} --discard-tail`",
            tail.writes,
            size::human(tail.bytes),
            tail.export,
            status.name
        ));
    }
    // It may well answer, that its store is full say.
    if let Some(error) = &replica.error {
        return Some(format!(
            "node {node} does not follow: {error}; it is asked again all the time, and would fetch {} now",
            size::human(replica.bytes_behind)
        ));
    }
    if !replica.reachable {
        return Some(format!(
            "node {node} has not been heard of yet, since the owner is new; it follows by itself when it can, and would fetch {} now",
            size::human(replica.bytes_behind)
        ));
    }
    if replica.is_joining {
        return Some(format!(
            "node {node} became a replica and is sent everything, {} yet; until it has that it counts for nothing, and cannot take the volume over",
            size::human(replica.bytes_behind)
        ));
    }
    if replica.is_rejoining {
        return Some(format!(
            "node {node} catches up, after a takeover or with much at once: it is sent what it lacks, at most {}, and cannot take the volume over \
             before it has that",
            size::human(replica.bytes_behind)
        ));
    }
    if replica.bytes_behind > 0 && replica.limit_bytes_per_second == Some(0) {
        return Some(format!(
            "node {node} is {:.0} s behind, {} of blocks, and is sent nothing now, as the link to it is set; `helio link set {} {node}` changes that",
            replica.seconds_behind,
            size::human(replica.bytes_behind),
            status.owner
        ));
    }
    // One that is sent data now and then is behind for so long, and as long again until it has it.
    let interval = replica.policy.interval_ms.unwrap_or(0) as f64 / 1000.0;
    (replica.seconds_behind > BEHIND_SECONDS + 2.0 * interval).then(|| {
        format!(
            "node {node} is {:.0} s behind, {} of blocks; it catches up by itself as fast as its link lets it",
            replica.seconds_behind,
            size::human(replica.bytes_behind)
        )
    })
}

#[cfg(test)]
mod tests {
    use client_lib::wire::admin::{
        DurabilityStatus, FetchStatus, FreightStatus, ReplicaPolicy, RpoStatus, TailStatus, VolumeSpace,
    };

    use super::*;

    fn replica(node: &str) -> ReplicaStatus {
        ReplicaStatus {
            node: node.into(),
            provider: node.into(),
            watermark: "1.9".into(),
            known: "1.9".into(),
            bytes_behind: 0,
            to_send_bytes: None,
            seconds_behind: 0.1,
            consistent_ms: None,
            stale_bytes: 0,
            reachable: true,
            counts: false,
            is_rejoining: false,
            is_joining: false,
            tail: None,
            error: None,
            freight: FreightStatus::default(),
            policy: ReplicaPolicy::default(),
            limit_bytes_per_second: None,
        }
    }

    fn status(replicas: Vec<ReplicaStatus>) -> VolumeStatus {
        VolumeStatus {
            encryption: None,
            name: "disk".into(),
            id: 1,
            size_bytes: 1 << 20,
            owner: "a".into(),
            epoch: 2,
            head: "2.12".into(),
            mapped_bytes: 0,
            stale_bytes: 0,
            replicas,
            source_needed: None,
            elsewhere: None,
            damaged_blocks: 0,
            repaired_blocks: 0,
            verified_blocks: 0,
            fault: None,
            fault_since_ms: None,
            not_given_away: None,
            stepped_down: false,
            is_full: false,
            space: VolumeSpace::default(),
            durability: DurabilityStatus::default(),
            rpo: RpoStatus::default(),
            on_write: None,
            clone_of: None,
            placement: None,
            group: None,
            written_bytes: 0,
            fetch: FetchStatus::default(),
        }
    }

    #[test]
    fn a_healthy_volume_needs_no_words_and_each_trouble_has_its_own() {
        assert!(of_status(&status(vec![replica("b"), replica("c")])).is_empty());
        let export = "disk@tail-1".to_owned();
        let (from, to) = ("1.5".into(), "1.9".into());
        let tail = Some(TailStatus { node: "b".into(), from, to, export, writes: 4, bytes: 8192 });
        let left = ReplicaStatus { tail, ..replica("b") };
        let away = ReplicaStatus { reachable: false, ..replica("c") };
        let slow = ReplicaStatus { seconds_behind: 70.0, ..replica("d") };
        let policy = ReplicaPolicy { propagation: "lazy".into(), interval_ms: Some(60_000) };
        let lazy = ReplicaStatus { policy, ..slow.clone() };
        assert!(of_status(&status(vec![lazy])).is_empty(), "it is sent data every minute");
        let closed = ReplicaStatus { bytes_behind: 4096, limit_bytes_per_second: Some(0), ..replica("d") };
        assert!(of_status(&status(vec![closed]))[0].contains("`helio link set a d`"));
        let error = Some("its store is full".to_owned());
        let full = ReplicaStatus { reachable: false, error, ..replica("d") };
        assert!(of_status(&status(vec![full]))[0].starts_with("node d does not follow: its store is full;"));
        let (fault, not_given_away) = (Some("I/O error".to_owned()), Some("b: no answer".to_owned()));
        let failed = VolumeStatus { fault, not_given_away, ..status(vec![]) };
        let said = of_status(&failed).join("");
        assert!(said.contains("I/O error; it could not be given to a replica: b: no answer; reads go on"), "{said}");
        let of_full_store = VolumeStatus { is_full: true, ..status(vec![]) };
        assert!(of_status(&of_full_store)[0].contains("of node a is full: writes to it fail with ENOSPC; make room"));
        let all = of_status(&status(vec![left, away, slow]));
        assert!(all[0].contains("helio volume rejoin disk --node b --discard-tail"), "{all:?}");
        assert!(
            all[1].contains("node c has not been heard of yet") && all[2].contains("node d is 70 s behind"),
            "{all:?}"
        );
    }

    #[test]
    fn a_group_that_is_not_together_is_told_with_what_brings_it_together() {
        use client_lib::wire::admin::{GroupSnapshot, GroupVolume};
        let volume = |name: &str| GroupVolume { name: name.into(), owner: "a".into(), epoch: 1, replicas: vec![] };
        let together = GroupStatus {
            name: "db".into(),
            id: 1,
            owner: Some("a".into()),
            volumes: vec![volume("disk"), volume("wal")],
            snapshots: vec![],
            on_write: None,
            advice: None,
        };
        assert_eq!(of_group(&together, true), None);
        assert!(of_group(&together, false).is_some_and(|said| said.contains("taken over one by one")));
        let split = GroupStatus { advice: Some("`helio group migrate db --to b`".into()), ..together.clone() };
        assert!(of_group(&split, true).is_some_and(|said| said.ends_with("`helio group migrate db --to b`")));
        let snapshots = vec![GroupSnapshot { name: "monday".into(), is_made: true, volumes: vec!["wal".into()] }];
        let half = GroupStatus { snapshots, ..together };
        assert!(of_group(&half, true).is_some_and(|said| said.contains("snapshot db@monday is there of wal only")));
    }

    #[test]
    fn a_class_that_is_not_met_has_its_sentence() {
        let told = |state: &str, waiting, degraded_since_ms| {
            let cause = Some("node b cannot be reached".to_owned());
            let (class, next) = ("geo:1".to_owned(), Some("flushes wait until it is met".to_owned()));
            let durability = DurabilityStatus {
                class,
                state: state.into(),
                waiting,
                degraded_since_ms,
                cause,
                next,
                ..Default::default()
            };
            of_status(&VolumeStatus { durability, ..status(vec![]) }).join("")
        };
        let said = told("unmet", 0, None);
        assert_eq!(said, "class geo:1 cannot be met, because node b cannot be reached; flushes wait until it is met");
        assert!(told("unmet", 2, None).starts_with("2 requests wait for class geo:1, the first of them for"));
        assert!(told("degraded", 0, Some(1)).starts_with("flushes are answered without class geo:1 for"));
    }

    #[test]
    fn a_missed_target_is_told_with_what_is_done_about_it() {
        let told = |seconds, missed, limit| {
            let (missed_seconds, limit_bytes_per_second) = (missed, limit);
            let rpo = RpoStatus {
                seconds,
                target_ms: Some(5_000),
                missed_seconds,
                limit_bytes_per_second,
                ..Default::default()
            };
            of_status(&VolumeStatus { rpo, ..status(vec![]) }).join("")
        };
        assert_eq!(told(Some(3.0), None, None), "");
        let said = told(Some(8.0), Some(60.0), Some(1 << 20));
        assert_eq!(
            said,
            "the loss of node a would cost the last 8.0 s: the target of 5 s has been missed for 60 s; writes are slowed to \
             1 MiB/s until it is met"
        );
        assert!(told(None, Some(60.0), None).contains("there is no replica"));
    }

    #[test]
    fn a_lost_owner_is_told_with_what_comes_next_and_when() {
        let owner = |left, out_for, after| OwnerStatus {
            owner: "a".into(),
            epoch: 3,
            reachable: false,
            lease_left_ms: left,
            lease_out_for_ms: out_for,
            takeover_after_ms: after,
            replicas: Some(vec!["b".to_owned()]),
            stepped_down: false,
            stepped_down_for_ms: None,
            takeover_to: None,
            takeover_refused: None,
        };
        for (owner, said) in [
            (owner(2500, 0, None), "its lease is out in 3 s if it is not renewed; `helio volume takeover disk` gives"),
            (owner(0, 9000, None), "its lease is out; `helio volume takeover disk` gives"),
            (owner(2500, 0, Some(60_000)), "a replica takes the volume over in 63 s"),
            (owner(0, 50_000, Some(60_000)), "a replica takes the volume over in 10 s"),
            (owner(0, 61_000, Some(60_000)), "a replica is taking the volume over now"),
        ] {
            let sentence = of_lost_owner("disk", &owner, true);
            assert!(sentence.contains(said), "{sentence}");
        }
        let sentence = of_lost_owner("disk", &owner(0, 9000, None), false);
        assert!(sentence.ends_with("it can be taken over when there is a majority again"), "{sentence}");
        let alone = OwnerStatus { replicas: Some(vec![]), ..owner(0, 9000, Some(60_000)) };
        let sentence = of_lost_owner("disk", &alone, true);
        assert!(sentence.ends_with("no other node has its data: the volume is back when node a is"), "{sentence}");

        // It answers, and acts no more.
        for (after, said) in [
            (None, "nothing is read or written; `helio volume takeover disk` gives the volume to a replica at once;"),
            (Some(60_000), "a replica takes the volume over within 60 s of that, as its policy says, or at once"),
        ] {
            let owner = OwnerStatus { reachable: true, stepped_down: true, ..owner(2500, 0, after) };
            let sentence = of_owner_that_stepped_down("disk", &owner, true);
            assert!(sentence.starts_with("node a, which owns the volume in epoch 3, has stepped down"), "{sentence}");
            assert!(sentence.contains(said) && sentence.contains("`helio node space --node a`"), "{sentence}");
        }

        // Reads had ended, a takeover was refused every 15 s, and nothing but the log of a replica said why.
        let stepped_down = OwnerStatus {
            reachable: true,
            stepped_down: true,
            stepped_down_for_ms: Some(12_400),
            ..owner(2500, 0, Some(60_000))
        };
        let known = OwnerStatus { takeover_to: Some("c".to_owned()), ..stepped_down.clone() };
        let sentence = of_owner_that_stepped_down("disk", &known, true);
        assert!(
            sentence.contains("has failed, as has been known for 12 s: nothing")
                && sentence.contains("node c takes the volume over within 60 s"),
            "{sentence}"
        );
        let why = "volume disk has no replica that could take over: node b does not answer (gone); bring one of them, or the owner, back";
        let refused = OwnerStatus { takeover_refused: Some(why.to_owned()), ..stepped_down.clone() };
        let sentence = of_owner_that_stepped_down("disk", &refused, true);
        assert!(
            sentence.contains("no replica can take it over now: volume disk has no replica")
                && sentence.contains("tried again all the time"),
            "{sentence}"
        );
        let why =
            "what was flushed in class geo:1 may be at node c alone: bring it back, or add --behind to go on at node b";
        let refused = OwnerStatus { takeover_refused: Some(why.to_owned()), takeover_after_ms: None, ..stepped_down };
        for sentence in [of_owner_that_stepped_down("disk", &refused, true), of_lost_owner("disk", &refused, true)] {
            assert!(
                sentence.contains("`helio volume takeover disk --behind`")
                    && sentence.contains("then `helio volume takeover disk` gives"),
                "{sentence}"
            );
        }
    }
}
