//! What was issued to clients, what is taken back, and what they may do.

use std::collections::{BTreeMap, BTreeSet};

use client_lib::clock::{Clock, SystemClock};
use client_lib::pki::Fingerprint;
use client_lib::rights::{Right, VolumePattern, VolumeRule};
use client_lib::wire::admin::{
    AccessReport, CertificateStatus, ChangeRights, ClientList, ClientStatus, NoteClient, RevokeClient,
    RevokedCertificate,
};
use client_lib::{ClientName, Error, ErrorKind};
use consensus::{ClientRecord, Command, Issued, MetaState, Response};

use super::{NodeAdmin, out_of_turn};
use crate::node::METADATA_DEADLINE;

impl NodeAdmin {
    pub(super) async fn list_clients(&self) -> Result<ClientList, Error> {
        let state = self.recall().await;
        let records: BTreeMap<_, _> = state.access().clients().collect();
        let names: BTreeSet<_> = records.keys().copied().chain(state.rights().map(|(name, _)| name)).collect();
        let clients = names.into_iter().map(|name| {
            let (record, rights) = (records.get(name), state.rights_of(name));
            let told = |(fingerprint, number): (&Fingerprint, &u64)| {
                let issued = Issued::from(*number);
                let (issued_ms, until_ms) = (issued.at_ms, issued.until_ms());
                CertificateStatus { fingerprint: fingerprint.to_string(), issued_ms, until_ms }
            };
            let mut certificates: Vec<_> = record.into_iter().flat_map(|record| &record.issued).map(told).collect();
            certificates.sort_by_key(|certificate| certificate.issued_ms);
            let revoked_ms = record.and_then(|record: &&ClientRecord| record.revoked_at_ms);
            let rules = rights.rules.is_some().then(|| rights.rules().map(|rule| rule.to_string()).collect());
            ClientStatus { name: name.to_string(), certificates, revoked_ms, role: rights.role, rules }
        });
        let revoked = state
            .access()
            .revoked()
            .map(|(fingerprint, revoked_ms)| RevokedCertificate { fingerprint: fingerprint.to_string(), revoked_ms });
        Ok(ClientList { clients: clients.collect(), revoked: revoked.collect() })
    }

    /// Lists a certificate, and waits until every node that answers lets its client in.
    pub(super) async fn note_issued(&self, request: NoteClient) -> Result<AccessReport, Error> {
        let client: ClientName = request.client.parse()?;
        let fingerprint: Fingerprint = request.fingerprint.parse()?;
        let issued = Issued { at_ms: SystemClock::new().unix_ms(), days: request.days.unwrap_or(0) };
        let at_ms = u64::from(issued);
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        if let Err(why) = self.require_known_to_all(&state, None).await {
            // In the middle of an upgrade. Where nothing was ever revoked what is not listed counts.
            tracing::warn!(%client, %fingerprint, %why, "a client's certificate was issued, and is not listed");
            return Ok(AccessReport { unlisted_because: Some(why.to_string()), ..AccessReport::default() });
        }
        self.forget_ended(&state, &client, issued.at_ms).await?;
        let command = Command::ClientIssued { client: client.clone(), fingerprint, at_ms };
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::ClientIssued => tracing::info!(%client, %fingerprint, "a client's certificate was issued"),
            other => return Err(out_of_turn(&other)),
        }
        Ok(self.confirmed().await)
    }

    /// Has what was issued to a client and has ended long ago listed no more.
    async fn forget_ended(&self, state: &MetaState, client: &ClientName, at_ms: u64) -> Result<(), Error> {
        let record = state.access().clients().find(|(name, _)| *name == client).map(|(_, record)| record);
        let is_over = |issued: &u64| Issued::from(*issued).is_long_over(at_ms);
        if !record.is_some_and(|record| record.issued.values().any(is_over)) {
            return Ok(());
        }
        if let Err(why) = self.require_room_known(state).await {
            // In the middle of an upgrade: there is room for many.
            tracing::info!(%client, %why, "certificates that have ended stay listed");
            return Ok(());
        }
        let command = Command::ForgetEnded { client: client.clone(), at_ms };
        self.meta.carry_out(command, METADATA_DEADLINE).await.map(drop)
    }

    /// Changes what a client may do, and waits until every node that answers sees to that.
    pub(super) async fn give_rights(&self, request: ChangeRights) -> Result<AccessReport, Error> {
        let client: ClientName = request.client.parse()?;
        let allow = request.allow.iter().map(|rule| rule.parse()).collect::<Result<Vec<VolumeRule>, _>>()?;
        let deny = request.deny.iter().map(|rule| withdrawn(rule)).collect::<Result<Vec<_>, _>>()?;
        if request.role.is_none() && allow.is_empty() && deny.is_empty() {
            return Err(Error::new(ErrorKind::InvalidRequest, "name a role, or rules to give or to withdraw"));
        }
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        self.require_rights_known_to_all(&state).await?;
        let command = Command::ChangeRights { client, role: request.role, allow, deny };
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::RightsChanged => {
                let ChangeRights { client, role, allow, deny } = request;
                tracing::warn!(client, ?role, ?allow, ?deny, "what a client may do was changed");
            }
            other => return Err(out_of_turn(&other)),
        }
        Ok(self.confirmed().await)
    }

    /// Takes back a certificate, or all of a client, and waits until every node that answers refuses them.
    pub(super) async fn take_back(&self, request: RevokeClient) -> Result<AccessReport, Error> {
        let at_ms = SystemClock::new().unix_ms();
        let command = match (&request.client, &request.fingerprint) {
            (Some(client), None) => Command::RevokeClient { client: client.parse()?, at_ms },
            (None, Some(fingerprint)) => Command::RevokeCertificate { fingerprint: fingerprint.parse()?, at_ms },
            _ => return Err(Error::new(ErrorKind::InvalidRequest, "name a client or a fingerprint, and not both")),
        };
        self.require_known_to_all(&*self.meta.linearizable(METADATA_DEADLINE).await?, None).await?;
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::Revoked => {
                let RevokeClient { client, fingerprint } = request;
                tracing::warn!(client, fingerprint, "what was issued to a client was taken back");
            }
            other => return Err(out_of_turn(&other)),
        }
        Ok(self.confirmed().await)
    }
}

/// A rule that is withdrawn: of which volumes, and which right it must give.
fn withdrawn(text: &str) -> Result<(VolumePattern, Option<Right>), Error> {
    let VolumeRule { pattern, right } = text.parse()?;
    Ok((pattern, text.contains(':').then_some(right)))
}
