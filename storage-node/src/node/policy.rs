//! The policies of volumes: what they are, and changing them. And what happens to a volume whose owner is lost: nothing until
//! somebody asks, or a takeover by itself after a while.
//!
//! Every node that follows a volume with the policy `auto` counts for itself, from when the owner's lease is out as seen here, or from when
//! it was seen here to have stepped down. The
//! replicas begin one after the other, so that one does it and the others see that it is done; if two do it at once, the metadata
//! lets one of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client_lib::policy::{Rpo, RpoAction};
use client_lib::wire::admin::{AskTakeover, ChangePolicy, OwnerStatus, ReplicaPolicy, VolumePolicy};
use client_lib::{Epoch, Error, ErrorKind, NodeId, VolumeId};
use consensus::{Command, Lease, MetaState, Response, Volume};
use futures_util::future::join_all;

use super::METADATA_DEADLINE;
use super::admin::durability::{asked_for, require_possible, unmet_named};
use super::admin::{NodeAdmin, node_named, out_of_turn, volume_named};
use super::propagation::{mode_told, propagation_asked_for, replicas_told, require_within};

/// How much later each replica begins than the one before it: longer than a takeover that has no lease to wait for.
const STAGGER: Duration = Duration::from_secs(3);

/// Takeovers under way at once; a lost node may have owned many volumes.
const AT_ONCE_MAX: usize = 16;

/// How long after a takeover that failed it is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(15);

/// How often the owner is asked whether it keeps to a new class.
const LOOK: Duration = Duration::from_millis(20);

/// How long the owner may take to keep to a new class before the change is reported without that.
const IN_FORCE_PATIENCE: Duration = Duration::from_secs(5);

/// How often what is asked for is worked out anew, when somebody else has changed the same thing meanwhile.
const ATTEMPTS_MAX: usize = 5;

/// The shortest target: a replica is some deltas behind even when all is well.
const RPO_TARGET_MS_MIN: u64 = 500;

/// Takes over what is to be taken over by itself, for as long as the node runs.
pub(super) async fn take_over_what_is_due(admin: Arc<NodeAdmin>) {
    let mut states = admin.meta.subscribe();
    let mut not_before: BTreeMap<VolumeId, Duration> = BTreeMap::new();
    loop {
        let state = states.borrow_and_update().clone();
        let leases = &admin.takeovers.leases;
        admin.takeovers.stepped_down().observe(&state, leases.now());
        let out_at = |volume: &Volume, lease: &Lease| {
            let out_at = leases.observe(volume.owner, lease);
            admin.takeovers.stepped_down().since(volume).map_or(out_at, |since| since.min(out_at))
        };
        let mut watched = due(&state, admin.this.id, out_at);
        not_before.retain(|volume, _| watched.contains_key(volume));
        for (volume, pause) in &not_before {
            watched.entry(*volume).and_modify(|due| *due = (*due).max(*pause));
        }
        let now = leases.now();
        let lost: Vec<&Volume> =
            watched.iter().filter(|(_, due)| **due <= now).filter_map(|(id, _)| state.volume(*id)).collect();
        if !lost.is_empty() {
            let some = &lost[..lost.len().min(AT_ONCE_MAX)];
            not_before.extend(some.iter().map(|volume| (volume.id, now + RETRY_PAUSE)));
            join_all(some.iter().map(|volume| take_over(&admin, volume))).await;
            continue;
        }
        let rest = watched.values().min().map(|due| due.saturating_sub(now));
        tokio::select! {
            biased;
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(rest.unwrap_or_default()), if rest.is_some() => {}
        }
    }
}

async fn take_over(admin: &NodeAdmin, meta: &Volume) {
    tracing::warn!(volume = %meta.name, epoch = %meta.epoch, owner = admin.peers.name(meta.owner), "the owner has been lost for long enough: the volume is taken over, as its policy says");
    match admin.take_over_volume(meta.name.as_str(), AskTakeover::default()).await {
        Ok(report) => {
            tracing::warn!(volume = %report.volume, epoch = report.epoch, to = %report.to, start = %report.start, lost_writes = report.lost_writes, "taken over by policy");
        }
        Err(error) => {
            tracing::warn!(volume = %meta.name, epoch = %meta.epoch, %error, "not taken over; it is looked at again");
        }
    }
}

/// Since when owners have been seen here to have stepped down.
#[derive(Default)]
pub(super) struct SteppedDown(BTreeMap<VolumeId, (Epoch, Duration)>);

impl SteppedDown {
    /// `state` is seen at `now`.
    fn observe(&mut self, state: &MetaState, now: Duration) {
        self.0.retain(|volume, (epoch, _)| {
            state.has_stepped_down(*volume) && state.volume(*volume).is_some_and(|volume| volume.epoch == *epoch)
        });
        for volume in state.volumes().filter(|volume| state.has_stepped_down(volume.id)) {
            self.0.entry(volume.id).or_insert((volume.epoch, now));
        }
    }

