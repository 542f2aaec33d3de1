//! Three nodes over in-memory calls with a delay: election, forwarding, reads, loss of the leader, restart.

mod replace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::{BoxFuture, TransportError};
use client_lib::{GroupId, NodeId};
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use super::leader::Metrics;
use super::{MetaOptions, MetaRaft};
use crate::command::{Command, Refusal, Response};
use crate::network::{LeaderReply, LeaderRequest, RaftCalls};
use crate::store::types::Member;
use crate::timings::Timings;

const PATIENCE: Duration = Duration::from_secs(60);

/// Calls by a table, each way delayed by half a round trip.
#[derive(Clone)]
struct Calls {
    from: NodeId,
    nodes: Arc<Mutex<BTreeMap<NodeId, MetaRaft>>>,
    /// Who does not know the address of whom.
    strangers: Arc<Mutex<BTreeSet<(NodeId, NodeId)>>>,
    rtt: Duration,
}

impl RaftCalls for Calls {
    fn call(&self, to: NodeId, request: Bytes, deadline: Duration) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            if self.strangers.lock().expect("no test panics with the lock held").contains(&(self.from, to)) {
                return Err(TransportError::UnknownPeer(to));
            }
            let node = self.nodes.lock().expect("no test panics with the lock held").get(&to).cloned();
            let Some(node) = node else {
                return Err(TransportError::Unreachable { node: to, reason: "it is down".into() });
            };
            let exchange = async {
                tokio::time::sleep(self.rtt / 2).await;
                let reply = node.serve(request).await;
                tokio::time::sleep(self.rtt / 2).await;
                reply
            };
            tokio::time::timeout(deadline, exchange)
                .await
                .map_err(|_| TransportError::OutcomeUnknown { node: to, reason: "no answer in time".into() })
        })
    }
}

struct Group {
    calls: Calls,
    directories: BTreeMap<NodeId, tempfile::TempDir>,
    /// The member that others know before they know any.
    contact: NodeId,
}

impl Group {
    async fn start(rtt: Duration) -> Group {
        let calls = Calls { from: NodeId(0), nodes: Arc::default(), strangers: Arc::default(), rtt };
        let ids = [1, 2, 3].map(NodeId);
        let directories = ids.map(|id| (id, tempfile::tempdir().expect("a directory"))).into();
        let group = Group { calls, directories, contact: NodeId(2) };
        for id in ids {
            group.start_node(id).await;
        }
        let members = ids.map(|id| (id, member(id.0))).into();
        group.node(1).initialize(members).await.expect("is founded");
        group
    }

    /// Founded by node 1 alone.
    async fn start_alone() -> Group {
        let rtt = Duration::from_millis(2);
        let calls = Calls { from: NodeId(0), nodes: Arc::default(), strangers: Arc::default(), rtt };
        let mut group = Group { calls, directories: BTreeMap::new(), contact: NodeId(1) };
        group.add_node(1).await;
        group.node(1).initialize([(NodeId(1), member(1))].into()).await.expect("is founded");
        group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
        group
    }

    /// Starts one that has nothing.
    async fn add_node(&mut self, id: u64) {
        self.directories.insert(NodeId(id), tempfile::tempdir().expect("a directory"));
        self.start_node(NodeId(id)).await;
    }

    async fn start_node(&self, id: NodeId) {
        let options = MetaOptions {
            node: id,
            group: GroupId::META,
            place: self.directories[&id].path().to_owned().into(),
            timings: Timings::for_rtt(self.calls.rtt),
            contacts: vec![self.contact],
        };
        let calls = Calls { from: id, ..self.calls.clone() };
        let node = MetaRaft::start(options, Arc::new(calls)).await.expect("starts");
        self.calls.nodes.lock().expect("no test panics with the lock held").insert(id, node);
    }

