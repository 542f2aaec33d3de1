//! What nodes and clients prove themselves with, and what a certificate says.

use std::fmt;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{
    CA_CERTIFICATE_FILE, ClusterId, NODE_KEY_FILE, PkiError, ca_cluster, certificate_from_pem, fingerprint, read,
    write_atomically,
};
use crate::types::{ClientName, NodeId};

/// The certificate of a node, in the directory of its identity.
pub const NODE_CERTIFICATE_FILE: &str = "node.crt";

/// What TLS needs of either: certificate and key, and the CA that it trusts.
pub(crate) struct Credentials {
    pub(super) cluster: ClusterId,
    pub(super) ca: CertificateDer<'static>,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Clone for Credentials {
    fn clone(&self) -> Credentials {
        Credentials {
            cluster: self.cluster.clone(),
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl Credentials {
    /// From the three PEM texts; the certificate's names are not looked at.
    pub(super) fn from_pem(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<Credentials, PkiError> {
        let ca = certificate_from_pem(ca_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| PkiError::Parse { what: "key", reason: error.to_string() })?;
        Ok(Credentials { cluster: ca_cluster(&ca)?, certificate: certificate_from_pem(certificate_pem)?, ca, key })
    }

    pub(crate) fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The certificate and the CA's: a joining node learns the CA from the chain.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.ca.clone()]
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

/// What a node proves itself with: its certificate and key, and the CA that it trusts.
#[derive(Clone)]
pub struct NodeIdentity {
    node: NodeId,
    credentials: Credentials,
    pems: [String; 3],
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("node", &self.node)
            .field("cluster", self.cluster())
            .finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// From the three PEM texts.
    ///
    /// # Errors
    /// [`PkiError::Parse`]; [`PkiError::WrongCluster`] when the CA is another cluster's.
    pub fn from_pem(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<NodeIdentity, PkiError> {
        let credentials = Credentials::from_pem(ca_pem, certificate_pem, key_pem)?;
        let node = certificate_node(&credentials.certificate, &credentials.cluster)?;
        Ok(NodeIdentity {
            node,
            credentials,
            pems: [ca_pem.to_owned(), certificate_pem.to_owned(), key_pem.to_owned()],
        })
    }

    /// Reads `ca.crt`, `node.crt` and `node.key`.
    ///
    /// # Errors
    /// [`PkiError::Io`], [`PkiError::Parse`], [`PkiError::WrongCluster`].
    pub fn load(dir: &Path) -> Result<NodeIdentity, PkiError> {
        let file = |name| read(&dir.join(name));
        NodeIdentity::from_pem(&file(CA_CERTIFICATE_FILE)?, &file(NODE_CERTIFICATE_FILE)?, &file(NODE_KEY_FILE)?)
    }

    /// Writes the three files into `dir`, which must exist; the key with mode 0600.
    ///
    /// # Durability
    /// The files and the directory are synced on return.
    ///
    /// # Errors
    /// [`PkiError::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        let [ca, certificate, key] = &self.pems;
        write_atomically(dir, CA_CERTIFICATE_FILE, ca, 0o644)?;
        write_atomically(dir, NODE_KEY_FILE, key, 0o600)?;
        // Last, so that a certificate is never there without its key.
        write_atomically(dir, NODE_CERTIFICATE_FILE, certificate, 0o644)
    }

    /// The node it names.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The cluster it belongs to.
    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        &self.credentials.cluster
    }

    /// SHA-256 of the CA certificate, in hex.
    #[must_use]
    pub fn ca_fingerprint(&self) -> String {
        fingerprint(&self.credentials.ca)
    }

    /// The CA certificate, as text.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pems[0]
    }

    #[cfg(test)]
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.credentials.certificate
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }
}

/// Whom a certificate of the cluster names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateHolder {
    /// A node: it may take part in everything.
    Node(NodeId),
    /// A client: it may do what the metadata says ([`crate::rights`]).
    Client(ClientName),
}

/// The node that `certificate` names, which must be of `cluster`. Checks no signature: TLS has done so.
///
/// # Errors
/// [`PkiError::Parse`], also when it names a client; [`PkiError::WrongCluster`].
pub fn certificate_node(certificate: &CertificateDer<'_>, cluster: &ClusterId) -> Result<NodeId, PkiError> {
    match certificate_holder(certificate, cluster)? {
        CertificateHolder::Node(node) => Ok(node),
        CertificateHolder::Client(name) => Err(PkiError::Parse {
            what: "node certificate",
            reason: format!("it is that of client {name}, and no node's"),
        }),
    }
}

/// Whom `certificate` names, which must be of `cluster`. Checks no signature: TLS has done so.
///
/// # Errors
/// [`PkiError::Parse`], also when it names more than one; [`PkiError::WrongCluster`].
pub fn certificate_holder(
    certificate: &CertificateDer<'_>,
    cluster: &ClusterId,
) -> Result<CertificateHolder, PkiError> {
    let wrong = |reason: String| PkiError::Parse { what: "certificate", reason };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| wrong(error.to_string()))?;
    let names = parsed.subject_alternative_name().map_err(|error| wrong(error.to_string()))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut found = None;
    for name in names {
        let x509_parser::extensions::GeneralName::URI(uri) = name else {
            continue;
        };
        let Some((of, holder)) = uri.strip_prefix("helio://").and_then(|rest| rest.split_once('/')) else {
            continue;
        };
        if of != cluster.as_str() {
            return Err(PkiError::WrongCluster { found: of.to_owned(), expected: cluster.to_string() });
        }
        let holder = match holder.split_once('/') {
            Some(("node", node)) => node.parse().ok().map(|node| CertificateHolder::Node(NodeId(node))),
            Some(("client", name)) => name.parse().ok().map(CertificateHolder::Client),
            _ => None,
        };
        let holder = holder.ok_or_else(|| wrong(format!("{uri:?} names neither a node nor a client")))?;
        if found.replace(holder).is_some() {
            return Err(wrong("it names more than one node or client".to_owned()));
        }
    }
    found.ok_or_else(|| wrong("it has no helio:// name".to_owned()))
}
