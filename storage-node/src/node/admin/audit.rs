//! What administrators have done, at every node.

use std::time::Duration;

use client_lib::wire::admin::{AuditEntry, AuditList};
use client_lib::{Error, ErrorKind, NodeId};
use futures_util::future::join_all;

use super::NodeAdmin;
use crate::peer::message::AdminForward;

/// How long a node may take to tell.
const PATIENCE: Duration = Duration::from_secs(3);

impl NodeAdmin {
    /// The newest acts at this node.
    pub(super) fn audit_here(&self, limit: usize) -> Result<Vec<AuditEntry>, Error> {
        let Some(audit) = self.audit.get() else { return Ok(Vec::new()) };
        audit
            .newest(limit)
            .map_err(|error| Error::new(ErrorKind::Internal, "what administrators did cannot be read").caused_by(error))
    }

    /// Those of all nodes, by time; nodes that do not tell are named.
    pub(super) async fn audit_list(&self, limit: usize) -> Result<AuditList, Error> {
        let state = self.meta.state();
        let of = |node: NodeId| async move {
            if node == self.this.id {
                return self.audit_here(limit);
            }
            let late = |_| Err(Error::new(ErrorKind::Unavailable, format!("no answer within {PATIENCE:?}")));
            tokio::time::timeout(PATIENCE, self.ask(node, AdminForward::Audit { limit })).await.unwrap_or_else(late)
        };
        let told = join_all(state.nodes().map(|node| of(node.id))).await;
        let mut list = AuditList::default();
        for (node, told) in state.nodes().zip(told) {
            match told {
                Ok(entries) => list.entries.extend(entries),
                Err(error) => {
                    tracing::debug!(node = %node.name, %error, "what was asked of it is not told");
                    list.silent.push(node.name.to_string());
                }
            }
        }
        list.entries.sort_by_key(|entry| entry.at_ms);
        Ok(list)
    }
}
