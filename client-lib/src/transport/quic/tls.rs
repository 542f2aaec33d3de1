//! How connections are secured and tuned: TLS 1.3 both ways with the cluster's own CA, and QUIC's settings.
//!
//! Server and client certificates are verified against the cluster CA; the client also checks that it reached
//! the node it dialled. Nothing is resumed and nothing is sent before the handshake ends: replayable (STACK §3).

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{
    Connection, ConnectionError, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, TransportErrorCode,
    VarInt, congestion,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hold::Hold;
use super::path::Path;
use super::yielding::YieldingConfig;
use super::{StartError, UNAUTHENTICATED_REQUEST_MAX};
use crate::pki::{self, Credentials};

const ALPN: &[u8] = b"helio/1";
/// Ten of these fit one segmented send of 65 507 bytes; above that quinn stalls silently (quinn-rs/quinn#2199).
const MTU_MAX: u16 = 6500;
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT_MS: u32 = 20_000;
/// Assumed before the first measurement: a lost first packet is sent again after three of these.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// 16 MiB let one stream fill 400 Mbit/s over 300 ms.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Calls of one connection under way; more wait at the caller.
const STREAMS_MAX: u32 = 256;
/// The same two of a connection whose caller is not known, or is nobody: a request to join, and no more. What is not read yet takes memory, and a
/// stream whose first byte is missing is never read.
const UNKNOWN_WINDOW: u32 = 2 * UNAUTHENTICATED_REQUEST_MAX as u32;
const UNKNOWN_STREAMS_MAX: u32 = 1;
/// Handshakes waiting to be accepted; more are refused.
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKE_BUFFER: u64 = 64 << 10;
const HANDSHAKE_BUFFER_TOTAL: u64 = 8 << 20;

/// Which congestion controller a connection uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Congestion {
    /// Inside a site: fair, and loss means congestion.
    Cubic,
    /// Across providers: random loss must not stop the flow (our measurement: docs/decisions/0009).
    Bbr,
    /// For what can wait: nothing may wait behind it.
    Yielding,
}

/// `hold` is the transport's; `path` where the dialling end dials to: if its connection yields, it carries bulk. `None` at the end that accepts.
pub(super) fn transport_config(
    congestion: Congestion,
    path: Option<&Arc<Path>>,
    hold: &Arc<Hold>,
) -> Arc<TransportConfig> {
    let client = path.is_some();
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(mtu))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        // One end is enough to keep a connection alive.
        .keep_alive_interval(client.then_some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(if client { CONNECTION_WINDOW } else { UNKNOWN_WINDOW }))
        .send_window(u64::from(CONNECTION_WINDOW))
        // Of bulk and replies that are equally urgent the first is sent first: shared out, all of it would be there when the last of it is.
        // A vote does not wait for a large manifest.
        .send_fairness(congestion != Congestion::Yielding)
        // Only the dialling end calls. Whoever it is has been told both limits before it shows a certificate, and they cannot be taken back.
        .max_concurrent_bidi_streams(VarInt::from_u32(if client { 0 } else { UNKNOWN_STREAMS_MAX }))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    match congestion {
        Congestion::Cubic => config.congestion_controller_factory(Arc::new(congestion::CubicConfig::default())),
        Congestion::Bbr => config.congestion_controller_factory(Arc::new(congestion::BbrConfig::default())),
        Congestion::Yielding => {
            config.congestion_controller_factory(Arc::new(YieldingConfig { hold: hold.clone(), path: path.cloned() }))
        }
    };
    Arc::new(config)
}

/// Gives a caller that is let in what it needs; until then it has what everybody has.
pub(super) fn let_in(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
}

/// What a refused caller is told when its certificate is of nobody; with [`CODE_CERTIFICATE`].
pub(super) const CERTIFICATE_REFUSED: &[u8] = b"certificate refused";
/// The code of that.
pub(super) const CODE_CERTIFICATE: VarInt = VarInt::from_u32(1);

/// What a caller is told whose certificate was taken back; with [`CODE_CERTIFICATE`] before anything was served, with
/// [`CODE_TAKEN_BACK`] afterwards.
pub(super) const CERTIFICATE_REVOKED: &[u8] = b"certificate revoked";
/// The code of a connection that was served and is no more: what was under way may have been carried out.
pub(super) const CODE_TAKEN_BACK: VarInt = VarInt::from_u32(2);

/// What a client is told whose certificate has ended while it was served; with [`CODE_TAKEN_BACK`].
pub(super) const CERTIFICATE_ENDED: &[u8] = b"certificate ended";

/// Whether the other end has ended the connection because this end's certificate has ended.
pub(super) fn is_end(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ApplicationClosed(close) if close.reason == CERTIFICATE_ENDED)
}

