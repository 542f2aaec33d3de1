//! Power cuts at every boundary of a write or sync, over many thousands of short seeded histories.
//!
//! Every sector that a request writes names the request and the sector, so that a sector that is torn, or that belongs
//! elsewhere, is seen for what it is. What must be there follows from the shard's own claim: after a restart it knows
//! the volume up to some LSN, at least up to what was flushed. Requests acked at or below it are there whole. Others may
//! be there or not, sector by sector.

use client_lib::Lsn;

use super::rig::{Rig, VOLUME};
use crate::shard::handle::Request;
use crate::volume::ledger::Author;

/// Twenty blocks and a sector, so that the last block is cut off.
const SIZE: u64 = 20 * 4096 + 512;
const SECTOR: u64 = 512;
const SECTORS: u64 = SIZE / SECTOR;
/// Requests per life at most.
const REQUESTS_MAX: u64 = 24;
/// Most operations of the disk before the power is cut; most lives see fewer and end at their last request.
const CUT_MAX: u64 = 70;
const LIVES: u64 = 2;
/// Histories in a usual run; `HELIO_SEEDS` says another number.
const HISTORIES: u64 = 20_000;

type Answer = crate::shard::handle::Answer<Lsn>;

/// What a sector holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sector {
    Zero,
    /// The number of a request, from 1.
    By(u32),
}

fn sector_of(request: u32, sector: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SECTOR as usize);
    while bytes.len() < SECTOR as usize {
        bytes.extend_from_slice(&request.to_le_bytes());
        bytes.extend_from_slice(&(sector as u32).to_le_bytes());
    }
    bytes
}

fn parse(bytes: &[u8], sector: u64, context: &str) -> Sector {
    if bytes.iter().all(|byte| *byte == 0) {
        return Sector::Zero;
    }
    let request = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    assert!(bytes == sector_of(request, sector), "{context}: sector {sector} is torn or of another place");
    Sector::By(request)
}

/// A request and what became of it.
struct Sent {
    first: u64,
    count: u64,
    writes: Sector,
    fua: bool,
    answer: Option<Answer>,
    lsn: Option<Lsn>,
}

impl Sent {
    fn touches(&self, sector: u64) -> bool {
        (self.first..self.first + self.count).contains(&sector)
    }
}

/// Random numbers of a history: xorshift64*, Vigna 2016.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Neighbouring seeds start alike.
        for _ in 0..4 {
            let _ = random.below(2);
        }
        random
    }

    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }
}

/// A history under way.
struct History {
    seed: u64,
    rig: Rig,
    random: Random,
    /// What was read after the last restart.
    base: Vec<Sector>,
    sent: Vec<Sent>,
    /// Flushes under way, and up to which LSN everything had been acked when each was sent.
    flushes: Vec<(Answer, Lsn)>,
    durable: Lsn,
    requests: u32,
}

impl History {
    fn new(seed: u64) -> History {
        let mut random = Random::new(seed);
        // A checkpoint now and then, or after nearly every write.
        let rig = Rig::in_memory(seed, |options| options.checkpoint_log_bytes = 1 << (14 + random.below(6)));
        let base = vec![Sector::Zero; SECTORS as usize];
        let mut history =
            History { seed, rig, random, base, sent: Vec::new(), flushes: Vec::new(), durable: Lsn::ZERO, requests: 0 };
        history.rig.open(SIZE);
        history.rig.activate(1);
        history
    }

    fn context(&self, life: u64) -> String {
        format!("life {life} of seed {0} (HELIO_SEED={0} cargo test -p storage-node what_was_flushed)", self.seed)
    }

    fn send_something(&mut self) {
        let first = self.random.below(SECTORS);
        // Blocks or parts of blocks, aligned or not.
        let (first, most) = if self.random.below(2) == 0 { (first / 8 * 8, 48) } else { (first, 20) };
        let count = (1 + self.random.below(most)).min(SECTORS - first);
        let (offset, length, fua) = (first * SECTOR, count * SECTOR, self.random.below(5) == 0);
        self.requests += 1;
        let (writes, answer) = if self.random.below(4) == 0 {
            let zero =
                |reply| Request::Zero { volume: VOLUME, offset, length, fua, author: Author::Session(None), reply };
            (Sector::Zero, self.rig.send(zero))
        } else {
            let data = (first..first + count).flat_map(|sector| sector_of(self.requests, sector)).collect();
            (Sector::By(self.requests), self.rig.send_write(offset, data, fua))
        };
        self.sent.push(Sent { first, count, writes, fua, answer: Some(answer), lsn: None });
    }

