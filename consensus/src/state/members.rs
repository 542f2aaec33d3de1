//! Members: who they are, where they are reached, how often they started.

use client_lib::{NodeId, NodeName, ProviderId};

use super::{MetaState, Node};
use crate::command::{Refusal, Response};

impl MetaState {
    pub(super) fn register_node(
        &mut self,
        log_index: u64,
        id: Option<NodeId>,
        name: NodeName,
        provider: ProviderId,
        address: String,
    ) -> Result<Response, Refusal> {
        let named = self.nodes.values().find(|node| node.name == name).map(|node| node.id);
        // The same name without an id is a repeated proposal of the same joining node.
        let id = id.or(named).unwrap_or_else(|| self.free_id(log_index));
        if let Some(holder) = named.filter(|holder| *holder != id) {
            return Err(Refusal::NodeNameTaken { name, holder });
        }
        if let Some(known) = self.nodes.get(&id)
            && (known.name != name || known.provider != provider)
        {
            return Err(Refusal::NodeIdTaken { node: id, name: known.name.clone() });
        }
        let incarnation = self.nodes.get(&id).map_or(0, |node| node.incarnation);
        self.nodes.insert(id, Node { id, name, provider, address, incarnation });
        Ok(Response::Registered { node: id })
    }

    /// The log's index: no other entry has it. Ids given by hand at bootstrap are small; step over them.
    fn free_id(&self, log_index: u64) -> NodeId {
        let above = self.nodes.last_key_value().map_or(0, |(id, _)| id.0 + 1);
        NodeId(log_index.max(above))
    }

    pub(super) fn node_started(&mut self, node: NodeId) -> Result<Response, Refusal> {
        let node = self.nodes.get_mut(&node).ok_or(Refusal::UnknownNode(node))?;
        node.incarnation += 1;
        Ok(Response::Started { incarnation: node.incarnation })
    }
}
