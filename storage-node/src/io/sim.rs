//! A simulated disk: deterministic, with a live and a durable image, and faults on demand.
//!
//! Writes change the live image when they complete; a sync copies to the durable one what completed before it. A
//! [`SimDisk::crash`] keeps the durable image and, of each unsynced write, a random subset of its 512-byte
//! sectors: torn, dropped and reordered all at once. [`Fault`]s are what a disk does that lies: they leave no error.
//! The disk outlives its engines, as a real one does. Blocks never written take no memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::Instant;

use super::{ALIGNMENT, Bell, Completions, FileId, IoCompletion, IoEngine, IoKind, IoOp, assert_aligned};

/// What a device writes whole or not at all.
const SECTOR: usize = 512;

/// What is stored of each file; operations are aligned to it.
const BLOCK: usize = ALIGNMENT;

/// How a write that is reported as done and durable goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is written.
    Lost,
    /// Some of its sectors are not written.
    Torn,
    /// It is written to another place of the same file.
    Misdirected,
}

type Image = Vec<Option<Arc<[u8; BLOCK]>>>;

#[derive(Debug, Default)]
struct SimFile {
    /// Blocks; `None` holds zeroes.
    live: Image,
    durable: Image,
    /// Blocks written since the last sync.
    unsynced: Vec<usize>,
    /// Blocks that cannot be read until they are written again.
    unreadable: BTreeSet<usize>,
    /// Why it cannot be opened, if so.
    shut: Option<Errno>,
}

impl SimFile {
    fn bytes(&self) -> u64 {
        (self.live.len() * BLOCK) as u64
    }

    fn holds(&self, offset: u64, length: usize) -> bool {
        offset + length as u64 <= self.bytes()
    }

    /// Writes the sectors of `data` that `writes` chooses at `first` and after it.
    fn write(&mut self, first: usize, data: &[u8], durable: bool, mut writes: impl FnMut() -> bool) {
        for (at, new) in (first..).zip(data.chunks_exact(BLOCK)) {
            let mut block = self.live[at].as_deref().copied().unwrap_or([0; BLOCK]);
            for (old, new) in block.chunks_exact_mut(SECTOR).zip(new.chunks_exact(SECTOR)) {
                if writes() {
                    old.copy_from_slice(new);
                }
            }
            self.live[at] = Some(Arc::new(block));
            if durable {
                self.durable[at].clone_from(&self.live[at]);
            } else {
                self.unsynced.push(at);
            }
            self.unreadable.remove(&at);
        }
    }
}

#[derive(Debug)]
struct State {
    files: BTreeMap<String, SimFile>,
    random: u64,
    /// Operations until the next one fails; `None`: none does.
    fail_in: Option<u64>,
    /// Whether reads are none of those.
    reads_well: bool,
    /// Writes until each fault.
    faults: Vec<(u64, Fault)>,
    /// Operations until the power is cut; `None`: it is not.
    cut_in: Option<u64>,
    /// Bytes that files may take together.
    capacity: u64,
    /// The same, and nobody is told before it is reached.
    quota: u64,
    /// Why no file can be opened, if so.
    shut: Option<Errno>,
    /// Whether syncs stay under way.
    holds_syncs: bool,
    /// Whether syncs and durable writes only say that they are.
    lies: bool,
    /// Rises with every crash: engines of an earlier life are dead.
    life: u64,
    operations: u64,
}

impl State {
    fn random(&mut self) -> u64 {
        // xorshift64*, Vigna 2016: good enough to choose sectors.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn taken(&self) -> u64 {
        self.files.values().map(SimFile::bytes).sum()
    }

    fn crash(&mut self) {
        let state = self;
        state.life += 1;
        state.cut_in = None;
        let mut files = std::mem::take(&mut state.files);
        for file in files.values_mut() {
            for at in std::mem::take(&mut file.unsynced) {
                let Some(live) = file.live[at].clone() else { continue };
                let mut block = file.durable[at].as_deref().copied().unwrap_or([0; BLOCK]);
                for (old, new) in block.chunks_exact_mut(SECTOR).zip(live.chunks_exact(SECTOR)) {
                    if state.random().is_multiple_of(2) {
                        old.copy_from_slice(new);
                    }
                }
                file.durable[at] = Some(Arc::new(block));
                // From here on both are the same, also if the block is listed again.
                file.live[at] = file.durable[at].clone();
            }
        }
        state.files = files;
    }

    /// A write begins: how it goes wrong, if it does.
    fn next_fault(&mut self) -> Option<Fault> {
        let due = self.faults.iter().position(|(writes, _)| *writes == 0);
        let fault = due.map(|at| self.faults.remove(at).1);
        for (writes, _) in &mut self.faults {
            *writes = writes.saturating_sub(1);
        }
        fault
    }
}

