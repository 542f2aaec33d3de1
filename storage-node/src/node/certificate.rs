//! The node's certificate: renewed before it ends, by the node itself, from the node that has the cluster's authority (docs/decisions/0048).
//!
//! Two parts. When to do what is decided by [`Schedule`], which reads no clock. [`keep`] carries it out: it makes a new key, has it signed, and
//! replaces the pair on disk and in use. What is connected stays connected; what fails is tried again, for the third of its time that is left.
//!
//! Does not end connections, and does not judge other nodes' certificates: TLS does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use client_lib::clock::Clock;
use client_lib::error::whole;
use client_lib::pki::{ClusterAuthority, JoinKey, NodeIdentity, Validity, date};
use client_lib::transport::Class;
use client_lib::{Error, ErrorKind, NodeId};

use super::admin::NodeAdmin;
use super::admission::{Admission, AuthorityPlace};
use crate::peer::message::{Message, PeerReply, PeerRequest};

/// The longest rest: the calendar may have been set meanwhile.
const REST_MAX: Duration = Duration::from_secs(3600);
/// The shortest, after a failure.
const REST_MIN: Duration = Duration::from_secs(1);

/// Between looks at a certificate that does not count yet, or for which a node that starts waits: the calendar is set soon, by whoever is told.
const SOON: Duration = Duration::from_secs(60);

/// What to do about a certificate now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Look again after so long.
    Rest(Duration),
    /// Renew it; if that fails, look again after so long.
    Renew(Duration),
}

/// When a certificate is renewed.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    validity: Validity,
}

impl Schedule {
    fn step(self, now_ms: u64) -> Step {
        let Validity { until_ms, .. } = self.validity;
        // It was issued by a clock that was ahead: nobody lets this node in with it.
        if self.validity.is_early(now_ms) {
            return Step::Renew(SOON);
        }
        match self.validity.renewal_ms() {
            // Made before certificates had an end. There is no hurry, and it may be too early (`keep`).
            None => Step::Renew(REST_MAX),
            Some(due_ms) if now_ms < due_ms => {
                Step::Rest(Duration::from_millis(due_ms - now_ms).clamp(Duration::from_millis(1), REST_MAX))
            }
            // A dozen times before it ends, and not more often than every second.
            Some(_) => {
                let left = Duration::from_millis(until_ms.saturating_sub(now_ms));
                Step::Renew((left / 12).clamp(REST_MIN, REST_MAX))
            }
        }
    }
}

/// What renewing a certificate takes.
pub(super) struct Renewer {
    /// Of the node; replaced in place.
    pub(super) identity: NodeIdentity,
    /// Where it is stored.
    pub(super) directory: PathBuf,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) admin: Arc<NodeAdmin>,
    pub(super) admission: Arc<Admission>,
}

/// Renews the node's certificate for as long as the node runs.
pub(super) async fn keep(renewer: Renewer) {
    let mut told = Told::default();
    loop {
        let schedule = Schedule { validity: renewer.identity.validity() };
        let rest = match schedule.step(renewer.clock.unix_ms()) {
            Step::Rest(rest) => rest,
            Step::Renew(pause) => match renewer.attempt().await {
                Ok(true) => {
                    told = Told::default();
                    tracing::info!(until = %renewer.identity.validity(), "this node's certificate was renewed");
                    continue;
                }
                Ok(false) => pause,
                Err(error) => {
                    let counts = schedule.validity.counts(renewer.clock.unix_ms());
                    if told.is_due(renewer.clock.now(), counts) {
                        renewer.tell(&error);
                    }
                    pause
                }
            },
        };
        tokio::time::sleep(rest).await;
    }
}

/// When it was last told that a certificate cannot be renewed, and whether that counted then.
#[derive(Debug, Default)]
struct Told(Option<(Duration, bool)>);

impl Told {
    /// Whether it is to be told now, which it is then. Once an hour is enough for who reads it, but for when the certificate ends meanwhile.
    fn is_due(&mut self, now: Duration, counts: bool) -> bool {
        let is_due = self.0.is_none_or(|(at, counted)| counted != counts || now.saturating_sub(at) >= REST_MAX);
        if is_due {
            self.0 = Some((now, counts));
        }
        is_due
    }
}

