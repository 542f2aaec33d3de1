//! TLS of the client: whose servers it believes, and which certificate it shows.
//!
//! The server's certificate is always verified. Certificates are in files, named in a directory as libnbd names them, so that one
//! directory serves it, QEMU and this client.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::ClientError;
use super::uri::{NbdUri, ServerAddress, UriTls};
use crate::tls::{VERSIONS, authorities, certificates, private_key, provider};

/// Who has signed the server's certificate.
const AUTHORITY_FILE: &str = "ca-cert.pem";
/// The client's certificate, if it has one.
const CERTIFICATE_FILE: &str = "client-cert.pem";
/// Its key.
const KEY_FILE: &str = "client-key.pem";
/// Where systems keep the authorities that they believe, for addresses that name no directory.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What is needed to begin TLS with the server of `uri`, whose settings for it are `tls`.
///
/// # Errors
/// `Tls`, with what to do.
pub(super) fn connector(uri: &NbdUri, tls: &UriTls) -> Result<(TlsConnector, ServerName<'static>), ClientError> {
    let failed = |reason: String| ClientError::Tls { uri: uri.to_string(), reason };
    let name = match (&tls.hostname, &uri.server) {
        (Some(name), _) => name.clone(),
        (None, ServerAddress::Tcp { host, .. }) => host.clone(),
        // The name that a server on the same machine has.
        (None, ServerAddress::Unix(_)) => "localhost".to_owned(),
    };
    let server = ServerName::try_from(name.clone())
        .map_err(|_| failed(format!("{name:?} cannot be the name of a certificate; write &tls-hostname=NAME")))?;
    let config = config(tls.certificates.as_deref()).map_err(failed)?;
    Ok((TlsConnector::from(Arc::new(config)), server))
}

fn config(directory: Option<&Path>) -> Result<ClientConfig, String> {
    let told = |error: client_lib::Error| error.to_string();
    let roots = match directory {
        Some(directory) => authorities(&directory.join(AUTHORITY_FILE)).map_err(told)?,
        None => system_authorities()?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(VERSIONS)
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let file = |name: &str| directory.map(|directory| directory.join(name)).filter(|path| path.exists());
    match (file(CERTIFICATE_FILE), file(KEY_FILE)) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(&certificate, "the client's certificate").map_err(told)?;
            builder.with_client_auth_cert(chain, private_key(&key).map_err(told)?).map_err(|error| {
                format!("{} and {} cannot be used together: {error}", certificate.display(), key.display())
            })
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(path), None) | (None, Some(path)) => {
            let text = format!(
                "{} is there without its fellow: give {CERTIFICATE_FILE} and {KEY_FILE}, or neither",
                path.display()
            );
            Err(text)
        }
    }
}

fn system_authorities() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = SYSTEM_AUTHORITIES.map(PathBuf::from).iter().find(|path| path.exists()) {
        let read = CertificateDer::pem_file_iter(path).map_err(|error| format!("{}: {error}", path.display()))?;
        // Systems keep some that nobody can read any more.
        roots.add_parsable_certificates(read.filter_map(Result::ok));
    }
    if roots.is_empty() {
        let text =
            format!("this system has no authorities; write ?tls-certificates=DIRECTORY of one with {AUTHORITY_FILE}");
        return Err(text);
    }
    Ok(roots)
}
