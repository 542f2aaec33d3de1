//! The log of a program, to standard error: for people, or as JSON for what collects logs.

use std::io::IsTerminal;

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
    let log = tracing_subscriber::fmt().with_env_filter(parsed).with_target(false).with_writer(std::io::stderr);
    match format {
        // Colours are for people: not in a file or a journal.
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.with_ansi(false).json().flatten_event(true).init(),
    }
    Ok(())
}