impl Renewer {
    /// Renews it, unless that is to wait: whether it did.
    async fn attempt(&self) -> Result<bool, Error> {
        // Who goes back to a program that does not renew would stop at the end of what is given now.
        if !self.identity.validity().has_end() && !self.admin.all_renew().await {
            return Ok(false);
        }
        let unusable = |error| Error::new(ErrorKind::Internal, "a new key cannot be made").caused_by(error);
        let key = JoinKey::generate().map_err(unusable)?;
        let request_pem = key.request_pem().map_err(unusable)?;
        let Some(certificate_pem) = self.signed(&request_pem).await? else { return Ok(false) };
        let renewed = key.complete(self.identity.ca_pem(), &certificate_pem);
        let now_ms = self.clock.unix_ms();
        // Synced to disk before it is shown: a few milliseconds, some times a year.
        renewed.and_then(|renewed| self.identity.renew(&renewed, &self.directory, now_ms)).map_err(|error| {
            Error::new(ErrorKind::Internal, "the certificate that was signed cannot be used").caused_by(error)
        })?;
        Ok(true)
    }

    /// The certificate for this request; `None` where there is no hurry and nobody who could sign answers.
    async fn signed(&self, request_pem: &str) -> Result<Option<String>, Error> {
        let me = self.admin.this.id;
        if self.admission.holds_authority() {
            // As `at_start` does: with a certificate that does not count this node may not even hear who leads.
            let signed = match self.identity.validity().counts(self.clock.unix_ms()) {
                true => self.admission.renew(me, request_pem).await,
                false => self.admission.renew_by_what_is_known(me, request_pem).await,
            };
            return signed.map(Some);
        }
        let mut refusal = None;
        let others: Vec<NodeId> = self.admin.meta.state().nodes().map(|node| node.id).filter(|id| *id != me).collect();
        for node in others {
            match self.signed_by(node, request_pem).await {
                Ok(certificate_pem) => return Ok(Some(certificate_pem)),
                // It has not got the authority, or is too old to know of this.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {}
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    refusal.get_or_insert(error);
                }
                Err(error) => refusal = Some(error),
            }
        }
        if !self.identity.validity().has_end() {
            return Ok(None);
        }
        let nobody = || Error::new(ErrorKind::Unavailable, "no node that answers has the cluster's authority");
        Err(refusal.unwrap_or_else(nobody))
    }

    async fn signed_by(&self, node: NodeId, request_pem: &str) -> Result<String, Error> {
        let request = PeerRequest::Renew { request_pem: request_pem.to_owned() };
        match self.admin.peers.ask(node, Class::Control, request, bytes::Bytes::new()).await? {
            Message { head: PeerReply::Signed { certificate_pem }, .. } => Ok(certificate_pem),
            other => Err(self.admin.peers.unexpected(node, &other.head)),
        }
    }

    fn tell(&self, error: &Error) {
        let validity = self.identity.validity();
        let now_ms = self.clock.unix_ms();
        if !validity.counts(now_ms) {
            let uncounted = Uncounted { name: self.admin.this.name.to_string(), validity, now_ms };
            return tracing::error!(%error, "{uncounted}");
        }
        tracing::warn!(
            until = %validity, %error,
            "this node's certificate is to be renewed and cannot be; it is tried again. The node that has the cluster's authority must run"
        );
    }
}

/// The certificate of a node has ended, or does not count yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the certificate of node {name} {}, and by this machine's clock it is {}: other nodes do not let it in. If that clock is right, \
     take a join token (`helio cluster token --config FILE`, at the node that has the cluster's authority), and here `helio cluster join \
     --config FILE -`, which asks for it and gives the node another certificate: it stays the node that it is, and keeps its data. Then \
     start it again",
    how_uncounted(*.validity, *.now_ms),
    date(*.now_ms)
)]
pub struct Uncounted {
    name: String,
    validity: Validity,
    now_ms: u64,
}

