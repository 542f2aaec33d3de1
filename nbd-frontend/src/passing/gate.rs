//! The gate of a server: closed, all that read from sockets rest at a boundary and tell how they stand; then they go on or are gone.
//!
//! Everybody who accepts or reads is a [`Guest`]. A gate that closes waits for all guests to be parked; each leaves a
//! [`Parcel`]. Guests that cannot be passed on ([`Guest::stay`]) do not count: they are served as if there were no gate. What
//! is done with parcels is for `predecessor`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Waker};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::message::{Discard, Family, HandshakeState};
use crate::export::Session;
use crate::negotiation::Negotiated;

/// What becomes of a guest that was parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on.
    GoOn,
    /// A successor has its socket.
    Gone,
}

/// What a parked guest leaves.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// It accepts connections, or has yet to begin: there is nothing to tell.
    Nothing,
    /// A connection.
    Connection(Box<Parked>),
}

/// A connection at a boundary.
pub(crate) struct Parked {
    pub(crate) descriptor: OwnedFd,
    pub(crate) family: Family,
    pub(crate) peer: String,
    /// Bytes that are to be sent before anything else.
    pub(crate) unsent: Vec<u8>,
    /// Bytes that were read and not consumed.
    pub(crate) input: Vec<u8>,
    pub(crate) stage: Stage,
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// How far a connection is.
pub(crate) enum Stage {
    Handshake(HandshakeState),
    Transmission { session: Arc<dyn Session>, negotiated: Negotiated, discard: Option<Discard> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
    Left,
}

struct Inner {
    phase: Phase,
    next: u64,
    /// Those that count, with what they leave while they are parked.
    guests: BTreeMap<u64, Option<Parcel>>,
    /// What guests use, also those that do not count.
    used: BTreeMap<u64, Weak<dyn Session>>,
    staying: usize,
}

pub(crate) struct Gate {
    /// Rises with every change of the phase.
    generation: AtomicU64,
    inner: Mutex<Inner>,
    /// The phase has changed.
    changed: Arc<Notify>,
    /// Somebody was parked or has left.
    parked: Notify,
}

impl Gate {
    fn new(phase: Phase) -> Arc<Gate> {
        let inner = Inner { phase, next: 0, guests: BTreeMap::new(), used: BTreeMap::new(), staying: 0 };
        Arc::new(Gate {
            generation: AtomicU64::new(1),
            inner: Mutex::new(inner),
            changed: Arc::default(),
            parked: Notify::new(),
        })
    }

    pub(crate) fn opened() -> Arc<Gate> {
        Gate::new(Phase::Open)
    }

    pub(crate) fn closed() -> Arc<Gate> {
        Gate::new(Phase::Closed)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut inner = self.inner();
        if inner.phase == Phase::Left {
            return;
        }
        inner.phase = phase;
        inner.guests.values_mut().for_each(|parcel| *parcel = None);
        self.generation.fetch_add(1, Ordering::Release);
        // Under the lock: whoever registers under it is woken by what changes later, and by nothing that it has seen.
        self.changed.notify_waiters();
    }

    /// Has every guest rest.
    pub(crate) fn close(&self) {
        self.enter(Phase::Closed);
    }

    /// Has every guest go on.
    pub(crate) fn open(&self) {
        self.enter(Phase::Open);
    }

    /// Has every guest that is parked be gone, for good.
    pub(crate) fn leave(&self) {
        self.enter(Phase::Left);
    }

    /// Returns the parcels once all that count are parked.
    pub(crate) async fn all_parked(&self) -> Vec<Parcel> {
        loop {
            let parked = self.parked.notified();
            {
                let mut inner = self.inner();
                if inner.guests.values().all(Option::is_some) {
                    // Parked they stay: who looks again finds that there is nothing more to tell.
                    let taken = |parcel: &mut Option<Parcel>| parcel.replace(Parcel::Nothing);
                    return inner.guests.values_mut().filter_map(taken).collect();
                }
            }
            parked.await;
        }
    }

    /// Returns when a successor has taken over.
    pub(crate) async fn left(&self) {
        self.until(|phase, _| phase == Phase::Left).await;
    }

    /// Returns when this process serves; at once when it has served already.
    pub(crate) async fn served(&self) {
        self.until(|phase, _| phase != Phase::Closed).await;
    }

    /// Returns when phase and generation are as `is_so` wants them.
    async fn until(&self, is_so: impl Fn(Phase, u64) -> bool) {
        loop {
            let changed = self.changed.notified();
            {
                let inner = self.inner();
                if is_so(inner.phase, self.generation(&inner)) {
                    return;
                }
            }
            changed.await;
        }
    }