    /// Whom `id` takes for the leader. Where it is busy an election comes in between, and nobody is for a moment.
    async fn led(&self, id: u64) -> NodeId {
        let begun = tokio::time::Instant::now();
        loop {
            if let Some(leader) = self.node(id).leader() {
                return leader;
            }
            assert!(begun.elapsed() < PATIENCE, "nobody leads");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn node(&self, id: u64) -> MetaRaft {
        self.calls.nodes.lock().expect("no test panics with the lock held")[&NodeId(id)].clone()
    }

    async fn stop_node(&self, id: NodeId) {
        let node = self.calls.nodes.lock().expect("no test panics with the lock held").remove(&id);
        let node = node.expect("it runs");
        node.shutdown().await.expect("stops");
        node.close().await;
    }

    async fn stop(self) {
        let ids: Vec<NodeId> =
            self.calls.nodes.lock().expect("no test panics with the lock held").keys().copied().collect();
        for id in ids {
            self.stop_node(id).await;
        }
    }
}

fn member(id: u64) -> Member {
    Member { name: format!("n{id}"), provider: "p".into(), address: "127.0.0.1:1".into() }
}

fn register(id: u64) -> Command {
    Command::RegisterNode {
        id: NodeId(id),
        name: format!("n{id}").parse().expect("a name"),
        provider: "p".parse().expect("a name"),
        address: "127.0.0.1:1".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_proposes_and_every_node_reads_the_newest() {
    let group = Group::start(Duration::from_millis(2)).await;
    for id in 1..=3 {
        let response = group.node(id).propose(register(id), PATIENCE).await.expect("is applied");
        assert_eq!(response, Response::Registered { node: NodeId(id) });
        assert!(group.node(id).state().node(NodeId(id)).is_some(), "visible to the proposer at once");
        for reader in 1..=3 {
            let state = group.node(reader).linearizable(PATIENCE).await.expect("reads");
            assert!(state.node(NodeId(id)).is_some(), "node {reader} reads what {id} proposed");
        }
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_across_300_ms_keeps_its_leader() {
    let group = Group::start(Duration::from_millis(300)).await;
    let (leader, term) = (group.node(1).leader(), group.node(1).term());
    for round in 0..10 {
        let follower = 1 + round % 3;
        group.node(follower).propose(register(follower), PATIENCE).await.expect("is applied");
    }
    for id in 1..=3 {
        assert_eq!((group.node(id).leader(), group.node(id).term()), (leader, term), "node {id} saw no election");
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_group_goes_on_without_its_leader_and_takes_it_back() {
    let group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    let leader = group.led(1).await;
    group.stop_node(leader).await;
    let other = if leader == NodeId(1) { 2 } else { 1 };
    group.node(other).propose(register(2), PATIENCE).await.expect("is applied without it");
    group.start_node(leader).await;
    let state = group.node(leader.0).linearizable(PATIENCE).await.expect("has caught up");
    assert!(state.node(NodeId(2)).is_some());
    group.stop().await;
}

/// One that was started again at once, on a busy machine, found its store locked by what was left of the core that had stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_nodes_keeps_everything() {
    let group = Group::start(Duration::ZERO).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    group.node(1).propose(Command::NodeStarted { node: NodeId(1) }, PATIENCE).await.expect("is applied");
    for id in [1, 2, 3].map(NodeId) {
        group.stop_node(id).await;
    }
    for id in [1, 2, 3].map(NodeId) {
        group.start_node(id).await;
    }
    let state = group.node(3).linearizable(PATIENCE).await.expect("reads");
    assert_eq!(state.node(NodeId(1)).expect("is known").incarnation, 1);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_timings_take_force_without_losing_anything() {
    let group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    let timings = Timings::for_rtt(Duration::from_millis(300));
    for id in 1..=3 {
        group.node(id).retime(timings).await.expect("goes on");
        assert_eq!(group.node(id).timings(), timings);
    }
    group.node(2).propose(register(2), PATIENCE).await.expect("is applied");
    assert!(group.node(2).state().node(NodeId(1)).is_some());
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_follows_and_with_a_fifth_both_vote() {
    let mut group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    for (id, voters) in [(4, 3), (5, 5)] {
        group.directories.insert(NodeId(id), tempfile::tempdir().expect("a directory"));
        group.start_node(NodeId(id)).await;
        let node = group.node(id);
        assert!(!node.is_member());
        node.enrol(member(id), PATIENCE).await.expect("is let in");
        node.enrol(member(id), PATIENCE).await.expect("is in already");
        let state = node.linearizable(PATIENCE).await.expect("reads");
        assert!(state.node(NodeId(1)).is_some(), "what was before it is known to it");
        assert!(state.node(NodeId(id)).is_some(), "it is registered");
        node.propose(register(id), PATIENCE).await.expect("a follower proposes too");
        assert!(node.is_member());
        assert_eq!(node.voters().len(), voters);
    }
    group.stop().await;
}

/// A node that had heard of one leader, and of none after that, asked that one for ever, though it named the next; and went on asking it when
/// it was down. Such a node never got to join again.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hears_of_no_change_of_leader_finds_the_next_one() {
    let mut group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    group.directories.insert(NodeId(4), tempfile::tempdir().expect("a directory"));
    group.start_node(NodeId(4)).await;
    let unheard = group.node(4);
    unheard.enrol(member(4), PATIENCE).await.expect("is let in");
    unheard.linearizable(PATIENCE).await.expect("follows");
    group.calls.nodes.lock().expect("no test panics with the lock held").remove(&NodeId(4));
    let before = group.led(1).await;
    group.node(before.0).hand_on().await;
    assert_eq!(unheard.leader(), Some(before), "as far as it has heard");
    let request = LeaderRequest::Propose(register(2));
    for is_up in [true, false] {
        if !is_up {
            group.stop_node(before).await;
        }
        let (reply, _) = unheard.at_leader(&request, Instant::now() + PATIENCE).await.expect("is carried out");
        assert!(matches!(reply, LeaderReply::Proposed(..)), "{is_up}");
        assert_eq!(unheard.leader(), Some(before), "it still has heard nothing");
    }
    unheard.shutdown().await.expect("stops");
    group.stop().await;
}

/// A node that was away while others joined did not know their addresses. While one of these led, every member named it, the node could not ask
/// it, and waited for ever; so did one that joined and knew of some members only.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_address_is_not_known_is_asked_by_whoever_named_it() {
    let mut group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    if group.node(1).leader() == Some(NodeId(2)) {
        group.node(2).hand_on().await;
    }
    // All that it knows is node 2.
    let strangers = [1, 3].map(|member| (NodeId(4), NodeId(member)));
    group.calls.strangers.lock().expect("no test panics with the lock held").extend(strangers);
    group.directories.insert(NodeId(4), tempfile::tempdir().expect("a directory"));
    group.start_node(NodeId(4)).await;
    let node = group.node(4);
    node.enrol(member(4), PATIENCE).await.expect("is let in");
    node.propose(register(4), PATIENCE).await.expect("is applied");
    assert!(node.linearizable(PATIENCE).await.expect("reads").node(NodeId(4)).is_some());
    assert_ne!(node.leader(), Some(NodeId(2)), "it has asked no leader itself");
    group.stop().await;
}

/// The leader held all changes of the members up while it waited for one to catch up: two nodes that it could not reach, each of which asked again and
/// again, kept everybody else out for as long as they ran. And it waited for such a node only where the log was long: else that got a vote.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_be_reached_gets_no_vote_and_keeps_nobody_out() {
    let mut group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    let leader = group.node(group.node(1).leader().expect("there is one").0);
    let unreachable = leader.lead(LeaderRequest::Enrol(5, member(5)));
    let others = async {
        let mut metrics = leader.core().metrics();
        while metrics.borrow_watched().membership_config.nodes().all(|(node, _)| *node != 5) {
            metrics.changed().await.expect("the leader runs");
        }
        group.directories.insert(NodeId(4), tempfile::tempdir().expect("a directory"));
        group.start_node(NodeId(4)).await;
        group.node(4).enrol(member(4), PATIENCE).await.expect("is let in");
        assert_eq!(group.node(4).voters().len(), 3, "five vote once five can");
    };
    tokio::select! {
        biased;
        outcome = unreachable => panic!("the other one comes first: {:?}", outcome.map(|_| "it is let in")),
        () = others => {}
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_not_let_in_under_anothers_name() {
    let mut group = Group::start(Duration::ZERO).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    group.directories.insert(NodeId(4), tempfile::tempdir().expect("a directory"));
    group.start_node(NodeId(4)).await;
    let error = group.node(4).enrol(member(1), PATIENCE).await.expect_err("the name is taken");
    assert_eq!(error.kind(), client_lib::ErrorKind::AlreadyExists);
    assert!(!group.node(4).is_member());
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_a_proposal_says_so() {
    let group = Group::start(Duration::ZERO).await;
    group.stop_node(NodeId(2)).await;
    group.stop_node(NodeId(3)).await;
    let error = group.node(1).propose(register(1), Duration::from_secs(2)).await.expect_err("no majority");
    assert_eq!(error.kind(), client_lib::ErrorKind::Unavailable);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_the_lead_on() {
    let group = Group::start(Duration::from_millis(2)).await;
    group.node(1).propose(register(1), PATIENCE).await.expect("is applied");
    let leader = group.led(1).await;
    group.node(leader.0).hand_on().await;
    // It is up: nobody stood for election by himself.
    let next = group.led(leader.0).await;
    assert_ne!(next, leader);
    group.node(leader.0).hand_on().await;
    assert_eq!(group.node(leader.0).leader(), Some(next), "it was not its to give");
    group.stop_node(leader).await;
    group.node(next.0).propose(register(3), PATIENCE).await.expect("is applied without it");
    group.stop().await;
}

/// The leader itself goes: others vote and lead first, and in the end nothing of it is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_is_retired_and_forgotten_when_another_votes_in_its_place() {
    let mut group = Group::start(Duration::from_millis(2)).await;
    for id in 1..=3 {
        group.node(id).propose(register(id), PATIENCE).await.expect("is applied");
    }
    group.directories.insert(NodeId(4), tempfile::tempdir().expect("a directory"));
    group.start_node(NodeId(4)).await;
    group.node(4).enrol(member(4), PATIENCE).await.expect("is let in");
    let leader = group.led(4).await;
    let others: BTreeSet<NodeId> = (1..=4).map(NodeId).filter(|node| *node != leader).collect();
    let asked = group.node(4);
    for _ in 0..2 {
        asked.retire(leader, others.clone(), PATIENCE).await.expect("it votes no more; the same again changes nothing");
    }
    assert_ne!(asked.linearizable(PATIENCE).await.map(|_| asked.leader()).expect("reads"), Some(leader));
    let remove = Command::RemoveNode { node: leader, was_lost: false, at_ms: 7 };
    assert_eq!(asked.propose(remove, PATIENCE).await.expect("is applied"), Response::NodeRemoved);
    let begun = tokio::time::Instant::now();
    let lists = |node: &MetaRaft, id: NodeId| {
        let membership = node.core().metrics().borrow_watched().membership_config.clone();
        membership.nodes().any(|(node, _)| *node == id.0)
    };
    while lists(&asked, leader) {
        for node in &others {
            // Whoever leads does it.
            let _ = group.node(node.0).forget_removed().await;
        }
        assert!(begun.elapsed() < PATIENCE, "it is still listed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(asked.voters().into_iter().collect::<BTreeSet<_>>(), others);
    group.stop_node(leader).await;
    asked.propose(register(4), PATIENCE).await.expect("there is a majority of the others");
    let back = asked.propose(register(leader.0), PATIENCE).await.expect("is applied");
    assert!(matches!(back, Response::Refused(Refusal::NodeRemoved(_))), "{back:?}");
    group.stop().await;
}

async fn three_registered() -> Group {
    let group = Group::start(Duration::from_millis(2)).await;
    for id in 1..=3 {
        group.node(id).propose(register(id), PATIENCE).await.expect("is applied");
    }
    group
}

fn ids<const COUNT: usize>(ids: [u64; COUNT]) -> BTreeSet<NodeId> {
    ids.map(NodeId).into()
}

fn remove(node: u64) -> Command {
    Command::RemoveNode { node: NodeId(node), was_lost: false, at_ms: 7 }
}

/// Two nodes were removed at once, each by a plan in which the other one voted: the one that had just been told to vote no more was given its vote
/// back by the second plan, and was removed by the first. The two voters that were left on paper were one that was there and one that nobody called
/// any more. No leader could change anything again.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_removals_at_once_one_is_told_to_try_again() {
    let group = three_registered().await;
    let asked = group.node(1);
    asked.retire(NodeId(3), ids([1, 2]), PATIENCE).await.expect("it votes no more");
    let (leader, term) = (asked.leader(), asked.term());
    let second = asked.retire(NodeId(2), ids([1, 3]), PATIENCE).await;
    // Only who led then knows of it; whoever leads since refuses the next step instead.
    if (asked.leader(), asked.term()) == (leader, term) {
        let error = second.as_ref().expect_err("node 3 would vote again");
        assert_eq!(
            (error.kind(), error.to_string().contains("try again")),
            (client_lib::ErrorKind::Busy, true),
            "{error}"
        );
    }
    let removed = asked.propose(remove(3), PATIENCE).await;
    match second {
        Err(_) => assert_eq!(removed.expect("it does not vote"), Response::NodeRemoved),
        Ok(()) => assert_eq!(removed.expect_err("it votes").kind(), client_lib::ErrorKind::Busy),
    }
    if group.node(1).state().node(NodeId(3)).is_none() {
        group.stop_node(NodeId(3)).await;
    }
    for id in [1, 2] {
        let _ = group.node(id).forget_removed().await;
    }
    group.node(1).propose(Command::NodeStarted { node: NodeId(1) }, PATIENCE).await.expect("is applied");
    group.stop().await;
}

/// The same, where the first removal was done and Raft had yet to forget the node: the change by which that one would vote was begun with nobody to
/// agree to it, and never ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_gets_no_vote_and_one_that_votes_is_not_removed() {
    let group = three_registered().await;
    let asked = group.node(1);
    let early = asked.propose(remove(3), PATIENCE).await.expect_err("it votes");
    assert_eq!(early.kind(), client_lib::ErrorKind::Busy, "{early}");
    asked.retire(NodeId(3), ids([1, 2]), PATIENCE).await.expect("it votes no more");
    assert_eq!(asked.propose(remove(3), PATIENCE).await.expect("is applied"), Response::NodeRemoved);
    let error = asked.retire(NodeId(2), ids([1, 3]), PATIENCE).await.expect_err("node 3 is gone");
    assert_eq!(error.kind(), client_lib::ErrorKind::Busy, "{error}");
    group.stop_node(NodeId(3)).await;
    group.node(1).propose(Command::NodeStarted { node: NodeId(1) }, PATIENCE).await.expect("is applied");
    group.stop().await;
}

/// A plan that knew nothing of voters that had come since took their votes away.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_leaves_a_present_voter_out_is_refused() {
    let group = three_registered().await;
    let error = group.node(1).retire(NodeId(3), ids([1]), PATIENCE).await.expect_err("node 2 votes");
    assert_eq!((error.kind(), error.to_string().contains("n2")), (client_lib::ErrorKind::Busy, true), "{error}");
    group.stop().await;
}

/// Who votes was chosen only when a node came or went, of those that answered at that moment. The second of three nodes was off when the third came,
/// and the leader new: three nodes had one voter, for good, and without that one everything stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_off_when_voters_were_chosen_gets_its_vote_when_it_is_back() {
    let mut group = Group::start_alone().await;
    group.add_node(2).await;
    group.node(2).enrol(member(2), PATIENCE).await.expect("is let in");
    group.stop_node(NodeId(2)).await;
    group.stop_node(NodeId(1)).await;
    group.start_node(NodeId(1)).await;
    group.add_node(3).await;
    group.node(3).enrol(member(3), PATIENCE).await.expect("is let in");
    group.node(1).give_missing_votes().await.expect("there is none to give");
    assert_eq!(group.node(1).voters(), [NodeId(1)], "two vote no better than one");
    group.start_node(NodeId(2)).await;
    all_vote(&group).await;
    group.stop_node(NodeId(1)).await;
    group.node(2).propose(register(2), PATIENCE).await.expect("is applied without it");
    group.stop().await;
}

/// Who was told to vote no more, and is about to be removed, is no vote that is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_being_removed_does_not_get_its_vote_back() {
    let group = three_registered().await;
    let asked = group.node(1);
    asked.retire(NodeId(3), ids([1, 2]), PATIENCE).await.expect("it votes no more");
    let leader = group.led(1).await;
    let leading = group.node(leader.0);
    let term = leading.term();
    for _ in 0..10 {
        leading.give_missing_votes().await.expect("there is none to give");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Another leader would know nothing of it, and would have the removal begin again.
    if leading.term() == term {
        assert_eq!(leading.voters(), [NodeId(1), NodeId(2)]);
    }
    group.stop().await;
}

/// A leader was lost between the two entries by which another node votes in its place. Nobody finished the change: the node that had gone was asked to
/// agree to everything for ever, and a node that is to vote no more was not removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_voters_that_its_leader_left_in_the_middle_is_finished_by_the_next() {
    let mut group = three_registered().await;
    group.add_node(4).await;
    group.node(4).enrol(member(4), PATIENCE).await.expect("is let in");
    let is_joint = |metrics: &Metrics| metrics.membership_config.get_joint_config().len() > 1;
    let leader = loop {
        let leader = group.led(4).await;
        let core = group.node(leader.0).core();
        let others: BTreeSet<u64> = (1..=4).filter(|id| *id != leader.0).collect();
        let seen = core.wait(Some(PATIENCE));
        // Where it is over before it is seen in its middle there is nothing to finish; where another node leads by now it is tried there.
        let is_begun = tokio::select! {
            biased;
            seen = seen.metrics(is_joint, "a change is in its middle") => seen.is_ok(),
            changed = core.change_membership(others, true) => changed.is_ok(),
        };
        if is_begun {
            break leader;
        }
    };
    // The entry is in the log of the others, who decide without it.
    let others: Vec<u64> = (1..=4).filter(|id| NodeId(*id) != leader).collect();
    let index = group.node(leader.0).core().metrics().borrow_watched().last_log_index;
    let has_it = |metrics: &Metrics| metrics.last_log_index >= index;
    for id in &others {
        group.node(*id).core().wait(Some(PATIENCE)).metrics(has_it, "it has the entry").await.expect("is sent it");
    }
    group.stop_node(leader).await;
    let begun = Instant::now();
    let is_over = |id: &u64| !is_joint(&group.node(*id).core().metrics().borrow_watched());
    while !others.iter().all(is_over) {
        assert!(begun.elapsed() < PATIENCE, "nobody finishes the change");
        for id in &others {
            // Whoever leads does it.
            let _ = group.node(*id).give_missing_votes().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for id in &others {
        assert_eq!(group.node(*id).voters(), others.iter().copied().map(NodeId).collect::<Vec<_>>());
    }
    group.stop().await;
}

/// Looks until three nodes vote, as every node does.
async fn all_vote(group: &Group) {
    let begun = Instant::now();
    while group.node(1).voters().len() < 3 {
        assert!(begun.elapsed() < PATIENCE, "a vote is missing");
        for id in 1..=3 {
            // Whoever leads does it.
            let _ = group.node(id).give_missing_votes().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A node that had fallen behind the log was sent all of the metadata in one call: more than 32 MiB of it were sent to nobody, and such a node never came
/// back. In tests it is some hundred bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_too_large_for_one_call_reaches_a_new_node() {
    let mut group = Group::start_alone().await;
    for number in 0..40 {
        let create = Command::CreateVolume {
            name: format!("volume-{number}").parse().expect("a name"),
            size: client_lib::VolumeSize::try_from(1_u64 << 20).expect("a size"),
            owner: NodeId(1),
            replicas: BTreeSet::new(),
            nonce: number,
        };
        let created = group.node(1).propose(create, PATIENCE).await.expect("is applied");
        assert!(matches!(created, Response::VolumeCreated { .. }), "{created:?}");
    }
    let core = group.node(1).core();
    core.trigger().snapshot().await.expect("runs");
    let index = core.metrics().borrow_watched().last_applied.map_or(0, |last| last.index());
    let has_snapshot = |metrics: &Metrics| metrics.snapshot.is_some_and(|snapshot| snapshot.index() >= index);
    core.wait(Some(PATIENCE)).metrics(has_snapshot, "a snapshot is there").await.expect("is taken");
    core.trigger().purge_log(index).await.expect("runs");
    let is_purged = |metrics: &Metrics| metrics.purged.is_some_and(|purged| purged.index() >= index);
    core.wait(Some(PATIENCE)).metrics(is_purged, "the log is purged").await.expect("is purged");
    group.add_node(2).await;
    group.node(2).enrol(member(2), PATIENCE).await.expect("is let in");
    let snapshot = group.node(2).core().metrics().borrow_watched().snapshot;
    assert!(snapshot.is_some_and(|snapshot| snapshot.index() >= index), "{snapshot:?}");
    let (here, there) = (group.node(1).state(), group.node(2).linearizable(PATIENCE).await.expect("is read"));
    assert!(here.volumes().eq(there.volumes()) && there.volumes().count() == 40);
    group.stop().await;
}

/// As in the test of the stores, with cores: a start that was counted twice at one node made all its states differ from then on.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_timings_change_again_and_again_have_the_same_state() {
    let group = three_registered().await;
    let proposals = async {
        for _ in 0..200 {
            group.node(1).propose(Command::NodeStarted { node: NodeId(1) }, PATIENCE).await.expect("is applied");
        }
    };
    let changes = async {
        for round in 0..20 {
            let follower =
                [2, 3].map(|id| group.node(id)).into_iter().find(|node| node.leader() != Some(node.inner.node));
            follower
                .expect("one leads at most")
                .retime(Timings::for_rtt(Duration::from_millis(2 + round % 2)))
                .await
                .expect("goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::join!(proposals, changes);
    let state = group.node(1).linearizable(PATIENCE).await.expect("reads");
    for id in 2..=3 {
        assert_eq!(group.node(id).linearizable(PATIENCE).await.expect("reads"), state, "node {id}");
    }
    group.stop().await;
}