fn how_uncounted(validity: Validity, now_ms: u64) -> String {
    match validity.is_early(now_ms) {
        true => format!("does not count yet, but from {} on", date(validity.from_ms)),
        false => format!("ended on {}", date(validity.until_ms)),
    }
}

/// Sees to it that a node that starts has a certificate that counts: where the authority is, it is renewed, if it is to be.
///
/// # Errors
/// [`Uncounted`]; when the authority cannot be used.
pub fn at_start(
    identity: &NodeIdentity,
    directory: &Path,
    name: &str,
    authority: Option<&AuthorityPlace>,
    clock: &dyn Clock,
) -> anyhow::Result<()> {
    let (validity, now_ms) = (identity.validity(), clock.unix_ms());
    let is_due = validity.is_early(now_ms) || validity.renewal_ms().is_some_and(|due_ms| now_ms >= due_ms);
    if !validity.has_end() || !is_due {
        return Ok(());
    }
    match authority {
        // Here and not later: nobody may be let in by anybody until it is done, also to elect a leader.
        Some(place) => {
            let authority = ClusterAuthority::load(&place.directory).context("the cluster's authority")?;
            let key = JoinKey::generate()?;
            let until = Validity::starting(now_ms, place.node_lifetime);
            let certificate_pem = authority.sign(identity.node(), &key.request_pem()?, until)?;
            identity.renew(&key.complete(identity.ca_pem(), &certificate_pem)?, directory, now_ms)?;
            tracing::info!(%until, "this node's certificate was renewed");
            Ok(())
        }
        None if !validity.counts(now_ms) => Err(Uncounted { name: name.to_owned(), validity, now_ms }.into()),
        None => Ok(()),
    }
}

/// Does what [`at_start`] does for as long as it is polled, where the authority is: a node may wait for others for longer than its certificate
/// lasts, and lets in those whom they wait for.
pub(super) async fn while_starting(
    identity: &NodeIdentity,
    directory: &Path,
    name: &str,
    authority: Option<&AuthorityPlace>,
    clock: &dyn Clock,
) -> std::convert::Infallible {
    if authority.is_none() {
        return std::future::pending().await;
    }
    loop {
        let (Step::Rest(rest) | Step::Renew(rest)) = Schedule { validity: identity.validity() }.step(clock.unix_ms());
        tokio::time::sleep(rest.min(SOON)).await;
        if let Err(error) = at_start(identity, directory, name, authority, clock) {
            tracing::error!("{}", whole(error.as_ref()));
        }
    }
}

#[cfg(test)]
mod tests {
    use client_lib::clock::VirtualClock;
    use client_lib::pki::{ClusterId, NODE_LIFETIME};

    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_and_tried_until_it_ends() {
        let clock = VirtualClock::new(NOW_MS);
        let schedule = Schedule { validity: Validity::starting(NOW_MS, NODE_LIFETIME) };
        assert_eq!(schedule.step(clock.unix_ms()), Step::Rest(REST_MAX), "the calendar may be set");
        clock.advance(59 * DAY + Duration::from_secs(23 * 3600 + 1800));
        assert_eq!(schedule.step(clock.unix_ms()), Step::Rest(Duration::from_secs(1800)));
        clock.advance(Duration::from_secs(1800));
        assert_eq!(schedule.step(clock.unix_ms()), Step::Renew(REST_MAX));
        clock.advance(30 * DAY - Duration::from_secs(60));
        assert_eq!(schedule.step(clock.unix_ms()), Step::Renew(Duration::from_secs(5)));
        clock.advance(DAY);
        assert_eq!(
            schedule.step(clock.unix_ms()),
            Step::Renew(REST_MIN),
            "who comes back after a pause may yet be let in"
        );
        assert_eq!(Schedule { validity: Validity::ENDLESS }.step(NOW_MS), Step::Renew(REST_MAX));
    }

