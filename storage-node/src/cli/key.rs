//! `helio volume key`: the keys that open an encrypted volume. What is secret is read and used by this command and goes nowhere else.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use client_lib::cipher::keys::KeyFingerprint;
use client_lib::cipher::{Kek, KeySource, VolumeKeys};
use client_lib::wire::admin::{AddVolumeKey, EncryptionStatus};
use client_lib::{KeyName, VolumeName};
use nbd_frontend::service::keys::KeyArguments;

use super::Common;
use super::client::{Client, print_json, print_table};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a new key in a file that only its owner may read
    #[command(after_help = "Example:\n  helio volume key generate --out prod.key")]
    Generate {
        /// The file; it must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the keys that open a volume
    #[command(after_help = "Example:\n  helio volume key list disk")]
    List {
        /// The volume
        name: VolumeName,
        /// Print JSON: all that the metadata has, sealed; with it and a key the volume's own key can be opened
        #[arg(long)]
        json: bool,
    },
    /// Let another key open a volume, too
    #[command(after_help = "Example:\n  helio volume key add disk --key-file prod.key --new-key-file spare.key")]
    Add(Exchange),
    /// Let a key open a volume no more; who has opened it goes on
    #[command(after_help = "Example:\n  helio volume key remove disk spare.key")]
    Remove {
        /// The volume
        name: VolumeName,
        /// What the key is called
        key: KeyName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a new key open a volume instead of the one it is opened with; the volume may be in use
    #[command(after_help = "Example:\n  helio volume key rotate disk --key-file 2026.key --new-key-file 2027.key")]
    Rotate(Exchange),
}

/// A volume, a key that opens it and another one.
#[derive(Debug, Args)]
pub(super) struct Exchange {
    /// The volume
    name: VolumeName,
    #[command(flatten)]
    keys: KeyArguments,
    #[command(flatten)]
    new: NewKey,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The key that comes in.
#[derive(Debug, Args)]
struct NewKey {
    /// The new key: a file as that of --key-file
    #[arg(long, value_name = "FILE", group = "new_key", required_unless_present = "new_key_command")]
    new_key_file: Option<PathBuf>,
    /// A line for /bin/sh that prints the new key
    #[arg(long, value_name = "COMMAND", group = "new_key", requires = "new_key_name")]
    new_key_command: Option<String>,
    /// What the new key is called [default: the name of its file]
    #[arg(long, value_name = "NAME")]
    new_key_name: Option<KeyName>,
}

/// That a new volume is to be encrypted, and by what.
#[derive(Debug, Default, Args)]
pub(super) struct Encrypt {
    /// Encrypt the volume, with a key that nodes need not have (docs/encryption.md). Whoever loses the key loses the data
    #[arg(long, requires = "key_source")]
    encrypt: bool,
    #[command(flatten)]
    keys: KeyArguments,
    /// What the key is called [default: the name of its file]
    #[arg(long, value_name = "NAME", requires = "key_source")]
    key_name: Option<KeyName>,
}

impl Encrypt {
    /// Whether a new volume is to be encrypted.
    pub(super) fn is_wanted(&self) -> bool {
        self.encrypt
    }

    /// The sealed key of the new volume `name`, if it is to be encrypted.
    pub(super) async fn keys(&self, name: &VolumeName) -> anyhow::Result<Option<VolumeKeys>> {
        let Some(source) = self.keys.source().filter(|_| self.encrypt) else {
            if self.keys.source().is_some() {
                bail!("a key was given: add --encrypt, or leave it out");
            }
            return Ok(None);
        };
        let (key_name, kek) = source.named(name.as_str(), self.key_name.clone()).await?;
        let (keys, _) = VolumeKeys::create(key_name, &kek)?;
        Ok(Some(keys))
    }
}

/// Runs what a key source does outside of a server.
pub(super) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

pub(super) fn run(verb: Verb, common: &Common) -> anyhow::Result<()> {
    match verb {
        Verb::Generate { out, json } => generate(out, json),
        Verb::List { name, json } => {
            let keys: VolumeKeys = Client::find(common)?.get(&path(&name))?;
            if json { print_json(&keys) } else { print_keys(&keys) }
        }
        Verb::Add(exchange) => add(&exchange, common, false),
        Verb::Remove { name, key, json } => {
            let keys: VolumeKeys = Client::find(common)?.delete(&format!("{}/{key}", path(&name)))?;
            if json {
                return print_json(&keys);
            }
            println!("key {key} opens volume {name} no more; whoever has kept the volume's own key still has that");
            Ok(())
        }
        Verb::Rotate(exchange) => add(&exchange, common, true),
    }
}

fn generate(out: PathBuf, json: bool) -> anyhow::Result<()> {
    let kek = Kek::random()?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&out);
    if file.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists) {
        bail!("{} exists already, and may hold a key that opens a volume: choose another name", out.display());
    }
    let mut file = file.with_context(|| format!("{} cannot be made", out.display()))?;
    file.write_all(kek.to_text().as_bytes())?;
    file.sync_all()?;
    let fingerprint = kek.fingerprint();
    if json {
        return print_json(&serde_json::json!({ "file": out, "fingerprint": fingerprint }));
    }
    println!(
        "key {fingerprint} is in {}: keep a copy where its nodes are not, since without it data is lost",
        out.display()
    );
    Ok(())
}

