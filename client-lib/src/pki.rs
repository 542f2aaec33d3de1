//! The cluster's own certificate authority, and the identities of its nodes and clients.
//!
//! A node is who its certificate says: the URI `helio://CLUSTER/node/ID`, signed by the cluster's CA
//! (docs/format.md); a client likewise, by `helio://CLUSTER/client/NAME`. Owns making, storing and reading certificates. Does not revoke: what a
//! certificate is worth is for the layers above to say ([`crate::transport::Service::admits`]). Keys are stored with mode 0600.
//!
//! Certificates of nodes and clients have an end ([`Validity`]); who issues says which. A node's is renewed before it by whoever runs the node:
//! [`NodeIdentity::renew`] replaces it on disk and in use. That of the authority counts until the year 4096: nothing replaces it.

mod authority;
mod client;
mod fingerprint;
mod identity;
mod join;
mod renewal;
mod shown;
pub mod tls;
mod validity;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use authority::ClusterAuthority;
pub use client::{ClientIdentity, NodePlace};
pub use fingerprint::Fingerprint;
pub(crate) use identity::Credentials;
pub use identity::{CertificateHolder, NodeIdentity, certificate_holder, certificate_node};
pub use join::{JoinKey, JoinSecret, JoinToken};
pub use validity::{CLIENT_LIFETIME, NODE_LIFETIME, Validity, date};

use crate::files;
use crate::types::NodeId;

/// The CA's certificate, beside its key and beside every node's certificate.
const CA_CERTIFICATE_FILE: &str = "ca.crt";
/// The certificate of a node, in the directory of its identity.
pub const NODE_CERTIFICATE_FILE: &str = "node.crt";
/// The key of a node, there before its certificate.
const NODE_KEY_FILE: &str = "node.key";
const CA_NAME_PREFIX: &str = "Heliotrope cluster ";

/// What an error calls a private key.
const KEY: &str = "key";

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
    /// A file has something else in it than it should.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<PkiError>,
    },
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

/// SHA-256 of a certificate, in hex.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(&sha256(certificate))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = sha256_suite().common.hash_provider.hash(bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
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

/// Removes a file that need not be there, and syncs that.
fn remove(dir: &Path, name: &str) -> Result<(), PkiError> {
    let path = dir.join(name);
    let removed = files::remove(&path).and_then(|()| fs::File::open(dir)?.sync_all());
    removed.map_err(|source| PkiError::Io { path, source })
}

fn certificate_from_pem(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| PkiError::Parse { what: "certificate", reason: error.to_string() })
}

impl PkiError {
    /// The same, of what was read from `path`.
    fn in_file(self, path: &Path) -> PkiError {
        match self {
            named @ (PkiError::Io { .. } | PkiError::File { .. }) => named,
            unnamed => PkiError::File { path: path.to_owned(), source: Box::new(unnamed) },
        }
    }
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

/// Writes a file of the directory, as [`files::replace`].
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), PkiError> {
    let path = dir.join(name);
    files::replace(&path, text.as_bytes(), mode).map_err(|source| PkiError::Io { path, source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::error::ErrorKind;

    fn cluster(name: &str) -> ClusterId {
        ClusterId::try_from(name.to_owned()).expect("valid")
    }

    #[test]
    fn an_identity_survives_its_files_and_keeps_its_key_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority = ClusterAuthority::create(cluster("one")).expect("made");
        authority.issue(NodeId(7), Validity::ENDLESS).expect("issued").save(dir.path()).expect("saved");
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
        assert_eq!(again.issue(NodeId(1), Validity::ENDLESS).expect("issued").node(), NodeId(1));
    }

    #[test]
    fn a_joining_node_gets_the_names_that_the_authority_chose() {
        let authority = ClusterAuthority::create(cluster("one")).expect("made");
        let dir = tempfile::tempdir().expect("temporary directory");
        let key = JoinKey::load_or_create(dir.path()).expect("made");
        let signed = authority.sign(NodeId(9), &key.request_pem().expect("made"), Validity::ENDLESS).expect("signed");
        let identity = key.complete(authority.certificate_pem(), &signed).expect("complete");
        assert_eq!(identity.node(), NodeId(9));
        assert!(authority.sign(NodeId(9), "nonsense", Validity::ENDLESS).is_err());
    }

    #[test]
    fn a_joining_node_asks_again_with_the_key_it_has() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let authority = ClusterAuthority::create(cluster("one")).expect("made");
        let first = JoinKey::load_or_create(dir.path()).expect("made");
        let again = JoinKey::load_or_create(dir.path()).expect("loaded");
        let key =
            |join: &JoinKey| authority.request_key(&join.request_pem().expect("made")).expect("signed by its key");
        assert_eq!(key(&first), key(&again));
        let stranger = tempfile::tempdir().expect("temporary directory");
        assert_ne!(key(&first), key(&JoinKey::load_or_create(stranger.path()).expect("made")));
    }

    #[test]
    fn a_token_reads_back_and_only_the_newest_secret_counts() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let secret = JoinSecret::renew(dir.path(), None).expect("made");
        let token =
            JoinToken { secret, fingerprint: "a5".repeat(32), address: "127.0.0.1:10810".parse().expect("one") };
        let read: JoinToken = token.to_string().parse().expect("reads back");
        assert_eq!((read.address, &read.fingerprint), (token.address, &token.fingerprint));
        let load = || JoinSecret::load(dir.path()).expect("loaded");
        assert!(load().expect("counts").matches(read.secret.reveal()) && load().expect("counts").counts_at(u64::MAX));
        let other = JoinSecret::renew(dir.path(), Some(1_000)).expect("made anew");
        let kept = load().expect("counts");
        assert!(kept.matches(other.reveal()) && !kept.matches(read.secret.reveal()));
        assert!(kept.counts_at(999) && !kept.counts_at(1_000));
        JoinSecret::withdraw(dir.path()).expect("is withdrawn");
        assert!(load().is_none());
        assert!(!format!("{read:?}").contains(read.secret.reveal()), "a secret stays out of logs");
        for odd in ["", "x", "00@1.2.3.4:5", &token.to_string()[1..], &token.to_string().replace("@", "@host")] {
            let error = odd.parse::<JoinToken>().expect_err(odd);
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        }
    }

    #[test]
    fn another_clusters_certificate_is_named() {
        let identity = ClusterAuthority::create(cluster("one"))
            .expect("made")
            .issue(NodeId(1), Validity::ENDLESS)
            .expect("issued");
        let error = certificate_node(&identity.certificate(), &cluster("two")).expect_err("another cluster");
        assert!(matches!(error, PkiError::WrongCluster { .. }), "{error}");
    }

    #[test]
    fn odd_cluster_ids_are_refused() {
        for odd in ["", "A", "a/b", "-a", "a-", "ä", &"a".repeat(41)] {
            assert!(ClusterId::try_from(odd.to_owned()).is_err(), "{odd:?}");
        }
    }
}
