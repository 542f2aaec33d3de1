//! Members: who they are, where they are reached, how often they started. How they are removed is in [`super::access`].

use client_lib::policy::LinkPolicy;
use client_lib::{NodeId, NodeName, ProviderId};

use super::{MetaState, Node};
use crate::command::{Refusal, Response};

impl MetaState {
    pub(super) fn register_node(
        &mut self,
        id: NodeId,
        name: NodeName,
        provider: ProviderId,
        address: String,
    ) -> Result<Response, Refusal> {
        self.require_not_removed(id)?;
        if let Some(holder) = self.node_named(&name).map(|node| node.id).filter(|holder| *holder != id) {
            return Err(Refusal::NodeNameTaken { name, holder });
        }
        let known = self.nodes.get(&id);
        if let Some(known) = known
            && (known.name != name || known.provider != provider)
        {
            return Err(Refusal::NodeIdTaken { node: id, name: known.name.clone() });
        }
        let (incarnation, key) = known.map_or((0, None), |node| (node.incarnation, node.key));
        self.nodes.insert(id, Node { id, name, provider, address, incarnation, key });
        Ok(Response::Registered { node: id })
    }

    pub(super) fn join_node(
        &mut self,
        log_index: u64,
        name: NodeName,
        provider: ProviderId,
        address: String,
        key: [u8; 32],
    ) -> Result<Response, Refusal> {
        self.require_new_key(key)?;
        let id = match self.node_named(&name) {
            // The same name and key is a repeated proposal of the same node; it may have been moved meanwhile.
            Some(known) if known.key == Some(key) && known.provider == provider => known.id,
            Some(known) => return Err(Refusal::NodeNameTaken { name, holder: known.id }),
            None => self.free_id(log_index),
        };
        let incarnation = self.nodes.get(&id).map_or(0, |node| node.incarnation);
        self.nodes.insert(id, Node { id, name, provider, address, incarnation, key: Some(key) });
        Ok(Response::Registered { node: id })
    }

    fn node_named(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.values().find(|node| node.name == *name)
    }

    /// The log's index: no other entry has it. Ids given by hand at bootstrap are small; step over them, and over those of nodes that
    /// were removed.
    fn free_id(&self, log_index: u64) -> NodeId {
        let members = self.nodes.last().map(|(id, _)| id.0);
        let removed = self.access.removed_nodes().map(|node| node.id.0).max();
        NodeId(log_index.max(members.max(removed).map_or(0, |newest| newest + 1)))
    }

    pub(super) fn set_link(&mut self, from: NodeId, to: NodeId, policy: LinkPolicy) -> Result<Response, Refusal> {
        if let Some(stranger) = [from, to].into_iter().find(|node| !self.nodes.contains_key(node)) {
            return Err(Refusal::UnknownNode(stranger));
        }
        match policy == LinkPolicy::default() {
            true => drop(self.links.remove(&(from, to))),
            false => self.links.insert((from, to), policy),
        }
        Ok(Response::PolicySet)
    }

    pub(super) fn node_started(&mut self, node: NodeId) -> Result<Response, Refusal> {
        self.require_not_removed(node)?;
        let member = self.nodes.get_mut(&node).ok_or(Refusal::UnknownNode(node))?;
        member.incarnation += 1;
        let incarnation = member.incarnation;
        self.drop_unmade_of(node);
        self.forget_step_downs_of(node);
        Ok(Response::Started { incarnation })
    }
}
