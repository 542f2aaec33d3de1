//! Typed calls to other nodes, over the transport.
//!
//! Owns encoding, deadlines and the mapping of failures; routing and retries are the callers'. A reply of a
//! kind that the request cannot have is the peer's fault and comes as `Internal`. Failures call a peer by its name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::clock::Clock;
use client_lib::transport::{Class, Transport, TransportError};
use client_lib::wire::frame::Frame;
use client_lib::{BLOCK_SIZE, Error, ErrorKind, NodeId};
use tokio::time::Instant;

use super::alike;
use super::links::{Links, choice};
use super::message::{ENCODING_HELD, ENCODING_HOLD, ENCODING_ZSTD, Message, PeerReply, PeerRequest, ReplicaPosition};
use super::names::Names;
use super::packing::{Compressor, PackedBlocks, pack_blocks};
use crate::propagation::manifest::VersionedBlock;

/// How long a call may take before its outcome counts as unknown, unless the other end waits for something itself. Well above any round trip and transfer of a
/// frame, so that a slow link is not taken for a broken one.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// An answer is not late before this, however fast those before were: a disk may be busy for so long.
const PATIENCE_MIN: Duration = Duration::from_millis(10);

/// The same, at least, while it is not known how long answers take.
const PATIENCE_UNKNOWN: Duration = Duration::from_millis(100);

/// While a volume is handed over bulk is held for so many round trips, and so long for what takes time beside them.
const HOLD_RTTS: u32 = 3;
const HOLD_MORE: Duration = Duration::from_millis(50);

/// Why a peer call gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The network failed.
    #[error("{}", .error.of(.name))]
    Transport {
        /// How.
        error: TransportError,
        /// What the node is called that was asked.
        name: String,
    },
    /// The answer could not be read.
    #[error(transparent)]
    Reply(Error),
}

impl PeerError {
    /// Whether the request certainly was not carried out.
    #[must_use]
    pub fn not_delivered(&self) -> bool {
        match self {
            PeerError::Transport { error: TransportError::OutcomeUnknown { .. } | TransportError::Closed, .. }
            | PeerError::Reply(_) => false,
            PeerError::Transport { .. } => true,
        }
    }
}

impl From<PeerError> for Error {
    fn from(error: PeerError) -> Error {
        match error {
            error @ PeerError::Transport { .. } => Error::new(ErrorKind::Unavailable, error.to_string()),
            PeerError::Reply(error) => error,
        }
    }
}

/// Calls other nodes.
#[derive(Clone, Debug)]
pub struct PeerClient {
    transport: Arc<dyn Transport>,
    links: Arc<Links>,
    compressor: Arc<Compressor>,
    names: Arc<Names>,
}