    /// A node that has the authority was started once with a clock that was a year ahead, and renewed its certificate by that. When the clock was
    /// right again every node refused it, and it never renewed: by the end of its certificate it was not due for another year.
    #[test]
    fn a_certificate_that_does_not_count_yet_is_renewed_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = ClusterAuthority::create(ClusterId::random().expect("random")).expect("made");
        authority.save(directory.path()).expect("saved");
        let place = AuthorityPlace { directory: directory.path().to_owned(), node_lifetime: NODE_LIFETIME };
        let clock = VirtualClock::new(NOW_MS);
        let ahead = Validity::starting(NOW_MS + 365 * DAY.as_millis() as u64, NODE_LIFETIME);
        let identity = authority.issue(NodeId(3), ahead).expect("issued");
        assert_eq!(Schedule { validity: ahead }.step(NOW_MS), Step::Renew(SOON));
        let error =
            at_start(&identity, directory.path(), "c", None, &clock).expect_err("nobody lets it in").to_string();
        for part in ["node c does not count yet", "from 2028-01-15 07:55:00", "it is 2027-01-15 08:00:00"] {
            assert!(error.contains(part), "{error}");
        }
        at_start(&identity, directory.path(), "c", Some(&place), &clock).expect("starts");
        assert_eq!(identity.validity(), Validity::starting(NOW_MS, NODE_LIFETIME));
        // Clocks may differ by so much.
        let close = authority.issue(NodeId(3), Validity::starting(NOW_MS + 600_000, NODE_LIFETIME)).expect("issued");
        let before = close.fingerprint();
        at_start(&close, directory.path(), "c", Some(&place), &clock).expect("starts");
        assert_eq!(close.fingerprint(), before);
    }

    /// That a certificate cannot be renewed was told once an hour, and that it had ended up to an hour late.
    #[test]
    fn the_end_of_a_certificate_is_told_when_it_comes() {
        let mut told = Told::default();
        let at = Duration::from_secs;
        for (now, counts, is_due) in [
            (at(0), true, true),
            (at(3599), true, false),
            (at(3600), true, true),
            (at(3601), false, true),
            (at(3602), false, false),
            (at(7201), false, true),
        ] {
            assert_eq!(told.is_due(now, counts), is_due, "{now:?}");
        }
    }

    #[test]
    fn a_node_that_starts_renews_where_the_authority_is_and_says_what_to_do_elsewhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = ClusterAuthority::create(ClusterId::random().expect("random")).expect("made");
        authority.save(directory.path()).expect("saved");
        let place = AuthorityPlace { directory: directory.path().to_owned(), node_lifetime: NODE_LIFETIME };
        let identity =
            |issued_ms| authority.issue(NodeId(3), Validity::starting(issued_ms, NODE_LIFETIME)).expect("issued");
        let start = |identity: &NodeIdentity, place, now_ms| {
            at_start(identity, directory.path(), "c", place, &VirtualClock::new(now_ms))
        };
        for (age, is_renewed, is_error) in [(59, false, false), (61, true, false), (400, true, true)] {
            let identity = identity(NOW_MS);
            let before = identity.fingerprint();
            let now_ms = NOW_MS + age * DAY.as_millis() as u64;
            let alone = start(&identity, None, now_ms);
            assert_eq!((alone.is_err(), identity.fingerprint() == before), (is_error, true), "{age}");
            if let Err(error) = alone {
                let text = error.to_string();
                for part in
                    ["node c ended on 2027-04-15", "it is 2028-02-19", "helio cluster token", "helio cluster join"]
                {
                    assert!(text.contains(part), "{text}");
                }
            }
            start(&identity, Some(&place), now_ms).expect("starts");
            assert_eq!(identity.fingerprint() != before, is_renewed, "{age}");
            if is_renewed {
                assert_eq!(identity.validity(), Validity::starting(now_ms, NODE_LIFETIME));
                assert_eq!(
                    NodeIdentity::load(directory.path()).expect("is stored").fingerprint(),
                    identity.fingerprint()
                );
            }
        }
        let endless = authority.issue(NodeId(3), Validity::ENDLESS).expect("issued");
        start(&endless, None, NOW_MS).expect("starts");
        assert!(!endless.validity().has_end(), "that is for later, and for all nodes");
    }
}
