//! What a client proves itself with, and the one file in which it is kept: who the client is, which cluster, and where its
//! nodes are (docs/format.md, "Credentials of a client").
//!
//! Whoever has the file may do what the metadata says that its client may ([`crate::rights`]). It makes nobody a node: the certificate names a client, and
//! nodes offer clients nothing but volumes and, in a role that is for that, the admin API.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::identity::Credentials;
use super::{CertificateHolder, ClusterId, Fingerprint, PkiError, Validity, certificate_holder, read, write};
use crate::files;
use crate::types::{ClientName, NodeId, NodeName};

/// The version of the file that this program writes, and the only one that it reads.
const VERSION: u32 = 1;
/// What people who open the file read first.
const HEADING: &str =
    "# Credentials of a client of a Heliotrope cluster. Whoever has this file may do what its client may.\n";

/// Where a node is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePlace {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Its address for nodes and clients.
    pub address: SocketAddr,
}

/// A client's certificate and key, the CA that it trusts, and the nodes that it can turn to first.
#[derive(Clone)]
pub struct ClientIdentity {
    name: ClientName,
    credentials: Credentials,
    file: CredentialsFile,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CredentialsFile {
    version: u32,
    cluster: String,
    client: ClientName,
    ca: String,
    certificate: String,
    key: String,
    nodes: Vec<NodePlace>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity")
            .field("name", &self.name)
            .field("cluster", self.credentials.cluster())
            .finish_non_exhaustive()
    }
}

impl ClientIdentity {
    /// From the three PEM texts.
    ///
    /// # Errors
    /// [`PkiError::Parse`], also when the certificate is no client's; [`PkiError::WrongCluster`].
    pub fn from_pem(
        ca_pem: &str,
        certificate_pem: &str,
        key_pem: &str,
        nodes: Vec<NodePlace>,
    ) -> Result<ClientIdentity, PkiError> {
        let credentials = Credentials::from_pem(ca_pem, certificate_pem, key_pem)?;
        let name = match certificate_holder(&credentials.certificate(), credentials.cluster())? {
            CertificateHolder::Client(name) => name,
            CertificateHolder::Node(node) => {
                let reason = format!("it is that of node {node}, and no client's");
                return Err(PkiError::Parse { what: "client certificate", reason });
            }
        };
        let file = CredentialsFile {
            version: VERSION,
            cluster: credentials.cluster().to_string(),
            client: name.clone(),
            ca: ca_pem.to_owned(),
            certificate: certificate_pem.to_owned(),
            key: key_pem.to_owned(),
            nodes,
        };
        Ok(ClientIdentity { name, credentials, file })
    }

    /// Reads a file that `helio cluster client` wrote.
    ///
    /// # Errors
    /// [`PkiError::Io`]; [`PkiError::Parse`], which says what is wrong with it; [`PkiError::WrongCluster`].
    pub fn load(path: &Path) -> Result<ClientIdentity, PkiError> {
        let wrong =
            |reason: String| PkiError::Parse { what: "credentials", reason: format!("{}: {reason}", path.display()) };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let text = read(path)?;
        // First, so that a newer file is named as such.
        let Version { version } = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
        if version != VERSION {
            return Err(wrong(format!(
                "version {version} found, version {VERSION} expected: use the helio that wrote it"
            )));
        }
        let file: CredentialsFile = toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
        let (cluster, client) = (file.cluster, file.client);
        let identity = ClientIdentity::from_pem(&file.ca, &file.certificate, &file.key, file.nodes)?;
        if identity.name != client || identity.file.cluster != cluster {
            return Err(wrong(format!(
                "it says client {client} of cluster {cluster}, its certificate client {} of cluster {}",
                identity.name, identity.file.cluster
            )));
        }
        Ok(identity)
    }

