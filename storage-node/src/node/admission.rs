//! Lets nodes join: checks the token's secret, has consensus give an id, signs the certificate. Signs it anew for members, too, before it ends and
//! after it has (docs/decisions/0048).
//!
//! Runs at the node that holds the cluster's authority. The secret and the authority are read anew for each request, so that renewing it
//! needs no restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client_lib::clock::Clock;
use client_lib::pki::{ClusterAuthority, JoinSecret, PkiError, Validity};
use client_lib::wire::join::{Contact, JoinGrant, JoinReply, JoinRequest};
use client_lib::{Error, ErrorKind, NodeId};
use consensus::{Command, MetaRaft, MetaState, Node, Response};
use rustls::pki_types::CertificateDer;

use super::METADATA_DEADLINE;
use super::admin::out_of_turn;

/// The cluster's authority, at a node that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityPlace {
    /// The directory of its key and of the secret of join tokens.
    pub directory: PathBuf,
    /// For how long the certificates of nodes count that it signs.
    pub node_lifetime: Duration,
}

/// How long it is waited for a leader before a member's certificate is signed by what is known here. All members' may have ended: then nobody
/// leads until they are signed.
const LEADER_PATIENCE: Duration = Duration::from_secs(3);

/// Answers requests to join, and for certificates.
pub struct Admission {
    /// `None` at a node that does not hold it.
    authority: Option<AuthorityPlace>,
    meta: MetaRaft,
    clock: Arc<dyn Clock>,
}

impl Admission {
    /// Admits with this authority.
    #[must_use]
    pub fn new(authority: Option<AuthorityPlace>, meta: MetaRaft, clock: Arc<dyn Clock>) -> Admission {
        Admission { authority, meta, clock }
    }

