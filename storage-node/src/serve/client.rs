//! Volumes for clients of other machines: the messages of [`client_lib::wire::client`], answered at any node.
//!
//! What only the owner can do is passed on to it as it came ([`PeerRequest::Client`]), and done there ([`owner`]). A request is
//! tried here for [`PATIENCE`] and no longer, and not again once it may have been carried out: the client holds the numbers that
//! make a retry safe, knows other nodes, and waits as long as it likes.

mod owner;
pub mod rights;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::cipher::VolumeKeys;
use client_lib::geometry::IO_SIZE_MAX;
use client_lib::rights::Right;
use client_lib::transport::{Class, Home, Residence};
use client_lib::wire::client::{
    ClientMessage, ClientReply, ClientRequest, ListedVolume, MemberInfo, Opened, Target, VolumeInfo,
};
use client_lib::wire::frame::Frame;
use client_lib::{Epoch, Error, ErrorKind, VolumeId};
use consensus::MetaState;
use tokio::time::Instant;

use self::rights::{Asker, needed};
use super::metadata::NewestMetadata;
use super::numbers::session_number;
use super::volume::ServedVolume;
use super::volumes::Volumes;
use crate::ownership::gate::{Phase, View};
use crate::peer::client::{PeerClient, PeerError};
use crate::peer::message::{Message, PeerReply, PeerRequest};
use crate::volume::Moment;

/// How long a request waits here for an owner that can be reached. A client that hears nothing for longer might as well try
/// another node.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between attempts to reach the owner.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How long a volume that was created this moment may take to be served here.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// The answer to a client, and its data.
pub type Answer = (ClientReply, Bytes);

/// Answers clients at this node.
pub struct ClientService {
    incarnation: u64,
    volumes: Arc<Volumes>,
    metadata: Arc<NewestMetadata>,
    peers: PeerClient,
}

impl ClientService {
    /// Serves `volumes` in the node's process number `incarnation`.
    #[must_use]
    pub fn new(
        incarnation: u64,
        volumes: Arc<Volumes>,
        metadata: Arc<NewestMetadata>,
        peers: PeerClient,
    ) -> ClientService {
        ClientService { incarnation, volumes, metadata, peers }
    }

    /// Answers one frame of the client service, as far as `asker` may be answered.
    pub async fn serve(&self, frame: Frame, asker: Asker<'_>) -> Bytes {
        let answer = match ClientMessage::<ClientRequest>::decode(frame) {
            Ok(ClientMessage { head, payload }) => self.answer(asker, head, payload).await,
            Err(error) => Err(error),
        };
        encode(answer)
    }

    /// Where a client of this machine is served that begins with `request`.
    #[must_use]
    pub fn home(&self, request: &ClientRequest) -> Residence {
        let Some(volume) = volume_of(request).and_then(|id| self.volumes.get(id)) else { return Residence::Undecided };
        match volume.shard.home() {
            Some((runtime, place)) => Residence::There(Home { runtime, place: Box::new(place) }),
            None => Residence::Here,
        }
    }

    async fn answer(&self, asker: Asker<'_>, request: ClientRequest, payload: Bytes) -> Result<Answer, Error> {
        let reply = match request {
            ClientRequest::Members => ClientReply::Members(members(&*self.metadata.get().await?)),
            ClientRequest::Volumes => {
                let listed = volumes(&*self.metadata.get().await?, asker);
                ClientReply::Volumes(listed.into_iter().map(|listed| listed.volume).collect())
            }
            ClientRequest::List => ClientReply::Listed(volumes(&*self.metadata.get().await?, asker)),
            ClientRequest::Open { name } => match self.open(asker, &name).await? {
                (opened, _, None) => ClientReply::Opened(opened),
                // Whoever asks so would take ciphertext for data, and write data where ciphertext belongs.
                (_, _, Some(_)) => {
                    let text = format!(
                        "volume {name} is encrypted, and this client is of a version that cannot decrypt: renew it"
                    );
                    return Err(Error::new(ErrorKind::InvalidRequest, text));
                }
            },
            ClientRequest::OpenFor { name } => {
                let (opened, right, keys) = self.open(asker, &name).await?;
                ClientReply::OpenedFor { opened, right, keys }
            }
            request => return self.use_volume(asker, request, payload).await,
        };
        Ok((reply, Bytes::new()))
    }

