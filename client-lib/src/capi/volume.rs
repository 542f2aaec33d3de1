//! Functions about volumes as a whole.

#![expect(unsafe_code, reason = "functions for C")]

use std::ffi::{c_char, c_int, c_void};

use super::cluster::patience;
use super::declare::functions;
use super::engine::{Disk, require_own_thread};
use super::failure::Failure;
use super::handles;
use super::memory::{Place, options, put_status, text};
use super::operations::require_flags;
use super::requests;
use super::types::{Cluster, HELIO_READ_ONLY, OpenOptions, Status, Volume, Watcher};
use crate::cipher::KeySource;
use crate::client;
use crate::client::JOURNAL_BYTES;

/// Where the key is.
///
/// # Safety
/// Both are NULL or texts with their ends.
unsafe fn key_source(file: *const c_char, command: *const c_char) -> Result<Option<KeySource>, Failure> {
    match (file.is_null(), command.is_null()) {
        (true, true) => Ok(None),
        // SAFETY: the caller of this function promises that.
        (false, true) => Ok(Some(KeySource::File(unsafe { text(file, "the name of the key's file") }?.into()))),
        // SAFETY: the same.
        (true, false) => Ok(Some(KeySource::Command(unsafe { text(command, "the command for the key") }?))),
        (false, false) => Err(Failure::invalid("key_file and key_command are both set")),
    }
}

functions! {
    /// Opens a volume, or by VOLUME@SNAPSHOT a snapshot, which can only be read. options may be NULL. Returns when a node knows it; what
    /// is asked of it then waits until its owner is found.
    fn helio_volume_open(cluster: *mut Cluster, name: *const c_char, options: *const OpenOptions, volume: *mut *mut Volume) -> c_int {
        handles::require_process()?;
        // SAFETY: the caller's promise, see the header.
        let volume = unsafe { Place::new(volume) }?;
        // SAFETY: the same.
        let name = unsafe { text(name, "the volume's name") }?;
        // SAFETY: the same.
        let options = unsafe { self::options(options) }?;
        require_flags(options.flags, HELIO_READ_ONLY)?;
        let options = client::OpenOptions {
            is_read_only: options.flags & HELIO_READ_ONLY != 0,
            or_read_only: false,
            give_up: patience(options.give_up_ms),
            journal_bytes: if options.journal_bytes > 0 { options.journal_bytes } else { JOURNAL_BYTES },
            // SAFETY: the caller's promise, see the header.
            keys: unsafe { key_source(options.key_file, options.key_command) }?,
            allows_plain: false,
        };
        let engine = handles::cluster(cluster)?;
        let opened = engine.wait(async { Ok(engine.cluster().open(&name, options).await?) })?;
        volume.fill(handles::add_volume(Disk::new(engine, opened)));
        Ok(0)
    }

    /// Waits until every request is done and its callback has returned, flushes, and ends the handle, in any case. 0 means that everything
    /// that was written is durable. Not in callbacks.
    fn helio_volume_close(volume: *mut Volume) -> c_int {
        require_own_thread()?;
        let disk = handles::begin_closing(volume)?;
        let finished = disk.finish();
        handles::remove_volume(volume);
        finished.map(|()| 0)
    }

    /// Ends whatever waits, also in other threads and in helio_volume_close, now and later, with -ECANCELED. What was being written may
    /// be done or not. Does not wait.
    fn helio_volume_cancel(volume: *mut Volume) -> c_int {
        handles::volume_or_closing(volume)?.cancel();
        Ok(0)
    }

    /// Bytes. A volume may grow while it is in use.
    fn helio_volume_size(volume: *mut Volume) -> i64 {
        let (_, in_use) = handles::volume(volume)?;
        i64::try_from(in_use.volume().size()).map_err(|_| Failure::invalid("the volume's size does not fit"))
    }

    /// How the volume stands now. Set status->size before.
    fn helio_volume_status(volume: *mut Volume, status: *mut Status) -> c_int {
        let (_, in_use) = handles::volume(volume)?;
        let now = super::status::status(&in_use.volume().state(), in_use.volume().is_read_only());
        // SAFETY: the caller's promise, see the header.
        unsafe { put_status(status, &now) }?;
        Ok(0)
    }

    /// Calls watcher with how the volume stands, now and after every change of anything but journal_bytes, until helio_volume_close
    /// returns. Changes that follow each other closely may be told as one.
    fn helio_volume_watch(volume: *mut Volume, watcher: Watcher, user: *mut c_void) -> c_int {
        let (disk, in_use) = handles::volume(volume)?;
        requests::watch(&disk, in_use, watcher, user)?;
        Ok(0)
    }
}
