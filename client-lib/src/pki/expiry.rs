//! Until when a certificate is valid, for whoever watches over it. Judges nothing: TLS does.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::PkiError;

/// When the first certificate in `pem` expires, in seconds since 1970.
///
/// # Errors
/// [`PkiError::Parse`].
pub fn certificate_expiry(pem: &str) -> Result<i64, PkiError> {
    let wrong = |reason: String| PkiError::Parse { what: "certificate", reason };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|error| wrong(error.to_string()))?;
    Ok(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_told_and_other_text_is_refused() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["host".to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let pem = params.self_signed(&key).expect("is signed").pem();
        assert_eq!(certificate_expiry(&pem).expect("a certificate"), 1_893_456_000);
        assert!(certificate_expiry(&key.serialize_pem()).is_err() && certificate_expiry("").is_err());
    }
}
