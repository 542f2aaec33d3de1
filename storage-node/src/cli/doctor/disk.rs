//! A directory of a store: where it lies, how much is free, through which engine it is used, and whether a sync is one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Finding;
use crate::io::buffer::AlignedBuffer;
use crate::io::{ALIGNMENT, Bell, EngineKind, FileId, IoEngine, IoKind, IoOp, open_engine};
use crate::size::human;

/// Synced writes that are measured.
const SYNCS: usize = 32;
/// No disk without memory that outlives a power cut can be faster: a flash page takes longer to be programmed.
const HONEST_SYNC_MIN: Duration = Duration::from_micros(30);
/// Beyond this a flush is felt by whatever waits for it.
const SLOW_SYNC: Duration = Duration::from_millis(20);
/// How long one operation may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Room for the smallest log that makes sense.
const FREE_MIN: u64 = 2 << 30;
/// What is made to try it, and removed.
const TRIAL: &str = "helio-doctor";

/// What the kernel calls file systems whose contents end with the machine, or are somewhere else.
const MEMORY_TYPES: [&str; 2] = ["tmpfs", "ramfs"];
const REMOTE_TYPES: [&str; 5] = ["nfs", "nfs4", "cifs", "smb3", "9p"];

pub(super) fn findings(directory: &Path, engine: EngineKind) -> Vec<Finding> {
    let what = format!("disk {}", directory.display());
    let Some(existing) = existing(directory) else {
        return vec![Finding::wrong(what, "no such directory", "name one that exists, or can be made")];
    };
    let mut findings = vec![file_system(&what, &type_of(&existing).unwrap_or_default())];
    match rustix::fs::statvfs(&existing) {
        Ok(stat) => findings.push(space(&what, stat.f_bavail.saturating_mul(stat.f_frsize))),
        Err(error) => findings.push(Finding::wrong(&*what, error.to_string(), "mount it, or name another directory")),
    }
    match Trial::new(&existing, engine) {
        Ok(mut trial) => {
            findings.push(through(&what, &trial));
            match trial.syncs() {
                Ok(syncs) => findings.push(sync(&what, median(syncs))),
                Err(error) => findings.push(Finding::wrong(
                    &*what,
                    format!("a synced write of a block failed: {error}"),
                    "the file system must take direct writes (O_DIRECT): ext4, xfs and btrfs do",
                )),
            }
        }
        Err(error) => findings.push(Finding::wrong(
            &*what,
            format!("a file cannot be made and used: {error}"),
            format!("let the user that runs the node write in {}", existing.display()),
        )),
    }
    findings
}

/// The directory, or the one that it would be made in: one that is to be made lies where its parent does.
fn existing(directory: &Path) -> Option<PathBuf> {
    // The name alone of one here has no parent that could be looked at.
    let whole = std::path::absolute(directory).ok()?;
    whole.ancestors().find(|path| path.is_dir()).map(Path::to_path_buf)
}

/// The type of the file system that `directory` is on, as /proc/self/mounts calls it: that of the longest mount point.
fn type_of(directory: &Path) -> Option<String> {
    let whole = directory.canonicalize().ok()?;
    mounted(&std::fs::read_to_string("/proc/self/mounts").ok()?, &whole)
}

fn mounted(mounts: &str, directory: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        // Blanks are written in octal there (fstab(5)).
        Some((PathBuf::from(fields.next()?.replace("\\040", " ")), fields.next()?))
    });
    // Of two at the same place the later one hides the other.
    let (_, name) =
        mounts.filter(|(point, _)| directory.starts_with(point)).max_by_key(|(point, _)| point.components().count())?;
    Some(name.to_owned())
}

fn file_system(what: &str, name: &str) -> Finding {
    if MEMORY_TYPES.contains(&name) {
        return Finding::wrong(what, format!("{name}: it is lost with the machine's power"), "name one on a disk");
    }
    if REMOTE_TYPES.contains(&name) {
        let found = format!("{name}: a network is between the node and its disk");
        return Finding::warning(what, found, "name one on a local disk: every flush waits for that network");
    }
    Finding::ok(what, if name.is_empty() { "file system unknown" } else { name })
}

fn space(what: &str, free: u64) -> Finding {
    let found = format!("{} free", human(free));
    if free >= FREE_MIN {
        return Finding::ok(what, found);
    }
    Finding::warning(what, found, format!("make room: {} are soon full of one volume's log", human(FREE_MIN)))
}

fn sync(what: &str, median: Duration) -> Finding {
    let found = format!("a synced block takes {} us", median.as_micros());
    if median < HONEST_SYNC_MIN {
        let advice = "no disk is that fast without memory that outlives a power cut: unless it has some, it or the hypervisor lies, and \
                      a power cut loses what was flushed";
        return Finding::warning(what, found, advice);
    }
    if median > SLOW_SYNC {
        return Finding::warning(
            what,
            found,
            "whatever flushes waits that long each time: a disk with a write cache of its own is better",
        );
    }
    Finding::ok(what, found)
}

