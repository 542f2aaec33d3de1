//! Copies between files and exports in memory.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use client_lib::{Error, ErrorKind};
use nbd_frontend::MemoryExport;

use super::super::image::{Format, Image};
use super::super::memory::{MIB, Memory, Operation};
use super::*;

/// Notes what it is told.
#[derive(Default)]
struct Noted {
    durable: Vec<Progress>,
}

impl Observer for Noted {
    fn at(&mut self, _: &Progress) {}

    fn durable(&mut self, progress: &Progress) -> anyhow::Result<()> {
        self.durable.push(*progress);
        Ok(())
    }
}

/// An image of `mib` MiB whose every third MiB has data, with a block of zeroes in it.
fn image(path: &Path, format: Format, mib: u64) -> End {
    let made = Image::create(path, format, mib * MIB, false).expect("is made");
    for at in (0..mib).step_by(3) {
        let mut data = vec![at as u8 + 1; MIB as usize];
        data[64 << 10..128 << 10].fill(0);
        made.write(at * MIB, &data).expect("is written");
    }
    made.sync().expect("is synced");
    drop(made);
    End::Image(Arc::new(Image::open(path, Some(format)).expect("opens")))
}

fn check(export: &MemoryExport, mib: u64) {
    for at in 0..mib {
        let mut expected = vec![if at % 3 == 0 { at as u8 + 1 } else { 0 }; MIB as usize];
        expected[64 << 10..128 << 10].fill(0);
        assert!(export.contents(at * MIB, MIB as u32) == expected, "MiB {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_arrives_and_zeroes_are_neither_read_nor_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut sums = Vec::new();
    for format in [Format::Raw, Format::Qcow2] {
        let source = image(&directory.path().join(format.to_string()), format, 31);
        let memory = Memory::new(40 * MIB).await;
        let target = memory.target(true);
        let mut noted = Noted::default();
        let done = copy(&source, Some(&target), 31 * MIB, Progress::none(), &mut noted).await.expect("is copied");
        check(&memory.export, 31);
        assert_eq!(done.position_bytes, 31 * MIB);
        assert_eq!(done.read_bytes, 11 * MIB, "holes of whole pieces are not read");
        assert_eq!(done.written_bytes, 11 * (MIB - (64 << 10)), "nor zeroes written");
        assert_eq!(noted.durable, [done]);
        // What the server tells as holes is not read either: there and back is the same checksum.
        let again = copy(&memory.end(), None, 31 * MIB, Progress::none(), &mut noted).await.expect("is read");
        assert_eq!((again.checksum, again.read_bytes), (done.checksum, 11 * MIB));
        sums.push(done.checksum);
    }
    assert_eq!(sums[0], sums[1], "of the content, however it is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn zeroes_reach_a_target_that_holds_something() {
    let directory = tempfile::tempdir().expect("a directory");
    let source = image(&directory.path().join("raw"), Format::Raw, 7);
    let memory = Memory::new(7 * MIB).await;
    memory.fill(0, 7 * MIB, 0xee).await;
    let target = memory.target(false);
    copy(&source, Some(&target), 7 * MIB, Progress::none(), &mut Noted::default()).await.expect("is copied");
    check(&memory.export, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_goes_on_has_the_checksum_of_a_whole_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let source = image(&directory.path().join("raw"), Format::Raw, 12);
    let whole = copy(&source, None, 12 * MIB, Progress::none(), &mut Noted::default()).await.expect("is read");
    let memory = Memory::new(12 * MIB).await;
    let target = memory.target(true);
    let part = copy(&source, Some(&target), 5 * MIB, Progress::none(), &mut Noted::default()).await.expect("is copied");
    let rest = copy(&source, Some(&target), 12 * MIB, part, &mut Noted::default()).await.expect("goes on");
    assert_eq!(rest, Progress { written_bytes: rest.written_bytes, ..whole });
    check(&memory.export, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_before_a_failure_is_noted() {
    let directory = tempfile::tempdir().expect("a directory");
    let source = image(&directory.path().join("raw"), Format::Raw, 100);
    // Too small: writes beyond its end fail for want of space.
    let memory = Memory::new(50 * MIB).await;
    let target = memory.target(true);
    let mut noted = Noted::default();
    let error = copy(&source, Some(&target), 100 * MIB, Progress::none(), &mut noted).await.expect_err("is full");
    assert!(error.to_string().contains("lies beyond the end"), "{error}");
    let last = noted.durable.last().expect("is noted");
    assert_eq!(last.position_bytes, 51 * MIB, "up to the first piece that failed: two of zeroes follow the 49th");
}

/// A file system or a server tells an error of writing once. The target was flushed once more after a flush had failed, that said that all was
/// well, and the state file noted bytes that were lost: `--resume` went on behind them.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_failed_is_not_asked_for_again_and_nothing_more_is_noted() {
    let directory = tempfile::tempdir().expect("a directory");
    let source = image(&directory.path().join("raw"), Format::Raw, 240);
    let flushes = Arc::new(AtomicU32::new(0));
    let asked = Arc::clone(&flushes);
    let memory = Memory::hooked(240 * MIB, move |operation| {
        // The first checkpoint, at 64 MiB read. All later ones are well.
        if operation == Operation::Flush && asked.fetch_add(1, Ordering::Relaxed) == 0 {
            return Err(Error::new(ErrorKind::OutOfSpace, "some pages could not be written"));
        }
        Ok(())
    });
    let memory = memory.await;
    let target = memory.target(true);
    let mut noted = Noted::default();
    let outcome = copy(&source, Some(&target), 240 * MIB, Progress::none(), &mut noted).await;
    let said = format!("{:#}", outcome.expect_err("what may be lost was not copied"));
    assert!(said.contains("some pages could not be written"), "{said}");
    assert_eq!(flushes.load(Ordering::Relaxed), 1);
    assert_eq!(noted.durable, [], "behind what a flush made durable");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_ends_within_a_sector_ends_with_zeroes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("odd");
    std::fs::write(&path, vec![9; (2 << 20) + 100]).expect("is written");
    let source = End::Image(Arc::new(Image::open(&path, None).expect("opens")));
    let memory = Memory::new(2 * MIB + 512).await;
    let target = memory.target(true);
    let size = 2 * MIB + 512;
    let done = copy(&source, Some(&target), size, Progress::none(), &mut Noted::default()).await.expect("is copied");
    assert_eq!(memory.export.contents(2 * MIB, 512), [vec![9; 100], vec![0; 412]].concat());
    let again = copy(&memory.end(), None, size, Progress::none(), &mut Noted::default()).await.expect("is read");
    assert_eq!(again.checksum, done.checksum);
}
