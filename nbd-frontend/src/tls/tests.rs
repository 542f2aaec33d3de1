//! Certificates in files: read, refused with what to do, and read again.

use super::*;

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    /// A certificate of its own authority, and its key.
    fn new() -> Files {
        let files = Files { directory: tempfile::tempdir().expect("a directory") };
        files.issue();
        files
    }

    fn issue(&self) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(self.path("cert.pem"), made.cert.pem()).expect("is written");
        std::fs::write(self.path("key.pem"), made.signing_key.serialize_pem()).expect("is written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn options(&self) -> TlsOptions {
        TlsOptions {
            mode: TlsMode::Required,
            certificate: self.path("cert.pem"),
            key: self.path("key.pem"),
            client_authority: Some(self.path("cert.pem")),
        }
    }

    fn refused(&self, options: TlsOptions) -> String {
        let Err(error) = Tls::load(options) else { panic!("it is used") };
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        error.to_string()
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_the_file() {
    let files = Files::new();
    assert!(Tls::load(files.options()).is_ok());
    let missing = files.refused(TlsOptions { certificate: files.path("nothing.pem"), ..files.options() });
    assert!(missing.contains("nothing.pem") && missing.contains("No such file"), "{missing}");
    let swapped = files.refused(TlsOptions { certificate: files.path("key.pem"), ..files.options() });
    assert!(swapped.contains("key.pem") && swapped.contains("no certificate"), "{swapped}");
    let no_key = files.refused(TlsOptions { key: files.path("cert.pem"), ..files.options() });
    assert!(no_key.contains("cert.pem") && no_key.contains("no private key"), "{no_key}");
    std::fs::write(files.path("empty.pem"), "").expect("is written");
    let empty = files.refused(TlsOptions { client_authority: Some(files.path("empty.pem")), ..files.options() });
    assert!(empty.contains("empty.pem") && empty.contains("authority"), "{empty}");
    let other = Files::new();
    let foreign = files.refused(TlsOptions { key: other.path("key.pem"), ..files.options() });
    assert!(foreign.contains("its own key"), "{foreign}");
}

#[test]
fn a_renewed_certificate_is_used_and_an_unusable_one_is_not() {
    let files = Files::new();
    let tls = Tls::load(files.options()).expect("is used");
    let in_use = || {
        tls.acceptor();
        Arc::clone(&tls.loaded.lock().expect("no thread panics with it").config)
    };
    let first = in_use();
    assert!(Arc::ptr_eq(&first, &in_use()), "unchanged files are not read again");
    // Half of a renewal: another certificate, and the key of the old one. The length tells, whatever the clock says.
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "another.example".to_owned()]);
    let made = made.expect("a certificate");
    std::fs::write(files.path("cert.pem"), made.cert.pem()).expect("is written");
    assert!(Arc::ptr_eq(&first, &in_use()), "not used with a key that is not its own");
    let key = format!("{}\n", made.signing_key.serialize_pem());
    std::fs::write(files.path("key.pem"), key).expect("is written");
    assert!(!Arc::ptr_eq(&first, &in_use()));
}
