//! What nodes and clients prove themselves with, and what a certificate says.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::renewal::{self, SEED_SIZE};
use super::shown::{Pair, Shown};
use super::validity::check_signed;
use super::{
    CA_CERTIFICATE_FILE, ClusterId, Fingerprint, KEY, NODE_CERTIFICATE_FILE, NODE_KEY_FILE, PkiError, Validity,
    ca_cluster, certificate_from_pem, fingerprint, hmac_sha256, read, write,
};
use crate::files;
use crate::types::{ClientName, NodeId};

/// What TLS needs of either: the CA that it trusts, and the certificate that it shows. Clones share the certificate: when it is replaced, it is for all.
#[derive(Clone)]
pub(crate) struct Credentials {
    cluster: ClusterId,
    ca: CertificateDer<'static>,
    shown: Arc<Shown>,
}

impl Credentials {
    /// From the three PEM texts; the certificate's names are not looked at.
    pub(super) fn from_pem(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<Credentials, PkiError> {
        let ca = certificate_from_pem(ca_pem)?;
        let pair = Pair::from_pem(certificate_pem, key_pem, &ca)?;
        Ok(Credentials { cluster: ca_cluster(&ca)?, ca, shown: Arc::new(Shown::new(pair)) })
    }

    pub(crate) fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// What is shown in every handshake, as it is then.
    pub(crate) fn shown(&self) -> Arc<Shown> {
        self.shown.clone()
    }

    /// As it is now.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.shown.now().certificate().clone()
    }

    /// As it is now.
    pub(crate) fn validity(&self) -> Validity {
        self.shown.now().validity()
    }

    /// Shows what `other` shows from now on, in every new handshake. It must be of the same authority.
    pub(super) fn replace_by(&self, other: &Credentials) {
        assert_eq!(self.ca, other.ca, "a certificate is replaced by one of the same authority");
        self.shown.replace(other.shown.now());
    }
}

/// What a node proves itself with: its certificate and key, and the CA that it trusts. Clones share the certificate.
#[derive(Clone)]
pub struct NodeIdentity {
    node: NodeId,
    credentials: Credentials,
    ca_pem: String,
    /// What stays when the key is replaced: a restarted node recognises the connections of its former life by it.
    seed: [u8; SEED_SIZE],
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
    /// [`PkiError::Parse`], also when the key is not the certificate's; [`PkiError::WrongCluster`] when the CA is another cluster's.
    pub fn from_pem(ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<NodeIdentity, PkiError> {
        let credentials = Credentials::from_pem(ca_pem, certificate_pem, key_pem)?;
        let pair = credentials.shown.now();
        let node = certificate_node(pair.certificate(), &credentials.cluster)?;
        let seed = hmac_sha256(b"heliotrope reset", pair.secret());
        Ok(NodeIdentity { node, credentials, ca_pem: ca_pem.to_owned(), seed })
    }

    /// Reads `ca.crt`, and `node.crt` and `node.key` or what is about to replace them. Others may do so while the node that has them renews them.
    ///
    /// # Errors
    /// [`PkiError::Io`]; [`PkiError::File`], which names the one that is damaged.
    pub fn load(dir: &Path) -> Result<NodeIdentity, PkiError> {
        // Of files that are being replaced, one may be read new and one old. They are not replaced twice within that.
        NodeIdentity::read(dir).or_else(|_| NodeIdentity::read(dir)).or_else(|_| NodeIdentity::read(dir))
    }

    fn read(dir: &Path) -> Result<NodeIdentity, PkiError> {
        let [ca_path, certificate_path, key_path] =
            [CA_CERTIFICATE_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE].map(|name| dir.join(name));
        let ca = read(&ca_path)?;
        certificate_from_pem(&ca).and_then(|ca| ca_cluster(&ca)).map_err(|error| error.in_file(&ca_path))?;
        let identity = match renewal::pending(dir)? {
            Some(pending) => NodeIdentity::from_pem(&ca, &pending, &pending)
                .map_err(|error| error.in_file(&renewal::pending_path(dir)))?,
            None => NodeIdentity::from_pem(&ca, &read(&certificate_path)?, &read(&key_path)?).map_err(|error| {
                let of_key = matches!(error, PkiError::Parse { what: KEY, .. });
                error.in_file(if of_key { &key_path } else { &certificate_path })
            })?,
        };
        let seed = renewal::kept_seed(dir)?.unwrap_or(identity.seed);
        Ok(NodeIdentity { seed, ..identity })
    }

    /// As [`load`](Self::load), for the process that has the node's directory: it also goes on with a renewal that a crash has broken off.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn open(dir: &Path) -> Result<NodeIdentity, PkiError> {
        renewal::settle(dir)?;
        NodeIdentity::load(dir)
    }

    /// Writes the three files into `dir`, which must exist; the key with mode 0600.
    ///
    /// # Durability
    /// The files and the directory are synced on return. A crash in between leaves a key without its certificate: for a directory that has
    /// no identity yet. [`renew`](Self::renew) replaces one.
    ///
    /// # Errors
    /// [`PkiError::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        let pair = self.credentials.shown.now();
        write(dir, CA_CERTIFICATE_FILE, &self.ca_pem, files::PUBLIC)?;
        write(dir, NODE_KEY_FILE, pair.key_pem(), files::PRIVATE)?;
        // Last, so that a certificate is never there without its key.
        write(dir, NODE_CERTIFICATE_FILE, pair.certificate_pem(), files::PUBLIC)
    }

    /// Replaces certificate and key by those of `renewed`: first in `dir`, then in all that were made from this identity, which show them in
    /// every new handshake. What is connected stays connected.
    ///
    /// # Durability
    /// Synced on return. A crash at any moment leaves one pair or the other whole, as [`load`](Self::load) finds it.
    ///
    /// # Errors
    /// [`PkiError::Io`]; [`PkiError::Parse`] when the renewed certificate is not the same node's, or not signed by the same authority, or does not
    /// count at `now_ms`, in milliseconds since 1970. Then nothing was replaced in memory.
    pub fn renew(&self, renewed: &NodeIdentity, dir: &Path, now_ms: u64) -> Result<(), PkiError> {
        let pair = renewed.credentials.shown.now();
        if renewed.node != self.node || renewed.credentials.ca != self.credentials.ca {
            let reason = format!("it is that of node {}, or of another authority", renewed.node);
            return Err(PkiError::Parse { what: "renewed certificate", reason });
        }
        check_signed(pair.certificate(), &self.credentials.ca, now_ms)?;
        renewal::replace(dir, &self.seed, pair.certificate_pem(), pair.key_pem())?;
        self.credentials.replace_by(&renewed.credentials);
        Ok(())
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

    /// From when until when its certificate counts, as it is now.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.credentials.validity()
    }

    /// What tells its certificate, as it is now, from every other one.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(self.credentials.shown.now().certificate())
    }

    /// Its certificate as it is now.
    #[must_use]
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.credentials.certificate()
    }

    /// SHA-256 of the CA certificate, in hex.
    #[must_use]
    pub fn ca_fingerprint(&self) -> String {
        fingerprint(&self.credentials.ca)
    }

    /// The CA certificate, as text.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Stays when certificate and key are replaced, and is as secret as the key.
    pub(crate) fn seed(&self) -> [u8; SEED_SIZE] {
        self.seed
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
