//! The journal against owners that restart with and without what they had not synced, hand over, and are taken over from.

use proptest::prelude::*;

use super::*;
use crate::types::NodeId;
use crate::wire::client::{ForkInfo, Tenure};

const BLOCKS: u64 = 6;
const CAPACITY: u64 = 20 * (ENTRY_COST + 2);

/// A write that an owner carried out.
#[derive(Clone, Debug)]
struct Done {
    session: u64,
    number: u64,
    write: Write,
    lsn: Lsn,
}

/// The volume at its present owner, and how it comes to be at others.
#[derive(Debug)]
struct Volume {
    log: Vec<Done>,
    /// How many of them a power cut leaves.
    synced: usize,
    /// How many of them a takeover leaves.
    propagated: usize,
    /// From which the owner knows the numbers: a replica that takes over knows none.
    numbered: usize,
    answered: (u64, u64),
    /// The numbers that an earlier owner has, those of a history that was cut off among them.
    left_behind: Vec<(u64, u64)>,
    /// Those that the present owner has from then: it is that earlier one.
    of_old: Vec<(u64, u64)>,
    tenure: Tenure,
    forks: Vec<ForkInfo>,
}

impl Volume {
    fn new() -> Volume {
        let tenure = Tenure { epoch: Epoch(1), incarnation: 1 };
        Volume {
            log: Vec::new(),
            synced: 0,
            propagated: 0,
            numbered: 0,
            answered: (0, 0),
            left_behind: Vec::new(),
            of_old: Vec::new(),
            tenure,
            forks: Vec::new(),
        }
    }

    fn head(&self) -> Lsn {
        self.log.last().map_or(Lsn::ZERO, |done| done.lsn)
    }

    fn has(&self, session: u64, number: u64) -> bool {
        let is_over = self.answered.0 == session && number < self.answered.1;
        is_over
            || self.of_old.contains(&(session, number))
            || self.log[self.numbered..].iter().any(|done| (done.session, done.number) == (session, number))
    }

    fn carry_out(&mut self, session: u64, number: u64, answered: u64, write: Write) -> Lsn {
        if !self.has(session, number) {
            let lsn = Lsn::new(self.tenure.epoch, self.head().sequence + 1);
            self.log.push(Done { session, number, write, lsn });
            self.answered = (session, answered);
        }
        self.head()
    }

    fn attached(&self, session: u64) -> Attached {
        let numbers = self.log[self.numbered..].iter().filter(|done| done.session == session);
        let mut runs: Vec<(u64, u64)> = numbers.map(|done| (done.number, done.number + 1)).collect();
        if self.answered.0 == session {
            runs.push((0, self.answered.1));
        }
        runs.extend(self.of_old.iter().filter(|(of, _)| *of == session).map(|(_, number)| (*number, *number + 1)));
        Attached {
            tenure: self.tenure,
            owner: NodeId(1),
            size: BLOCKS,
            head: self.head(),
            forks: self.forks.clone(),
            claimed: Epoch(0),
            done: vec![(session, runs)],
        }
    }

    fn cut(&mut self, left: usize) {
        self.log.truncate(left);
        self.synced = self.synced.min(left);
        self.propagated = self.propagated.min(left);
        self.numbered = self.numbered.min(left);
    }

    fn byte(&self, block: u64) -> u8 {
        let newest = self.log.iter().rev().find(|done| covers(&done.write, block));
        newest.map_or(0, |done| content(&done.write, block))
    }
}

fn covers(write: &Write, block: u64) -> bool {
    (write.offset..write.offset + write.length).contains(&block)
}

fn content(write: &Write, block: u64) -> u8 {
    write.data.as_ref().map_or(0, |data| data[(block - write.offset) as usize])
}

#[derive(Clone, Debug)]
enum Step {
    /// Begins a write; it may get as far as the owner, and its ack as far as the client.
    Write {
        block: u64,
        length: u64,
        zero: bool,
        arrives: bool,
        acked: bool,
    },
    /// Sends an open write once more.
    Retry(prop::sample::Index),
    Flush,
    /// The owner's process ends and comes back, with what it had, or without what it had not synced.
    Restart {
        power: bool,
    },
    /// To a node that follows, or back to one from which the volume was taken over.
    HandOver {
        back: bool,
    },
    /// A replica takes over with what was propagated and some more.
    TakeOver {
        more: prop::sample::Index,
        less: bool,
    },
    /// Syncs and propagates, as it happens in the background.
    Background(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => (0..BLOCKS, 1u64..3, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(block, length, zero, arrives, acked)| {
            Step::Write { block, length: length.min(BLOCKS - block), zero, arrives, acked: arrives && acked }
        }),
        4 => index().prop_map(Step::Retry),
        2 => Just(Step::Flush),
        2 => any::<bool>().prop_map(|power| Step::Restart { power }),
        1 => any::<bool>().prop_map(|back| Step::HandOver { back }),
        1 => (index(), prop::bool::weighted(0.1)).prop_map(|(more, less)| Step::TakeOver { more, less }),
        1 => index().prop_map(Step::Background),
    ]
}

