//! The key that admits nodes: it makes the cluster's certificates.

use std::fmt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;

use super::shown::Pair;
use super::validity::check_signed;
use super::{
    CA_CERTIFICATE_FILE, CA_NAME_PREFIX, ClientIdentity, ClusterId, NodeIdentity, NodePlace, PkiError, Validity,
    ca_cluster, certificate_from_pem, certificate_node, fingerprint, read, server_name, sha256, write,
};
use crate::files;
use crate::types::{ClientName, NodeId};

const CA_KEY_FILE: &str = "ca.key";

/// The key that signs node certificates. Whoever holds it admits nodes.
pub struct ClusterAuthority {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuthority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl ClusterAuthority {
    /// A new authority for `cluster`.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn create(cluster: ClusterId) -> Result<ClusterAuthority, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{CA_NAME_PREFIX}{cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(ClusterAuthority {
            cluster,
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`PkiError::Io`], [`PkiError::Parse`], also when one is not the other's key.
    pub fn load(dir: &Path) -> Result<ClusterAuthority, PkiError> {
        let certificate_pem = read(&dir.join(CA_CERTIFICATE_FILE))?;
        let key_pem = read(&dir.join(CA_KEY_FILE))?;
        let unusable = |reason: String| {
            PkiError::Parse { what: "the key of the cluster's authority", reason }.in_file(&dir.join(CA_KEY_FILE))
        };
        let key = KeyPair::from_pem(&key_pem).map_err(|error| unusable(error.to_string()))?;
        let damaged = |error: PkiError| error.in_file(&dir.join(CA_CERTIFICATE_FILE));
        let certificate = certificate_from_pem(&certificate_pem).map_err(damaged)?;
        let cluster = ca_cluster(&certificate).map_err(damaged)?;
        Pair::from_pem(&certificate_pem, &key_pem, &certificate)
            .map_err(|_| unusable("it is not that of the certificate beside it (ca.crt)".to_owned()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(ClusterAuthority { cluster, certificate, certificate_pem, issuer })
    }

    /// The same of the authority that issued the identity in `identity`: not of another cluster's, whose files were put there by mistake.
    ///
    /// # Errors
    /// As [`load`](Self::load), [`PkiError::WrongCluster`]; [`PkiError::Parse`] for another authority of a cluster of that name.
    pub fn load_of(dir: &Path, identity: &Path) -> Result<ClusterAuthority, PkiError> {
        let authority = ClusterAuthority::load(dir)?;
        let known = certificate_from_pem(&read(&identity.join(CA_CERTIFICATE_FILE))?)?;
        if known == authority.certificate {
            return Ok(authority);
        }
        let (found, expected) = (authority.cluster, ca_cluster(&known)?);
        if found != expected {
            return Err(PkiError::WrongCluster { found: found.to_string(), expected: expected.to_string() });
        }
        let reason = "it is another one than that which issued this node's certificate".to_owned();
        Err(PkiError::Parse { what: "the cluster's authority", reason })
    }

    /// Writes certificate and key into `dir`, which must exist.
    ///
    /// # Durability
    /// Both files and the directory are synced on return.
    ///
    /// # Errors
    /// [`PkiError::Io`].
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        write(dir, CA_KEY_FILE, &self.issuer.key().serialize_pem(), files::PRIVATE)?;
        write(dir, CA_CERTIFICATE_FILE, &self.certificate_pem, files::PUBLIC)
    }

    /// The cluster it signs for.
    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// The CA certificate, as text.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the CA certificate, in hex: what a joining node pins.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// A certificate with a new key for `node`, which counts for so long.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn issue(&self, node: NodeId, validity: Validity) -> Result<NodeIdentity, PkiError> {
        let key = KeyPair::generate()?;
        let certificate = self.params(node, validity)?.signed_by(&key, &self.issuer)?;
        NodeIdentity::from_pem(&self.certificate_pem, &certificate.pem(), &key.serialize_pem())
    }

