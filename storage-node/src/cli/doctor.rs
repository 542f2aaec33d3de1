//! `helio doctor`: whether a machine suits a node, and whether a cluster that runs is well; what to do where not.
//!
//! One file per place that is looked at. Each gives [`Finding`]s; what counts as good is decided in small functions of what was
//! measured, so that it can be tested without such a machine.

mod certificate;
mod cluster;
mod disk;
mod machine;
mod network;

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use self::network::Runs;
use super::Common;
use super::client::print_json;
use crate::config::NodeConfig;
use crate::io::EngineKind;

/// Check the machine, its disks and its network, and the cluster if one runs: what is not as it should be, and what to do
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code 1 when anything is wrong; warnings leave it 0. docs/doctor.md says what is checked and why.\n\nExamples:\n  helio doctor --config a.toml     # before a node runs there, and while it does\n  helio doctor --disk /mnt/b       # a directory that is to become a store\n  helio doctor --data ./helio-data # the cluster that runs there"
)]
pub(super) struct Doctor {
    /// Settings of a node, in TOML: its directories and addresses are checked
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A directory that holds, or shall hold, a store
    #[arg(long, value_name = "DIR")]
    disk: Vec<PathBuf>,
    /// Print JSON: a list of findings
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// One that looks at what the settings name, if some are given.
    pub(super) fn of(config: Option<PathBuf>) -> Doctor {
        Doctor { config, disk: Vec::new(), json: true }
    }
}

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    Wrong,
}

impl Level {
    fn label(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Wrong => "wrong",
        }
    }
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The thing.
    what: String,
    level: Level,
    /// What it is like.
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn new(what: impl Into<String>, level: Level, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { what: what.into(), level, found: found.into(), advice: Some(advice.into()) }
    }

    fn ok(what: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { what: what.into(), level: Level::Ok, found: found.into(), advice: None }
    }

    fn warning(what: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding::new(what, Level::Warning, found, advice)
    }

    fn wrong(what: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding::new(what, Level::Wrong, found, advice)
    }
}

pub(super) fn run(doctor: &Doctor, common: &Common) -> anyhow::Result<()> {
    let findings = examine(doctor, common)?;
    if doctor.json {
        print_json(&findings)?;
    } else {
        findings.iter().for_each(print);
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (wrong, warnings) = (count(Level::Wrong), count(Level::Warning));
    if wrong > 0 {
        bail!("{}", summary(wrong, warnings));
    }
    if !doctor.json {
        println!("{}", summary(wrong, warnings));
    }
    Ok(())
}

pub(super) fn examine(doctor: &Doctor, common: &Common) -> anyhow::Result<Vec<Finding>> {
    let config = doctor.config.as_deref().map(NodeConfig::read).transpose()?;
    let store = config.as_ref().map(|config| &config.store);
    let mut findings = machine::findings(store.map_or(0, |store| store.map_cache_bytes as u64));
    let mut directories = doctor.disk.clone();
    if let Some(config) = &config {
        directories.push(config.data.clone());
        directories.extend(config.store.directories.iter().cloned());
    }
    let engine = store.map_or(EngineKind::Auto, |store| store.engine);
    directories.iter().for_each(|directory| findings.extend(disk::findings(directory, engine)));
    let status = cluster::find(config.as_ref(), common);
    if let Some(config) = &config {
        let runs = match &status {
            None => Runs::No,
            Some(Err(_)) => Runs::Perhaps,
            Some(Ok(_)) => Runs::Yes,
        };
        findings.extend(network::findings(config, runs));
        findings.extend(certificate::findings(config));
    }
    findings.extend(cluster::findings(status.as_ref()));
    Ok(findings)
}

fn print(finding: &Finding) {
    println!("{:<9}{}: {}", finding.level.label(), finding.what, finding.found);
    if let Some(advice) = &finding.advice {
        println!("{:<9}  {advice}", "");
    }
}

fn summary(wrong: usize, warnings: usize) -> String {
    let warned = match warnings {
        0 => "no warnings".to_owned(),
        1 => "1 warning".to_owned(),
        more => format!("{more} warnings"),
    };
    match wrong {
        0 => format!("nothing is wrong, {warned}"),
        1 => format!("1 thing is wrong, {warned}"),
        more => format!("{more} things are wrong, {warned}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_matters() {
        assert_eq!(summary(0, 0), "nothing is wrong, no warnings");
        assert_eq!(summary(1, 1), "1 thing is wrong, 1 warning");
        assert_eq!(summary(2, 3), "2 things are wrong, 3 warnings");
    }

    #[test]
    fn findings_are_told_with_what_to_do() {
        let finding = Finding::warning("open files", "at most 1024", "raise it");
        let told = serde_json::to_value(&finding).expect("is plain data");
        let expected = serde_json::json!({
            "what": "open files", "level": "warning", "found": "at most 1024", "advice": "raise it",
        });
        assert_eq!(told, expected);
    }
}
