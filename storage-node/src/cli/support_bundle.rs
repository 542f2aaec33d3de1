//! `helio support-bundle`: what somebody who helps needs to see, in one file of JSON.
//!
//! What cannot be had is in it as an error, so that it can be made of a cluster that is half down. It has names, addresses, sizes and
//! positions; no data of volumes, no key, no token.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use client_lib::clock::{Clock, SystemClock};
use client_lib::error::whole;
use serde_json::{Map, Value, json};

use super::Common;
use super::client::Client;
use super::doctor::{self, Doctor};
use crate::config::{ConfigError, NodeConfig};
use crate::size::human;
use crate::trace::export::shown;

/// How deep directories are listed: a store's segments are files of the third level.
const LISTED_DEPTH: usize = 3;
/// Files listed of each directory, so that a store with many segments does not make the whole bundle.
const LISTED_MAX: usize = 200;

/// Write what somebody who helps needs to see into one file: status of everything, metrics, findings of the doctor, no data and
/// no keys
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio support-bundle --out bundle.json --data ./helio-data\n  helio support-bundle --out - --config a.toml | less"
)]
pub(super) struct SupportBundle {
    /// The file to write; `-` is standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
    /// Settings of a node, in TOML; they are put in, too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &SupportBundle, common: &Common) -> anyhow::Result<()> {
    let is_stdout = arguments.out == Path::new("-");
    if !is_stdout && !arguments.force && arguments.out.exists() {
        bail!("{} exists already; --force overwrites it", arguments.out.display());
    }
    let text = format!("{:#}\n", bundle(arguments, common));
    if is_stdout {
        print!("{text}");
        return Ok(());
    }
    std::fs::write(&arguments.out, &text).with_context(|| format!("{} cannot be written", arguments.out.display()))?;
    println!("{} ({}): look through it before you pass it on", arguments.out.display(), human(text.len() as u64));
    Ok(())
}

fn bundle(arguments: &SupportBundle, common: &Common) -> Value {
    // Of settings that cannot be read the doctor's message has the line, whatever is in that. Why is told beside it.
    let is_told = |path: &PathBuf| !matches!(NodeConfig::read(path), Err(ConfigError::Parse { .. }));
    let doctor = doctor::examine(&Doctor::of(arguments.config.clone().filter(is_told)), common);
    json!({
        "made_unix_seconds": SystemClock::new().unix_ms() / 1000,
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": std::fs::read_to_string("/proc/version").unwrap_or_default().trim(),
        "doctor": or_error(doctor.and_then(|findings| Ok(serde_json::to_value(findings)?))),
        "settings": arguments.config.as_deref().map(|path| or_error(settings(path))),
        "files": listed(&common.data(), LISTED_DEPTH),
        "cluster": match Client::find(common) {
            Ok(client) => of_cluster(&client),
            Err(error) => error_of(&error),
        },
    })
}

/// The settings, which name files with keys and hold none, but for what a secret may be in: the command that prints keys, and what lets in
/// at a collector of traces. Without comments, which may hold anything; where a setting has a wrong name, none of them.
fn settings(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(path)?;
    if let Err(error) = toml::from_str::<NodeConfig>(&text) {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        bail!("line {} of them is wrong: {}", before.lines().count().max(1), error.message());
    }
    let mut settings: toml::Table = toml::from_str(&text)?;
    if let Some(command) = settings.get_mut("keys").and_then(|keys| keys.get_mut("command")) {
        *command = toml::Value::String("(left out)".to_owned());
    }
    if let Some(toml::Value::String(endpoint)) = settings.get_mut("trace").and_then(|trace| trace.get_mut("endpoint")) {
        *endpoint = shown(endpoint);
    }
    Ok(Value::String(toml::to_string(&settings)?))
}

fn or_error(value: anyhow::Result<Value>) -> Value {
    value.unwrap_or_else(|error| error_of(&error))
}

fn error_of(error: &anyhow::Error) -> Value {
    json!({ "error": whole(error.as_ref()) })
}

fn of_cluster(client: &Client) -> Value {
    let ask = |path: &str| or_error(client.get(path));
    let status = ask("/v1/cluster");
    let volumes = ask("/v1/volumes");
    let per_node = names(&status["members"]).map(|name| (name.to_owned(), ask(&format!("/v1/space?node={name}"))));
    let per_volume = names(&volumes).map(|name| {
        let path = format!("/v1/volumes/{name}");
        let asked = ["", "/owner", "/policy", "/snapshots"];
        let asked = asked.map(|what| {
            (if what.is_empty() { "status" } else { &what[1..] }.to_owned(), ask(&format!("{path}{what}")))
        });
        (name.to_owned(), Value::Object(asked.into_iter().collect()))
    });
    let (space, each): (Map<String, Value>, Map<String, Value>) = (per_node.collect(), per_volume.collect());
    let metrics = client.texts("/metrics").into_iter();
    let metrics: Map<String, Value> =
        metrics.map(|(endpoint, text)| (endpoint.to_owned(), or_error(text.map(Value::String)))).collect();
    json!({
        "status": status, "space": space, "volumes": volumes, "volume": each,
        "groups": ask("/v1/groups"), "links": ask("/v1/links"), "scrub": ask("/v1/scrub"), "metrics": metrics,
    })
}

