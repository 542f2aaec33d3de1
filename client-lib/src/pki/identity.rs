//! What a node proves itself with.

use std::fmt;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{
    CA_CERTIFICATE_FILE, ClusterId, NODE_KEY_FILE, PkiError, ca_cluster, certificate_from_pem, fingerprint, read,
    write_atomically,
};
use crate::types::NodeId;

const NODE_CERTIFICATE_FILE: &str = "node.crt";

/// What a node proves itself with: its certificate and key, and the CA that it trusts.
pub struct NodeIdentity {
    node: NodeId,
    cluster: ClusterId,
    ca: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    pems: [String; 3],
}

impl Clone for NodeIdentity {
    fn clone(&self) -> NodeIdentity {
        NodeIdentity {
            node: self.node,
            cluster: self.cluster.clone(),
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
            pems: self.pems.clone(),
        }
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").field("node", &self.node).field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// From the three PEM texts.
    ///
    /// # Errors
    /// [`PkiError::Parse`]; [`PkiError::WrongCluster`] when the CA is another cluster's.
    pub fn from_pem(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<NodeIdentity, PkiError> {
        let ca = certificate_from_pem(ca_pem)?;
        let certificate = certificate_from_pem(certificate_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| PkiError::Parse { what: "node key", reason: error.to_string() })?;
        let cluster = ca_cluster(&ca)?;
        let node = certificate_node(&certificate, &cluster)?;
        Ok(NodeIdentity {
            node,
            cluster,
            ca,
            certificate,
            key,
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
        &self.cluster
    }

    /// SHA-256 of the CA certificate, in hex.
    #[must_use]
    pub fn ca_fingerprint(&self) -> String {
        fingerprint(&self.ca)
    }

    /// The CA certificate, as text.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.pems[0]
    }

    #[cfg(test)]
    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The node's certificate and the CA's: a joining node learns the CA from the chain.
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.ca.clone()]
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

/// The node that `certificate` names, which must be of `cluster`. Checks no signature: TLS has done so.
///
/// # Errors
/// [`PkiError::Parse`], [`PkiError::WrongCluster`].
pub fn certificate_node(certificate: &CertificateDer<'_>, cluster: &ClusterId) -> Result<NodeId, PkiError> {
    let wrong = |reason: String| PkiError::Parse { what: "node certificate", reason };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| wrong(error.to_string()))?;
    let names = parsed.subject_alternative_name().map_err(|error| wrong(error.to_string()))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut found = None;
    for name in names {
        let x509_parser::extensions::GeneralName::URI(uri) = name else {
            continue;
        };
        let Some((of, node)) = uri.strip_prefix("helio://").and_then(|rest| rest.split_once("/node/")) else {
            continue;
        };
        if of != cluster.as_str() {
            return Err(PkiError::WrongCluster { found: of.to_owned(), expected: cluster.to_string() });
        }
        let node = node.parse().map_err(|_| wrong(format!("{uri:?} names no node")))?;
        if found.replace(NodeId(node)).is_some() {
            return Err(wrong("it names more than one node".to_owned()));
        }
    }
    found.ok_or_else(|| wrong("it has no helio:// name".to_owned()))
}
