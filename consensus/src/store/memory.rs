//! The metadata store of a simulated machine: what was not synced is lost with the power, from some point on.
//!
//! As RocksDB's write-ahead log: batches survive in the order in which they were written, whole, those that were synced
//! all of them, of the others a first part. The disk outlives those who open it, as a real one does. A sync takes time and
//! happens on the runtime of whoever asked.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client_lib::random;
use tokio::sync::mpsc;

/// Who waits for a sync.
pub(super) type Waiter = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Family, key.
type Key = (&'static str, Vec<u8>);
type Rows = BTreeMap<Key, Vec<u8>>;

/// The longest that a sync takes, in microseconds.
const SYNC_US_MAX: u64 = 4_000;

/// One change of the rows.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Put(&'static str, Vec<u8>, Vec<u8>),
    Delete(&'static str, Vec<u8>),
    /// The keys of a family from the first up to and without the second.
    DeleteRange(&'static str, Vec<u8>, Vec<u8>),
}

#[derive(Debug, Default)]
struct State {
    live: Rows,
    durable: Rows,
    /// Batches that are in `live` and not in `durable`.
    unsynced: VecDeque<Vec<Step>>,
    /// Whether syncs only say that they are done.
    lies: bool,
}

fn carry_out(rows: &mut Rows, batch: &[Step]) {
    for step in batch {
        match step {
            Step::Put(family, key, value) => drop(rows.insert((family, key.clone()), value.clone())),
            Step::Delete(family, key) => drop(rows.remove(&(*family, key.clone()))),
            Step::DeleteRange(family, from, to) => {
                let range = (Bound::Included((*family, from.clone())), Bound::Excluded((*family, to.clone())));
                let gone: Vec<Key> = rows.range(range).map(|(key, _)| key.clone()).collect();
                for key in gone {
                    rows.remove(&key);
                }
            }
        }
    }
}

/// The disk that a metadata store is on. Cheap to clone; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MetaDisk(Arc<Mutex<State>>);

impl MetaDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts the power: of what was not synced a first part survives, how much is drawn.
    pub fn crash(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let kept = random::bits() as usize % (state.unsynced.len() + 1);
        for batch in state.unsynced.drain(..).take(kept) {
            carry_out(&mut state.durable, &batch);
        }
        state.live.clone_from(&state.durable);
    }

    /// Whether from now on nothing is made durable, without a word.
    pub fn lie_about_syncs(&self, lies: bool) {
        self.state().lies = lies;
    }

    /// Batches that a power cut could take away.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.state().unsynced.len()
    }

    /// Bytes of keys and values that a power cut could take away; from now on it cannot.
    #[cfg(test)]
    pub(super) fn take_unsynced_bytes(&self) -> usize {
        let state = self.state();
        let bytes = |step: &Step| match step {
            Step::Put(_, key, value) => key.len() + value.len(),
            Step::Delete(_, key) => key.len(),
            Step::DeleteRange(_, from, to) => from.len() + to.len(),
        };
        let sum = state.unsynced.iter().flatten().map(bytes).sum();
        drop(state);
        self.sync();
        sum
    }

    pub(super) fn get<T>(&self, family: &'static str, key: Vec<u8>, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.state().live.get(&(family, key)).map(|value| read(value))
    }

    /// The rows of a family from `from` up to and without `to`.
    pub(super) fn range(&self, family: &'static str, from: Vec<u8>, to: Vec<u8>) -> Vec<(Vec<u8>, Vec<u8>)> {
        let state = self.state();
        let range = (Bound::Included((family, from)), Bound::Excluded((family, to)));
        state.live.range(range).map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }

    /// The last row of a family before `end`.
    pub(super) fn last(&self, family: &'static str, end: Vec<u8>) -> Option<(Vec<u8>, Vec<u8>)> {
        let state = self.state();
        let range = (Bound::Included((family, Vec::new())), Bound::Excluded((family, end)));
        state.live.range(range).next_back().map(|((_, key), value)| (key.clone(), value.clone()))
    }

    pub(super) fn write(&self, batch: Vec<Step>) {
        let mut state = self.state();
        carry_out(&mut state.live, &batch);
        state.unsynced.push_back(batch);
    }

    fn sync(&self) {
        let mut state = self.state();
        let state = &mut *state;
        if state.lies {
            return;
        }
        for batch in state.unsynced.drain(..) {
            carry_out(&mut state.durable, &batch);
        }
    }

    /// Starts what syncs, for whoever comes, in the order of their coming; it ends with the last sender.
    pub(super) fn syncer(&self) -> mpsc::UnboundedSender<Waiter> {
        let (sender, mut waiters) = mpsc::unbounded_channel::<Waiter>();
        let disk = self.clone();
        tokio::spawn(async move {
            while let Some(first) = waiters.recv().await {
                let mut all = vec![first];
                // Only what was written before the sync began is sure to be in it.
                while let Ok(waiter) = waiters.try_recv() {
                    all.push(waiter);
                }
                tokio::time::sleep(Duration::from_micros(random::bits() % SYNC_US_MAX)).await;
                disk.sync();
                for waiter in all {
                    waiter(Ok(()));
                }
            }
        });
        sender
    }
}
