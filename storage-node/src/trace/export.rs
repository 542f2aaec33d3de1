//! Operations of all volumes of a node, one in so many, told to a collector of OTLP over HTTP ([`super::otlp`]).
//!
//! Nothing waits for the collector: what it does not take in time is dropped and counted. At most [`QUEUE`] operations wait, and
//! [`BATCH`] go in one request; one request is under way at a time, on a thread where it may block. A failure is logged at most once in
//! [`LOG_PAUSE`], and after one nothing is sent for [`FAILED_PAUSE`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client_lib::clock::{Clock, SystemClock};
use client_lib::random;
use client_lib::trace::{Sink, Traced, What};
use client_lib::{NodeId, VolumeName};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

use super::Looker;
use super::otlp::{self, Teller, Told};

/// Operations that wait to be told; of more the newest are dropped.
pub const QUEUE: usize = 4096;
/// Operations in one request, at most: some hundred KiB.
pub const BATCH: usize = 512;
/// How long the first operation of a request waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a request that failed nothing is sent for so long.
const FAILED_PAUSE: Duration = Duration::from_secs(5);
/// Between two lines of the log that say so.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// Where traces go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportOptions {
    /// The address of a collector for OTLP over HTTP, `http://HOST:PORT/v1/traces`.
    pub endpoint: String,
    /// The part of the operations that are told, above 0 and up to 1.
    pub sample: f64,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportFigures {
    /// Spans that the collector has taken.
    pub exported: u64,
    /// Spans that were dropped: too many at once, or the collector did not take them.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Counters {
    exported: AtomicU64,
    dropped: AtomicU64,
}

/// Tells a collector of operations.
#[derive(Debug)]
pub struct Exporter {
    /// An operation is told if a random number is below.
    threshold: u64,
    queue: Sender<(VolumeName, Traced)>,
    counters: Arc<Counters>,
}

/// What runs for an [`Exporter`].
pub struct Exporting {
    endpoint: String,
    waiting: Receiver<(VolumeName, Traced)>,
    counters: Arc<Counters>,
}

impl Exporter {
    /// An exporter, and what is to run for it.
    #[must_use]
    pub fn new(options: ExportOptions) -> (Arc<Exporter>, Exporting) {
        let (queue, waiting) = channel(QUEUE);
        let counters = Arc::<Counters>::default();
        // 1.0 is beyond the largest number, and becomes that.
        let threshold = (options.sample * u64::MAX as f64) as u64;
        let exporter = Exporter { threshold, queue, counters: counters.clone() };
        (Arc::new(exporter), Exporting { endpoint: options.endpoint, waiting, counters })
    }

    /// Looks at the operations of one volume.
    #[must_use]
    pub fn of(self: &Arc<Self>, volume: VolumeName) -> Arc<dyn Looker> {
        Arc::new(OfVolume { exporter: self.clone(), volume })
    }

    /// What was counted.
    #[must_use]
    pub fn figures(&self) -> ExportFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExportFigures { exported: load(&self.counters.exported), dropped: load(&self.counters.dropped) }
    }
}

/// The address of a collector as it may be shown: without what lets in there, which is a user before the host, or something behind the
/// question mark.
#[must_use]
pub fn shown(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("//").unwrap_or(("", endpoint));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if path.contains('@') && !authority.contains('@') {
        // Perhaps a password with such a character in it: nobody can tell what is what.
        return format!("{scheme}//(left out)");
    }
    let host = match authority.rsplit_once('@') {
        Some((_, host)) => format!("(left out)@{host}"),
        None => authority.to_owned(),
    };
    let slashes = if scheme.is_empty() { "" } else { "//" };
    match path.split_once(['?', '#']) {
        Some((path, _)) => format!("{scheme}{slashes}{host}{path}?(left out)"),
        None => format!("{scheme}{slashes}{host}{path}"),
    }
}

struct OfVolume {
    exporter: Arc<Exporter>,
    volume: VolumeName,
}