/// The disk. Cheap to clone; clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk whose choices follow `seed`.
    #[must_use]
    pub fn new(seed: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State {
            files: BTreeMap::new(),
            random: seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1,
            fail_in: None,
            reads_well: false,
            faults: Vec::new(),
            cut_in: None,
            capacity: u64::MAX,
            quota: u64::MAX,
            shut: None,
            holds_syncs: false,
            lies: false,
            life: 0,
            operations: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine on this disk, as after a start of the process.
    #[must_use]
    pub fn engine(&self) -> SimEngine {
        let life = self.state().life;
        SimEngine { disk: self.clone(), life, open: Vec::new(), queue: VecDeque::new(), time: None }
    }

    /// An engine whose operations take their time, on the clock of the runtime that it is used on, and ring `bell`.
    #[must_use]
    pub fn engine_in_time(&self, bell: Arc<Bell>) -> SimEngine {
        SimEngine { time: Some(InTime { bell, due: VecDeque::new(), looks: 0 }), ..self.engine() }
    }

    /// Cuts the power: what was not synced survives by sectors, at random. Engines opened before fail from now on.
    pub fn crash(&self) {
        self.state().crash();
    }

    /// Cuts the power when `operations` more were carried out.
    pub fn crash_after(&self, operations: u64) {
        self.state().cut_in = Some(operations);
    }

    /// How often the disk was crashed or its process killed.
    #[must_use]
    pub fn lives(&self) -> u64 {
        self.state().life
    }

    /// Kills the process: what completed is there, synced or not; what was under way is not.
    pub fn kill(&self) {
        self.state().life += 1;
    }

    /// The operation after `operations` others fails with an I/O error.
    pub fn fail_after(&self, operations: u64) {
        let mut state = self.state();
        (state.fail_in, state.reads_well) = (Some(operations), false);
    }

    /// The operation after `operations` others that change something fails with an I/O error; what is read is not counted.
    pub fn fail_writes_after(&self, operations: u64) {
        let mut state = self.state();
        (state.fail_in, state.reads_well) = (Some(operations), true);
    }

    /// No operation fails any more.
    pub fn mend(&self) {
        self.state().fail_in = None;
    }

    /// Bytes that files may take together; creating more fails with "no space".
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// As [`set_capacity`](Self::set_capacity), but what is free does not show it, as with quotas.
    pub fn set_quota(&self, bytes: u64) {
        self.state().quota = bytes;
    }

    /// Whether syncs do not complete from now on.
    pub fn hold_syncs(&self, holds: bool) {
        self.state().holds_syncs = holds;
    }

    /// Whether from now on nothing is made durable, without a word.
    pub fn lie_about_syncs(&self, lies: bool) {
        self.state().lies = lies;
    }

    /// The write after `writes` others goes wrong as `fault` says, without a word.
    pub fn inject(&self, fault: Fault, writes: u64) {
        self.state().faults.push((writes, fault));
    }

    /// How many injected faults have not happened yet.
    #[must_use]
    pub fn faults_left(&self) -> usize {
        self.state().faults.len()
    }

    /// Flips one bit of the byte at `offset` of a file, on the medium.
    ///
    /// # Panics
    /// If the file or the byte does not exist.
    pub fn flip(&self, name: &str, offset: usize) {
        self.alter(name, offset / BLOCK, |bytes| bytes[offset % BLOCK] ^= 1);
    }

    /// Alters a block of a file, on the medium.
    ///
    /// # Panics
    /// If the file or the block does not exist.
    pub fn alter(&self, name: &str, block: usize, change: impl Fn(&mut [u8])) {
        let mut state = self.state();
        let file = state.files.get_mut(name).expect("a file that exists");
        for image in [&mut file.live, &mut file.durable] {
            let mut bytes = image[block].as_deref().copied().unwrap_or([0; BLOCK]);
            change(&mut bytes);
            image[block] = Some(Arc::new(bytes));
        }
    }

    /// A file is gone from the medium.
    ///
    /// # Panics
    /// If the file does not exist.
    pub fn lose(&self, name: &str) {
        self.state().files.remove(name).expect("a file that exists");
    }

    /// A file cannot be opened from now on, for this reason; or it can.
    ///
    /// # Panics
    /// If the file does not exist.
    pub fn shut(&self, name: &str, why: Option<Errno>) {
        self.state().files.get_mut(name).expect("a file that exists").shut = why;
    }

    /// No file can be opened from now on, for this reason; or they can.
    pub fn shut_all(&self, why: Option<Errno>) {
        self.state().shut = why;
    }

    /// A file has lost all but its first blocks.
    ///
    /// # Panics
    /// If the file does not exist.
    pub fn cut(&self, name: &str, blocks: usize) {
        let mut state = self.state();
        let file = state.files.get_mut(name).expect("a file that exists");
        file.live.truncate(blocks);
        file.durable.truncate(blocks);
        file.unsynced.retain(|at| *at < blocks);
    }

    /// Reads of a block of a file fail from now on, until it is written again.
    ///
    /// # Panics
    /// If the file does not exist.
    pub fn make_unreadable(&self, name: &str, block: usize) {
        self.state().files.get_mut(name).expect("a file that exists").unreadable.insert(block);
    }

    /// Bytes that files take together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state().taken()
    }

    /// The files and the blocks in each whose live bytes are such that `is_it` says so.
    #[must_use]
    pub fn find(&self, is_it: impl Fn(&[u8]) -> bool) -> Vec<(String, usize)> {
        let state = self.state();
        let blocks = |(name, file): (&String, &SimFile)| {
            let found =
                file.live.iter().enumerate().filter(|(_, block)| block.as_deref().is_some_and(|bytes| is_it(bytes)));
            found.map(|(at, _)| (name.clone(), at)).collect::<Vec<_>>()
        };
        state.files.iter().flat_map(blocks).collect()
    }

    /// The files and the blocks in each that were ever written.
    #[must_use]
    pub fn written(&self) -> Vec<(String, usize)> {
        let state = self.state();
        let blocks = |(name, file): (&String, &SimFile)| {
            let written = file.live.iter().enumerate().filter(|(_, block)| block.is_some());
            written.map(|(at, _)| (name.clone(), at)).collect::<Vec<_>>()
        };
        state.files.iter().flat_map(blocks).collect()
    }

    /// How many operations were carried out.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }
}

