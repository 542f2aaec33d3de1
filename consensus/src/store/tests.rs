//! openraft's own suite on our stores, and what it does not test: durability across a reopening.

use client_lib::{GroupId, NodeId};
use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::vote::RaftLeaderId;

use super::log_store::LogStore;
use super::state_machine::{StateMachine, open};
use super::types::{Entry, LogId, MetaTypes, Vote};
use crate::command::Command;

struct Builder;

impl StoreBuilder<MetaTypes, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<MetaTypes>> {
        let directory = tempfile::tempdir().expect("a directory");
        let (log, machine) = open(directory.path(), GroupId::META).expect("opens").storages().expect("reads");
        Ok((directory, log, machine))
    }
}

#[tokio::test]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).await.expect("conforms");
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::vote::leader_id_adv::CommittedLeaderId::new(term, 1), index)
}

#[tokio::test]
async fn votes_and_entries_are_there_after_the_process_died() {
    let directory = tempfile::tempdir().expect("a directory");
    let vote = Vote::new(7, 1);
    {
        let (mut log, _machine) = open(directory.path(), GroupId::META).expect("opens").storages().expect("reads");
        log.save_vote(&vote).await.expect("is saved");
        let entry = Entry::new_normal(log_id(7, 1), Command::NodeStarted { node: NodeId(3) });
        log.append([entry], IOFlushed::noop()).await.expect("is appended");
        log.save_committed(Some(log_id(7, 1))).await.expect("is saved");
        // Dropped without a shutdown.
    }
    let (mut log, _machine) = open(directory.path(), GroupId::META).expect("opens").storages().expect("reads");
    assert_eq!(log.read_vote().await.expect("reads"), Some(vote));
    let entries = log.try_get_log_entries(0..10).await.expect("reads");
    assert_eq!(entries.iter().map(|entry| entry.log_id().index).collect::<Vec<_>>(), [1]);
    assert_eq!(log.read_committed().await.expect("reads"), Some(log_id(7, 1)));
}

#[tokio::test]
async fn groups_do_not_see_each_other() {
    let directory = tempfile::tempdir().expect("a directory");
    {
        let (mut log, _machine) = open(directory.path(), GroupId(1)).expect("opens").storages().expect("reads");
        log.save_vote(&Vote::new(7, 1)).await.expect("is saved");
    }
    let (mut log, _machine) = open(directory.path(), GroupId(2)).expect("opens").storages().expect("reads");
    assert_eq!(log.read_vote().await.expect("reads"), None);
    assert_eq!(log.get_log_state().await.expect("reads").last_log_id, None);
}