impl Sink for OfVolume {
    fn note(&self, traced: &Traced, _weight: u32) {
        let told = (self.volume.clone(), traced.clone());
        if self.exporter.queue.try_send(told).is_err() {
            self.exporter.counters.dropped.fetch_add(otlp::spans_of(traced), Ordering::Relaxed);
        }
    }
}

impl Looker for OfVolume {
    fn weight(&self, _what: &What, _now: Instant) -> Option<u32> {
        (random::bits() <= self.exporter.threshold).then_some(1)
    }
}

impl Exporting {
    /// Tells until the exporter is gone; `name` tells what nodes are called.
    pub async fn run(mut self, teller: Teller, name: impl Fn(NodeId) -> String) {
        let mut logged: Option<Instant> = None;
        let mut batch = Vec::with_capacity(BATCH);
        while self.waiting.recv_many(&mut batch, BATCH).await > 0 {
            let end = Instant::now() + GATHER;
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                match tokio::time::timeout_at(end, self.waiting.recv_many(&mut batch, room)).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            let (now, now_ms) = (Instant::now(), SystemClock::new().unix_ms());
            let told = batch.drain(..).map(|(volume, traced)| {
                let ago = now.saturating_duration_since(traced.began).as_nanos() as u64;
                Told {
                    volume: volume.to_string(),
                    waited_for: traced.waited_for.map(&name),
                    began_ns: (now_ms * 1_000_000).saturating_sub(ago),
                    traced,
                }
            });
            let told: Vec<Told> = told.collect();
            let spans = told.iter().map(|told| otlp::spans_of(&told.traced)).sum();
            let (endpoint, body) = (self.endpoint.clone(), otlp::request(&teller, &told));
            let sent = tokio::task::spawn_blocking(move || send(&endpoint, body)).await;
            let failure = match sent {
                Ok(Ok(())) => {
                    self.counters.exported.fetch_add(spans, Ordering::Relaxed);
                    continue;
                }
                Ok(Err(failure)) => failure,
                Err(failure) => failure.to_string(),
            };
            self.counters.dropped.fetch_add(spans, Ordering::Relaxed);
            if logged.is_none_or(|at| at.elapsed() >= LOG_PAUSE) {
                logged = Some(Instant::now());
                let endpoint = shown(&self.endpoint);
                // Of an address that makes no sense it says which.
                let failure = failure.replace(&self.endpoint, &endpoint);
                tracing::warn!(
                    endpoint,
                    failure,
                    spans,
                    "the collector did not take spans: they are dropped; later failures are not logged for a minute"
                );
            }
            tokio::time::sleep(FAILED_PAUSE).await;
        }
    }
}

/// Sends a request, and waits for what the collector says.
fn send(endpoint: &str, body: Vec<u8>) -> Result<(), String> {
    let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).max_redirects(0).build();
    let agent: ureq::Agent = config.into();
    let sent = agent.post(endpoint).header("Content-Type", "application/x-protobuf").send(&body[..]);
    sent.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token can only be named in the address: the log and the support bundle had it.
    #[test]
    fn an_address_is_shown_without_what_lets_in_there() {
        for (endpoint, expected) in [
            ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318"),
            ("http://user:secret@collector:4318/v1/traces", "http://(left out)@collector:4318/v1/traces"),
            ("http://us@er:secret@collector", "http://(left out)@collector"),
            ("http://collector/v1/traces?api-key=secret", "http://collector/v1/traces?(left out)"),
            ("http://u:secret@collector?key=secret#secret", "http://(left out)@collector?(left out)"),
            ("http://collector/#secret", "http://collector/?(left out)"),
            ("http://user:sec/ret@collector", "http://(left out)"),
            ("http://user:secr?t@collector", "http://(left out)"),
            ("user:secret@collector:4318", "(left out)@collector:4318"),
            ("x:4318", "x:4318"),
        ] {
            assert_eq!(shown(endpoint), expected, "{endpoint}");
        }
    }
}
