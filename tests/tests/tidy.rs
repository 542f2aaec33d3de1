//! The rules of the tree that the compiler does not check: which crate may know which, where `unsafe` and the
//! heavy dependencies live, file sizes, module docs, nothing left half done.
//!
//! Reads the tracked files as text, so it needs `git` and no build. Comments are ignored where code is meant.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MAX_LINES: usize = 1000;
const MEMBERS: [&str; 6] = ["bench", "client-lib", "consensus", "nbd-frontend", "storage-node", "tests"];
/// Crate, and which of ours it may depend on. `tests` and `bench` may use all.
const ARROWS: [(&str, &[&str]); 4] = [
    ("client-lib", &[]),
    ("consensus", &["client-lib"]),
    ("nbd-frontend", &["client-lib"]),
    ("storage-node", &["client-lib", "consensus", "nbd-frontend"]),
];
/// Dependency, and the prefixes of the only files that may name it.
const HOMES: [(&str, &[&str]); 11] = [
    ("quinn", &["client-lib/src/transport/quic"]),
    ("rocksdb", &["consensus/src/store", "storage-node/src/map/store"]),
    ("io_uring", &["storage-node/src/io/uring.rs"]),
    ("openraft", &["consensus/"]),
    ("imago", &["storage-node/src/cli/transfer/image.rs"]),
    ("zstd", &["storage-node/src/peer/packing"]),
    ("prometheus_client", &["storage-node/src/metrics/exposition.rs"]),
    ("prost", &["storage-node/src/trace/otlp.rs", "tests/tests/otlp.rs"]),
    (
        "hyper",
        &[
            "storage-node/src/serve/observe/listener.rs",
            "storage-node/src/serve/http/listener.rs",
            "storage-node/src/serve/http/remote.rs",
        ],
    ),
    (
        "schemars",
        &[
            "client-lib/src/wire/admin",
            "client-lib/src/cipher/keys.rs",
            "client-lib/src/error.rs",
            "client-lib/src/rights.rs",
            "storage-node/src/serve/http/openapi",
            "storage-node/src/serve/observe.rs",
        ],
    ),
    (
        "tokio_rustls",
        &[
            "nbd-frontend/src/tls.rs",
            "nbd-frontend/src/client/tls.rs",
            "nbd-frontend/tests",
            "storage-node/src/serve/http/remote.rs",
        ],
    ),
];
/// Prefixes, too. The last one is the program inside the guests of the tests, which has no crates.
const UNSAFE_HOMES: [&str; 4] =
    ["client-lib/src/capi", "storage-node/src/io/uring.rs", "storage-node/src/io/buffer.rs", "tests/guest/init.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is inside the workspace").to_path_buf()
}

/// Tracked paths, relative to the root; files deleted but not yet committed are left out.
fn tracked() -> Vec<String> {
    let output = Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output().expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let paths: Vec<String> =
        listed.split('\0').filter(|path| !path.is_empty() && root().join(path).is_file()).map(String::from).collect();
    assert!(paths.len() > 20, "git lists only {} files", paths.len());
    paths
}

fn read(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(root().join(path)).expect("a tracked file can be read")).into_owned()
}

fn sources() -> impl Iterator<Item = (String, String)> {
    tracked().into_iter().filter(|path| path.ends_with(".rs")).map(|path| {
        let text = read(&path);
        (path, text)
    })
}

/// The line without its comment; `//` inside a string such as `nbd://` is kept by asking for a space or a start before it.
fn code(line: &str) -> &str {
    if line.trim_start().starts_with("//") { "" } else { line.split(" // ").next().unwrap_or(line) }
}

/// Whether `text` holds `word` with no identifier character on either side.
fn has_word(text: &str, word: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(inside) && !text[at + word.len()..].starts_with(inside))
}

