//! A follower whose answers the test gives: order, repetition, and the end.

use std::sync::{Arc, Mutex};

use client_lib::transport::TransportError;
use client_lib::{GroupId, NodeId};
use futures_util::stream;
use openraft::raft::StreamAppendError;
use tokio::sync::oneshot;

use super::*;
use crate::network::{Network, RaftCalls, decode};
use crate::store::types::{Entry, Vote};

const LONG: Duration = Duration::from_secs(60);

type Call = (AppendEntriesRequest<MetaTypes>, oneshot::Sender<Reply>);

/// A follower whose answers the test gives.
#[derive(Default)]
struct Follower(Mutex<Vec<Call>>);

impl RaftCalls for Follower {
    fn call(&self, to: NodeId, request: Bytes, _: Duration) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        let Ok(Request::Append(request)) = decode(GroupId::META, &request) else { panic!("only appends are made") };
        let (sender, answer) = oneshot::channel();
        self.0.lock().expect("no test panics with it").push((request, sender));
        Box::pin(async move {
            match answer.await {
                Ok(reply) => Ok(encode(GroupId::META, &reply)),
                Err(_) => Err(TransportError::OutcomeUnknown { node: to, reason: "the link broke".into() }),
            }
        })
    }
}

impl Follower {
    /// The oldest call that was not answered yet, if there is one.
    fn next(&self) -> Option<Call> {
        let mut calls = self.0.lock().expect("no test panics with it");
        if calls.is_empty() { None } else { Some(calls.remove(0)) }
    }
}

fn position(index: u64) -> LogId {
    let leader = openraft::impls::leader_id_adv::LeaderId { term: 1, node_id: 1 };
    LogId { leader_id: leader, index }
}

/// Entry `index` alone.
fn entry(index: u64) -> AppendEntriesRequest<MetaTypes> {
    let entry: Entry = openraft::entry::RaftEntry::new_blank(position(index));
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: Some(position(index - 1)),
        entries: vec![entry],
        leader_commit: None,
    }
}

/// What openraft is told when entries 1 to `count` are there to be sent.
fn appended(follower: &Arc<Follower>, count: u64) -> impl Stream<Item = Appended> + Unpin {
    let network = Network::new(follower.clone(), GroupId::META);
    let client = Client { network, target: NodeId(2) };
    Box::pin(append_all(client, stream::iter((1..=count).map(entry)), LONG))
}

async fn is_idle(appended: &mut (impl Stream<Item = Appended> + Unpin)) -> bool {
    tokio::select! {
        biased;
        _ = appended.next() => false,
        () = tokio::task::yield_now() => true,
    }
}

fn answer(call: Call, reply: AppendEntriesResponse<MetaTypes>) {
    assert!(call.1.send(Reply::Append(reply)).is_ok(), "it is waited for");
}

#[tokio::test]
async fn an_entry_does_not_wait_for_the_answer_before_it() {
    let follower = Arc::<Follower>::default();
    let mut appended = appended(&follower, 2);
    assert!(is_idle(&mut appended).await);
    let (first, second) = (follower.next().expect("sent"), follower.next().expect("sent, too"));
    answer(second, AppendEntriesResponse::Success);
    assert!(is_idle(&mut appended).await, "the first is told of first");
    answer(first, AppendEntriesResponse::Success);
    for index in 1..=2 {
        assert_eq!(appended.next().await.expect("told").expect("sent").expect("taken"), Some(position(index)));
    }
    assert!(appended.next().await.is_none(), "that was all");
}

/// openraft takes a conflict at what it has just been told to be there for the loss of a follower's log.
#[tokio::test]
async fn a_call_that_overtook_another_is_made_again() {
    let follower = Arc::<Follower>::default();
    let mut appended = appended(&follower, 2);
    assert!(is_idle(&mut appended).await);
    let (first, second) = (follower.next().expect("sent"), follower.next().expect("sent, too"));
    answer(second, AppendEntriesResponse::Conflict);
    answer(first, AppendEntriesResponse::Success);
    assert_eq!(appended.next().await.expect("told").expect("sent").expect("taken"), Some(position(1)));
    assert!(is_idle(&mut appended).await);
    let again = follower.next().expect("made again");
    assert_eq!(again.0.prev_log_id, Some(position(1)));
    answer(again, AppendEntriesResponse::Success);
}

#[tokio::test]
async fn a_conflict_of_its_own_ends_it() {
    let follower = Arc::<Follower>::default();
    let mut appended = appended(&follower, 2);
    assert!(is_idle(&mut appended).await);
    answer(follower.next().expect("sent"), AppendEntriesResponse::Conflict);
    let told = appended.next().await.expect("told").expect("answered");
    assert_eq!(told, Err(StreamAppendError::Conflict(position(0))));
    assert!(appended.next().await.is_none());
}

#[tokio::test]
async fn a_broken_link_ends_it() {
    let follower = Arc::<Follower>::default();
    let mut appended = appended(&follower, 2);
    assert!(is_idle(&mut appended).await);
    drop(follower.next());
    assert!(appended.next().await.expect("told").is_err());
    assert!(appended.next().await.is_none());
}

#[tokio::test]
async fn only_so_many_are_under_way() {
    let follower = Arc::<Follower>::default();
    let mut appended = appended(&follower, 20);
    assert!(is_idle(&mut appended).await);
    assert_eq!(follower.0.lock().expect("no test panics with it").len(), UNDER_WAY_MAX);
}