    /// It changes under the lock only.
    fn generation(&self, _inner: &Inner) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What is used now, each once for all that share it; and the names of what cannot be passed on.
    pub(crate) fn used(&self) -> Vec<Arc<dyn Session>> {
        let mut shares = BTreeMap::new();
        for session in self.inner().used.values().filter_map(Weak::upgrade) {
            if let Some(share) = session.share() {
                shares.insert(share, session);
            }
        }
        shares.into_values().collect()
    }

    /// How many are served that cannot be passed on.
    pub(crate) fn staying(&self) -> usize {
        self.inner().staying
    }

    /// Somebody who accepts or reads.
    pub(crate) fn guest(self: &Arc<Gate>) -> Guest {
        let mut inner = self.inner();
        let number = inner.next;
        inner.next += 1;
        inner.guests.insert(number, None);
        drop(inner);
        Guest { gate: Arc::clone(self), number, stays: false }
    }
}

/// Somebody who accepts or reads. Dropped when that ends.
pub(crate) struct Guest {
    gate: Arc<Gate>,
    number: u64,
    stays: bool,
}

impl Guest {
    /// It cannot be passed on, and is not to be waited for.
    pub(crate) fn stay(&mut self) {
        if !self.stays {
            self.stays = true;
            let mut inner = self.gate.inner();
            inner.guests.remove(&self.number);
            inner.staying += 1;
            drop(inner);
            self.gate.parked.notify_waiters();
        }
    }

    /// What it uses from now on.
    pub(crate) fn uses(&self, session: &Arc<dyn Session>) {
        self.gate.inner().used.insert(self.number, Arc::downgrade(session));
    }

    /// Returns when it is to rest; never if it stays.
    pub(crate) async fn until_closed(&self) {
        if self.stays {
            return std::future::pending().await;
        }
        // Left as well: somebody who came too late is to look, and goes.
        self.gate.until(|phase, _| phase != Phase::Open).await;
    }

    /// Returns when it need not rest any more.
    pub(crate) async fn until_opened(&self) -> Verdict {
        let closed_in = self.gate.generation(&self.gate.inner());
        self.until_reopened(closed_in).await
    }

    /// The gate may have been opened and closed again before this guest had its turn: then it goes on as well, and finds it closed.
    async fn until_reopened(&self, closed_in: u64) -> Verdict {
        self.gate.until(|phase, generation| phase != Phase::Closed || generation != closed_in).await;
        if self.gate.inner().phase == Phase::Left { Verdict::Gone } else { Verdict::GoOn }
    }

    /// Rests, and leaves `parcel`. What it says of the connection must hold until the verdict.
    pub(crate) async fn park(&self, parcel: Parcel) -> Verdict {
        let closed_in = {
            let mut inner = self.gate.inner();
            match inner.phase {
                Phase::Open => return Verdict::GoOn,
                // Nobody took its parcel.
                Phase::Left => return Verdict::Gone,
                Phase::Closed => drop(inner.guests.insert(self.number, Some(parcel))),
            }
            self.gate.generation(&inner)
        };
        self.gate.parked.notify_waiters();
        self.until_reopened(closed_in).await
    }