impl PeerClient {
    /// A client over `transport`.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>) -> PeerClient {
        PeerClient { transport, links: Arc::default(), compressor: Arc::default(), names: Arc::default() }
    }

    /// The same, whose links keep to windows by the calendar of `clock`.
    #[must_use]
    pub fn by(self, clock: Arc<dyn Clock>) -> PeerClient {
        PeerClient { links: Arc::new(Links::new(clock)), ..self }
    }

    /// What is known of the links to the other nodes.
    #[must_use]
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// What the nodes are called.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// What `node` is called; its number, as long as it is not known.
    #[must_use]
    pub fn name(&self, node: NodeId) -> String {
        self.names.of(node)
    }

    /// The network below.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Asks `node` and returns its answer, whatever it says.
    ///
    /// # Errors
    /// When no readable answer came; see [`PeerError::not_delivered`].
    ///
    /// # Cancel safety
    /// As [`Transport::call`].
    pub async fn ask(
        &self,
        node: NodeId,
        class: Class,
        head: PeerRequest,
        payload: Bytes,
    ) -> Result<Message<PeerReply>, PeerError> {
        self.ask_within(node, class, head, payload, CALL_DEADLINE).await
    }

    /// The same of a request that takes its time at the other end: its outcome counts as unknown after `deadline`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    ///
    /// # Cancel safety
    /// As [`Transport::call`].
    pub async fn ask_within(
        &self,
        node: NodeId,
        class: Class,
        head: PeerRequest,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Message<PeerReply>, PeerError> {
        let tells_rate = class == Class::Bulk && !payload.is_empty();
        let request = Message { head, payload }.encode().map_err(PeerError::Reply)?;
        let mut under_way = tells_rate.then(|| UnderWay::begin(self, node));
        let bytes = request.len() as u64;
        let reply = self.transport.call(node, class, request, deadline).await;
        let reply = reply.map_err(|error| PeerError::Transport { error, name: self.name(node) })?;
        self.links.heard(node);
        if let Some(under_way) = &mut under_way {
            under_way.bytes = bytes;
        }
        drop(under_way);
        let frame = Frame::decode(&reply).map_err(|error| {
            let what = format!("node {} sent a frame that cannot be read", self.name(node));
            PeerError::Reply(Error::new(ErrorKind::Corrupt, what).caused_by(error))
        })?;
        let reply = Message::decode(frame).map_err(PeerError::Reply)?;
        if matches!(&reply.head, PeerReply::Failed(error) if error.kind() == ErrorKind::Corrupt) {
            // It may run an older program by now.
            self.links.forget_encodings(node);
        }
        Ok(reply)
    }

    /// Asks `node` for blocks: how fast they come is measured, and in [`Class::Pull`] how long the answer takes.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn fetch(
        &self,
        node: NodeId,
        class: Class,
        request: PeerRequest,
    ) -> Result<Message<PeerReply>, PeerError> {
        let mut under_way = Fetching { client: self, node, class, begun: Instant::now(), bytes: 0 };
        self.links.fetch_begins(node);
        let answer = self.ask(node, class, request, Bytes::new()).await;
        under_way.bytes = answer.as_ref().map_or(0, |answer| answer.payload.len() as u64);
        answer
    }

    /// Bytes per second at which blocks come from `node`, as measured or assumed.
    #[must_use]
    pub fn rate_from(&self, node: NodeId) -> f64 {
        choice::link_rate(self.links.link(node).rate_inward(), self.transport.rtt(node))
    }

    /// Bytes per second of bulk data that the link to `node` takes, as measured or assumed.
    #[must_use]
    pub fn rate_to(&self, node: NodeId) -> f64 {
        choice::link_rate(self.links.link(node).rate(), self.transport.rtt(node))
    }

    /// How long a fetch of so many blocks from `node` may take before its answer is late.
    #[must_use]
    pub fn patience(&self, node: NodeId, blocks: usize) -> Duration {
        let rtt = self.transport.rtt(node).unwrap_or_default();
        let usual = self.links.link(node).p95().unwrap_or_else(|| (rtt * 2).max(PATIENCE_UNKNOWN));
        let bytes = (blocks * BLOCK_SIZE as usize) as f64;
        usual.max(rtt + rtt / 4).max(PATIENCE_MIN) + Duration::from_secs_f64(bytes / self.rate_from(node))
    }

    /// Asks a replica for something that is answered with its positions.
    ///
    /// # Errors
    /// As [`ask`](Self::ask); [`unexpected`](Self::unexpected) for another answer.
    pub async fn ask_position(
        &self,
        replica: NodeId,
        class: Class,
        request: PeerRequest,
        payload: Bytes,
    ) -> Result<ReplicaPosition, Error> {
        self.position_of(replica, self.ask(replica, class, request, payload).await?.head)
    }

    /// The positions of `replica`, as it answered.
    ///
    /// # Errors
    /// `Unavailable` where it is being told which versions it lacks; [`unexpected`](Self::unexpected) for another answer.
    pub fn position_of(&self, replica: NodeId, answer: PeerReply) -> Result<ReplicaPosition, Error> {
        match answer {
            PeerReply::Position(position) | PeerReply::Rejoining { position, unknown: 0, .. } => Ok(position),
            PeerReply::Rejoining { .. } => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "node {} comes back to the volume after a takeover and is being told of it: try again in a moment",
                    self.name(replica)
                ),
            )),
            head => Err(self.unexpected(replica, &head)),
        }
    }

    /// The error for a reply of `node` that does not belong to its request.
    #[must_use]
    pub fn unexpected(&self, node: NodeId, reply: &PeerReply) -> Error {
        let name = self.name(node);
        match reply {
            PeerReply::Failed(error) => Error::new(error.kind(), format!("node {name}: {error}")),
            PeerReply::NotOwner(epoch) => {
                Error::new(ErrorKind::NotOwner, format!("node {name} does not own the volume (it knows epoch {epoch})"))
            }
            PeerReply::Left(tail) => tail.refusal(&name),
            PeerReply::Superseded(epoch) => Error::new(
                ErrorKind::Fenced,
                format!("node {name} refused: a newer writer or epoch ({epoch}) has taken over"),
            ),
            other => Error::new(ErrorKind::Internal, format!("node {name} answered out of turn: {other:?}")),
        }
    }

    /// Blocks as they are sent to `node`: compressed where that pays.
    #[must_use]
    pub fn pack(&self, node: NodeId, blocks: &[VersionedBlock]) -> PackedBlocks {
        let accepts_zstd = self.encodings(node) & ENCODING_ZSTD != 0;
        self.pack_as(node, blocks, accepts_zstd)
    }

    /// The same for a node of which the caller knows whether it understands zstd.
    #[must_use]
    pub fn pack_as(&self, node: NodeId, blocks: &[VersionedBlock], accepts_zstd: bool) -> PackedBlocks {
        let mut packed = pack_blocks(blocks);
        if accepts_zstd {
            let link = choice::link_rate(self.links.link(node).rate(), self.transport.rtt(node));
            self.compressor.press(&mut packed, link);
        }
        packed
    }

    /// Whether `node` is to be asked what it has already of what is sent to it.
    #[must_use]
    pub fn takes_offers(&self, node: NodeId) -> bool {
        self.encodings(node) & ENCODING_HELD != 0 && alike::pays(self.rate_to(node))
    }

    /// Makes way for a handover to `node`: bulk is held, at this end and at that, for as long as it takes, since its messages are not to wait
    /// behind it; and both connect for what guests wait for afterwards. Nobody waits until the other end has been told.
    pub fn make_way(&self, node: NodeId) {
        let duration = self.transport.rtt(node).unwrap_or_default() * HOLD_RTTS + HOLD_MORE;
        self.transport.hold_bulk(duration);
        self.transport.connect(node, Class::Pull);
        if self.encodings(node) & ENCODING_HOLD == 0 {
            return;
        }
        let client = self.clone();
        tokio::spawn(async move {
            let request = PeerRequest::HoldBulk { for_ms: duration.as_millis() as u32 };
            if let Err(error) = client.ask(node, Class::Control, request, Bytes::new()).await {
                tracing::debug!(%node, %error, "it was not told to hold bulk");
            }
        });
    }

    /// The handover to `node` is over. What guests asked for meanwhile goes there now, and bulk after it.
    pub fn end_way(&self, node: NodeId) {
        self.transport.hold_bulk(self.transport.rtt(node).unwrap_or_default());
    }

    /// Learns what `node` understands before there is anything to send to it or to fetch from it.
    pub fn greet(&self, node: NodeId) {
        let _ = self.encodings(node);
    }

    /// The encodings of payloads that `node` understands, as far as is known. It is asked now and then; nobody waits for that.
    #[must_use]
    pub fn encodings(&self, node: NodeId) -> u32 {
        let (known, is_due) = self.links.encodings(node);
        if is_due {
            let client = self.clone();
            tokio::spawn(async move {
                let answer = client.ask(node, Class::Control, PeerRequest::Encodings, Bytes::new()).await;
                client.links.told_encodings(
                    node,
                    match answer {
                        Ok(Message { head: PeerReply::Encodings(encodings), .. }) => Some(encodings),
                        // An older program, which cannot read the question.
                        Ok(Message { head: PeerReply::Failed(error), .. }) if error.kind() == ErrorKind::Corrupt => {
                            Some(0)
                        }
                        // It has only just begun, or cannot be reached.
                        Ok(_) | Err(_) => None,
                    },
                );
            });
        }
        known
    }
}

