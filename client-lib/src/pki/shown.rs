//! The certificate and key that are shown in handshakes, and may be replaced while connections are made.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{KEY, PkiError, Validity, certificate_from_pem, provider};

/// A certificate and its key.
pub(crate) struct Pair {
    /// The certificate and the CA's: a joining node learns the CA from the chain.
    certified: Arc<CertifiedKey>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    validity: Validity,
    certificate_pem: String,
    key_pem: String,
}

impl Pair {
    /// From two PEM texts: of each the first thing of its kind.
    pub(super) fn from_pem(
        certificate_pem: &str,
        key_pem: &str,
        ca: &CertificateDer<'static>,
    ) -> Result<Pair, PkiError> {
        let unusable = |error: &dyn fmt::Display| PkiError::Parse { what: KEY, reason: error.to_string() };
        let certificate = certificate_from_pem(certificate_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| unusable(&error))?;
        let signing = provider().key_provider.load_private_key(key.clone_key()).map_err(|error| unusable(&error))?;
        let certified = CertifiedKey::new(vec![certificate.clone(), ca.clone()], signing);
        certified.keys_match().map_err(|_| unusable(&"it is not that of the certificate"))?;
        Ok(Pair {
            certified: Arc::new(certified),
            validity: Validity::of(&certificate)?,
            certificate,
            key,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(super) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    pub(super) fn secret(&self) -> &[u8] {
        self.key.secret_der()
    }

    pub(super) fn validity(&self) -> Validity {
        self.validity
    }
}

/// What is shown now. TLS asks it in every handshake.
pub(crate) struct Shown {
    pair: RwLock<Arc<Pair>>,
}

impl Shown {
    pub(super) fn new(pair: Pair) -> Shown {
        Shown { pair: RwLock::new(Arc::new(pair)) }
    }

    pub(super) fn now(&self) -> Arc<Pair> {
        self.pair.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn replace(&self, pair: Arc<Pair>) {
        *self.pair.write().unwrap_or_else(PoisonError::into_inner) = pair;
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("until", &self.now().validity.to_string()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now().certified.clone())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _authorities: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.now().certified.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
