//! What is printed row by row, and how a command ends when nobody takes what it prints.
//!
//! As other commands of a system do: quietly when its reader has gone (`helio … | head`), with the exit code that a shell reports for SIGPIPE, which Rust
//! ignores; and else with what the system said. `println!` panics instead, and [`Output`] returns [`Unprinted`]: both end alike. What goes on serving
//! prints otherwise ([`log::say`]).

use std::fmt;
use std::io::{self, BufWriter, ErrorKind, Write};

use nbd_frontend::service::log;

/// What a shell reports for a command that SIGPIPE ended.
const CLOSED_PIPE_EXIT: u8 = 141;

/// Standard output, for many rows.
pub(super) struct Output(BufWriter<io::StdoutLock<'static>>);

impl Output {
    pub(super) fn new() -> Output {
        Output(BufWriter::new(io::stdout().lock()))
    }

    /// Prints a line.
    pub(super) fn line(&mut self, line: impl fmt::Display) -> Result<(), Unprinted> {
        writeln!(self.0, "{line}").map_err(Unprinted)
    }

    /// What was printed so far is out.
    pub(super) fn flush(&mut self) -> Result<(), Unprinted> {
        self.0.flush().map_err(Unprinted)
    }
}

/// Standard output takes nothing more.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the output: {0}")]
pub(super) struct Unprinted(io::Error);

impl Unprinted {
    /// What the command exits with, and what it says.
    pub(super) fn end(&self) -> (u8, Option<String>) {
        match self.0.kind() {
            ErrorKind::BrokenPipe => (CLOSED_PIPE_EXIT, None),
            _ => (1, Some(cannot_write(&self.0.to_string()))),
        }
    }
}

/// Without the number of the system's error.
fn cannot_write(reason: &str) -> String {
    let reason = reason.split(" (os error").next().unwrap_or(reason);
    format!("helio: cannot write the output: {reason}")
}

/// Makes a command whose `println!` fails end so.
pub(super) fn end_when_printing_fails() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>();
        let Some((code, told)) = text.and_then(|text| printing_failed(text)) else { return report(panic) };
        told.into_iter().for_each(log::complain);
        std::process::exit(code.into());
    }));
}

/// What a command exits with, and what it says, when it panics with `text` since it cannot print; `None` for other panics.
fn printing_failed(text: &str) -> Option<(u8, Option<String>)> {
    let (place, reason) = text.strip_prefix("failed printing to ")?.split_once(": ")?;
    Some(match place {
        "stdout" if reason.starts_with("Broken pipe") => (CLOSED_PIPE_EXIT, None),
        "stdout" => (1, Some(cannot_write(reason))),
        // Standard error: where it would be told.
        _ => (1, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `helio volume list > /dev/full` ended with a panic's message, and 101.
    #[test]
    fn a_command_that_cannot_print_says_why() {
        let told = "helio: cannot write the output: No space left on device";
        for (text, expected) in [
            ("failed printing to stdout: Broken pipe (os error 32)", Some((CLOSED_PIPE_EXIT, None))),
            ("failed printing to stdout: No space left on device (os error 28)", Some((1, Some(told.to_owned())))),
            ("failed printing to stderr: No space left on device (os error 28)", Some((1, None))),
            ("index out of bounds", None),
        ] {
            assert_eq!(printing_failed(text), expected, "{text}");
        }
        let unprinted = |number| Unprinted(io::Error::from_raw_os_error(number)).end();
        assert_eq!((unprinted(32), unprinted(28)), ((CLOSED_PIPE_EXIT, None), (1, Some(told.to_owned()))));
    }
}