    fn since(&self, volume: &Volume) -> Option<Duration> {
        self.0.get(&volume.id).map(|(_, since)| *since)
    }
}

/// When node `me` is to take over which volumes, if their owners, which cannot act from `out_at` on, do not renew their leases.
fn due(state: &MetaState, me: NodeId, out_at: impl Fn(&Volume, &Lease) -> Duration) -> BTreeMap<VolumeId, Duration> {
    let when = |volume: &Volume| {
        let after = Duration::from_millis(volume.takeover_after_ms?);
        // It is not for the old owner of an earlier takeover to be the first: it may have left.
        let rank = volume.replicas.iter().position(|replica| *replica == me)?;
        let lease = state.lease(volume.owner);
        // An owner that never had a lease has not begun.
        let is_known = lease.renewals > 0;
        is_known.then(|| (volume.id, out_at(volume, &lease) + after + STAGGER * rank as u32))
    };
    state.volumes().filter_map(when).collect()
}

impl NodeAdmin {
    /// From the metadata as it is here: it must be told also while there is no leader.
    pub(super) async fn owner_of(&self, name: &str) -> Result<OwnerStatus, Error> {
        let state = self.meta.state();
        let volume = volume_named(&state, name)?;
        let lease = state.lease(volume.owner);
        let out_at = self.takeovers.leases.observe(volume.owner, &lease);
        let (now, is_out) = (self.takeovers.leases.now(), lease.is_out);
        let (reachable, stepped_down) = (self.reach(volume.owner).await, state.has_stepped_down(volume.id));
        // Of an owner that acts nobody takes anything over.
        let acts = reachable && !stepped_down && !is_out && out_at > now;
        let outlook = if acts { None } else { Some(self.outlook(&state, volume).await) };
        let (takeover_to, takeover_refused) = match outlook {
            Some(Ok(to)) => (Some(to), None),
            Some(Err(why)) => (None, Some(why.to_string())),
            None => (None, None),
        };
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Ok(OwnerStatus {
            owner: state.name_of(volume.owner),
            epoch: volume.epoch.0,
            reachable,
            lease_left_ms: if is_out { 0 } else { ms(out_at.saturating_sub(now)) },
            lease_out_for_ms: ms(now.saturating_sub(out_at)),
            takeover_after_ms: volume.takeover_after_ms,
            replicas: Some(volume.replicas.iter().map(|replica| state.name_of(*replica)).collect()),
            stepped_down,
            stepped_down_for_ms: self.takeovers.stepped_down().since(volume).map(|since| ms(now.saturating_sub(since))),
            takeover_to,
            takeover_refused,
        })
    }

    pub(super) async fn policy_of(&self, name: &str) -> Result<VolumePolicy, Error> {
        let state = self.recall().await;
        Ok(policy(&state, volume_named(&state, name)?))
    }

    /// What is not asked for stays as it is: also what somebody else asks for at this moment.
    pub(super) async fn set_policy_of(&self, name: &str, wanted: ChangePolicy) -> Result<VolumePolicy, Error> {
        until_not_overtaken(|| self.change_policy_of(name, &wanted)).await
    }