    async fn open(&self, asker: Asker<'_>, name: &str) -> Result<(Opened, Right, Option<VolumeKeys>), Error> {
        let state = self.metadata.get().await?;
        let (volume_name, snapshot_name) = name.split_once('@').map_or((name, None), |(volume, at)| (volume, Some(at)));
        // First: who may not use it is not told whether it exists.
        let right = asker.require(&state, volume_name, Right::Read)?;
        let Some(volume) = state.volumes().find(|volume| volume.name.as_str() == volume_name) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no volume {volume_name:?}; `helio volume list` shows those that exist"),
            ));
        };
        let session = session_number();
        let opened = |snapshot, size| {
            let opened = Opened { volume: volume.id, snapshot, size, session, epoch: volume.epoch };
            (opened, right, state.keys(volume.id).cloned())
        };
        let Some(snapshot_name) = snapshot_name else { return Ok(opened(None, volume.size.bytes())) };
        match volume.snapshot_named(snapshot_name).map(|snapshot| (snapshot.id, snapshot.made)) {
            Some((snapshot, Some(made))) => Ok(opened(Some(snapshot), made.size.bytes())),
            Some((_, None)) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("snapshot {name} is not made yet; `helio volume snapshot list {volume_name}` shows when it is"),
            )),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "volume {volume_name} has no snapshot {snapshot_name:?}; `helio volume snapshot list {volume_name}` shows those it has"
                ),
            )),
        }
    }

    async fn use_volume(&self, asker: Asker<'_>, request: ClientRequest, payload: Bytes) -> Result<Answer, Error> {
        let (id, epoch) = match &request {
            ClientRequest::Read { target, .. }
            | ClientRequest::Extents { target, .. }
            | ClientRequest::Cache { target, .. } => match target {
                Target::Live { volume, tenure } => (*volume, tenure.epoch),
                Target::Snapshot { volume, snapshot } => {
                    let volume = self.volume_for(asker, *volume, &request).await?;
                    return owner::serve_kept(&volume, Moment::Snapshot(*snapshot), request).await;
                }
            },
            ClientRequest::Write { volume, tenure, .. }
            | ClientRequest::Zero { volume, tenure, .. }
            | ClientRequest::Flush { volume, tenure } => (*volume, tenure.epoch),
            ClientRequest::Attach { volume, .. } => (*volume, Epoch(0)),
            other => return Err(Error::new(ErrorKind::Internal, format!("not a request about a volume: {other:?}"))),
        };
        let volume = self.volume_for(asker, id, &request).await?;
        self.route(asker, &volume, epoch, request, payload).await
    }

    /// Refuses what `asker` may not do, as the metadata is here.
    fn require(&self, asker: Asker<'_>, volume: &ServedVolume, request: &ClientRequest) -> Result<(), Error> {
        match asker {
            Asker::Trusted => Ok(()),
            Asker::Client(_) => asker.require(&self.metadata.here(), volume.name.as_str(), needed(request)).map(|_| ()),
        }
    }

    /// The volume, also one that was made this moment elsewhere, for somebody who may do with it what is asked. Looked at before the volume's
    /// owner is waited for: who may not is neither told that there is such a volume nor what it is called.
    async fn volume_for(
        &self,
        asker: Asker<'_>,
        id: VolumeId,
        request: &ClientRequest,
    ) -> Result<Arc<ServedVolume>, Error> {
        if let Some(volume) = self.volumes.get(id) {
            self.require(asker, &volume, request)?;
            return Ok(volume);
        }
        {
            let state = self.metadata.get().await?;
            let Some(volume) = state.volume(id) else {
                // No volume is called so: whoever may not use every one is answered as if this were one that it may not use.
                asker.require(&state, "", Right::Read)?;
                return Err(Error::new(ErrorKind::NotFound, format!("volume {id} was deleted")));
            };
            asker.require(&state, volume.name.as_str(), needed(request))?;
        }
        self.volumes.arrival(id, OPEN_PATIENCE).await.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("volume {id} exists, but this node cannot serve it yet; its log says why"),
            )
        })
    }

    /// Has the owner of at least `epoch` answer, here or elsewhere.
    async fn route(
        &self,
        asker: Asker<'_>,
        volume: &ServedVolume,
        epoch: Epoch,
        request: ClientRequest,
        payload: Bytes,
    ) -> Result<Answer, Error> {
        let end = Instant::now() + PATIENCE;
        loop {
            let view = tokio::time::timeout_at(end, volume.gate.settled(epoch)).await.map_err(|_| {
                let what = "is being handed over, or this node has yet to hear who owns it";
                Error::new(ErrorKind::Unavailable, format!("volume {} {what}", volume.name))
            })?;
            let view = self.still_exists(volume, view).await?;
            // With every request, and after each wait: a rule that is withdrawn counts at once.
            self.require(asker, volume, &request)?;
            let why = if view.phase == Phase::Owner {
                match owner::serve(volume, view, self.incarnation, &request, &payload).await? {
                    Some(answer) => return Ok(answer),
                    None => Error::new(ErrorKind::Unavailable, format!("volume {} is being handed over", volume.name)),
                }
            } else {
                let passed = PeerRequest::Client { epoch: view.epoch, request: request.clone() };
                match self.peers.ask(view.owner, Class::Pull, passed, payload.clone()).await {
                    Ok(Message { head: PeerReply::Client(reply), payload }) => return Ok((reply, payload)),
                    Ok(Message { head: head @ PeerReply::NotOwner(_), .. }) => self.peers.unexpected(view.owner, &head),
                    Ok(Message { head: PeerReply::Failed(error), .. }) if error.kind() == ErrorKind::Corrupt => {
                        let what = "runs a program that does not know clients yet";
                        return Err(Error::new(
                            ErrorKind::Unavailable,
                            format!("node {}, the owner, {what}", self.peers.name(view.owner)),
                        ));
                    }
                    Ok(Message { head: PeerReply::Failed(error), .. }) => return Err(error),
                    Ok(message) => return Err(self.peers.unexpected(view.owner, &message.head)),
                    // It may have arrived: the next attempt is the client's, which tells it from this one.
                    Err(error) if !error.not_delivered() => return Err(error.into()),
                    Err(error) => PeerError::into(error),
                }
            };
            if Instant::now() >= end {
                return Err(why);
            }
            volume.gate.changed_from(view, RETRY_PAUSE).await;
        }
    }

    /// The gate's view; a closed gate is that of a volume that was deleted, or of a node that stops.
    async fn still_exists(&self, volume: &ServedVolume, view: Result<View, Error>) -> Result<View, Error> {
        match view {
            Err(error) if error.kind() == ErrorKind::Closed => match self.metadata.get().await?.volume(volume.id) {
                Some(_) => Err(Error::new(ErrorKind::Unavailable, "the node is stopping")),
                None => Err(Error::new(ErrorKind::NotFound, format!("volume {} was deleted", volume.name))),
            },
            view => view,
        }
    }

    /// Answers a client's request as the owner, for another node.
    ///
    /// # Errors
    /// What it failed with.
    pub async fn serve_peer(
        &self,
        epoch: Epoch,
        request: &ClientRequest,
        payload: &Bytes,
    ) -> Result<Message<PeerReply>, Error> {
        let id = volume_of(request).ok_or_else(|| Error::new(ErrorKind::InvalidRequest, "any node answers that"))?;
        let volume = self.volumes.require(id)?;
        let view = tokio::time::timeout(PATIENCE, volume.gate.settled(epoch)).await;
        let view = view.map_err(|_| Error::new(ErrorKind::Unavailable, "the owner has yet to hear that it is"))??;
        if view.phase == Phase::Owner
            && let Some((reply, payload)) = owner::serve(&volume, view, self.incarnation, request, payload).await?
        {
            return Ok(Message { head: PeerReply::Client(reply), payload });
        }
        Ok(Message { head: PeerReply::NotOwner(volume.gate.view().epoch), payload: Bytes::new() })
    }
}

