//! Congestion control for background transfer: takes what is free of a path and leaves its queue short.
//!
//! BBR and CUBIC fill the queue before the bottleneck, and everything else on the path waits behind it: with bulk under
//! BBR on a link of 20 Mbit/s, a handover took 0.8 s instead of two round trips of 60 ms (measured 2026-11-23). This
//! controller aims at a queue of [`TARGET`] instead. Once per round trip it moves the window towards
//! `window * (base + TARGET) / rtt`, as FAST TCP does (Wei, Jin, Low and Hegde 2006) with the queue given as a time; in
//! what it yields to it is of the family of LEDBAT (RFC 6817). Random loss does not slow it, as little as BBR.
//!
//! The base, the round trip without a queue, is the least seen lately. Since the flow itself keeps a queue, it halves
//! its window for a moment every [`PROBE_INTERVAL`] to see the base again, so that a path that grew longer is not taken
//! for a queue for ever. Knows neither sockets nor clocks: acknowledgements in, a window out. Of connections that carry bulk the
//! window can be held at a datagram ([`super::hold`]).
//!
//! A flow begins by doubling its window, and notices a round trip late that it is enough: by then as much again is in the queue. So it
//! doubles only up to what other connections have seen the path carry, if they have, and takes the base that they know: what they have in
//! the queue when it begins is no part of the path ([`super::path`]).

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;

use super::hold::{Carrier, Hold};
use super::path::Path;

/// The queue aimed at. Above the noise of a busy machine's timers; small against a round trip between providers.
const TARGET: Duration = Duration::from_millis(10);
/// How far the window moves to where it should be in one round trip.
const GAIN: f64 = 0.5;
/// After so many round trips without a queue, more than a probe of another flow leaves, growth does not depend on the length of the path:
/// the first step, which doubles each time, and the last. On a long one the start, cut short by some noise, would else take seconds to make
/// up for.
const FREE_ROUNDS: u32 = 4;
const FREE_GROWTH: (f64, f64) = (0.06, 0.25);
/// Most growth in one round trip.
const GROWTH_MAX: f64 = 2.0;
/// Share of lost bytes in a round trip up to which losses are taken for noise.
const LOSS_MAX: f64 = 0.02;
/// What is kept of the window after a round trip with more loss, or with congestion marks.
const LOSS_FACTOR: f64 = 0.85;
/// Samples whose least one shows a queue while the window still doubles (RFC 9406, §4.2: `N_RTT_SAMPLE`).
const SAMPLES: u32 = 8;
/// How often the base is measured anew, and for how many round trips.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBE_ROUNDS: u32 = 2;
/// RFC 9002, §7.2: ten datagrams, or this.
const INITIAL_WINDOW: u64 = 14_720;

/// Makes [`Yielding`] controllers.
#[derive(Debug)]
pub(super) struct YieldingConfig {
    pub(super) hold: Arc<Hold>,
    /// Where its connections lead, which carry bulk then; else what they carry and where they lead is told by [`Carrier::carries_bulk`] and
    /// [`Carrier::leads_along`].
    pub(super) path: Option<Arc<Path>>,
}

impl ControllerFactory for YieldingConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let carrier = Carrier::new(self.hold.clone(), self.path.is_some());
        if let Some(path) = &self.path {
            carrier.leads_along(path);
        }
        Box::new(Yielding::new(now, current_mtu, carrier))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// Doubles each round trip until a queue shows, or as much is under way as the path is known to carry.
    Start,
    /// Follows the queue.
    Steady,
    /// Sends half for some rounds, then goes back to this window.
    Probe { rounds: u32, resume: f64 },
}

/// What was seen since the round began; it ends when something sent after that is acknowledged.
#[derive(Clone, Copy, Debug)]
struct Round {
    began: Instant,
    least: Option<Duration>,
    acked: u64,
    lost: u64,
    marked: bool,
    /// The window was not the limit: no reason to raise it.
    idle: bool,
}

impl Round {
    fn new(began: Instant) -> Round {
        Round { began, least: None, acked: 0, lost: 0, marked: false, idle: false }
    }

    fn congested(&self) -> bool {
        self.marked || self.lost as f64 > LOSS_MAX * (self.acked + self.lost) as f64
    }
}

/// The controller of one connection.
#[derive(Clone, Debug)]
pub(super) struct Yielding {
    window: f64,
    mtu: u64,
    phase: Phase,
    round: Round,
    /// Round trips that ended without a queue, one after the other.
    free_rounds: u32,
    /// Samples and their least since a multiple of [`SAMPLES`] of them; only counted in [`Phase::Start`].
    batch: (u32, Duration),
    /// Least round trips since the last probe, and between the two before.
    base: [Option<Duration>; 2],
    probed: Instant,
    carrier: Carrier,
    /// Whether what it carries was held when something was last sent or acknowledged.
    is_held: bool,
}

impl Yielding {
    fn new(now: Instant, mtu: u16, carrier: Carrier) -> Yielding {
        let mtu = u64::from(mtu);
        Yielding {
            window: INITIAL_WINDOW.max(2 * mtu) as f64,
            mtu,
            phase: Phase::Start,
            round: Round::new(now),
            free_rounds: 0,
            batch: (0, Duration::MAX),
            base: [None; 2],
            probed: now,
            carrier,
            is_held: false,
        }
    }

    /// What tells that the connection carries bulk.
    pub(super) fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    fn own_base(&self) -> Option<Duration> {
        self.base.iter().flatten().min().copied()
    }

