//! The documentation as a book: every page is in it, every link leads somewhere, and every command in it is one that there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;
use nbd_frontend::arguments::HelioNbd;
use storage_node::cli::Helio;
use tests::page::{Said, commands, tree};

/// Pages that are not part of the book and have commands all the same. The changelog tells of what was, also of what is gone.
const BESIDE: [&str; 3] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];

/// Pages of the book below `docs`, relative to it.
fn pages() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for directory in ["", "decisions/"] {
        for entry in fs::read_dir(tree().join("docs").join(directory)).expect("is there").flatten() {
            let name = entry.file_name().into_string().expect("is text");
            if name.ends_with(".md") && name != "SUMMARY.md" {
                found.insert(format!("{directory}{name}"));
            }
        }
    }
    found
}

/// Every page that is looked at, by its path in the tree, with its text.
fn texts() -> Vec<(PathBuf, String)> {
    let all = pages().into_iter().map(|page| format!("docs/{page}")).chain(BESIDE.map(str::to_owned));
    all.map(|path| (PathBuf::from(&path), fs::read_to_string(tree().join(path)).expect("is there"))).collect()
}

/// What links in a text lead to: the `B` of `[A](B)`, of pictures too. What stands in code is none.
fn links(text: &str) -> Vec<String> {
    let outside: String = text.split('`').step_by(2).collect();
    let found = outside.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    found.map(|(target, _)| target.to_owned()).collect()
}

/// The names of pages that are in backticks: `limits.md`, `docs/limits.md`.
fn mentions(text: &str) -> Vec<String> {
    let is_page =
        |code: &&str| code.ends_with(".md") && !code.contains(|c: char| c.is_whitespace() || "*…<$".contains(c));
    text.split('`').skip(1).step_by(2).filter(is_page).map(str::to_owned).collect()
}

#[test]
fn the_summary_has_every_page_once_under_its_title() {
    let summary = fs::read_to_string(tree().join("docs/SUMMARY.md")).expect("is there");
    let mut listed = Vec::new();
    for line in summary.lines().filter(|line| line.starts_with("- ")) {
        let (title, page) = line
            .strip_prefix("- [")
            .and_then(|rest| rest.strip_suffix(')'))
            .and_then(|rest| rest.rsplit_once("]("))
            .expect(line);
        let text = fs::read_to_string(tree().join("docs").join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert_eq!(text.lines().next(), Some(format!("# {title}").as_str()), "the title of {page}");
        listed.push(page.to_owned());
    }
    let once: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "a page is there twice");
    assert_eq!(once, pages(), "the summary has the pages that there are");
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for (path, text) in texts() {
        let beside = path.parent().unwrap_or(Path::new(""));
        for link in links(&text).iter().filter(|link| !link.starts_with("https://") && !link.starts_with("http://")) {
            let file = link.split('#').next().unwrap_or(link);
            if !tree().join(beside).join(file).exists() {
                wrong.push(format!("{}: {link}", path.display()));
            }
        }
        // From the page, from the top, or from the book.
        let places = [beside, Path::new(""), Path::new("docs")];
        for page in
            mentions(&text).iter().filter(|page| !places.iter().any(|place| tree().join(place).join(page).exists()))
        {
            wrong.push(format!("{}: `{page}`", path.display()));
        }
    }
    assert!(wrong.is_empty(), "they lead nowhere:\n{}", wrong.join("\n"));
}

/// A word that stands for something: `NAME`, `FILE`.
fn is_placeholder(word: &str) -> bool {
    word.chars().any(char::is_alphabetic)
        && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || "_-:@".contains(c))
}

/// The command lines that are meant: `a|b` is either, `[x]` is x, and `…` says that something is left out.
fn meant(said: &Said) -> (Vec<Vec<String>>, bool) {
    let mut all = vec![Vec::new()];
    let mut is_cut = said.in_text;
    for word in &said.words {
        let word = word.trim_start_matches('[').trim_end_matches(']');
        if ["…", "..."].contains(&word) {
            is_cut = true;
            continue;
        }
        let either: Vec<&str> = word.split('|').collect();
        all = all
            .iter()
            .flat_map(|begun: &Vec<String>| {
                either.iter().map(|word| begun.iter().cloned().chain([(*word).to_owned()]).collect())
            })
            .collect();
    }
    (all, is_cut)
}

/// What is wrong with a command line, if something is.
fn fault(words: &[String], is_cut: bool) -> Option<String> {
    let parsed = match words[0].as_str() {
        "helio" => Helio::try_parse_from(words).map(drop),
        _ => HelioNbd::try_parse_from(words).map(drop),
    };
    let error = parsed.err()?;
    let is_fine = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand => is_cut,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => is_cut,
        // An option that is named, without its value.
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => is_cut || words.iter().any(|word| is_placeholder(word)),
        _ => false,
    };
    (!is_fine).then(|| error.to_string())
}

#[test]
fn every_command_is_one_that_there_is() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (path, text) in texts() {
        for said in commands(&text, &["helio", "helio-nbd"]) {
            let (meant, is_cut) = meant(&said);
            for words in meant.iter().filter(|words| words.len() > 1) {
                count += 1;
                if let Some(error) = fault(words, is_cut) {
                    wrong.push(format!("{}, line {}: {}\n{error}", path.display(), said.line, words.join(" ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} commands are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 200, "only {count} commands were found");
}

#[test]
fn a_command_that_is_not_there_is_noticed() {
    let told = |line: &str, in_text| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        fault(&words, in_text)
    };
    for wrong in [
        "helio volume move disk",
        "helio volume migrate disk --onto b",
        "helio-nbd --clusters f",
        "helio volume create disk --size much",
    ] {
        assert!(told(wrong, false).is_some(), "{wrong}");
    }
    assert!(told("helio volume migrate", false).is_some(), "a block has whole commands");
    assert_eq!(told("helio volume migrate", true), None);
    assert_eq!(told("helio volume create disk --size SIZE", false), None);
}
