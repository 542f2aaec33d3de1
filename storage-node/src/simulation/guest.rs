//! Guests: programs that write, read and flush volumes through the sessions that NBD connections use, and note everything.
//!
//! Every machine has a guest per volume. The one where the virtual machine runs writes; the others read now and then, as
//! another host does that looks at the export. No two writes hold the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use client_lib::{BLOCK_SIZE, Error, ErrorKind, NodeId, ReadPart, VolumeId, random};
use nbd_frontend::export::{ExportDirectory, Session, ZeroOptions};

use super::history::{Content, History, Operation, Outcome, What};
use super::machine::LocalTime;
use super::world::{World, text};
use crate::serve::exports::Exports;

/// Blocks of every volume.
pub(super) const BLOCKS: u32 = 48;
/// The most blocks of one operation.
const RUN_MAX: u64 = 4;
/// Blocks of a write to the ballast, and the longest pause before it: a segment is full in five seconds.
const BALLAST_RUN: u32 = 64;
const BALLAST_PAUSE_MS_MAX: u64 = 300;
/// Requests that a guest has under way.
const QUEUES: usize = 2;
const BLOCK: usize = BLOCK_SIZE as usize;

/// A virtual machine and the volume that it uses.
#[derive(Clone, Debug)]
pub(super) struct Vm {
    pub(super) volume: VolumeId,
    /// Where it runs, if it does.
    pub(super) at: Option<NodeId>,
    /// Where one still runs that should not: nobody could tell it that its volume was taken over.
    pub(super) forgotten: Option<NodeId>,
}

#[derive(Debug, Default)]
struct State {
    vms: BTreeMap<String, Vm>,
    ballast: Option<Ballast>,
    is_over: bool,
}

/// A volume that nobody looks at, written so much of at one machine that segments fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ballast {
    pub(super) volume: &'static str,
    pub(super) at: NodeId,
    pub(super) blocks: u32,
}

/// The virtual machines. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Guests(Arc<Mutex<State>>);

impl Guests {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, volume: &str, vm: Vm) {
        self.state().vms.insert(volume.to_owned(), vm);
    }

    /// Lets the virtual machine of `volume` run at another place, or nowhere.
    pub(super) fn place(&self, volume: &str, at: Option<NodeId>) {
        if let Some(vm) = self.state().vms.get_mut(volume) {
            vm.at = at;
        }
    }

    /// Lets the virtual machine of `volume` be started at `at`, while the other one goes on too.
    pub(super) fn start_another(&self, volume: &str, at: NodeId) {
        if let Some(vm) = self.state().vms.get_mut(volume) {
            vm.forgotten = vm.at.replace(at);
        }
    }

    pub(super) fn vms(&self) -> BTreeMap<String, Vm> {
        self.state().vms.clone()
    }

    /// From now on this is written too.
    pub(super) fn load(&self, ballast: Ballast) {
        self.state().ballast = Some(ballast);
    }

    /// Nobody begins anything any more.
    pub(super) fn end(&self) {
        self.state().is_over = true;
    }

    fn is_over(&self) -> bool {
        self.state().is_over
    }

    fn runs_at(&self, volume: &str, node: NodeId) -> bool {
        self.state().vms.get(volume).is_some_and(|vm| [vm.at, vm.forgotten].contains(&Some(node)))
    }
}

/// Runs the guests of machine `node`, as long as the process does.
pub(super) fn run_guests(node: NodeId, guests: Guests, history: History, exports: Arc<Exports>, time: &LocalTime) {
    let time = time.clone();
    tokio::spawn(async move {
        let mut running = BTreeSet::new();
        let mut is_loading = false;
        while !guests.is_over() {
            let ballast = guests.state().ballast.filter(|ballast| ballast.at == node && !is_loading);
            if let Some(ballast) = ballast {
                is_loading = true;
                tokio::spawn(load(ballast, guests.clone(), exports.clone()));
            }
            for (name, vm) in guests.vms() {
                if running.insert(name.clone()) {
                    let guest = Guest {
                        node,
                        name,
                        volume: vm.volume,
                        guests: guests.clone(),
                        history: history.clone(),
                        exports: exports.clone(),
                        time: time.clone(),
                        session: Arc::default(),
                    };
                    for _ in 0..QUEUES {
                        tokio::spawn(guest.clone().run());
                    }
                }
            }
            pause(40).await;
        }
    });
}

