//! Which position of a volume is durable in its class, and whose copy counts toward that. Pure.
//!
//! A class asks for N copies besides one. The owner's own copy is that one if it holds everything; while it still fetches blocks
//! after a handover another place must stand in for it, so that what was flushed is in N + 1 places whoever is lost.
//!
//! A replica *holds* everything up to its watermark, durably, and no more: data that it has stored and not applied does not count.
//! A takeover begins with the watermark of the replica that it chooses. So it loses nothing that was flushed if it has seen the
//! watermarks of so many replicas that no class could have been met without one of them ([`may_hide_flushes`]).

use std::collections::{BTreeMap, BTreeSet};

use client_lib::policy::Class;
use client_lib::{Lsn, ProviderId};

/// Whether the copy of a replica at `provider` counts toward `class` of an owner at `home`.
#[must_use]
pub fn counts(class: Class, home: &ProviderId, provider: &ProviderId) -> bool {
    match class {
        Class::Local => false,
        Class::Site(_) => provider == home,
        Class::Geo(_) => provider != home,
    }
}

/// How many places besides the owner there are for copies: nodes of a site, or other providers.
#[must_use]
pub fn places<'a>(class: Class, home: &ProviderId, replicas: impl Iterator<Item = &'a ProviderId>) -> usize {
    let counting = replicas.filter(|provider| counts(class, home, provider));
    match class {
        Class::Geo(_) => counting.collect::<BTreeSet<_>>().len(),
        Class::Local | Class::Site(_) => counting.count(),
    }
}

/// Up to where the volume is durable in `class`: `own` is what the owner at `home` holds, and `held` what the replicas hold, each
/// at its provider.
#[must_use]
pub fn durable<'a>(
    class: Class,
    home: &ProviderId,
    own: Lsn,
    held: impl Iterator<Item = (&'a ProviderId, Lsn)>,
) -> Lsn {
    let counting = held.filter(|(provider, _)| counts(class, home, provider));
    let mut copies: Vec<Lsn> = match class {
        Class::Geo(_) => {
            let mut of_provider: BTreeMap<&ProviderId, Lsn> = BTreeMap::new();
            for (provider, lsn) in counting {
                let best = of_provider.entry(provider).or_default();
                *best = lsn.max(*best);
            }
            of_provider.into_values().collect()
        }
        Class::Local | Class::Site(_) => counting.map(|(_, lsn)| lsn).collect(),
    };
    copies.push(own);
    copies.sort_unstable_by(|a, b| b.cmp(a));
    copies.get(class.others()).copied().unwrap_or(Lsn::ZERO)
}

/// Whether the replicas that have not told what they hold may, together, hold what was flushed in `class` and nobody else has:
/// `replicas` are at a provider each, and have told or not.
#[must_use]
pub fn may_hide_flushes<'a>(
    class: Class,
    home: &ProviderId,
    replicas: impl Iterator<Item = (&'a ProviderId, bool)>,
) -> bool {
    let silent = replicas.filter(|(_, has_told)| !has_told).map(|(provider, _)| provider);
    // A provider is silent when one of its nodes is: that one may be the holder.
    class != Class::Local && places(class, home, silent) >= class.others()
}

#[cfg(test)]
mod tests {
    use client_lib::Epoch;
    use proptest::prelude::*;

    use super::*;

    fn lsn(sequence: u64) -> Lsn {
        Lsn::new(Epoch(1), sequence)
    }

    fn provider(number: u8) -> ProviderId {
        format!("p{number}").parse().expect("a name")
    }

    /// The class with the owner at provider 0.
    fn in_class(class: Class, own: u64, held: &[(u8, u64)]) -> u64 {
        let held: Vec<_> = held.iter().map(|(at, sequence)| (provider(*at), lsn(*sequence))).collect();
        durable(class, &provider(0), lsn(own), held.iter().map(|(at, lsn)| (at, *lsn))).sequence
    }

