//! Administrators who ask for things at once, each of whom would be right alone; and one who goes before he is answered.

use std::time::Duration;

use client_lib::policy::{Class, Durability, Unmet};
use client_lib::wire::admin::{ChangeLabels, ChangePolicy, ChangeReplicas, OverviewQuery};
use client_lib::{Error, NodeId};

use super::world::{NAMES, World, text};
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

/// Two administrators changed one part of a volume's policy each. Both wrote the whole of it back, so that one of the changes was gone, and nobody was told:
/// a class was local again after it was said to be in force. The same of the labels of a node.
#[test]
fn two_who_change_one_part_each_of_a_policy_at_once_both_have_their_way() {
    let mut world = World::found_at(1, 3, false, None);
    let volume = world.create_unused("v", NodeId(1), 64);
    let policies = [
        ChangePolicy { durability: Some("geo:1".into()), ..ChangePolicy::default() },
        ChangePolicy { unmet: Some("degrade".into()), degrade_after_ms: Some(5000), ..ChangePolicy::default() },
    ];
    let set = [NodeId(2), NodeId(3)].into_iter().zip(policies).map(|(node, policy)| {
        world.ask(node, |running| {
            let admin = running.parts.admin.clone();
            let label = format!("asked-of-{}", node.0);
            async move {
                admin.set_policy("v", policy).await?;
                let labels = ChangeLabels { add: vec![label], ..ChangeLabels::default() };
                admin.label_node(NAMES[0], labels).await.map(drop)
            }
        })
    });
    let set: Vec<_> = set.collect();
    assert!(world.run_until(PATIENCE, |_| set.iter().all(|set| set.get().is_some())));
    assert!(set.iter().all(|set| set.get().is_some_and(Result::is_ok)), "{set:?}");
    let durability = world.newest(volume).expect("exists").durability;
    assert_eq!(durability, Durability { class: Class::Geo(1), unmet: Unmet::Degrade { after_ms: 5000 } });
    let labels =
        world.answer(NodeId(1), PATIENCE, |running| {
            let meta = running.parts.meta.clone();
            async move {
                meta.linearizable(PATIENCE).await.map(|state| state.places().labels(NodeId(1)).count()).map_err(text)
            }
        });
    assert_eq!(labels, Some(Ok(2)));
}

/// Whoever asked for the overview had gone before its own node had looked at its volumes. That node and those after it counted as asked for ever, and what
/// they had told last was shown until the node was restarted.
#[test]
fn all_owners_are_asked_again_after_whoever_asked_before_has_gone() {
    let mut world = World::found_at(1, 3, false, None);
    world.create_unused("v", NodeId(1), 64);
    let told = world.answer(NodeId(1), PATIENCE, |running| {
        let admin = running.parts.admin.clone();
        async move {
            let gone = tokio::time::timeout(Duration::ZERO, admin.overview(OverviewQuery::default())).await;
            assert!(gone.is_err(), "its shard has yet to be asked");
            loop {
                let overview = admin.overview(OverviewQuery::default()).await.map_err(text)?;
                if overview.owners.iter().all(|owner| owner.seconds_old.is_some()) {
                    return Ok::<_, String>(overview.owners.len());
                }
                tokio::time::sleep(ONE_WAY).await;
            }
        }
    });
    assert_eq!(told, Some(Ok(3)));
}