/// Writes to the ballast, here and there.
async fn load(ballast: Ballast, guests: Guests, exports: Arc<Exports>) {
    let (mut session, mut fill) = (None, 0u8);
    while !guests.is_over() {
        pause(BALLAST_PAUSE_MS_MAX).await;
        if session.is_none() {
            session = exports.open(ballast.volume).await.ok();
        }
        let Some(current) = &session else { continue };
        let start = random::bits() % u64::from(ballast.blocks - BALLAST_RUN + 1);
        fill = fill % 250 + 1;
        let data = Bytes::from(vec![fill; BALLAST_RUN as usize * BLOCK]);
        if current.write(start * BLOCK as u64, data, false).await.is_err() {
            session = None;
        }
    }
}

async fn pause(ms_max: u64) {
    tokio::time::sleep(Duration::from_millis(1 + random::bits() % ms_max)).await;
}

type Connection = (u64, Arc<dyn Session>);

#[derive(Clone)]
struct Guest {
    node: NodeId,
    name: String,
    volume: VolumeId,
    guests: Guests,
    history: History,
    exports: Arc<Exports>,
    time: LocalTime,
    session: Arc<tokio::sync::Mutex<Option<Connection>>>,
}

impl Guest {
    async fn run(self) {
        let mut wrote = false;
        while !self.guests.is_over() {
            let Some((number, session)) = self.connection().await else {
                pause(300).await;
                continue;
            };
            let is_writer = self.guests.runs_at(&self.name, self.node);
            // A machine flushes its disk when it is stopped.
            let stops = std::mem::replace(&mut wrote, is_writer) && !is_writer;
            let failed = match random::bits() % 100 {
                _ if stops => self.flush(number, &*session).await.err(),
                choice if !is_writer && choice < 80 => None,
                _ if !is_writer => self.read(number, &*session).await.err(),
                0..45 => self.write(number, &*session, random::bits().is_multiple_of(8)).await.err(),
                45..53 => self.zero(number, &*session).await.err(),
                53..88 => self.read(number, &*session).await.err(),
                _ => self.flush(number, &*session).await.err(),
            };
            if let Some(error) = failed {
                if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::NotOwner | ErrorKind::Closed) {
                    // As a host does that connects anew after an error.
                    let mut current = self.session.lock().await;
                    current.take_if(|(current, _)| *current == number);
                }
                pause(100).await;
            }
            pause(if is_writer { 120 } else { 500 }).await;
        }
    }

    async fn connection(&self) -> Option<Connection> {
        let mut current = self.session.lock().await;
        if current.is_none() {
            let session = self.exports.open(&self.name).await.ok()?;
            *current = Some((self.history.session(), session));
        }
        current.clone()
    }

    fn ask(&self, session: u64, what: What) -> usize {
        let (volume, node, asked) = (self.volume, self.node, self.time.now());
        self.history.asks(Operation { volume, node, session, what, asked, outcome: Outcome::Pending })
    }

    fn note<T>(&self, number: usize, outcome: &Result<T, Error>, found: Option<Vec<Content>>) {
        let now = self.time.now();
        let outcome = match outcome {
            Ok(_) => Outcome::Done(now),
            Err(error) => Outcome::Failed(now, error.kind()),
        };
        self.history.answers(number, outcome, found);
    }

    async fn write(&self, number: u64, session: &dyn Session, fua: bool) -> Result<(), Error> {
        self.write_at(number, session, run(), fua).await
    }

    async fn write_at(
        &self,
        number: u64,
        session: &dyn Session,
        (start, count): (u32, u32),
        fua: bool,
    ) -> Result<(), Error> {
        let data = bytes_of(self.history.write(), count);
        let contents = contents(&data);
        let asked = self.ask(number, What::Write { start, contents, is_durable: fua });
        let done = session.write(u64::from(start) * BLOCK as u64, data, fua).await;
        self.note(asked, &done, None);
        done
    }

    async fn zero(&self, number: u64, session: &dyn Session) -> Result<(), Error> {
        let (start, count) = run();
        let what = What::Write { start, contents: vec![None; count as usize], is_durable: false };
        let asked = self.ask(number, what);
        let done = session
            .write_zeroes(u64::from(start) * BLOCK as u64, u64::from(count * BLOCK_SIZE), ZeroOptions::default())
            .await;
        self.note(asked, &done, None);
        done
    }

    async fn read(&self, number: u64, session: &dyn Session) -> Result<(), Error> {
        let (start, count) = run();
        let asked = self.ask(number, What::Read { start, count, found: Vec::new() });
        let done = session.read(u64::from(start) * BLOCK as u64, count * BLOCK_SIZE).await;
        let found = done.as_ref().ok().map(|parts| contents(&ReadPart::joined(parts.clone())));
        self.note(asked, &done, found);
        done.map(drop)
    }

    async fn flush(&self, number: u64, session: &dyn Session) -> Result<(), Error> {
        let asked = self.ask(number, What::Flush);
        let done = session.flush().await;
        self.note(asked, &done, None);
        done
    }
}

