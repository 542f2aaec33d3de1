//! What a program and its service manager say to each other: sockets that are passed ([`sockets`]), how the program is
//! ([`notify`]), and when it is to end ([`stop`]). Without a service manager that comes to nothing. And what programs are told alike: how
//! they [`log`], how many files they may have open ([`limits`]), and where the [`keys`] of volumes are.
//!
//! The protocols are systemd's, which others speak as well: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).

pub mod keys;
pub mod limits;
pub mod log;
pub mod notify;
pub mod sockets;
pub mod stop;
