//! What pages of the usual shapes cost. Sizes are asserted; times are printed only, with
//! `cargo test -p storage-node --lib pages_of_the_usual_shapes -- --nocapture`.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use super::*;

/// Bytes of a page's key in the store.
const KEY_LEN: usize = 13;
/// Measurements of each kind, each short enough to fit between two interruptions.
const ROUNDS: usize = 50;
/// Blocks of a segment file of 64 MiB behind its header.
const SEGMENT_BLOCKS: u64 = 16_383;

/// Numbers that look random and are the same in every run (xorshift; Marsaglia, "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Writes as they get their LSN and place, into the pages of one volume.
struct Volume {
    pages: BTreeMap<u64, Page>,
    sequence: u64,
    /// Blocks of the log so far.
    log: u64,
    random: Random,
}

impl Volume {
    fn new() -> Volume {
        Volume { pages: BTreeMap::new(), sequence: 1, log: 0, random: Random(0x5eed) }
    }

    /// One write of `count` blocks in a record of its own.
    fn write(&mut self, block: u64, count: u64) {
        if self.log % SEGMENT_BLOCKS + count + 1 > SEGMENT_BLOCKS {
            self.log = self.log.next_multiple_of(SEGMENT_BLOCKS);
        }
        let (segment, first) = (self.log / SEGMENT_BLOCKS + 1, self.log % SEGMENT_BLOCKS + 2);
        for at in 0..count {
            let place = Place { segment: segment as u32, block: (first + at) as u32 };
            let content = Content::Local { place, crc: self.random.below(1 << 32) as u32 };
            let version = Version { lsn: Lsn::new(Epoch(3), self.sequence), content };
            let (page, index) = ((block + at) / 256, (block + at) % 256);
            self.pages.entry(page).or_default().set(index as Index, version);
        }
        self.sequence += 1;
        self.log += count + 1;
    }

    /// Writes to blocks that are not looked at.
    fn others(&mut self, writes: u64) {
        self.sequence += writes;
        self.log += writes * 2;
    }

    fn figures(&mut self, shape: &str) -> Figures {
        self.pages.values_mut().for_each(Page::pack);
        let blocks: usize = self.pages.values().map(|page| page.iter().count()).sum();
        let values: Vec<Vec<u8>> = self.pages.values().map(Page::encode).collect();
        let disk = values.iter().map(|value| value.len() + KEY_LEN).sum::<usize>() as f64 / blocks as f64;
        let memory = self.pages.values().map(Page::memory).sum::<usize>() as f64 / blocks as f64;
        let mapped: Vec<(u64, Index)> =
            self.pages.iter().flat_map(|(number, page)| page.iter().map(|(index, _)| (*number, index))).collect();
        let asked: Vec<(&Page, Index)> = (0..2_000)
            .map(|_| mapped[self.random.below(mapped.len() as u64) as usize])
            .map(|(page, index)| (&self.pages[&page], index))
            .collect();
        let find = nanoseconds(asked.len(), || {
            asked.iter().for_each(|(page, index)| {
                black_box(page.entry(*index));
            })
        });
        let decode = nanoseconds(64, || values.iter().take(64).for_each(|value| drop(black_box(Page::decode(value)))));
        let entries: Vec<(Index, Version)> = self.pages.first_key_value().expect("a page").1.iter().collect();
        let set = nanoseconds(entries.len(), || {
            let mut page = Page::default();
            entries.iter().for_each(|(index, version)| {
                page.set(*index, *version);
            });
            black_box(page);
        });
        let encode = nanoseconds(1, || {
            let mut page = self.pages.first_key_value().expect("a page").1.clone();
            page.set(entries[0].0, entries[0].1);
            black_box(page.encode());
        });
        println!(
            "{shape:<44} {:>6} pages {disk:>6.2} B/block on disk {memory:>7.2} in memory   find {find:>4.0} ns   set {set:>4.0} ns   load {decode:>5.0} ns/page   encode {encode:>5.0} ns/page",
            values.len(),
        );
        Figures { disk, memory }
    }
}

struct Figures {
    disk: f64,
    memory: f64,
}

/// The best of a few rounds: the others were disturbed.
fn nanoseconds(count: usize, mut work: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_nanos() as f64 / count as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

#[test]
fn pages_of_the_usual_shapes_are_small() {
    let mut volume = Volume::new();
    (0..4096).for_each(|number| volume.write(number * 256, 256));
    let figures = volume.figures("sequential, 1 MiB writes");
    assert!(figures.disk < 4.25 && figures.memory < 5.1, "{} {}", figures.disk, figures.memory);

    let mut volume = Volume::new();
    (0..256 << 10).for_each(|block| volume.write(block, 1));
    let figures = volume.figures("sequential, 4 KiB writes");
    assert!(figures.disk < 4.25, "{}", figures.disk);

    // A 256th of 4 TiB with 16 Mi writes over all of it: 64 Ki of them go here.
    let mut volume = Volume::new();
    for _ in 0..1 << 16 {
        volume.others(255);
        let block = volume.random.below(1 << 22);
        volume.write(block, 1);
    }
    let figures = volume.figures("16 Mi random 4 KiB writes over 4 TiB");
    assert!(figures.disk < 20.0 && figures.memory < 56.0, "{} {}", figures.disk, figures.memory);

    // A 64th of 64 GiB that was overwritten five times.
    let mut volume = Volume::new();
    for _ in 0..5 << 18 {
        volume.others(63);
        let block = volume.random.below(1 << 18);
        volume.write(block, 1);
    }
    let figures = volume.figures("random 4 KiB writes, every block of 64 GiB");
    assert!(figures.disk < 12.5, "{}", figures.disk);

    // 1 GiB, written once in order; then 90 % of the overwrites go to 10 % of it.
    let mut volume = Volume::new();
    (0..1024).for_each(|number| volume.write(number * 256, 256));
    for _ in 0..1 << 18 {
        let hot = volume.random.below(10) != 0;
        let block = if hot { volume.random.below(26_214) } else { 26_214 + volume.random.below(235_930) };
        volume.write(block, 1);
    }
    let figures = volume.figures("1 GiB sequential, 1 GiB of 90/10 overwrites");
    assert!(figures.disk < 8.0, "{}", figures.disk);
}
