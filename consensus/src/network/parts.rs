//! Snapshots that are too large for one call: cut into parts, which are sent one after the other and put together where they arrive.
//!
//! A node puts one snapshot together at a time. Whatever begins replaces what was not finished; a part that is not the next one is refused, and then
//! the leader begins again. Smaller snapshots go in one call ([`Request::Snapshot`]), which programs that know no parts take, too.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::Request;
use crate::store::state_machine::SNAPSHOT_BYTES_MAX;
use crate::store::types::{LogId, Snapshot, SnapshotMeta, StoredMembership, Vote};

/// What goes in one call at most, in bytes. Small in tests, so that parts are what their snapshots go in.
pub(super) const AT_ONCE_MAX: usize = if cfg!(test) { 512 } else { 32 << 20 };

/// How large the parts are of what does not, in bytes.
pub(super) const PART_BYTES: usize = if cfg!(test) { 200 } else { 8 << 20 };

/// A part of a snapshot.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    vote: Vote,
    last_log_id: Option<LogId>,
    membership: StoredMembership,
    /// How large all of it is.
    whole_bytes: u64,
    /// How much came before this.
    from: u64,
    data: Vec<u8>,
}

/// The requests in which a snapshot is sent, in their order.
pub(super) fn requests(vote: Vote, snapshot: Snapshot) -> impl Iterator<Item = Request> {
    let Snapshot { meta: SnapshotMeta { last_log_id, last_membership: membership }, snapshot: data } = snapshot;
    let part_bytes = if data.len() <= AT_ONCE_MAX { data.len().max(1) } else { PART_BYTES };
    let count = data.len().div_ceil(part_bytes).max(1);
    (0..count).map(move |number| {
        let membership = membership.clone();
        let (from, to) = (number * part_bytes, data.len().min((number + 1) * part_bytes));
        let (whole_bytes, data) = (data.len() as u64, data[from..to].to_vec());
        match count {
            1 => Request::Snapshot { vote, last_log_id, membership, data },
            _ => Request::SnapshotPart(Part { vote, last_log_id, membership, whole_bytes, from: from as u64, data }),
        }
    })
}

/// What came of a part.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is kept, and others follow.
    Kept,
    /// It was the last one.
    Whole(Vote, Snapshot),
    /// It is not the next part of what is put together here.
    Refused(String),
}

/// The snapshot that is put together here, as far as it has come. Kept in memory, at most [`SNAPSHOT_BYTES_MAX`].
#[derive(Default)]
pub(crate) struct Parts(Mutex<Option<Part>>);

impl Parts {
    /// Takes the next part.
    pub(crate) fn take(&self, part: Part) -> Taken {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if part.whole_bytes > SNAPSHOT_BYTES_MAX as u64 {
            return Taken::Refused(format!("a snapshot of {} bytes is too large", part.whole_bytes));
        }
        let kept = match parts.take() {
            _ if part.from == 0 => part,
            Some(mut kept) if part.continues(&kept) => {
                kept.data.extend(part.data);
                kept
            }
            other => {
                *parts = other;
                return Taken::Refused(
                    "this is not the next part of the snapshot that is put together here".to_owned(),
                );
            }
        };
        match (kept.data.len() as u64).cmp(&kept.whole_bytes) {
            std::cmp::Ordering::Less => {
                *parts = Some(kept);
                Taken::Kept
            }
            std::cmp::Ordering::Equal => {
                let meta = SnapshotMeta { last_log_id: kept.last_log_id, last_membership: kept.membership };
                Taken::Whole(kept.vote, Snapshot { meta, snapshot: kept.data })
            }
            std::cmp::Ordering::Greater => Taken::Refused("a snapshot has more parts than it is large".to_owned()),
        }
    }
}

impl Part {
    /// Whether it is the next one of the same snapshot of the same leader.
    fn continues(&self, kept: &Part) -> bool {
        self.vote == kept.vote
            && self.last_log_id == kept.last_log_id
            && self.membership == kept.membership
            && self.whole_bytes == kept.whole_bytes
            && self.from == kept.data.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(bytes: usize) -> Snapshot {
        let meta = SnapshotMeta { last_log_id: None, last_membership: StoredMembership::default() };
        Snapshot { meta, snapshot: (0..bytes).map(|at| at as u8).collect() }
    }

    fn parts(term: u64, bytes: usize) -> Vec<Part> {
        let part = |request| match request {
            Request::SnapshotPart(part) => part,
            _ => panic!("{bytes} bytes go in one call"),
        };
        requests(Vote::new(term, 1), snapshot(bytes)).map(part).collect()
    }

    #[test]
    fn what_is_small_goes_in_one_call_as_before() {
        for bytes in [0, 1, AT_ONCE_MAX] {
            let sent: Vec<Request> = requests(Vote::new(1, 1), snapshot(bytes)).collect();
            assert!(matches!(&sent[..], [Request::Snapshot { data, .. }] if data.len() == bytes), "{bytes}");
        }
    }

    #[test]
    fn what_is_large_is_put_together_from_its_parts() {
        for bytes in [AT_ONCE_MAX + 1, 4 * PART_BYTES - 1, 4 * PART_BYTES, 4 * PART_BYTES + 1] {
            let (here, mut sent) = (Parts::default(), parts(1, bytes));
            assert_eq!(sent.len(), bytes.div_ceil(PART_BYTES));
            let last = sent.pop().expect("there are some");
            assert!(sent.into_iter().all(|part| matches!(here.take(part), Taken::Kept)));
            let Taken::Whole(_, whole) = here.take(last) else { panic!("it was the last one") };
            assert_eq!(whole.snapshot, snapshot(bytes).snapshot);
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused_and_whatever_begins_replaces_the_rest() {
        let (here, old, new) = (Parts::default(), parts(1, 700), parts(2, 700));
        let is_refused = |part: &Part| matches!(here.take(part.clone()), Taken::Refused(_));
        let is_kept = |part: &Part| matches!(here.take(part.clone()), Taken::Kept);
        assert!(is_refused(&old[1]), "nothing has begun");
        assert!(is_kept(&old[0]) && is_refused(&old[2]) && is_kept(&old[1]), "one was left out, and is still awaited");
        assert!(is_refused(&old[1]), "it came twice");
        assert!(is_kept(&new[0]) && is_refused(&old[2]) && is_kept(&new[1]), "another leader has begun");
        let long = Part { data: vec![0; 700], ..new[2].clone() };
        assert!(is_refused(&long) && is_refused(&new[2]), "nothing of it is kept");
        let huge = Part { whole_bytes: SNAPSHOT_BYTES_MAX as u64 + 1, ..old[0].clone() };
        assert!(is_refused(&huge));
    }
}
