//! Raft's calls, and the metadata's own, over a small byte-call trait.
//!
//! One request type carries both: openraft's RPCs, proposals passed on to the leader, and read positions asked of it.
//! Encoded with postcard behind a version byte and the group id. Every call keeps the deadline openraft gives it.

pub(crate) mod parts;
mod pipeline;
mod reach;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::transport::{BoxFuture, TransportError};
use client_lib::{Error, ErrorKind, GroupId, NodeId};
use futures_util::stream::Stream;
use openraft::base::BoxStream;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::parts::Part;
use self::reach::Reach;
use crate::command::{Command, Response};
use crate::store::types::{LogId, Member, MetaTypes, Snapshot, StoredMembership, Vote};

/// The version of requests and replies.
const WIRE_VERSION: u8 = 1;

/// How an answer begins that a request cannot be read: the same words in every program, since others go by them.
pub(crate) const UNREADABLE: &str = "a message of consensus cannot be read";

/// Longest time for sending a snapshot, or a part of one ([`parts`]).
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(120);

/// How consensus reaches other nodes. Implemented by the node over its transport.
pub trait RaftCalls: Send + Sync + 'static {
    /// Sends `request` to consensus at node `to` and returns its answer.
    ///
    /// # Errors
    /// As the transport says.
    ///
    /// # Cancel safety
    /// The request may have been carried out.
    fn call(&self, to: NodeId, request: Bytes, deadline: Duration) -> BoxFuture<'_, Result<Bytes, TransportError>>;
}

/// What consensus asks of another node.
#[derive(Serialize, Deserialize)]
pub(crate) enum Request {
    Append(AppendEntriesRequest<MetaTypes>),
    Vote(VoteRequest<MetaTypes>),
    PreVote(VoteRequest<MetaTypes>),
    Snapshot {
        vote: Vote,
        last_log_id: Option<LogId>,
        membership: StoredMembership,
        data: Vec<u8>,
    },
    TransferLeader(TransferLeaderRequest<MetaTypes>),
    /// For the leader.
    Lead(LeaderRequest),
    /// For the leader, of a node that does not know where that is: whoever is asked passes it on.
    PassOn(LeaderRequest),
    /// Of a snapshot that is too large for one call. An older program cannot read it, and then has to wait for the log, or for its upgrade.
    SnapshotPart(Part),
}

/// What only the leader can do.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum LeaderRequest {
    /// Apply this.
    Propose(Command),
    /// Up to where must be applied for a linearizable read?
    ReadIndex,
    /// Make this node follow, and vote if it should.
    Enrol(u64, Member),
    /// Have just these vote, and another than this node lead.
    Retire(u64, BTreeSet<u64>),
    /// Apply the one if what it sets is still as the other one would set it. An older program cannot read this, and says so.
    Replace { command: Command, read: Command },
}

impl LeaderRequest {
    /// Whether it takes several entries, and waits for others.
    pub(crate) fn changes_members(&self) -> bool {
        matches!(self, LeaderRequest::Enrol(..) | LeaderRequest::Retire(..))
    }
}

/// The answers.
#[derive(Serialize, Deserialize)]
pub(crate) enum Reply {
    Append(AppendEntriesResponse<MetaTypes>),
    Vote(VoteResponse<MetaTypes>),
    Snapshot(SnapshotResponse<MetaTypes>),
    TransferLeader(TransferLeaderResponse<MetaTypes>),
    /// The leader's.
    Lead(LeaderReply),
    /// Not the leader; perhaps this one is.
    NotLeader(Option<u64>),
    /// Consensus does not run here, or failed.
    Failed(String),
    /// The leader does not do that, for this reason, and asking for the same again is of no use. An older program cannot read it, and asks again until
    /// its deadline, as after a failure.
    Refused(String),
    /// A part of a snapshot has arrived, and others are to follow.
    PartTaken,
}

/// The answers to a [`LeaderRequest`].
#[derive(Serialize, Deserialize)]
pub(crate) enum LeaderReply {
    /// Applied at this index, with this response.
    Proposed(u64, Response),
    /// Applied up to here is new enough.
    ReadIndex(Option<u64>),
    /// The node follows, unless its registration was refused.
    Enrolled(Response),
    /// It does not vote.
    Retired,
}

/// A message with version and group.
pub(crate) fn encode<T: Serialize>(group: GroupId, message: &T) -> Bytes {
    let mut bytes = vec![WIRE_VERSION];
    bytes.extend(group.0.to_le_bytes());
    bytes.extend(postcard::to_stdvec(message).expect("messages are plain data"));
    bytes.into()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// `Corrupt` for another version or group, or bytes that are no message.
pub(crate) fn decode<T: DeserializeOwned>(group: GroupId, bytes: &[u8]) -> Result<T, Error> {
    let corrupt = |what: String| Error::new(ErrorKind::Corrupt, format!("{UNREADABLE}: {what}"));
    let (version, rest) = bytes.split_first().ok_or_else(|| corrupt("it is empty".into()))?;
    if *version != WIRE_VERSION {
        return Err(corrupt(format!("it has version {version}, this program speaks {WIRE_VERSION}")));
    }
    let (found, body) = rest.split_first_chunk::<8>().ok_or_else(|| corrupt("it is too short".into()))?;
    let found = GroupId(u64::from_le_bytes(*found));
    if found != group {
        return Err(corrupt(format!("it is for group {found}, this is group {group}")));
    }
    postcard::from_bytes(body).map_err(|error| corrupt(error.to_string()))
}

/// Sends a request and reads the answer.
pub(crate) async fn ask(
    calls: &dyn RaftCalls,
    group: GroupId,
    to: NodeId,
    request: &Request,
    deadline: Duration,
) -> Result<Reply, TransportError> {
    ask_encoded(calls, group, to, encode(group, request), deadline).await
}

/// The same, for a request that was encoded before.
async fn ask_encoded(
    calls: &dyn RaftCalls,
    group: GroupId,
    to: NodeId,
    request: Bytes,
    deadline: Duration,
) -> Result<Reply, TransportError> {
    let answer = calls.call(to, request, deadline).await?;
    decode(group, &answer).map_err(|error| TransportError::OutcomeUnknown { node: to, reason: error.to_string() })
}

/// Makes openraft's clients.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) calls: Arc<dyn RaftCalls>,
    pub(crate) group: GroupId,
    reach: Arc<Reach>,
}

