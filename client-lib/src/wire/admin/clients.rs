//! What was issued to clients, what was taken back, and what they may do.

use serde::{Deserialize, Serialize};

use crate::rights::Role;

/// A certificate of a client that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CertificateStatus {
    /// SHA-256 of it, in hexadecimal.
    pub fingerprint: String,
    /// When it was issued, in milliseconds since 1970.
    pub issued_ms: u64,
    /// Until when it counts, in milliseconds since 1970; none if it has no end.
    #[serde(default)]
    pub until_ms: Option<u64>,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClientStatus {
    /// Its name.
    pub name: String,
    /// What counts, by fingerprint.
    pub certificates: Vec<CertificateStatus>,
    /// When everything was taken back that had been issued until then, in milliseconds since 1970. If that never was, what an earlier
    /// version issued under this name, and nobody listed, counts too.
    pub revoked_ms: Option<u64>,
    /// What it is there for.
    #[serde(default)]
    pub role: Role,
    /// Which volumes it may use, as `VOL` or `VOL:ro`; none if it was never given any rule: every volume, if its role uses volumes.
    #[serde(default)]
    pub rules: Option<Vec<String>>,
}

/// A certificate that was taken back by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RevokedCertificate {
    /// SHA-256 of it, in hexadecimal.
    pub fingerprint: String,
    /// When, in milliseconds since 1970.
    pub revoked_ms: u64,
}

/// The clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClientList {
    /// Those to which something was issued since that is noted, whose names were revoked, or that were given a role or rules.
    pub clients: Vec<ClientStatus>,
    /// Certificates that were taken back by themselves.
    pub revoked: Vec<RevokedCertificate>,
}

/// Tells that a certificate was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NoteClient {
    /// The client's name.
    pub client: String,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// For how many days it counts, from now on; none if it has no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u16>,
}

/// Asks for certificates to be taken back: just one of both is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RevokeClient {
    /// Everything that was issued under this name.
    #[serde(default)]
    pub client: Option<String>,
    /// The certificate with this SHA-256, in hexadecimal.
    #[serde(default)]
    pub fingerprint: Option<String>,
}

/// Asks for a client to be allowed other things. All of it is done, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChangeRights {
    /// The client's name; nothing need have been issued to it.
    pub client: String,
    /// What it is there for from now on.
    #[serde(default)]
    pub role: Option<Role>,
    /// Rules that it is given: `VOL` for reading and writing, `VOL:ro` for reading. One of the same volumes is replaced.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Rules that are withdrawn: `VOL`, whatever it allows, or `VOL:ro`, if it is that.
    #[serde(default)]
    pub deny: Vec<String>,
}

/// Who has heard of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AccessReport {
    /// Nodes where it is in force.
    pub confirmed: Vec<String>,
    /// Nodes that have not said so: it is in force there as soon as they hear of it.
    pub unconfirmed: Vec<String>,
    /// Why a certificate that was issued is not listed, if it is not: it counts all the same.
    #[serde(default)]
    pub unlisted_because: Option<String>,
}
