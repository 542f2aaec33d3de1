//! Nodes with volumes by the thousand: what a change of metadata asks of one of them is done a while after it is known, behind what is done for the
//! others. With the few volumes of a simulation it would always be done at once.

use std::cell::Cell;
use std::time::Duration;

use client_lib::random::{self, Sequence};

thread_local! {
    static LONGEST: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// From now on the volumes of every node on this thread wait for so long, at the most.
pub(super) fn begin(longest: Duration) {
    LONGEST.set(longest);
}

/// Waits for the turn of a volume.
pub(crate) async fn turn() {
    let longest = LONGEST.get();
    if !longest.is_zero() {
        let wait = Sequence::new(random::bits()).below(longest.as_micros() as u64);
        tokio::time::sleep(Duration::from_micros(wait)).await;
    }
}
