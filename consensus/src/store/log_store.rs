//! openraft's log storage: entries, vote, committed and purged positions.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};

use super::database::{Database, LOG, RAFT};
use super::state_machine::Turn;
use super::types::{Entry, LogId, MetaTypes, Vote};

/// The log of the metadata group. Its readers read the same log.
pub struct LogStore {
    database: Database,
    /// `None` of one that only reads.
    _turn: Option<Turn>,
}

impl LogStore {
    pub(super) fn new(database: Database, turn: Turn) -> LogStore {
        LogStore { database, _turn: Some(turn) }
    }
}

fn key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

impl RaftLogReader<MetaTypes> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.database.range(LOG, &key(from), &key(to))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.database.get(RAFT, b"vote")
    }
}

impl RaftLogStorage<MetaTypes> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<MetaTypes>, io::Error> {
        let last_purged_log_id: Option<LogId> = self.database.get(RAFT, b"purged")?;
        let last_log_id = self.database.last::<Entry>(LOG)?.map(|entry| entry.log_id()).or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        LogStore { database: self.database.clone(), _turn: None }
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.database.put(RAFT, b"vote", vote)?;
        self.database.synced().await
    }

    /// Not synced: an older committed position only means that more is applied again.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.database.put(RAFT, b"committed", &committed)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.database.get::<Option<LogId>>(RAFT, b"committed")?.flatten())
    }

    /// Readable on return, synced when `callback` is called.
    async fn append<I>(&mut self, entries: I, callback: IOFlushed<MetaTypes>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut batch = self.database.batch();
        for entry in entries {
            batch.put(LOG, &key(entry.log_id().index), &entry)?;
        }
        batch.write()?;
        self.database.when_synced(move |result| callback.io_completed(result))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let first = last_log_id.map_or(0, |log_id| log_id.index + 1);
        let mut batch = self.database.batch();
        batch.delete_range(LOG, &key(first), &key(u64::MAX));
        batch.write()?;
        self.database.synced().await
    }

    /// In one batch with the position: a gap at the start of the log is never without its reason.
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let mut batch = self.database.batch();
        batch.put(RAFT, b"purged", &log_id)?.delete_range(LOG, &key(0), &key(log_id.index + 1));
        batch.write()
    }
}
