//! openraft's state machine over [`MetaState`]: apply, publish, snapshot.
//!
//! The state is small (names, owners, positions: no block data), so it is kept in memory. With every batch of applied entries the
//! records that it changed are written, together with the position that they stand for. A snapshot is the encoded state.

use std::io;
use std::path::Path;
use std::sync::Arc;

use client_lib::GroupId;
use client_lib::watch;
use futures_util::{Stream, StreamExt};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::database::{
    Batch, Database, FORMAT, FORMAT_4, FORMAT_5, FORMAT_6, FORMAT_7, FORMAT_8, FORMAT_9, FORMAT_10, META, MetaPlace,
    RAFT,
};
use super::log_store::LogStore;
use super::types::{LogId, MetaTypes, Snapshot, SnapshotMeta, StoredMembership};
use crate::command::Response;
pub(super) use crate::state::before::{State4, State5, State6, State7, State8, State9};
use crate::state::{Changes, Kind, MetaState, Records};

/// The largest state of which a snapshot is taken when openraft would have one, in bytes; whoever is sent it puts it together in memory. Of a larger one
/// none is taken: everything goes on, the log is kept from the last snapshot on, and nodes catch up by that and the log.
pub const SNAPSHOT_BYTES_MAX: usize = 512 << 20;

/// What a snapshot of a state begins with in which there is something that programs of format 7 do not know; twice, if those of format 8
/// do not know it, and three times, if those of format 10 do not. An older program would read the rest and drop that; this is no number in
/// its eyes (a varint of postcard ends within ten bytes), so it refuses all of it, and one that knows the first reads the second so.
const NOT_FOR_OLDER: [u8; 10] = [0xff; 10];

/// Where the applied state stands.
const POSITION: &[u8] = b"position";
/// What was there instead before there were records: position and state.
const APPLIED: &[u8] = b"applied";
/// The last snapshot.
const SNAPSHOT: &[u8] = b"snapshot";
/// What the names of records begin with; the kind follows, then the key.
const RECORDS: &[u8] = b"record/";
/// The first name after those.
const RECORDS_END: &[u8] = b"record0";

fn name_of<K: Serialize>(kind: Kind, key: &K) -> io::Result<Vec<u8>> {
    let key = postcard::to_stdvec(key).map_err(io::Error::other)?;
    Ok([RECORDS, &[kind as u8], &key].concat())
}

/// A record has its key in it, too.
impl Records for Database {
    fn load<K: DeserializeOwned, V: DeserializeOwned>(&self, kind: Kind) -> io::Result<Vec<(K, V)>> {
        let [from, to] = [kind as u8, kind as u8 + 1].map(|kind| [RECORDS, &[kind]].concat());
        self.range(META, &from, &to)
    }
}

impl Changes for Batch<'_> {
    fn put<K: Serialize, V: Serialize>(&mut self, kind: Kind, key: &K, value: &V) -> io::Result<()> {
        self.put(META, &name_of(kind, key)?, &(key, value)).map(drop)
    }

    fn delete<K: Serialize>(&mut self, kind: Kind, key: &K) -> io::Result<()> {
        self.delete(META, &name_of(kind, key)?);
        Ok(())
    }
}

/// The state as it is in a snapshot, which may go to nodes that run the version before.
pub(super) fn encode_state(state: &MetaState) -> io::Result<Vec<u8>> {
    let bytes = postcard::to_stdvec(state).map_err(io::Error::other)?;
    // While nothing is in it that they do not know, they read its beginning.
    let marks = match (state.has_only_what_format_8_has(), state.access().is_empty()) {
        _ if !state.has_only_what_format_10_has() => 3,
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    };
    Ok([NOT_FOR_OLDER.repeat(marks), bytes].concat())
}

/// The state of a snapshot, which may have been made by a node that runs the version before.
pub(super) fn decode_state(bytes: &[u8]) -> postcard::Result<MetaState> {
    let as_9 =
        |bytes| postcard::from_bytes(bytes).or_else(|_| postcard::from_bytes::<State9>(bytes).map(MetaState::from));
    let as_8 = |bytes| postcard::from_bytes::<State8>(bytes).map(MetaState::from);
    let as_7 = |bytes| postcard::from_bytes::<State7>(bytes).map(MetaState::from);
    let mut rest = bytes;
    let mut marks = 0;
    while let Some(marked) = rest.strip_prefix(&NOT_FOR_OLDER).filter(|_| marks < 3) {
        (rest, marks) = (marked, marks + 1);
    }
    match marks {
        0 => as_9(rest).or_else(|_| as_8(rest)).or_else(|_| as_7(rest)),
        1 => as_9(rest).or_else(|_| as_8(rest)),
        2 => as_9(rest),
        _ => postcard::from_bytes(rest),
    }
}

/// Where in the log the applied state stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Position {
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

/// The applied state and where in the log it stands.
#[derive(Clone, Debug, Default)]
struct Applied {
    position: Position,
    state: MetaState,
}

/// The same as one value, in a format before, whose state is an `S`.
#[derive(Deserialize)]
struct AppliedBefore<S> {
    position: Position,
    state: S,
}

