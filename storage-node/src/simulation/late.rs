//! A node that hears of the metadata later than the others do.

use std::time::Duration;

use client_lib::NodeId;
use client_lib::wire::admin::Migrate;

use super::world::{NAMES, World, text};
use crate::serve::admin::Admin;

/// One way between any two of the machines, but for the late one.
const ONE_WAY: Duration = Duration::from_millis(5);
/// From the leader to the late one: less than it waits for the leader before it calls for a vote.
const LATE: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(20);

/// A node that had just been given a volume, and was yet to hear of it, said that the volume is not owned there; whoever asked was
/// told that the owner does not answer, and a drain gave up.
#[test]
fn whoever_has_just_been_given_a_volume_is_waited_for() {
    let mut world = World::found(1, 3, None);
    world.create("v", NodeId(2));
    let leader = world.machines[&NodeId(1)].running().and_then(|running| running.parts.meta.leader());
    let leader = leader.expect("somebody leads");
    assert_ne!(leader, NodeId(2), "the owner hears of the handover from the leader, as the new one does");
    let heir = NodeId(4 - leader.0);
    for from in world.ids() {
        for to in world.ids() {
            let delay = if (from, to) == (leader, heir) { LATE } else { ONE_WAY };
            world.network.change(from, to, |link| (link.delay, link.jitter) = (delay, Duration::ZERO));
        }
    }
    let moved = world.ask(NodeId(2), |running| {
        let admin = running.parts.admin.clone();
        let to = NAMES[heir.0 as usize - 1].to_owned();
        async move {
            admin
                .migrate("v", Migrate { to, synced: false, accept_unmet: false, deadline_ms: None })
                .await
                .map_err(text)
        }
    });
    let told = world.answer(NodeId(2), PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move {
            loop {
                let status = admin.volume("v").await.map_err(text)?;
                if status.epoch > 1 {
                    return Ok::<_, String>(status.owner);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    assert_eq!(told, Some(Ok(NAMES[heir.0 as usize - 1].to_owned())));
    assert!(world.run_until(PATIENCE, |_| moved.get().is_some()));
    assert!(moved.get().is_some_and(Result::is_ok), "{:?}", moved.get().map(|moved| moved.as_ref().err()));
}
