//! One value that many follow: the newest is there at any time, those between may be missed.
//!
//! As `tokio::sync::watch`, with one difference: those who wait are woken in the order in which they began to wait. Tokio
//! spreads them over several lists at random, and a simulation could then not be run again (docs/decisions/0021). Neither
//! sending nor reading ever waits for anything but the moment in which somebody else does so.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::Notify;

/// Set in a version when the last sender is gone.
const CLOSED: u64 = 1;
/// What a version grows by with every change.
const STEP: u64 = 2;

struct Shared<T> {
    value: RwLock<T>,
    /// Changed with the value locked for writing, so that a value and its version are read together.
    version: AtomicU64,
    changed: Notify,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

/// Every sender is gone, and the newest value was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left who could change the value")]
pub struct Closed;

/// Nobody follows the value; this one was not kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Unwatched<T>(pub T);

impl<T> fmt::Debug for Unwatched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unwatched")
    }
}

/// The value, which does not change while this is held: hold it for a moment only, and never across an `await`.
#[derive(Debug)]
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// Changes the value. Clones change the same one.
pub struct Sender<T>(Arc<Shared<T>>);

/// Follows the value. A clone has seen what this one has.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// A value, one that changes it and one that has seen it.
#[must_use]
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A value that nobody follows yet.
    #[must_use]
    pub fn new(value: T) -> Sender<T> {
        Sender(Arc::new(Shared {
            value: RwLock::new(value),
            version: AtomicU64::new(0),
            changed: Notify::new(),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(0),
        }))
    }

    /// Replaces the value, unless nobody follows it.
    ///
    /// # Errors
    /// Nobody follows it.
    pub fn send(&self, value: T) -> Result<(), Unwatched<T>> {
        if self.0.receivers.load(Ordering::Relaxed) == 0 {
            return Err(Unwatched(value));
        }
        self.send_replace(value);
        Ok(())
    }

    /// Replaces the value, followed or not; returns the one before.
    pub fn send_replace(&self, mut value: T) -> T {
        self.send_modify(|current| std::mem::swap(current, &mut value));
        value
    }

    /// Changes the value in its place.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// Changes the value in its place, and tells others only if `modify` says that it did. Returns that.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        {
            let mut value = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
            if !modify(&mut value) {
                return false;
            }
            self.0.version.fetch_add(STEP, Ordering::Release);
        }
        self.0.changed.notify_waiters();
        true
    }

    /// The value now.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    /// Follows the value from now on.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<T> {
        self.0.receivers.fetch_add(1, Ordering::Relaxed);
        Receiver { seen: self.0.version() & !CLOSED, shared: self.0.clone() }
    }
}

impl<T> Receiver<T> {
    /// The value now; seen or not, as before.
    #[must_use]
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.read())
    }

    /// The value now, which is seen from here on.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.read();
        self.seen = self.shared.version() & !CLOSED;
        Ref(value)
    }

    /// Waits until there is a value that was not seen, and sees it.
    ///
    /// # Errors
    /// Everything was seen and no sender is left.
    ///
    /// # Cancel safety
    /// Safe: nothing is seen before it returns.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        changed(&self.shared, &mut self.seen).await
    }

    /// Waits until the value is as `is_met` wants it, beginning with the present one.
    ///
    /// # Errors
    /// It is not, and no sender is left.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_for(&mut self, mut is_met: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        loop {
            {
                let value = self.shared.read();
                self.seen = self.shared.version() & !CLOSED;
                if is_met(&value) {
                    return Ok(Ref(value));
                }
            }
            changed(&self.shared, &mut self.seen).await?;
        }
    }
}

async fn changed<T>(shared: &Shared<T>, seen: &mut u64) -> Result<(), Closed> {
    loop {
        // Made before the version is looked at: a change after that wakes it, polled or not.
        let notified = shared.changed.notified();
        let version = shared.version();
        if version & !CLOSED != *seen {
            *seen = version & !CLOSED;
            return Ok(());
        }
        if version & CLOSED != 0 {
            return Err(Closed);
        }
        notified.await;
    }
}

impl<T: Default> Default for Sender<T> {
    fn default() -> Sender<T> {
        Sender::new(T::default())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.senders.fetch_add(1, Ordering::Relaxed);
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.version.fetch_or(CLOSED, Ordering::Release);
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.shared.receivers.fetch_add(1, Ordering::Relaxed);
        Receiver { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<T: fmt::Debug> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&*self.borrow()).finish()
    }
}

impl<T: fmt::Debug> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&*self.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn only_what_was_not_seen_is_a_change() {
        let (sender, mut receiver) = channel(1);
        sender.send_replace(2);
        receiver.changed().await.expect("was not seen");
        assert_eq!(*receiver.borrow(), 2);
        sender.send_replace(3);
        assert_eq!(*receiver.borrow_and_update(), 3);
        sender.send_if_modified(|value| {
            *value = 4;
            false
        });
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), receiver.changed()).await;
        assert!(waiting.is_err(), "seen, and not told since");
        sender.send(5).expect("is followed");
        drop(sender);
        receiver.changed().await.expect("the last value comes before the end");
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(*receiver.wait_for(|value| *value == 5).await.expect("is so already"), 5);
        assert!(receiver.wait_for(|value| *value == 6).await.is_err(), "will never be");
    }

    #[tokio::test]
    async fn clones_of_a_sender_keep_it_open_and_nobody_is_told_who_does_not_follow() {
        let (sender, receiver) = channel(1);
        let other = sender.clone();
        drop(sender);
        let mut second = receiver.clone();
        other.send(2).expect("is followed");
        second.changed().await.expect("is open");
        drop((receiver, second));
        assert_eq!(other.send(3), Err(Unwatched(3)));
        assert_eq!(*other.borrow(), 2);
    }

    #[tokio::test]
    async fn those_who_wait_go_on_in_the_order_in_which_they_began() {
        let sender = Sender::new(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting: Vec<_> = (0..50)
            .map(|number| {
                let (mut receiver, order) = (sender.subscribe(), order.clone());
                tokio::spawn(async move {
                    receiver.changed().await.expect("is open");
                    order.lock().expect("no panic").push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        sender.send_replace(1);
        for task in waiting {
            task.await.expect("joins");
        }
        assert_eq!(*order.lock().expect("no panic"), (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn changes_of_other_threads_are_never_missed() {
        let (sender, mut receiver) = channel(0u32);
        let sending = std::thread::spawn(move || {
            for value in 1..=20_000 {
                sender.send_replace(value);
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut last = 0;
            while receiver.changed().await.is_ok() {
                let value = *receiver.borrow_and_update();
                assert!(value >= last, "{value} after {last}");
                last = value;
            }
            assert_eq!(last, 20_000, "the last one was seen before the end");
        });
        sending.join().expect("joins");
    }
}
