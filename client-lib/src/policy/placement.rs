//! Where the copies of a volume are to be, written as `2 in eu, 1 elsewhere, never cloud-3`; which nodes that leaves and lacks.
//!
//! The owner's copy counts as any other, so that a rule says the same after every handover. A copy that is complete and within reach goes before one
//! that is not, and any before that of a node which is leaving. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::geometry::COPIES_OF_VOLUME_MAX;
use crate::types::{Label, NodeId, ProviderId};
use crate::{Error, ErrorKind};

/// Most parts of a rule.
pub const PARTS_MAX: usize = 16;

/// The label of a node that is leaving: it gets no further copies, and those that it has are given up when others have taken their place.
pub const LEAVING: &str = "leaving";

/// Nodes, by what they are called: a node is meant if each of these words is its provider or one of its labels. No word means every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Selector(BTreeSet<Label>);

impl Selector {
    /// Whether it means a node.
    #[must_use]
    pub fn selects(&self, site: &Site) -> bool {
        self.0.iter().all(|word| site.provider.as_str() == word.as_str() || site.labels.contains(word))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.0.iter().map(Label::as_str).collect();
        f.write_str(&words.join("+"))
    }
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Selector, Error> {
        text.split('+').map(str::parse).collect::<Result<_, _>>().map(Selector)
    }
}

/// Of which nodes a number of copies is to be at some.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Among {
    /// These.
    In(Selector),
    /// Those that no other part of the rule means.
    Elsewhere,
    /// Any.
    Anywhere,
}

/// So many copies at some of those nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Share {
    /// How many; at least one.
    pub copies: u8,
    /// At some of which nodes.
    pub among: Among,
}

/// Where the copies of a volume are to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Placement {
    /// How many copies, at which nodes.
    pub shares: Vec<Share>,
    /// At which nodes none may be.
    pub never: Vec<Selector>,
}

/// A node, as a rule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Which.
    pub id: NodeId,
    /// Its failure domain.
    pub provider: ProviderId,
    /// What it is besides.
    pub labels: BTreeSet<Label>,
    /// Whether it answers.
    pub is_up: bool,
    /// How many copies it has, of all volumes.
    pub load: usize,
}

impl Site {
    /// Whether it is [`LEAVING`].
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.labels.iter().any(|label| label.as_str() == LEAVING)
    }

    /// Whether it may get further copies now: it is up, and will stay.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_up && !self.is_leaving()
    }
}

/// Who has a volume, beside its owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The nodes that follow.
    pub replicas: BTreeSet<NodeId>,
    /// Those of them that have yet to become complete.
    pub joining: BTreeSet<NodeId>,
}

/// What is to change for a rule to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Which nodes get a copy.
    pub add: BTreeSet<NodeId>,
    /// Which copies the rule does not ask for, when those that it does are complete. Never the owner's.
    pub surplus: BTreeSet<NodeId>,
    /// How many copies there is no node for, by where they were to be.
    pub lacking: Vec<(Among, u8)>,
    /// Whether the owner's copy is where none is to be: only a handover changes that.
    pub owner_is_misplaced: bool,
}

impl Placement {
    /// How many copies there are to be.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.shares.iter().map(|share| usize::from(share.copies)).sum()
    }

    /// What is to change of a volume that `owner` and those of `held` have. Copies stay where they are as far as the rule lets them; new ones go
    /// to providers that have none first, then to nodes with few copies.
    #[must_use]
    pub fn plan(&self, sites: &[Site], owner: NodeId, held: &Held) -> Plan {
        let by_id: BTreeMap<NodeId, &Site> = sites.iter().map(|site| (site.id, site)).collect();
        let mut plan = Plan::default();
        let mut seats = Seats::of(self);
        // The owner first, so that its copy is not the one too many.
        if let Some(site) = by_id.get(&owner) {
            plan.owner_is_misplaced = !seats.seat(site);
        }
        let replicas = held.replicas.iter().filter(|id| **id != owner);
        let (leaving, mut staying): (Vec<&Site>, Vec<&Site>) =
            replicas.filter_map(|id| by_id.get(id).copied()).partition(|site| site.is_leaving());
        staying.sort_by_key(|site| (held.joining.contains(&site.id), !site.is_up, site.id));
        for site in staying {
            if !seats.seat(site) {
                plan.surplus.insert(site.id);
            }
        }
        let is_new = |site: &&Site| site.is_open() && site.id != owner && !held.replicas.contains(&site.id);
        let mut candidates: Vec<&Site> = sites.iter().filter(is_new).collect();
        while !candidates.is_empty() {
            let rank = |site: &Site| {
                let beside = seats.taken.iter().flatten().filter(|other| other.provider == site.provider).count();
                (beside, site.load, site.id)
            };
            candidates.sort_by_cached_key(|site| std::cmp::Reverse(rank(site)));
            // Who finds no seat now finds none later either.
            let Some(best) = candidates.pop() else { break };
            if seats.seat(best) {
                plan.add.insert(best.id);
            }
        }
        // Last, so that others take their place; where nobody can, they keep it.
        for site in leaving {
            if !seats.seat(site) {
                plan.surplus.insert(site.id);
            }
        }
        plan.lacking = seats.lacking();
        plan
    }

    /// Whether a copy at `site` counts for a share.
    fn may_hold(&self, among: &Among, site: &Site) -> bool {
        if self.never.iter().any(|never| never.selects(site)) {
            return false;
        }
        let is_named = |share: &Share| matches!(&share.among, Among::In(selector) if selector.selects(site));
        match among {
            Among::In(selector) => selector.selects(site),
            Among::Elsewhere => !self.shares.iter().any(is_named),
            Among::Anywhere => true,
        }
    }
}

