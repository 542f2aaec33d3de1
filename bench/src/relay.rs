//! The smallest thing that can stand between a client and a server: it hands bytes on, both ways, and knows nothing of them. What a
//! process on the way costs at the least, on this machine.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

use clap::Args;

/// Bytes taken at a time.
const CHUNK: usize = 256 << 10;

/// It, as a process of its own.
#[derive(Debug, Args)]
pub(crate) struct Options {
    socket: PathBuf,
    to: PathBuf,
}

/// Hands on until it is ended.
pub(crate) fn serve(options: &Options) -> anyhow::Result<()> {
    for client in UnixListener::bind(&options.socket)?.incoming() {
        let (client, server) = (client?, UnixStream::connect(&options.to)?);
        let (to_client, to_server) = (client.try_clone()?, server.try_clone()?);
        thread::spawn(move || hand_on(client, to_server));
        thread::spawn(move || hand_on(server, to_client));
    }
    Ok(())
}

/// Until one of them ends.
fn hand_on(mut from: UnixStream, mut to: UnixStream) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(length) if to.write_all(&chunk[..length]).is_ok() => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    // The other way ends by that, too; it may have ended already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
