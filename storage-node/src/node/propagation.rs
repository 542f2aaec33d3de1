//! When replicas are sent data, and how much a link may take: as it is asked for, checked and told.

use std::collections::BTreeMap;

use client_lib::policy::{LinkPolicy, Mode, Propagation, RateWindow, Rpo, WINDOWS_MAX, minute_text, parse_minute};
use client_lib::wire::admin::{ChangeLink, LinkWindow, ReplicaPolicy};
use client_lib::{Error, ErrorKind, NodeId};

/// The interval that is taken when none is given.
const INTERVAL_MS_DEFAULT: u64 = 30_000;

/// Shorter is no different from `eager`, longer than a week is a replica that is not wanted.
const INTERVAL_MS: std::ops::RangeInclusive<u64> = 1000..=7 * 24 * 3600 * 1000;

fn invalid<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidRequest, what))
}

/// The policy that is asked for, of `replica` or of those that have none of their own, where `present` is in force.
///
/// # Errors
/// `InvalidRequest`, saying what to do.
pub(super) fn propagation_asked_for(
    present: &Propagation,
    replica: Option<NodeId>,
    mode: Option<&str>,
    interval_ms: Option<u64>,
) -> Result<Propagation, Error> {
    let mut wanted = present.clone();
    let before = replica.map_or(present.mode, |replica| present.of(replica));
    let interval = |interval_ms: u64| match INTERVAL_MS.contains(&interval_ms) {
        true => Ok(Mode::Lazy { interval_ms }),
        false => invalid(format!(
            "an interval of {} s is not between 1 s and a week; replicas that are to have everything at once are `eager`",
            interval_ms as f64 / 1000.0
        )),
    };
    let mode = match (mode, interval_ms, before) {
        (None, None, _) if replica.is_some() => {
            return invalid("what is the replica to be: `eager`, `lazy` or `default`?");
        }
        (None, None, _) => return Ok(wanted),
        (Some("eager"), None, _) => Mode::Eager,
        (Some("lazy"), Some(ms), _) => interval(ms)?,
        (Some("lazy"), None, Mode::Lazy { interval_ms }) => Mode::Lazy { interval_ms },
        (Some("lazy"), None, Mode::Eager) => Mode::Lazy { interval_ms: INTERVAL_MS_DEFAULT },
        (None, Some(ms), Mode::Lazy { .. }) => interval(ms)?,
        (Some("eager") | None, Some(_), _) => return invalid("an interval goes with `lazy`"),
        (Some("default"), None, _) => match replica {
            Some(replica) => {
                wanted.replicas.remove(&replica);
                return Ok(wanted);
            }
            None => return invalid("`default` takes its own mode from a replica: name that, or use `eager` or `lazy`"),
        },
        (Some("default"), Some(_), _) => return invalid("an interval goes with `lazy`"),
        (Some("sync"), ..) => {
            return invalid(
                "that a flush waits for other nodes is a class of durability: use --durability site:N or geo:N (docs/durability.md)",
            );
        }
        (Some(other), ..) => return invalid(format!("{other:?} is no mode of propagation: use `eager` or `lazy`")),
    };
    match replica {
        Some(replica) => drop(wanted.replicas.insert(replica, mode)),
        None => wanted.mode = mode,
    }
    Ok(wanted)
}

/// Refuses a target that no replica can be within, because all are sent data too seldom.
///
/// # Errors
/// `InvalidRequest`, saying what to do.
pub(super) fn require_within(
    rpo: Option<Rpo>,
    propagation: &Propagation,
    replicas: impl Iterator<Item = NodeId>,
) -> Result<(), Error> {
    let interval = |mode| match mode {
        Mode::Eager => 0,
        Mode::Lazy { interval_ms } => interval_ms,
    };
    let shortest = replicas.map(|replica| interval(propagation.of(replica))).min();
    match (rpo, shortest) {
        (Some(rpo), Some(shortest)) if shortest >= rpo.target_ms => invalid(format!(
            "no replica would be within {} s: the one that is sent data most often gets it every {} s. Choose a shorter --interval, leave a \
             replica eager (--replica NODE --propagation eager), or take another --rpo-target",
            rpo.target_ms as f64 / 1000.0,
            shortest as f64 / 1000.0
        )),
        _ => Ok(()),
    }
}

/// A mode, as it is told.
pub(super) fn mode_told(mode: Mode) -> ReplicaPolicy {
    match mode {
        Mode::Eager => ReplicaPolicy { propagation: "eager".to_owned(), interval_ms: None },
        Mode::Lazy { interval_ms } => ReplicaPolicy { propagation: "lazy".to_owned(), interval_ms: Some(interval_ms) },
    }
}

/// The modes of the replicas that have their own, as they are told.
pub(super) fn replicas_told(
    propagation: &Propagation,
    name: impl Fn(NodeId) -> String,
) -> BTreeMap<String, ReplicaPolicy> {
    propagation.replicas.iter().map(|(replica, mode)| (name(*replica), mode_told(*mode))).collect()
}

