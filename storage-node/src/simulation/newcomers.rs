//! Nodes that join while another one is away.

use std::time::Duration;

use client_lib::NodeId;

use super::world::World;

const AWAY: NodeId = NodeId(2);
const PATIENCE: Duration = Duration::from_secs(120);

/// A node that was away knew only those that were members before. When it was back, and of these nobody lived any more, it was sent the metadata by a leader
/// that it could not ask: it had no address of that one, and looked into what it was sent only once it was up.
#[test]
fn a_node_comes_back_to_members_that_have_all_joined_since() {
    let mut world = World::found_at(3, 3, false, None);
    world.kill(AWAY, false);
    for _ in 0..2 {
        let joined = world.join().expect("there is room");
        assert!(world.run_until(PATIENCE, |world| world.machines[&joined].is_serving()), "{joined} joins");
    }
    // Five vote: with the one that is back, the two that have joined are a majority.
    for founder in world.ids().into_iter().filter(|id| world.is_founder(*id) && *id != AWAY).collect::<Vec<_>>() {
        world.lose(founder);
    }
    world.boot(AWAY);
    assert!(world.run_until(PATIENCE, |world| world.machines[&AWAY].is_serving()), "{:?}", world.failures());
}