/// How much data the answer to `request` may bring: a read of more is refused.
#[must_use]
pub fn answer_bytes_max(request: &ClientRequest) -> usize {
    match request {
        ClientRequest::Read { length, .. } => (*length).min(IO_SIZE_MAX) as usize,
        _ => 0,
    }
}

/// Which volume a request is about.
fn volume_of(request: &ClientRequest) -> Option<VolumeId> {
    match request {
        ClientRequest::Read { target, .. }
        | ClientRequest::Extents { target, .. }
        | ClientRequest::Cache { target, .. } => Some(target.volume()),
        ClientRequest::Write { volume, .. }
        | ClientRequest::Zero { volume, .. }
        | ClientRequest::Flush { volume, .. }
        | ClientRequest::Attach { volume, .. } => Some(*volume),
        ClientRequest::Members
        | ClientRequest::Volumes
        | ClientRequest::Open { .. }
        | ClientRequest::OpenFor { .. }
        | ClientRequest::List => None,
    }
}

fn encode(answer: Result<Answer, Error>) -> Bytes {
    let (head, payload) = answer.unwrap_or_else(|error| (ClientReply::Failed(error), Bytes::new()));
    ClientMessage { head, payload }.encode().unwrap_or_else(|error| {
        let small = ClientMessage { head: ClientReply::Failed(error), payload: Bytes::new() };
        small.encode().expect("an error is far below the limit of a frame")
    })
}