impl Applied {
    /// What is applied; `None` if nothing ever was.
    fn load(database: &Database) -> io::Result<Option<Applied>> {
        let Some(position) = database.get(META, POSITION)? else { return Ok(None) };
        Ok(Some(Applied { position, state: MetaState::load(database)? }))
    }

    /// The same of a format before, whose state is an `S`.
    fn load_before<S: DeserializeOwned + Into<MetaState>>(database: &Database) -> io::Result<Option<Applied>> {
        let before = database.get::<AppliedBefore<S>>(META, APPLIED)?;
        Ok(before.map(|AppliedBefore { position, state }| Applied { position, state: state.into() }))
    }

    /// Adds what has changed of it since this was asked last.
    fn store_changes(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        batch.put(META, POSITION, &self.position)?;
        self.state.store_changes(batch)
    }
}

/// Makes a store of a format before, whose state is an `S`, one of the present format, in one step.
pub(super) fn take_over<S: DeserializeOwned + Into<MetaState>>(database: &Database) -> io::Result<()> {
    let mut batch = database.batch();
    batch.put(RAFT, b"format", &FORMAT)?.delete(META, APPLIED);
    if let Some(mut applied) = Applied::load_before::<S>(database)? {
        applied.store_changes(&mut batch)?;
    }
    if let Some(mut snapshot) = database.get::<StoredSnapshot>(META, SNAPSHOT)? {
        // What was sent by a node of another version is kept in its form.
        let state = postcard::from_bytes::<S>(&snapshot.data).map(S::into).or_else(|_| decode_state(&snapshot.data));
        let state: MetaState = state.map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot of the metadata cannot be read: {error}"))
        })?;
        snapshot.data = encode_state(&state)?;
        batch.put(META, SNAPSHOT, &snapshot)?;
    }
    batch.write()
}

/// What is applied, for those who read.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The state.
    pub state: Arc<MetaState>,
    /// The index of the last applied entry.
    pub index: Option<u64>,
}

/// Applies committed entries.
pub struct StateMachine {
    database: Database,
    applied: Applied,
    published: watch::Sender<Published>,
    turn: Turn,
    snapshot_bytes_max: usize,
    /// Whether it was told that the state is too large for a snapshot.
    is_told: bool,
}

/// Held by everything of one core that writes to the stores.
pub(super) type Turn = Arc<OwnedSemaphorePermit>;

/// Opens both stores of a group, and a view of what is applied.
///
/// # Errors
/// When the directory cannot be used, is of a newer format, or holds corrupt values.
pub fn open(place: &MetaPlace, group: GroupId) -> io::Result<Stores> {
    let database = Database::open(place, group)?;
    let published = watch::Sender::new(publish(&Applied::load(&database)?.unwrap_or_default()));
    Ok(Stores { database, published, turns: Arc::new(Semaphore::new(1)) })
}

/// The state that was applied last in a directory that nobody has open; `None` when nothing was. Nothing is changed.
///
/// # Errors
/// When the directory cannot be read, is of another format, or the state is corrupt.
pub fn peek(directory: &Path, group: GroupId) -> io::Result<Option<MetaState>> {
    let (database, format) = Database::open_to_read(directory, group)?;
    let applied = match format {
        None => return Ok(None),
        Some(FORMAT | FORMAT_10) => Applied::load(&database)?,
        Some(FORMAT_9) => Applied::load_before::<State9>(&database)?,
        Some(FORMAT_8) => Applied::load_before::<State8>(&database)?,
        Some(FORMAT_7) => Applied::load_before::<State7>(&database)?,
        Some(FORMAT_6) => Applied::load_before::<State6>(&database)?,
        Some(FORMAT_5) => Applied::load_before::<State5>(&database)?,
        Some(FORMAT_4) => Applied::load_before::<State4>(&database)?,
        Some(_) => {
            return Err(io::Error::other(format!("the metadata store {} has another format", database.place())));
        }
    };
    Ok(applied.map(|applied| applied.state))
}

/// The opened stores; hands out storages for a Raft core, again after the core has stopped.
#[derive(Clone)]
pub struct Stores {
    database: Database,
    published: watch::Sender<Published>,
    /// One core at a time uses them.
    turns: Arc<Semaphore>,
}

impl Stores {
    /// The storages for a core. At most one core may use them at a time, so this waits until what writes of the one before is dropped. A core
    /// that says that it has stopped may still be applying, and what is read meanwhile would be neither before an entry nor after it.
    ///
    /// # Errors
    /// When the applied state cannot be read.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn storages(&self) -> io::Result<(LogStore, StateMachine)> {
        let turn = self.turns.clone().acquire_owned().await.map(Turn::new).map_err(io::Error::other)?;
        let (database, published) = (self.database.clone(), self.published.clone());
        let log = LogStore::new(database.clone(), turn.clone());
        let applied = Applied::load(&database)?.unwrap_or_default();
        let snapshot_bytes_max = SNAPSHOT_BYTES_MAX;
        Ok((log, StateMachine { database, applied, published, turn, snapshot_bytes_max, is_told: false }))
    }

    /// Waits until the core, which has stopped, has let go of everything too, and the stores are closed.
    pub async fn close(self) {
        drop(self.published);
        self.database.close().await;
    }

    /// What is applied, as it changes.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }
}

