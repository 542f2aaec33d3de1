//! Golden files: bytes of known values, kept in `tests/golden/` as hex, so that a change of a format cannot pass
//! unnoticed. Only for tests.
//!
//! A failing comparison means that stored data of today would not be read, or be read differently, tomorrow. If that
//! is meant, raise the format's version and write the files anew: `HELIO_GOLDEN=write`, as CONTRIBUTING.md says.

use std::fmt::Write;
use std::path::PathBuf;

/// Set to `write` to write the files instead of comparing with them.
const VARIABLE: &str = "HELIO_GOLDEN";
/// Bytes on a line.
const LINE: usize = 16;

/// The bytes of golden file `name`, which is of an older version and never written anew.
#[allow(dead_code, reason = "not both of the crates that share this file need it")]
pub(crate) fn read(name: &str) -> Vec<u8> {
    from_text(&std::fs::read_to_string(path(name)).expect("is there"))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// Compares `bytes` with golden file `name`, or writes it. Returns the file's bytes, for decoding.
pub(crate) fn check(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = path(name);
    let text = to_text(bytes);
    if std::env::var(VARIABLE).is_ok_and(|value| value == "write") {
        std::fs::write(&path, &text).expect("the golden file is written");
    }
    let kept = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; {VARIABLE}=write makes it", path.display()));
    assert!(
        kept == text,
        "the format changed: {name} has\n{kept}\nbut this is written now\n{text}\nIf it must, see \"A format change\" in CONTRIBUTING.md."
    );
    from_text(&kept)
}

/// Lines of an offset and bytes; lines of zeroes only are left out.
fn to_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (number, line) in bytes.chunks(LINE).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            let hex: String = line.iter().fold(String::new(), |hex, byte| hex + &format!(" {byte:02x}"));
            writeln!(text, "{:06x} {hex}", number * LINE).expect("a string takes any text");
        }
    }
    writeln!(text, "{:06x}", bytes.len()).expect("a string takes any text");
    text
}

fn from_text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let offset = words.next().and_then(|offset| usize::from_str_radix(offset, 16).ok()).expect("an offset");
        bytes.resize(offset, 0);
        bytes.extend(words.map(|byte| u8::from_str_radix(byte, 16).expect("a byte")));
    }
    bytes
}

#[test]
fn text_reads_back_as_the_bytes_it_was_made_of() {
    for bytes in [vec![], vec![0; 3], vec![7; 16], [vec![1], vec![0; 100], vec![2; 20], vec![0; 5]].concat()] {
        assert_eq!(from_text(&to_text(&bytes)), bytes);
    }
}