/// Whether `text` names the crate in a path, `use` or `extern crate`, and not as a local name such as `self.openraft`.
fn names_crate(text: &str, name: &str) -> bool {
    let path = format!("{name}::");
    let path_use = text.match_indices(&path).any(|(at, _)| {
        !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') || text[..at].ends_with(" ::")
    });
    let bare = ["use", "pub use", "extern crate"].iter().any(|keyword| {
        text.trim_start().strip_prefix(keyword).is_some_and(|rest| {
            let rest = rest.trim_start().trim_start_matches("::");
            rest.strip_prefix(name).is_some_and(|rest| rest.starts_with([';', ' ']))
        })
    });
    path_use || bare
}

fn none(found: &[String], rule: &str) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let mut found = Vec::new();
    for (member, allowed) in ARROWS {
        for line in read(&format!("{member}/Cargo.toml")).lines() {
            let key = line.split(['.', '=', ' ']).next().unwrap_or("");
            if MEMBERS.contains(&key) && !allowed.contains(&key) {
                found.push(format!("{member}/Cargo.toml: {line}"));
            }
        }
    }
    for (path, text) in sources() {
        let Some((member, allowed)) = ARROWS.iter().find(|(member, _)| path.starts_with(&format!("{member}/"))) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            for other in MEMBERS.iter().filter(|other| *other != member && !allowed.contains(other)) {
                if names_crate(code(line), &other.replace('-', "_")) && !["tests", "bench"].contains(other) {
                    found.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    none(&found, "a crate knows one it must not know");
}

#[test]
fn heavy_dependencies_stay_at_home() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (name, homes) in HOMES {
            if homes.iter().any(|home| path.starts_with(home)) {
                continue;
            }
            for (number, line) in text.lines().enumerate() {
                if names_crate(code(line), name) {
                    found.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    none(&found, "a dependency is used outside its home");
}

#[test]
fn unsafe_code_stays_in_its_files() {
    let word = concat!("un", "safe");
    let mut found = Vec::new();
    for (path, text) in sources().filter(|(path, _)| !UNSAFE_HOMES.iter().any(|home| path.starts_with(home))) {
        for (number, line) in text.lines().enumerate() {
            let line = code(line);
            let opens = ["{", "fn", "impl", "trait", "extern"];
            if has_word(line, word) && opens.iter().any(|next| line.contains(&format!("{word} {next}"))) {
                found.push(format!("{path}:{}", number + 1));
            }
        }
    }
    none(&found, "code that the compiler cannot check is outside its files");
}

#[test]
fn files_are_short_and_say_what_they_own() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            found.push(format!("{path}: {lines} lines, at most {MAX_LINES}"));
        }
        if !text.starts_with("//!") {
            found.push(format!("{path}: does not open with a module doc"));
        }
    }
    none(&found, "files");
}

#[test]
fn nothing_is_left_half_done() {
    let marks = [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[ig", "nore")];
    let mut found = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| code(line).contains(mark)) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none(&found, "half done");
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let marks = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut found = Vec::new();
    for path in tracked() {
        for (number, line) in read(&path).lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    none(&found, "a path of one machine");
}

#[test]
fn the_top_level_holds_the_members_and_the_docs() {
    let found: BTreeSet<String> = tracked()
        .iter()
        .filter_map(|path| path.split_once('/'))
        .map(|(top, _)| top.to_owned())
        .filter(|top| !top.starts_with('.'))
        .collect();
    let expected: BTreeSet<String> = MEMBERS.iter().chain(&["docs"]).map(|top| (*top).to_owned()).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_crate_is_recognised_in_paths_and_not_in_other_words() {
    assert!(names_crate("use quill::Endpoint;", "quill"));
    assert!(names_crate("pub use quill;", "quill"));
    assert!(names_crate("let e: ::quill::Endpoint;", "quill"));
    assert!(!names_crate("use my_quill::Endpoint;", "quill"));
    assert!(!names_crate("use crate::quill::Endpoint;", "quill"));
    assert!(!names_crate("quill.close()", "quill"));
}