struct Client {
    journal: Journal,
    sessions: u64,
    /// Per block, what was acked last, and what was begun and not acked since.
    acked: [u8; BLOCKS as usize],
    open: Vec<(WriteKey, Write)>,
}

impl Client {
    fn ack(&mut self, key: WriteKey, lsn: Lsn) {
        self.journal.acked(key, lsn);
        // Not open where it is one that was acked before and was lost since.
        if let Some(at) = self.open.iter().position(|(open, _)| *open == key) {
            let (_, write) = self.open.remove(at);
            for block in write.offset..write.offset + write.length {
                self.acked[block as usize] = content(&write, block);
            }
        }
    }

    fn send(&mut self, key: WriteKey, volume: &mut Volume) -> Option<Lsn> {
        let (number, write) = self.journal.to_send(key)?;
        Some(volume.carry_out(self.journal.session(), number, self.journal.answered(), write))
    }

    /// Attaches to a new tenure and sends what it lacks, but for what comes after `cut_off` of them.
    fn recover(&mut self, volume: &mut Volume, cut_off: Option<usize>) -> Result<(), Lost> {
        let attached = volume.attached(self.journal.session());
        if self.journal.needs_session(&attached) {
            self.sessions += 1;
            self.journal.recover(&attached, self.sessions)?;
        } else {
            self.journal.recover(&attached, self.journal.session())?;
        }
        // A write of which the new tenure says that it has it is acked by that.
        let known: Vec<WriteKey> =
            self.open.iter().map(|(key, _)| *key).filter(|key| self.journal.to_send(*key).is_none()).collect();
        for key in known {
            self.ack(key, attached.head);
        }
        let missing: Vec<WriteKey> = self.journal.open().map(|(key, _, _)| key).collect();
        for key in missing.into_iter().take(cut_off.unwrap_or(usize::MAX)) {
            let lsn = self.send(key, volume).expect("is open");
            self.ack(key, lsn);
        }
        Ok(())
    }

    /// Every byte is as it was acked last, or as a write has it that is under way.
    fn check(&self, volume: &Volume) -> Result<(), TestCaseError> {
        for block in 0..BLOCKS {
            let found = volume.byte(block);
            let under_way = self.open.iter().any(|(_, write)| covers(write, block) && content(write, block) == found);
            prop_assert!(
                found == self.acked[block as usize] || under_way,
                "block {} is {} and not {}: {:?} {:?}",
                block,
                found,
                self.acked[block as usize],
                volume,
                self.journal
            );
        }
        Ok(())
    }
}

