//! The nodes of the cluster, and getting a request to one that answers.
//!
//! Owns who the members are, whom to try next and how long to wait in between. Whether a request may be repeated is for its
//! sender to know.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::pki::date;
use crate::transport::{Class, Transport, TransportError};
use crate::types::NodeId;
use crate::wire::client::{ClientMessage, ClientReply, ClientRequest, MemberInfo};
use crate::wire::frame::Frame;

/// How long a node may take to answer before another attempt is made. Longer than a node itself tries, and long enough for the
/// largest request over a slow link.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Pause before the second attempt; doubled before each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// The longest pause: a node that is back is noticed within it.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Why a call brought no answer.
#[derive(Debug)]
pub(super) struct CallFailure {
    pub(super) error: Error,
    /// Whether the request may have been carried out.
    pub(super) is_unknown: bool,
    /// Whether the node and this end do not accept each other: nothing that passes.
    pub(super) is_refusal: bool,
    /// Whether the node says that this end's certificate was taken back.
    pub(super) is_revoked: bool,
}

impl CallFailure {
    /// Whether this end was closed: nothing is asked of any node any more.
    pub(super) fn is_own_end(&self) -> bool {
        self.error.kind() == ErrorKind::Closed
    }
}

/// The members, as far as they are known.
pub(super) struct Nodes {
    transport: Arc<dyn Transport>,
    members: Mutex<Vec<MemberInfo>>,
    /// Those whose last word it was that this end's certificate was taken back.
    revoked_by: Mutex<BTreeSet<NodeId>>,
}

impl Nodes {
    /// Reaches `members` over `transport`, which knows their addresses already.
    pub(super) fn new(transport: Arc<dyn Transport>, members: Vec<MemberInfo>) -> Nodes {
        Nodes { transport, members: Mutex::new(members), revoked_by: Mutex::default() }
    }

    fn members(&self) -> MutexGuard<'_, Vec<MemberInfo>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What people call `node`.
    pub(super) fn name(&self, node: NodeId) -> String {
        let members = self.members();
        let found = members.iter().find(|member| member.node == node);
        found.map_or_else(|| node.to_string(), |member| member.name.clone())
    }

    /// Whom to ask in this attempt: `first` and then the others, the nearest first as far as that is known.
    pub(super) fn choose(&self, first: Option<NodeId>, attempt: u32) -> Result<NodeId, Error> {
        // The usual case, in every request.
        if let (Some(first), 0) = (first, attempt) {
            return Ok(first);
        }
        let mut others: Vec<NodeId> = self.members().iter().map(|member| member.node).collect();
        others.retain(|node| Some(*node) != first);
        others.sort_by_key(|node| self.transport.rtt(*node).unwrap_or(Duration::MAX));
        let all: Vec<NodeId> = first.into_iter().chain(others).collect();
        let none = || Error::new(ErrorKind::InvalidRequest, "the credentials name no node of the cluster");
        all.get(attempt as usize % all.len().max(1)).copied().ok_or_else(none)
    }

    /// Whether `attempt` begins another round through all members.
    pub(super) fn begins_round(&self, attempt: u32) -> bool {
        (attempt as usize).is_multiple_of(self.members().len().max(1))
    }

