//! Leases of nodes: granted, renewed, found to be out.
//!
//! No clock is read here. Whoever proposes an expiry has waited; what makes it true is that it names the renewal it
//! waited for, so that one which was outrun by another renewal changes nothing, whoever proposed it and however long it
//! was on its way (docs/ownership.md).

use client_lib::NodeId;

use super::{Lease, MetaState};
use crate::command::{Refusal, Response};

impl MetaState {
    /// Refused when the lease was found to be out since the node last had it. So whatever is granted under one number of
    /// lapses was granted before any volume could be taken from the node that it owned under that number. A question of an
    /// earlier process that comes late is granted: it keeps others waiting, and the process that runs does not count on it.
    pub(super) fn renew_lease(&mut self, node: NodeId, lapses: u64, duration_ms: u64) -> Result<Response, Refusal> {
        self.require_not_removed(node)?;
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::UnknownNode(node));
        }
        let lease = self.lease(node);
        if lapses != lease.lapses {
            return Err(Refusal::LeaseLapsed { node, lapses: lease.lapses });
        }
        let renewals = lease.renewals + 1;
        self.leases.insert(node, Lease { renewals, duration_ms, lapses, is_out: false });
        Ok(Response::LeaseGranted { renewals })
    }

    pub(super) fn expire_lease(&mut self, node: NodeId, renewals: u64) -> Result<Response, Refusal> {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::UnknownNode(node));
        }
        let lease = self.lease(node);
        if lease.renewals != renewals {
            return Err(Refusal::LeaseHeld { node, renewals: lease.renewals });
        }
        if !lease.is_out {
            self.leases.insert(node, Lease { lapses: lease.lapses + 1, is_out: true, ..lease });
        }
        Ok(Response::LeaseExpired)
    }
}