    /// The same, if nobody else changes the policy between the look at it and the change: `Busy` then.
    async fn change_policy_of(&self, name: &str, wanted: &ChangePolicy) -> Result<VolumePolicy, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        let id = volume.id;
        let (class, unmet) = (wanted.durability.as_deref(), wanted.unmet.as_deref());
        let durability = asked_for(volume.durability, class, unmet, wanted.degrade_after_ms)?;
        if durability.class != volume.durability.class && !wanted.accept_unmet {
            require_possible(&state, name, durability.class, volume.owner, volume.replicas.iter().copied())?;
        }
        let rpo = rpo_asked_for(volume.rpo, wanted.rpo_target_ms, wanted.rpo_action.as_deref())?;
        let replica = wanted.replica.as_deref().map(|name| node_named(&state, name)).transpose()?;
        let mode = wanted.propagation.as_deref();
        let mut propagation = propagation_asked_for(&volume.propagation, replica, mode, wanted.interval_ms)?;
        if let Some(order) = wanted.send_order.as_deref() {
            propagation.order = order.parse()?;
        }
        if (rpo, &propagation) != (volume.rpo, &volume.propagation) {
            require_within(rpo, &propagation, volume.replicas.iter().copied())?;
        }
        if let Some(after_ms) = wanted.takeover_after_ms {
            let command = Command::SetTakeover { volume: id, after_ms };
            match self.meta.carry_out(command, METADATA_DEADLINE).await? {
                Response::TakeoverSet => {}
                other => return Err(out_of_turn(&other)),
            }
        }
        let set_durability = |durability| Command::SetDurability { volume: id, durability };
        let set_rpo = |rpo| Command::SetRpo { volume: id, rpo };
        let set_propagation = |propagation| Command::SetPropagation { volume: id, propagation };
        let changes = [
            (set_durability(durability), set_durability(volume.durability)),
            (set_rpo(rpo), set_rpo(volume.rpo)),
            (set_propagation(propagation), set_propagation(volume.propagation.clone())),
        ];
        for (command, read) in changes.into_iter().filter(|(command, read)| command != read) {
            match self.meta.replace(command, read, METADATA_DEADLINE).await? {
                Response::PolicySet => {}
                other => return Err(out_of_turn(&other)),
            }
        }
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let now = volume_named(&state, name)?;
        let policy = policy(&state, now);
        if durability != volume.durability {
            self.until_in_force(id, &policy).await?;
        }
        // Replicas may have been given up between the first look and the change.
        let has_less = now.owner != volume.owner || !now.replicas.is_superset(&volume.replicas);
        if durability.class != volume.durability.class && !wanted.accept_unmet && has_less {
            require_possible(&state, name, durability.class, now.owner, now.replicas.iter().copied()).map_err(
                |error| {
                    Error::new(
                        error.kind(),
                        format!("the class was set, but its replicas have changed meanwhile: {error}"),
                    )
                },
            )?;
        }
        Ok(policy)
    }

    /// Waits until the owner keeps to a class, so that whoever asked for it may rely on it. An owner that does not answer does
    /// when it is back.
    async fn until_in_force(&self, id: VolumeId, policy: &VolumePolicy) -> Result<(), Error> {
        let is_so = async {
            loop {
                match self.status_of(id).await {
                    Ok(status) if status.durability.class == policy.durability => return Ok(()),
                    Ok(_) => tokio::time::sleep(LOOK).await,
                    Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
                    Err(error) => {
                        tracing::info!(volume = %id, %error, "the owner keeps to the new policy when it is back");
                        return Ok(());
                    }
                }
            }
        };
        // One that hears so late is as good as out of reach.
        tokio::time::timeout(IN_FORCE_PATIENCE, is_so).await.unwrap_or(Ok(()))
    }
}

/// Attempts a change of what is read and written back, again where somebody else was faster: `Busy` then.
pub(super) async fn until_not_overtaken<T, F: Future<Output = Result<T, Error>>>(
    attempt: impl Fn() -> F,
) -> Result<T, Error> {
    for _ in 1..ATTEMPTS_MAX {
        match attempt().await {
            Err(error) if error.kind() == ErrorKind::Busy => tracing::debug!(%error, "it is looked at again"),
            outcome => return outcome,
        }
    }
    attempt().await
}

/// The target that is asked for, where `present` is in force. What is not given stays.
fn rpo_asked_for(
    present: Option<Rpo>,
    target_ms: Option<Option<u64>>,
    action: Option<&str>,
) -> Result<Option<Rpo>, Error> {
    let invalid = |what: String| Err(Error::new(ErrorKind::InvalidRequest, what));
    let action = match action {
        None => None,
        Some("alarm") => Some(RpoAction::Alarm),
        Some("throttle") => Some(RpoAction::Throttle),
        Some(other) => {
            return invalid(format!("{other:?} is no action beyond a target: use `alarm` or `throttle`"));
        }
    };
    match (target_ms.unwrap_or(present.map(|rpo| rpo.target_ms)), action) {
        (None, None) => Ok(None),
        (None, Some(_)) => invalid("an action needs a target: how many seconds may the best replica be behind?".into()),
        (Some(ms), _) if ms < RPO_TARGET_MS_MIN => invalid(format!(
            "a target of {ms} ms is too short: replicas are told every 100 ms, so take {RPO_TARGET_MS_MIN} ms or more"
        )),
        (Some(target_ms), action) => {
            let before = present.map_or_else(RpoAction::default, |rpo| rpo.action);
            Ok(Some(Rpo { target_ms, action: action.unwrap_or(before) }))
        }
    }
}

/// What an action is called.
pub(super) fn action_named(action: RpoAction) -> &'static str {
    match action {
        RpoAction::Alarm => "alarm",
        RpoAction::Throttle => "throttle",
    }
}

