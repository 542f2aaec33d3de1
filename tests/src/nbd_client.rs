//! A small blocking NBD client: fixed newstyle, GO, simple replies, one request at a time, over a Unix socket.
//!
//! Written from the protocol's document and independent of `nbd-frontend`. No TLS, no structured replies.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const NBDMAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const IHAVEOPT: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
/// Longest option reply that is believed.
const MAX_OPTION_REPLY: u32 = 64 << 10;
/// How long a reply may take; far above any handover.
const PATIENCE: Duration = Duration::from_secs(120);

/// `NBD_EPERM` on the wire.
pub const EPERM: u32 = 1;

/// `NBD_EIO` on the wire.
pub const EIO: u32 = 5;

/// `NBD_EINVAL` on the wire.
pub const EINVAL: u32 = 22;

/// `NBD_ENOSPC` on the wire.
pub const ENOSPC: u32 = 28;

/// Why a request has no result.
#[derive(Debug)]
pub enum Error {
    /// The server's answer, an error number of the protocol.
    Refused(u32),
    /// The connection or the protocol broke.
    Broken(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// One connection in the transmission phase.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size: u64,
    flags: u16,
    cookie: u64,
}

impl Client {
    /// Connects and negotiates `export`. `Refused` holds the option reply's type.
    pub fn connect(socket: &Path, export: &str) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut this = Self { stream, size: 0, flags: 0, cookie: 0 };
        expect(this.u64()?, NBDMAGIC, "greeting")?;
        expect(this.u64()?, IHAVEOPT, "greeting")?;
        let _handshake: [u8; 2] = this.bytes()?;
        let name = export.as_bytes();
        let mut hello = 3u32.to_be_bytes().to_vec(); // fixed newstyle, no zeroes
        hello.extend(IHAVEOPT.to_be_bytes());
        hello.extend(OPT_GO.to_be_bytes());
        hello.extend((name.len() as u32 + 6).to_be_bytes());
        hello.extend((name.len() as u32).to_be_bytes());
        hello.extend(name);
        hello.extend(0u16.to_be_bytes());
        this.stream.write_all(&hello)?;
        loop {
            expect(this.u64()?, OPTION_REPLY, "option reply")?;
            expect(u64::from(this.u32()?), u64::from(OPT_GO), "option")?;
            let (kind, length) = (this.u32()?, this.u32()?);
            if length > MAX_OPTION_REPLY {
                return Err(broken("an option reply is too long"));
            }
            let mut data = vec![0; length as usize];
            this.stream.read_exact(&mut data)?;
            match (kind, data.as_slice()) {
                (REP_ACK, _) => return Ok(this),
                (REP_INFO, [0, 0, size @ .., high, low]) if size.len() == 8 => {
                    this.size = size.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                    this.flags = u16::from_be_bytes([*high, *low]);
                }
                (REP_INFO, _) => {}
                (refused, _) => return Err(Error::Refused(refused)),
            }
        }
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Transmission flags of the export.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Reads `length` bytes.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, Error> {
        self.request(0, offset, length, &[])?;
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Writes `data`; not durable before [`Client::flush`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.request(1, offset, data.len() as u32, data)
    }

    /// Drops `length` bytes: they read as zeroes afterwards.
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), Error> {
        self.request(4, offset, length, &[])
    }

    /// Makes `length` bytes zeroes.
    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> Result<(), Error> {
        self.request(6, offset, length, &[])
    }

    /// Makes every answered write durable.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.request(3, 0, 0, &[])
    }

    fn request(&mut self, kind: u16, offset: u64, length: u32, payload: &[u8]) -> Result<(), Error> {
        self.cookie += 1;
        let mut request = REQUEST.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(payload);
        self.stream.write_all(&request)?;
        expect(u64::from(self.u32()?), u64::from(SIMPLE_REPLY), "reply")?;
        let error = self.u32()?;
        expect(self.u64()?, self.cookie, "cookie")?;
        if error == 0 { Ok(()) } else { Err(Error::Refused(error)) }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.bytes().map(u64::from_be_bytes)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut disconnect = REQUEST.to_be_bytes().to_vec();
        disconnect.extend(2u32.to_be_bytes());
        disconnect.extend([0; 20]);
        let _ = self.stream.write_all(&disconnect);
    }
}

fn broken(what: &str) -> Error {
    Error::Broken(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}

fn expect(found: u64, wanted: u64, what: &str) -> Result<(), Error> {
    if found == wanted { Ok(()) } else { Err(broken(&format!("{what}: {found:x} instead of {wanted:x}"))) }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;
    use crate::workload::{BLOCK, check, fill};

    #[test]
    fn blocks_written_to_another_server_are_read_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (socket, pid) = (dir.path().join("s"), dir.path().join("pid"));
        let mut server = Command::new("nbdkit")
            .args(["-f", "--exit-with-parent", "-U"])
            .arg(&socket)
            .arg("-P")
            .arg(&pid)
            .args(["memory", "1M"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdkit runs: `make tools` installs it");
        // nbdkit writes its pid file once it listens.
        let end = Instant::now() + PATIENCE;
        while !pid.exists() && Instant::now() < end {
            std::thread::yield_now();
        }
        let result = exercise(&socket);
        let _ = server.kill();
        let _ = server.wait();
        result.expect("the client works with nbdkit");
    }

    fn exercise(socket: &Path) -> Result<(), Error> {
        let mut client = Client::connect(socket, "")?;
        assert_eq!(client.size(), 1 << 20);
        client.write(8192, &fill(7, 2, 5))?;
        client.flush()?;
        drop(client);
        let mut again = Client::connect(socket, "")?;
        assert_eq!(check(&again.read(8192, BLOCK as u32)?, 7, 2), Ok(5));
        assert_eq!(check(&again.read(0, BLOCK as u32)?, 7, 0), Ok(0));
        assert!(matches!(again.read(1 << 20, 512), Err(Error::Refused(22))));
        Ok(())
    }
}
