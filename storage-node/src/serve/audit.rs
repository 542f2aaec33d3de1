//! What administrators asked of this node: a line of JSON for each act, in its data directory. Looking at something is no act.
//!
//! Bounded: two files of [`FILE_BYTES_MAX`], the older of which is dropped. A line is written when the outcome is known, and
//! also when nobody waits for it any more. That a line cannot be written is logged, and keeps nobody from doing something.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use client_lib::clock::{Clock, SystemClock};
use client_lib::wire::admin::{AuditEntry, Failure};
use serde_json::Value;

use super::http::BODY_BYTES_MAX;
use super::http::caller::Proven;

/// The newest acts, in the data directory.
const FILE: &str = "audit.jsonl";
/// Those before.
const FILE_BEFORE: &str = "audit.before.jsonl";
/// Bytes of a file: thousands of acts.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a request that are kept, and of a name.
const WITH_BYTES_MAX: usize = 1024;
/// Bytes of an answer that are looked at for an error.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The header in which whoever asks may say who he is.
pub const USER_HEADER: &str = "x-helio-user";

/// The acts of a node.
#[derive(Debug)]
pub struct AuditLog {
    node: String,
    directory: PathBuf,
    /// One at a time.
    file: Mutex<()>,
}

impl AuditLog {
    /// The acts of `node`, in its data directory.
    #[must_use]
    pub fn new(node: &str, directory: &Path) -> AuditLog {
        AuditLog { node: node.to_owned(), directory: directory.to_owned(), file: Mutex::default() }
    }

    /// The newest `limit` acts, oldest first.
    ///
    /// # Errors
    /// As the system says. Lines that cannot be read are left out: a crash, or a full disk, may have cut one off.
    pub fn newest(&self, limit: usize) -> io::Result<Vec<AuditEntry>> {
        let _file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = Vec::new();
        for name in [FILE_BEFORE, FILE] {
            let lines = match std::fs::read(self.directory.join(name)) {
                Ok(lines) => lines,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // Not as text: one may have been cut off within a character.
            entries.extend(lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()));
        }
        entries.drain(..entries.len().saturating_sub(limit));
        Ok(entries)
    }

    fn note(&self, entry: &AuditEntry) {
        if let Err(error) = self.write(entry) {
            tracing::warn!(act = entry.act, %error, "what an administrator did is not noted");
        }
    }

    fn write(&self, entry: &AuditEntry) -> io::Result<()> {
        let _file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.join(FILE);
        if path.metadata().is_ok_and(|file| file.len() >= FILE_BYTES_MAX) {
            std::fs::rename(&path, self.directory.join(FILE_BEFORE))?;
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(&path)?;
        let mut line = Vec::new();
        if !ends_whole(&mut file)? {
            // What is left of a line that was cut off would take this one with it.
            line.push(b'\n');
        }
        serde_json::to_writer(&mut line, entry)?;
        line.push(b'\n');
        file.write_all(&line)
    }
}

/// Whether a file is empty, or ends with the end of a line.
fn ends_whole(file: &mut File) -> io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// An act under way, noted when its outcome is known, or nobody waits for that any more.
struct Act {
    log: Arc<AuditLog>,
    entry: AuditEntry,
}

impl Drop for Act {
    fn drop(&mut self) {
        self.log.note(&self.entry);
    }
}

/// Notes what is asked in between, unless it only looks at something.
pub(super) async fn note_acts(State(log): State<Arc<AuditLog>>, request: Request, next: Next) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let path = parts.uri.path_and_query().map_or_else(|| parts.uri.path(), |path| path.as_str());
    let entry = AuditEntry {
        at_ms: SystemClock::new().unix_ms(),
        node: log.node.clone(),
        identity: parts.extensions.get::<Proven>().map(|proven| proven.0.clone()).unwrap_or_default(),
        user: user_of(&parts.headers),
        act: cut(&format!("{} {path}", parts.method)),
        with: cut(&on_a_line(&body)),
        ..AuditEntry::default()
    };
    let mut act = Act { log, entry };
    let answer = next.run(Request::from_parts(parts, Body::from(body))).await;
    act.entry.status = answer.status().as_u16();
    if answer.status().is_success() {
        return answer;
    }
    let (parts, body) = answer.into_parts();
    let body = to_bytes(body, ANSWER_BYTES_MAX).await.unwrap_or_default();
    let failure: Option<Failure> = serde_json::from_slice(&body).ok();
    act.entry.error =
        Some(failure.map_or_else(|| cut(&String::from_utf8_lossy(&body)), |failure| cut(&failure.message)));
    Response::from_parts(parts, Body::from(body))
}

