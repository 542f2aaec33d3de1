//! Who may use which volume: asked where one is opened and with every request about it, of the metadata as it is at this node.

use client_lib::rights::{Right, Role};
use client_lib::wire::client::ClientRequest;
use client_lib::{ClientName, Error, ErrorKind};
use consensus::MetaState;

/// Who asks for volumes.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// A node of the cluster, or a program that may use this node's files: nothing is kept from either.
    Trusted,
    /// A client with a certificate.
    Client(&'a ClientName),
}

impl Asker<'_> {
    /// What it may do with the volume of this name; `None` is nothing.
    #[must_use]
    pub fn right(self, state: &MetaState, volume: &str) -> Option<Right> {
        match self {
            Asker::Trusted => Some(Right::Write),
            Asker::Client(name) => state.rights_of(name).on(volume),
        }
    }

    /// What it may do with a volume with which it must be allowed to do `needed`.
    ///
    /// # Errors
    /// `InvalidRequest`, with what to do; the same whether there is such a volume or not.
    pub fn require(self, state: &MetaState, volume: &str, needed: Right) -> Result<Right, Error> {
        let (right, name) = match (self.right(state, volume), self) {
            (Some(right), _) if right >= needed => return Ok(right),
            (_, Asker::Trusted) => return Ok(Right::Write),
            (right, Asker::Client(name)) => (right, name),
        };
        let text = match (state.rights_of(name).role, right) {
            (_, Some(_)) => format!(
                "client {name} may only read volume {volume}: open it read-only; or, for it to be written, `helio cluster client allow \
                 {name} {volume}` at a node"
            ),
            (role @ (Role::Viewer | Role::Operator), None) => format!(
                "client {name} has role {role}, which uses no volumes: `helio cluster client role {name} volume` at a node makes it one that \
                 does"
            ),
            // Not by its name: who asks by number need not know that.
            (Role::Volume | Role::Admin, None) => format!(
                "client {name} may not use this volume: no rule of it is for that; `helio cluster client show {name}` at a node tells \
                 those that it has, and `helio cluster client allow {name} VOL` gives it one"
            ),
        };
        Err(Error::new(ErrorKind::InvalidRequest, text))
    }
}

/// What must be allowed to somebody who asks for this. A flush changes nothing, and what was written while that was allowed may be made
/// durable when it is not any more.
#[must_use]
pub fn needed(request: &ClientRequest) -> Right {
    match request {
        ClientRequest::Write { .. } | ClientRequest::Zero { .. } => Right::Write,
        ClientRequest::Members
        | ClientRequest::Volumes
        | ClientRequest::Open { .. }
        | ClientRequest::OpenFor { .. }
        | ClientRequest::List
        | ClientRequest::Attach { .. }
        | ClientRequest::Read { .. }
        | ClientRequest::Flush { .. }
        | ClientRequest::Extents { .. }
        | ClientRequest::Cache { .. } => Right::Read,
    }
}

#[cfg(test)]
mod tests {
    use consensus::{Command, Response};

    use super::*;

    fn state(role: Option<Role>, rules: &[&str]) -> MetaState {
        let mut state = MetaState::default();
        let allow = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
        let client = "host".parse().expect("a name");
        let limit = Command::ChangeRights { client, role, allow, deny: Vec::new() };
        assert_eq!(state.apply(1, limit), Response::RightsChanged);
        state
    }

    #[test]
    fn whoever_is_refused_is_told_what_to_do_and_no_name_that_he_does_not_know() {
        let (host, other) = ("host".parse().expect("a name"), "other".parse().expect("a name"));
        let limited = state(None, &["disk:ro"]);
        let ask = |state: &MetaState, name, volume: &str, needed| Asker::Client(name).require(state, volume, needed);
        assert_eq!(ask(&limited, &host, "disk", Right::Read).expect("is allowed"), Right::Read);
        let text = ask(&limited, &host, "disk", Right::Write).expect_err("is not").to_string();
        assert!(text.contains("client host may only read volume disk") && text.contains("allow host disk"), "{text}");
        let text = ask(&limited, &host, "secret", Right::Read).expect_err("is not").to_string();
        assert!(text.contains("may not use this volume") && !text.contains("secret"), "{text}");
        assert_eq!(ask(&limited, &other, "secret", Right::Write).expect("has no rules"), Right::Write);
        let looks = state(Some(Role::Viewer), &["disk"]);
        let text = ask(&looks, &host, "disk", Right::Read).expect_err("only looks").to_string();
        assert!(text.contains("role viewer") && text.contains("role host volume"), "{text}");
        let all = state(Some(Role::Admin), &["disk:ro"]);
        assert_eq!(ask(&all, &host, "secret", Right::Write).expect("may do everything"), Right::Write);
        assert_eq!(Asker::Trusted.require(&limited, "secret", Right::Write).expect("a node"), Right::Write);
    }
}
