//! Administrators who ask for things at once, each of whom would be right alone.

use std::time::Duration;

use client_lib::wire::admin::ChangeReplicas;
use client_lib::{Error, NodeId};

use super::world::{NAMES, World};
use crate::serve::admin::Admin;

/// One way between any two of the machines, but for the slow one.
const ONE_WAY: Duration = Duration::from_millis(5);
/// One way to the owner: less than whoever follows the leader waits before it calls for a vote.
const SLOW: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(20);

fn name(node: NodeId) -> String {
    NAMES[node.0 as usize - 1].to_owned()
}

/// Of a volume with two replicas one was removed by each of two administrators. Both had looked when the other one was still there, the owner carried out
/// one after the other, and the volume had none: neither had said that this was meant.
#[test]
fn of_two_removals_that_leave_nothing_together_the_second_is_refused() {
    let mut world = World::found(1, 3, None);
    let leader = world.machines[&NodeId(1)].running().and_then(|running| running.parts.meta.leader());
    let leader = leader.expect("somebody leads");
    let others: Vec<NodeId> = world.ids().into_iter().filter(|id| *id != leader).collect();
    let (owner, far) = (others[0], others[1]);
    let volume = world.create("v", owner);
    for from in world.ids() {
        for to in world.ids() {
            let delay = if (from, to) == (far, owner) { SLOW } else { ONE_WAY };
            world.network.change(from, to, |link| (link.delay, link.jitter) = (delay, Duration::ZERO));
        }
    }
    let removed = [far, leader].map(|node| {
        world.ask(node, |running| {
            let admin = running.parts.admin.clone();
            let request = ChangeReplicas { remove: vec![name(node)], ..ChangeReplicas::default() };
            async move { admin.change_replicas("v", request).await.map(|report| report.replicas) }
        })
    });
    assert!(world.run_until(PATIENCE, |_| removed.iter().all(|told| told.get().is_some())));
    let [far_told, leader_told] =
        removed.map(|told| told.get().expect("is there").as_ref().map_err(Error::to_string).cloned());
    assert_eq!(leader_told, Ok(vec![name(far)]));
    let refused = far_told.expect_err("nothing would be left");
    assert!(refused.contains("no replica") && refused.contains("--accept-fewer"), "{refused}");
    assert_eq!(world.newest(volume).expect("exists").replicas, [far].into());
}
