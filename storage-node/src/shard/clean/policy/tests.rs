//! The policy against a model of a store: how much is written in all for each block that guests write.

use super::*;

const SEGMENTS: usize = 512;
const SEGMENT_BLOCKS: u64 = 512;
/// Of the blocks of all segments.
const UTILISATION_PERCENT: u64 = 70;
/// Writes that share a record, and so its header block: what a queue depth of 32 comes to with two appends under way.
const RECORD_WRITES: u64 = 16;
/// Large writes, whose header blocks weigh nothing.
const LARGE_RECORD: u64 = 512;
const COPY_BLOCKS: u64 = 256;

/// Segments, what lies in them, and two heads: guests' writes and the cleaner's copies.
struct Model {
    /// Per segment, the volume's block at each place that was written.
    segments: Vec<Vec<u32>>,
    live: Vec<u64>,
    generation: Vec<u64>,
    free: Vec<usize>,
    /// Where each block of the volume is: segment and index.
    map: Vec<Option<(usize, usize)>>,
    heads: [Option<(usize, u64)>; 2],
    newest: u64,
    /// Blocks written, headers included.
    written: u64,
}

impl Model {
    fn new() -> Model {
        let blocks = SEGMENTS as u64 * SEGMENT_BLOCKS * UTILISATION_PERCENT / 100;
        Model {
            segments: vec![Vec::new(); SEGMENTS],
            live: vec![0; SEGMENTS],
            generation: vec![0; SEGMENTS],
            free: (0..SEGMENTS).collect(),
            map: vec![None; blocks as usize],
            heads: [None, None],
            newest: 0,
            written: 0,
        }
    }

    /// Appends `block` at a head; `header` adds a header block in front.
    fn append(&mut self, head: usize, block: u32, header: bool) {
        let needed = 1 + u64::from(header);
        if self.heads[head].is_none_or(|(_, filled)| filled + needed > SEGMENT_BLOCKS) {
            let segment = self.free.pop().expect("the cleaner keeps segments free");
            self.newest += 1;
            self.generation[segment] = self.newest;
            self.segments[segment].clear();
            self.heads[head] = Some((segment, 1));
            self.written += 1;
        }
        let (segment, filled) = self.heads[head].expect("just taken");
        self.heads[head] = Some((segment, filled + needed));
        self.written += needed;
        if let Some((before, _)) = self.map[block as usize].replace((segment, self.segments[segment].len())) {
            self.live[before] -= 1;
        }
        self.live[segment] += 1;
        self.segments[segment].push(block);
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate> + '_ {
        let is_head = |segment: usize| self.heads.iter().flatten().any(|(head, _)| *head == segment);
        (0..SEGMENTS).filter(move |segment| self.generation[*segment] > 0 && !is_head(*segment)).map(|segment| {
            Candidate {
                segment: segment as u32,
                blocks: SEGMENT_BLOCKS,
                live: self.live[segment],
                age: self.newest - self.generation[segment],
            }
        })
    }

    fn clean(&mut self) {
        let space = |model: &Model| Space {
            used: (SEGMENTS - model.free.len()) as u64,
            capacity: Some(SEGMENTS as u64),
            blocks_per_segment: SEGMENT_BLOCKS,
            live_blocks: model.map.len() as u64,
            refused: false,
        };
        while space(self).pressure() > Pressure::None {
            let empty: Vec<usize> = self.candidates().filter(|it| it.live == 0).map(|it| it.segment as usize).collect();
            for segment in empty {
                self.generation[segment] = 0;
                self.free.push(segment);
            }
            let Some(victim) = choose(self.candidates()) else { return };
            let segment = victim.segment as usize;
            let blocks = std::mem::take(&mut self.segments[segment]);
            let mut copied = 0;
            for (index, block) in blocks.into_iter().enumerate() {
                if self.map[block as usize] == Some((segment, index)) {
                    self.append(1, block, copied % COPY_BLOCKS == 0);
                    copied += 1;
                }
            }
            assert_eq!(self.live[segment], 0, "all of it was copied");
        }
    }

    /// Fills the volume, overwrites it `rounds` times with blocks that `next` chooses, and returns the blocks written per
    /// block of the guests' over the last half.
    fn amplification(&mut self, record_writes: u64, mut next: impl FnMut(u64) -> u32) -> f64 {
        let rounds = 8;
        let blocks = self.map.len() as u64;
        let mut measured_from = 0;
        for number in 0..blocks * (1 + rounds) {
            let block = if number < blocks { number as u32 } else { next(blocks) };
            self.append(0, block, number % record_writes == 0);
            self.clean();
            if number == blocks * (1 + rounds / 2) {
                measured_from = self.written;
            }
        }
        (self.written - measured_from) as f64 / (blocks * (rounds - rounds / 2)) as f64
    }
}

