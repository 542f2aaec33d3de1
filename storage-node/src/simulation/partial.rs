//! An owner that is cut off from the one who takes over, and from nobody else: a directed story.

use std::time::Duration;

use client_lib::NodeId;
use client_lib::wire::admin::{AskTakeover, ChangePolicy};

use super::checks::classes;
use super::world::{World, text};
use crate::serve::admin::Admin;

const OWNER: NodeId = NodeId(2);

/// The replicas were asked what they hold when the takeover began. While the lease of the owner was waited out the third node went on to take
/// what it flushed, which was answered; the takeover began without it. Two of five seeds lost what was flushed in `geo:1`.
#[test]
fn what_is_flushed_while_the_lease_is_waited_out_is_not_lost() {
    let mut moved = 0;
    for seed in [3, 4, 6, 8, 9, 11] {
        let mut world = World::found_at(seed, 3, false, None);
        let volume = world.create("v", OWNER);
        world.set_policy("v", OWNER, ChangePolicy { durability: Some("geo:1".into()), ..ChangePolicy::default() });
        world.run_for(Duration::from_secs(4));
        let leader = world.machines[&NodeId(1)].running().and_then(|running| running.parts.meta.leader());
        let Some(leader) = leader.filter(|leader| *leader != OWNER) else { continue };
        let cut = |world: &mut World, is_cut| {
            for (from, to) in [(OWNER, leader), (leader, OWNER)] {
                world.network.change(from, to, |link| link.is_cut = is_cut);
            }
        };
        cut(&mut world, true);
        let asked = world.answer(leader, Duration::from_secs(40), |running| {
            let admin = running.parts.admin.clone();
            async move { admin.take_over("v", AskTakeover::default()).await.map(|report| report.to).map_err(text) }
        });
        moved += u32::from(matches!(asked, Some(Ok(_))));
        world.run_for(Duration::from_secs(5));
        cut(&mut world, false);
        world.run_for(Duration::from_secs(15));
        classes::check(&world.history.book(), volume).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(world.panics(), 0);
    }
    assert!(moved > 0, "none was taken over");
}
