//! What each request of the admin API needs: the one table of that, and who may do it.
//!
//! A request that is not in the table is not carried out for anybody.

use axum::http::Method;
use client_lib::rights::Role;

/// What somebody must be allowed to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Look.
    Look,
    /// Move volumes, keep what is there, say how things are done: nothing that anybody has is gone afterwards, and nobody may do more.
    Operate,
    /// Anything else: what makes and deletes volumes, or says who belongs to the cluster and may do what. A clone, too, since its name may be one
    /// that a client's rules are for.
    Administer,
}

impl Needs {
    /// Whether a client of this role may do it.
    #[must_use]
    pub fn is_met_by(self, role: Role) -> bool {
        match role {
            Role::Volume => false,
            Role::Viewer => self == Needs::Look,
            Role::Operator => self != Needs::Administer,
            Role::Admin => true,
        }
    }

    /// The least role that may.
    #[must_use]
    pub fn least_role(self) -> Role {
        match self {
            Needs::Look => Role::Viewer,
            Needs::Operate => Role::Operator,
            Needs::Administer => Role::Admin,
        }
    }
}

use Needs::{Administer, Look, Operate};

/// Every request: its method, the path as it is routed, and what it needs.
pub const REQUESTS: &[(&str, &str, Needs)] = &[
    ("GET", "/v1/volumes", Look),
    ("POST", "/v1/volumes", Administer),
    ("GET", "/v1/volumes/{name}", Look),
    ("DELETE", "/v1/volumes/{name}", Administer),
    ("POST", "/v1/volumes/{name}/migrate", Operate),
    ("DELETE", "/v1/volumes/{name}/migrate", Operate),
    ("POST", "/v1/volumes/{name}/on-write", Operate),
    ("GET", "/v1/volumes/{name}/takeover", Look),
    // What it cuts off is kept at the old owner.
    ("POST", "/v1/volumes/{name}/takeover", Operate),
    // Drops what a takeover has cut off.
    ("POST", "/v1/volumes/{name}/rejoin", Administer),
    ("GET", "/v1/volumes/{name}/policy", Look),
    ("POST", "/v1/volumes/{name}/policy", Operate),
    ("GET", "/v1/volumes/{name}/owner", Look),
    // A smaller one has lost its end.
    ("POST", "/v1/volumes/{name}/resize", Administer),
    ("GET", "/v1/volumes/{name}/keys", Look),
    ("POST", "/v1/volumes/{name}/keys", Administer),
    ("DELETE", "/v1/volumes/{name}/keys/{key}", Administer),
    // Says where data is, and drops copies.
    ("POST", "/v1/volumes/{name}/replicas", Administer),
    ("GET", "/v1/volumes/{name}/placement", Look),
    ("POST", "/v1/volumes/{name}/placement", Administer),
    ("GET", "/v1/volumes/{name}/residency", Look),
    ("GET", "/v1/volumes/{name}/timeline", Look),
    // Takes some time of the owner, which is bounded, and changes nothing.
    ("GET", "/v1/volumes/{name}/trace", Look),
    ("GET", "/v1/volumes/{name}/snapshots", Look),
    ("POST", "/v1/volumes/{name}/snapshots", Operate),
    ("DELETE", "/v1/volumes/{name}/snapshots/{snapshot}", Administer),
    ("POST", "/v1/volumes/{name}/snapshots/{snapshot}/rollback", Administer),
    ("POST", "/v1/volumes/{name}/snapshots/{snapshot}/clone", Administer),
    ("GET", "/v1/groups", Look),
    ("POST", "/v1/groups", Operate),
    ("GET", "/v1/groups/{name}", Look),
    ("DELETE", "/v1/groups/{name}", Administer),
    ("POST", "/v1/groups/{name}/volumes", Operate),
    ("POST", "/v1/groups/{name}/replicas", Administer),
    ("GET", "/v1/groups/{name}/placement", Look),
    ("POST", "/v1/groups/{name}/placement", Administer),
    ("POST", "/v1/groups/{name}/migrate", Operate),
    ("DELETE", "/v1/groups/{name}/migrate", Operate),
    ("POST", "/v1/groups/{name}/on-write", Operate),
    ("POST", "/v1/groups/{name}/snapshots", Operate),
    ("DELETE", "/v1/groups/{name}/snapshots/{snapshot}", Administer),
    ("GET", "/v1/space", Look),
    ("GET", "/v1/links", Look),
    ("POST", "/v1/links/{from}/{to}", Operate),
    ("GET", "/v1/scrub", Look),
    ("POST", "/v1/scrub", Operate),
    ("DELETE", "/v1/scrub", Operate),
    ("GET", "/v1/cluster", Look),
    ("GET", "/v1/overview", Look),
    ("GET", "/v1/nodes", Look),
    ("POST", "/v1/nodes/{name}/remove", Administer),
    ("POST", "/v1/nodes/{name}/labels", Administer),
    ("GET", "/v1/clients", Look),
    ("POST", "/v1/clients", Administer),
    ("POST", "/v1/clients/revoke", Administer),
    ("POST", "/v1/clients/rights", Administer),
    ("GET", "/v1/audit", Look),
    ("GET", "/v1/openapi.json", Look),
];