fn through(what: &str, trial: &Trial) -> Finding {
    match &trial.fallback {
        None => Finding::ok(what, format!("used through {}", trial.name)),
        Some(reason) => Finding::warning(
            what,
            format!("used through threads, since io_uring is not to be had: {reason}"),
            "allow it (sysctl kernel.io_uring_disabled=0, and the container's seccomp profile): less time per operation",
        ),
    }
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// A file in a directory of its own, used as a node uses segments.
struct Trial {
    // Before the directory, which must be empty when it goes.
    engine: Box<dyn IoEngine>,
    name: &'static str,
    /// Why not by io_uring, where that was wanted.
    fallback: Option<String>,
    _directory: Removed,
}

/// A directory that goes with this.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // What is left is a few kilobytes under a name that says whose they are.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Trial {
    fn new(within: &Path, kind: EngineKind) -> std::io::Result<Trial> {
        let path = within.join(format!("{TRIAL}-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        let directory = Removed(path.clone());
        let bell = Arc::new(Bell::default());
        let (engine, name, fallback) = match kind {
            EngineKind::Std => (open_engine(EngineKind::Std, &path, &bell)?, "threads", None),
            EngineKind::Uring => (open_engine(EngineKind::Uring, &path, &bell)?, "io_uring", None),
            EngineKind::Auto => match open_engine(EngineKind::Uring, &path, &bell) {
                Ok(engine) => (engine, "io_uring", None),
                Err(error) => (open_engine(EngineKind::Std, &path, &bell)?, "threads", Some(error.to_string())),
            },
        };
        Ok(Trial { engine, name, fallback, _directory: directory })
    }

    /// How long synced writes of a block took, one after the other, into a file that was written through before.
    fn syncs(&mut self) -> std::io::Result<Vec<Duration>> {
        const NAME: &str = "trial";
        self.carry_out(FileId(0), IoKind::Create { name: NAME.to_owned(), size: (SYNCS * ALIGNMENT) as u64 })?;
        let file = self.engine.open(NAME)?;
        let mut taken = Vec::with_capacity(SYNCS);
        for number in 0..SYNCS {
            let buffer = AlignedBuffer::zeroed(ALIGNMENT);
            let begun = Instant::now();
            let offset = (number * ALIGNMENT) as u64;
            self.carry_out(file, IoKind::Write { offset, buffer, rest: Vec::new(), durable: true })?;
            taken.push(begun.elapsed());
        }
        self.engine.remove(NAME, Some(file))?;
        Ok(taken)
    }

    fn carry_out(&mut self, file: FileId, kind: IoKind) -> std::io::Result<()> {
        self.engine.submit(IoOp { token: 0, file, kind });
        let end = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        while completions.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            self.engine.wait(left, &mut completions)?;
        }
        completions.remove(0).result
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn the_longest_mount_point_counts_and_of_two_there_the_later() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /mnt/my\\040disk xfs rw 0 0\n/dev/c /tmp btrfs rw 0 0\n";
        let of = |path: &str| mounted(mounts, Path::new(path));
        assert_eq!(of("/var/lib").as_deref(), Some("ext4"));
        assert_eq!(of("/tmp/x").as_deref(), Some("btrfs"));
        assert_eq!(of("/tmpfiles").as_deref(), Some("ext4"), "whole names are compared");
        assert_eq!(of("/mnt/my disk/helio").as_deref(), Some("xfs"));
    }

    #[test]
    fn disks_are_judged_by_what_they_keep_and_how_fast() {
        let level = |name| file_system("disk", name).level;
        assert_eq!([level("ext4"), level("tmpfs"), level("nfs4")], [Level::Ok, Level::Wrong, Level::Warning]);
        let level = |micros| sync("disk", Duration::from_micros(micros)).level;
        assert_eq!(
            [level(3), level(90), level(4_000), level(50_000)],
            [Level::Warning, Level::Ok, Level::Ok, Level::Warning]
        );
        assert_eq!(space("disk", 1 << 30).level, Level::Warning);
        assert_eq!(space("disk", 1 << 40).level, Level::Ok);
    }

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = directory.path().join("not/yet/there");
        let findings = findings(&store, EngineKind::Std);
        let text = |found: &str| findings.iter().any(|finding| finding.found.contains(found));
        assert!(text("a synced block takes") && text("used through threads") && text("free"), "{findings:?}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("is there").count(), 0);
    }

    /// `helio doctor --disk store`, of one that was to be made where it was run, said that there is no such directory.
    #[test]
    fn one_that_is_to_be_made_here_lies_here() {
        let here = std::env::current_dir().expect("is somewhere");
        for name in ["not-made-yet", "./not-made-yet", "not/made/yet"] {
            assert_eq!(existing(Path::new(name)).as_ref(), Some(&here), "{name}");
        }
        assert_eq!(existing(Path::new("/proc/not-made-yet")).as_deref(), Some(Path::new("/proc")));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_wrong_and_says_for_whom() {
        let findings = findings(Path::new("/proc/self"), EngineKind::Std);
        let wrong = findings.iter().find(|finding| finding.level == Level::Wrong).expect("is found");
        assert!(wrong.advice.as_deref().is_some_and(|advice| advice.contains("/proc/self")), "{wrong:?}");
    }
}