    fn base(&self) -> Duration {
        let known = self.carrier.path().and_then(Path::base);
        self.own_base().into_iter().chain(known).min().unwrap_or_default()
    }

    fn window_min(&self) -> f64 {
        (2 * self.mtu) as f64
    }

    /// The window with which the queue would be [`TARGET`] long.
    fn fitting(&self, rtt: Duration) -> f64 {
        self.window * (self.base() + TARGET).as_secs_f64() / rtt.as_secs_f64().max(f64::EPSILON)
    }

    /// The round trip that shows a queue, if the last [`SAMPLES`] all do.
    fn queue_shows(&mut self, sample: Duration) -> Option<Duration> {
        self.batch = (self.batch.0 + 1, self.batch.1.min(sample));
        let (SAMPLES, least) = self.batch else { return None };
        self.batch = (0, Duration::MAX);
        (least.saturating_sub(self.base()) > TARGET).then_some(least)
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::replace(&mut self.round, Round::new(now));
        let Some(least) = round.least else { return };
        match self.phase {
            Phase::Start => {
                if round.congested() {
                    self.window *= LOSS_FACTOR;
                    self.phase = Phase::Steady;
                }
            }
            Phase::Steady => {
                self.tell_others(&round, now);
                self.follow(&round, least);
                if now.saturating_duration_since(self.probed) > PROBE_INTERVAL {
                    self.phase = Phase::Probe { rounds: PROBE_ROUNDS, resume: self.window };
                    self.base = [None, self.base[0]];
                    self.window /= 2.0;
                }
            }
            Phase::Probe { rounds: 0, resume } => {
                self.window = resume;
                self.phase = Phase::Steady;
                self.probed = now;
            }
            Phase::Probe { rounds, resume } => self.phase = Phase::Probe { rounds: rounds - 1, resume },
        }
        self.window = self.window.max(self.window_min());
    }

    fn tell_others(&self, round: &Round, now: Instant) {
        let took = now.saturating_duration_since(round.began).as_secs_f64();
        if let (Some(path), Some(base)) = (self.carrier.path(), self.own_base())
            && !round.idle
            && took > 0.0
        {
            path.note(now, base, round.acked as f64 / took);
        }
    }

    /// Whether as much is under way as the path has carried without a queue.
    fn fills_path(&self) -> bool {
        let rate = self.carrier.path().and_then(Path::rate);
        rate.is_some_and(|rate| self.window >= rate * self.base().as_secs_f64())
    }

    /// The share by which the window may grow at least: no queue has shown for so long.
    fn free_growth(&mut self, round: &Round, least: Duration) -> Option<f64> {
        let is_free = least.saturating_sub(self.base()) < TARGET / 4 && !round.idle && !round.congested();
        self.free_rounds = if is_free { self.free_rounds + 1 } else { 0 };
        let step = self.free_rounds.checked_sub(FREE_ROUNDS)?;
        Some((FREE_GROWTH.0 * f64::from(1u32 << step.min(8))).min(FREE_GROWTH.1))
    }

    fn follow(&mut self, round: &Round, least: Duration) {
        // One datagram more than proportional: of two flows in one queue the smaller one gains.
        let aim = (self.fitting(least) + self.mtu as f64).min(self.window * GROWTH_MAX);
        let mut next = self.window + GAIN * (aim - self.window);
        if let Some(growth) = self.free_growth(round, least) {
            next = next.max(self.window * (1.0 + growth));
        }
        if next < self.window || !round.idle {
            self.window = next;
        }
        if round.congested() {
            self.window *= LOSS_FACTOR;
        }
    }
}

impl Controller for Yielding {
    fn on_sent(&mut self, now: Instant, _bytes: u64, _last_packet_number: u64) {
        self.is_held = self.carrier.is_held(now);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _rtt: &RttEstimator) {
        self.acked(now, sent, bytes, app_limited);
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.round.lost += lost_bytes;
        // quinn reports congestion marks as an event without a loss.
        self.round.marked |= lost_bytes == 0;
        if is_persistent {
            self.window = self.window_min();
            self.phase = Phase::Start;
            if let Some(path) = self.carrier.path() {
                path.forget();
            }
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.window = self.window.max(self.window_min());
    }

    fn window(&self) -> u64 {
        // One datagram, whose acknowledgement is when it is looked again: quinn sends as long as less than a window is under way.
        if self.is_held { self.mtu + 1 } else { self.window as u64 }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        INITIAL_WINDOW.max(2 * self.mtu)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl Yielding {
    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        let sample = now.saturating_duration_since(sent);
        let least = |known: Option<Duration>| Some(known.map_or(sample, |known| known.min(sample)));
        self.base[0] = least(self.base[0]);
        self.round.least = least(self.round.least);
        self.round.acked += bytes;
        // While it is held the window is no limit either.
        let app_limited = app_limited || self.is_held;
        self.is_held = self.carrier.is_held(now);
        self.round.idle |= app_limited;
        if self.phase == Phase::Start {
            if let Some(rtt) = self.queue_shows(sample) {
                self.window = self.fitting(rtt).max(self.window_min());
                self.phase = Phase::Steady;
            } else if !app_limited {
                self.window += bytes as f64;
                if self.fills_path() {
                    self.phase = Phase::Steady;
                }
            }
        }
        if sent >= self.round.began {
            self.end_round(now);
        }
    }
}

#[cfg(test)]
mod tests;
