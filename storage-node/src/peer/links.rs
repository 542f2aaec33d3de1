//! What this node knows of its links to others: what it has sent over each.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use client_lib::NodeId;

use crate::propagation::freight::Freight;

/// One direction between this node and another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// What this node has sent there, of all volumes, since it was started.
    pub freight: Freight,
}

/// The links of a node.
#[derive(Debug, Default)]
pub struct Links {
    links: Mutex<BTreeMap<NodeId, Link>>,
}

impl Links {
    /// Blocks were sent to `node`, or need not be.
    pub fn carried(&self, node: NodeId, freight: Freight) {
        self.with(node, |link| link.freight += freight);
    }

    /// What is known of the link to `node`.
    #[must_use]
    pub fn link(&self, node: NodeId) -> Link {
        self.with(node, |link| *link)
    }

    fn with<T>(&self, node: NodeId, f: impl FnOnce(&mut Link) -> T) -> T {
        f(self.links.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default())
    }
}
