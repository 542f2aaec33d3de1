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

/// Moves what one end has to say to the other; whether that was anything.
fn pass<A, B>(from: &mut rustls::ConnectionCommon<A>, to: &mut rustls::ConnectionCommon<B>) -> bool {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).expect("a vector takes it");
    }
    let mut left = &bytes[..];
    while !left.is_empty() {
        to.read_tls(&mut left).expect("a slice has it");
        to.process_new_packets().expect("both ends accept each other");
    }
    !bytes.is_empty()
}

/// A client's certificate that had ended went on for ever: whoever had connected in time was given tickets, and a session that is resumed by one
/// shows no certificate. It brought new tickets, too.
#[test]
fn every_connection_shows_its_certificate_anew() {
    let files = Files::new();
    let tls = Tls::load(files.options()).expect("is used");
    let server = Arc::clone(&tls.loaded.lock().expect("no thread panics with it").config);
    for version in VERSIONS {
        let chain = certificates(&files.path("cert.pem"), "a certificate").expect("has one");
        let key = private_key(&files.path("key.pem")).expect("has one");
        // Resumes whatever it can, as rustls does unless it is told otherwise.
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[*version])
            .expect("is known")
            .with_root_certificates(authorities(&files.path("cert.pem")).expect("has one"))
            .with_client_auth_cert(chain, key)
            .expect("is used");
        let config = Arc::new(config);
        for _ in 0..3 {
            let name = "localhost".try_into().expect("a name");
            let mut client = rustls::ClientConnection::new(Arc::clone(&config), name).expect("begins");
            let mut server = rustls::ServerConnection::new(Arc::clone(&server)).expect("begins");
            // Up to the tickets, which come behind the handshake.
            while pass(&mut client, &mut server) | pass(&mut server, &mut client) {}
            assert_eq!(server.handshake_kind(), Some(rustls::HandshakeKind::Full), "{version:?}");
            assert!(server.peer_certificates().is_some(), "{version:?}");
        }
    }
}