/// The copies that a rule asks for, one by one, and the nodes that have them. However many nodes can be seated are, in whatever order they
/// come: who comes may have others move to seats that suit them as well (an augmenting path of a bipartite matching).
struct Seats<'a> {
    rule: &'a Placement,
    shares: Vec<&'a Share>,
    taken: Vec<Option<&'a Site>>,
}

impl<'a> Seats<'a> {
    fn of(rule: &'a Placement) -> Seats<'a> {
        let seats = |share: &'a Share| std::iter::repeat_n(share, usize::from(share.copies));
        let shares: Vec<&Share> = rule.shares.iter().flat_map(seats).collect();
        let taken = vec![None; shares.len()];
        Seats { rule, shares, taken }
    }

    /// Finds `site` a seat, and keeps one for all that have one.
    fn seat(&mut self, site: &'a Site) -> bool {
        self.seat_beyond(site, &mut vec![false; self.shares.len()])
    }

    fn seat_beyond(&mut self, site: &'a Site, tried: &mut [bool]) -> bool {
        for seat in 0..self.shares.len() {
            if tried[seat] || !self.rule.may_hold(&self.shares[seat].among, site) {
                continue;
            }
            tried[seat] = true;
            let is_free = self.taken[seat].is_none_or(|other| self.seat_beyond(other, tried));
            if is_free {
                self.taken[seat] = Some(site);
                return true;
            }
        }
        false
    }

    /// How many seats of each share are free.
    fn lacking(&self) -> Vec<(Among, u8)> {
        let mut lacking: Vec<(Among, u8)> = Vec::new();
        for (share, _) in self.shares.iter().zip(&self.taken).filter(|(_, taken)| taken.is_none()) {
            match lacking.iter_mut().find(|(among, _)| *among == share.among) {
                Some((_, count)) => *count += 1,
                None => lacking.push((share.among.clone(), 1)),
            }
        }
        lacking
    }
}

impl fmt::Display for Among {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Among::In(selector) => write!(f, "in {selector}"),
            Among::Elsewhere => f.write_str("elsewhere"),
            Among::Anywhere => f.write_str("anywhere"),
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares = self.shares.iter().map(|share| format!("{} {}", share.copies, share.among));
        let never = self.never.iter().map(|selector| format!("never {selector}"));
        f.write_str(&shares.chain(never).collect::<Vec<_>>().join(", "))
    }
}

impl FromStr for Placement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Placement, Error> {
        let mut placement = Placement { shares: Vec::new(), never: Vec::new() };
        for part in text.split(',') {
            let words: Vec<&str> = part.split_whitespace().collect();
            let copies = words.first().and_then(|word| word.parse::<u8>().ok()).filter(|copies| *copies > 0);
            match (words.as_slice(), copies) {
                (["never", selector], _) => placement.never.push(selector.parse()?),
                ([_, "in", selector], Some(copies)) => {
                    placement.shares.push(Share { copies, among: Among::In(selector.parse()?) });
                }
                ([_, "elsewhere"], Some(copies)) => placement.shares.push(Share { copies, among: Among::Elsewhere }),
                ([_, "anywhere"], Some(copies)) => placement.shares.push(Share { copies, among: Among::Anywhere }),
                _ => return Err(wrong(&format!("{:?} is no part of a rule of placement", part.trim()))),
            }
        }
        if placement.shares.is_empty() {
            return Err(wrong(&format!("{text:?} asks for no copy")));
        }
        if placement.shares.len() + placement.never.len() > PARTS_MAX {
            return Err(wrong(&format!("a rule has at most {PARTS_MAX} parts")));
        }
        if placement.copies() > COPIES_OF_VOLUME_MAX {
            return Err(wrong(&format!(
                "a volume has at most {COPIES_OF_VOLUME_MAX} copies, and {text:?} asks for {}",
                placement.copies()
            )));
        }
        Ok(placement)
    }
}

