//! How a volume stands to its class of durability, and which classes its nodes can meet.

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::clock::{Clock, SystemClock};
use client_lib::policy::{Class, DEGRADE_AFTER_MS, Durability, Unmet};
use client_lib::wire::admin::DurabilityStatus;
use client_lib::{BLOCK_SIZE, Error, ErrorKind, NodeId};
use consensus::{MetaState, Volume};

use super::NodeAdmin;
use crate::node::reach;
use crate::propagation::classes;
use crate::propagation::flushes::Flushes;
use crate::propagation::progress::Progress;
use crate::serve::volume::{ServedVolume, store_failure};
use crate::size;

/// A flush that waits for longer than this waits for something that is not as it should be.
const PATIENCE: Duration = Duration::from_secs(1);

/// The policy that is asked for, where `present` is in force: what is not given stays, but that another `unmet` than `degrade` has
/// no time.
///
/// # Errors
/// `InvalidRequest`.
pub(in crate::node) fn asked_for(
    present: Durability,
    class: Option<&str>,
    unmet: Option<&str>,
    after_ms: Option<u64>,
) -> Result<Durability, Error> {
    let class = class.map_or(Ok(present.class), str::parse)?;
    let unmet = match (unmet, present.unmet, after_ms) {
        (Some("block"), _, None) => Unmet::Block,
        (Some("degrade"), Unmet::Degrade { after_ms }, None) => Unmet::Degrade { after_ms },
        (Some("degrade"), _, after) => Unmet::Degrade { after_ms: after.unwrap_or(DEGRADE_AFTER_MS) },
        (None, Unmet::Degrade { .. }, Some(after_ms)) => Unmet::Degrade { after_ms },
        (None, unmet, None) => unmet,
        (Some("block") | None, _, Some(_)) => {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "a time to degrade after goes with `degrade`: while `block` is in force, flushes wait for as long as it takes",
            ));
        }
        (Some(other), ..) => {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("{other:?} is not what can happen while a class is not met: use `block` or `degrade`"),
            ));
        }
    };
    Ok(Durability { class, unmet })
}

/// What `unmet` is called, and its time.
pub(in crate::node) fn unmet_named(unmet: Unmet) -> (&'static str, Option<u64>) {
    match unmet {
        Unmet::Block => ("block", None),
        Unmet::Degrade { after_ms } => ("degrade", Some(after_ms)),
    }
}

/// Refuses a class that can never be met while `owner` owns the volume and `replicas` follow it.
///
/// # Errors
/// `InvalidRequest`, saying what to do.
pub(in crate::node) fn require_possible(
    state: &MetaState,
    volume: &str,
    class: Class,
    owner: NodeId,
    replicas: impl Iterator<Item = NodeId>,
) -> Result<(), Error> {
    let home = state.node(owner).map(|node| &node.provider);
    let providers: Vec<_> = replicas.filter_map(|node| Some(&state.node(node)?.provider)).collect();
    let Some(home) = home else { return Ok(()) };
    let places = classes::places(class, home, providers.into_iter());
    if places >= class.others() {
        return Ok(());
    }
    let (what, next) = match class {
        Class::Geo(_) => ("other providers with a replica", "replicas at more providers".to_owned()),
        _ => ("other replicas at the owner's provider", format!("more replicas at provider {home}")),
    };
    Err(Error::new(
        ErrorKind::InvalidRequest,
        format!(
            "class {class} of volume {volume} asks for {} {what}, and with node {} as its owner there are {places}: no flush would be \
             answered. Choose a class that can be met, give the volume {next} (--replicas when it is made, `helio volume replica add` \
             later), or say that it is meant with --accept-unmet",
            class.others(),
            state.name_of(owner),
        ),
    ))
}

impl NodeAdmin {
    /// How a volume that is owned here stands to its class.
    pub(super) async fn durability_here(
        &self,
        state: &MetaState,
        meta: &Volume,
        volume: &ServedVolume,
        stale_bytes: u64,
    ) -> Result<DurabilityStatus, Error> {
        let (flushes, now) = volume.flushes.look();
        let marks = self.reconciler.watermarks(volume.id);
        let progress = marks.map(|marks| reach::known(&marks, self.peers.links())).unwrap_or_default();
        let mut status = told(&flushes, now, &causes(state, meta, &flushes, &progress, stale_bytes));
        if let Some(degraded) = flushes.degraded() {
            let at_risk = volume.shard.changed_blocks(volume.id, flushes.durable()).await.map_err(store_failure)?;
            status.at_risk_bytes = at_risk * u64::from(BLOCK_SIZE);
            let ago = u64::try_from(now.saturating_sub(degraded.since).as_millis()).unwrap_or(u64::MAX);
            status.degraded_since_ms = Some(SystemClock::new().unix_ms().saturating_sub(ago));
        }
        Ok(status)
    }
}