/// Writes `block` of the volume called `name` once more, at `node`.
pub(super) fn rewrite(world: &mut World, node: NodeId, name: &str, block: u32) -> Result<(), String> {
    let vm = world.guests.vms().remove(name).ok_or("there is no such volume")?;
    let (guests, history, slot) = (world.guests.clone(), world.history.clone(), Arc::new(OnceLock::new()));
    let (into, name) = (slot.clone(), name.to_owned());
    world.machine(node).spawn(|running, time| {
        let exports = running.parts.exports.clone();
        let guest = Guest { node, name, volume: vm.volume, guests, history, exports, time, session: Arc::default() };
        async move {
            let done = match guest.connection().await {
                Some((number, session)) => guest.write_at(number, &*session, (block, 1), true).await.map_err(text),
                None => Err("it is not served".to_owned()),
            };
            // Set once, here.
            let _ = into.set(done);
        }
    });
    world.run_until(Duration::from_secs(60), |_| slot.get().is_some());
    slot.get().cloned().unwrap_or_else(|| Err("no answer".to_owned()))
}

/// Some blocks: the first, and how many.
fn run() -> (u32, u32) {
    let count = 1 + random::bits() % RUN_MAX;
    let start = random::bits() % (u64::from(BLOCKS) - count + 1);
    (start as u32, count as u32)
}

/// The bytes of a write: every block of every write differs.
fn bytes_of(write: u64, count: u32) -> Bytes {
    let mut bytes = Vec::with_capacity(count as usize * BLOCK);
    for block in 0..count {
        let mut bits = random::bits();
        bytes.extend_from_slice(&write.to_le_bytes());
        bytes.extend_from_slice(&u64::from(block).to_le_bytes());
        while !bytes.len().is_multiple_of(BLOCK) {
            bytes.extend_from_slice(&bits.to_le_bytes());
            bits = bits.rotate_left(7);
        }
    }
    bytes.into()
}

/// What each block of `bytes` holds.
pub(super) fn contents(bytes: &[u8]) -> Vec<Content> {
    let content = |block: &[u8]| block.iter().any(|byte| *byte != 0).then(|| crc32fast::hash(block));
    bytes.chunks(BLOCK).map(content).collect()
}