    /// Takes note of what was answered.
    fn hear(&mut self) {
        for sent in &mut self.sent {
            if let Some(answer) = &mut sent.answer
                && let Ok(Ok(lsn)) = answer.try_recv()
            {
                (sent.lsn, sent.answer) = (Some(lsn), None);
                if sent.fua {
                    self.durable = self.durable.max(lsn);
                }
            }
        }
        let durable = &mut self.durable;
        self.flushes.retain_mut(|(answer, covers)| match answer.try_recv() {
            Ok(Ok(_)) => {
                *durable = (*durable).max(*covers);
                false
            }
            Ok(Err(_)) => false,
            Err(_) => true,
        });
    }

    /// Sends requests and lets them go on, until the power is cut or enough were sent.
    fn live(&mut self) {
        let lives = self.rig.disk.lives();
        self.rig.disk.crash_after(self.random.below(CUT_MAX));
        for _ in 0..4 + self.random.below(REQUESTS_MAX - 4) {
            match self.random.below(12) {
                0 | 1 => {
                    self.hear();
                    let acked = self.sent.iter().filter_map(|sent| sent.lsn).max().unwrap_or(Lsn::ZERO);
                    let flush = self.rig.send(|reply| Request::Flush { volume: VOLUME, reply });
                    self.flushes.push((flush, acked));
                }
                2 => drop(self.rig.send(|reply| Request::Checkpoint { reply })),
                3..7 => (0..1 + self.random.below(6)).for_each(|_| self.rig.turn()),
                _ => self.send_something(),
            }
            self.hear();
            if self.rig.disk.lives() > lives {
                break;
            }
        }
        if self.rig.disk.lives() == lives {
            self.rig.disk.crash();
        }
        self.rig.drop_core();
    }

    /// Restarts and compares.
    fn check(&mut self, life: u64) {
        let context = self.context(life);
        if let Err(error) = self.rig.try_start() {
            panic!("{context}: {error}");
        }
        let known = self.rig.report().known;
        assert!(known >= self.durable, "{context}: flushed up to {}, known up to {known}", self.durable);
        self.rig.activate(life + 2);
        let found = self.rig.read(0, SIZE as u32).unwrap_or_else(|error| panic!("{context}: {error}"));
        let found: Vec<Sector> = (0u64..)
            .zip(found.chunks_exact(SECTOR as usize))
            .map(|(sector, bytes)| parse(bytes, sector, &context))
            .collect();
        for (sector, found) in (0u64..).zip(&found) {
            let touching = self.sent.iter().filter(|sent| sent.touches(sector));
            let mut allowed = vec![self.base[sector as usize]];
            for sent in touching {
                if sent.lsn.is_some_and(|lsn| lsn <= known) {
                    allowed.clear();
                }
                allowed.push(sent.writes);
            }
            assert!(allowed.contains(found), "{context}: sector {sector} is {found:?}, and may be {allowed:?}");
        }
        self.base = found;
        self.sent.clear();
        self.flushes.clear();
        self.durable = known;
    }
}

fn power_cuts(seed: u64) {
    let mut history = History::new(seed);
    for life in 0..LIVES {
        history.live();
        history.check(life);
    }
}

/// `HELIO_SEED` replays one history, `HELIO_SEEDS` says how many there are.
#[test]
fn what_was_flushed_survives_power_cuts_and_no_sector_is_mixed_or_foreign() {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    match number("HELIO_SEED") {
        Some(seed) => power_cuts(seed),
        None => (1..=number("HELIO_SEEDS").unwrap_or(HISTORIES)).for_each(power_cuts),
    }
}

/// The replay of a seed is only worth something if it does the same again.
#[test]
fn a_seed_does_the_same_twice() {
    for seed in 1..20 {
        let run = || {
            let mut history = History::new(seed);
            history.live();
            history.check(0);
            (history.base.clone(), history.rig.disk.operations())
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}
