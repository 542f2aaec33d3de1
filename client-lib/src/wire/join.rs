//! What a node without a certificate asks, and what it is given: the messages of
//! [`ServiceId::Join`](super::frame::ServiceId::Join).
//!
//! The asking side has checked the cluster's fingerprint when it connected; the answering side checks the secret.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::types::{NodeId, NodeName, ProviderId};

/// Asks to become a member. Asking again with the same key and name gives the same id.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The secret of the token. Not shown by `Debug`.
    pub secret: String,
    /// What the node is to be called.
    pub name: NodeName,
    /// Its failure domain.
    pub provider: ProviderId,
    /// Where other nodes will reach it.
    pub address: SocketAddr,
    /// The certificate request, signed by the node's key.
    pub request_pem: String,
}

impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest")
            .field("name", &self.name)
            .field("provider", &self.provider)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What makes the asking node a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// Its id, for ever.
    pub node: NodeId,
    /// The CA's certificate.
    pub ca_pem: String,
    /// The node's certificate.
    pub certificate_pem: String,
    /// Members that it can turn to first.
    pub contacts: Vec<Contact>,
}

/// Where a member is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The member.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its address for other nodes.
    pub address: SocketAddr,
}

/// The answer to a [`JoinRequest`].
pub type JoinReply = Result<JoinGrant, Error>;
