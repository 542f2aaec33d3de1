//! Tells the service manager how the program is: datagrams to the socket that the environment names (sd_notify(3)), and, where it
//! asks for that, that the program is still alive (sd_watchdog_enabled(3)).

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::runtime::Handle;

/// The program serves.
pub fn ready(status: &str) {
    // The process id too: of a service whose process was another one until now.
    tell(&format!("MAINPID={}\nREADY=1\nSTATUS={status}", std::process::id()));
}

/// The program ends, because it was asked to. Not for one that was replaced: its service goes on.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=stopping");
}

/// What the program does, in words.
pub fn status(status: &str) {
    tell(&format!("STATUS={status}"));
}

/// Tells from now on, as often as the service manager wants it, that the program is alive: each time that all of `threads`, by their
/// runtimes, have looked up from what they do. When one does not, the service manager does what it was told to do with programs that
/// hang. One that has ended does not hang. To be called on a runtime.
pub fn watch(threads: Vec<Handle>) {
    let variable = |name| std::env::var(name).ok();
    let Some(period) = period(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id()) else { return };
    tokio::spawn(async move {
        loop {
            for thread in &threads {
                // Cancelled where it has ended.
                let _ = thread.spawn(std::future::ready(())).await;
            }
            tell("WATCHDOG=1");
            tokio::time::sleep(period).await;
        }
    });
}

/// Half of the time after which a program is taken for dead, as sd_watchdog_enabled(3) advises; `None` when nobody watches this one.
fn period(limit_us: Option<String>, of: Option<String>, this: u32) -> Option<Duration> {
    let is_this = of.is_none_or(|of| of.parse() == Ok(this));
    let limit_us: u64 = limit_us.filter(|_| is_this)?.parse().ok()?;
    (limit_us > 1).then(|| Duration::from_micros(limit_us / 2))
}

/// Without a service manager nobody is told.
fn tell(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = tell_at(&path, state) {
        tracing::warn!(%error, "the service manager cannot be told: {state}");
    }
}

fn tell_at(path: &OsStr, state: &str) -> std::io::Result<()> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    // One that does not read must not hold this up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_goes_to_a_path_or_to_an_abstract_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let name = format!("heliotrope-notify-{}", std::process::id());
        let sockets = [
            (UnixDatagram::bind(&path).expect("is bound"), path.as_os_str().to_owned()),
            (
                SocketAddr::from_abstract_name(&name)
                    .and_then(|name| UnixDatagram::bind_addr(&name))
                    .expect("is bound"),
                format!("@{name}").into(),
            ),
        ];
        for (socket, place) in sockets {
            tell_at(&place, "READY=1").expect("is told");
            let mut text = [0; 64];
            let length = socket.recv(&mut text).expect("comes");
            assert_eq!(&text[..length], b"READY=1");
        }
        assert!(tell_at(directory.path().join("nobody").as_os_str(), "READY=1").is_err());
    }

    #[test]
    fn a_watchdog_is_told_twice_in_its_time() {
        let period = |limit: &str, of: Option<&str>| period(Some(limit.to_owned()), of.map(str::to_owned), 7);
        assert_eq!(period("3000000", None), Some(Duration::from_millis(1500)));
        assert_eq!(period("3000000", Some("7")), Some(Duration::from_millis(1500)));
        assert_eq!(period("3000000", Some("8")), None, "another process is watched");
        assert_eq!((period("0", None), period("soon", None)), (None, None));
        assert_eq!(super::period(None, Some("7".to_owned()), 7), None);
    }
}