/// The limit that is asked for, where `present` is in force.
///
/// # Errors
/// `InvalidRequest`, saying what to do.
pub(super) fn link_asked_for(present: &LinkPolicy, wanted: ChangeLink) -> Result<LinkPolicy, Error> {
    let rate = wanted.rate_bytes_per_second.unwrap_or(present.rate);
    let Some(windows) = wanted.windows else { return Ok(LinkPolicy { rate, windows: present.windows.clone() }) };
    if windows.len() > WINDOWS_MAX {
        return invalid(format!("{} windows are more than a link may have, which is {WINDOWS_MAX}", windows.len()));
    }
    let window = |window: &LinkWindow| {
        let (from_minute, to_minute) = (parse_minute(&window.from)?, parse_minute(&window.to)?);
        Ok(RateWindow { from_minute, to_minute, rate: window.rate_bytes_per_second })
    };
    Ok(LinkPolicy { rate, windows: windows.iter().map(window).collect::<Result<_, Error>>()? })
}

/// The windows, as they are told.
pub(super) fn windows_told(policy: &LinkPolicy) -> Vec<LinkWindow> {
    let window = |window: &RateWindow| LinkWindow {
        from: minute_text(window.from_minute),
        to: minute_text(window.to_minute),
        rate_bytes_per_second: window.rate,
    };
    policy.windows.iter().map(window).collect()
}

#[cfg(test)]
mod tests {
    use client_lib::policy::RpoAction;

    use super::*;

    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn lazy(seconds: u64) -> Mode {
        Mode::Lazy { interval_ms: seconds * 1000 }
    }

    #[test]
    fn a_mode_is_asked_for_in_parts_for_all_or_for_one() {
        let of_all = |mode| Propagation { mode, ..Propagation::default() };
        let with = |mode, replica, of| Propagation { replicas: [(replica, of)].into(), ..of_all(mode) };
        let eager = of_all(Mode::Eager);
        for (present, replica, mode, interval, expected) in [
            (&eager, None, None, None, eager.clone()),
            (&eager, None, Some("lazy"), None, of_all(lazy(30))),
            (&eager, None, Some("lazy"), Some(60_000), of_all(lazy(60))),
            (&of_all(lazy(60)), None, Some("lazy"), None, of_all(lazy(60))),
            (&of_all(lazy(60)), None, None, Some(5_000), of_all(lazy(5))),
            (&of_all(lazy(60)), None, Some("eager"), None, eager.clone()),
            (&eager, Some(C), Some("lazy"), Some(9_000), with(Mode::Eager, C, lazy(9))),
            (&with(Mode::Eager, C, lazy(9)), Some(C), None, Some(8_000), with(Mode::Eager, C, lazy(8))),
            (&with(Mode::Eager, C, lazy(9)), Some(C), Some("default"), None, eager.clone()),
        ] {
            assert_eq!(propagation_asked_for(present, replica, mode, interval).expect("is valid"), expected);
        }
        for (replica, mode, interval, said) in [
            (None, Some("eager"), Some(9_000), "goes with `lazy`"),
            (None, None, Some(9_000), "goes with `lazy`"),
            (None, Some("default"), None, "name that"),
            (Some(C), None, None, "what is the replica to be"),
            (None, Some("sync"), None, "--durability site:N or geo:N"),
            (None, Some("never"), None, "use `eager` or `lazy`"),
            (None, Some("lazy"), Some(10), "between 1 s and a week"),
        ] {
            let refused = propagation_asked_for(&eager, replica, mode, interval).expect_err(said);
            assert!(refused.message().contains(said), "{refused}");
        }
    }

    #[test]
    fn a_target_that_no_replica_can_meet_is_refused() {
        let rpo = Some(Rpo { target_ms: 10_000, action: RpoAction::Throttle });
        let lazy_b = Propagation { replicas: [(B, lazy(60))].into(), ..Propagation::default() };
        let both = || [B, C].into_iter();
        require_within(rpo, &lazy_b, both()).expect("c is eager");
        require_within(None, &lazy_b, [B].into_iter()).expect("there is no target");
        require_within(rpo, &lazy_b, [].into_iter()).expect("there is nobody to be within");
        let refused = require_within(rpo, &lazy_b, [B].into_iter()).expect_err("b is too seldom");
        assert!(refused.message().contains("every 60 s"), "{refused}");
        let all = Propagation { mode: lazy(10), ..Propagation::default() };
        assert!(require_within(rpo, &all, both()).is_err());
    }

    #[test]
    fn a_link_is_set_in_parts_and_told_as_it_was_set() {
        let window =
            |from: &str, to: &str, rate| LinkWindow { from: from.into(), to: to.into(), rate_bytes_per_second: rate };
        let windows = vec![window("22:00", "06:00", None), window("12:00", "13:00", Some(0))];
        let asked = ChangeLink { rate_bytes_per_second: Some(Some(5)), windows: Some(windows.clone()) };
        let policy = link_asked_for(&LinkPolicy::default(), asked).expect("is valid");
        assert_eq!((policy.rate, windows_told(&policy)), (Some(5), windows));
        let same = link_asked_for(&policy, ChangeLink::default()).expect("is valid");
        assert_eq!(same, policy);
        let open = ChangeLink { rate_bytes_per_second: Some(None), windows: Some(vec![]) };
        assert_eq!(link_asked_for(&policy, open).expect("is valid"), LinkPolicy::default());
        let odd = ChangeLink { windows: Some(vec![window("25:00", "06:00", None)]), ..ChangeLink::default() };
        assert!(link_asked_for(&policy, odd).expect_err("no such hour").message().contains("write it as 22:00"));
        let many = vec![window("22:00", "06:00", None); WINDOWS_MAX + 1];
        assert!(link_asked_for(&policy, ChangeLink { windows: Some(many), ..ChangeLink::default() }).is_err());
    }
}
