//! What a program and its service manager say to each other: sockets that are passed ([`sockets`]), how the program is
//! ([`notify`]), and when it is to end ([`stop`]); and its [`log`]. Without a service manager all but the last comes to nothing.
//!
//! The protocols are systemd's, which others speak as well: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).

pub mod log;
pub mod notify;
pub mod sockets;
pub mod stop;