fn run(steps: Vec<(Step, Option<u8>, bool)>) -> Result<(), TestCaseError> {
    let mut volume = Volume::new();
    let mut client =
        Client { journal: Journal::new(CAPACITY, 0), sessions: 0, acked: [0; BLOCKS as usize], open: Vec::new() };
    client.recover(&mut volume, None).expect("nothing is lost at the begin");
    // The write of the client that no loss may cut off, as a position in the log.
    let mut settled = 0;
    let mut attached = volume.tenure;
    for (count, (step, cut_off, is_away)) in steps.into_iter().enumerate() {
        if attached != volume.tenure && matches!(step, Step::Write { .. } | Step::Retry(_) | Step::Flush) {
            // What it asks for is refused until it is attached.
            client.recover(&mut volume, None).expect("nothing durable is lost");
            attached = volume.tenure;
        }
        match step {
            Step::Write { block, length, zero, arrives, acked } => {
                let byte = (count % 250) as u8 + 1;
                let data = (!zero).then(|| Bytes::from(vec![byte; length as usize]));
                let write = Write { offset: block, length, data, fua: false };
                if client.journal.obstacle(&write).is_some() {
                    continue;
                }
                let key = client.journal.begin(write.clone());
                client.open.push((key, write));
                if arrives
                    && let Some(lsn) = client.send(key, &mut volume)
                    && acked
                {
                    client.ack(key, lsn);
                }
            }
            Step::Retry(index) => {
                if client.open.is_empty() {
                    continue;
                }
                let (key, _) = client.open[index.index(client.open.len())];
                let lsn = client.send(key, &mut volume).expect("is open");
                client.ack(key, lsn);
            }
            Step::Flush => {
                let mark = client.journal.mark();
                (volume.synced, volume.propagated) = (volume.log.len(), volume.log.len());
                client.journal.flushed(mark);
                settled = volume.log.len();
                prop_assert_eq!(
                    client.journal.bytes(),
                    client.journal.entries.values().map(|e| e.write.cost()).sum::<u64>()
                );
            }
            Step::Restart { power } => {
                if power {
                    volume.cut(volume.synced);
                }
                volume.tenure.incarnation += 1;
            }
            Step::HandOver { back } => {
                if back {
                    volume.of_old.extend(volume.left_behind.clone());
                }
                volume.synced = volume.log.len();
                volume.tenure = Tenure { epoch: volume.tenure.epoch.next(), incarnation: 1 };
            }
            Step::TakeOver { more, less } => {
                let least = if less { 0 } else { volume.propagated };
                let left = least + more.index(volume.log.len() - least + 1);
                let known = volume.log.iter().map(|done| (done.session, done.number));
                volume.left_behind.extend(known);
                volume.of_old.clear();
                volume.cut(left);
                let end = volume.head();
                volume.forks.retain(|fork| fork.end < end);
                volume.forks.push(ForkInfo { epoch: volume.tenure.epoch, end });
                volume.tenure = Tenure { epoch: volume.tenure.epoch.next(), incarnation: 1 };
                (volume.synced, volume.propagated, volume.numbered) = (left, left, left);
                volume.answered = (u64::MAX, 0);
                if left < settled {
                    // Some of that may have been nobody's business: an error is right if a write of the journal's past is gone.
                    match client.recover(&mut volume, None) {
                        Err(lost) => {
                            prop_assert!(lost.settled > lost.end);
                            return Ok(());
                        }
                        Ok(()) => attached = volume.tenure,
                    }
                }
            }
            Step::Background(index) => {
                volume.synced = volume.synced.max(index.index(volume.log.len() + 1));
                volume.propagated = volume.propagated.max(index.index(volume.synced + 1));
            }
        }
        // It may be away while more than one owner comes and goes.
        if volume.tenure != attached && !is_away {
            if let Some(cut_off) = cut_off {
                // The owner is lost again while it is sent what it lacks.
                client.recover(&mut volume, Some(usize::from(cut_off) % 4)).expect("nothing durable is lost");
                volume.cut(volume.synced);
                volume.tenure.incarnation += 1;
            }
            client.recover(&mut volume, None).expect("nothing durable is lost");
            attached = volume.tenure;
        }
        if attached == volume.tenure {
            client.check(&volume)?;
        }
        prop_assert!(client.journal.bytes() <= CAPACITY);
        let open = client.journal.entries.iter().filter(|(_, entry)| entry.state == State::Open);
        prop_assert!(open.map(|(key, _)| key).eq(client.journal.under_way.keys()));
    }
    client.recover(&mut volume, None).expect("nothing durable is lost");
    for (key, _) in client.open.clone() {
        let lsn = client.send(key, &mut volume).expect("is open");
        client.ack(key, lsn);
    }
    client.check(&volume)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_acked_is_lost_and_nothing_is_done_twice(
        steps in prop::collection::vec((step(), prop::option::weighted(0.2, any::<u8>()), any::<bool>()), 1..60)
    ) {
        run(steps)?;
    }
}

fn write(offset: u64, byte: u8) -> Write {
    Write { offset, length: 1, data: Some(Bytes::from(vec![byte])), fua: false }
}

fn at(sequence: u64) -> Lsn {
    Lsn::new(Epoch(1), sequence)
}

#[test]
fn a_write_waits_for_one_that_it_overlaps_and_for_room() {
    let mut journal = Journal::new(2 * (ENTRY_COST + 1), 0);
    let first = journal.begin(write(3, 1));
    assert_eq!(journal.obstacle(&write(3, 2)), Some(Obstacle::Order), "the first is under way");
    journal.acked(first, at(1));
    let second = journal.begin(write(3, 2));
    assert_eq!(journal.obstacle(&write(4, 3)), Some(Obstacle::Room), "it is full");
    assert!(journal.wants_flush());
    journal.flushed(journal.mark());
    assert_eq!(journal.obstacle(&write(4, 3)), None, "the first is durable");
    assert_eq!(journal.answered(), 1);
    journal.refused(second);
    assert!(journal.is_empty());
    let large = Write { offset: 0, length: 1 << 20, data: Some(Bytes::from(vec![0; 1 << 20])), fua: false };
    assert_eq!(journal.obstacle(&large), None, "one always has room");
}

