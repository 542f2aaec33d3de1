//! The one error type that callers see.
//!
//! A kind exists only where the caller would act differently; everything else is in the message. Inside
//! the crates, module boundaries have their own typed errors, which turn into this at the edge.

use std::fmt;

/// What the caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request can never succeed as it stands: correct it.
    InvalidRequest,
    /// No such volume, node or snapshot: check the name.
    NotFound,
    /// The name is taken: choose another, or use what exists.
    AlreadyExists,
    /// This node does not own the volume and the caller holds no right to write: go to the owner, or migrate first.
    NotOwner,
    /// The caller's right to write was superseded by a newer epoch or writer: stop writing.
    Fenced,
    /// Something else is under way on the same object: try again when it is done.
    Busy,
    /// The other side cannot be reached or has no quorum now: try again later; the outcome may be unknown.
    Unavailable,
    /// The store is full: free or add space, then go on.
    OutOfSpace,
    /// Stored or received bytes do not match their checksum, and no good copy was found.
    Corrupt,
    /// The volume, session or server was closed: open it again.
    Closed,
    /// A bug or a broken device: see the server's log.
    Internal,
}

/// A failure, with what to do about it ([`Error::kind`]), what happened, and why.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` says what happened and, where it helps, what to do next.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), source: None }
    }

    /// The same error with its cause attached.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// What the caller should do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What happened, without the cause.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        // The cause is part of the line: these errors cross processes as text, where chains are lost.
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// An error and its causes in one line, each told once: errors of this crate and its neighbours name their cause themselves, those of
/// libraries may not.
#[must_use]
pub fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Errors cross the wire as kind and text.
impl serde::Serialize for Error {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.kind, self.to_string()).serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Error {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Error, D::Error> {
        let (kind, message) = <(ErrorKind, String)>::deserialize(deserializer)?;
        Ok(Error::new(kind, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once "nofile: No such file or directory: No such file or directory", as the cause told itself as well.
    #[test]
    fn each_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("nofile: {source}")]
        struct Naming {
            source: std::io::Error,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("it does not start")]
        struct Silent {
            source: Error,
        }
        let io = || std::io::Error::from_raw_os_error(2);
        let error = Error::new(ErrorKind::NotFound, "the credentials").caused_by(Naming { source: io() });
        assert_eq!(error.to_string(), format!("the credentials: nofile: {}", io()));
        assert_eq!(whole(&error), error.to_string());
        assert_eq!(whole(&Silent { source: error }), format!("it does not start: the credentials: nofile: {}", io()));
    }
}