/// An engine on a [`SimDisk`]. Completes operations in a random order, at the next wait or in their time.
#[derive(Debug)]
pub struct SimEngine {
    disk: SimDisk,
    life: u64,
    open: Vec<String>,
    queue: VecDeque<IoOp>,
    time: Option<InTime>,
}

/// When operations complete.
#[derive(Debug)]
struct InTime {
    bell: Arc<Bell>,
    /// For each operation of the queue.
    due: VecDeque<Instant>,
    /// Waits in a row that found nothing.
    looks: u32,
}

impl InTime {
    /// The longest that an operation takes, in microseconds.
    const LONGEST_US: u64 = 3_000;
    /// Waits for nothing after which something completes all the same: time stands still while anybody looks, so one who
    /// does nothing else would look for ever.
    const LOOKS_MAX: u32 = 200;

    /// An operation was submitted that takes its time from `random`.
    fn submitted(&mut self, random: u64) {
        let due = Instant::now() + Duration::from_micros(random % InTime::LONGEST_US);
        self.due.push_back(due);
        let bell = self.bell.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            bell.ring();
        });
    }

    /// Whether the operation at `at` is done now.
    fn is_done(&self, at: usize) -> bool {
        self.looks >= InTime::LOOKS_MAX || self.due[at] <= Instant::now()
    }
}