/// Why the class would not be met by what is in reach; empty when it would.
fn causes(
    state: &MetaState,
    meta: &Volume,
    flushes: &Flushes,
    progress: &BTreeMap<NodeId, Progress>,
    stale_bytes: u64,
) -> Vec<String> {
    let class = flushes.policy().class;
    let Some(home) = state.node(meta.owner).map(|node| node.provider.clone()) else { return Vec::new() };
    let counting: Vec<NodeId> = meta.replicas.iter().copied().filter(|node| flushes.counts(*node)).collect();
    let follows = |node: &NodeId| {
        progress.get(node).is_some_and(|it| it.reachable && it.tail.is_none() && it.rejoining.is_none())
    };
    let provider = |node: &NodeId| state.node(*node).map(|node| &node.provider);
    let needed = class.others() + usize::from(!flushes.is_whole());
    if classes::places(class, &home, counting.iter().filter(|node| follows(node)).filter_map(provider)) >= needed {
        return Vec::new();
    }
    let mut causes = Vec::new();
    if flushes.places() < class.others() {
        causes.push(format!("the volume has {} places for copies besides its owner", flushes.places()));
    }
    if !flushes.is_whole() {
        causes.push(format!("the owner itself still fetches {}", size::human(stale_bytes)));
    }
    for node in counting.iter().filter(|node| !follows(node)) {
        let name = state.name_of(*node);
        let it = progress.get(node);
        causes.push(if it.is_some_and(|it| it.tail.is_some()) {
            format!("node {name} has left the volume")
        } else if it.is_some_and(|it| it.reachable && it.rejoining.is_some()) {
            format!("node {name} is on its way back to the volume")
        } else {
            format!("node {name} cannot be reached")
        });
    }
    causes
}

/// The status, but for what is counted in bytes.
fn told(flushes: &Flushes, now: Duration, causes: &[String]) -> DurabilityStatus {
    let Durability { class, unmet } = flushes.policy();
    let (unmet_name, degrade_after_ms) = unmet_named(unmet);
    let (waiting, first) = flushes.waiting();
    let waited = first.map_or(Duration::ZERO, |first| now.saturating_sub(first));
    let is_late = flushes.waits() && waited > PATIENCE;
    let is_met = !flushes.waits() || (causes.is_empty() && !is_late);
    let state = match (flushes.degraded(), is_met) {
        (Some(_), _) => "degraded",
        (None, true) => "met",
        (None, false) => "unmet",
    };
    let cause = match (state, causes.is_empty()) {
        ("met", _) => None,
        (_, false) => Some(causes.join(", and ")),
        (_, true) => Some("the replicas that count are behind".to_owned()),
    };
    let next = match (flushes.degraded(), unmet, first) {
        _ if state == "met" => None,
        (Some(_), ..) => Some("flushes wait for the class again when the replicas have what was flushed".to_owned()),
        (None, Unmet::Degrade { after_ms }, Some(_)) => {
            let left = Duration::from_millis(after_ms).saturating_sub(waited);
            Some(format!("flushes are answered without it in {} s, if it is not met before", left.as_secs_f64().ceil()))
        }
        (None, Unmet::Degrade { after_ms }, None) => {
            Some(format!("a flush is answered without it after {} s", after_ms.div_ceil(1000)))
        }
        (None, Unmet::Block, _) => Some("flushes wait until it is met".to_owned()),
    };
    DurabilityStatus {
        class: class.to_string(),
        unmet: unmet_name.to_owned(),
        degrade_after_ms,
        state: state.to_owned(),
        durable: flushes.waits().then(|| flushes.durable().to_string()),
        waiting: waiting as u64,
        waiting_seconds: waited.as_secs_f64(),
        degraded_since_ms: None,
        at_risk_bytes: 0,
        cause,
        next,
    }
}

#[cfg(test)]
mod tests {
    use client_lib::{Epoch, Lsn};

    use super::*;

