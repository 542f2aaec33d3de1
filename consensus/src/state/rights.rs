//! What clients may do: the role of each, and which volumes it may use.
//!
//! A client that was never given a rule may use every volume, as all could before there were any. From its first rule on it may use
//! what its rules are for and nothing else, also when the last of them is withdrawn. Rules are for names: a volume that is made later
//! under a name that a rule is for may be used, too.

use std::collections::BTreeMap;

use client_lib::ClientName;
use client_lib::rights::{Right, Role, VolumePattern, VolumeRule};
use serde::{Deserialize, Serialize};

use super::MetaState;
use super::access::CLIENTS_MAX;
use crate::command::{Refusal, Response};

/// How many rules a client has at most; all of them are looked at for a request of one that has rules.
pub const RULES_MAX: usize = 256;

/// How many rules all clients have at most: a snapshot of the metadata has them all.
pub const RULES_OF_ALL_MAX: usize = 50_000;

/// What a client may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRights {
    /// What it is there for.
    pub role: Role,
    /// Which volumes it may use, if its role uses volumes by rules; `None` if it was never given any rule: every volume.
    pub rules: Option<BTreeMap<VolumePattern, Right>>,
}

/// Of whoever was never given any.
static OF_NOBODY: ClientRights = ClientRights { role: Role::Volume, rules: None };

impl ClientRights {
    /// What may be done with the volume of this name; `None` is nothing.
    #[must_use]
    pub fn on(&self, volume: &str) -> Option<Right> {
        match (self.role, &self.rules) {
            (Role::Admin, _) | (Role::Volume, None) => Some(Right::Write),
            (Role::Volume, Some(rules)) => {
                rules.iter().filter(|(pattern, _)| pattern.matches(volume)).map(|(_, right)| *right).max()
            }
            (Role::Viewer | Role::Operator, _) => None,
        }
    }

    /// The rules, by pattern.
    pub fn rules(&self) -> impl Iterator<Item = VolumeRule> {
        let rules = self.rules.iter().flatten();
        rules.map(|(pattern, right)| VolumeRule { pattern: pattern.clone(), right: *right })
    }
}

impl MetaState {
    /// What this client may do.
    #[must_use]
    pub fn rights_of(&self, client: &ClientName) -> &ClientRights {
        self.rights.get(client).unwrap_or(&OF_NOBODY)
    }

    /// The clients that were ever given a role or a rule.
    pub fn rights(&self) -> impl Iterator<Item = (&ClientName, &ClientRights)> {
        self.rights.iter()
    }

    /// Whether nothing is in it that programs of format 8 would drop.
    pub(crate) fn has_only_what_format_8_has(&self) -> bool {
        self.rights.is_empty() && self.places.is_empty() && self.keys.is_empty()
    }

    pub(super) fn change_rights(
        &mut self,
        client: ClientName,
        role: Option<Role>,
        allow: Vec<VolumeRule>,
        deny: Vec<(VolumePattern, Option<Right>)>,
    ) -> Result<Response, Refusal> {
        let mut wanted = self.rights_of(&client).clone();
        wanted.role = role.unwrap_or(wanted.role);
        for (pattern, right) in deny {
            let Some(rules) = &mut wanted.rules else { return Err(Refusal::NoRules(client)) };
            let found = rules.get(&pattern).copied();
            if found.is_none() || right.is_some_and(|right| found != Some(right)) {
                let suffix = if right == Some(Right::Read) { ":ro" } else { "" };
                return Err(Refusal::NoSuchRule { client, rule: format!("{pattern}{suffix}") });
            }
            rules.remove(&pattern);
        }
        if !allow.is_empty() {
            let given = allow.into_iter().map(|rule| (rule.pattern, rule.right));
            wanted.rules.get_or_insert_default().extend(given);
        }
        let count = |rights: &ClientRights| rights.rules.as_ref().map_or(0, BTreeMap::len);
        if count(&wanted) > RULES_MAX {
            return Err(Refusal::TooManyRules(client));
        }
        if *self.rights_of(&client) == wanted {
            return Ok(Response::RightsChanged);
        }
        let others = self.rights.iter().filter(|(name, _)| **name != client);
        if others.map(|(_, rights)| count(rights)).sum::<usize>() + count(&wanted) > RULES_OF_ALL_MAX {
            return Err(Refusal::TooManyRulesOfAll);
        }
        if !self.rights.contains_key(&client) && self.rights.len() >= CLIENTS_MAX {
            return Err(Refusal::TooManyClients);
        }
        self.rights.insert(client, wanted);
        Ok(Response::RightsChanged)
    }
}