fn random() -> impl FnMut(u64) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

/// For uniform overwrites nothing does better than the emptiest segment first, which at 70 % comes to 1.9 (Desnoyers,
/// "Analytic Modeling of SSD Write Performance", 2012); the headers of small records make the segments fuller, and the
/// rest is what is kept free.
#[test]
fn uniform_overwrites_at_seventy_percent_cost_about_twice_what_is_written() {
    for (record_writes, most) in [(LARGE_RECORD, 2.0), (RECORD_WRITES, 2.2)] {
        let mut random = random();
        let amplification = Model::new().amplification(record_writes, |blocks| random(blocks) as u32);
        println!("uniform, {record_writes} blocks per record: {amplification:.2}");
        assert!(amplification <= most, "{amplification}");
    }
}

#[test]
fn hot_and_cold_blocks_cost_less_than_uniform_ones() {
    for (record_writes, most) in [(LARGE_RECORD, 1.53), (RECORD_WRITES, 1.67)] {
        let mut random = random();
        let amplification = Model::new().amplification(record_writes, |blocks| {
            let hot = blocks / 10;
            if random(10) < 9 { random(hot) as u32 } else { (hot + random(blocks - hot)) as u32 }
        });
        println!("90/10, {record_writes} blocks per record: {amplification:.2}");
        assert!(amplification <= most, "{amplification}");
    }
}

#[test]
fn the_cheapest_space_is_taken_first_and_hopeless_segments_never() {
    let candidate = |segment, live, age| Candidate { segment, blocks: 100, live, age };
    assert_eq!(choose([candidate(1, 50, 3), candidate(2, 20, 3)].into_iter()).map(|it| it.segment), Some(2));
    assert_eq!(choose([candidate(1, 50, 30), candidate(2, 40, 3)].into_iter()).map(|it| it.segment), Some(1), "older");
    assert_eq!(choose([candidate(1, 98, 1000), candidate(2, 0, 3)].into_iter()), None);
    assert_eq!(choose([candidate(1, 250, 1000)].into_iter()), None, "shared by several maps");
}

#[test]
fn pressure_rises_as_space_shrinks() {
    let space = |used, capacity, live_blocks, refused| {
        Space { used, capacity, blocks_per_segment: 100, live_blocks, refused }.pressure()
    };
    assert_eq!(space(58, Some(64), 100, false), Pressure::None, "a set capacity may be used");
    assert_eq!(space(59, Some(64), 100, false), Pressure::Some);
    assert_eq!(space(62, Some(64), 100, false), Pressure::Critical);
    assert_eq!(space(993, Some(1000), 100, false), Pressure::None, "three wait for a checkpoint together");
    assert_eq!(space(994, Some(1000), 100, false), Pressure::Some);
    assert_eq!(space(28, None, 1000, false), Pressure::None);
    assert_eq!(space(29, None, 1000, false), Pressure::Some);
    assert_eq!(space(1, None, 1000, true), Pressure::Critical);
}

#[test]
fn the_cleaner_works_as_fast_as_guests_write_faster_the_less_is_left_and_at_will_when_space_runs_out() {
    let space = |used| Space { used, capacity: Some(64), blocks_per_segment: 100, live_blocks: 100, refused: false };
    let victim = Candidate { segment: 1, blocks: 100, live: 50, age: 1 };
    let mut pacer = Pacer::default();
    pacer.look(&space(59));
    pacer.begin(&victim, &space(59));
    assert!(!pacer.may_work());
    pacer.earn(8);
    pacer.spend(9);
    assert!(pacer.may_work(), "eight written blocks earn ten copies of a half-empty segment, with one segment too few");
    pacer.spend(1);
    assert!(!pacer.may_work());
    pacer.begin(&victim, &space(62));
    pacer.earn(8);
    pacer.spend(15);
    assert!(pacer.may_work(), "sixteen with four too few");
    pacer.spend(1);
    assert!(!pacer.may_work());
    pacer.earn_idle(1);
    assert!(pacer.may_work());
    pacer.spend(5);
    assert!(!pacer.may_work());
    pacer.earn(1_000_000);
    pacer.spend(CREDIT_MAX - 1);
    assert!(pacer.may_work(), "it is owed what it could not do");
    pacer.spend(1);
    assert!(!pacer.may_work(), "but not without bound");
    pacer.earn(8);
    pacer.look(&space(0));
    assert!(!pacer.may_work(), "nothing is owed when nothing is short");
    pacer.hurry();
    assert!(pacer.may_work());
}
