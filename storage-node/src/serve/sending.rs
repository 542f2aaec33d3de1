//! When the replicas of a volume are sent data, as its policy has it, and who waits for one of them to have everything; what is read and
//! written, for the order in which lazy ones are sent it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client_lib::policy::{Mode, Propagation};
use client_lib::{BLOCK_SIZE, NodeId, watch};
use tokio::time::Instant;

use crate::propagation::heat::Heat;
use crate::propagation::order::{SendOrder, order_of};

/// The sending of one volume.
#[derive(Debug)]
pub struct Sending {
    policy: Mutex<Propagation>,
    /// How many wait for a replica.
    hurries: Arc<watch::Sender<BTreeMap<NodeId, usize>>>,
    /// Whether any replica is lazy: only then is anybody interested in heat.
    is_lazy: AtomicBool,
    began: Instant,
    heat: Mutex<Heat>,
}

impl Default for Sending {
    fn default() -> Sending {
        Sending {
            policy: Mutex::default(),
            hurries: Arc::new(watch::Sender::new(BTreeMap::new())),
            is_lazy: AtomicBool::new(false),
            began: Instant::now(),
            heat: Mutex::default(),
        }
    }
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
            if !is_lazy {
                *self.heat.lock().unwrap_or_else(PoisonError::into_inner) = Heat::default();
            }
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
        if !self.is_lazy.load(Ordering::Relaxed) || length == 0 {
            return;
        }
        let (first, last) = (offset / u64::from(BLOCK_SIZE), (offset + (length - 1)) / u64::from(BLOCK_SIZE));
        let mut heat = self.heat.lock().unwrap_or_else(PoisonError::into_inner);
        touch(&mut heat, first as u32, (last - first + 1) as u32, self.began.elapsed());
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
    fn heat_is_counted_only_while_a_replica_is_lazy() {
        let sending = Sending::default();
        let reads = |sending: &Sending| sending.with_heat(|heat, now| heat.of(0, now).reads);
        sending.read(0, 16 * 4096);
        assert_eq!(reads(&sending), 0.0);
        let lazy = Propagation { mode: Mode::Lazy { interval_ms: 1000 }, ..Propagation::default() };
        sending.follow(&lazy);
        sending.read(100, 16 * 4096 - 200);
        assert!(reads(&sending) > 0.9, "sixteen blocks, the edges too");
        sending.wrote(0, 1);
        assert!(sending.with_heat(|heat, now| heat.of(0, now).writes) > 0.0);
        sending.follow(&Propagation::default());
        assert_eq!(reads(&sending), 0.0);
    }
}