fn wrong(what: &str) -> Error {
    let text = format!(
        "{what}: write how many copies go where, the owner's among them, as in \"2 in eu, 1 elsewhere, never cloud-3\" (words are providers or \
         labels of nodes; `eu+ssd` means both)"
    );
    Error::new(ErrorKind::InvalidRequest, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn site(id: u64, provider: &str, labels: &[&str]) -> Site {
        let labels = labels.iter().map(|label| label.parse().expect("a label")).collect();
        Site { id: NodeId(id), provider: provider.parse().expect("a name"), labels, is_up: true, load: 0 }
    }

    /// Two nodes in each of two providers in the EU, one in the US, one in Asia.
    fn world() -> Vec<Site> {
        vec![
            site(1, "hetzner", &["eu", "ssd"]),
            site(2, "hetzner", &["eu"]),
            site(3, "ovh", &["eu", "ssd"]),
            site(4, "ovh", &["eu"]),
            site(5, "aws", &["us", "ssd"]),
            site(6, "ali", &["asia"]),
        ]
    }

    fn rule(text: &str) -> Placement {
        text.parse().expect("is a rule")
    }

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn held(replicas: &[u64], joining: &[u64]) -> Held {
        Held { replicas: ids(replicas), joining: ids(joining) }
    }

    /// Some nodes, each at its own provider, one of them leaving.
    fn small_world(nodes: u64, leaving: u64) -> Vec<Site> {
        let labels = |id| if id == leaving { &[LEAVING][..] } else { &[] };
        (1..=nodes).map(|id| site(id, &format!("p{id}"), labels(id))).collect()
    }

    #[test]
    fn rules_read_back_as_they_are_written() {
        for text in ["2 in eu, 1 elsewhere, never x", "3 anywhere", "1 in eu+ssd, 2 in hetzner, never asia, never aws"]
        {
            assert_eq!(rule(text).to_string(), text);
        }
        assert_eq!(rule("  2   in ssd+eu ,1 elsewhere").to_string(), "2 in eu+ssd, 1 elsewhere");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_an_example() {
        for text in [
            "",
            "2",
            "0 in eu",
            "in eu",
            "two in eu",
            "2 in",
            "2 in eu us",
            "never x",
            "2 in eu,",
            "-1 in eu",
            "300 in eu",
            "2 in a/b",
        ] {
            let refused = text.parse::<Placement>().expect_err(text);
            assert_eq!(refused.kind(), ErrorKind::InvalidRequest, "{text}");
        }
        assert!(
            "9 in eu, 9 elsewhere".parse::<Placement>().expect_err("too many").message().contains("at most 16 copies")
        );
        assert!("never x".parse::<Placement>().expect_err("none").message().contains("2 in eu, 1 elsewhere"));
    }

    #[test]
    fn copies_go_to_providers_that_have_none() {
        let plan = rule("2 in eu, 1 elsewhere").plan(&world(), NodeId(1), &held(&[], &[]));
        assert_eq!(plan, Plan { add: ids(&[3, 5]), ..Plan::default() });
        let plan = rule("2 in eu, 1 elsewhere, never aws").plan(&world(), NodeId(1), &held(&[2], &[]));
        assert_eq!(
            plan,
            Plan { add: ids(&[6]), ..Plan::default() },
            "what is there stays, though spread would be better"
        );
    }

    #[test]
    fn what_is_too_much_or_forbidden_is_surplus_but_never_the_owner() {
        let plan = rule("2 in eu").plan(&world(), NodeId(4), &held(&[1, 3, 5], &[]));
        assert_eq!(plan.surplus, ids(&[3, 5]));
        let plan = rule("2 in eu, never hetzner").plan(&world(), NodeId(1), &held(&[3], &[]));
        assert_eq!(plan, Plan { add: ids(&[4]), owner_is_misplaced: true, ..Plan::default() });
    }

    #[test]
    fn what_no_node_can_hold_is_lacking_and_a_node_that_is_down_gets_nothing() {
        let among = |text: &str| rule(&format!("1 {text}")).shares[0].among.clone();
        let mut world = world();
        world[2].is_up = false;
        let plan = rule("3 in ssd, 2 in asia").plan(&world, NodeId(1), &held(&[], &[]));
        assert_eq!(plan.add, ids(&[5, 6]));
        assert_eq!(plan.lacking, [(among("in ssd"), 1), (among("in asia"), 1)]);
        let kept = rule("2 in ssd").plan(&world, NodeId(1), &held(&[3], &[]));
        assert_eq!(kept, Plan::default(), "a copy that is there counts, also while its node is down");
    }

    #[test]
    fn who_can_be_in_two_places_makes_room_for_who_cannot() {
        let plan = rule("1 in eu, 1 in hetzner+ssd").plan(&world(), NodeId(1), &held(&[4], &[]));
        assert_eq!(plan, Plan::default());
    }

    /// A node was to be removed that had the only complete replica. What was added by hand in its place was called the one too many, for its higher
    /// number, and given up at once; and a copy that was given up at the node went there again, as nobody had fewer.
    #[test]
    fn a_node_that_is_leaving_keeps_its_copy_until_another_one_has_its_place() {
        let rule = rule("2 anywhere");
        let plan = rule.plan(&small_world(3, 2), NodeId(1), &held(&[2], &[]));
        assert_eq!(plan, Plan { add: ids(&[3]), surplus: ids(&[2]), ..Plan::default() });
        let added = rule.plan(&small_world(3, 2), NodeId(1), &held(&[2, 3], &[3]));
        assert_eq!(added, Plan { surplus: ids(&[2]), ..Plan::default() });
        let given_up = rule.plan(&small_world(3, 2), NodeId(1), &held(&[], &[]));
        assert_eq!(given_up.add, ids(&[3]), "though the one that is leaving has fewer");
        let nobody_else = rule.plan(&small_world(2, 2), NodeId(1), &held(&[2], &[]));
        assert_eq!(nobody_else, Plan::default());
    }

    /// A copy that had been added to be safe while another node was down was given up for the one that was down, for its higher number.
    #[test]
    fn complete_copies_within_reach_go_before_others() {
        let surplus = |up: &[u64], joining: &[u64]| {
            let world: Vec<Site> =
                small_world(4, 0).into_iter().map(|site| Site { is_up: up.contains(&site.id.0), ..site }).collect();
            rule("2 anywhere").plan(&world, NodeId(1), &held(&[2, 3], joining)).surplus
        };
        assert_eq!(surplus(&[1, 2, 3, 4], &[]), ids(&[3]));
        assert_eq!(surplus(&[1, 2, 3, 4], &[2]), ids(&[2]));
        assert_eq!(surplus(&[1, 3, 4], &[]), ids(&[2]));
        assert_eq!(surplus(&[1, 3, 4], &[3]), ids(&[3]), "one that has everything comes back with it");
        assert_eq!(surplus(&[1, 3, 4], &[2, 3]), ids(&[2]));
    }

    proptest! {
        /// What a plan asks for, done, leaves nothing to be done; and no more copies than asked for.
        #[test]
        fn a_plan_that_was_carried_out_is_empty(
            parts in prop::collection::vec((1..3u8, prop::sample::select(vec!["in eu", "in ssd", "in us", "in hetzner", "elsewhere", "anywhere"])), 1..4),
            never in prop::option::of(prop::sample::select(vec!["asia", "ovh", "eu+ssd"])),
            owner in 1..7u64,
            replicas in prop::collection::btree_set(1..7u64, 0..5),
            down in prop::collection::btree_set(1..7u64, 0..3),
            leaving in prop::option::of(1..7u64),
            joining in prop::collection::btree_set(1..7u64, 0..3),
        ) {
            let mut text: Vec<String> = parts.iter().map(|(copies, among)| format!("{copies} {among}")).collect();
            text.extend(never.map(|never| format!("never {never}")));
            let rule = rule(&text.join(", "));
            let mut world: Vec<Site> = world().into_iter().map(|site| Site { is_up: !down.contains(&site.id.0), ..site }).collect();
            for site in world.iter_mut().filter(|site| Some(site.id.0) == leaving) {
                site.labels.insert(LEAVING.parse().expect("a label"));
            }
            let owner = NodeId(owner);
            let replicas: BTreeSet<NodeId> = replicas.into_iter().map(NodeId).filter(|id| *id != owner).collect();
            let joining = joining.into_iter().map(NodeId).filter(|id| replicas.contains(id)).collect();
            let mut held = Held { replicas, joining };
            let first = rule.plan(&world, owner, &held);
            prop_assert!(first.add.iter().all(|id| !down.contains(&id.0) && Some(id.0) != leaving));
            held.replicas.extend(&first.add);
            held.replicas.retain(|id| !first.surplus.contains(id));
            held.joining.clear();
            let second = rule.plan(&world, owner, &held);
            prop_assert!(second.add.is_empty() && second.surplus.is_empty(), "{rule}: {first:?}, then {second:?}");
            let misplaced = usize::from(second.owner_is_misplaced);
            prop_assert!(held.replicas.len() + 1 - misplaced <= rule.copies());
        }
    }
}
