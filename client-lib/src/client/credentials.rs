//! The file with a client's credentials: read again when it was replaced, so that new ones need no restart.
//!
//! It is looked at whenever a connection is made. A file that cannot be used then is told of once, and what was read before stays in use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::error::{Error, ErrorKind};
use crate::pki::{ClientIdentity, date};

/// By what a file is seen to have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Option<(SystemTime, u64)>);

impl Stamp {
    /// As the file is now.
    pub(super) fn of(path: &Path) -> Stamp {
        let stamp = |file: std::fs::Metadata| Some((file.modified().ok()?, file.len()));
        Stamp(std::fs::metadata(path).ok().and_then(stamp))
    }
}

/// A file, and the identity that was read from it.
#[derive(Debug)]
pub(super) struct CredentialsFile {
    path: PathBuf,
    seen: Mutex<Stamp>,
    identity: ClientIdentity,
}

impl CredentialsFile {
    /// `identity` was read from `path` as it was at `seen`, or later.
    pub(super) fn new(path: &Path, seen: Stamp, identity: ClientIdentity) -> Arc<CredentialsFile> {
        Arc::new(CredentialsFile { path: path.to_owned(), seen: Mutex::new(seen), identity })
    }

    /// Shows the certificate that is in the file now, from the next handshake on.
    pub(super) fn look(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Stamp::of(&self.path);
        if now == *seen {
            return;
        }
        *seen = now;
        let read = ClientIdentity::load(&self.path).and_then(|newer| self.identity.replace_by(&newer).map(|()| newer));
        let file = self.path.display();
        match read {
            Ok(newer) => tracing::info!(%file, until = %newer.validity(), "the credentials were read again"),
            Err(error) => {
                tracing::warn!(%file, %error, "the credentials have changed and cannot be used; those before stay in use");
            }
        }
    }
}

/// Refuses credentials that no node accepts any more.
///
/// # Errors
/// `InvalidRequest`, with when they ended and what to do.
pub fn require_not_ended(identity: &ClientIdentity, now_ms: u64) -> Result<(), Error> {
    let validity = identity.validity();
    if !validity.has_ended(now_ms) {
        return Ok(());
    }
    let name = identity.name();
    let text = format!(
        "the credentials of client {name} ended on {}, and it is {} by this machine's clock: `helio cluster client {name} --out FILE --force`, \
         at the node that has the cluster's authority, issues new ones",
        date(validity.until_ms),
        date(now_ms)
    );
    Err(Error::new(ErrorKind::InvalidRequest, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{ClusterAuthority, ClusterId, NODE_LIFETIME, Validity};

    const NOW_MS: u64 = 1_800_000_000_000;

    fn issued(authority: &ClusterAuthority, name: &str, now_ms: u64) -> ClientIdentity {
        let validity = Validity::starting(now_ms, NODE_LIFETIME);
        authority.issue_client(&name.parse().expect("a name"), Vec::new(), validity).expect("issued")
    }

    #[test]
    fn a_replaced_file_is_taken_up_and_one_of_somebody_else_is_not() {
        let authority = ClusterAuthority::create(ClusterId::random().expect("random")).expect("made");
        let stranger = ClusterAuthority::create(ClusterId::random().expect("random")).expect("made");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("host.helio");
        let replace = |identity: &ClientIdentity, age: u64| {
            identity.save(&path).expect("saved");
            // The same second, and the same size: told from the file before by its time alone.
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age);
            std::fs::File::open(&path).expect("is there").set_modified(time).expect("is set");
        };
        let first = issued(&authority, "host", NOW_MS);
        replace(&first, 1);
        let identity = ClientIdentity::load(&path).expect("loaded");
        let (used, file) = (identity.credentials(), CredentialsFile::new(&path, Stamp::of(&path), identity));
        let shown = || crate::pki::Fingerprint::of(&used.certificate());
        let second = issued(&authority, "host", NOW_MS + 1);
        replace(&second, 2);
        assert_eq!(shown(), first.fingerprint(), "nothing is read until it is needed");
        file.look();
        assert_eq!(shown(), second.fingerprint());
        for odd in [issued(&authority, "other", NOW_MS), issued(&stranger, "host", NOW_MS)] {
            replace(&odd, 3);
            file.look();
            assert_eq!(shown(), second.fingerprint(), "{odd:?}");
        }
        std::fs::remove_file(&path).expect("is there");
        file.look();
        assert_eq!(shown(), second.fingerprint(), "a file that is being replaced");
        let third = issued(&authority, "host", NOW_MS + 2);
        replace(&third, 4);
        file.look();
        assert_eq!(shown(), third.fingerprint());
    }

    #[test]
    fn credentials_that_have_ended_are_told_of_with_what_to_do() {
        let authority = ClusterAuthority::create(ClusterId::random().expect("random")).expect("made");
        let identity = issued(&authority, "host", NOW_MS);
        let until_ms = identity.validity().until_ms;
        require_not_ended(&identity, until_ms).expect("counts");
        let error = require_not_ended(&identity, until_ms + 1000).expect_err("has ended");
        let text = error.to_string();
        assert!(
            text.contains("host ended on 2027-04-15") && text.contains("helio cluster client host --out"),
            "{text}"
        );
    }
}