    /// Whether it can sign.
    #[must_use]
    pub fn holds_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// Answers a request. Safe to repeat: the same name and key are given the same id. Who shows the certificate of a member with it, signed by
    /// its key, is that member, whose certificate has ended.
    ///
    /// # Errors
    /// `InvalidRequest` for a wrong secret or request, `AlreadyExists` when the name is another node's,
    /// `Unavailable` when the cluster has no leader.
    pub async fn answer(&self, request: JoinRequest, former: Bytes) -> JoinReply {
        let place = self.place()?;
        let secret = match JoinSecret::load(&place.directory) {
            // `helio up` has an authority, and lets nobody join.
            Err(PkiError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            loaded => loaded.map_err(unusable)?,
        };
        let counts = |secret: &JoinSecret| secret.counts_at(self.clock.unix_ms());
        if !secret.is_some_and(|secret| secret.matches(&request.secret) && counts(&secret)) {
            tracing::warn!(name = %request.name, address = %request.address, "a node with a wrong token was turned away");
            let message = "the token is not valid, is too old, or was renewed since or withdrawn; `helio cluster token` prints the one that \
                           counts at the first node";
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let authority = ClusterAuthority::load(&place.directory).map_err(unusable)?;
        let node = match former.is_empty() {
            true => self.join(&authority, &request).await?,
            false => self.come_back(&authority, &request, former).await?,
        };
        let certificate_pem = authority.sign(node, &request.request_pem, self.validity(place)).map_err(invalid)?;
        Ok(JoinGrant {
            node,
            ca_pem: authority.certificate_pem().to_owned(),
            certificate_pem,
            contacts: self.contacts(node),
        })
    }

    async fn join(&self, authority: &ClusterAuthority, request: &JoinRequest) -> Result<NodeId, Error> {
        let command = Command::JoinNode {
            name: request.name.clone(),
            provider: request.provider.clone(),
            address: request.address.to_string(),
            key: authority.request_key(&request.request_pem).map_err(invalid)?,
        };
        let node = match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::Registered { node } => node,
            other => return Err(out_of_turn(&other)),
        };
        tracing::info!(name = %request.name, id = %node, address = %request.address, "a node joined");
        Ok(node)
    }

    /// The member that asks, whose certificate has ended or does not count yet.
    async fn come_back(
        &self,
        authority: &ClusterAuthority,
        request: &JoinRequest,
        former: Bytes,
    ) -> Result<NodeId, Error> {
        let former = CertificateDer::from(former.to_vec());
        let node = authority.holder_of(&former, &request.request_pem).map_err(invalid)?;
        let state = match self.meta.linearizable(LEADER_PATIENCE).await {
            Ok(state) => state,
            // What is known here: a removed node is let in nowhere, whatever it has signed.
            Err(_) => self.meta.state(),
        };
        require_member(&state, node)?;
        let name = state.node(node).map(|node| node.name.to_string()).unwrap_or_default();
        if name != request.name.as_str() {
            let text = format!("the certificate is that of node {name}, and the settings name {}", request.name);
            return Err(Error::new(ErrorKind::InvalidRequest, text));
        }
        tracing::warn!(%name, id = %node, address = %request.address, "a member whose certificate did not count was given another one");
        Ok(node)
    }

    /// A certificate for the key of this request, for a member that asks with one that counts.
    ///
    /// # Errors
    /// `NotFound` at a node that does not hold the authority; `InvalidRequest` for a node that is no member (any more) and for what is no
    /// request; `Unavailable` when the cluster has no leader.
    pub async fn renew(&self, node: NodeId, request_pem: &str) -> Result<String, Error> {
        self.place()?;
        self.signed(node, request_pem, &*self.meta.linearizable(METADATA_DEADLINE).await?)
    }

    /// As [`renew`](Self::renew), for a member that may be let in by nobody until it is done: if no leader answers, by what is known here.
    ///
    /// # Errors
    /// As [`renew`](Self::renew), but for `Unavailable`.
    pub async fn renew_by_what_is_known(&self, node: NodeId, request_pem: &str) -> Result<String, Error> {
        let state = match self.meta.linearizable(LEADER_PATIENCE).await {
            Ok(state) => state,
            Err(_) => self.meta.state(),
        };
        self.signed(node, request_pem, &state)
    }

    fn signed(&self, node: NodeId, request_pem: &str, state: &MetaState) -> Result<String, Error> {
        let place = self.place()?;
        require_member(state, node)?;
        let authority = ClusterAuthority::load(&place.directory).map_err(unusable)?;
        let validity = self.validity(place);
        let certificate = authority.sign(node, request_pem, validity).map_err(invalid)?;
        tracing::info!(id = %node, until = %validity, "a member's certificate was renewed");
        Ok(certificate)
    }

    fn place(&self) -> Result<&AuthorityPlace, Error> {
        self.authority.as_ref().ok_or_else(|| {
            let message = "this node does not admit others; use the token as the first node printed it";
            Error::new(ErrorKind::NotFound, message)
        })
    }

    fn validity(&self, place: &AuthorityPlace) -> Validity {
        Validity::starting(self.clock.unix_ms(), place.node_lifetime)
    }

    fn contacts(&self, except: NodeId) -> Vec<Contact> {
        let state = self.meta.state();
        let others = state.nodes().filter(|node| node.id != except);
        let contact =
            |node: &Node| Some(Contact { node: node.id, name: node.name.clone(), address: node.address.parse().ok()? });
        others.filter_map(contact).collect()
    }
}

/// Refuses whom the metadata does not know, or not any more.
fn require_member(state: &MetaState, node: NodeId) -> Result<(), Error> {
    let text = match (state.access().removed(node), state.node(node)) {
        (Some(removed), _) => format!("node {} was removed from the cluster: it is given no certificate", removed.name),
        (None, None) => format!("node {node} is no member of the cluster: it is given no certificate"),
        (None, Some(_)) => return Ok(()),
    };
    tracing::warn!(id = %node, "{text}");
    Err(Error::new(ErrorKind::InvalidRequest, text))
}

fn invalid(error: PkiError) -> Error {
    Error::new(ErrorKind::InvalidRequest, "the request cannot be signed").caused_by(error)
}

fn unusable(error: PkiError) -> Error {
    Error::new(ErrorKind::Internal, "the cluster's authority cannot be used").caused_by(error)
}