    #[test]
    fn what_is_not_asked_for_stays_and_what_makes_no_sense_is_refused() {
        let present = Durability { class: Class::Geo(1), unmet: Unmet::Degrade { after_ms: 7 } };
        let asked = |class, unmet, after| asked_for(present, class, unmet, after);
        assert_eq!(asked(None, None, None).expect("is valid"), present);
        let site = asked(Some("site:2"), None, Some(9)).expect("is valid");
        assert_eq!(site, Durability { class: Class::Site(2), unmet: Unmet::Degrade { after_ms: 9 } });
        assert_eq!(asked(None, Some("block"), None).expect("is valid").unmet, Unmet::Block);
        assert_eq!(asked(None, Some("degrade"), None).expect("is valid"), present);
        let fresh = asked_for(Durability::default(), None, Some("degrade"), None).expect("is valid");
        assert_eq!(fresh.unmet, Unmet::Degrade { after_ms: DEGRADE_AFTER_MS });
        for (class, unmet, after, said) in [
            (Some("geo:0"), None, None, "is no durability class"),
            (None, Some("panic"), None, "use `block` or `degrade`"),
            (None, Some("block"), Some(9), "goes with `degrade`"),
        ] {
            assert!(asked(class, unmet, after).expect_err(said).message().contains(said));
        }
        assert!(asked_for(Durability::default(), None, None, Some(9)).is_err());
    }

    /// Owned in epoch 1 at a, with a replica at b.
    fn flushes(unmet: Unmet) -> Flushes {
        let mut flushes = Flushes::default();
        let provider = |name: &str| name.parse().expect("a name");
        let replicas = [(NodeId(2), provider("b"))].into();
        flushes.follow(Durability { class: Class::Geo(1), unmet }, Some(provider("a")), replicas);
        flushes.begin(Epoch(1), None);
        flushes
    }

    #[test]
    fn a_class_that_is_not_met_is_told_with_its_cause_and_what_comes_next() {
        let s = Duration::from_secs;
        let lsn = Lsn::new(Epoch(1), 5);
        let away = ["node b cannot be reached".to_owned()];
        let mut blocked = flushes(Unmet::Block);
        let status = told(&blocked, s(1), &[]);
        assert_eq!((status.state.as_str(), status.cause, status.next), ("met", None, None));
        assert_eq!(told(&blocked, s(1), &away).state, "unmet", "a flush would wait");
        blocked.start(Epoch(1), lsn, s(1));
        assert_eq!(told(&blocked, s(2), &[]).state, "met", "it is on its way");
        let status = told(&blocked, s(4), &[]);
        assert_eq!((status.state.as_str(), status.waiting, status.waiting_seconds), ("unmet", 1, 3.0));
        assert_eq!(status.cause.as_deref(), Some("the replicas that count are behind"));

        let mut degrading = flushes(Unmet::Degrade { after_ms: 10_000 });
        degrading.start(Epoch(1), lsn, s(1));
        let status = told(&degrading, s(4), &away);
        assert_eq!(status.next.as_deref(), Some("flushes are answered without it in 7 s, if it is not met before"));
        degrading.degrade(Epoch(1), lsn, s(11));
        let status = told(&degrading, s(12), &away);
        assert_eq!((status.state.as_str(), status.cause.as_deref()), ("degraded", Some("node b cannot be reached")));
    }

    #[test]
    fn a_class_that_can_never_be_met_is_refused_with_what_to_do() {
        let mut state = MetaState::default();
        for (id, name, provider) in [(1, "a", "x"), (2, "b", "x"), (3, "c", "y")] {
            let (name, provider) = (name.parse().expect("a name"), provider.parse().expect("a name"));
            let register = consensus::Command::RegisterNode { id: NodeId(id), name, provider, address: String::new() };
            state.apply(id, register).into_result().expect("is applied");
        }
        let possible = |class, owner: u64| {
            let replicas = (1..=3).map(NodeId).filter(move |node| *node != NodeId(owner));
            require_possible(&state, "v", class, NodeId(owner), replicas)
        };
        for (class, owner) in [(Class::Local, 1), (Class::Site(1), 1), (Class::Geo(1), 1), (Class::Geo(1), 3)] {
            possible(class, owner).unwrap_or_else(|error| panic!("{class} at {owner}: {error}"));
        }
        for (class, owner, said) in [
            (Class::Site(2), 1, "give the volume more replicas at provider x"),
            (Class::Site(1), 3, "with node c as its owner there are 0"),
            (Class::Geo(2), 1, "give the volume replicas at more providers"),
        ] {
            let refused = possible(class, owner).expect_err(said);
            assert!(refused.message().contains(said) && refused.message().contains("--accept-unmet"), "{refused}");
        }
    }
}