#[test]
fn a_flush_covers_what_was_acked_before_it_began_under_the_same_tenure() {
    let (mut journal, volume) = (Journal::new(CAPACITY, 0), Volume::new());
    journal.recover(&volume.attached(0), 0).expect("nothing is lost");
    let (first, second) = (journal.begin(write(0, 1)), journal.begin(write(1, 2)));
    journal.acked(second, at(1));
    let mark = journal.mark();
    journal.acked(first, at(2));
    journal.flushed(mark);
    assert_eq!(journal.answered(), 0, "the first was acked while the flush was under way");
    let mark = journal.mark();
    journal.recover(&volume.attached(0), 0).expect("nothing is lost");
    journal.flushed(mark);
    assert_eq!(journal.open().count(), 1, "that flush was of another tenure");
}

#[test]
fn what_a_shrunk_volume_has_no_place_for_is_not_sent_again() {
    let (mut journal, volume) = (Journal::new(CAPACITY, 0), Volume::new());
    let whole = Write { offset: 4, length: 2, data: Some(Bytes::from(vec![1, 2])), fua: false };
    for write in [whole, write(3, 3)] {
        let key = journal.begin(write);
        journal.acked(key, at(1));
    }
    let attached = Attached { size: 5, ..volume.attached(0) };
    journal.recover(&attached, 0).expect("nothing is lost");
    let sent: Vec<_> = journal.open().map(|(_, _, write)| (write.offset, write.data.clone())).collect();
    assert_eq!(sent, [(4, Some(Bytes::from(vec![1]))), (3, Some(Bytes::from(vec![3])))]);
    journal.recover(&Attached { size: 4, ..attached }, 0).expect("nothing is lost");
    assert_eq!((journal.open().count(), journal.bytes()), (1, ENTRY_COST + 1));
}

#[test]
fn what_was_there_before_the_session_must_stay() {
    let (mut journal, mut volume) = (Journal::new(CAPACITY, 0), Volume::new());
    volume.carry_out(9, 0, 0, write(0, 7));
    journal.recover(&volume.attached(0), 0).expect("nothing is lost");
    volume.forks.push(ForkInfo { epoch: Epoch(1), end: Lsn::ZERO });
    volume.tenure.epoch = Epoch(2);
    assert!(journal.needs_session(&volume.attached(0)));
    let lost = journal.recover(&volume.attached(0), 1).expect_err("the session has seen it");
    assert_eq!((lost.settled, lost.end), (at(1), Lsn::ZERO));
}

/// A process that goes on for another one asks the owner for the first time when a takeover may have happened in between.
#[test]
fn a_journal_that_goes_on_for_another_misses_no_takeover() {
    let attached = |epoch, end: Option<u64>| Attached {
        tenure: Tenure { epoch: Epoch(epoch), incarnation: 1 },
        owner: NodeId(1),
        size: 1 << 20,
        head: Lsn::new(Epoch(epoch), 99),
        forks: end.map(|end| ForkInfo { epoch: Epoch(5), end: Lsn::new(Epoch(5), end) }).into_iter().collect(),
        claimed: Epoch(0),
        done: Vec::new(),
    };
    let resumed = || Journal::resumed(CAPACITY, 3, Epoch(5), Lsn::new(Epoch(5), 40));
    assert_eq!(resumed().settled(), Lsn::new(Epoch(5), 40));
    let mut journal = resumed();
    assert!(!journal.needs_session(&attached(5, None)));
    journal.recover(&attached(5, None), 3).expect("the same tenure");
    assert_eq!(journal.settled(), Lsn::new(Epoch(5), 40), "what came since was not relied on here");
    let mut journal = resumed();
    assert!(journal.needs_session(&attached(6, Some(40))), "a takeover in between is seen");
    journal.recover(&attached(6, Some(40)), 4).expect("nothing of ours is gone");
    let lost = resumed().recover(&attached(6, Some(39)), 4).expect_err("a flushed write is gone");
    assert_eq!((lost.end, lost.settled), (Lsn::new(Epoch(5), 39), Lsn::new(Epoch(5), 40)));
}
