//! Certificates for tests: an authority, a server, a client, in the files that libnbd and QEMU look for in a directory.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_frontend::{TlsMode, TlsOptions};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

pub struct Certificates {
    directory: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    /// All of them, signed by a new authority.
    pub fn new() -> Certificates {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "tests of Heliotrope");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let certificates = Certificates { directory: tempfile::tempdir().expect("a directory"), authority };
        std::fs::write(certificates.path("ca-cert.pem"), certificates.authority.pem()).expect("is written");
        certificates.issue("server", ExtendedKeyUsagePurpose::ServerAuth, &["localhost", "127.0.0.1"]);
        certificates.issue("client", ExtendedKeyUsagePurpose::ClientAuth, &["client.example"]);
        certificates
    }

    /// Puts `NAME-cert.pem` and `NAME-key.pem` into the directory.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose, names: &[&str]) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("good names");
        params.distinguished_name.push(DnType::CommonName, name);
        // The second for QEMU, which insists on it.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.authority).expect("is signed");
        std::fs::write(self.path(&format!("{name}-cert.pem")), certificate.pem()).expect("is written");
        std::fs::write(self.path(&format!("{name}-key.pem")), key.serialize_pem()).expect("is written");
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// TLS for a raw client that shows no certificate.
    pub fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has some")
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    /// A directory with the authority only: for a client that shows no certificate.
    pub fn without_client(&self) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::copy(self.path("ca-cert.pem"), directory.path().join("ca-cert.pem")).expect("is copied");
        directory
    }

    /// For a server, which may want certificates of its clients.
    pub fn server(&self, mode: TlsMode, clients: bool) -> TlsOptions {
        TlsOptions {
            mode,
            certificate: self.path("server-cert.pem"),
            key: self.path("server-key.pem"),
            client_authority: clients.then(|| self.path("ca-cert.pem")),
        }
    }
}