    /// Writes the file, with mode 0600.
    ///
    /// # Durability
    /// Synced on return.
    ///
    /// # Errors
    /// [`PkiError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), PkiError> {
        let text = toml::to_string(&self.file)
            .map_err(|error| PkiError::Parse { what: "credentials", reason: error.to_string() })?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        write(directory, &name, &format!("{HEADING}{text}"), files::PRIVATE)
    }

    /// What the client is called.
    #[must_use]
    pub fn name(&self) -> &ClientName {
        &self.name
    }

    /// The cluster that let it in.
    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        self.credentials.cluster()
    }

    /// What tells its certificate from every other one.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.credentials.certificate())
    }

    /// From when until when its certificate counts.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.credentials.validity()
    }

    /// Shows the certificate of `newer` from now on, in every new handshake of what was made from this identity.
    ///
    /// # Errors
    /// [`PkiError::Parse`] when it is another client's, or of another authority; nothing changes then.
    pub fn replace_by(&self, newer: &ClientIdentity) -> Result<(), PkiError> {
        if newer.name != self.name || newer.credentials.ca() != self.credentials.ca() {
            let reason = format!("they are of client {} of cluster {}", newer.name, newer.cluster());
            return Err(PkiError::Parse { what: "credentials", reason });
        }
        self.credentials.replace_by(&newer.credentials);
        Ok(())
    }

    /// The nodes that it can turn to first.
    #[must_use]
    pub fn nodes(&self) -> &[NodePlace] {
        &self.file.nodes
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::pki::{ClusterAuthority, certificate_node};

    fn authority(cluster: &str) -> ClusterAuthority {
        ClusterAuthority::create(ClusterId::try_from(cluster.to_owned()).expect("valid")).expect("made")
    }

    fn places() -> Vec<NodePlace> {
        let place = |id, name: &str| NodePlace {
            id: NodeId(id),
            name: name.parse().expect("a name"),
            address: ([127, 0, 0, id as u8], 10810).into(),
        };
        vec![place(1, "a"), place(2, "b")]
    }

    #[test]
    fn credentials_survive_their_file_which_only_its_owner_reads() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("host.helio");
        let issued = authority("one")
            .issue_client(&"host-7".parse().expect("a name"), places(), Validity::ENDLESS)
            .expect("issued");
        issued.save(&path).expect("saved");
        let mode = std::fs::metadata(&path).expect("present").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let loaded = ClientIdentity::load(&path).expect("loaded");
        assert_eq!((loaded.name(), loaded.cluster(), loaded.nodes()), (issued.name(), issued.cluster(), &places()[..]));
        assert!(!format!("{loaded:?}").contains("PRIVATE"), "the key stays out of logs");
    }

    #[test]
    fn files_that_are_odd_or_newer_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("host.helio");
        let issued = authority("one")
            .issue_client(&"host-7".parse().expect("a name"), places(), Validity::ENDLESS)
            .expect("issued");
        issued.save(&path).expect("saved");
        let text = std::fs::read_to_string(&path).expect("is there");
        for (from, to, reason) in [
            ("version = 1", "version = 2", "version 2 found"),
            ("client = \"host-7\"", "client = \"host-8\"", "its certificate client host-7"),
            ("cluster = \"one\"", "", "cluster"),
            ("version = 1", "version = 1\nextra = 1", "extra"),
        ] {
            std::fs::write(&path, text.replace(from, to)).expect("is written");
            let error = ClientIdentity::load(&path).expect_err(to).to_string();
            assert!(error.contains(reason) && error.contains("host.helio"), "{to}: {error}");
        }
    }

    #[test]
    fn a_clients_certificate_is_no_nodes_and_the_other_way_round() {
        let authority = authority("one");
        let client =
            authority.issue_client(&"x".parse().expect("a name"), Vec::new(), Validity::ENDLESS).expect("issued");
        let error = certificate_node(&client.credentials.certificate(), authority.cluster()).expect_err("no node");
        assert!(error.to_string().contains("client x"), "{error}");
        let node = authority.issue(NodeId(1), Validity::ENDLESS).expect("issued");
        let dir = tempfile::tempdir().expect("temporary directory");
        node.save(dir.path()).expect("saved");
        let pem = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("is there");
        let error = ClientIdentity::from_pem(&pem("ca.crt"), &pem("node.crt"), &pem("node.key"), Vec::new());
        assert!(error.expect_err("no client").to_string().contains("node 1"));
    }
}
