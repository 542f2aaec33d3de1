//! TLS of the server ("TLS support"): who must use it, and its certificates, from files.
//!
//! TLS 1.3 and 1.2, which the protocol demands; certificates only (no pre-shared keys, which rustls does not have). The
//! files are looked at when a client asks for TLS and read again when they have changed, so that a renewed certificate needs
//! no restart; files that cannot be used then are told of once, and the old ones stay in use. When TLS begins and what may
//! be said before is for `negotiation`; the bytes are tokio-rustls's.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use client_lib::{Error, ErrorKind};
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::TlsAcceptor;

/// A stream on which TLS has begun, at the server's end.
pub(crate) type Encrypted<S> = tokio_rustls::server::TlsStream<S>;

/// Which clients must use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Those that want to ("SELECTIVETLS mode", with no export that is for TLS only).
    Optional,
    /// Every client over TCP ("FORCEDTLS mode"); over a Unix socket, whose file says who may connect, those that want to.
    Required,
}

/// TLS as a server is to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Which clients must use it.
    pub mode: TlsMode,
    /// The server's certificate and those between it and its authority, in PEM, its own first.
    pub certificate: PathBuf,
    /// The key of the certificate, in PEM.
    pub key: PathBuf,
    /// Certificates of authorities, in PEM: a client must show a certificate that one of them has signed.
    pub client_authority: Option<PathBuf>,
}

impl TlsOptions {
    fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_authority).map(PathBuf::as_path)
    }

    /// By what the files are seen to have changed.
    fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let stamp = |path: &Path| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.modified().ok()?, file.len()))
        };
        self.files().map(stamp).collect()
    }
}

/// The certificates in use.
pub(crate) struct Tls {
    options: TlsOptions,
    loaded: Mutex<Loaded>,
}

struct Loaded {
    stamps: Vec<Option<(SystemTime, u64)>>,
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// `InvalidRequest`, with the file and what to do.
    pub(crate) fn load(options: TlsOptions) -> Result<Tls, Error> {
        // Looked at before they are read: a change in between is seen as one.
        let stamps = options.stamps();
        let config = server_config(&options)?;
        Ok(Tls { options, loaded: Mutex::new(Loaded { stamps, config }) })
    }

    pub(crate) fn mode(&self) -> TlsMode {
        self.options.mode
    }

    /// With the certificates as they are in the files now.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = self.options.stamps();
        if stamps != loaded.stamps {
            loaded.stamps = stamps;
            match server_config(&self.options) {
                Ok(config) => {
                    loaded.config = config;
                    tracing::info!(certificate = %self.options.certificate.display(), "the certificate for NBD was read again");
                }
                // As while it is being replaced: the next change is looked at again.
                Err(error) => {
                    tracing::warn!(%error, "the certificates for NBD have changed and cannot be used; those before stay in use")
                }
            }
        }
        TlsAcceptor::from(Arc::clone(&loaded.config))
    }
}

fn server_config(options: &TlsOptions) -> Result<Arc<ServerConfig>, Error> {
    let chain = certificates(&options.certificate, "the server's certificate")?;
    let key = private_key(&options.key)?;
    let builder = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(VERSIONS)
        .map_err(|error| unusable(&options.certificate, &error))?;
    let builder = match &options.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::new(provider()))
                .build()
                .map_err(|error| unusable(path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        let text = format!(
            "{} and {} cannot be used together: {error}; give a certificate and its own key",
            options.certificate.display(),
            options.key.display()
        );
        Error::new(ErrorKind::InvalidRequest, text)
    })?;
    // Nothing is resumed: a resumed session looks at no certificate, and one that has ended would go on for ever.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// "TLS versions": 1.2 must be there, later ones should.
pub(crate) static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// The one provider of the process (docs/decisions/0003).
pub(crate) fn provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

/// The certificates in a PEM file, at least one.
pub(crate) fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(path, &error))?;
    if certificates.is_empty() {
        return Err(unusable(path, &format!("it has no certificate in PEM; {what} is expected there")));
    }
    Ok(certificates)
}

/// The key in a PEM file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => unusable(path, &"it has no private key in PEM"),
        error => unusable(path, &error),
    })
}

/// Certificates that others are checked against.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, "the certificate of an authority")? {
        roots.add(certificate).map_err(|error| unusable(path, &error))?;
    }
    Ok(roots)
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidRequest, format!("{} cannot be used for TLS: {reason}", path.display()))
}

#[cfg(test)]
mod tests;