    /// Asks `node`, until `end` and not for longer than [`CALL_DEADLINE`].
    pub(super) async fn call(
        &self,
        node: NodeId,
        request: ClientRequest,
        payload: Bytes,
        end: Option<Instant>,
    ) -> Result<(ClientReply, Bytes), CallFailure> {
        let request = ClientMessage { head: request, payload }.encode();
        let failure = |error, is_unknown| CallFailure { error, is_unknown, is_refusal: false, is_revoked: false };
        let request = request.map_err(|error| failure(error, false))?;
        let left = end.map_or(CALL_DEADLINE, |end| end.saturating_duration_since(Instant::now()).min(CALL_DEADLINE));
        let reply = self.transport.call(node, Class::Pull, request, left).await;
        let is_taken_back = self.note_word(node, &reply);
        let reply = reply.map_err(|error| {
            let is_revoked = matches!(error, TransportError::Revoked { .. });
            let is_refusal =
                is_revoked || matches!(error, TransportError::Refused { .. } | TransportError::Ended { .. });
            let is_unknown = matches!(error, TransportError::OutcomeUnknown { .. } | TransportError::Closed);
            let kind = if matches!(error, TransportError::Closed) { ErrorKind::Closed } else { ErrorKind::Unavailable };
            let name = self.name(node);
            let text = match error {
                TransportError::Unreachable { reason, .. } => format!("node {name} cannot be reached: {reason}"),
                TransportError::OutcomeUnknown { reason, .. } => format!("node {name} did not answer: {reason}"),
                TransportError::Refused { reason, .. } => {
                    format!("node {name} is of another cluster, or refuses: {reason}")
                }
                TransportError::Ended { until_ms, .. } => format!(
                    "these credentials ended on {}, says node {name}, too: put new ones in their place, which are taken up at once",
                    date(until_ms)
                ),
                TransportError::Revoked { .. } if is_taken_back => return revoked(is_unknown),
                TransportError::Revoked { .. } => format!("node {name} says that these credentials were revoked"),
                other => other.to_string(),
            };
            CallFailure { error: Error::new(kind, text), is_unknown, is_refusal, is_revoked }
        })?;
        let unreadable = |error: Error| {
            let text = format!("node {} does not serve clients: {error}", self.name(node));
            failure(Error::new(ErrorKind::Unavailable, text), true)
        };
        let corrupt = |error| Error::new(ErrorKind::Corrupt, "the answer is no frame").caused_by(error);
        let frame = Frame::decode(&reply).map_err(|error| unreadable(corrupt(error)))?;
        let ClientMessage { head, payload } = ClientMessage::decode(frame).map_err(unreadable)?;
        Ok((head, payload))
    }

    /// Notes whether `node` says that this end's certificate was taken back; returns whether most members do so by now. A single one that
    /// has yet to hear of a new certificate may be mistaken.
    fn note_word(&self, node: NodeId, reply: &Result<Bytes, TransportError>) -> bool {
        let mut revoked_by = self.revoked_by.lock().unwrap_or_else(PoisonError::into_inner);
        match reply {
            Err(TransportError::Revoked { .. }) => revoked_by.insert(node),
            Ok(_) => revoked_by.remove(&node),
            Err(_) => return false,
        };
        let members = self.members();
        2 * members.iter().filter(|member| revoked_by.contains(&member.node)).count() > members.len()
    }

    /// Asks what any node can answer, and what may be asked again: one after another until one answers, or all refuse: for who
    /// begins, with credentials that may be the wrong ones.
    ///
    /// # Errors
    /// What the answer says; `Unavailable` when none came in time; `InvalidRequest` when no node accepts this end, or is the one
    /// that was to be called.
    pub(super) async fn ask_first(
        &self,
        request: ClientRequest,
        give_up: Option<Duration>,
    ) -> Result<(ClientReply, Bytes), Error> {
        self.ask(request, give_up, true).await
    }

    /// The same, but waits also while all refuse: for who was served before, and is again when whoever mixed up addresses has
    /// noticed.
    ///
    /// # Errors
    /// What the answer says; `Unavailable` when none came in time.
    pub(super) async fn ask_any(
        &self,
        request: ClientRequest,
        give_up: Option<Duration>,
    ) -> Result<(ClientReply, Bytes), Error> {
        self.ask(request, give_up, false).await
    }

    async fn ask(
        &self,
        request: ClientRequest,
        give_up: Option<Duration>,
        is_first: bool,
    ) -> Result<(ClientReply, Bytes), Error> {
        let mut tries = Tries::new(give_up);
        let mut is_told = false;
        // Those whose last word it was.
        let mut refuse = BTreeSet::new();
        loop {
            let node = self.choose(None, tries.made())?;
            let error = match self.call(node, request.clone(), Bytes::new(), tries.end()).await {
                Ok((ClientReply::Failed(error), _)) if is_passing(error.kind()) => error,
                Ok((ClientReply::Failed(error), _)) => return Err(error),
                Ok(answer) => return Ok(answer),
                Err(failure) if !is_passing(failure.error.kind()) || failure.is_own_end() => {
                    return Err(failure.error);
                }
                Err(failure) => {
                    if failure.is_refusal {
                        refuse.insert(node)
                    } else {
                        refuse.remove(&node)
                    };
                    if is_first && self.all_are(&refuse) {
                        let error = unaccepted(failure.error);
                        tracing::error!(?request, %error);
                        return Err(error);
                    }
                    failure.error
                }
            };
            if self.begins_round(tries.made() + 1) && !is_told {
                is_told = true;
                tracing::warn!(?request, %error, "no node answers; it is tried again");
            }
            tries.failed(error).await?;
        }
    }

