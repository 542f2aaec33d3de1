//! What a user sees of a transfer: a bar on a terminal while it runs, figures at its end.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::super::client::print_json;
use super::state::{Progress, State};
use crate::size::human;

/// Times a second that the bar is drawn.
const DRAWS_PER_SECOND: u8 = 10;

/// What a transfer came to; `--json` prints it.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Report {
    /// The volume, or the snapshot of one.
    pub(in crate::cli) volume: String,
    /// The other end: a file, or the address of an export.
    pub(in crate::cli) image: String,
    /// Bytes of the image.
    pub(in crate::cli) size_bytes: u64,
    /// Bytes that were read from the source; the rest was known to be zeroes.
    pub(in crate::cli) read_bytes: u64,
    /// Bytes that were written to the target; the rest is zeroes.
    pub(in crate::cli) written_bytes: u64,
    /// Bytes that were not written, being zeroes.
    pub(in crate::cli) skipped_bytes: u64,
    /// Where a resumed transfer went on; 0 for one that began anew.
    pub(in crate::cli) resumed_at_bytes: u64,
    /// How long it took, after the resume if it was resumed.
    pub(in crate::cli) seconds: f64,
    /// Bytes read in that time.
    pub(in crate::cli) bytes_per_second: f64,
    /// The checksum of the image (docs/import-export.md).
    pub(in crate::cli) checksum: String,
    /// Whether the target was read back and compared.
    pub(in crate::cli) verified: bool,
}

impl Report {
    pub(super) fn new(state: &State, began_at: Progress, took: Duration) -> Report {
        let progress = state.progress;
        let seconds = took.as_secs_f64();
        Report {
            volume: String::new(),
            image: String::new(),
            size_bytes: state.size_bytes,
            read_bytes: progress.read_bytes,
            written_bytes: progress.written_bytes,
            skipped_bytes: state.size_bytes - progress.written_bytes,
            resumed_at_bytes: began_at.position_bytes,
            seconds,
            bytes_per_second: (progress.read_bytes - began_at.read_bytes) as f64 / seconds.max(f64::MIN_POSITIVE),
            checksum: progress.checksum.to_string(),
            verified: false,
        }
    }
}

/// Prints a report; `done` says what was done, as in "imported a into b".
pub(in crate::cli) fn print(report: &Report, done: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(report);
    }
    println!(
        "{done}: {} of {} read, {} written, {} skipped, in {:.1} s ({}/s)\nchecksum {}{}",
        human(report.read_bytes),
        human(report.size_bytes),
        human(report.written_bytes),
        human(report.skipped_bytes),
        report.seconds,
        human(report.bytes_per_second as u64),
        report.checksum,
        if report.verified { ", verified" } else { "" }
    );
    Ok(())
}

/// A bar on standard error where that is a terminal, else nothing.
pub(super) fn bar(size: u64, from: Progress) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
    let template = "{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    // The template is right, as a test says; with another one the default is shown.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(from.position_bytes);
    bar.reset_eta();
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_its_template_and_the_report_its_figures() {
        let state = State {
            source: String::new(),
            target: String::new(),
            size_bytes: 4 << 20,
            progress: Progress {
                position_bytes: 4 << 20,
                read_bytes: 3 << 20,
                written_bytes: 1 << 20,
                ..Progress::none()
            },
        };
        let began_at = Progress { position_bytes: 1 << 20, read_bytes: 1 << 20, ..Progress::none() };
        let report = Report::new(&state, began_at, Duration::from_secs(2));
        assert_eq!((report.skipped_bytes, report.resumed_at_bytes), (3 << 20, 1 << 20));
        assert_eq!(report.bytes_per_second, f64::from(1 << 20));
        assert_eq!(bar(4 << 20, began_at).position(), 1 << 20);
        assert!(
            ProgressStyle::with_template("{msg} {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
                .is_ok()
        );
    }
}