/// The names in a list of things that have one.
fn names(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(|thing| thing["name"].as_str())
}

/// Names and sizes in a directory.
fn listed(directory: &Path, depth: usize) -> Value {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return json!({ "error": format!("{}: {error}", directory.display()) }),
    };
    let mut all: Vec<_> = entries.flatten().collect();
    all.sort_by_key(std::fs::DirEntry::file_name);
    let more = all.len().saturating_sub(LISTED_MAX);
    let mut files = Map::new();
    for entry in all.into_iter().take(LISTED_MAX) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let value = match entry.metadata() {
            Ok(found) if found.is_dir() && depth > 1 => listed(&entry.path(), depth - 1),
            Ok(found) => json!(found.len()),
            Err(error) => json!({ "error": error.to_string() }),
        };
        files.insert(name, value);
    }
    if more > 0 {
        files.insert("…".to_owned(), json!(format!("and {more} more")));
    }
    Value::Object(files)
}

#[cfg(test)]
mod tests {
    use nbd_frontend::service::log::LogFormat;

    use super::*;

    #[test]
    fn directories_are_listed_by_name_and_size_and_not_without_end() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(directory.path().join("store/segments/deep")).expect("are made");
        std::fs::write(directory.path().join("store/segments/deep/file"), "x").expect("is written");
        std::fs::write(directory.path().join("key"), "secret").expect("is written");
        let listed = listed(directory.path(), 2);
        assert_eq!(listed["key"], 6, "its size, and nothing that is in it");
        assert!(listed["store"]["segments"].is_u64(), "{listed}");
        assert!(!listed.to_string().contains("secret"));
        for number in 0..LISTED_MAX {
            std::fs::write(directory.path().join(format!("{number:04}")), "").expect("is written");
        }
        assert_eq!(super::listed(directory.path(), 1)["…"], "and 2 more");
    }

    /// What a node cannot do without.
    const LEAST: &str = "name = \"a\"\nprovider = \"a\"\ndata = \"data\"\nlisten = \"127.0.0.1:10810\"\n";

    /// As given by somebody who names a data directory alone.
    fn common(data: &Path) -> Common {
        Common { data: Some(data.to_owned()), cluster: None, secret_file: None, log: None, log_format: LogFormat::Text }
    }

    /// Only the command was looked for: a collector that wants a user or a token is named with it, and the bundle had that, as it had what stood
    /// in comments, and in the line that the doctor could not read.
    #[test]
    fn what_lets_in_somewhere_is_left_out_of_the_settings() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.toml");
        let common = common(directory.path());
        let write = |settings: &str| std::fs::write(&path, settings).expect("is written");
        for settings in [
            "[keys]\ncommand = \"\"\"curl -H 'Token: secret'\nelsewhere\"\"\"\n",
            "[trace]\nendpoint = \"http://user:secret@collector:4318/v1/traces\"\n",
            "[trace]\nendpoint = \"http://collector:4318/v1/traces?api-key=secret\"\n",
        ] {
            write(&format!("# secret\n{LEAST}{settings}"));
            let told = super::settings(&path).expect("can be read");
            let told = told.as_str().expect("is text");
            assert!(told.contains("left out") && told.contains("name = \"a\"") && !told.contains("secret"), "{told}");
        }
        for (wrong, what, expected) in [
            ("command = secret\n", "settings", "line 5 of them is wrong"),
            ("[keys]\ncomand = \"secret\"\n", "settings", "line 5 of them is wrong"),
            ("[trace]\nendpoint = \"https://user:secret@collector\"\n", "doctor", "is no address of a collector"),
        ] {
            write(&format!("{LEAST}{wrong}"));
            let arguments = SupportBundle { out: "-".into(), force: false, config: Some(path.clone()) };
            let bundle = bundle(&arguments, &common);
            let told = bundle[what]["error"].to_string();
            assert!(told.contains(expected) && !bundle.to_string().contains("secret"), "{bundle}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_an_error_in_its_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let common = common(directory.path());
        let arguments = SupportBundle { out: "-".into(), force: false, config: Some("/does/not/exist".into()) };
        let bundle = bundle(&arguments, &common);
        for part in ["doctor", "settings", "cluster"] {
            assert!(bundle[part]["error"].is_string(), "{part}: {bundle}");
        }
    }
}
