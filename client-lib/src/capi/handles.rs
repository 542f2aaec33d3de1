//! The handles that C has: numbers, looked up in one table of the process.
//!
//! A number is never given out twice, so a handle that was closed, is of another kind or never was one is told from a good one
//! and cannot do harm. A volume that is being closed is there for `helio_volume_cancel` alone. Numbers mean nothing after a
//! fork, whose child has none of the threads behind them.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::engine::{Disk, Engine, InUse};
use super::failure::{EBADF, ENOTSUP, Failure};
use super::types::{Cluster, Volume};

static TABLE: RwLock<Table> = RwLock::new(Table { last: 0, clusters: BTreeMap::new(), volumes: BTreeMap::new() });

/// The process that opened the first cluster; 0 before.
static PROCESS: AtomicU32 = AtomicU32::new(0);

struct Table {
    /// The last number that was given out.
    last: usize,
    clusters: BTreeMap<usize, Arc<Engine>>,
    volumes: BTreeMap<usize, Open>,
}

struct Open {
    disk: Arc<Disk>,
    is_closing: bool,
}

impl Table {
    fn number(&mut self) -> usize {
        self.last += 1;
        self.last
    }
}

// Every change of the table is one step, so a panic leaves nothing half done.
fn read() -> RwLockReadGuard<'static, Table> {
    TABLE.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> RwLockWriteGuard<'static, Table> {
    TABLE.write().unwrap_or_else(PoisonError::into_inner)
}

/// Before anything else: in the child of a fork the table may be locked for ever.
///
/// # Errors
/// `ENOTSUP` in such a child.
pub(super) fn require_process() -> Result<(), Failure> {
    let (opened_by, this) = (PROCESS.load(Ordering::Relaxed), std::process::id());
    if opened_by == 0 || opened_by == this {
        return Ok(());
    }
    let text = format!("process {opened_by} used libheliotrope before it forked this one: call exec first");
    Err(Failure::new(ENOTSUP, text))
}

fn unknown(what: &str, is_null: bool) -> Failure {
    let text = if is_null {
        format!("the {what} is NULL")
    } else {
        format!("this is no {what} that is open: it was closed, or never was one")
    };
    Failure::new(EBADF, text)
}

/// Gives a handle to a cluster.
pub(super) fn add_cluster(engine: Engine) -> *mut Cluster {
    PROCESS.store(std::process::id(), Ordering::Relaxed);
    let mut table = write();
    let number = table.number();
    table.clusters.insert(number, Arc::new(engine));
    ptr::without_provenance_mut(number)
}

/// The cluster of a handle.
pub(super) fn cluster(handle: *mut Cluster) -> Result<Arc<Engine>, Failure> {
    require_process()?;
    let found = read().clusters.get(&handle.addr()).cloned();
    found.ok_or_else(|| unknown("cluster", handle.is_null()))
}

/// Ends a handle.
pub(super) fn remove_cluster(handle: *mut Cluster) -> Result<Arc<Engine>, Failure> {
    require_process()?;
    let found = write().clusters.remove(&handle.addr());
    found.ok_or_else(|| unknown("cluster", handle.is_null()))
}

/// Gives a handle to a volume.
pub(super) fn add_volume(disk: Disk) -> *mut Volume {
    let mut table = write();
    let number = table.number();
    table.volumes.insert(number, Open { disk: Arc::new(disk), is_closing: false });
    ptr::without_provenance_mut(number)
}

/// The volume of a handle, in use until the second value is dropped: closing waits for that.
pub(super) fn volume(handle: *mut Volume) -> Result<(Arc<Disk>, InUse), Failure> {
    require_process()?;
    let table = read();
    let open = table.volumes.get(&handle.addr()).filter(|open| !open.is_closing);
    let disk = open.map(|open| open.disk.clone()).ok_or_else(|| unknown("volume", handle.is_null()))?;
    // With the table locked: who closes has not begun to wait.
    let in_use = disk.begin();
    Ok((disk, in_use))
}

/// The volume of a handle, also while it is being closed.
pub(super) fn volume_or_closing(handle: *mut Volume) -> Result<Arc<Disk>, Failure> {
    require_process()?;
    let found = read().volumes.get(&handle.addr()).map(|open| open.disk.clone());
    found.ok_or_else(|| unknown("volume", handle.is_null()))
}

/// From now on nothing is begun with the handle. To be followed by [`remove_volume`].
pub(super) fn begin_closing(handle: *mut Volume) -> Result<Arc<Disk>, Failure> {
    require_process()?;
    let mut table = write();
    let open = table.volumes.get_mut(&handle.addr()).filter(|open| !open.is_closing);
    let open = open.ok_or_else(|| unknown("volume", handle.is_null()))?;
    open.is_closing = true;
    Ok(open.disk.clone())
}

/// Ends a handle.
pub(super) fn remove_volume(handle: *mut Volume) {
    // Dropped outside the lock.
    let removed = write().volumes.remove(&handle.addr());
    drop(removed);
}
