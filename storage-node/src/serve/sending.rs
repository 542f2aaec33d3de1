//! When the replicas of a volume are sent data, as its policy has it, and who waits for one of them to have everything; what is read and
//! written, for the order in which lazy ones are sent it, and for what a new owner fetches first.
//!
//! Where every replica is eager only some requests are counted, and fewer extents remembered: the order of a hot set needs no more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::policy::{Mode, Propagation};
use client_lib::{BLOCK_SIZE, NodeId, watch};
use tokio::time::Instant;

use crate::propagation::heat::{EXTENTS_MAX, Heat};
use crate::propagation::order::{SendOrder, order_of};
use crate::propagation::pull::HOT_EXTENTS_MAX;

/// Where no replica is lazy, one request of so many is counted.
const SAMPLED: u32 = 4;

/// Extents that are remembered then: half a gibibyte of a volume, in about as many kibibytes of memory.
const SAMPLED_EXTENTS_MAX: usize = HOT_EXTENTS_MAX;

/// The sending of one volume.
#[derive(Debug)]
pub struct Sending {
    policy: Mutex<Propagation>,
    /// How many wait for a replica.
    hurries: Arc<watch::Sender<BTreeMap<NodeId, usize>>>,
    /// Whether any replica is lazy: only then is every request counted.
    is_lazy: AtomicBool,
    requests: AtomicU32,
    began: Instant,
    heat: Mutex<Heat>,
}

impl Default for Sending {
    fn default() -> Sending {
        Sending {
            policy: Mutex::default(),
            hurries: Arc::new(watch::Sender::new(BTreeMap::new())),
            is_lazy: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            began: Instant::now(),
            heat: Mutex::new(sampled_heat()),
        }
    }
}

fn sampled_heat() -> Heat {
    let mut heat = Heat::default();
    heat.shrink(SAMPLED_EXTENTS_MAX, Duration::ZERO);
    heat
}

/// While it is there, a replica is sent everything as fast as it goes.
#[derive(Debug)]
pub struct Hurry {
    replica: NodeId,
    hurries: Arc<watch::Sender<BTreeMap<NodeId, usize>>>,
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.hurries.send_modify(|hurries| {
            if let Some(count) = hurries.get_mut(&self.replica) {
                *count -= 1;
            }
            hurries.retain(|_, count| *count > 0);
        });
    }
}

impl Sending {
    /// Metadata has this policy for the volume.
    pub fn follow(&self, policy: &Propagation) {
        let mut present = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        if *present != *policy {
            *present = policy.clone();
            let is_lazy =
                std::iter::once(&policy.mode).chain(policy.replicas.values()).any(|mode| *mode != Mode::Eager);
            self.is_lazy.store(is_lazy, Ordering::Relaxed);
            let most = if is_lazy { EXTENTS_MAX } else { SAMPLED_EXTENTS_MAX };
            self.heat.lock().unwrap_or_else(PoisonError::into_inner).shrink(most, self.began.elapsed());
        }
    }

    /// What lazy replicas are sent first.
    #[must_use]
    pub fn order(&self) -> &'static dyn SendOrder {
        order_of(self.policy.lock().unwrap_or_else(PoisonError::into_inner).order)
    }

    /// So many bytes at `offset` were read.
    pub fn read(&self, offset: u64, length: u64) {
        self.touch(offset, length, Heat::read);
    }

    /// So many bytes at `offset` were written.
    pub fn wrote(&self, offset: u64, length: u64) {
        self.touch(offset, length, Heat::wrote);
    }

    fn touch(&self, offset: u64, length: u64, touch: impl Fn(&mut Heat, u32, u32, Duration)) {
        if length == 0 {
            return;
        }
        if !self.is_lazy.load(Ordering::Relaxed) {
            let request = self.requests.fetch_add(1, Ordering::Relaxed);
            if !request.is_multiple_of(SAMPLED) {
                return;
            }
        }
        let (first, last) = (offset / u64::from(BLOCK_SIZE), (offset + (length - 1)) / u64::from(BLOCK_SIZE));
        let mut heat = self.heat.lock().unwrap_or_else(PoisonError::into_inner);
        touch(&mut heat, first as u32, (last - first + 1) as u32, self.began.elapsed());
    }

    /// The extents that were read and written most, lately, the hottest first.
    #[must_use]
    pub fn hottest(&self) -> Vec<u32> {
        self.with_heat(|heat, now| heat.hottest(HOT_EXTENTS_MAX, now))
    }

    /// Lets `f` look at what is read and written, and at the time by which that is counted.
    pub fn with_heat<T>(&self, f: impl FnOnce(&Heat, Duration) -> T) -> T {
        f(&self.heat.lock().unwrap_or_else(PoisonError::into_inner), self.began.elapsed())
    }

    /// The time by which heat is counted.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// When `replica` is sent data.
    #[must_use]
    pub fn mode(&self, replica: NodeId) -> Mode {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).of(replica)
    }

    /// Somebody waits for `replica` to have everything, whatever the policy is, until what is returned is dropped.
    #[must_use]
    pub fn hurry(&self, replica: NodeId) -> Hurry {
        self.hurries.send_modify(|hurries| *hurries.entry(replica).or_default() += 1);
        Hurry { replica, hurries: self.hurries.clone() }
    }

    /// Whether somebody does.
    #[must_use]
    pub fn is_hurried(&self, replica: NodeId) -> bool {
        self.hurries.borrow().contains_key(&replica)
    }

    /// Waits until somebody does.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn hurried(&self, replica: NodeId) {
        let mut watch = self.hurries.subscribe();
        // The sender is here as long as this is.
        let _ = watch.wait_for(|hurries| hurries.contains_key(&replica)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_hurried_while_anybody_waits_for_it() {
        let sending = Sending::default();
        let lazy = Mode::Lazy { interval_ms: 1000 };
        sending.follow(&Propagation {
            mode: lazy,
            replicas: [(NodeId(3), Mode::Eager)].into(),
            ..Propagation::default()
        });
        assert_eq!((sending.mode(NodeId(2)), sending.mode(NodeId(3))), (lazy, Mode::Eager));
        let (first, second) = (sending.hurry(NodeId(2)), sending.hurry(NodeId(2)));
        drop(first);
        assert!(sending.is_hurried(NodeId(2)) && !sending.is_hurried(NodeId(3)));
        drop(second);
        assert!(!sending.is_hurried(NodeId(2)));
    }

    #[test]
    fn every_request_is_counted_while_a_replica_is_lazy_and_some_otherwise() {
        let sending = Sending::default();
        let reads = |sending: &Sending| sending.with_heat(|heat, now| heat.of(0, now).reads);
        for _ in 0..2 * SAMPLED {
            sending.read(0, 16 * 4096);
        }
        assert!((1.9..=2.0).contains(&reads(&sending)), "{}", reads(&sending));
        let lazy = Propagation { mode: Mode::Lazy { interval_ms: 1000 }, ..Propagation::default() };
        sending.follow(&lazy);
        for _ in 0..2 {
            sending.read(100, 16 * 4096 - 200);
        }
        assert!((3.9..=4.0).contains(&reads(&sending)), "sixteen blocks, the edges too");
        sending.wrote(0, 1);
        assert!(sending.with_heat(|heat, now| heat.of(0, now).writes) > 0.0);
        sending.read(1 << 20, 4096);
        assert_eq!(sending.hottest(), [0, 16]);
        sending.follow(&Propagation::default());
        assert!(reads(&sending) > 0.0, "it is still known");
        sending.read(0, 0);
    }
}