fn members(state: &MetaState) -> Vec<MemberInfo> {
    let member = |node: &consensus::Node| MemberInfo {
        node: node.id,
        name: node.name.to_string(),
        provider: node.provider.to_string(),
        address: node.address.clone(),
    };
    state.nodes().map(member).collect()
}

/// The volumes that `asker` may use.
fn volumes(state: &MetaState, asker: Asker<'_>) -> Vec<ListedVolume> {
    let mut listed = Vec::new();
    for volume in state.volumes() {
        let Some(right) = asker.right(state, volume.name.as_str()) else { continue };
        let mut list = |name, size, is_snapshot| {
            listed.push(ListedVolume { volume: VolumeInfo { name, size, is_snapshot }, right });
        };
        list(volume.name.to_string(), volume.size.bytes(), false);
        for snapshot in &volume.snapshots {
            let Some(made) = snapshot.made else { continue };
            let name = format!("{}@{}", volume.name, snapshot.name);
            list(name, made.size.bytes(), true);
        }
    }
    listed.sort_by(|one, other| one.volume.name.cmp(&other.volume.name));
    listed
}

#[cfg(test)]
mod tests {
    use client_lib::cipher::{CipherName, SealedKey};
    use client_lib::wire::client::{Attached, ExtentState, ExtentsOf, ForkInfo, Tenure, WriteId};
    use client_lib::wire::frame::encode_head;
    use client_lib::{Lsn, NodeId, SnapshotId};

    use super::*;
    use crate::golden;

