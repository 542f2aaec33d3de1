//! What people call the nodes.
//!
//! Owns the way from a node's id, by which nodes know each other, to its name, which is what an error or a line of the log says of it. It is learnt
//! from the metadata, and before there is any from whom this node was told to turn to. A node that nobody has told of is called by its number,
//! as `#9`, which is no name. What is learnt is never needed to do anything: only to say it.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use client_lib::NodeId;
use consensus::MetaState;

/// The names of the nodes that were heard of, those included that were removed: one for each node that the cluster ever had, as in the metadata.
#[derive(Debug, Default)]
pub struct Names {
    known: RwLock<BTreeMap<NodeId, String>>,
}

impl Names {
    /// Learns the names in `state`. A removed node's may be another one's by now, so it is said that it was removed.
    pub fn learn(&self, state: &MetaState) {
        let present = state.nodes().map(|node| (node.id, node.name.to_string()));
        let removed = state.access().removed_nodes().map(|node| (node.id, format!("{} (removed)", node.name)));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        for (node, name) in present.chain(removed) {
            if known.get(&node) != Some(&name) {
                known.insert(node, name);
            }
        }
    }

    /// `node` is called so, as long as the metadata says nothing else.
    pub fn note(&self, node: NodeId, name: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(node).or_insert_with(|| name.to_owned());
    }

    /// What `node` is called; its number, as long as it is not known.
    #[must_use]
    pub fn of(&self, node: NodeId) -> String {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&node).cloned().unwrap_or_else(|| format!("#{node}"))
    }
}

#[cfg(test)]
mod tests {
    use consensus::Command;

    use super::*;

    #[test]
    fn a_node_is_called_by_its_name_from_when_that_is_known_and_by_its_number_before() {
        let names = Names::default();
        assert_eq!(names.of(NodeId(9)), "#9");
        names.note(NodeId(9), "c");
        assert_eq!(names.of(NodeId(9)), "c");
        let mut state = MetaState::default();
        for (log_index, id, name) in [(1, 1, "a"), (2, 9, "cloud-c")] {
            let register = Command::RegisterNode {
                id: NodeId(id),
                name: name.parse().expect("a name"),
                provider: "p".parse().expect("a name"),
                address: format!("127.0.0.1:{id}"),
            };
            state.apply(log_index, register).into_result().expect("is applied");
        }
        names.learn(&state);
        assert_eq!([1, 9, 2].map(|id| names.of(NodeId(id))), ["a", "cloud-c", "#2"]);
        names.note(NodeId(9), "c");
        assert_eq!(names.of(NodeId(9)), "cloud-c", "the metadata knows better");
        let remove = Command::RemoveNode { node: NodeId(9), was_lost: true, at_ms: 1 };
        state.apply(3, remove).into_result().expect("is applied");
        names.learn(&state);
        assert_eq!(names.of(NodeId(9)), "cloud-c (removed)");
    }
}
