//! The client against the servers of others, over Unix sockets: each test skips, saying so, where one is not installed.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use client_lib::ReadPart;
use nbd_frontend::client::{Client, ClientOptions, NbdUri};

const MIB: u64 = 1 << 20;

/// A server that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server and connects as soon as its socket is there; `None`, saying so, where it is not installed.
async fn client(program: &str, arguments: &[&str], socket: &Path, connections: usize) -> Option<(Running, Client)> {
    let child = Command::new(program).args(arguments).arg(socket).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let mut running = Running(child);
    let uri: NbdUri = format!("nbd+unix:///?socket={}", socket.display()).parse().expect("is one");
    loop {
        assert!(running.0.try_wait().expect("is ours").is_none(), "{program} ended");
        match Client::connect(&uri, ClientOptions { connections }).await {
            Ok(client) => return Some((running, client)),
            Err(nbd_frontend::client::ClientError::Unreachable { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{program}: {error}"),
        }
    }
}

/// Writes, zeroes, reads and maps; `sparse` says whether the server tells holes.
async fn exercise(client: &Client, sparse: bool) {
    assert_eq!(client.size(), 64 * MIB);
    let data = |at: u64| Bytes::from((0..MIB / 4).map(|byte| ((at + byte) % 251) as u8 + 1).collect::<Vec<_>>());
    let offsets = [0, 3 * MIB, 63 * MIB];
    let writes = offsets.map(|at| client.write(at, data(at)));
    futures_util::future::try_join_all(writes).await.expect("are written");
    client.write_zeroes(3 * MIB, MIB / 8).await.expect("are zeroed");
    client.flush().await.expect("is flushed");
    for at in offsets {
        let read = ReadPart::joined(client.read(at, (MIB / 4) as u32).await.expect("is read"));
        let mut expected = data(at).to_vec();
        if at == 3 * MIB {
            expected[..(MIB / 8) as usize].fill(0);
        }
        assert!(read == expected, "what was written at {at}");
    }
    let (mut at, mut zero) = (0, 0);
    while at < client.size() {
        for extent in client.allocation(at, client.size() - at).await.expect("is told") {
            at += extent.length;
            zero += if extent.zero { extent.length } else { 0 };
        }
    }
    assert_eq!(at, client.size());
    assert_eq!(zero > 60 * MIB, sparse, "{zero} bytes of zeroes");
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdkit_is_understood_with_structured_replies_and_without() {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, more, sparse) in [("a", &[][..], true), ("b", &["--no-sr"][..], false)] {
        let arguments = [&["-f"], more, &["memory", "64M", "-U"]].concat();
        let Some((_server, client)) = client("nbdkit", &arguments, &directory.path().join(name), 4).await else {
            return;
        };
        assert_eq!(client.connections(), 4, "nbdkit's memory allows several");
        exercise(&client, sparse).await;
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_nbd_is_understood() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image");
    std::fs::File::create(&image).and_then(|file| file.set_len(64 * MIB)).expect("is made");
    let arguments = ["-f", "raw", "--discard=unmap", "--detect-zeroes=off", image.to_str().expect("is UTF-8"), "-k"];
    let Some((_server, client)) = client("qemu-nbd", &arguments, &directory.path().join("s"), 1).await else {
        return;
    };
    exercise(&client, true).await;
    client.close().await;
}
