//! The cluster's own certificate authority, and the identities of its nodes.
//!
//! A node is who its certificate says: the URI `helio://CLUSTER/node/ID`, signed by the cluster's CA
//! (docs/format.md). Owns making, storing and reading certificates. Does not revoke: a node leaves the
//! cluster by leaving its membership, which the layers above check. Keys are stored with mode 0600.
//!
//! Certificates do not expire in practice (year 4096, as `rcgen` sets it): nothing renews them yet, and a cluster
//! that stops at a date is worse than one that keeps its keys. Rotation is issuing anew and restarting the node.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::types::NodeId;

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Making or signing failed.
    #[error("certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// Not a certificate, key or request.
    #[error("{what} cannot be read: {reason}")]
    Parse {
        /// Which thing.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate belongs to another cluster.
    #[error("certificate of cluster {found}, expected cluster {expected}")]
    WrongCluster {
        /// In the certificate.
        found: String,
        /// Ours.
        expected: String,
    },
    /// A cluster id of other characters than lower-case letters, digits and dashes, or too long.
    #[error("{0:?} is not a cluster id: use 1 to 40 lower-case letters, digits or dashes")]
    ClusterId(String),
    /// The operating system gave no randomness.
    #[error("no randomness available")]
    Random,
}

/// The name of a cluster, in all its certificates. Lower-case letters, digits and dashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterId(String);

/// The longest cluster id, in bytes; it must fit a DNS label.
pub const CLUSTER_ID_LEN_MAX: usize = 40;

