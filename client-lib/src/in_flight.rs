//! The requests of one connection that are under way, as futures that one task polls.
//!
//! What `FuturesUnordered` is for, and cheaper for requests that are over soon: a future is polled once when it begins, with the waker that
//! it keeps, and again only when that was used. (That set polls a future anew after it was pushed, and then wakes its task once more, so as to
//! be fair to what else the task does; here whoever polls sees to that by bounding how many begin.) Places are used again, so that neither
//! wakers nor futures cost an allocation each. Without unsafe code: futures are `Unpin`, boxed where they would not be.
//!
//! Invariants:
//!
//! - A place that was rung is on the list until it is polled, and its task was woken after it came there.
//! - A ring that comes while a place is polled counts anew.
//! - A ring for a future that is over costs its successor in the place a poll, and nothing else.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Places that are kept while nothing is under way.
const PLACES_KEPT: usize = 32;

/// Futures under way.
#[derive(Debug)]
pub struct InFlight<F> {
    places: Vec<Place<F>>,
    free: Vec<usize>,
    board: Arc<Board>,
    /// Those that were rung and are polled next, the last one first.
    turn: Vec<usize>,
}

#[derive(Debug)]
struct Place<F> {
    future: Option<F>,
    bell: Waker,
}

/// Who was rung for.
#[derive(Debug, Default)]
struct Board(Mutex<Rung>);

#[derive(Debug, Default)]
struct Rung {
    places: Vec<usize>,
    /// Whether a place is among them.
    is_listed: Vec<bool>,
    task: Option<Waker>,
}

impl Board {
    fn rung(&self) -> MutexGuard<'_, Rung> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What wakes the future in a place.
struct Bell {
    place: usize,
    board: Arc<Board>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut rung = self.board.rung();
        if std::mem::replace(&mut rung.is_listed[self.place], true) {
            return;
        }
        rung.places.push(self.place);
        let task = rung.task.clone();
        drop(rung);
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl<F: Future + Unpin> InFlight<F> {
    /// None is under way.
    #[must_use]
    pub fn new() -> InFlight<F> {
        InFlight { places: Vec::new(), free: Vec::new(), board: Arc::default(), turn: Vec::new() }
    }

    /// How many are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Polls `future` for the first time, for the task of `cx`. One that is not over yet is under way from then on.
    pub fn begin(&mut self, mut future: F, cx: &mut Context<'_>) -> Poll<F::Output> {
        let index = self.free.pop().unwrap_or_else(|| self.add_place());
        self.listen(cx);
        let place = &mut self.places[index];
        match Pin::new(&mut future).poll(&mut Context::from_waker(&place.bell)) {
            Poll::Ready(output) => {
                self.free.push(index);
                Poll::Ready(output)
            }
            Poll::Pending => {
                place.future = Some(future);
                Poll::Pending
            }
        }
    }

    /// What one of them came to, whichever is over first; to be asked until it is `Pending`, which it is when none is under way, too. The task
    /// of `cx` is woken when there is more to ask for.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut has_looked = false;
        loop {
            while let Some(index) = self.turn.pop() {
                let Some(Place { future: Some(future), bell }) = self.places.get_mut(index) else { continue };
                if let Poll::Ready(output) = Pin::new(future).poll(&mut Context::from_waker(bell)) {
                    self.leave(index);
                    return Poll::Ready(output);
                }
            }
            // Once in each call that ends so, after what an earlier one left: who was rung for before is not forgotten, and who wakes itself is
            // not polled for ever.
            if std::mem::replace(&mut has_looked, true) {
                return Poll::Pending;
            }
            self.listen(cx);
            let Rung { places, is_listed, .. } = &mut *self.board.rung();
            std::mem::swap(places, &mut self.turn);
            self.turn.iter().for_each(|place| is_listed[*place] = false);
        }
    }

    /// Has bells wake the task of `cx`.
    fn listen(&self, cx: &Context<'_>) {
        let mut rung = self.board.rung();
        if !rung.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            rung.task = Some(cx.waker().clone());
        }
    }