fn user_of(headers: &HeaderMap) -> String {
    headers.get(USER_HEADER).and_then(|user| user.to_str().ok()).map(cut).unwrap_or_default()
}

/// A request on one line. A field that is null may take something away, a limit or a policy: it stays.
fn on_a_line(body: &[u8]) -> String {
    match serde_json::from_slice::<Value>(body) {
        Ok(asked) => asked.to_string(),
        Err(_) => String::from_utf8_lossy(body).split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

/// The beginning of a text, in whole characters, none of which does anything to a terminal.
fn cut(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).find(|at| *at >= WITH_BYTES_MAX) {
        Some(end) => format!("{}…", printable(&text[..end])),
        None => printable(text),
    }
}

/// A text with U+FFFD for each control character (Unicode category Cc: C0, DEL and C1): whoever asks says what is in it, and others read it on terminals.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> AuditEntry {
        AuditEntry { at_ms: number, with: "x".repeat(1000), ..AuditEntry::default() }
    }

    #[test]
    fn acts_are_kept_in_order_and_the_oldest_are_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = AuditLog::new("a", directory.path());
        assert_eq!(log.newest(9).expect("reads"), []);
        let count = 4000;
        (0..count).for_each(|number| log.note(&entry(number)));
        let kept = log.newest(usize::MAX).expect("reads");
        assert_eq!(kept.last(), Some(&entry(count - 1)));
        assert!(kept.len() > 1000 && kept.len() < 2500, "{}", kept.len());
        assert!(kept.windows(2).all(|pair| pair[0].at_ms + 1 == pair[1].at_ms));
        assert_eq!(AuditLog::new("a", directory.path()).newest(2).expect("reads"), kept[kept.len() - 2..]);
        // A crash in the middle of a line.
        let mut file = OpenOptions::new().append(true).open(directory.path().join(FILE)).expect("opens");
        file.write_all(b"{\"at_ms\":").expect("is written");
        assert_eq!(log.newest(1).expect("reads"), [entry(count - 1)]);
    }

    /// A disk was full in the middle of a line. The next act was appended to what there was of it, and was never seen again; and where that ended within a
    /// character, none of the node's acts was.
    #[test]
    fn a_line_that_was_cut_off_takes_no_other_with_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let log = AuditLog::new("a", directory.path());
        log.note(&entry(1));
        let mut file = OpenOptions::new().append(true).open(directory.path().join(FILE)).expect("opens");
        file.write_all(b"{\"at_ms\":7,\"user\":\"\xc3").expect("is written");
        assert_eq!(log.newest(9).expect("reads"), [entry(1)]);
        (2..4).for_each(|number| log.note(&entry(number)));
        assert_eq!(log.newest(9).expect("reads"), [entry(1), entry(2), entry(3)]);
    }

    /// What was no JSON was noted as it came, and an escape sequence in it cleared, or forged, the lines that an administrator looked at on his terminal.
    #[test]
    fn what_was_asked_for_does_nothing_to_a_terminal() {
        let asked = "{\u{1b}[2J\u{7f}\u{9b}2Jaß\u{202e}…";
        assert_eq!(cut(&on_a_line(asked.as_bytes())), "{\u{fffd}[2J\u{fffd}\u{fffd}2Jaß\u{202e}…");
        // Also within JSON, where DEL and C1 stand for themselves.
        assert_eq!(cut(&on_a_line("{\"to\":\"\u{9b}2J\"}".as_bytes())), "{\"to\":\"\u{fffd}2J\"}");
    }

    /// `helio cluster audit` showed a request over as many lines as it had fields; and later nothing of a limit that was taken away, which is null.
    #[test]
    fn what_was_asked_for_is_told_on_a_line_and_whole() {
        let asked = b"{\n  \"reason\": \"test\",\n  \"rate\": null\n}";
        assert_eq!(on_a_line(asked), r#"{"rate":null,"reason":"test"}"#);
        assert_eq!(on_a_line(b""), "");
        assert_eq!(on_a_line(b"no\n JSON"), "no JSON");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = cut(&"ä".repeat(2000));
        assert!(long.ends_with('…') && long.len() < WITH_BYTES_MAX + 8, "{}", long.len());
    }
}