    /// Whether `nodes` has every member.
    fn all_are(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let members = self.members();
        !members.is_empty() && members.iter().all(|member| nodes.contains(&member.node))
    }

    /// Asks who the members are, and where. That nobody answers changes nothing.
    pub(super) async fn refresh(&self) {
        let known = self.members().len() as u32;
        for attempt in 0..known {
            let Ok(node) = self.choose(None, attempt) else { return };
            if let Ok((ClientReply::Members(members), _)) =
                self.call(node, ClientRequest::Members, Bytes::new(), None).await
            {
                return self.learn(members);
            }
        }
    }

    fn learn(&self, members: Vec<MemberInfo>) {
        if members.is_empty() {
            return;
        }
        for member in &members {
            if let Ok(address) = member.address.parse::<SocketAddr>() {
                self.transport.set_peer(member.node, address);
            }
        }
        *self.members() = members;
    }
}

/// Most nodes say that the certificate was taken back.
fn revoked(is_unknown: bool) -> CallFailure {
    let text = "these credentials were revoked: most nodes of the cluster say so; `helio cluster client NAME --out FILE`, at the node that \
                has the cluster's authority, issues new ones";
    let error = Error::new(ErrorKind::Fenced, text);
    CallFailure { error, is_unknown, is_refusal: true, is_revoked: true }
}

/// Every node has given a definite answer.
fn unaccepted(last: Error) -> Error {
    let text = "no node of the cluster accepts these credentials: they have ended, are of another cluster, or its nodes are elsewhere by now; \
                `helio cluster client NAME --out FILE`, at the node that began the cluster, issues new ones";
    Error::new(ErrorKind::InvalidRequest, text).caused_by(last)
}

/// Whether what failed with this kind may succeed later, with nothing changed by the caller.
pub(super) fn is_passing(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Unavailable | ErrorKind::Busy | ErrorKind::NotOwner | ErrorKind::Closed | ErrorKind::Internal => {
            true
        }
        ErrorKind::InvalidRequest
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::Fenced
        | ErrorKind::OutOfSpace
        | ErrorKind::Corrupt => false,
    }
}

/// The attempts at one operation: how many there were, and until when there may be more.
#[derive(Debug)]
pub(super) struct Tries {
    made: u32,
    end: Option<Instant>,
}

