//! openraft's state machine over [`MetaState`]: apply, publish, snapshot.
//!
//! The state is small (names, owners, positions: no block data), so it is kept in memory and written whole with
//! every batch of applied entries, together with the position it stands for. A snapshot is the encoded state.

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

use super::database::{
    Database, FORMAT, FORMAT_4, FORMAT_5, FORMAT_6, FORMAT_7, FORMAT_8, META, MetaPlace, RAFT, decode,
};
use super::log_store::LogStore;
use super::types::{LogId, MetaTypes, Snapshot, SnapshotMeta, StoredMembership};
use crate::command::Response;
use crate::state::MetaState;
pub(super) use crate::state::before::{State4, State5, State6, State7, State8};

/// The largest snapshot that is sent or taken, in bytes; it travels in one frame.
pub const SNAPSHOT_BYTES_MAX: usize = 32 << 20;

/// What a snapshot begins with that has something which an older program would read past and drop: once for what format 7 has not
/// (somebody was removed or revoked), twice for what format 8 has not. It is no number in the eyes of such a program (a varint of postcard
/// ends within ten bytes), so that refuses all of it.
const NOT_FOR_OLDER: [u8; 10] = [0xff; 10];

/// The state as it is in a snapshot, which may go to nodes that run the version before.
pub(super) fn encode_state(state: &MetaState) -> io::Result<Vec<u8>> {
    let bytes = postcard::to_stdvec(state).map_err(io::Error::other)?;
    // While nothing is in it that they do not know, they read its beginning.
    let marks = match (state.has_keys(), state.access().is_empty()) {
        (true, _) => 2,
        (false, false) => 1,
        (false, true) => 0,
    };
    Ok([NOT_FOR_OLDER.repeat(marks), bytes].concat())
}

/// The state of a snapshot, which may have been made by a node that runs the version before.
pub(super) fn decode_state(bytes: &[u8]) -> postcard::Result<MetaState> {
    let once = bytes.strip_prefix(&NOT_FOR_OLDER);
    match (once, once.and_then(|bytes| bytes.strip_prefix(&NOT_FOR_OLDER))) {
        (_, Some(bytes)) => postcard::from_bytes(bytes),
        (Some(bytes), None) => postcard::from_bytes(bytes).or_else(|_| of_format_8(bytes)),
        (None, None) => postcard::from_bytes(bytes)
            .or_else(|_| of_format_8(bytes))
            .or_else(|_| postcard::from_bytes::<State7>(bytes).map(MetaState::from)),
    }
}

fn of_format_8(bytes: &[u8]) -> postcard::Result<MetaState> {
    postcard::from_bytes::<State8>(bytes).map(MetaState::from)
}

/// The applied state and where in the log it stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Applied {
    last_applied: Option<LogId>,
    membership: StoredMembership,
    state: MetaState,
}

/// The same in a format before, whose state is an `S`.
#[derive(Deserialize)]
struct AppliedBefore<S> {
    last_applied: Option<LogId>,
    membership: StoredMembership,
    state: S,
}

impl<S: Into<MetaState>> From<AppliedBefore<S>> for Applied {
    fn from(before: AppliedBefore<S>) -> Applied {
        let AppliedBefore { last_applied, membership, state } = before;
        Applied { last_applied, membership, state: state.into() }
    }
}

/// Makes a store of a format before, whose state is an `S`, one of the present format, in one step.
pub(super) fn take_over<S: DeserializeOwned + Into<MetaState>>(database: &Database) -> io::Result<()> {
    let mut batch = database.batch().put(RAFT, b"format", &FORMAT)?;
    if let Some(applied) = database.get::<AppliedBefore<S>>(META, b"applied")? {
        batch = batch.put(META, b"applied", &Applied::from(applied))?;
    }
    if let Some(mut snapshot) = database.get::<StoredSnapshot>(META, b"snapshot")? {
        let unmarked = snapshot.data.strip_prefix(&NOT_FOR_OLDER).unwrap_or(&snapshot.data);
        let state: S = postcard::from_bytes(unmarked).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot of the metadata cannot be read: {error}"))
        })?;
        snapshot.data = encode_state(&state.into())?;
        batch = batch.put(META, b"snapshot", &snapshot)?;
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
}

