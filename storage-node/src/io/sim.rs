//! A simulated disk: deterministic, with a live and a durable image, and faults on demand.
//!
//! Writes change the live image when they complete; a sync copies to the durable one what completed before it. A
//! [`SimDisk::crash`] keeps the durable image and, of each unsynced write, a random subset of its 512-byte
//! sectors: torn, dropped and reordered all at once. The disk outlives its engines, as a real one does.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{FileId, IoCompletion, IoEngine, IoKind, IoOp, assert_aligned};
use crate::shard::handle::Doorbell;

/// What a device writes whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct SimFile {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges written since the last sync.
    unsynced: Vec<(usize, usize)>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<String, SimFile>,
    random: u64,
    /// Operations until the next one fails; `None`: none does.
    fail_in: Option<u64>,
    /// Bytes that files may take together.
    capacity: u64,
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
            capacity: u64::MAX,
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
        SimEngine { disk: self.clone(), life, open: Vec::new(), queue: VecDeque::new() }
    }

    /// Cuts the power: what was not synced survives by sectors, at random. Engines opened before fail from now on.
    pub fn crash(&self) {
        let mut state = self.state();
        state.life += 1;
        let mut files = std::mem::take(&mut state.files);
        for file in files.values_mut() {
            for (start, end) in std::mem::take(&mut file.unsynced) {
                for at in (start..end).step_by(SECTOR) {
                    if state.random().is_multiple_of(2) {
                        let sector = at..at + SECTOR;
                        file.durable[sector.clone()].copy_from_slice(&file.live[sector]);
                    }
                }
            }
            file.live = file.durable.clone();
        }
        state.files = files;
    }

    /// Kills the process: what completed is there, synced or not; what was under way is not.
    pub fn kill(&self) {
        self.state().life += 1;
    }

    /// The operation after `operations` others fails with an I/O error.
    pub fn fail_after(&self, operations: u64) {
        self.state().fail_in = Some(operations);
    }

    /// Bytes that files may take together; creating more fails with "no space".
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Flips one bit of the byte at `offset` of a file, on the medium.
    pub fn flip(&self, name: &str, offset: usize) {
        let mut state = self.state();
        let file = state.files.get_mut(name).expect("a file that exists");
        file.live[offset] ^= 1;
        file.durable[offset] ^= 1;
    }

    /// How many operations were carried out.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }
}

/// An engine on a [`SimDisk`]. Completes operations in a random order, at the next wait.
#[derive(Debug)]
pub struct SimEngine {
    disk: SimDisk,
    life: u64,
    open: Vec<String>,
    queue: VecDeque<IoOp>,
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
        state.operations += 1;
        if let Some(left) = state.fail_in {
            state.fail_in = left.checked_sub(1);
            if left == 0 {
                return (Err(io::Error::other("an injected fault")), kind.into_buffer());
            }
        }
        if let IoKind::Create { name, size } = kind {
            let taken: u64 = state.files.values().map(|file| file.live.len() as u64).sum();
            if taken + size > state.capacity {
                return (Err(io::ErrorKind::StorageFull.into()), None);
            }
            let zeroes = vec![0; size as usize];
            state.files.insert(name, SimFile { live: zeroes.clone(), durable: zeroes, unsynced: Vec::new() });
            return (Ok(()), None);
        }
        let file = state.files.get_mut(&self.open[file.0 as usize]).expect("an open file exists");
        match kind {
            IoKind::Read { offset, mut buffer } => {
                let range = offset as usize..offset as usize + buffer.len();
                match file.live.get(range) {
                    Some(bytes) => {
                        buffer.copy_from_slice(bytes);
                        (Ok(()), Some(buffer))
                    }
                    None => (Err(io::ErrorKind::UnexpectedEof.into()), Some(buffer)),
                }
            }
            IoKind::Write { offset, buffer, durable } => {
                let (start, end) = (offset as usize, offset as usize + buffer.len());
                if end > file.live.len() {
                    return (Err(io::ErrorKind::UnexpectedEof.into()), Some(buffer));
                }
                file.live[start..end].copy_from_slice(&buffer);
                if durable {
                    file.durable[start..end].copy_from_slice(&buffer);
                } else {
                    file.unsynced.push((start, end));
                }
                (Ok(()), Some(buffer))
            }
            IoKind::Sync => {
                for (start, end) in std::mem::take(&mut file.unsynced) {
                    file.durable[start..end].copy_from_slice(&file.live[start..end]);
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
        Ok(state.files.iter().map(|(name, file)| (name.clone(), file.live.len() as u64)).collect())
    }

    fn open(&mut self, name: &str) -> io::Result<FileId> {
        if !self.alive()?.files.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.open.push(name.to_owned());
        Ok(FileId(self.open.len() as u32 - 1))
    }

    fn remove(&mut self, name: &str, _file: Option<FileId>) -> io::Result<()> {
        self.alive()?.files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn submit(&mut self, op: IoOp) {
        if let IoKind::Read { offset, buffer } | IoKind::Write { offset, buffer, .. } = &op.kind {
            assert_aligned(*offset, buffer);
        }
        self.queue.push_back(op);
    }

    fn wait(&mut self, timeout: Duration, completions: &mut Vec<IoCompletion>) -> io::Result<()> {
        if self.queue.is_empty() {
            // Nothing will complete by itself: give other threads, who ring no real bell here, a moment.
            std::thread::sleep(timeout.min(Duration::from_millis(1)));
            return Ok(());
        }
        // At least one completes, the others perhaps later: many orders are possible on a real device.
        let count = 1 + self.disk.state().random() as usize % self.queue.len();
        for _ in 0..count {
            let chosen = self.disk.state().random() as usize % self.queue.len();
            let op = self.queue.remove(chosen).expect("chosen among them");
            let (result, buffer) = self.carry_out(op.file, op.kind);
            completions.push(IoCompletion { token: op.token, result, buffer });
        }
        Ok(())
    }

    fn doorbell(&self) -> Arc<dyn Doorbell> {
        Arc::new(NoBell)
    }
}

/// The simulated engine never sleeps long.
struct NoBell;

impl Doorbell for NoBell {
    fn ring(&self) {}
}