/// What a request needs; `None` for one that is not in the table.
pub(super) fn needed(method: &Method, path: &str) -> Option<Needs> {
    // Answered as what it is the head of.
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    REQUESTS.iter().find(|(known, at, _)| *known == method.as_str() && *at == path).map(|(.., needs)| *needs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The routes that a source file has for the API, as method and path.
    fn routes_in(source: &str) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        for route in source.split(".route(\"").skip(1) {
            let (path, rest) = route.split_once('"').expect("a path ends");
            if !path.starts_with("/v1/") {
                continue;
            }
            // Up to the next one, or the end of the statement.
            let handlers = rest.split(".route(").next().and_then(|rest| rest.split(['\n', ';']).next()).unwrap_or(rest);
            let mut methods = 0;
            for method in ["get", "post", "put", "patch", "delete", "any", "head", "options"] {
                if handlers.contains(&format!("{method}(")) {
                    methods += 1;
                    found.insert((method.to_uppercase(), path.to_owned()));
                }
            }
            assert!(methods > 0, "{path} has no method that this test knows: {handlers}");
        }
        found
    }

    #[test]
    fn every_route_is_in_the_table_and_nothing_else_is() {
        let sources = [include_str!("../http.rs"), include_str!("dashboard.rs"), include_str!("../observe.rs")];
        let routed: BTreeSet<_> = sources.into_iter().flat_map(routes_in).collect();
        let tabled: BTreeSet<_> =
            REQUESTS.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
        assert!(routed.len() > 40, "the sources are read: {}", routed.len());
        assert_eq!(routed, tabled);
        assert_eq!(tabled.len(), REQUESTS.len(), "each is there once");
    }

    #[test]
    fn looking_is_what_reads_and_nothing_that_changes_anything() {
        for (method, path, needs) in REQUESTS {
            assert_eq!(*method == "GET", *needs == Look, "{method} {path}");
        }
    }

    #[test]
    fn only_an_administrator_deletes_and_says_who_may_do_what() {
        for (method, path, needs) in REQUESTS {
            let takes_back_a_move = path.ends_with("/migrate") || *path == "/v1/scrub";
            if *method == "DELETE" && !takes_back_a_move {
                assert_eq!(*needs, Administer, "{method} {path}");
            }
            if *method != "GET" && (path.starts_with("/v1/clients") || path.starts_with("/v1/nodes")) {
                assert_eq!(*needs, Administer, "{method} {path}");
            }
        }
        for needs in [Look, Operate, Administer] {
            assert!(!needs.is_met_by(Role::Volume) && needs.is_met_by(Role::Admin));
            for role in Role::ALL {
                assert_eq!(needs.is_met_by(role), role >= needs.least_role(), "{needs:?} {role}");
            }
        }
        assert_eq!(needed(&Method::PUT, "/v1/volumes"), None);
        assert_eq!(needed(&Method::HEAD, "/v1/volumes"), Some(Look));
    }
}
