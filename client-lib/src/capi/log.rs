//! What the library tells of by itself: that a volume waits and why, that it goes on, that no node answers.
//!
//! Lines are made where they occur, in the middle of things, and told on a thread that does nothing else: who is told may
//! call whatever it wants. Nothing waits for that thread; when it is [`LINES_MAX`] behind, lines are dropped, and it says how many.

#![expect(unsafe_code, reason = "a C caller's function is called")]

use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, set_global_default};
use tracing::{Event, Level, Metadata, Subscriber};

use super::failure::{EDEADLK, EIO, Failure};
use super::requests::User;
use super::types::{HELIO_LOG_ERROR, HELIO_LOG_INFO, HELIO_LOG_WARNING, Logger};

/// Lines that were not told yet.
const LINES_MAX: usize = 256;

/// What is left of the others: of those that this library's code depends on there is nothing that users can act on.
const TARGET: &str = "client_lib";

/// Who is told. Locked while it is being told.
static SINK: Mutex<Sink> = Mutex::new(Sink { logger: None, is_started: false });

/// Lines above this level are not made.
static LEVEL: AtomicU32 = AtomicU32::new(0);

struct Sink {
    logger: Option<(unsafe extern "C" fn(*mut c_void, u32, *const std::ffi::c_char), User)>,
    is_started: bool,
}

fn sink() -> MutexGuard<'static, Sink> {
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// Whether this is the thread that tells.
    static TELLS: Cell<bool> = const { Cell::new(false) };
}

/// Has `logger` told of everything up to `level` from now on, and whoever was told before nothing more.
///
/// # Errors
/// `EINVAL` for another level; `EDEADLK` on the thread that tells; `EIO` when the system gives no thread.
pub(super) fn tell(level: u32, logger: Logger, user: *mut c_void) -> Result<(), Failure> {
    if level > HELIO_LOG_INFO {
        return Err(Failure::invalid(format!("there is no log level {level}")));
    }
    if TELLS.get() {
        return Err(Failure::new(EDEADLK, "a logger cannot wait until it is not called any more"));
    }
    let mut sink = sink();
    if !sink.is_started && logger.is_some() {
        start()?;
        sink.is_started = true;
    }
    LEVEL.store(if logger.is_some() { level } else { 0 }, Ordering::Relaxed);
    sink.logger = logger.map(|logger| (logger, User(user)));
    Ok(())
}

fn start() -> Result<(), Failure> {
    let (lines, told) = sync_channel(LINES_MAX);
    let thread = std::thread::Builder::new().name("heliotrope-log".to_owned());
    let failed = |error: std::io::Error| Failure::new(EIO, format!("no thread can be started: {error}"));
    thread.spawn(move || tell_all(&told)).map_err(failed)?;
    // Nobody else sets one: the library has its own copy of `tracing`, which its user does not see.
    set_global_default(Lines { lines, dropped: AtomicU64::new(0) })
        .map_err(|error| Failure::new(EIO, format!("the log goes elsewhere already: {error}")))
}

/// Runs on a thread of its own, as long as the process.
fn tell_all(lines: &Receiver<(u32, String)>) {
    TELLS.set(true);
    for (level, line) in lines {
        let text = CString::new(line.replace('\0', " ")).unwrap_or_default();
        let sink = sink();
        if let Some((logger, user)) = &sink.logger {
            // SAFETY: the caller gave this function for that, with this pointer; the text is there during the call.
            unsafe { logger(user.0, level, text.as_ptr()) };
        }
    }
}

/// Makes the lines.
struct Lines {
    lines: SyncSender<(u32, String)>,
    dropped: AtomicU64,
}

fn number(level: &Level) -> u32 {
    match *level {
        Level::ERROR => HELIO_LOG_ERROR,
        Level::WARN => HELIO_LOG_WARNING,
        Level::INFO => HELIO_LOG_INFO,
        _ => u32::MAX,
    }
}

impl Subscriber for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The level may change.
        if metadata.is_event() && metadata.target().starts_with(TARGET) {
            Interest::sometimes()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && metadata.target().starts_with(TARGET)
            && number(metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let _ = write!(line.fields, " ({dropped} lines before this one are missing)");
        }
        let line = (number(event.metadata().level()), format!("{}{}", line.message, line.fields));
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }

    // Spans are never enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// A line: what happened, and what is known about it.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a text does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name}: {value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
