//! The last changes of owner that this node carried out, and what took how long in each: for people, in memory, never decided by.
//!
//! A handover is told of by the owner that hands over, a takeover by the node that takes over. An [`Account`] is written while it goes
//! on, so that it can be looked at meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client_lib::{Epoch, NodeId, VolumeId};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Changes that are kept; the oldest goes for a new one.
pub const ACCOUNTS_MAX: usize = 256;

/// Phases that are kept of a change; the last one goes on for what would be more.
const PHASES_MAX: usize = 32;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The destination is asked where it is.
    Asking,
    /// It is waited until the destination has nearly everything.
    CatchingUp,
    /// The destination is told what changed, before anybody waits for it.
    Telling,
    /// Writers are held from here on; what is under way ends, and is synced.
    Freezing,
    /// The destination gets the rest of what it must know.
    Preparing,
    /// Consensus is asked.
    Proposing,
    /// Nobody could tell what consensus said: it is found out.
    Resolving,
    /// This node becomes a replica, and what was held goes to the new owner; or everything stays.
    Releasing,
    /// The owner's lease is waited out.
    Waiting,
    /// Consensus is asked to agree that it is out.
    Expiring,
    /// What is complete is applied, and nothing more is taken from the owner.
    Holding,
    /// This node begins to serve.
    TakingUp,
}

impl Phase {
    /// Its name, as it is told.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Asking => "asking",
            Phase::CatchingUp => "catching-up",
            Phase::Telling => "telling",
            Phase::Freezing => "freezing",
            Phase::Preparing => "preparing",
            Phase::Proposing => "proposing",
            Phase::Resolving => "resolving",
            Phase::Releasing => "releasing",
            Phase::Waiting => "waiting",
            Phase::Expiring => "expiring",
            Phase::Holding => "holding",
            Phase::TakingUp => "taking-up",
        }
    }

    /// What that is, in words.
    #[must_use]
    pub fn doing(self) -> &'static str {
        match self {
            Phase::Asking => "asking the new owner where it is",
            Phase::CatchingUp => "waiting until the new owner has nearly everything",
            Phase::Telling => "telling the new owner what changed",
            Phase::Freezing => "holding writers, syncing what they wrote",
            Phase::Preparing => "putting together what the new owner must know",
            Phase::Proposing => "having the metadata agree",
            Phase::Resolving => "finding out what the metadata agreed on",
            Phase::Releasing => "letting writers go on",
            Phase::Waiting => "waiting until the lost owner's lease is out",
            Phase::Expiring => "having the metadata agree that the lease is out",
            Phase::Holding => "applying what is complete here",
            Phase::TakingUp => "beginning to serve",
        }
    }
}

/// How a change of owner came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A handover at once.
    Instant,
    /// A handover once the destination had everything.
    Synced,
    /// A handover because the volume was written at the destination.
    OnWrite,
    /// A takeover.
    Takeover,
    /// A handover because the store at the source takes no writes any more.
    Rescue,
}

/// What was to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// How it came about.
    pub kind: Kind,
    /// The volumes, and the epochs that were to end.
    pub volumes: Vec<(VolumeId, Epoch)>,
    /// The old owner.
    pub from: NodeId,
    /// The new one.
    pub to: NodeId,
}

/// A phase that began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Which.
    pub phase: Phase,
    /// When, since the change began.
    pub began: Duration,
    /// How long it took, or takes by now.
    pub took: Duration,
}

/// How a change of owner ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The new owner has it; it lacked so many bytes.
    Moved(u64),
    /// Everything stays, or what became of it is not known.
    Failed(String),
}

/// What is told of a change of owner of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// How it came about.
    pub kind: Kind,
    /// The old owner.
    pub from: NodeId,
    /// The new one.
    pub to: NodeId,
    /// The epoch that was to end.
    pub epoch: Epoch,
    /// How many volumes it was about.
    pub volumes: usize,
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// How long it took, or takes by now.
    pub took: Duration,
    /// What was done.
    pub spans: Vec<Span>,
    /// How it ended; `None` while it goes on.
    pub end: Option<End>,
}

#[derive(Debug)]
struct Course {
    /// Phases and when they began.
    phases: Vec<(Phase, Duration)>,
    end: Option<(Duration, End)>,
}

/// One change of owner, as it goes.
#[derive(Debug)]
pub struct Account {
    subject: Subject,
    began_ms: u64,
    began: Instant,
    course: Mutex<Course>,
}