fn path(name: &VolumeName) -> String {
    format!("/v1/volumes/{name}/keys")
}

/// The new key comes in first, and is tried; then the old one goes: whenever this ends, one opens the volume.
fn add(exchange: &Exchange, common: &Common, is_instead: bool) -> anyhow::Result<()> {
    let Exchange { name, keys: given, new, json } = exchange;
    let source = given
        .source()
        .context("which key opens it now? use --key-file FILE, --key-dir DIR or --key-command COMMAND")?;
    let client = Client::find(common)?;
    let known: VolumeKeys = client.get(&path(name))?;
    let new_source = match (&new.new_key_file, &new.new_key_command) {
        (Some(file), _) => KeySource::File(file.clone()),
        (None, Some(command)) => KeySource::Command(command.clone()),
        (None, None) => bail!("which key is to open it? use --new-key-file FILE or --new-key-command COMMAND"),
    };
    let (key, old, request, kek) = block_on(async {
        let key = source.unlock(name.as_str(), &known).await?;
        let old = opened_by(&source, name, &known).await?;
        let (new_name, kek) = new_source.named(name.as_str(), new.new_key_name.clone()).await?;
        let request = AddVolumeKey { check: known.check, key: known.seal(&key, new_name, &kek)? };
        Ok((key, old, request, kek))
    })?;
    drop(key);
    let new_name = request.key.name.clone();
    let mut now: VolumeKeys = client.post(&path(name), &request)?;
    if now.open(&kek)?.is_none() {
        bail!("volume {name} is not opened by key {new_name}, which was added: the cluster is not what it says");
    }
    if is_instead {
        now = client.delete(&format!("{}/{old}", path(name)))?;
    }
    if *json {
        return print_json(&now);
    }
    match is_instead {
        true => println!("key {new_name} opens volume {name} instead of {old}"),
        false => println!("key {new_name} opens volume {name}, too"),
    }
    Ok(())
}

/// What the key is called that a volume was opened by.
async fn opened_by(source: &KeySource, volume: &VolumeName, keys: &VolumeKeys) -> anyhow::Result<KeyName> {
    for sealed in &keys.sealed {
        let one = VolumeKeys { sealed: vec![sealed.clone()], ..keys.clone() };
        if source.unlock(volume.as_str(), &one).await.is_ok() {
            return Ok(sealed.name.clone());
        }
    }
    bail!("{source} opens volume {volume} no more")
}

fn print_keys(keys: &VolumeKeys) -> anyhow::Result<()> {
    println!("{}", keys.cipher);
    let row = |name: String, fingerprint: KeyFingerprint| vec![name, fingerprint.to_string()];
    let rows = keys.sealed.iter().map(|sealed| row(sealed.name.to_string(), sealed.fingerprint));
    print_table(&["key", "fingerprint"], rows.collect());
    Ok(())
}

/// How a volume is encrypted, in a sentence.
pub(super) fn sentence(encryption: &EncryptionStatus) -> String {
    let names: Vec<&str> = encryption.keys.iter().map(|key| key.name.as_str()).collect();
    format!("encrypted ({}), opened by {}", encryption.cipher, names.join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_that_is_made_opens_what_it_seals_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let out = directory.path().join("prod.key");
        generate(out.clone(), true).expect("is made");
        assert_eq!(std::fs::metadata(&out).expect("is there").permissions().mode() & 0o777, 0o600);
        assert!(generate(out.clone(), true).expect_err("exists").to_string().contains("exists already"));
        let (volume, source) = ("disk".parse().expect("a name"), KeySource::File(out));
        let (keys, old) = block_on(async {
            let (name, kek) = source.named("disk", None).await?;
            let (keys, _) = VolumeKeys::create(name, &kek)?;
            let old = opened_by(&source, &volume, &keys).await?;
            Ok((keys, old))
        })
        .expect("opens");
        assert_eq!((old.as_str(), keys.sealed.len()), ("prod.key", 1));
        assert_eq!(sentence(&EncryptionStatus::from(&keys)), "encrypted (AES-256-XTS), opened by prod.key");
    }
}
