//! When each step of a drain will be over, from how fast the links were seen to carry what is sent. Pure.
//!
//! What goes from one node to another shares their link, so the volumes on it are over together, and not each at the rate that it has by itself: what one leaves of the
//! link is the others'. What guests write meanwhile is to be sent as well, of each volume until that has all. The steps follow each other, and each takes a moment to
//! hand over.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::catch_up::LEFT_BYTES_MAX;
use super::Step;

/// What a volume that had to be waited for takes beside that: half of the pause between two looks at it, and the handover. Measured by `bench drain`, 2026-11-28.
const STEP_SECONDS: f64 = 0.4;

/// What was seen of a volume on its way to where it goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// What is still to be sent, in bytes.
    pub(super) to_send: u64,
    /// What has gone there since the ownership began.
    pub(super) carried: u64,
}

/// What a volume has of its link, in bytes and bytes per second.
#[derive(Clone, Copy, Debug)]
struct Load {
    to_send: f64,
    /// What was sent of it.
    sent: f64,
    /// By how much what is to be sent of it would grow if nothing were.
    grown: f64,
}

impl Load {
    /// From two looks with so many seconds between them.
    fn seen(before: Look, now: Look, seconds: f64) -> Load {
        let gained = (before.to_send as f64 - now.to_send as f64) / seconds;
        // An older owner may tell less of what it has sent than of what is left.
        let sent = (now.carried.saturating_sub(before.carried) as f64 / seconds).max(gained);
        // No more than what is written in a moment is no load.
        let to_send = if now.to_send <= LEFT_BYTES_MAX { 0.0 } else { now.to_send as f64 };
        Load { to_send, sent, grown: sent - gained }
    }
}

/// Says of each step when it will be over, from how each was `looked` ago and is now.
pub(super) fn forecast(steps: &mut [Step], looks: &[(Look, Look)], looked: Duration) {
    let seconds = looked.as_secs_f64().max(f64::MIN_POSITIVE);
    let mut links: BTreeMap<(String, Option<String>), Vec<usize>> = BTreeMap::new();
    for (number, step) in steps.iter().enumerate() {
        links.entry((step.from.clone(), step.to.clone())).or_default().push(number);
    }
    let mut there = vec![None; steps.len()];
    for on_link in links.values() {
        let load = |number: &usize| {
            let (before, now) = looks.get(*number).copied().unwrap_or_default();
            Load::seen(before, now, seconds)
        };
        let loads: Vec<Load> = on_link.iter().map(load).collect();
        for (number, over) in on_link.iter().zip(shared(&loads)) {
            there[*number] = over;
        }
    }
    // A group goes with its first volume, once all are there.
    let mut at = Some(0.0_f64);
    let mut moved: BTreeMap<String, Option<f64>> = BTreeMap::new();
    for number in 0..steps.len() {
        let group = steps[number].group.clone();
        if let Some(known) = group.as_ref().and_then(|group| moved.get(group)) {
            steps[number].finish_seconds = *known;
            continue;
        }
        let together =
            (0..steps.len()).filter(|other| *other == number || (group.is_some() && steps[*other].group == group));
        let ready = together.map(|one| there[one]).try_fold(0.0_f64, |all, one| Some(all.max(one?)));
        at = at.zip(ready).map(|(at, ready)| at.max(ready) + if ready > 0.0 { STEP_SECONDS } else { 0.0 });
        steps[number].finish_seconds = at.filter(|_| steps[number].to.is_some());
        if let Some(group) = group {
            moved.insert(group, at);
        }
    }
}