/// Opens both stores of a group, and a view of what is applied.
///
/// # Errors
/// When the directory cannot be used, is of a newer format, or holds corrupt values.
pub fn open(place: &MetaPlace, group: GroupId) -> io::Result<Stores> {
    let database = Database::open(place, group)?;
    let applied: Applied = database.get(META, b"applied")?.unwrap_or_default();
    let published = watch::Sender::new(publish(&applied));
    Ok(Stores { database, published })
}

/// The state that was applied last in a directory that nobody has open; `None` when nothing was. Nothing is changed.
///
/// # Errors
/// When the directory cannot be read, is of another format, or the state is corrupt.
pub fn peek(directory: &Path, group: GroupId) -> io::Result<Option<MetaState>> {
    const NAME: &[u8] = b"applied";
    let before = |format: u64, value: &[u8]| {
        Ok(Some(match format {
            FORMAT => decode::<Applied>(META, NAME, value)?,
            FORMAT_8 => decode::<AppliedBefore<State8>>(META, NAME, value)?.into(),
            FORMAT_7 => decode::<AppliedBefore<State7>>(META, NAME, value)?.into(),
            FORMAT_6 => decode::<AppliedBefore<State6>>(META, NAME, value)?.into(),
            FORMAT_5 => decode::<AppliedBefore<State5>>(META, NAME, value)?.into(),
            FORMAT_4 => decode::<AppliedBefore<State4>>(META, NAME, value)?.into(),
            _ => return Ok(None),
        }))
    };
    let applied = Database::peek(directory, group, META, NAME, before)?;
    Ok(applied.map(|applied| applied.state))
}

/// The opened stores; hands out storages for a Raft core, again after the core has stopped.
#[derive(Clone)]
pub struct Stores {
    database: Database,
    published: watch::Sender<Published>,
}

impl Stores {
    /// The storages for a core. At most one core may use them at a time.
    ///
    /// # Errors
    /// When the applied state cannot be read.
    pub fn storages(&self) -> io::Result<(LogStore, StateMachine)> {
        let applied: Applied = self.database.get(META, b"applied")?.unwrap_or_default();
        let machine = StateMachine { database: self.database.clone(), applied, published: self.published.clone() };
        Ok((LogStore::new(self.database.clone()), machine))
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
        index: applied.last_applied.as_ref().map(|log_id| log_id.index),
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
    /// Writes the applied state and shows it to readers. Not synced: the log can apply it again.
    fn store(&mut self) -> io::Result<()> {
        self.database.put(META, b"applied", &self.applied)?;
        self.published.send_replace(publish(&self.applied));
        Ok(())
    }
}

impl RaftStateMachine<MetaTypes> for StateMachine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied.last_applied, self.applied.membership.clone()))
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
                    self.applied.membership = StoredMembership::new(Some(log_id), membership);
                    Response::Nothing
                }
            };
            self.applied.last_applied = Some(log_id);
            answers.extend(responder.map(|responder| (responder, response)));
        }
        // Stored before anyone is answered, so that an answer never runs ahead of what readers see.
        self.store()?;
        for (responder, response) in answers {
            responder.send(response);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { database: self.database.clone(), applied: self.applied.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> Result<(), io::Error> {
        let state = decode_state(&snapshot).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("a snapshot cannot be read: {error}"))
        })?;
        self.applied = Applied { last_applied: meta.last_log_id, membership: meta.last_membership.clone(), state };
        let stored =
            StoredSnapshot { last_log_id: meta.last_log_id, membership: meta.last_membership.clone(), data: snapshot };
        self.database.put(META, b"snapshot", &stored)?;
        self.store()?;
        // The log before it will be purged on the strength of this.
        self.database.synced().await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.database.get::<StoredSnapshot>(META, b"snapshot")?.map(StoredSnapshot::into_snapshot))
    }
}

/// Builds a snapshot of the state as it was when the builder was made.
pub struct SnapshotBuilder {
    database: Database,
    applied: Applied,
}

impl RaftSnapshotBuilder<MetaTypes> for SnapshotBuilder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let data = encode_state(&self.applied.state)?;
        if data.len() > SNAPSHOT_BYTES_MAX {
            return Err(io::Error::other(format!(
                "the metadata has {} bytes, over the limit of {SNAPSHOT_BYTES_MAX}",
                data.len()
            )));
        }
        let stored = StoredSnapshot {
            last_log_id: self.applied.last_applied,
            membership: self.applied.membership.clone(),
            data,
        };
        self.database.put(META, b"snapshot", &stored)?;
        self.database.synced().await?;
        Ok(stored.into_snapshot())
    }
}
