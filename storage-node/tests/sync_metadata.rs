//! A sync of the log touches no file-system metadata: segments are written through when they are made, and used again. Counted
//! on an ext4 of its own, by the commits that its journal is asked for: fsync(2) asks for one when the file's size or blocks
//! have changed, and for none when they have not.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use client_lib::{Epoch, VolumeId, VolumeSize};
use storage_node::io::EngineKind;
use storage_node::log::LogSettings;
use storage_node::log::segment::SEGMENT_BYTES_MIN;
use storage_node::map::store::prepare_directory;
use storage_node::shard::handle::ShardHandle;
use storage_node::shard::{Shard, ShardOptions};

const VOLUME: VolumeId = VolumeId(1);
const MIB: u64 = 1 << 20;
/// Synced writes that are counted.
const SYNCS: u64 = 600;

/// An ext4 in a file, mounted; unmounted when dropped.
struct Mount {
    root: tempfile::TempDir,
}

impl Mount {
    /// `Err` says why there is none here.
    fn new() -> Result<Mount, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a file system of its own needs root to be mounted".to_owned());
        }
        let mount = Mount { root: tempfile::tempdir().map_err(|error| error.to_string())? };
        fs::create_dir(mount.point()).map_err(|error| error.to_string())?;
        let image = mount.root.path().join("image");
        // Nothing shall be initialised in the background meanwhile.
        run(Command::new("/sbin/mke2fs")
            .args(["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&image)
            .arg("384M"))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mount.point()))?;
        Ok(mount)
    }

    fn point(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// How many commits the journal was asked for.
    fn commits(&self) -> Result<u64, String> {
        let point = self.point();
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let line = table.lines().find(|line| line.split(' ').nth(4) == point.to_str());
        let device = line.and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1)).ok_or("it is not mounted")?;
        let name = device.rsplit('/').next().unwrap_or(device);
        let path = format!("/proc/fs/jbd2/{name}-8/info");
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        // "12 transactions (7 requested), each up to …"
        let requested = text.split_once('(').and_then(|(_, rest)| rest.split_once(' ')?.0.parse().ok());
        requested.ok_or_else(|| format!("{path} says {text:?}"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.point()).status();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Number and inode of every segment file.
fn files(segments: &Path) -> BTreeSet<(String, u64)> {
    let entries = fs::read_dir(segments).expect("lists").map(|entry| entry.expect("lists"));
    entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.metadata().expect("is there").ino()))
        .collect()
}

async fn write(shard: &ShardHandle, number: u64, bytes: u64, fua: bool) {
    let offset = number * bytes % (16 * MIB);
    shard.write(VOLUME, offset, Bytes::from(vec![number as u8; bytes as usize]), fua).await.expect("writes");
}

#[tokio::test]
async fn a_sync_of_a_recycled_segment_asks_the_journal_for_no_commit() {
    let mount = match Mount::new() {
        Ok(mount) => mount,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    if let Err(reason) = mount.commits() {
        return eprintln!("skipped: the kernel does not tell of its journals: {reason}");
    }
    for engine in [EngineKind::Auto, EngineKind::Std] {
        let directory = mount.point().join(format!("{engine:?}"));
        prepare_directory(&directory).expect("is made");
        // The map has its own syncs; only those of the log are counted.
        let map = tempfile::tempdir().expect("a directory");
        symlink(map.path(), directory.join("map")).expect("is linked");
        let log = LogSettings {
            segment_bytes: SEGMENT_BYTES_MIN,
            // All that come free are kept.
            spare_segments: 10,
            capacity_bytes: Some(10 * SEGMENT_BYTES_MIN),
        };
        let shard = Shard::start(ShardOptions {
            engine,
            log,
            checkpoint_log_bytes: 16 * MIB,
            scrub_period: None,
            ..ShardOptions::new(directory.clone())
        })
        .await
        .expect("starts");
        shard.open(VOLUME, VolumeSize::try_from(16 * MIB).expect("valid")).await.expect("opens");
        shard.activate(VOLUME, Epoch(1)).await.expect("activates");
        // Three times what there is room for, so that every segment is used again.
        for number in 0..240 {
            write(&shard, number, MIB, false).await;
        }
        shard.flush(VOLUME).await.expect("flushes");

        let segments = directory.join("segments");
        let (before, commits_before) = (files(&segments), mount.commits().expect("tells"));
        let prepared = shard.traffic().await.expect("tells").prepared;
        for number in 0..SYNCS {
            match number % 2 {
                // As one durable write, and as a write and a sync.
                0 => write(&shard, number, 4096, true).await,
                _ => {
                    write(&shard, number, 4096, false).await;
                    shard.flush(VOLUME).await.expect("flushes");
                }
            }
        }
        let commits = mount.commits().expect("tells") - commits_before;
        assert_eq!(shard.traffic().await.expect("tells").prepared, prepared, "no segment was made meanwhile");
        assert_eq!(files(&segments), before, "the same files");
        println!("{engine:?}: {SYNCS} synced writes, {commits} journal commits");
        assert_eq!(commits, 0, "commits for {SYNCS} syncs with {engine:?}");
        shard.stop().await.expect("stops");
        fs::remove_dir_all(&directory).expect("makes room");
    }

    // What the counter shows when a sync does touch metadata.
    let before = mount.commits().expect("tells");
    let mut file = File::create(mount.point().join("grows")).expect("is made");
    for _ in 0..50 {
        file.write_all(&[1; 4096]).expect("writes");
        file.sync_data().expect("syncs");
    }
    let commits = mount.commits().expect("tells") - before;
    println!("a file that grows: 50 synced writes, {commits} journal commits");
    assert!(commits >= 40, "{commits} commits for 50 syncs of a file that grows");
}
