//! Listening sockets that the service manager passes (sd_listen_fds(3)): it holds them, so that clients may connect before the
//! program is up, and wait while it is restarted.
//!
//! A socket is known by its kind: there may be one Unix socket and one for TCP. Names (`FileDescriptorName=`) need not be given;
//! one that means nothing here is refused, since somebody meant something by it. Taking descriptors over by their numbers is
//! `listenfd`'s: it looks what each is before it takes it.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use client_lib::{Error, ErrorKind};
use listenfd::ListenFd;
use socket2::SockRef;

/// The number of the first descriptor that is passed (sd_listen_fds(3), `SD_LISTEN_FDS_START`).
const FIRST: usize = 3;

/// The sockets that were passed.
#[derive(Debug, Default)]
pub struct PassedSockets {
    unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
}

/// One of them.
#[derive(Debug)]
enum Passed {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl PassedSockets {
    /// Takes those that the environment tells of; none when it tells of none, or those of another process. Changes the environment, so
    /// that nobody takes them twice: to be called before there are other threads.
    ///
    /// # Errors
    /// `InvalidRequest` when something was passed that cannot be used, with what to change.
    pub fn take() -> Result<PassedSockets, Error> {
        let names = std::env::var("LISTEN_FDNAMES").ok();
        let mut passed = ListenFd::from_env();
        let names = names_of(names.as_deref(), passed.len())?;
        let mut sockets = PassedSockets::default();
        for (at, name) in names.iter().enumerate() {
            let what = format!("socket {name:?} (descriptor {})", FIRST + at);
            let socket = match (passed.take_unix_listener(at), passed.take_tcp_listener(at)) {
                (Ok(Some(socket)), _) => Passed::Unix(socket),
                (_, Ok(Some(socket))) => Passed::Tcp(socket),
                _ => return Err(unusable(&what, "is neither a Unix nor a TCP stream socket: use ListenStream=")),
            };
            sockets.add(&what, socket)?;
        }
        Ok(sockets)
    }

    /// Sockets of one's own, for who has no service manager.
    #[must_use]
    pub fn of(unix: Option<UnixListener>, tcp: Option<TcpListener>) -> PassedSockets {
        PassedSockets { unix, tcp }
    }

    fn add(&mut self, what: &str, socket: Passed) -> Result<(), Error> {
        let (listens, is_another) = match &socket {
            Passed::Unix(socket) => (SockRef::from(socket).is_listener(), self.unix.is_some()),
            Passed::Tcp(socket) => (SockRef::from(socket).is_listener(), self.tcp.is_some()),
        };
        if !listens.unwrap_or(false) {
            return Err(unusable(what, "does not listen: a connection cannot be served, use Accept=no"));
        }
        if is_another {
            return Err(unusable(what, "is one too many: one Unix socket and one for TCP can be used"));
        }
        match socket {
            Passed::Unix(socket) => self.unix = Some(socket),
            Passed::Tcp(socket) => self.tcp = Some(socket),
        }
        Ok(())
    }

    /// The Unix socket.
    #[must_use]
    pub fn unix(&self) -> Option<&UnixListener> {
        self.unix.as_ref()
    }

    /// Where that is, if it is in the file system.
    #[must_use]
    pub fn unix_path(&self) -> Option<PathBuf> {
        self.unix.as_ref()?.local_addr().ok()?.as_pathname().map(ToOwned::to_owned)
    }

    /// The socket for TCP.
    #[must_use]
    pub fn tcp(&self) -> Option<&TcpListener> {
        self.tcp.as_ref()
    }

    /// Where that is.
    ///
    /// # Errors
    /// As the system says.
    pub fn tcp_address(&self) -> std::io::Result<Option<SocketAddr>> {
        self.tcp.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// Whether nothing was passed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unix.is_none() && self.tcp.is_none()
    }
}

/// A name for each of `count` sockets, all of which may be used here.
fn names_of(names: Option<&str>, count: usize) -> Result<Vec<String>, Error> {
    let names: Vec<String> = match names {
        // As sd_listen_fds_with_names(3) has it where there are none.
        None | Some("") => vec!["unknown".to_owned(); count],
        Some(names) => names.split(':').map(ToOwned::to_owned).collect(),
    };
    // Of a process that has none, which inherited the variable.
    if count == 0 {
        return Ok(Vec::new());
    }
    if names.len() != count {
        let text = format!("LISTEN_FDNAMES has {} names for {count} sockets", names.len());
        return Err(Error::new(ErrorKind::InvalidRequest, text));
    }
    for name in &names {
        match name.as_str() {
            // The last is what systemd calls a socket by itself: by its unit.
            "nbd" | "unknown" => {}
            unit if unit.ends_with(".socket") => {}
            "connection" => {
                return Err(unusable("a connection", "cannot be served by itself: use Accept=no"));
            }
            _ => {
                let why = "means nothing here: leave FileDescriptorName= out, or say nbd";
                return Err(unusable(&format!("socket name {name:?}"), why));
            }
        }
    }
    Ok(names)
}

fn unusable(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidRequest, format!("{what}, passed by the service manager, {why}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn names_may_be_left_out_and_unknown_ones_are_refused() {
        let named = |names: &str, count| names_of(Some(names), count).map_err(|error| error.to_string());
        assert_eq!(names_of(None, 2).expect("none are needed"), ["unknown", "unknown"]);
        assert_eq!(named("", 1), Ok(vec!["unknown".to_owned()]));
        assert_eq!(named("helio-nbd.socket:nbd", 2), Ok(vec!["helio-nbd.socket".to_owned(), "nbd".to_owned()]));
        assert_eq!(named("anything", 0), Ok(Vec::new()), "of somebody else");
        for (names, count, expected) in [
            ("nbd", 2, "1 names for 2 sockets"),
            ("nbd:nbd", 1, "2 names for 1 sockets"),
            ("admin", 1, "\"admin\", passed by the service manager, means nothing here"),
            ("connection", 1, "Accept=no"),
        ] {
            let said = named(names, count).expect_err("is wrong");
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn one_of_each_kind_that_listens_is_used() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("nbd.sock");
        let unix = || {
            let _ = std::fs::remove_file(&path);
            Passed::Unix(UnixListener::bind(&path).expect("listens"))
        };
        let tcp = || Passed::Tcp(TcpListener::bind("127.0.0.1:0").expect("listens"));
        let mut sockets = PassedSockets::default();
        assert!(sockets.is_empty() && sockets.unix_path().is_none());
        sockets.add("one", unix()).expect("is the first");
        sockets.add("two", tcp()).expect("is another kind");
        assert!(!sockets.is_empty() && sockets.tcp().is_some());
        assert_eq!(sockets.unix_path().as_ref(), Some(&path));
        for (again, name) in [(unix(), "three"), (tcp(), "four")] {
            let said = sockets.add(name, again).expect_err("is another").to_string();
            assert!(said.starts_with(name) && said.contains("one too many"), "{said}");
        }
        let (connection, _other) = UnixStream::pair().expect("a pair");
        let connection = Passed::Unix(OwnedFd::from(connection).into());
        let said = PassedSockets::default().add("one", connection).expect_err("is no listener").to_string();
        assert!(said.contains("Accept=no"), "{said}");
    }
}
