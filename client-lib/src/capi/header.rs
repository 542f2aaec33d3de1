//! Writes `client-lib/c/heliotrope.h` and `heliotrope.map` from the declarations, and fails when they differ from what is kept.
//!
//! `HELIO_GOLDEN=write cargo nextest run -p client-lib header` writes both anew.

use std::fmt::Write as _;
use std::path::Path;

use super::declare::Function;
use super::{aio, cluster, io, library, types, volume};

/// The widest line of a comment.
const WIDTH: usize = 100;

/// The version of every symbol that there is so far. Later ones come with a version of their own, which inherits this one.
const SYMBOL_VERSION: &str = "HELIOTROPE_0.1";

const SECTIONS: [(&str, &[Function]); 5] = [
    ("The library", library::FUNCTIONS),
    ("Clusters", cluster::FUNCTIONS),
    ("Volumes", volume::FUNCTIONS),
    ("Reading and writing: these block. Offsets and lengths are bytes, multiples of HELIO_SECTOR_BYTES", io::FUNCTIONS),
    (
        "The same as requests. 0: it is under way, and the callback is called exactly once. Negative: it was not begun, and the callback \
         is not called. Requests under way together are carried out in any order",
        aio::FUNCTIONS,
    ),
];

const OPENING: &str = "Volumes of a Heliotrope cluster, for C and whatever calls C. docs/c-library.md tells the rest.

Calls return 0 (or what they say), or a negative number of errno.h, about which helio_last_error tells on the same thread. Any thread may \
make any call; those that block return -EDEADLK in callbacks. Handles that were closed are refused with -EBADF.

Written from the code (client-lib/src/capi): not to be edited.";

/// Words in lines, each behind `prefix`.
fn wrapped(text: &str, prefix: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.split("\n\n") {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && prefix.len() + line.len() + 1 + word.len() > WIDTH {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines.join(&format!("\n{prefix}"))
}

fn comment(doc: &[&str], indent: &str) -> String {
    let text: Vec<&str> = doc.iter().map(|line| line.trim()).collect();
    format!("{indent}/* {} */\n", wrapped(&text.join(" "), &format!("{indent} * ")))
}

fn header() -> String {
    let mut out = format!("/* {}\n */\n", wrapped(OPENING, " * ").replace(" * \n", " *\n"));
    out += "#ifndef HELIOTROPE_H\n#define HELIOTROPE_H\n\n#include <stddef.h>\n#include <stdint.h>\n\n";
    out += "#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n";
    let _ = writeln!(out, "#define HELIO_VERSION \"{}\"", env!("CARGO_PKG_VERSION"));
    let [major, minor, patch] =
        [env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"), env!("CARGO_PKG_VERSION_PATCH")];
    for (name, value) in [("MAJOR", major), ("MINOR", minor), ("PATCH", patch)] {
        let _ = writeln!(out, "#define HELIO_VERSION_{name} {value}");
    }
    out += "\n";
    for constant in types::CONSTANTS {
        let _ = write!(out, "{}#define {} {}u\n\n", comment(constant.doc, ""), constant.name, constant.value);
    }
    out += "/* <sys/uio.h> */\nstruct iovec;\n\n";
    for structure in types::STRUCTURES {
        let (name, fields) = (structure.name, (structure.fields)());
        out += &comment(structure.doc, "");
        if fields.is_empty() {
            let _ = write!(out, "typedef struct {name} {name};\n\n");
            continue;
        }
        let _ = writeln!(out, "typedef struct {name} {{");
        for (doc, declaration) in fields {
            let _ = writeln!(out, "{}    {declaration};", comment(doc, "    "));
        }
        let _ = write!(out, "}} {name};\n\n");
    }
    for callback in types::CALLBACKS {
        let _ = write!(out, "{}typedef {};\n\n", comment(callback.doc, ""), (callback.declaration)());
    }
    for (title, functions) in SECTIONS {
        let _ = write!(out, "/* ---- {}. ---- */\n\n", wrapped(title, " * "));
        for function in functions {
            let _ = write!(out, "{}{};\n\n", comment(function.doc, ""), declaration(function));
        }
    }
    out += "#ifdef __cplusplus\n}\n#endif\n\n#endif\n";
    out
}

/// A declaration in lines, broken between arguments.
fn declaration(function: &Function) -> String {
    let whole = (function.declaration)();
    let (start, mut line_start) = (whole.find('(').expect("a function has arguments") + 1, 0);
    let mut out = String::new();
    for argument in whole.split_inclusive(", ") {
        if out.len() - line_start + argument.trim_end().len() > WIDTH {
            out.truncate(out.trim_end().len());
            line_start = out.len() + 1;
            out += &format!("\n{:start$}", "");
        }
        out += argument;
    }
    out
}

/// The linker's map: these symbols, with this version, and no others.
fn map() -> String {
    let mut names: Vec<&str> =
        SECTIONS.iter().flat_map(|(_, functions)| *functions).map(|function| function.name).collect();
    names.sort_unstable();
    let listed: String = names.iter().map(|name| format!("        {name};\n")).collect();
    format!("{SYMBOL_VERSION} {{\n    global:\n{listed}    local:\n        *;\n}};\n")
}

#[test]
fn the_header_and_the_list_of_symbols_are_those_of_the_code() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("c");
    for (name, text) in [("heliotrope.h", header()), ("heliotrope.map", map())] {
        let path = directory.join(name);
        if std::env::var("HELIO_GOLDEN").as_deref() == Ok("write") {
            std::fs::write(&path, &text).expect("the file can be written");
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == text,
            "{name} differs from the code; if that is meant, `HELIO_GOLDEN=write cargo nextest run -p client-lib header` writes it anew"
        );
    }
}

#[test]
fn every_symbol_is_declared_once_and_says_what_it_does() {
    let functions: Vec<&Function> = SECTIONS.iter().flat_map(|(_, functions)| *functions).collect();
    let mut names: Vec<&str> = functions.iter().map(|function| function.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), functions.len());
    for function in functions {
        assert!(function.name.starts_with("helio_") && !function.doc.is_empty(), "{}", function.name);
    }
}