impl Tries {
    pub(super) fn new(give_up: Option<Duration>) -> Tries {
        Tries { made: 0, end: give_up.map(|patience| Instant::now() + patience) }
    }

    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// When there are no more attempts.
    pub(super) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// An attempt failed: waits before the next one.
    ///
    /// # Errors
    /// `Unavailable` with the same text when there is to be none: other kinds say what to do about something that lasts.
    pub(super) async fn failed(&mut self, error: Error) -> Result<(), Error> {
        let pause = BACKOFF_MIN.saturating_mul(1 << self.made.min(10)).min(BACKOFF_MAX);
        self.made = self.made.saturating_add(1);
        if self.end.is_some_and(|end| Instant::now() + pause >= end) {
            return Err(match error.kind() {
                ErrorKind::Unavailable => error,
                _ => Error::new(ErrorKind::Unavailable, "it was given up").caused_by(error),
            });
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// The error for a reply that does not belong to its request.
pub(super) fn out_of_turn(reply: &ClientReply) -> Error {
    Error::new(ErrorKind::Internal, format!("a node answered out of turn: {reply:?}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::transport::BoxFuture;

    /// Nodes that fail in turn as they are told.
    struct Scripted {
        calls: AtomicU32,
        /// By the node, and by the round.
        fails: Box<dyn Fn(NodeId, u32) -> TransportError + Send + Sync>,
    }

    impl std::fmt::Debug for Scripted {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Scripted").finish_non_exhaustive()
        }
    }

    const NODES: u32 = 3;

    impl Transport for Scripted {
        fn call(
            &self,
            node: NodeId,
            _class: Class,
            _request: Bytes,
            _deadline: Duration,
        ) -> BoxFuture<'_, Result<Bytes, TransportError>> {
            let round = self.calls.fetch_add(1, Ordering::Relaxed) / NODES;
            let error = (self.fails)(node, round);
            Box::pin(async move { Err(error) })
        }

        fn set_peer(&self, _node: NodeId, _address: SocketAddr) {}

        fn remove_peer(&self, _node: NodeId) {}

        fn rtt(&self, _node: NodeId) -> Option<Duration> {
            None
        }
    }

    fn scripted(fails: impl Fn(NodeId, u32) -> TransportError + Send + Sync + 'static) -> (Arc<Scripted>, Nodes) {
        let transport = Arc::new(Scripted { calls: AtomicU32::new(0), fails: Box::new(fails) });
        let member = |node: u32| {
            let (name, address) = (format!("n{node}"), String::new());
            MemberInfo { node: NodeId(node.into()), name, provider: String::new(), address }
        };
        let nodes = Nodes::new(transport.clone(), (1..=NODES).map(member).collect());
        (transport, nodes)
    }

    /// What comes of asking them, and how often they were asked; by the node's number, and by the round.
    async fn asked(refuses: fn(u64, u32) -> bool, is_first: bool) -> (Error, u32) {
        let (transport, nodes) = scripted(move |node, round| {
            let reason = "as told".to_owned();
            match refuses(node.0, round) {
                true => TransportError::Refused { node, reason },
                false => TransportError::Unreachable { node, reason },
            }
        });
        let outcome = nodes.ask(ClientRequest::Members, Some(Duration::from_secs(60)), is_first).await;
        (outcome.expect_err("nobody answers"), transport.calls.load(Ordering::Relaxed))
    }

    /// Opening with another cluster's credentials once waited for ever.
    #[tokio::test(start_paused = true)]
    async fn when_every_node_refuses_that_is_an_answer() {
        let (error, calls) = asked(|_, _| true, true).await;
        assert_eq!((error.kind(), calls), (ErrorKind::InvalidRequest, NODES));
        let text = error.to_string();
        assert!(text.contains("helio cluster client") && text.contains("n3") && text.contains("as told"), "{text}");
        // Two know their certificates already while the third is out of reach.
        let (error, calls) = asked(|node, round| node != 2 || round == 4, true).await;
        assert_eq!((error.kind(), calls), (ErrorKind::InvalidRequest, 4 * NODES + 2), "then, at its own answer");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_out_of_reach_is_waited_for() {
        let some: [fn(u64, u32) -> bool; 3] =
            [|_, _| false, |node, _| node != 1, |node, round| u64::from(round % 2) == node % 2];
        for refuses in some {
            let (error, calls) = asked(refuses, true).await;
            assert!(error.kind() == ErrorKind::Unavailable && calls > 10 * NODES, "{error}");
        }
        let (error, _) = asked(|_, _| true, false).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "what is open stays open");
    }

    #[tokio::test(start_paused = true)]
    async fn what_most_nodes_say_of_a_certificate_is_so() {
        for (say_so, expected) in [(1, ErrorKind::Unavailable), (2, ErrorKind::Fenced), (3, ErrorKind::Fenced)] {
            let (_, nodes) = scripted(move |node, _| match node.0 <= say_so {
                true => TransportError::Revoked { node },
                false => TransportError::Unreachable { node, reason: "it is down".to_owned() },
            });
            let asked = nodes.ask_any(ClientRequest::Members, Some(Duration::from_secs(60))).await;
            let error = asked.expect_err("nobody answers");
            assert_eq!(error.kind(), expected, "{say_so}: {error}");
            assert_eq!(error.to_string().contains("were revoked"), expected == ErrorKind::Fenced, "{error}");
        }
    }

    /// A program that opened for writing was once told that it had opened for reading (`NotOwner`).
    #[tokio::test]
    async fn what_might_have_passed_is_unavailable_when_it_is_given_up() {
        for kind in [ErrorKind::NotOwner, ErrorKind::Busy, ErrorKind::Internal, ErrorKind::Unavailable] {
            assert!(is_passing(kind));
            let given_up = Tries::new(Some(Duration::ZERO)).failed(Error::new(kind, "node a is b")).await;
            let error = given_up.expect_err("there is no time left");
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().contains("node a is b"), "{error}");
        }
    }
}
