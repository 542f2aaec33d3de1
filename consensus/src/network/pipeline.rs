//! Appends to one follower, several under way at a time.
//!
//! One call after the other, as openraft does by itself, has an entry wait for the answer to the call before it: up to a round
//! trip, and a handover waits for an entry. Calls may overtake each other, and a follower that is sent an entry before the one
//! it goes behind refuses it; such a call is made again when those before it are answered, so openraft never hears of that.

use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::BoxFuture;
use futures_util::stream::{FuturesOrdered, Stream, StreamExt, unfold};
use openraft::errors::RPCError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};

use super::{Client, Reply, Request, encode, out_of_turn};
use crate::store::types::{LogId, MetaTypes};

/// How many calls may be under way.
const UNDER_WAY_MAX: usize = 8;

type Answer = Result<AppendEntriesResponse<MetaTypes>, RPCError<MetaTypes>>;

/// What openraft is told of one request.
pub(super) type Appended = Result<StreamAppendResult<MetaTypes>, RPCError<MetaTypes>>;

/// A request, as it is sent.
#[derive(Clone)]
struct Append {
    bytes: Bytes,
    /// What its entries go behind.
    prev: Option<LogId>,
    last: Option<LogId>,
    /// Whether another one was under way when it was sent, which it may have overtaken.
    is_behind: bool,
}

struct Pipeline<S> {
    client: Client,
    deadline: Duration,
    input: S,
    has_ended: bool,
    under_way: FuturesOrdered<BoxFuture<'static, (Append, Answer)>>,
}

/// Sends what `input` yields and tells what came of it, in that order, until `input` ends or one is not taken whole.
///
/// # Cancel safety
/// Dropped, it leaves the outcome of what is under way unknown.
pub(super) fn append_all<S>(client: Client, input: S, deadline: Duration) -> impl Stream<Item = Appended> + Send
where
    S: Stream<Item = AppendEntriesRequest<MetaTypes>> + Send + Unpin + 'static,
{
    let pipeline = Pipeline { client, deadline, input, has_ended: false, under_way: FuturesOrdered::new() };
    unfold(Some(pipeline), |pipeline| async { pipeline?.next().await })
}

impl<S> Pipeline<S>
where
    S: Stream<Item = AppendEntriesRequest<MetaTypes>> + Send + Unpin,
{
    async fn next(mut self) -> Option<(Appended, Option<Pipeline<S>>)> {
        loop {
            let is_full = self.under_way.len() >= UNDER_WAY_MAX;
            tokio::select! {
                biased;
                Some((append, answer)) = self.under_way.next() => return Some(self.answered(append, answer).await),
                request = self.input.next(), if !self.has_ended && !is_full => match request {
                    Some(request) => self.send(request),
                    None => self.has_ended = true,
                },
                else => return None,
            }
        }
    }

    fn send(&mut self, request: AppendEntriesRequest<MetaTypes>) {
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        let bytes = encode(self.client.network.group, &Request::Append(request));
        let append = Append { bytes, prev, last, is_behind: !self.under_way.is_empty() };
        let (client, deadline) = (self.client.clone(), self.deadline);
        self.under_way.push_back(Box::pin(async move {
            let answer = client.append(append.bytes.clone(), deadline).await;
            (append, answer)
        }));
    }

    /// The oldest call under way was answered.
    async fn answered(self, append: Append, mut answer: Answer) -> (Appended, Option<Pipeline<S>>) {
        if append.is_behind && matches!(answer, Ok(AppendEntriesResponse::Conflict)) {
            answer = self.client.append(append.bytes, self.deadline).await;
        }
        match answer {
            Ok(answer) => {
                let is_whole = match &answer {
                    AppendEntriesResponse::Success => true,
                    AppendEntriesResponse::PartialSuccess(taken) => *taken == append.last,
                    AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => false,
                };
                (Ok(answer.into_stream_result(append.prev, append.last)), is_whole.then_some(self))
            }
            Err(error) => (Err(error), None),
        }
    }
}

impl Client {
    async fn append(&self, request: Bytes, deadline: Duration) -> Answer {
        match self.ask_encoded(request, deadline).await? {
            Reply::Append(reply) => Ok(reply),
            _ => Err(out_of_turn()),
        }
    }
}

#[cfg(test)]
mod tests;