    /// A certificate with a new key for the client `name`, which turns to `nodes` first; it counts for so long.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn issue_client(
        &self,
        name: &ClientName,
        nodes: Vec<NodePlace>,
        validity: Validity,
    ) -> Result<ClientIdentity, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        validity.set(&mut params);
        params.distinguished_name.push(DnType::CommonName, format!("Heliotrope client {name}"));
        params.subject_alt_names.push(SanType::URI(format!("helio://{}/client/{name}", self.cluster).try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // It cannot stand in for a node, whose callers ask for a server's.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        ClientIdentity::from_pem(&self.certificate_pem, &certificate.pem(), &key.serialize_pem(), nodes)
    }

    /// SHA-256 of the public key in a joining node's request, which tells its attempts from another node's.
    ///
    /// # Errors
    /// [`PkiError::Make`] for a request that is not one or not signed by its key.
    pub fn request_key(&self, request_pem: &str) -> Result<[u8; 32], PkiError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem)?;
        Ok(sha256(&request.public_key.subject_public_key_info()))
    }

    /// Signs a node's request. Only its public key is taken; names, usages and how long it counts are ours.
    ///
    /// # Errors
    /// [`PkiError::Make`] for a request that is not one or not signed by its key.
    pub fn sign(&self, node: NodeId, request_pem: &str, validity: Validity) -> Result<String, PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)?;
        request.params = self.params(node, validity)?;
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    /// The node whose certificate this is or was, if the request is signed by the key of that: whoever sends both has the node's key. Whether
    /// it has ended is not looked at.
    ///
    /// # Errors
    /// [`PkiError::Make`] for a request that is not one or not signed by its key; [`PkiError::Parse`] and [`PkiError::WrongCluster`] for a certificate
    /// that is no node's of this cluster, or has another key.
    pub fn holder_of(&self, certificate: &CertificateDer<'_>, request_pem: &str) -> Result<NodeId, PkiError> {
        let wrong = |reason: String| PkiError::Parse { what: "certificate", reason };
        // At its own time: it may have ended since.
        check_signed(certificate, &self.certificate, Validity::of(certificate)?.until_ms)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| wrong(error.to_string()))?;
        if sha256(parsed.public_key().raw) != self.request_key(request_pem)? {
            return Err(wrong("it is not of the key that asks".to_owned()));
        }
        certificate_node(certificate, &self.cluster)
    }

    fn params(&self, node: NodeId, validity: Validity) -> Result<CertificateParams, PkiError> {
        let mut params = CertificateParams::new(vec![server_name(&self.cluster, node)])?;
        validity.set(&mut params);
        params.distinguished_name.push(DnType::CommonName, format!("Heliotrope node {node}"));
        params.subject_alt_names.push(SanType::URI(format!("helio://{}/node/{node}", self.cluster).try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of another cluster, or a key that was copied in part, were found out by the first node that could not renew its certificate.
    #[test]
    fn files_that_are_not_of_the_nodes_authority_are_told_apart() {
        let directory = tempfile::tempdir().expect("a directory");
        let (identity, held) = (directory.path().join("identity"), directory.path().join("authority"));
        [&identity, &held].into_iter().for_each(|dir| std::fs::create_dir(dir).expect("is made"));
        let create = |cluster: &ClusterId| ClusterAuthority::create(cluster.clone()).expect("made");
        let cluster = ClusterId::random().expect("random");
        let ours = create(&cluster);
        ours.issue(NodeId(1), Validity::ENDLESS).expect("issued").save(&identity).expect("saved");
        ours.save(&held).expect("saved");
        ClusterAuthority::load_of(&held, &identity).expect("is that");
        let told = || ClusterAuthority::load_of(&held, &identity).expect_err("is another one").to_string();
        create(&ClusterId::random().expect("random")).save(&held).expect("saved");
        assert!(told().contains("expected cluster"), "{}", told());
        create(&cluster).save(&held).expect("saved");
        assert!(told().contains("another one than that which issued this node's certificate"), "{}", told());
        std::fs::copy(identity.join(CA_CERTIFICATE_FILE), held.join(CA_CERTIFICATE_FILE)).expect("is copied");
        assert!(told().contains("it is not that of the certificate beside it (ca.crt)"), "{}", told());
        std::fs::write(held.join(CA_KEY_FILE), "-----BEGIN PRIVATE KEY-----\nMIG").expect("is cut");
        assert!(told().contains("/authority/ca.key: the key of the cluster's authority cannot be read"), "{}", told());
    }
}
