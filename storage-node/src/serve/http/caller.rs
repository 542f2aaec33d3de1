//! Who asks the admin API, and whether he may: looked at with every request, before anything else is done with it.
//!
//! On loopback whoever knows the node's secret may do everything: it lies in the data directory, and who can read that has the node. From
//! other machines it is who the certificate says, in the role that the metadata has for him.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use client_lib::pki::{self, Fingerprint};
use client_lib::rights::Role;
use client_lib::{ClientName, ErrorKind, files};

use super::malformed::absent;
use super::permissions::needed;
use super::refused;
use crate::serve::admin::Admin;

/// The secret of a node's admin API, in its data directory: mode 0600, 64 hexadecimal digits.
pub const SECRET_FILE: &str = "admin.secret";

/// Digits of a secret.
const SECRET_DIGITS: usize = 64;

/// What whoever shows it on loopback may do everything with.
#[derive(Clone)]
pub struct Secret(Arc<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// That of the node with this data directory; made the first time.
    ///
    /// # Errors
    /// As the system says; `InvalidData` when the file holds something else; `PermissionDenied` when others may read it.
    pub fn load_or_make(data: &Path) -> io::Result<Secret> {
        let path = data.join(SECRET_FILE);
        match fs::File::open(&path) {
            Ok(mut file) => {
                let mode = file.metadata()?.permissions().mode();
                if mode & 0o077 != 0 {
                    let text = format!("{} can be read by others (mode {:o}): chmod 600", path.display(), mode & 0o777);
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
                }
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                Secret::parse(&text).ok_or_else(|| {
                    let text = format!("{} holds no secret: delete it, and a new one is made", path.display());
                    io::Error::new(io::ErrorKind::InvalidData, text)
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Secret::make(&path),
            Err(error) => Err(error),
        }
    }

    fn make(path: &Path) -> io::Result<Secret> {
        let mut bytes = [0; SECRET_DIGITS / 2];
        let filled = pki::provider().secure_random.fill(&mut bytes);
        filled.map_err(|_| io::Error::other("the operating system gave no randomness"))?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        files::replace(path, format!("{text}\n").as_bytes(), files::PRIVATE)?;
        Ok(Secret(text.into()))
    }

    /// The secret in a text, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Secret> {
        let text = text.trim();
        let is_one = text.len() == SECRET_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_one.then(|| Secret(text.into()))
    }

    /// As it is shown to the node.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether a request shows it. Takes as long whatever is shown.
    fn is_shown_by(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let shown = shown.strip_prefix(b"Bearer ").unwrap_or_default();
        let differs = shown.iter().zip(self.0.bytes()).fold(0, |differs, (one, other)| differs | (one ^ other));
        shown.len() == self.0.len() && differs == 0
    }
}

/// How it is found out who asks.
#[derive(Clone)]
pub(super) enum Proof {
    /// By the secret.
    Secret(Secret),
    /// By the certificate that was shown when the connection was made, which is with each request.
    Certificate,
}

/// Who has shown a certificate of the cluster.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) client: ClientName,
    pub(super) certificate: Fingerprint,
}

/// Who asks, as far as it is proven: for the list of what was done.
#[derive(Clone, Debug)]
pub(in crate::serve) struct Proven(pub(in crate::serve) String);

/// What the gate needs.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) admin: Arc<dyn Admin>,
    pub(super) proof: Proof,
}

/// Lets a request through that whoever asks may ask.
pub(super) async fn authorise(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let Some(path) = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()) else {
        return absent(StatusCode::NOT_FOUND, &request);
    };
    let Some(needs) = needed(request.method(), &path) else {
        return absent(StatusCode::METHOD_NOT_ALLOWED, &request);
    };
    let (who, role) = match gate.asks(&request) {
        Ok(asks) => asks,
        Err(message) => return unknown(message),
    };
    if needs.is_met_by(role) {
        request.extensions_mut().insert(Proven(who));
        return next.run(request).await;
    }
    tracing::warn!(who, %role, method = %request.method(), path = %request.uri().path(), "a request that needs another role was refused");
    let least = needs.least_role();
    let name = who.strip_prefix("client ").unwrap_or(&who);
    let message = format!(
        "{who} has role {role}, and this needs {least}: `helio cluster client role {name} {least}`, by an administrator, gives it that"
    );
    refused(StatusCode::FORBIDDEN, ErrorKind::InvalidRequest, message)
}

impl Gate {
    /// Who asks and in which role, or why that is not known.
    fn asks(&self, request: &Request) -> Result<(String, Role), String> {
        match &self.proof {
            Proof::Secret(secret) if secret.is_shown_by(request.headers()) => {
                Ok(("whoever has this node's secret".to_owned(), Role::Admin))
            }
            Proof::Secret(_) => Err(format!(
                "the admin API wants this node's secret, which is in {SECRET_FILE} in its data directory: `helio --data DIR` finds it there, \
                 `helio dashboard` prints a link with it, others send `Authorization: Bearer SECRET`"
            )),
            Proof::Certificate => {
                let shown = request.extensions().get::<Shown>().ok_or("no certificate was shown")?;
                let role = self.admin.role_of(&shown.client, &shown.certificate);
                let role = role.ok_or_else(|| format!("the credentials of client {} were revoked", shown.client))?;
                Ok((format!("client {}", shown.client), role))
            }
        }
    }
}

fn unknown(message: String) -> Response {
    let refused = refused(StatusCode::UNAUTHORIZED, ErrorKind::InvalidRequest, message);
    ([(header::WWW_AUTHENTICATE, "Bearer")], refused).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(secret: &Secret, value: &str) -> bool {
        secret.is_shown_by(&HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().expect("a header"))]))
    }

    #[test]
    fn a_secret_stays_what_it_is_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let made = Secret::load_or_make(directory.path()).expect("is made");
        let path = directory.path().join(SECRET_FILE);
        assert_eq!(path.metadata().expect("is there").permissions().mode() & 0o777, 0o600);
        let again = Secret::load_or_make(directory.path()).expect("is read");
        assert_eq!(made.reveal(), again.reveal());
        assert!(!format!("{made:?}").contains(made.reveal()), "it stays out of logs");
        let other = tempfile::tempdir().expect("a directory");
        assert_ne!(Secret::load_or_make(other.path()).expect("is made").reveal(), made.reveal());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("is set");
        let refused = Secret::load_or_make(directory.path()).expect_err("others may read it").to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("is set");
        fs::write(&path, "\n").expect("is written");
        assert!(Secret::load_or_make(directory.path()).is_err(), "an empty secret would let everybody in");
    }

    #[test]
    fn only_the_whole_secret_is_one() {
        let secret = Secret::parse(&"5a".repeat(32)).expect("is one");
        assert!(shows(&secret, &format!("Bearer {}", "5a".repeat(32))));
        for odd in [
            "".to_owned(),
            "Bearer ".to_owned(),
            "5a".repeat(32),
            format!("Basic {}", "5a".repeat(32)),
            format!("Bearer {}", "5a".repeat(31)),
            format!("Bearer {}5", "5a".repeat(32)),
            format!("Bearer {}", "5b".repeat(32)),
        ] {
            assert!(!shows(&secret, &odd), "{odd}");
        }
        assert!(!secret.is_shown_by(&HeaderMap::new()));
        assert!(Secret::parse("").is_none() && Secret::parse(&"5g".repeat(32)).is_none());
    }
}
