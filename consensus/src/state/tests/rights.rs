//! Which volumes clients may use, and what they are there for.

use client_lib::ClientName;
use client_lib::rights::{Right, Role};

use super::cluster;
use crate::command::{Command, Refusal, Response};
use crate::state::MetaState;
use crate::state::rights::RULES_MAX;

fn host() -> ClientName {
    "host".parse().expect("a name")
}

fn allow(rules: &[&str]) -> Command {
    let allow = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
    Command::ChangeRights { client: host(), role: None, allow, deny: Vec::new() }
}

fn deny(pattern: &str, right: Option<Right>) -> Command {
    let deny = vec![(pattern.parse().expect("a pattern"), right)];
    Command::ChangeRights { client: host(), role: None, allow: Vec::new(), deny }
}

fn given(role: Role) -> Command {
    Command::ChangeRights { client: host(), role: Some(role), allow: Vec::new(), deny: Vec::new() }
}

fn on(state: &MetaState, volume: &str) -> Option<Right> {
    state.rights_of(&host()).on(volume)
}

fn applied(state: &mut MetaState, command: Command) {
    assert_eq!(state.apply(20, command), Response::RightsChanged);
}

#[test]
fn a_client_without_rules_may_use_everything_and_one_with_rules_what_they_are_for() {
    let mut state = cluster();
    assert_eq!(on(&state, "any"), Some(Right::Write), "as before there were rules");
    applied(&mut state, allow(&["vm-*:ro", "vm-1", "disk:ro"]));
    assert_eq!(on(&state, "any"), None);
    assert_eq!((on(&state, "vm-2"), on(&state, "disk")), (Some(Right::Read), Some(Right::Read)));
    assert_eq!(on(&state, "vm-1"), Some(Right::Write), "the greatest of all that are for it");
    let other = "other".parse().expect("a name");
    assert_eq!(state.rights_of(&other).on("any"), Some(Right::Write));
    applied(&mut state, allow(&["disk"]));
    assert_eq!(on(&state, "disk"), Some(Right::Write), "replaced");
}

/// Nobody would notice a rule withdrawn that opens everything.
#[test]
fn who_has_lost_the_last_rule_may_use_nothing() {
    let mut state = cluster();
    assert_eq!(state.apply(20, deny("disk", None)), Response::Refused(Refusal::NoRules(host())));
    applied(&mut state, allow(&["disk"]));
    applied(&mut state, deny("disk", None));
    assert_eq!(on(&state, "disk"), None);
    applied(&mut state, allow(&["*"]));
    assert_eq!(on(&state, "disk"), Some(Right::Write));
    let revoke = Command::RevokeClient { client: host(), at_ms: 1 };
    assert_eq!(state.apply(21, revoke), Response::Revoked);
    applied(&mut state, deny("*", None));
    assert_eq!(on(&state, "disk"), None, "rules are of the name, whatever certificates it has");
}

#[test]
fn what_is_withdrawn_must_be_there_and_else_nothing_is_changed() {
    let mut state = cluster();
    applied(&mut state, allow(&["disk:ro"]));
    let before = state.clone();
    for (pattern, right) in [("disk", Some(Right::Write)), ("vm-*", None), ("di*", None)] {
        let refused = state.apply(21, deny(pattern, right));
        assert!(matches!(refused, Response::Refused(Refusal::NoSuchRule { .. })), "{refused:?}");
    }
    let both = Command::ChangeRights {
        client: host(),
        role: Some(Role::Admin),
        allow: vec!["more".parse().expect("a rule")],
        deny: vec![("none".parse().expect("a pattern"), None)],
    };
    assert!(matches!(state.apply(22, both), Response::Refused(_)));
    assert_eq!(state, before);
    applied(&mut state, deny("disk", Some(Right::Read)));
}

#[test]
fn only_some_roles_use_volumes() {
    let mut state = cluster();
    for (role, right) in [
        (Role::Viewer, None),
        (Role::Operator, None),
        (Role::Admin, Some(Right::Write)),
        (Role::Volume, Some(Right::Write)),
    ] {
        applied(&mut state, given(role));
        assert_eq!(on(&state, "disk"), right, "{role}");
    }
    applied(&mut state, allow(&["disk:ro"]));
    applied(&mut state, given(Role::Viewer));
    assert_eq!(on(&state, "disk"), None, "rules give nothing to one that only looks");
    applied(&mut state, given(Role::Volume));
    assert_eq!(on(&state, "disk"), Some(Right::Read), "and are kept");
}

#[test]
fn there_are_so_many_rules_and_no_more() {
    let mut state = cluster();
    let rules: Vec<String> = (0..RULES_MAX).map(|number| format!("vm-{number}")).collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    applied(&mut state, allow(&rules));
    assert_eq!(state.apply(21, allow(&["one-more"])), Response::Refused(Refusal::TooManyRules(host())));
    assert_eq!(on(&state, "one-more"), None);
    applied(&mut state, allow(&["vm-0:ro"]));
    assert_eq!(on(&state, "vm-0"), Some(Right::Read));
}

#[test]
fn who_follows_leases_only_is_told_of_rights() {
    let before = cluster();
    let mut state = before.clone();
    assert!(state.differs_in_leases_only(&before));
    applied(&mut state, allow(&["disk"]));
    assert!(!state.differs_in_leases_only(&before));
}