impl ClusterId {
    /// A new id that no other cluster has.
    ///
    /// # Errors
    /// [`PkiError::Random`].
    pub fn random() -> Result<ClusterId, PkiError> {
        let mut bytes = [0u8; 16];
        provider().secure_random.fill(&mut bytes).map_err(|_| PkiError::Random)?;
        Ok(ClusterId(hex(&bytes)))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClusterId {
    type Error = PkiError;

    fn try_from(text: String) -> Result<ClusterId, PkiError> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let edge = |c: Option<&u8>| c.is_some_and(|c| *c != b'-');
        let bytes = text.as_bytes();
        if bytes.len() > CLUSTER_ID_LEN_MAX
            || !bytes.iter().all(|c| plain(*c))
            || !edge(bytes.first())
            || !edge(bytes.last())
        {
            return Err(PkiError::ClusterId(text));
        }
        Ok(ClusterId(text))
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> String {
        id.0
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The cryptography that every certificate and connection uses. Passed explicitly, so that no process-wide
/// default is needed.
#[must_use]
pub fn provider() -> CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// The name by which TLS checks that it reached `node`.
pub(crate) fn server_name(cluster: &ClusterId, node: NodeId) -> String {
    format!("node-{node}.{cluster}.helio")
}

/// The key that signs node certificates. Whoever holds it admits nodes.
pub struct ClusterAuthority {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuthority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

const CA_CERTIFICATE_FILE: &str = "ca.crt";
const CA_KEY_FILE: &str = "ca.key";
const NODE_CERTIFICATE_FILE: &str = "node.crt";
const NODE_KEY_FILE: &str = "node.key";
const CA_NAME_PREFIX: &str = "Heliotrope cluster ";

impl ClusterAuthority {
    /// A new authority for `cluster`.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn create(cluster: ClusterId) -> Result<ClusterAuthority, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{CA_NAME_PREFIX}{cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(ClusterAuthority {
            cluster,
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`PkiError::Io`], [`PkiError::Parse`].
    pub fn load(dir: &Path) -> Result<ClusterAuthority, PkiError> {
        let certificate_pem = read(&dir.join(CA_CERTIFICATE_FILE))?;
        let key = KeyPair::from_pem(&read(&dir.join(CA_KEY_FILE))?)?;
        let certificate = certificate_from_pem(&certificate_pem)?;
        let cluster = ca_cluster(&certificate)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(ClusterAuthority { cluster, certificate, certificate_pem, issuer })
    }

    /// Writes certificate and key into `dir`, which must exist.
    ///
    /// # Durability
    /// Both files and the directory are synced on return.
    ///
    /// # Errors
    /// [`PkiError::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        write_atomically(dir, CA_KEY_FILE, &self.issuer.key().serialize_pem(), 0o600)?;
        write_atomically(dir, CA_CERTIFICATE_FILE, &self.certificate_pem, 0o644)
    }

    /// The cluster it signs for.
    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// The CA certificate, as text.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the CA certificate, in hex: what a joining node pins.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// A certificate with a new key for `node`.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn issue(&self, node: NodeId) -> Result<NodeIdentity, PkiError> {
        let key = KeyPair::generate()?;
        let certificate = self.params(node)?.signed_by(&key, &self.issuer)?;
        NodeIdentity::from_pem(&self.certificate_pem, &certificate.pem(), &key.serialize_pem())
    }

    /// Signs a joining node's request. Only its public key is taken; names and usages are ours.
    ///
    /// # Errors
    /// [`PkiError::Make`] for a request that is not one or not signed by its key.
    pub fn sign(&self, node: NodeId, request_pem: &str) -> Result<String, PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)?;
        request.params = self.params(node)?;
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    fn params(&self, node: NodeId) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::new(vec![server_name(&self.cluster, node)])?;
        params.distinguished_name.push(DnType::CommonName, format!("Heliotrope node {node}"));
        params.subject_alt_names.push(SanType::URI(format!("helio://{}/node/{node}", self.cluster).try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// A key and a request for its certificate, made by a node that joins.
#[derive(Debug)]
pub struct JoinKey {
    key_pem: String,
    /// The request to send to the authority.
    pub request_pem: String,
}

impl JoinKey {
    /// A new key.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn create() -> Result<JoinKey, PkiError> {
        let key = KeyPair::generate()?;
        let request = CertificateParams::default().serialize_request(&key)?;
        Ok(JoinKey { key_pem: key.serialize_pem(), request_pem: request.pem()? })
    }

    /// The identity, once the authority has signed.
    ///
    /// # Errors
    /// [`PkiError::Parse`].
    pub fn complete(&self, ca_pem: &str, certificate_pem: &str) -> Result<NodeIdentity, PkiError> {
        NodeIdentity::from_pem(ca_pem, certificate_pem, &self.key_pem)
    }
}

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

/// SHA-256 of a certificate, in hex.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(sha256_suite().common.hash_provider.hash(certificate).as_ref())
}

/// The suite that lends SHA-256 and HMAC to the fingerprint and to derived keys.
fn sha256_suite() -> &'static rustls::Tls13CipherSuite {
    rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().expect("the suite is a TLS 1.3 suite")
}

/// HMAC-SHA256 of `message` under a key of at most 64 bytes.
pub(crate) fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = sha256_suite().hkdf_provider.hmac_sign(&rustls::crypto::tls13::OkmBlock::new(key), message);
    tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ca_cluster(ca: &CertificateDer<'_>) -> Result<ClusterId, PkiError> {
    let wrong = |reason: String| PkiError::Parse { what: "CA certificate", reason };
    let (_, parsed) = x509_parser::parse_x509_certificate(ca).map_err(|error| wrong(error.to_string()))?;
    let names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let cluster = names.filter_map(|name| name.strip_prefix(CA_NAME_PREFIX)).next();
    let cluster = cluster.ok_or_else(|| wrong("it names no Heliotrope cluster".to_owned()))?;
    ClusterId::try_from(cluster.to_owned())
}

fn certificate_from_pem(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| PkiError::Parse { what: "certificate", reason: error.to_string() })
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

/// Writes a synced temporary file of the final mode and renames it: the key is never readable by others, and a
/// crash leaves the old file or the new one.
fn write_atomically(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), PkiError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.new"));
    let attempt = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        fs::File::open(dir)?.sync_all()
    };
    attempt().map_err(|source| PkiError::Io { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn cluster(name: &str) -> ClusterId {
        ClusterId::try_from(name.to_owned()).expect("valid")
    }

    #[test]
    fn an_identity_survives_its_files_and_keeps_its_key_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority = ClusterAuthority::create(cluster("one")).expect("made");
        authority.issue(NodeId(7)).expect("issued").save(dir.path()).expect("saved");
        let identity = NodeIdentity::load(dir.path()).expect("loaded");
        assert_eq!((identity.node(), identity.cluster()), (NodeId(7), &cluster("one")));
        assert_eq!(identity.ca_fingerprint(), authority.fingerprint());
        let mode = fs::metadata(dir.path().join(NODE_KEY_FILE)).expect("present").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_authority_survives_its_files() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority = ClusterAuthority::create(ClusterId::random().expect("random")).expect("made");
        authority.save(dir.path()).expect("saved");
        let again = ClusterAuthority::load(dir.path()).expect("loaded");
        assert_eq!(again.cluster(), authority.cluster());
        assert_eq!(again.fingerprint(), authority.fingerprint());
        assert_eq!(again.issue(NodeId(1)).expect("issued").node(), NodeId(1));
    }

    #[test]
    fn a_joining_node_gets_the_names_that_the_authority_chose() {
        let authority = ClusterAuthority::create(cluster("one")).expect("made");
        let key = JoinKey::create().expect("made");
        let signed = authority.sign(NodeId(9), &key.request_pem).expect("signed");
        let identity = key.complete(authority.certificate_pem(), &signed).expect("complete");
        assert_eq!(identity.node(), NodeId(9));
        assert!(authority.sign(NodeId(9), "nonsense").is_err());
    }

    #[test]
    fn another_clusters_certificate_is_named() {
        let identity = ClusterAuthority::create(cluster("one")).expect("made").issue(NodeId(1)).expect("issued");
        let error = certificate_node(&identity.certificate, &cluster("two")).expect_err("another cluster");
        assert!(matches!(error, PkiError::WrongCluster { .. }), "{error}");
    }

    #[test]
    fn odd_cluster_ids_are_refused() {
        for odd in ["", "A", "a/b", "-a", "a-", "ä", &"a".repeat(41)] {
            assert!(ClusterId::try_from(odd.to_owned()).is_err(), "{odd:?}");
        }
    }
}
