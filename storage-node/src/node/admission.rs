//! Lets nodes join: checks the token's secret, has consensus give an id, signs the certificate.
//!
//! Runs at the node that holds the cluster's authority. The secret is read anew for each request, so that renewing it
//! needs no restart.

use std::path::PathBuf;

use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::{ClusterAuthority, JoinSecret, PkiError};
use client_lib::wire::join::{Contact, JoinGrant, JoinReply, JoinRequest};
use client_lib::{Error, ErrorKind, NodeId};
use consensus::{Command, MetaRaft, Node, Response};

use super::METADATA_DEADLINE;
use super::admin::out_of_turn;

/// Answers requests to join.
pub struct Admission {
    /// Where the authority's key and the secret are; `None` at a node that does not hold them.
    authority: Option<PathBuf>,
    meta: MetaRaft,
}

impl Admission {
    /// Admits with the authority in this directory.
    #[must_use]
    pub fn new(authority: Option<PathBuf>, meta: MetaRaft) -> Admission {
        Admission { authority, meta }
    }

    /// Answers a request. Safe to repeat: the same name and key are given the same id.
    ///
    /// # Errors
    /// `InvalidRequest` for a wrong secret or request, `AlreadyExists` when the name is another node's,
    /// `Unavailable` when the cluster has no leader.
    pub async fn answer(&self, request: JoinRequest) -> JoinReply {
        let Some(directory) = &self.authority else {
            let message = "this node does not admit others; use the token as the first node printed it";
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        };
        let secret = JoinSecret::load(directory).map_err(unusable)?;
        let counts = |secret: &JoinSecret| secret.counts_at(SystemClock::new().unix_ms());
        if !secret.is_some_and(|secret| secret.matches(&request.secret) && counts(&secret)) {
            tracing::warn!(name = %request.name, address = %request.address, "a node with a wrong token was turned away");
            let message = "the token is not valid, is too old, or was renewed since or withdrawn; `helio cluster token` prints the one that \
                           counts at the first node";
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let authority = ClusterAuthority::load(directory).map_err(unusable)?;
        let invalid =
            |error: PkiError| Error::new(ErrorKind::InvalidRequest, "the request cannot be signed").caused_by(error);
        let command = Command::JoinNode {
            name: request.name.clone(),
            provider: request.provider,
            address: request.address.to_string(),
            key: authority.request_key(&request.request_pem).map_err(invalid)?,
        };
        let node = match self.meta.propose(command, METADATA_DEADLINE).await?.into_result()? {
            Response::Registered { node } => node,
            other => return Err(out_of_turn(&other)),
        };
        let certificate_pem = authority.sign(node, &request.request_pem).map_err(invalid)?;
        tracing::info!(name = %request.name, id = %node, address = %request.address, "a node joined");
        Ok(JoinGrant {
            node,
            ca_pem: authority.certificate_pem().to_owned(),
            certificate_pem,
            contacts: self.contacts(node),
        })
    }

    fn contacts(&self, except: NodeId) -> Vec<Contact> {
        let state = self.meta.state();
        let others = state.nodes().filter(|node| node.id != except);
        let contact =
            |node: &Node| Some(Contact { node: node.id, name: node.name.clone(), address: node.address.parse().ok()? });
        others.filter_map(contact).collect()
    }
}

fn unusable(error: PkiError) -> Error {
    Error::new(ErrorKind::Internal, "the cluster's authority cannot be used").caused_by(error)
}
