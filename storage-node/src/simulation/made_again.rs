//! A volume that is deleted, and another one that gets its name.

use std::time::Duration;

use client_lib::wire::admin::CreateVolume;
use client_lib::{BLOCK_SIZE, NodeId};
use nbd_frontend::export::ExportDirectory;

use super::client::{block, first_byte};
use super::world::{NAMES, World, text};
use crate::serve::admin::Admin;

/// One way between any two of the machines, but for the late one.
const ONE_WAY: Duration = Duration::from_millis(5);
/// From the leader to the late one: less than it waits for the leader before it calls for a vote.
const LATE: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(20);
const BLOCKS: u32 = 64;

/// The owner of a volume was yet to hear that it was deleted, and that another one has its name. Whoever came to its NBD server was given the deleted one:
/// its data, and acks of writes that were deleted a moment later.
#[test]
fn nobody_is_given_a_deleted_volume_whose_name_another_one_has() {
    let mut world = World::found(1, 3, None);
    let leader = world.machines[&NodeId(1)].running().and_then(|running| running.parts.meta.leader());
    let leader = leader.expect("somebody leads");
    let late = world.ids().into_iter().find(|id| *id != leader).expect("there are three");
    let old = world.create_unused("v", late, BLOCKS);
    for from in world.ids() {
        for to in world.ids() {
            let delay = if (from, to) == (leader, late) { LATE } else { ONE_WAY };
            world.network.change(from, to, |link| (link.delay, link.jitter) = (delay, Duration::ZERO));
        }
    }
    let made = world.answer(leader, PATIENCE, |running| {
        let (admin, exports) = (running.parts.admin.clone(), running.parts.exports.clone());
        async move {
            admin.delete_volume("v").await.map_err(text)?;
            let owner = Some(NAMES[leader.0 as usize - 1].to_owned());
            let size_bytes = u64::from(BLOCKS * BLOCK_SIZE);
            let request = CreateVolume { name: "v".into(), size_bytes, owner, ..CreateVolume::default() };
            admin.create_volume(request).await.map_err(text)?;
            let session = exports.open("v").await.map_err(text)?;
            session.write(0, block(7), false).await.map_err(text)
        }
    });
    made.expect("it answers").expect("is made");
    let found = world.answer(late, PATIENCE, |running| {
        let exports = running.parts.exports.clone();
        let has_old = running.parts.meta.state().volume(old).is_some();
        async move {
            let session = exports.open("v").await.map_err(text)?;
            Ok::<_, String>((has_old, first_byte(&*session, 0).await.map_err(text)?))
        }
    });
    assert_eq!(found, Some(Ok((true, 7))), "it has yet to hear of it, and gives the new one");
}
