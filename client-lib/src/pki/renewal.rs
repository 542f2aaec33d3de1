//! Replacing a node's certificate and key in its directory: two files, of which a crash must never leave one new and one old.
//!
//! What replaces them is first written whole into a third file, which counts while it is there; then it is copied to the two, and removed:
//!
//! ```text
//! node.crt, node.key old ──► and node.renewed: the new pair counts ──► node.key new ──► node.crt new ──► node.renewed gone
//! ```
//!
//! Whoever finds the third file goes on from there ([`settle`]). Only the process that has the data directory's lock writes.

use std::io;
use std::path::{Path, PathBuf};

use super::{NODE_CERTIFICATE_FILE, NODE_KEY_FILE, PkiError, hex, read, remove, write};
use crate::files;

/// The pair that replaces certificate and key: both, in PEM.
const RENEWED_FILE: &str = "node.renewed";
/// The seed of a node whose key was replaced, in hexadecimal.
const SEED_FILE: &str = "reset.seed";

/// Bytes of a seed.
pub(super) const SEED_SIZE: usize = 32;

/// The pair that is about to replace the files, if there is one.
pub(super) fn pending(dir: &Path) -> Result<Option<String>, PkiError> {
    optional(dir, RENEWED_FILE)
}

/// Where that is.
pub(super) fn pending_path(dir: &Path) -> PathBuf {
    dir.join(RENEWED_FILE)
}