fn publish(applied: &Applied) -> Published {
    Published {
        state: Arc::new(applied.state.clone()),
        index: applied.position.last_applied.as_ref().map(|log_id| log_id.index),
    }
}

/// A stored snapshot.
#[derive(Serialize, Deserialize)]
struct StoredSnapshot {
    last_log_id: Option<LogId>,
    membership: StoredMembership,
    data: Vec<u8>,
}

impl StoredSnapshot {
    fn into_snapshot(self) -> Snapshot {
        let meta = SnapshotMeta { last_log_id: self.last_log_id, last_membership: self.membership };
        Snapshot { meta, snapshot: self.data }
    }
}

impl StateMachine {
    #[cfg(test)]
    pub(super) fn limit_snapshots(&mut self, bytes: usize) {
        self.snapshot_bytes_max = bytes;
    }

    /// Whether the state is too large for a snapshot; told once, and before it comes to that each time.
    fn is_too_large(&mut self) -> bool {
        // Where it cannot be encoded building says so.
        let size = postcard::serialize_with_flavor(&self.applied.state, postcard::ser_flavors::Size::default());
        let (bytes, most) = (size.unwrap_or(0), self.snapshot_bytes_max);
        let is_too_large = bytes > most;
        let advice = "delete snapshots, volumes and credentials of clients that nobody needs";
        if is_too_large && !self.is_told {
            tracing::error!(
                bytes,
                most,
                "the metadata is too large for a snapshot of it: its log is kept, and grows; {advice}"
            );
        } else if !is_too_large && bytes > most / 4 * 3 {
            tracing::warn!(bytes, most, "the metadata is nearly too large for a snapshot of it: {advice}");
        }
        self.is_told = is_too_large;
        is_too_large
    }

    /// Writes what has changed of the applied state with `batch` and shows the state to readers. Not synced: the log can apply it again.
    fn store(applied: &mut Applied, mut batch: Batch<'_>, published: &watch::Sender<Published>) -> io::Result<()> {
        applied.store_changes(&mut batch)?;
        batch.write()?;
        published.send_replace(publish(applied));
        Ok(())
    }
}

impl RaftStateMachine<MetaTypes> for StateMachine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let Position { last_applied, membership } = self.applied.position.clone();
        Ok((last_applied, membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<MetaTypes>, io::Error>> + Unpin + Send,
    {
        let mut answers = Vec::new();
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let log_id = entry.log_id();
            let response = match entry.payload {
                EntryPayload::Blank => Response::Nothing,
                EntryPayload::Normal(command) => self.applied.state.apply(log_id.index, command),
                EntryPayload::Membership(membership) => {
                    self.applied.position.membership = StoredMembership::new(Some(log_id), membership);
                    Response::Nothing
                }
            };
            self.applied.position.last_applied = Some(log_id);
            answers.extend(responder.map(|responder| (responder, response)));
        }
        // Stored before anyone is answered, so that an answer never runs ahead of what readers see.
        Self::store(&mut self.applied, self.database.batch(), &self.published)?;
        for (responder, response) in answers {
            responder.send(response);
        }
        Ok(())
    }

    /// Never an error for the size: a core whose builder fails ends, and so would those of all nodes, again after each start.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        if !force && self.is_too_large() {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { database: self.database.clone(), applied: self.applied.clone(), _turn: self.turn.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> Result<(), io::Error> {
        let state = decode_state(&snapshot).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("a snapshot cannot be read: {error}"))
        })?;
        let position = Position { last_applied: meta.last_log_id, membership: meta.last_membership.clone() };
        self.applied = Applied { position, state };
        let stored =
            StoredSnapshot { last_log_id: meta.last_log_id, membership: meta.last_membership.clone(), data: snapshot };
        let mut batch = self.database.batch();
        // What is read has all its records still to be stored.
        batch.delete_range(META, RECORDS, RECORDS_END).put(META, SNAPSHOT, &stored)?;
        Self::store(&mut self.applied, batch, &self.published)?;
        // The log before it will be purged on the strength of this.
        self.database.synced().await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.database.get::<StoredSnapshot>(META, SNAPSHOT)?.map(StoredSnapshot::into_snapshot))
    }
}

/// Builds a snapshot of the state as it was when the builder was made.
pub struct SnapshotBuilder {
    database: Database,
    applied: Applied,
    _turn: Turn,
}

impl RaftSnapshotBuilder<MetaTypes> for SnapshotBuilder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let data = encode_state(&self.applied.state)?;
        let stored = StoredSnapshot {
            last_log_id: self.applied.position.last_applied,
            membership: self.applied.position.membership.clone(),
            data,
        };
        self.database.put(META, SNAPSHOT, &stored)?;
        self.database.synced().await?;
        Ok(stored.into_snapshot())
    }
}
