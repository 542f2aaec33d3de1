//! Which members vote. Pure.
//!
//! Odd numbers, since an even one tolerates no more losses than the odd one below it; at most [`VOTERS_MAX`], since
//! every vote more is a wait more; spread over providers first, so that the loss of a provider costs as few as
//! possible. Adds voters and never removes one: of an even number that is left when a node was removed, none is told to vote no more. Who
//! is removed is left out by the caller.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::{NodeId, ProviderId};

/// Most voters of a group that grows; more founders than this all vote.
pub const VOTERS_MAX: usize = 5;

/// Who should vote, given who does.
#[must_use]
pub fn voters(members: &BTreeMap<NodeId, ProviderId>, current: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let odd = members.len() - usize::from(members.len().is_multiple_of(2) && !members.is_empty());
    let wanted = odd.min(VOTERS_MAX);
    let mut chosen = current.clone();
    while chosen.len() < wanted {
        let votes = |provider: &ProviderId| chosen.iter().filter(|node| members.get(node) == Some(provider)).count();
        let free = members.iter().filter(|(node, _)| !chosen.contains(node));
        // Of equals the oldest: ids rise.
        let Some((next, _)) = free.min_by_key(|(node, provider)| (votes(provider), **node)) else { break };
        chosen.insert(*next);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(providers: &str) -> BTreeMap<NodeId, ProviderId> {
        let provider = |name: char| name.to_string().parse().expect("a name");
        providers.chars().zip(1..).map(|(name, id)| (NodeId(id), provider(name))).collect()
    }

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn voters_are_odd_in_number_and_spread_over_providers() {
        for (providers, current, expected) in [
            ("", &[][..], &[][..]),
            ("a", &[1], &[1]),
            ("ab", &[1], &[1]),
            ("abc", &[1], &[1, 2, 3]),
            ("aaabc", &[1], &[1, 2, 3, 4, 5]),
            ("aaab", &[1], &[1, 2, 4]),
            ("aaabbbccc", &[1], &[1, 2, 4, 5, 7]),
            ("abcabcabc", &[1, 2, 3], &[1, 2, 3, 4, 5]),
            ("abcd", &[1, 2, 3, 4], &[1, 2, 3, 4]),
        ] {
            assert_eq!(voters(&members(providers), &ids(current)), ids(expected), "{providers}");
        }
    }
}
