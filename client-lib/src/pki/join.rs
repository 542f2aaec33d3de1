//! What a node needs to join: a key of its own, and a token from the cluster.
//!
//! The token proves both sides. Its fingerprint pins the cluster's CA, so that the node joins the cluster it was
//! told to; its secret proves to the cluster that someone who may admit nodes passed it on. Whoever has the token may
//! join until the secret is renewed, withdrawn, or too old. Does not know what becomes of a request, and reads no clock: the node
//! answers it.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use rcgen::{CertificateParams, KeyPair};

use super::{NODE_KEY_FILE, NodeIdentity, PkiError, hex, hmac_sha256, provider, read, write};
use crate::error::{Error, ErrorKind};
use crate::files;

const SECRET_FILE: &str = "join.secret";
/// Bytes of a secret: beyond guessing.
const SECRET_SIZE: usize = 16;
/// Hexadecimal digits of a SHA-256.
const FINGERPRINT_DIGITS: usize = 64;

/// The key of a node that joins.
#[derive(Debug)]
pub struct JoinKey {
    key: KeyPair,
}

impl JoinKey {
    /// The key in `dir`, which is made when there is none: a node that asks again asks with the same one.
    ///
    /// # Durability
    /// The key is synced on return.
    ///
    /// # Errors
    /// [`PkiError::Io`], [`PkiError::Make`].
    pub fn load_or_create(dir: &Path) -> Result<JoinKey, PkiError> {
        if dir.join(NODE_KEY_FILE).exists() {
            let path = dir.join(NODE_KEY_FILE);
            let key = KeyPair::from_pem(&read(&path)?).map_err(|error| PkiError::from(error).in_file(&path))?;
            return Ok(JoinKey { key });
        }
        let key = KeyPair::generate()?;
        write(dir, NODE_KEY_FILE, &key.serialize_pem(), files::PRIVATE)?;
        Ok(JoinKey { key })
    }

    /// A new key, which is nowhere yet: to replace another one.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn generate() -> Result<JoinKey, PkiError> {
        Ok(JoinKey { key: KeyPair::generate()? })
    }

    /// The key of a node, as it is now: to ask with it for another certificate.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn of(identity: &NodeIdentity) -> Result<JoinKey, PkiError> {
        Ok(JoinKey { key: KeyPair::from_pem(identity.credentials().shown().now().key_pem())? })
    }

    /// The request to send to the authority.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn request_pem(&self) -> Result<String, PkiError> {
        Ok(CertificateParams::default().serialize_request(&self.key)?.pem()?)
    }

    /// The identity, once the authority has signed.
    ///
    /// # Errors
    /// [`PkiError::Parse`].
    pub fn complete(&self, ca_pem: &str, certificate_pem: &str) -> Result<NodeIdentity, PkiError> {
        NodeIdentity::from_pem(ca_pem, certificate_pem, &self.key.serialize_pem())
    }
}

/// In front of the time, in milliseconds since 1970, after which a secret counts no more.
const UNTIL: &str = "until ";
/// What the file says instead of a secret when none counts.
const WITHDRAWN: &str = "withdrawn";

/// What proves that a node may join. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret {
    secret: String,
    until_ms: Option<u64>,
}

impl JoinSecret {
    /// Makes a new secret in `dir`, which counts until then, in milliseconds since 1970; the former one counts no more.
    ///
    /// # Durability
    /// Synced on return.
    ///
    /// # Errors
    /// [`PkiError::Io`], [`PkiError::Random`].
    pub fn renew(dir: &Path, until_ms: Option<u64>) -> Result<JoinSecret, PkiError> {
        let mut bytes = [0; SECRET_SIZE];
        provider().secure_random.fill(&mut bytes).map_err(|_| PkiError::Random)?;
        let secret = hex(&bytes);
        // A program that does not know of the second line takes both for a secret, which nobody has.
        let until = until_ms.map(|until| format!("\n{UNTIL}{until}")).unwrap_or_default();
        write(dir, SECRET_FILE, &format!("{secret}{until}"), files::PRIVATE)?;
        Ok(JoinSecret { secret, until_ms })
    }

    /// No secret counts any more, until there is another one.
    ///
    /// # Durability
    /// Synced on return.
    ///
    /// # Errors
    /// [`PkiError::Io`].
    pub fn withdraw(dir: &Path) -> Result<(), PkiError> {
        write(dir, SECRET_FILE, WITHDRAWN, files::PRIVATE)
    }

    /// The secret in `dir`; `None` when it was withdrawn.
    ///
    /// # Errors
    /// [`PkiError::Io`]; [`PkiError::Parse`].
    pub fn load(dir: &Path) -> Result<Option<JoinSecret>, PkiError> {
        let text = read(&dir.join(SECRET_FILE))?;
        let mut lines = text.lines().map(str::trim);
        let secret = lines.next().unwrap_or_default().to_owned();
        if secret == WITHDRAWN {
            return Ok(None);
        }
        if secret.is_empty() {
            return Err(PkiError::Parse {
                what: SECRET_FILE,
                reason: "it is empty; `helio cluster token --renew` makes another one".to_owned(),
            });
        }
        let until_ms = lines.next().map(|line| line.strip_prefix(UNTIL).and_then(|number| number.parse().ok()));
        let odd = || PkiError::Parse { what: SECRET_FILE, reason: "it does not say until when it counts".to_owned() };
        let until_ms = until_ms.map(|until| until.ok_or_else(odd)).transpose()?;
        Ok(Some(JoinSecret { secret, until_ms }))
    }

    /// Until when it counts, in milliseconds since 1970; `None` is until it is renewed.
    #[must_use]
    pub fn until_ms(&self) -> Option<u64> {
        self.until_ms
    }

    /// Whether it counts at this time, in milliseconds since 1970.
    #[must_use]
    pub fn counts_at(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until| now_ms < until)
    }

    /// Whether `other` is this secret. Compares digests, so that the time taken tells nothing of the secret.
    #[must_use]
    pub fn matches(&self, other: &str) -> bool {
        let digest = |text: &str| hmac_sha256(b"heliotrope join", text.as_bytes());
        digest(&self.secret) == digest(other)
    }

    /// The secret itself, to send it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinSecret(..)")
    }
}

/// What `helio cluster init` prints and `helio cluster join` takes: `SECRET.FINGERPRINT@ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Proves that the node may join.
    pub secret: JoinSecret,
    /// SHA-256 of the cluster's CA certificate, in hexadecimal.
    pub fingerprint: String,
    /// A node that admits others.
    pub address: SocketAddr,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.secret.secret, self.fingerprint, self.address)
    }
}

impl FromStr for JoinToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<JoinToken, Error> {
        // The text itself is left out of the message: it holds the secret.
        let wrong = |what: &str| {
            let message =
                format!("this is not a join token: {what}; `helio cluster token` prints it at the first node");
            Error::new(ErrorKind::InvalidRequest, message)
        };
        let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|c| c.is_ascii_hexdigit());
        let (proof, address) = text.trim().split_once('@').ok_or_else(|| wrong("it has no '@'"))?;
        let (secret, fingerprint) = proof.split_once('.').ok_or_else(|| wrong("it has no '.'"))?;
        if !digits(secret, 2 * SECRET_SIZE) || !digits(fingerprint, FINGERPRINT_DIGITS) {
            return Err(wrong("a part of it is missing"));
        }
        let address = address.parse().map_err(|_| wrong("it ends in no address IP:PORT"))?;
        let secret = JoinSecret { secret: secret.to_owned(), until_ms: None };
        Ok(JoinToken { secret, fingerprint: fingerprint.to_owned(), address })
    }
}
