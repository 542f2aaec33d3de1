//! Who looks at operations of a volume, and which of them: `helio trace`, for a while ([`tap`]); a collector of OTLP, always
//! ([`export`]).
//!
//! An operation that nobody looks at costs a relaxed load. What is looked at carries a [`Trace`], and whoever looks is told of it when it is
//! answered. Bounds: [`LOOKERS_MAX`] at a time; a looker takes as many operations as its [`sampling`] allows, and keeps of them what
//! takes no more memory the more there are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use client_lib::trace::{Sink, Sinks, Trace, What};
use client_lib::{Error, ErrorKind};
use tokio::time::Instant;

pub mod export;
pub mod histogram;
pub mod otlp;
pub mod sampling;
pub mod tap;

/// Who may look at the operations of one volume at a time; whoever else wants to is refused.
pub const LOOKERS_MAX: usize = 4;

/// Somebody who looks at operations of a volume.
pub trait Looker: Sink {
    /// An operation begins: for how many it is to stand, `None` if it is left out.
    fn weight(&self, what: &What, now: Instant) -> Option<u32>;
}

/// Those who look at the operations of a volume at this node.
#[derive(Default)]
pub struct Tracer {
    is_on: AtomicBool,
    lookers: Mutex<Vec<Arc<dyn Looker>>>,
    /// Who looks for as long as the volume is served.
    always: OnceLock<Arc<dyn Looker>>,
}

impl Tracer {
    /// Whether anybody looks.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        // What begins a moment later is early enough.
        self.is_on.load(Ordering::Relaxed)
    }

    /// The trace of an operation that begins now; an empty one if nobody looks at it.
    #[inline]
    #[must_use]
    pub fn begin_now(&self, what: What) -> Trace {
        if self.is_on() { self.begin(what, Instant::now()) } else { Trace::default() }
    }

    /// The same of one that began a moment ago.
    #[must_use]
    pub fn begin(&self, what: What, began: Instant) -> Trace {
        let sink = |looker: &Arc<dyn Looker>| {
            let weight = looker.weight(&what, began)?;
            Some((looker.clone() as Arc<dyn Sink>, weight))
        };
        let sinks: Sinks = self.always.get().into_iter().chain(self.lookers().iter()).filter_map(sink).collect();
        Trace::begin(what, began, sinks)
    }

    /// Lets `looker` look for as long as the volume is served; the first call counts.
    pub fn look_always(&self, looker: Arc<dyn Looker>) {
        // There is one collector in the life of a node.
        let _ = self.always.set(looker);
        self.is_on.store(true, Ordering::Relaxed);
    }

    /// Lets `looker` look until the answer is dropped. What is under way then is told to it all the same.
    ///
    /// # Errors
    /// `Busy` when [`LOOKERS_MAX`] others do.
    pub fn look(&self, looker: Arc<dyn Looker>) -> Result<Looking<'_>, Error> {
        let mut lookers = self.lookers();
        if lookers.len() >= LOOKERS_MAX {
            let what =
                format!("the volume is traced {LOOKERS_MAX} times already: try again when one of these has ended");
            return Err(Error::new(ErrorKind::Busy, what));
        }
        lookers.push(looker.clone());
        self.is_on.store(true, Ordering::Relaxed);
        Ok(Looking { tracer: self, looker })
    }

    fn lookers(&self) -> MutexGuard<'_, Vec<Arc<dyn Looker>>> {
        self.lookers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it is there, somebody looks.
pub struct Looking<'a> {
    tracer: &'a Tracer,
    looker: Arc<dyn Looker>,
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        let mut lookers = self.tracer.lookers();
        lookers.retain(|looker| !Arc::ptr_eq(looker, &self.looker));
        self.tracer.is_on.store(!lookers.is_empty() || self.tracer.always.get().is_some(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use client_lib::trace::{OperationKind, Traced};

    use super::*;

    struct Nobody;

    impl Sink for Nobody {
        fn note(&self, _traced: &Traced, _weight: u32) {}
    }

    impl Looker for Nobody {
        fn weight(&self, what: &What, _now: Instant) -> Option<u32> {
            (what.kind == OperationKind::Read).then_some(1)
        }
    }

    #[test]
    fn operations_have_a_trace_while_somebody_looks_at_them() {
        let tracer = Tracer::default();
        let read = What { kind: OperationKind::Read, offset: 0, bytes: 512 };
        let flush = What { kind: OperationKind::Flush, offset: 0, bytes: 0 };
        assert!(!tracer.is_on() && !tracer.begin_now(read).is_some());
        let first = tracer.look(Arc::new(Nobody)).expect("may look");
        assert!(tracer.begin_now(read).is_some() && !tracer.begin_now(flush).is_some());
        let others: Vec<_> = (1..LOOKERS_MAX).map(|_| tracer.look(Arc::new(Nobody)).expect("may look")).collect();
        let refused = tracer.look(Arc::new(Nobody)).err().expect("is one too many");
        assert_eq!(refused.kind(), ErrorKind::Busy);
        drop(others);
        assert!(tracer.is_on());
        drop(first);
        assert!(!tracer.is_on() && !tracer.begin_now(read).is_some());
    }
}