    fn add_place(&mut self) -> usize {
        let place = self.places.len();
        let mut rung = self.board.rung();
        // A place that was taken down may still be listed.
        if rung.is_listed.len() == place {
            rung.is_listed.push(false);
        }
        drop(rung);
        let bell = Waker::from(Arc::new(Bell { place, board: self.board.clone() }));
        self.places.push(Place { future: None, bell });
        place
    }

    fn leave(&mut self, index: usize) {
        self.places[index].future = None;
        self.free.push(index);
        if self.is_empty() && self.places.len() > PLACES_KEPT {
            self.places.truncate(PLACES_KEPT);
            self.places.shrink_to_fit();
            self.free = (0..PLACES_KEPT).collect();
        }
    }
}

impl<F: Future + Unpin> Default for InFlight<F> {
    fn default() -> InFlight<F> {
        InFlight::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// A task that counts how often it was woken.
    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Task {
        fn woken(&self) -> usize {
            self.0.swap(0, Ordering::SeqCst)
        }
    }

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Is over when it was polled so often; wakes itself where it is told to, and hands its waker out.
    struct Counted {
        left: usize,
        wakes_itself: bool,
        polled: Arc<AtomicUsize>,
        waker: Arc<Mutex<Option<Waker>>>,
    }

    impl Counted {
        fn new(polls: usize, wakes_itself: bool) -> Counted {
            Counted { left: polls, wakes_itself, polled: Arc::default(), waker: Arc::default() }
        }
    }

    impl Future for Counted {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            self.polled.fetch_add(1, Ordering::SeqCst);
            self.left -= 1;
            *self.waker.lock().expect("nobody panics") = Some(cx.waker().clone());
            if self.left == 0 {
                return Poll::Ready(());
            }
            if self.wakes_itself {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        }
    }

    #[test]
    fn a_future_is_polled_when_it_begins_and_when_it_was_woken_and_not_else() {
        let task = Arc::new(Task::default());
        let waker = Waker::from(task.clone());
        let cx = &mut Context::from_waker(&waker);
        let mut calls = InFlight::new();
        assert_eq!(calls.begin(Counted::new(1, false), cx), Poll::Ready(()));
        assert!(calls.is_empty());
        let counted = Counted::new(2, false);
        let (polled, of_call) = (counted.polled.clone(), counted.waker.clone());
        assert_eq!(calls.begin(counted, cx), Poll::Pending);
        assert_eq!((calls.len(), calls.poll_next(cx), calls.poll_next(cx)), (1, Poll::Pending, Poll::Pending));
        assert_eq!((polled.load(Ordering::SeqCst), task.woken()), (1, 0));
        let of_call = of_call.lock().expect("nobody panics").clone().expect("was polled");
        of_call.wake_by_ref();
        of_call.wake_by_ref();
        assert_eq!(task.woken(), 1, "it is listed already");
        assert_eq!((calls.poll_next(cx), calls.poll_next(cx)), (Poll::Ready(()), Poll::Pending));
        assert_eq!((calls.len(), polled.load(Ordering::SeqCst)), (0, 2));
        // Late, for whoever has the place now.
        let next = Counted::new(3, false);
        let polled = next.polled.clone();
        assert_eq!(calls.begin(next, cx), Poll::Pending);
        of_call.wake();
        assert_eq!((calls.poll_next(cx), polled.load(Ordering::SeqCst)), (Poll::Pending, 2));
    }

    #[test]
    fn one_that_wakes_itself_does_not_keep_the_task_from_its_other_work() {
        let task = Arc::new(Task::default());
        let waker = Waker::from(task.clone());
        let cx = &mut Context::from_waker(&waker);
        let mut calls = InFlight::new();
        assert_eq!(calls.begin(Counted::new(4, true), cx), Poll::Pending);
        for _ in 0..2 {
            assert_eq!(task.woken(), 1, "and is not polled before the task is");
            assert_eq!(calls.poll_next(cx), Poll::Pending);
        }
        assert_eq!(task.woken(), 1);
        assert_eq!(calls.poll_next(cx), Poll::Ready(()));
    }

    #[test]
    fn the_task_that_polled_last_is_woken() {
        let (first, second) = (Arc::new(Task::default()), Arc::new(Task::default()));
        let (of_first, of_second) = (Waker::from(first.clone()), Waker::from(second.clone()));
        let mut calls = InFlight::new();
        let (told, hears) = oneshot::channel::<()>();
        assert!(calls.begin(hears, &mut Context::from_waker(&of_first)).is_pending());
        assert!(calls.poll_next(&mut Context::from_waker(&of_second)).is_pending());
        told.send(()).expect("is heard");
        assert_eq!((first.woken(), second.woken()), (0, 1));
    }

    #[test]
    fn a_crowd_leaves_few_places_behind_and_its_bells_may_ring_later() {
        let waker = Waker::from(Arc::new(Task::default()));
        let cx = &mut Context::from_waker(&waker);
        let mut calls = InFlight::new();
        for _ in 0..2 {
            let crowd: Vec<_> = (0..3 * PLACES_KEPT).map(|_| Counted::new(2, true)).collect();
            let bells: Vec<_> = crowd.iter().map(|counted| counted.waker.clone()).collect();
            for counted in crowd {
                assert_eq!(calls.begin(counted, cx), Poll::Pending);
            }
            while calls.poll_next(cx).is_ready() {}
            assert_eq!((calls.len(), calls.places.len()), (0, PLACES_KEPT));
            for bell in bells {
                bell.lock().expect("nobody panics").take().expect("was polled").wake();
            }
        }
    }

    /// What was left on the list of an earlier look, for futures that were over, once stood for a look at the board.
    #[test]
    fn what_is_left_of_an_earlier_look_does_not_stand_for_a_new_one() {
        let waker = Waker::from(Arc::new(Task::default()));
        let cx = &mut Context::from_waker(&waker);
        let mut calls = InFlight::new();
        let bell_of = |counted: &Counted| counted.waker.clone();
        let (first, second) = (Counted::new(2, false), Counted::new(2, false));
        let bells = [bell_of(&first), bell_of(&second)].map(|bell| move || bell.lock().expect("nobody panics").take());
        assert!(calls.begin(first, cx).is_pending() && calls.begin(second, cx).is_pending());
        // The first is polled by a bell of its own, and the ring for its place is on the list when nothing is under way any more.
        bells.iter().for_each(|bell| bell().expect("was polled").wake());
        assert!(calls.poll_next(cx).is_ready());
        let third = Counted::new(2, false);
        let bell = bell_of(&third);
        assert!(calls.begin(third, cx).is_pending());
        bell.lock().expect("nobody panics").take().expect("was polled").wake();
        assert_eq!([calls.poll_next(cx), calls.poll_next(cx)], [Poll::Ready(()), Poll::Ready(())]);
        assert!(calls.is_empty());
    }

    /// With tasks on other threads that finish them.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_finishes_them_and_when_each_comes_once() {
        const ALL: usize = 20_000;
        let (sender, mut given) = mpsc::unbounded_channel::<(usize, oneshot::Sender<usize>)>();
        let finisher = tokio::spawn(async move {
            while let Some((number, answer)) = given.recv().await {
                if number % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                answer.send(number).expect("is waited for");
            }
        });
        let (mut calls, mut begun, mut came) = (InFlight::<oneshot::Receiver<usize>>::new(), 0, BTreeSet::new());
        let all = std::future::poll_fn(|cx| {
            loop {
                while let Poll::Ready(number) = calls.poll_next(cx) {
                    assert!(came.insert(number.expect("is answered")));
                }
                while begun < ALL && calls.len() < 64 {
                    let (answer, answered) = oneshot::channel();
                    sender.send((begun, answer)).expect("is taken");
                    begun += 1;
                    if let Poll::Ready(number) = calls.begin(answered, cx) {
                        assert!(came.insert(number.expect("is answered")));
                    }
                }
                match calls.len() {
                    0 if begun == ALL => return Poll::Ready(()),
                    64 => return Poll::Pending,
                    _ if begun == ALL => return Poll::Pending,
                    _ => {}
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("none is forgotten");
        assert_eq!(came.len(), ALL);
        drop(sender);
        finisher.await.expect("ends");
    }
}