    /// For a task that looks at the gate whenever it wakes up.
    pub(crate) fn watch(&self) -> Option<GateWatch> {
        (!self.stays).then(|| GateWatch { gate: Arc::clone(&self.gate), seen: 0, is_closed: false, registered: None })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut inner = self.gate.inner();
        inner.guests.remove(&self.number);
        inner.used.remove(&self.number);
        inner.staying -= usize::from(self.stays);
        drop(inner);
        self.gate.parked.notify_waiters();
    }
}

/// The gate as a task sees it that has other things to do: one atomic look for each time it wakes up.
pub(crate) struct GateWatch {
    gate: Arc<Gate>,
    seen: u64,
    is_closed: bool,
    registered: Option<(Waker, Pin<Box<OwnedNotified>>)>,
}

impl GateWatch {
    /// Whether the gate is not open. `cx` is woken when that changes.
    pub(crate) fn is_closed(&mut self, cx: &mut Context<'_>) -> bool {
        let is_known = self.registered.as_ref().is_some_and(|(waker, _)| waker.will_wake(cx.waker()));
        if !is_known || self.gate.generation.load(Ordering::Acquire) != self.seen {
            // Before the registration: one that is made between a change and its notice is used up by it, and the next change, which is
            // the one to hear of, wakes nobody.
            let inner = self.gate.inner();
            let mut registration = Box::pin(Arc::clone(&self.gate.changed).notified_owned());
            // Pending: it was only just made. What changes from here on wakes.
            let _ = registration.as_mut().poll(cx);
            self.registered = Some((cx.waker().clone(), registration));
            self.seen = self.gate.generation(&inner);
            self.is_closed = inner.phase != Phase::Open;
        }
        self.is_closed
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    /// Polls once.
    fn once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_gate_waits_for_all_that_count() {
        let gate = Gate::opened();
        let (first, mut second, third) = (gate.guest(), gate.guest(), gate.guest());
        assert_eq!(once(pin!(first.park(Parcel::Nothing))), Poll::Ready(Verdict::GoOn), "it is open");
        gate.close();
        let mut parked = pin!(first.park(Parcel::Nothing));
        assert!(once(parked.as_mut()).is_pending());
        let mut all = pin!(gate.all_parked());
        assert!(once(all.as_mut()).is_pending(), "two are missing");
        second.stay();
        assert!(once(all.as_mut()).is_pending(), "one is missing");
        assert_eq!((gate.staying(), once(pin!(second.until_closed()))), (1, Poll::Pending));
        drop(third);
        assert!(matches!(once(all.as_mut()), Poll::Ready(parcels) if parcels.len() == 1));
        gate.open();
        assert_eq!(once(parked), Poll::Ready(Verdict::GoOn));
        gate.close();
        let mut parked = pin!(first.park(Parcel::Nothing));
        assert!(once(parked.as_mut()).is_pending());
        gate.leave();
        assert_eq!(once(parked), Poll::Ready(Verdict::Gone));
        gate.open();
        assert_eq!(once(pin!(gate.guest().park(Parcel::Nothing))), Poll::Ready(Verdict::Gone), "for good");
    }

    /// A guest that had no turn between two attempts to take over went on resting with what it had left for the first: the second waited
    /// for it, with all clients, until it gave up.
    #[test]
    fn a_guest_that_slept_through_an_open_gate_parks_again() {
        let gate = Gate::opened();
        let guest = gate.guest();
        gate.close();
        let mut parked = Box::pin(guest.park(Parcel::Nothing));
        assert!(once(parked.as_mut()).is_pending());
        gate.open();
        gate.close();
        assert_eq!(once(parked.as_mut()), Poll::Ready(Verdict::GoOn));
        assert_eq!(once(pin!(guest.until_closed())), Poll::Ready(()));
        let mut all = pin!(gate.all_parked());
        assert!(once(all.as_mut()).is_pending());
        let mut parked = pin!(guest.park(Parcel::Nothing));
        assert!(once(parked.as_mut()).is_pending());
        assert!(once(all.as_mut()).is_ready());
        gate.leave();
        assert_eq!(once(parked), Poll::Ready(Verdict::Gone));
    }

    /// A task that looked between a change and its notice was woken by that, found nothing new, and was not woken by the next change: an
    /// idle connection kept a successor waiting for five seconds, and then away.
    #[test]
    fn a_task_that_has_looked_is_woken_by_the_next_change_whenever_it_looked() {
        struct Woken(AtomicU64);

        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }

        let gate = Gate::opened();
        let guest = gate.guest();
        let mut watch = guest.watch().expect("it counts");
        let woken = Arc::new(Woken(AtomicU64::new(0)));
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);
        let rounds = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2000 {
                    rounds.wait();
                    gate.close();
                    gate.open();
                    rounds.wait();
                }
            });
            for round in 0..2000 {
                rounds.wait();
                for _ in 0..round % 7 {
                    watch.is_closed(cx);
                }
                rounds.wait();
                // What it does when it is woken for what came meanwhile.
                assert!(!watch.is_closed(cx));
                let before = woken.0.load(Ordering::SeqCst);
                gate.close();
                assert_eq!(woken.0.load(Ordering::SeqCst), before + 1, "in round {round}");
                gate.open();
                watch.is_closed(cx);
            }
        });
    }

    #[test]
    fn a_task_that_looks_sees_every_change() {
        let gate = Gate::opened();
        let guest = gate.guest();
        let mut watch = guest.watch().expect("it counts");
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(!watch.is_closed(cx));
        gate.close();
        assert!(watch.is_closed(cx) && watch.is_closed(cx));
        gate.open();
        assert!(!watch.is_closed(cx));
    }
}