    #[test]
    fn a_class_is_met_where_so_many_places_hold_it() {
        for (class, own, held, expected) in [
            (Class::Local, 9, &[(1, 3)][..], 9),
            (Class::Site(1), 9, &[(0, 5), (0, 7), (1, 9)], 7),
            (Class::Site(2), 9, &[(0, 5), (0, 7), (1, 9)], 5),
            (Class::Site(1), 9, &[(1, 9), (2, 9)], 0),
            (Class::Geo(1), 9, &[(0, 9), (1, 4), (2, 6)], 6),
            (Class::Geo(2), 9, &[(0, 9), (1, 4), (2, 6)], 4),
            (Class::Geo(2), 9, &[(1, 8), (1, 7)], 0),
            (Class::Geo(1), 9, &[(1, 3), (1, 8)], 8),
            // The owner was handed the volume and still fetches blocks: it stands for what it holds and no more.
            (Class::Geo(1), 2, &[(1, 9)], 2),
            (Class::Geo(1), 2, &[(1, 9), (2, 8)], 8),
        ] {
            assert_eq!(in_class(class, own, held), expected, "{class}, {own}, {held:?}");
        }
    }

    #[test]
    fn a_takeover_must_hear_of_every_place_that_could_have_been_the_only_one() {
        let hides = |class, replicas: &[(u8, bool)]| {
            let replicas: Vec<_> = replicas.iter().map(|(at, told)| (provider(*at), *told)).collect();
            may_hide_flushes(class, &provider(0), replicas.iter().map(|(at, told)| (at, *told)))
        };
        assert!(!hides(Class::Local, &[(1, false)]));
        assert!(
            !hides(Class::Geo(1), &[(0, false), (1, true), (2, true)]),
            "those of the owner's provider do not count"
        );
        assert!(hides(Class::Geo(1), &[(1, true), (2, false)]));
        assert!(!hides(Class::Geo(2), &[(1, true), (2, false), (3, true)]), "one alone could not meet it");
        assert!(hides(Class::Geo(1), &[(1, true), (1, false)]), "the silent one may be the one that holds it");
        assert!(hides(Class::Site(1), &[(0, false), (1, true)]));
        assert!(!hides(Class::Site(2), &[(0, false), (0, true), (1, false)]));
    }

    fn class() -> impl Strategy<Value = Class> {
        (0..5u8).prop_map(|number| match number {
            0 => Class::Local,
            1 | 2 => Class::Site(number),
            _ => Class::Geo(number - 2),
        })
    }

    proptest! {
        /// What a class promises: whatever N places are lost with all that they hold, a copy is left. And what the survey of a
        /// takeover asks for suffices to find it.
        #[test]
        fn the_loss_of_as_many_places_as_the_class_names_leaves_a_copy(
            class in class(),
            own in 0..20u64,
            held in proptest::collection::vec((0..4u8, 0..20u64, any::<bool>()), 0..6),
        ) {
            let plain: Vec<_> = held.iter().map(|(at, sequence, _)| (*at, *sequence)).collect();
            let durable = in_class(class, own, &plain);
            let others = class.others();
            let survivors = held.iter().filter(|(at, sequence, _)| match class {
                Class::Geo(_) => *at != 0 && *sequence >= durable,
                _ => *at == 0 && *sequence >= durable,
            });
            let survivors: BTreeSet<u64> = survivors.enumerate().map(|(number, (at, ..))| match class {
                Class::Geo(_) => u64::from(*at),
                _ => number as u64,
            }).collect();
            if durable > 0 {
                // With the owner gone, and N - 1 of the others.
                prop_assert!(survivors.len() >= others, "{class}: {durable} at {survivors:?}");
                prop_assert!(own >= durable || survivors.len() > others, "N + 1 places hold it");
            }
            if durable > 0 && others > 0 {
                let tells: Vec<_> = held.iter().map(|(at, _, told)| (provider(*at), *told)).collect();
                let hides = may_hide_flushes(class, &provider(0), tells.iter().map(|(at, told)| (at, *told)));
                let told = held.iter().filter(|(_, _, told)| *told).map(|(_, sequence, _)| *sequence).max();
                prop_assert!(hides || told >= Some(durable), "{class}: {durable} was not found in {held:?}");
            }
        }

        /// Another copy, or a newer one, never takes anything away.
        #[test]
        fn more_is_never_less(class in class(), own in 0..20u64, held in proptest::collection::vec((0..4u8, 0..20u64), 1..6)) {
            let all = in_class(class, own, &held);
            prop_assert!(all >= in_class(class, own, &held[1..]));
            let mut newer = held.clone();
            newer[0].1 += 5;
            prop_assert!(in_class(class, own, &newer) >= all);
            prop_assert!(in_class(class, own + 5, &held) >= all);
        }
    }
}