/// Whether the other end has said that this end's certificate was taken back; `before_anything` if it had served nothing.
pub(super) fn is_revocation(error: &ConnectionError, before_anything: bool) -> bool {
    let ConnectionError::ApplicationClosed(close) = error else { return false };
    close.reason == CERTIFICATE_REVOKED
        && (close.error_code == CODE_CERTIFICATE || close.error_code == CODE_TAKEN_BACK && !before_anything)
}

/// Whether a connection ended, before anything was said on it, because one end did not accept the other's certificate.
pub(super) fn is_refusal(error: &ConnectionError) -> bool {
    match error {
        ConnectionError::TransportError(error) => is_about_certificates(error.code),
        ConnectionError::ConnectionClosed(close) => is_about_certificates(close.error_code),
        ConnectionError::ApplicationClosed(close) => {
            close.error_code == CODE_CERTIFICATE && close.reason == CERTIFICATE_REFUSED
        }
        _ => false,
    }
}

/// An alert of TLS in a code of QUIC (RFC 9001 §4.8: 0x100 and the alert), by which certificates are refused (RFC 8446 §6.2).
fn is_about_certificates(code: TransportErrorCode) -> bool {
    const CRYPTO: u64 = 0x100;
    matches!(
        u64::from(code).wrapping_sub(CRYPTO),
        // bad_certificate to certificate_unknown, unknown_ca, access_denied; decrypt_error, where another authority of the same
        // name has signed it; certificate_required.
        42..=46 | 48 | 49 | 51 | 116
    )
}

/// The endpoint's keys derive from a seed that the node keeps, so that a restarted node recognises and resets the connections of
/// its former life: the peer learns at once instead of after the idle timeout.
pub(super) fn endpoint_config(seed: &[u8]) -> Result<EndpointConfig, StartError> {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(pki::hmac_sha256(seed, b"stateless reset"))));
    config.cid_generator(|| Box::new(RandomIds { random: pki::provider().secure_random }));
    config.max_udp_payload_size(MTU_MAX).map_err(|error| StartError::Config(error.to_string()))?;
    Ok(config)
}

struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&pki::hmac_sha256(&self.0, data));
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Only guards against accidents: reset tokens are compared by quinn, not here.
        if pki::hmac_sha256(&self.0, data) == signature { Ok(()) } else { Err(CryptoError) }
    }
}

pub(super) fn server_config(identity: &Credentials, hold: &Arc<Hold>) -> Result<quinn::ServerConfig, StartError> {
    let provider = Arc::new(pki::provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity.ca())?), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(StartError::config)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(StartError::config)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity.shown());
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(StartError::config)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        // Neither who calls nor the class of the calls is known yet when this must be chosen. Most reply bytes are pulled
        // in the background; the others are few.
        .transport_config(transport_config(Congestion::Yielding, None, hold))
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(HANDSHAKE_BUFFER)
        .incoming_buffer_size_total(HANDSHAKE_BUFFER_TOTAL);
    Ok(config)
}

pub(super) fn client_crypto(identity: &Credentials) -> Result<Arc<QuicClientConfig>, StartError> {
    let provider = Arc::new(pki::provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(identity.ca())?), provider.clone())
        .build()
        .map_err(StartError::config)?;
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(StartError::config)?
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(identity.shown());
    finish_client(tls)
}

/// For a node that has no certificate yet and knows only the CA's fingerprint.
pub(super) fn joining_crypto(ca_fingerprint: &str) -> Result<Arc<QuicClientConfig>, StartError> {
    let provider = Arc::new(pki::provider());
    let verifier =
        Arc::new(PinnedAuthority { fingerprint: ca_fingerprint.to_ascii_lowercase(), provider: provider.clone() });
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(StartError::config)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    finish_client(tls)
}

fn finish_client(mut tls: rustls::ClientConfig) -> Result<Arc<QuicClientConfig>, StartError> {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(tls).map_err(StartError::config)?))
}

fn roots(ca: &CertificateDer<'static>) -> Result<RootCertStore, StartError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(StartError::config)?;
    Ok(roots)
}

/// Random connection ids without a checksum: quinn's default ids carry one under a key that a restart changes, and
/// ids that fail it are dropped instead of reset.
struct RandomIds {
    random: &'static dyn rustls::crypto::SecureRandom,
}

const CONNECTION_ID_SIZE: usize = 8;

impl quinn::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        let mut bytes = [0; CONNECTION_ID_SIZE];
        self.random.fill(&mut bytes).expect("the library's generator was seeded during the handshake set-up");
        quinn::ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_SIZE
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Accepts any node whose chain contains, and is signed by, the CA of the pinned fingerprint.
#[derive(Debug)]
struct PinnedAuthority {
    fingerprint: String,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|certificate| pki::fingerprint(certificate) == self.fingerprint);
        let Some(ca) = pinned else {
            return Err(rustls::Error::General("the server's CA does not have the expected fingerprint".into()));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, &[], now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
