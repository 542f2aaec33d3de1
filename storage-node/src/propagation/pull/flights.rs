//! Which versions are on their way here, so that nobody asks for what another has asked for already.
//!
//! A guest joins what another one waits for and what is fetched ahead of it. It never waits for something that goes in the background, but
//! has it sent again. What nobody waits for is left out if it is on its way at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use client_lib::Lsn;
use tokio_util::sync::CancellationToken;

use super::Why;

#[derive(Debug)]
struct Flight {
    why: Why,
    over: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    flights: BTreeMap<u64, Flight>,
    /// The newest flight of each version.
    blocks: BTreeMap<(u32, Lsn), u64>,
    /// What is being stored.
    landing: BTreeSet<(u32, Lsn)>,
}

/// What is on its way here.
#[derive(Debug, Default)]
pub struct Flights(Mutex<State>);

/// Versions that have come and are being stored, until it is dropped.
#[derive(Debug)]
pub struct Landing<'a> {
    flights: &'a Flights,
    versions: Vec<(u32, Lsn)>,
    /// Versions that another one stores at this moment.
    pub twice: u64,
}

/// Versions on their way, until it is dropped.
#[derive(Debug)]
pub struct Boarded<'a> {
    flights: &'a Flights,
    number: u64,
    versions: Vec<(u32, Lsn)>,
}

/// Others that are waited for, and what they bring.
#[derive(Debug, Default)]
pub struct Joined {
    /// Set when each of them is over, well or not.
    pub over: Vec<CancellationToken>,
    /// What they were asked for.
    pub versions: Vec<(u32, Lsn)>,
}

impl Flights {
    /// Takes those of `wanted` on its way that are not yet, or that a guest does not wait for if `why` is one. Returns with them the others.
    pub fn board(&self, wanted: Vec<(u32, Lsn)>, why: Why) -> (Boarded<'_>, Joined) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let (number, mut joined, mut joins) = (state.next, Joined::default(), Vec::new());
        state.next += 1;
        let mut versions = Vec::with_capacity(wanted.len());
        for version in wanted {
            let found = state.blocks.get(&version).copied();
            match found.and_then(|found| Some((found, state.flights.get(&found)?))) {
                Some((found, flight)) if !why.is_waited_for() || flight.why <= Why::Near => {
                    joined.versions.push(version);
                    if !joins.contains(&found) {
                        joins.push(found);
                        joined.over.push(flight.over.clone());
                    }
                }
                _ => {
                    state.blocks.insert(version, number);
                    versions.push(version);
                }
            }
        }
        state.flights.insert(number, Flight { why, over: CancellationToken::new() });
        (Boarded { flights: self, number, versions }, joined)
    }
}

impl Flights {
    /// These versions have come: what was asked for twice may come twice at one moment, before the first of it is stored.
    pub fn land(&self, versions: impl IntoIterator<Item = (u32, Lsn)>) -> Landing<'_> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (versions, twice): (Vec<_>, Vec<_>) =
            versions.into_iter().partition(|version| state.landing.insert(*version));
        Landing { flights: self, versions, twice: twice.len() as u64 }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut state = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        for version in &self.versions {
            state.landing.remove(version);
        }
    }
}

impl Boarded<'_> {
    /// What is on its way.
    #[must_use]
    pub fn versions(&self) -> &[(u32, Lsn)] {
        &self.versions
    }
}

impl Drop for Boarded<'_> {
    fn drop(&mut self) {
        let mut state = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        for version in &self.versions {
            if state.blocks.get(version) == Some(&self.number) {
                state.blocks.remove(version);
            }
        }
        if let Some(flight) = state.flights.remove(&self.number) {
            flight.over.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;

    use super::*;

    fn versions(blocks: &[u32]) -> Vec<(u32, Lsn)> {
        blocks.iter().map(|block| (*block, Lsn::new(Epoch(1), 7))).collect()
    }

    #[test]
    fn a_guest_joins_what_another_waits_for_and_what_is_fetched_ahead_but_not_the_background() {
        let flights = Flights::default();
        let (rest, _) = flights.board(versions(&[1, 2, 3]), Why::Rest);
        let (near, joined) = flights.board(versions(&[2, 4]), Why::Near);
        assert_eq!((near.versions(), &joined.versions), (&versions(&[4])[..], &versions(&[2])));
        let (demand, joined) = flights.board(versions(&[1, 4, 5]), Why::Demand);
        assert_eq!((demand.versions(), &joined.versions), (&versions(&[1, 5])[..], &versions(&[4])));
        assert!(!joined.over[0].is_cancelled());
        drop(near);
        assert!(joined.over[0].is_cancelled());
        let (other, joined) = flights.board(versions(&[1]), Why::Demand);
        assert!(other.versions().is_empty() && joined.over.len() == 1);
        drop((rest, demand));
        assert!(joined.over[0].is_cancelled());
        let (again, joined) = flights.board(versions(&[1, 2, 3]), Why::Rest);
        assert_eq!((again.versions().len(), joined.over.len()), (3, 0), "it did not come, so it is asked for again");
        drop((again, other));
        assert!(flights.0.lock().expect("not poisoned").blocks.is_empty(), "nothing stays behind");
    }

    /// A guest asks again for what is on its way in the background. Both came at once, and were counted twice.
    #[test]
    fn what_comes_twice_at_one_moment_counts_once() {
        let flights = Flights::default();
        let first = flights.land(versions(&[1, 2]));
        let second = flights.land(versions(&[2, 3]));
        assert_eq!((first.twice, second.twice), (0, 1));
        drop(first);
        assert_eq!(flights.land(versions(&[1, 2, 3])).twice, 1);
        drop(second);
        assert!(flights.0.lock().expect("not poisoned").landing.is_empty(), "nothing stays behind");
    }

    #[test]
    fn another_version_is_another_matter() {
        let flights = Flights::default();
        let (_old, _) = flights.board(versions(&[1]), Why::Demand);
        let (newer, joined) = flights.board(vec![(1, Lsn::new(Epoch(1), 8))], Why::Demand);
        assert_eq!((newer.versions().len(), joined.over.len()), (1, 0));
    }
}
