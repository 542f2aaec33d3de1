//! The log of a program, to standard error: for people, or as JSON for what collects logs; and what a program that goes on serving prints.
//!
//! None of it ends a program: what cannot be written, since the disk is full or whoever reads has gone, is lost. `println!` and `eprintln!`
//! panic then.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people, with colours on a terminal.
    #[default]
    Text,
    /// An object of JSON on a line: timestamp, level, message, and what the event is about.
    Json,
}

/// Logs what `filter` lets through from now on, to standard error; once in the life of a process.
///
/// # Errors
/// What is wrong with the filter.
pub fn begin(filter: &str, format: LogFormat) -> Result<(), String> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| format!("--log {filter:?} is not a filter: {error}"))?;
    // Internal errors are told by `eprintln!`: a log that cannot be written would end the thread that logs.
    let log = tracing_subscriber::fmt().with_env_filter(parsed).log_internal_errors(false);
    let log = log.with_target(false).with_writer(io::stderr);
    match format {
        // Colours are for people: not in a file or a journal.
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => log.with_ansi(false).json().flatten_event(true).init(),
    }
    Ok(())
}

/// Prints a line to standard output, or loses it.
pub fn say(line: impl Display) {
    // Whoever serves goes on when nobody can be told.
    let _ = writeln!(io::stdout(), "{line}");
}

/// Prints a line to standard error, or loses it.
pub fn complain(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Set for the process that has nowhere to write.
    const CHILD: &str = "HELIO_TEST_OF_A_FULL_LOG";

    /// With its log on a full disk a node aborted at the next line of it: that the line could not be written was told by `eprintln!`, to the same
    /// place, in a shard's thread. This test runs itself again, with standard error where nothing can be written.
    #[test]
    fn a_log_that_cannot_be_written_ends_nothing() {
        if std::env::var_os(CHILD).is_some() {
            begin("info", LogFormat::Text).expect("is a filter");
            tracing::info!("nobody hears this");
            complain("nor this");
            return;
        }
        let full = std::fs::File::options().write(true).open("/dev/full").expect("is there");
        let mut again = Command::new(std::env::current_exe().expect("is known"));
        again.args(["--exact", "service::log::tests::a_log_that_cannot_be_written_ends_nothing", "--nocapture"]);
        let status = again.env(CHILD, "1").stdout(Stdio::null()).stderr(full).status().expect("runs");
        assert!(status.success(), "{status}");
    }
}
