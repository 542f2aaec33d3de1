//! Values that are written back whole, at once.

use client_lib::ErrorKind;
use client_lib::policy::{Class, Durability, Unmet};
use client_lib::{VolumeId, VolumeSize};

use super::*;

/// One administrator asked for class geo:1 and was told that it is in force. Another one had read the policy before, changed what happens while a class is
/// not met, and wrote it back whole: the volume was in class local again, and nobody was told.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_has_changed_meanwhile_is_not_written_over() {
    let group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    let (name, size) = ("disk".parse().expect("a name"), VolumeSize::try_from(1 << 20).expect("a size"));
    let create = Command::CreateVolume { name, size, owner: NodeId(1), replicas: [].into(), nonce: 1 };
    let created = group.node(1).propose(create, PATIENCE).await.expect("is applied");
    let Response::VolumeCreated { volume } = created else { panic!("{created:?}") };
    let set = |class, unmet| Command::SetDurability { volume, durability: Durability { class, unmet } };
    let degrade = Unmet::Degrade { after_ms: 1000 };
    let read = set(Class::Local, Unmet::Block);
    let now = |id: u64| group.node(id).state().volume(volume).expect("exists").durability;

    let geo = set(Class::Geo(1), Unmet::Block);
    group.node(2).replace(geo.clone(), read.clone(), PATIENCE).await.expect("it is as it was read");
    let late = group.node(3).replace(set(Class::Local, degrade), read.clone(), PATIENCE).await;
    let refused = late.expect_err("it is another one by now");
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    group.node(2).replace(geo.clone(), read, PATIENCE).await.expect("the same again, whose first answer was lost");
    assert_eq!(now(2), Durability { class: Class::Geo(1), unmet: Unmet::Block });
    group.node(3).replace(set(Class::Geo(1), degrade), geo, PATIENCE).await.expect("it was read again");
    assert_eq!(now(3), Durability { class: Class::Geo(1), unmet: degrade });

    let unknown = |class| {
        let durability = Durability { class, unmet: Unmet::Block };
        Command::SetDurability { volume: VolumeId(77), durability }
    };
    let gone = group.node(1).replace(unknown(Class::Geo(1)), unknown(Class::Local), PATIENCE).await;
    assert_eq!(gone.expect_err("there is none").kind(), ErrorKind::NotFound);
    group.stop().await;
}

/// The same of many at once: each adds its label to those that it has read.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_change_a_value_at_once_none_is_lost() {
    let group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    let adding = (0..12_u64).map(|number| {
        let node = group.node(1 + number % 3);
        tokio::spawn(async move {
            loop {
                let state = node.linearizable(PATIENCE).await.expect("reads");
                let read: BTreeSet<_> = state.places().labels(NodeId(1)).cloned().collect();
                let mut labels = read.clone();
                labels.insert(format!("l{number}").parse().expect("a label"));
                let set = |labels| Command::LabelNode { node: NodeId(1), labels };
                match node.replace(set(labels), set(read), PATIENCE).await {
                    Ok(_) => return,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
                }
            }
        })
    });
    for added in adding.collect::<Vec<_>>() {
        added.await.expect("it ends");
    }
    let state = group.node(2).linearizable(PATIENCE).await.expect("reads");
    assert_eq!(state.places().labels(NodeId(1)).count(), 12);
    group.stop().await;
}