/// When each of those that share a link will be over; `None` for those that never are, since what is written of them is more than they have of it.
fn shared(loads: &[Load]) -> Vec<Option<f64>> {
    let mut over: Vec<Option<f64>> = loads.iter().map(|load| (load.to_send <= 0.0).then_some(0.0)).collect();
    let mut left: Vec<f64> = loads.iter().map(|load| load.to_send).collect();
    // What those that are there already have of the link they go on having.
    let carries: f64 = loads.iter().filter(|load| load.to_send > 0.0).map(|load| load.sent).sum();
    let mut at = 0.0;
    loop {
        let open: Vec<usize> = (0..loads.len()).filter(|one| over[*one].is_none()).collect();
        let sent: f64 = open.iter().map(|one| loads[*one].sent).sum();
        let gains = |one: usize| {
            // Those that had nothing of the link have it in equal parts when the others are over.
            let share = if sent > 0.0 { loads[one].sent / sent } else { 1.0 / open.len() as f64 };
            carries * share - loads[one].grown
        };
        let next = open.iter().filter(|one| gains(**one) > 0.0).map(|one| left[*one] / gains(*one));
        let Some(step) = next.min_by(f64::total_cmp) else { return over };
        at += step;
        for one in &open {
            left[*one] -= gains(*one) * step;
        }
        for one in open {
            // Rounding leaves less than a byte.
            if left[one] < 1.0 {
                over[one] = Some(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    const LOOKED: Duration = Duration::from_secs(2);

    /// What the page of the dashboard is tested with, too: bytes in millions, and two seconds between the looks.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        what: String,
        steps: Vec<CaseStep>,
        over: Vec<Option<f64>>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct CaseStep {
        to: Option<String>,
        group: Option<String>,
        volumes: Vec<CaseVolume>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct CaseVolume {
        to_send: f64,
        before: f64,
        #[serde(default)]
        written: f64,
    }

    impl CaseVolume {
        fn looks(&self) -> (Look, Look) {
            let bytes = |millions: f64| (millions * 1e6) as u64;
            let carried = 7 + bytes(self.before + self.written - self.to_send);
            (Look { to_send: bytes(self.before), carried: 7 }, Look { to_send: bytes(self.to_send), carried })
        }
    }

    /// A volume on its way from node a.
    fn step(to: Option<&str>, group: Option<&str>) -> Step {
        Step {
            volume: String::new(),
            group: group.map(str::to_owned),
            from: "a".to_owned(),
            to: to.map(str::to_owned),
            behind_bytes: 0,
            to_send_bytes: 0,
            finish_seconds: None,
            rpo_seconds: None,
        }
    }

    /// When each is over, to the millisecond.
    fn finished(mut steps: Vec<Step>, looks: &[(Look, Look)]) -> Vec<Option<f64>> {
        forecast(&mut steps, looks, LOOKED);
        steps.iter().map(|step| step.finish_seconds.map(|at| (at * 1000.0).round() / 1000.0)).collect()
    }

    /// Each volume was said to take what it lacks at the rate that it had beside the others: three of 80 MB on a link of 10 MB a second were all to be over after 24 s, and those that had nothing
    /// of the link in the second that was looked at, never.
    #[test]
    fn each_step_is_over_when_it_and_those_before_it_are() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("cases.json")).expect("are cases");
        for case in cases {
            let volumes = case.steps.iter().flat_map(|of| of.volumes.iter().map(move |volume| (of, volume)));
            let steps = volumes.clone().map(|(of, _)| step(of.to.as_deref(), of.group.as_deref())).collect();
            let looks: Vec<_> = volumes.map(|(_, volume)| volume.looks()).collect();
            let over = case.steps.iter().zip(&case.over);
            let over: Vec<_> = over.flat_map(|(of, over)| of.volumes.iter().map(|_| *over)).collect();
            assert_eq!(finished(steps, &looks), over, "{}", case.what);
        }
    }

    /// The volumes of a group are listed among others.
    #[test]
    fn a_group_goes_with_its_first_volume() {
        let of_group = || step(Some("b"), Some("db"));
        let volume = |to_send, before| CaseVolume { to_send, before, written: 0.0 }.looks();
        let looks = [volume(0.0, 0.0), volume(0.0, 0.0), volume(50.0, 70.0)];
        assert_eq!(finished(vec![of_group(), step(Some("b"), None), of_group()], &looks), [Some(5.4); 3]);
    }
}