impl Network {
    pub(crate) fn new(calls: Arc<dyn RaftCalls>, group: GroupId) -> Network {
        Network { calls, group, reach: Arc::default() }
    }
}

impl RaftNetworkFactory<MetaTypes> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, _node: &Member) -> Client {
        Client { network: self.clone(), target: NodeId(target) }
    }
}

/// openraft's client for one node.
#[derive(Clone)]
pub(crate) struct Client {
    network: Network,
    target: NodeId,
}

impl Client {
    async fn ask(&self, request: Request, deadline: Duration) -> Result<Reply, RPCError<MetaTypes>> {
        self.ask_encoded(encode(self.network.group, &request), deadline).await
    }

    /// Asks, and has it told when the other member begins or ends to be out of reach. openraft drops what takes too long, so that it is looked at
    /// when the next request is made.
    async fn ask_encoded(&self, request: Bytes, deadline: Duration) -> Result<Reply, RPCError<MetaTypes>> {
        let reach = &self.network.reach;
        reach.asked(self.target);
        let answer = self.attempt(request, deadline).await;
        match &answer {
            Ok(_) => reach.answered(self.target),
            Err(error) => reach.failed(self.target, error),
        }
        answer
    }

    /// Sends a snapshot in as many calls as it takes. The answer to the last one says what has become of it.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<MetaTypes>, RPCError<MetaTypes>> {
        for request in parts::requests(vote, snapshot) {
            match self.ask(request, SNAPSHOT_DEADLINE).await? {
                Reply::PartTaken => {}
                Reply::Snapshot(reply) => return Ok(reply),
                _ => return Err(out_of_turn()),
            }
        }
        Err(out_of_turn())
    }

    async fn attempt(&self, request: Bytes, deadline: Duration) -> Result<Reply, RPCError<MetaTypes>> {
        let asked = ask_encoded(&*self.network.calls, self.network.group, self.target, request, deadline);
        // The transport keeps the deadline as well; openraft's core must never hang on a call (its issue 1810).
        match tokio::time::timeout(deadline, asked).await {
            Ok(Ok(Reply::Failed(reason))) => Err(network_error(reason)),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(
                error @ (TransportError::Unreachable { .. }
                | TransportError::Refused { .. }
                | TransportError::Revoked { .. }
                | TransportError::Ended { .. }
                | TransportError::UnknownPeer(_)),
            )) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            Ok(Err(error)) => Err(RPCError::Network(NetworkError::new(&error))),
            Err(_) => Err(network_error(format!("node {} did not answer within {deadline:?}", self.target))),
        }
    }
}

fn network_error(reason: String) -> RPCError<MetaTypes> {
    RPCError::Network(NetworkError::new(&std::io::Error::other(reason)))
}

fn out_of_turn() -> RPCError<MetaTypes> {
    network_error("the peer answered out of turn".to_owned())
}

impl RaftNetworkV2<MetaTypes> for Client {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<MetaTypes>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<MetaTypes>, RPCError<MetaTypes>> {
        match self.ask(Request::Append(rpc), option.hard_ttl()).await? {
            Reply::Append(reply) => Ok(reply),
            _ => Err(out_of_turn()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, pipeline::Appended>, RPCError<MetaTypes>>>
    where
        S: Stream<Item = AppendEntriesRequest<MetaTypes>> + Send + Unpin + 'static,
    {
        let answers = pipeline::append_all(self.clone(), input, option.hard_ttl());
        Box::pin(async { Ok(Box::pin(answers) as BoxStream<'s, _>) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<MetaTypes>,
        option: RPCOption,
    ) -> Result<VoteResponse<MetaTypes>, RPCError<MetaTypes>> {
        match self.ask(Request::Vote(rpc), option.hard_ttl()).await? {
            Reply::Vote(reply) => Ok(reply),
            _ => Err(out_of_turn()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<MetaTypes>,
        option: RPCOption,
    ) -> Result<VoteResponse<MetaTypes>, RPCError<MetaTypes>> {
        match self.ask(Request::PreVote(rpc), option.hard_ttl()).await? {
            Reply::Vote(reply) => Ok(reply),
            _ => Err(out_of_turn()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<MetaTypes>, StreamingError<MetaTypes>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = self.send_snapshot(vote, snapshot) => match answer {
                Ok(reply) => Ok(reply),
                Err(RPCError::Unreachable(error)) => Err(StreamingError::Unreachable(error)),
                Err(error) => Err(StreamingError::from(NetworkError::new(&error))),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<MetaTypes>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<MetaTypes>, RPCError<MetaTypes>> {
        match self.ask(Request::TransferLeader(request), option.hard_ttl()).await? {
            Reply::TransferLeader(reply) => Ok(reply),
            _ => Err(out_of_turn()),
        }
    }
}