    /// Clients are not renewed with the nodes: the place of each message in its enum, and its fields, are what they read.
    /// The future of any request to a node, of the most that one needs, was allocated for every read of a guest: 24 KB.
    #[test]
    fn the_answer_to_a_client_is_no_large_future() {
        fn size_of_answer<F>(_: impl Fn(&'static ClientService, Frame) -> F) -> usize {
            size_of::<F>()
        }
        let size = size_of_answer(|service, frame| service.serve(frame, Asker::Trusted));
        assert!(size <= 4 << 10, "{size} bytes");
    }

    #[test]
    fn messages_of_clients_are_encoded_as_these_bytes() {
        let (volume, tenure) = (VolumeId(9), Tenure { epoch: Epoch(3), incarnation: 7 });
        let (live, kept) = (Target::Live { volume, tenure }, Target::Snapshot { volume, snapshot: SnapshotId(2) });
        let id = WriteId { session: 1 << 48, number: 300, answered: 290, generation: 1, right: Epoch(2) };
        let requests = [
            ClientRequest::Members,
            ClientRequest::Volumes,
            ClientRequest::Open { name: "disk".into() },
            ClientRequest::Attach { volume, sessions: vec![1 << 48] },
            ClientRequest::Read { target: live, offset: 4096, length: 512 },
            ClientRequest::Read { target: kept, offset: 0, length: 512 },
            ClientRequest::Write { volume, tenure, id, offset: 4096, fua: true },
            ClientRequest::Zero { volume, tenure, id, offset: 4096, length: 1 << 33, fua: false },
            ClientRequest::Flush { volume, tenure },
            ClientRequest::Extents { target: live, of: ExtentsOf::Residency, offset: 0, length: 1 << 33 },
            ClientRequest::Cache { target: kept, offset: 0, length: 4096 },
            ClientRequest::OpenFor { name: "disk".into() },
            ClientRequest::List,
        ];
        let encoded: Vec<u8> = requests.iter().flat_map(|head| encode_head(head).expect("is plain data")).collect();
        golden::check("client-requests.hex", &encoded);
        let (name, provider) = ("a".to_owned(), "cloud-1".to_owned());
        let member = MemberInfo { node: NodeId(1), name, provider, address: "192.0.2.1:10810".into() };
        let lsn = Lsn::new(Epoch(3), 300);
        let opened = Opened { volume, snapshot: None, size: 1 << 30, session: 1 << 48, epoch: Epoch(3) };
        let name = "prod.key".parse().expect("a name");
        let sealed = vec![SealedKey { name, fingerprint: [7; 16].into(), sealed: [8; 92].into() }];
        let keys = VolumeKeys { cipher: CipherName::Aes256Xts, check: [9; 16].into(), sealed };
        let replies = [
            ClientReply::Members(vec![member]),
            ClientReply::Volumes(vec![VolumeInfo { name: "disk@monday".into(), size: 1 << 30, is_snapshot: true }]),
            ClientReply::Opened(opened.clone()),
            ClientReply::Attached(Attached {
                tenure,
                owner: NodeId(1),
                size: 1 << 30,
                head: lsn,
                forks: vec![ForkInfo { epoch: Epoch(1), end: Lsn::new(Epoch(1), 200) }],
                claimed: Epoch(2),
                done: vec![(1 << 48, vec![(0, 290), (300, 301)])],
            }),
            ClientReply::Read(vec![(512, false), (4096, true)]),
            ClientReply::Written { lsn, durable: true },
            ClientReply::Flushed(false),
            ClientReply::Extents(vec![(4096, ExtentState::Data), (4096, ExtentState::Zero), (512, ExtentState::Stale)]),
            ClientReply::Done,
            ClientReply::Moved(tenure),
            ClientReply::Outrun,
            ClientReply::Failed(Error::new(ErrorKind::Fenced, "stop")),
            ClientReply::OpenedFor {
                opened: Opened { volume, snapshot: None, size: 1 << 30, session: 1 << 48, epoch: Epoch(3) },
                right: Right::Read,
                keys: None,
            },
            ClientReply::OpenedFor { opened, right: Right::Write, keys: Some(keys) },
            ClientReply::Listed(vec![ListedVolume {
                volume: VolumeInfo { name: "disk".into(), size: 1 << 30, is_snapshot: false },
                right: Right::Write,
            }]),
        ];
        let encoded: Vec<u8> = replies.iter().flat_map(|head| encode_head(head).expect("is plain data")).collect();
        golden::check("client-replies.hex", &encoded);
    }
}