/// A call that tells how fast its link is, however it ends.
struct UnderWay<'a> {
    client: &'a PeerClient,
    node: NodeId,
    bytes: u64,
}

impl UnderWay<'_> {
    fn begin(client: &PeerClient, node: NodeId) -> UnderWay<'_> {
        client.links.call_begins(node);
        UnderWay { client, node, bytes: 0 }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let rtt = self.client.transport.rtt(self.node).unwrap_or_default();
        self.client.links.call_ends(self.node, self.bytes, rtt);
    }
}

/// A fetch that tells how fast its link is, however it ends.
struct Fetching<'a> {
    client: &'a PeerClient,
    node: NodeId,
    class: Class,
    begun: Instant,
    bytes: u64,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let (client, node) = (self.client, self.node);
        let rtt = client.transport.rtt(node).unwrap_or_default();
        client.links.fetch_ends(node, self.bytes, rtt);
        if self.class == Class::Pull {
            // One that was given up has taken so long at least.
            let for_bytes = Duration::from_secs_f64(self.bytes as f64 / client.rate_from(node));
            client.links.took(node, self.begun.elapsed().saturating_sub(for_bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use client_lib::transport::memory::MemoryNetwork;
    use client_lib::transport::{BoxFuture, Service};
    use client_lib::{BLOCK_SIZE, BlockIndex, Lsn};

    use super::*;
    use crate::peer::message::ENCODINGS;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    /// A node that may run an older program, which cannot read what came later.
    #[derive(Default)]
    struct Other {
        is_old: AtomicBool,
        is_starting: AtomicBool,
    }

    impl Service for Other {
        fn serve(&self, _peer: Option<NodeId>, _class: Class, request: Bytes) -> BoxFuture<'_, Bytes> {
            Box::pin(async move {
                let frame = Frame::decode(&request).expect("our own frame");
                let head = match Message::<PeerRequest>::decode(frame).expect("our own message").head {
                    PeerRequest::Ping => PeerReply::Done,
                    _ if self.is_starting.load(Ordering::Relaxed) => {
                        PeerReply::Failed(Error::new(ErrorKind::Unavailable, "it is starting"))
                    }
                    _ if self.is_old.load(Ordering::Relaxed) => {
                        PeerReply::Failed(Error::new(ErrorKind::Corrupt, "a peer sent a message that cannot be read"))
                    }
                    PeerRequest::Encodings => PeerReply::Encodings(ENCODINGS),
                    _ => PeerReply::Done,
                };
                Message { head, payload: Bytes::new() }.encode().expect("is small")
            })
        }
    }

    async fn until(condition: impl Fn() -> bool) {
        let met = async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), met).await.expect("happens");
    }

    #[tokio::test]
    async fn nothing_is_compressed_for_a_node_that_does_not_say_that_it_understands_it() {
        let network = MemoryNetwork::new();
        let (here, there) = (Arc::new(Other::default()), Arc::new(Other::default()));
        let (transport, _other) = (network.endpoint(ME, here), network.endpoint(OTHER, there.clone()));
        transport.set_peer(OTHER, ([127, 0, 0, 1], 1).into());
        for (from, to) in [(ME, OTHER), (OTHER, ME)] {
            network.set_delay(from, to, Duration::from_millis(5));
        }
        let data = Bytes::from_static(&[7; BLOCK_SIZE as usize]);
        let block = [VersionedBlock { block: BlockIndex(1), lsn: Lsn::ZERO, data: Some(data) }];
        let client = PeerClient::new(transport);
        let is_zstd = || client.pack(OTHER, &block).is_zstd;
        there.is_starting.store(true, Ordering::Relaxed);
        client.greet(OTHER);
        until(|| client.links.link(OTHER).asked.is_none()).await;
        there.is_starting.store(false, Ordering::Relaxed);
        there.is_old.store(true, Ordering::Relaxed);
        assert!(!is_zstd(), "it has not answered");
        until(|| client.links.link(OTHER).encodings.is_some()).await;
        assert!(!is_zstd(), "it is old");

        there.is_old.store(false, Ordering::Relaxed);
        client.links.forget_encodings(OTHER);
        assert!(!is_zstd());
        until(is_zstd).await;
        // It was put back: the first refusal tells.
        there.is_old.store(true, Ordering::Relaxed);
        let (volume, epoch) = (client_lib::VolumeId(1), client_lib::Epoch(1));
        let request = PeerRequest::BlocksZstd { volume, epoch, blocks: Vec::new() };
        let refused = client.ask(OTHER, Class::Bulk, request, Bytes::from_static(b"x")).await.expect("answers");
        assert!(matches!(refused.head, PeerReply::Failed(_)));
        assert!(!is_zstd());
    }

    /// `helio volume status` said of a replica that "node 9 cannot be reached", and there was no node 9 in any other answer: it is called c.
    #[tokio::test]
    async fn failures_call_a_peer_by_its_name() {
        let network = MemoryNetwork::new();
        let client = PeerClient::new(network.endpoint(ME, Arc::new(Other::default())));
        let asked = || async {
            Error::from(
                client.ask(OTHER, Class::Control, PeerRequest::Ping, Bytes::new()).await.expect_err("is not there"),
            )
        };
        let unnamed = asked().await.to_string();
        assert!(unnamed.contains("node #2"), "{unnamed}");
        client.names().note(OTHER, "c");
        let named = asked().await;
        assert_eq!((named.kind(), named.to_string()), (ErrorKind::Unavailable, unnamed.replace("#2", "c")));
        let failed = PeerReply::Failed(Error::new(ErrorKind::OutOfSpace, "its store is full"));
        assert_eq!(client.unexpected(OTHER, &failed).to_string(), "node c: its store is full");
        for answer in
            [PeerReply::NotOwner(client_lib::Epoch(3)), PeerReply::Superseded(client_lib::Epoch(3)), PeerReply::Done]
        {
            let told = client.position_of(OTHER, answer).expect_err("is no position").to_string();
            assert!(told.starts_with("node c "), "{told}");
        }
    }
}