impl SimEngine {
    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.life == self.life { Ok(state) } else { Err(io::Error::other("the simulated machine has crashed")) }
    }

    fn carry_out(&self, file: FileId, kind: IoKind) -> (io::Result<()>, Option<super::buffer::AlignedBuffer>) {
        let mut state = match self.alive() {
            Ok(state) => state,
            Err(error) => return (Err(error), kind.into_buffer()),
        };
        if let Some(left) = state.cut_in {
            state.cut_in = left.checked_sub(1);
            if left == 0 {
                state.crash();
                return (Err(io::Error::other("the power was cut")), kind.into_buffer());
            }
        }
        state.operations += 1;
        let counts = !state.reads_well || !matches!(kind, IoKind::Read { .. });
        if let Some(left) = state.fail_in.filter(|_| counts) {
            state.fail_in = left.checked_sub(1);
            if left == 0 {
                return (Err(io::Error::other("an injected fault")), kind.into_buffer());
            }
        }
        if let IoKind::Create { name, size } = kind {
            if state.taken() + size > state.capacity.min(state.quota) {
                return (Err(io::ErrorKind::StorageFull.into()), None);
            }
            let blank: Image = vec![None; size as usize / BLOCK];
            state.files.insert(name, SimFile { live: blank.clone(), durable: blank, ..SimFile::default() });
            return (Ok(()), None);
        }
        let fault = if matches!(kind, IoKind::Write { .. }) { state.next_fault() } else { None };
        let choice = state.random();
        let lies = state.lies;
        let file = state.files.get_mut(&self.open[file.0 as usize]).expect("an open file exists");
        match kind {
            IoKind::Read { offset, mut buffer } => {
                buffer.zero_to(buffer.room());
                if !file.holds(offset, buffer.len()) {
                    return (Err(io::ErrorKind::UnexpectedEof.into()), Some(buffer));
                }
                let first = offset as usize / BLOCK;
                if file.unreadable.range(first..first + buffer.len() / BLOCK).next().is_some() {
                    return (Err(io::Error::other("an unreadable sector")), Some(buffer));
                }
                for (block, bytes) in file.live[first..].iter().zip(buffer.chunks_exact_mut(BLOCK)) {
                    match block {
                        Some(block) => bytes.copy_from_slice(&**block),
                        None => bytes.fill(0),
                    }
                }
                (Ok(()), Some(buffer))
            }
            IoKind::Write { offset, buffer, rest, durable } => {
                let parts = std::iter::once(&buffer[..]).chain(rest.iter().map(|part| &part[..]));
                let bytes = parts.collect::<Vec<_>>().concat();
                if !file.holds(offset, bytes.len()) {
                    return (Err(io::ErrorKind::UnexpectedEof.into()), Some(buffer));
                }
                let first = offset as usize / BLOCK;
                let durable = durable && !lies;
                match fault {
                    None => file.write(first, &bytes, durable, || true),
                    Some(Fault::Lost) => {}
                    Some(Fault::Torn) => {
                        // One at least is missing: the bits of the choice are used in turn, the first is always 0.
                        let mut bits = choice << 1;
                        file.write(first, &bytes, durable, || {
                            bits = bits.rotate_right(1);
                            bits & (1 << 63) != 0
                        });
                    }
                    Some(Fault::Misdirected) => {
                        let places = file.live.len() - bytes.len() / BLOCK + 1;
                        file.write(choice as usize % places, &bytes, durable, || true);
                    }
                }
                (Ok(()), Some(buffer))
            }
            IoKind::Sync if lies => (Ok(()), None),
            IoKind::Sync => {
                for at in std::mem::take(&mut file.unsynced) {
                    file.durable[at].clone_from(&file.live[at]);
                }
                (Ok(()), None)
            }
            IoKind::Create { .. } => unreachable!("handled above"),
        }
    }
}

impl IoEngine for SimEngine {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let state = self.alive()?;
        Ok(state.files.iter().map(|(name, file)| (name.clone(), file.bytes())).collect())
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        let state = self.alive()?;
        let file = state.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        if let Some(why) = file.shut.or(state.shut) {
            return Err(why.into());
        }
        drop(state);
        self.open.push(name.to_owned());
        Ok(FileId(self.open.len() as u32 - 1))
    }

    fn remove(&mut self, name: &str, _file: Option<FileId>) -> io::Result<()> {
        self.alive()?.files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn free_bytes(&mut self) -> io::Result<u64> {
        let state = self.alive()?;
        Ok(state.capacity.saturating_sub(state.taken()))
    }

    fn submit(&mut self, op: IoOp) {
        assert_aligned(&op.kind);
        if let Some(time) = &mut self.time {
            time.submitted(self.disk.state().random());
        }
        self.queue.push_back(op);
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<IoCompletion>) -> io::Result<()> {
        let holds_syncs = self.disk.state().holds_syncs;
        let completes = |op: &IoOp| !holds_syncs || !matches!(op.kind, IoKind::Sync);
        // Who blocks here stops the clock: what it waits for is done.
        let is_done = |at: &usize| !timeout.is_zero() || self.time.as_ref().is_none_or(|time| time.is_done(*at));
        let able = (0..self.queue.len()).filter(|at| completes(&self.queue[*at])).filter(is_done);
        let mut able: Vec<usize> = able.collect();
        if let Some(time) = &mut self.time {
            time.looks = if able.is_empty() { time.looks + 1 } else { 0 };
        }
        if able.is_empty() {
            // Nothing will complete by itself: give other threads a moment.
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
            return Ok(());
        }
        // At least one completes, the others perhaps later: many orders are possible on a real device. In time, all do.
        let count = match self.time {
            None => 1 + self.disk.state().random() as usize % able.len(),
            Some(_) => able.len(),
        };
        for _ in 0..count {
            let chosen = able.remove(self.disk.state().random() as usize % able.len());
            let op = self.queue.remove(chosen).expect("chosen among them");
            if let Some(time) = &mut self.time {
                time.due.remove(chosen);
            }
            able.iter_mut().filter(|at| **at > chosen).for_each(|at| *at -= 1);
            let (result, buffer) = self.carry_out(op.file, op.kind);
            completions.push(IoCompletion { token: op.token, result, buffer });
        }
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        self.time.is_none() && !self.queue.is_empty()
    }

    fn completions(&self) -> io::Result<Completions> {
        Ok(Completions::default())
    }
}
