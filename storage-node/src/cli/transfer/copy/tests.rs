//! Copies between files and exports in memory.

use std::path::Path;
use std::sync::Arc;

use nbd_frontend::client::{Client, ClientOptions, NbdUri, ServerAddress};
use nbd_frontend::{MemoryDirectory, MemoryExport, Server, ServerOptions};

use super::super::image::{Format, Image};
use super::*;

const MIB: u64 = 1 << 20;

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

/// An export in memory, behind a server and a client.
struct Memory {
    export: Arc<MemoryExport>,
    client: Arc<Client>,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Memory {
    async fn new(size: u64) -> Memory {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let export = Arc::new(MemoryExport::new("disk", size));
        let exports = Arc::new(MemoryDirectory::new(vec![Arc::clone(&export)]));
        let options = ServerOptions { unix: Some(socket.clone()), ..ServerOptions::default() };
        let server = Server::bind(options, exports).await.expect("listens");
        let uri = NbdUri { server: ServerAddress::Unix(socket), export: "disk".into(), tls: None };
        let client = Client::connect(&uri, ClientOptions { connections: 2 }).await.expect("connects");
        Memory { export, client: Arc::new(client), _server: server, _directory: directory }
    }

    fn end(&self) -> End {
        End::Nbd(Arc::clone(&self.client))
    }

    fn target(&self, zeroed: bool) -> Target {
        Target::Nbd { client: Arc::clone(&self.client), zeroed }
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
    memory.client.write(0, vec![0xee; 7 << 20].into()).await.expect("is written");
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
