//! TLS over TCP between nodes and clients, by the certificates that they have for QUIC: for the admin API. Only the settings; who imports a
//! TLS stream is for the layers above.
//!
//! TLS 1.3 both ways. The server demands a certificate of the cluster, and the client checks that it reached the node that it meant. Nothing is
//! resumed: a certificate is looked at in every connection, and the one is shown that the identity has then.

use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::{ClientIdentity, ClusterId, Credentials, NodeIdentity, PkiError, provider, server_name};
use crate::types::NodeId;

/// For a node that answers whoever has a certificate of its cluster; what that is worth is to be looked at.
///
/// # Errors
/// [`PkiError::Parse`] when the certificates cannot be used for TLS.
pub fn node_server(identity: &NodeIdentity) -> Result<ServerConfig, PkiError> {
    let (credentials, provider) = (identity.credentials(), Arc::new(provider()));
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&credentials)?), provider.clone());
    let verifier = verifier.build().map_err(unusable)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(credentials.shown());
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// For a client that calls nodes, each by its [`node_name`].
///
/// # Errors
/// As [`node_server`].
pub fn client_of_nodes(identity: &ClientIdentity) -> Result<ClientConfig, PkiError> {
    let (credentials, provider) = (identity.credentials(), Arc::new(provider()));
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(&credentials)?), provider.clone());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_webpki_verifier(verifier.build().map_err(unusable)?)
        .with_client_cert_resolver(credentials.shown());
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The name by which TLS knows a node of a cluster.
///
/// # Errors
/// [`PkiError::ClusterId`], which no cluster that exists gives.
pub fn node_name(cluster: &ClusterId, node: NodeId) -> Result<ServerName<'static>, PkiError> {
    ServerName::try_from(server_name(cluster, node)).map_err(|_| PkiError::ClusterId(cluster.to_string()))
}

fn roots(credentials: &Credentials) -> Result<RootCertStore, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(credentials.ca().clone()).map_err(unusable)?;
    Ok(roots)
}

fn unusable(error: impl std::fmt::Display) -> PkiError {
    PkiError::Parse { what: "certificate", reason: format!("TLS cannot use it: {error}") }
}
