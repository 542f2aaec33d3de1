//! The wait for SIGINT or SIGTERM.

use std::pin::pin;

use futures_util::future::select;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, caught from now on.
#[derive(Debug)]
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// Catches them. To be called on a runtime.
    ///
    /// # Errors
    /// As the system says.
    pub fn new() -> std::io::Result<Stop> {
        Ok(Stop { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns at the first of either; a second one ends the process at once, with 1.
    pub async fn requested(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(1);
        });
    }

    async fn next(&mut self) {
        let _ = select(pin!(self.interrupt.recv()), pin!(self.terminate.recv())).await;
    }
}