fn policy(state: &MetaState, volume: &Volume) -> VolumePolicy {
    let (unmet, degrade_after_ms) = unmet_named(volume.durability.unmet);
    let ReplicaPolicy { propagation, interval_ms } = mode_told(volume.propagation.mode);
    VolumePolicy {
        takeover_after_ms: volume.takeover_after_ms,
        durability: volume.durability.class.to_string(),
        unmet: unmet.to_owned(),
        degrade_after_ms,
        rpo_target_ms: volume.rpo.map(|rpo| rpo.target_ms),
        rpo_action: volume.rpo.map(|rpo| action_named(rpo.action).to_owned()),
        propagation,
        interval_ms,
        send_order: volume.propagation.order.to_string(),
        replicas: replicas_told(&volume.propagation, |replica| state.name_of(replica)),
    }
}

#[cfg(test)]
mod tests {
    use client_lib::VolumeSize;

    use super::*;

    fn apply(state: &mut MetaState, index: u64, command: Command) {
        state.apply(index, command).into_result().expect("is applied");
    }

    /// Nodes 1 to 3; volume 10 of node 1 follows the policy, volume 11 does not.
    fn state() -> MetaState {
        let mut state = MetaState::default();
        for id in 1..=3 {
            let name = ["a", "b", "c"][id as usize - 1];
            let register = Command::RegisterNode {
                id: NodeId(id),
                name: name.parse().expect("a name"),
                provider: name.parse().expect("a name"),
                address: "192.0.2.1:1".into(),
            };
            apply(&mut state, id, register);
        }
        for index in [10, 11] {
            let create = Command::CreateVolume {
                name: format!("v{index}").parse().expect("a name"),
                size: VolumeSize::try_from(1 << 20).expect("a size"),
                owner: NodeId(1),
                replicas: [NodeId(2), NodeId(3)].into(),
                nonce: index,
            };
            apply(&mut state, index, create);
        }
        apply(&mut state, 12, Command::SetTakeover { volume: VolumeId(10), after_ms: Some(30_000) });
        state
    }

    #[test]
    fn a_target_is_asked_for_in_parts() {
        let rpo = |target_ms, action| Some(Rpo { target_ms, action });
        let present = rpo(5_000, RpoAction::Throttle);
        for (present, target, action, expected) in [
            (None, None, None, None),
            (None, Some(Some(5_000)), None, rpo(5_000, RpoAction::Alarm)),
            (present, None, None, present),
            (present, Some(Some(900)), None, rpo(900, RpoAction::Throttle)),
            (present, None, Some("alarm"), rpo(5_000, RpoAction::Alarm)),
            (present, Some(None), None, None),
        ] {
            assert_eq!(rpo_asked_for(present, target, action).expect("is valid"), expected);
        }
        for (target, action, said) in [
            (None, Some("alarm"), "needs a target"),
            (Some(Some(9)), None, "too short"),
            (Some(Some(900)), Some("panic"), "use `alarm` or `throttle`"),
        ] {
            assert!(rpo_asked_for(None, target, action).expect_err(said).message().contains(said));
        }
    }

    #[test]
    fn replicas_of_an_automatic_volume_are_due_one_after_the_other() {
        let mut state = state();
        let at = |state: &MetaState, node| due(state, NodeId(node), |_, _| Duration::from_secs(100));
        assert!(at(&state, 2).is_empty(), "the owner never had a lease");
        apply(&mut state, 13, Command::RenewLease { node: NodeId(1), lapses: 0, duration_ms: 1000 });
        let second = Duration::from_secs(1);
        assert_eq!(at(&state, 2), [(VolumeId(10), 130 * second)].into());
        assert_eq!(at(&state, 3), [(VolumeId(10), 130 * second + STAGGER)].into());
        assert!(at(&state, 1).is_empty(), "the owner itself");
        apply(&mut state, 14, Command::SetTakeover { volume: VolumeId(10), after_ms: None });
        assert!(at(&state, 2).is_empty());
    }

    #[test]
    fn an_owner_that_has_stepped_down_is_counted_from_when_that_was_seen() {
        let mut state = state();
        let second = Duration::from_secs(1);
        apply(&mut state, 13, Command::RenewLease { node: NodeId(1), lapses: 0, duration_ms: 1000 });
        let step_down = |incarnation| {
            let volumes = vec![(VolumeId(10), Epoch(1))];
            Command::StepDown { node: NodeId(1), incarnation, volumes }
        };
        apply(&mut state, 14, step_down(0));
        let mut seen = SteppedDown::default();
        seen.observe(&state, 50 * second);
        seen.observe(&state, 60 * second);
        let volume = |state: &MetaState| state.volume(VolumeId(10)).expect("exists").clone();
        assert_eq!(seen.since(&volume(&state)), Some(50 * second));
        apply(&mut state, 15, Command::NodeStarted { node: NodeId(1) });
        seen.observe(&state, 70 * second);
        assert_eq!(seen.since(&volume(&state)), None, "a new process may act");
        apply(&mut state, 16, step_down(1));
        seen.observe(&state, 80 * second);
        assert_eq!(seen.since(&volume(&state)), Some(80 * second));
    }
}