/// The seed that was kept when the key was replaced.
pub(super) fn kept_seed(dir: &Path) -> Result<Option<[u8; SEED_SIZE]>, PkiError> {
    let Some(text) = optional(dir, SEED_FILE)? else { return Ok(None) };
    let byte = |at: usize| text.get(2 * at..2 * at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let bytes: Option<Vec<u8>> = (0..SEED_SIZE).map(byte).collect();
    let odd = || PkiError::Parse { what: "seed", reason: "it is not 64 hexadecimal digits".to_owned() };
    let seed = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(odd);
    seed.map(Some).map_err(|error| error.in_file(&dir.join(SEED_FILE)))
}

/// Replaces both files.
pub(super) fn replace(dir: &Path, seed: &[u8], certificate_pem: &str, key_pem: &str) -> Result<(), PkiError> {
    // First: it derives from the key that is about to go.
    if !dir.join(SEED_FILE).exists() {
        write(dir, SEED_FILE, &hex(seed), files::PRIVATE)?;
    }
    write(dir, RENEWED_FILE, &format!("{certificate_pem}{key_pem}"), files::PRIVATE)?;
    finish(dir, certificate_pem, key_pem)
}

/// Copies the pair to where it stays.
fn finish(dir: &Path, certificate_pem: &str, key_pem: &str) -> Result<(), PkiError> {
    write(dir, NODE_KEY_FILE, key_pem, files::PRIVATE)?;
    write(dir, NODE_CERTIFICATE_FILE, certificate_pem, files::PUBLIC)?;
    remove(dir, RENEWED_FILE)
}

/// Goes on with a replacement that a crash has broken off.
pub(super) fn settle(dir: &Path) -> Result<(), PkiError> {
    let Some(pair) = pending(dir)? else { return Ok(()) };
    let key = pair.find("-----BEGIN PRIVATE KEY").unwrap_or(pair.len());
    let (certificate_pem, key_pem) = pair.split_at(key);
    finish(dir, certificate_pem, key_pem)
}

fn optional(dir: &Path, name: &str) -> Result<Option<String>, PkiError> {
    match read(&dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(PkiError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;
    use crate::pki::{ClusterAuthority, ClusterId, JoinKey, NodeIdentity, Validity};
    use crate::types::NodeId;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn authority() -> ClusterAuthority {
        ClusterAuthority::create(ClusterId::random().expect("random")).expect("made")
    }

    fn renewed(authority: &ClusterAuthority, node: u64, now_ms: u64) -> NodeIdentity {
        let key = JoinKey::generate().expect("made");
        let validity = Validity::starting(now_ms, Duration::from_secs(3600));
        let signed = authority.sign(NodeId(node), &key.request_pem().expect("made"), validity).expect("signed");
        key.complete(authority.certificate_pem(), &signed).expect("complete")
    }

    fn files(dir: &Path) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(dir)
            .expect("is there")
            .map(|entry| {
                let path = entry.expect("is one").path();
                (path.file_name().expect("has one").to_string_lossy().into_owned(), read(&path).expect("reads"))
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn a_renewed_identity_is_shown_by_all_that_had_the_old_one_and_found_again() {
        let (dir, authority) = (tempfile::tempdir().expect("temporary directory"), authority());
        authority.issue(NodeId(7), Validity::ENDLESS).expect("issued").save(dir.path()).expect("saved");
        let identity = NodeIdentity::load(dir.path()).expect("loaded");
        let (used, seed, old) = (identity.credentials(), identity.seed(), identity.fingerprint());
        let first = renewed(&authority, 7, NOW_MS);
        identity.renew(&first, dir.path(), NOW_MS).expect("is renewed");
        assert_eq!(used.certificate(), first.certificate());
        assert!(identity.fingerprint() != old && identity.validity().has_end());
        let found = NodeIdentity::load(dir.path()).expect("loaded");
        assert_eq!((found.certificate(), found.seed()), (first.certificate(), seed));
        for name in [NODE_KEY_FILE, SEED_FILE] {
            let mode = fs::metadata(dir.path().join(name)).expect("present").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let second = renewed(&authority, 7, NOW_MS + 1);
        found.renew(&second, dir.path(), NOW_MS + 1).expect("is renewed again");
        assert_eq!(
            NodeIdentity::load(dir.path()).expect("loaded").seed(),
            seed,
            "connections are known over all of them"
        );
    }

    #[test]
    fn what_cannot_replace_it_is_refused_and_nothing_changes() {
        let (dir, ours) = (tempfile::tempdir().expect("temporary directory"), authority());
        ours.issue(NodeId(7), Validity::ENDLESS).expect("issued").save(dir.path()).expect("saved");
        let identity = NodeIdentity::load(dir.path()).expect("loaded");
        let before = files(dir.path());
        let another = renewed(&ours, 8, NOW_MS);
        let stranger = renewed(&authority(), 7, NOW_MS);
        // The same names, signed by another key: an authority that was made anew for the cluster.
        let forged = ClusterAuthority::create(identity.cluster().clone()).expect("made");
        let key = JoinKey::generate().expect("made");
        let validity = Validity::starting(NOW_MS, Duration::from_secs(3600));
        let signed = forged.sign(NodeId(7), &key.request_pem().expect("made"), validity).expect("signed");
        let forged = key.complete(identity.ca_pem(), &signed).expect("complete");
        let ended = renewed(&ours, 7, NOW_MS - 3_700_000);
        for (odd, why) in [(another, "node 8"), (stranger, "another authority"), (forged, "igna"), (ended, "xpired")] {
            let error = identity.renew(&odd, dir.path(), NOW_MS).expect_err(why).to_string();
            assert!(error.contains(why), "{why}: {error}");
            assert_eq!(files(dir.path()), before, "{why}");
        }
    }

    /// At each step of a replacement, as the directory is then: there is a whole pair, and the node goes on with it.
    #[test]
    fn a_crash_at_any_step_leaves_a_pair() {
        let authority = authority();
        let old = authority.issue(NodeId(7), Validity::ENDLESS).expect("issued");
        let new = renewed(&authority, 7, NOW_MS);
        let pair = new.credentials().shown().now();
        let (certificate, key) = (pair.certificate_pem(), pair.key_pem());
        for steps in 0..=4 {
            let dir = tempfile::tempdir().expect("temporary directory");
            old.save(dir.path()).expect("saved");
            let step = [
                (SEED_FILE, hex(&old.seed()), files::PRIVATE),
                (RENEWED_FILE, format!("{certificate}{key}"), files::PRIVATE),
                (NODE_KEY_FILE, key.to_owned(), files::PRIVATE),
                (NODE_CERTIFICATE_FILE, certificate.to_owned(), files::PUBLIC),
            ];
            for (name, text, mode) in &step[..steps] {
                write(dir.path(), name, text, *mode).expect("written");
            }
            let expected = if steps < 2 { &old } else { &new };
            let found = NodeIdentity::load(dir.path()).expect("a whole pair");
            assert_eq!((found.certificate(), found.seed()), (expected.certificate(), old.seed()), "{steps}");
            settle(dir.path()).expect("goes on");
            assert!(!dir.path().join(RENEWED_FILE).exists());
            let found = NodeIdentity::load(dir.path()).expect("a whole pair");
            assert_eq!((found.certificate(), found.seed()), (expected.certificate(), old.seed()), "{steps}");
            assert_eq!(read(&dir.path().join(NODE_KEY_FILE)).expect("reads").matches("BEGIN").count(), 1);
        }
    }
}
