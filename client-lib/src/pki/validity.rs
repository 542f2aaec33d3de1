//! From when until when a certificate counts. Judges nothing by itself: TLS does; this is for who issues, renews and watches over them.
//!
//! Certificates that were made before they had an end are in force until the year 4096 ([`Validity::ENDLESS`]), and go on counting.

use std::fmt;
use std::time::Duration;

use rcgen::{CertificateParams, date_time_ymd};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{Error as TlsError, RootCertStore};

use super::{PkiError, provider};

/// For how long a node's certificate counts, unless the settings of the node that has the authority say otherwise.
pub const NODE_LIFETIME: Duration = Duration::from_secs(90 * DAY_S);
/// For how long a client's certificate counts, unless told otherwise.
pub const CLIENT_LIFETIME: Duration = Duration::from_secs(365 * DAY_S);

const DAY_S: u64 = 24 * 3600;
/// A certificate counts from so much earlier than it is issued: the clocks of other machines may be behind.
const SKEW_MS: u64 = 300_000;
/// What lasts longer was made to have no end.
const END_MS_MAX: u64 = 200 * 365 * DAY_S * 1000;
/// The end of the year 8300: the library's calendar ends in 9999.
const CALENDAR_MS_MAX: u64 = 200_000_000_000_000;

/// From when until when a certificate counts, in milliseconds since 1970; certificates have whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From when.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
}

impl Validity {
    /// As certificates were made before they had an end: from 1975 until 4096, as `rcgen` sets it.
    pub const ENDLESS: Validity = Validity { from_ms: 157_766_400_000, until_ms: 67_090_118_400_000 };

    /// Of a certificate that is issued at `now_ms` to count for `lifetime`.
    #[must_use]
    pub fn starting(now_ms: u64, lifetime: Duration) -> Validity {
        let lifetime_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        Validity { from_ms: now_ms.saturating_sub(SKEW_MS), until_ms: now_ms.saturating_add(lifetime_ms) }
    }

    /// Of this certificate.
    ///
    /// # Errors
    /// [`PkiError::Parse`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Validity, PkiError> {
        let wrong = |reason: String| PkiError::Parse { what: "certificate", reason };
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| wrong(error.to_string()))?;
        let validity = parsed.validity();
        let ms = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1000);
        Ok(Validity { from_ms: ms(validity.not_before), until_ms: ms(validity.not_after) })
    }

    /// Of the first certificate in `pem`.
    ///
    /// # Errors
    /// [`PkiError::Parse`].
    pub fn of_pem(pem: &str) -> Result<Validity, PkiError> {
        let wrong = |reason: String| PkiError::Parse { what: "certificate", reason };
        Validity::of(&CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(error.to_string()))?)
    }

    /// Whether it was made to end.
    #[must_use]
    pub fn has_end(&self) -> bool {
        self.until_ms < END_MS_MAX
    }

    /// Whether it is over at this time.
    #[must_use]
    pub fn has_ended(&self, now_ms: u64) -> bool {
        // The last second is in it (RFC 5280 §4.1.2.5).
        now_ms / 1000 > self.until_ms / 1000
    }

    /// Whether it does not count yet at this time, nor by clocks that are ahead by what is allowed: it was issued by a clock that was ahead, or
    /// this one is behind.
    #[must_use]
    pub fn is_early(&self, now_ms: u64) -> bool {
        // Whole seconds, as certificates have; and what is just that far ahead is within what is allowed.
        self.from_ms / 1000 > now_ms.saturating_add(SKEW_MS) / 1000
    }

    /// Whether it counts at this time: it has not ended, and is not early.
    #[must_use]
    pub fn counts(&self, now_ms: u64) -> bool {
        !self.has_ended(now_ms) && !self.is_early(now_ms)
    }

    /// When it is to be renewed, at two thirds of the time for which it was issued; `None` if it has no end.
    #[must_use]
    pub fn renewal_ms(&self) -> Option<u64> {
        let issued_ms = self.from_ms.saturating_add(SKEW_MS).min(self.until_ms);
        self.has_end().then(|| issued_ms + (self.until_ms - issued_ms) / 3 * 2)
    }

    /// Has a certificate that is to be signed count so.
    pub(super) fn set(&self, params: &mut CertificateParams) {
        // Beyond that the library's calendar ends.
        let at = |ms: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(ms.min(CALENDAR_MS_MAX) / 1000);
        (params.not_before, params.not_after) = (at(self.from_ms), at(self.until_ms));
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.has_end() {
            true => f.write_str(&date(self.until_ms)),
            false => f.write_str("no end"),
        }
    }
}

/// A time in milliseconds since 1970, for people: to the second, in UTC.
#[must_use]
pub fn date(ms: u64) -> String {
    let time = date_time_ymd(1970, 1, 1) + Duration::from_secs(ms.min(CALENDAR_MS_MAX) / 1000);
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    let (hour, minute, second) = (time.hour(), time.minute(), time.second());
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Whether `ca` has signed `certificate`, which counts at `now_ms`.
pub(super) fn check_signed(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    now_ms: u64,
) -> Result<(), PkiError> {
    let check = || -> Result<(), TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(certificate)?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
        let algorithms = provider().signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms)
    };
    check().map_err(|error| PkiError::Parse { what: "certificate", reason: error.to_string() })
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
        assert_eq!(Validity::of_pem(&pem).expect("a certificate").until_ms, 1_893_456_000_000);
        assert!(Validity::of_pem(&key.serialize_pem()).is_err() && Validity::of_pem("").is_err());
        // What rcgen does when it is told nothing is what certificates had before they had an end.
        let params = rcgen::CertificateParams::new(vec!["host".to_owned()]).expect("a name");
        let pem = params.self_signed(&key).expect("is signed").pem();
        assert_eq!(Validity::of_pem(&pem).expect("a certificate"), Validity::ENDLESS);
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_what_it_was_issued_for() {
        const DAY_MS: u64 = DAY_S * 1000;
        let now_ms = 1_800_000_000_000;
        let validity = Validity::starting(now_ms, NODE_LIFETIME);
        assert_eq!(validity, Validity { from_ms: now_ms - 300_000, until_ms: now_ms + 90 * DAY_MS });
        assert_eq!(validity.renewal_ms(), Some(now_ms + 60 * DAY_MS));
        // The time that is allowed for other clocks is longer than all of it.
        let short = Validity::starting(now_ms, Duration::from_secs(30));
        assert_eq!(short.renewal_ms(), Some(now_ms + 20_000));
        assert_eq!((Validity::ENDLESS.renewal_ms(), Validity::ENDLESS.has_end()), (None, false));
        for (now_ms, has_ended) in [(0, false), (validity.until_ms + 999, false), (validity.until_ms + 1000, true)] {
            assert_eq!(validity.has_ended(now_ms), has_ended, "{now_ms}");
        }
        for (now_ms, is_early) in [(0, true), (now_ms - 601_000, true), (now_ms - 600_000, false), (now_ms, false)] {
            assert_eq!(validity.is_early(now_ms), is_early, "{now_ms}");
        }
    }

    #[test]
    fn times_are_told_to_people() {
        assert_eq!(date(1_893_456_000_999), "2030-01-01 00:00:00 UTC");
        assert_eq!(Validity { from_ms: 0, until_ms: 1_795_766_399_000 }.to_string(), "2026-11-27 07:59:59 UTC");
        assert_eq!(Validity::ENDLESS.to_string(), "no end");
        assert!(!date(u64::MAX).is_empty(), "whatever a certificate says");
    }
}