impl Account {
    /// Begins now, which is `now_ms` in milliseconds since 1970.
    #[must_use]
    pub fn begin(subject: Subject, now_ms: u64) -> Arc<Account> {
        let course = Mutex::new(Course { phases: Vec::new(), end: None });
        Arc::new(Account { subject, began_ms: now_ms, began: Instant::now(), course })
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `phase` begins, and the one before ends. The same one again goes on.
    pub fn enter(&self, phase: Phase) {
        let now = self.began.elapsed();
        let mut course = self.course();
        let is_new = course.phases.last().is_none_or(|(last, _)| *last != phase);
        if is_new && course.end.is_none() && course.phases.len() < PHASES_MAX {
            course.phases.push((phase, now));
        }
    }

    /// It is over. The first end counts.
    pub fn end(&self, end: End) {
        let now = self.began.elapsed();
        self.course().end.get_or_insert((now, end));
    }

    /// What is told of it, as far as it is about `volume`.
    fn told(&self, volume: VolumeId) -> Option<Told> {
        let (_, epoch) = self.subject.volumes.iter().find(|(id, _)| *id == volume)?;
        let course = self.course();
        let took = course.end.as_ref().map_or_else(|| self.began.elapsed(), |(took, _)| *took);
        let ends = course.phases.iter().skip(1).map(|(_, began)| *began).chain([took]);
        let spans = course.phases.iter().zip(ends);
        Some(Told {
            kind: self.subject.kind,
            from: self.subject.from,
            to: self.subject.to,
            epoch: *epoch,
            volumes: self.subject.volumes.len(),
            began_ms: self.began_ms,
            took,
            spans: spans.map(|(&(phase, began), end)| Span { phase, began, took: end.saturating_sub(began) }).collect(),
            end: course.end.as_ref().map(|(_, end)| end.clone()),
        })
    }
}

/// The last changes of owner that this node carried out.
#[derive(Debug, Default)]
pub struct Chronicle {
    accounts: Mutex<VecDeque<Arc<Account>>>,
}

impl Chronicle {
    /// Begins to tell of a change of owner, now, which is `now_ms` in milliseconds since 1970.
    pub fn open(&self, subject: Subject, now_ms: u64) -> Arc<Account> {
        let account = Account::begin(subject, now_ms);
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() == ACCOUNTS_MAX {
            accounts.pop_front();
        }
        accounts.push_back(account.clone());
        account
    }

    /// The changes that were about `volume`, the newest first.
    #[must_use]
    pub fn of(&self, volume: VolumeId) -> Vec<Told> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.iter().rev().filter_map(|account| account.told(volume)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(volume: u64) -> Subject {
        let volumes = vec![(VolumeId(volume), Epoch(1)), (VolumeId(volume + 1), Epoch(7))];
        Subject { kind: Kind::Synced, volumes, from: NodeId(1), to: NodeId(2) }
    }

    #[tokio::test(start_paused = true)]
    async fn phases_follow_each_other_and_the_last_one_goes_on_until_the_end() {
        let ms = Duration::from_millis;
        let pass = |time| tokio::time::advance(ms(time));
        let chronicle = Chronicle::default();
        let account = chronicle.open(subject(5), 1000);
        account.enter(Phase::Asking);
        pass(10).await;
        account.enter(Phase::Asking);
        pass(10).await;
        account.enter(Phase::Freezing);
        pass(7).await;
        let told = chronicle.of(VolumeId(6)).remove(0);
        assert_eq!((told.epoch, told.volumes, told.began_ms, told.took, told.end), (Epoch(7), 2, 1000, ms(27), None));
        let asking = Span { phase: Phase::Asking, began: ms(0), took: ms(20) };
        assert_eq!(told.spans, [asking, Span { phase: Phase::Freezing, began: ms(20), took: ms(7) }]);
        pass(3).await;
        account.end(End::Moved(4096));
        pass(100).await;
        account.enter(Phase::Releasing);
        account.end(End::Failed("late".to_owned()));
        let told = chronicle.of(VolumeId(5)).remove(0);
        assert_eq!((told.epoch, told.took, told.end), (Epoch(1), ms(30), Some(End::Moved(4096))));
        assert_eq!(told.spans, [asking, Span { phase: Phase::Freezing, began: ms(20), took: ms(10) }]);
        assert!(chronicle.of(VolumeId(7)).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_comes_first_and_only_so_many_are_kept() {
        let chronicle = Chronicle::default();
        for number in 0..ACCOUNTS_MAX as u64 + 10 {
            chronicle.open(subject(1), number);
        }
        let told = chronicle.of(VolumeId(1));
        assert_eq!(told.len(), ACCOUNTS_MAX);
        assert_eq!(told.first().map(|told| told.began_ms), Some(ACCOUNTS_MAX as u64 + 9));
        assert_eq!(told.last().map(|told| told.began_ms), Some(10));
    }
}
