//! Labels of nodes and rules of placement, as administrators set and see them.

use std::collections::BTreeSet;

use client_lib::geometry::COPIES_OF_VOLUME_MAX;
use client_lib::policy::placement::{Among, Held, LEAVING, Placement, Plan, Share};
use client_lib::wire::admin::{ChangeLabels, ChangePlacement, NodeLabels, PlacementStatus};
use client_lib::{Error, ErrorKind, Label, NodeId, VolumeId, VolumeName};
use consensus::{Command, MetaState, Response, Volume};

use super::names::{group_named, node_named, volume_named};
use super::{NodeAdmin, out_of_turn};
use crate::node::METADATA_DEADLINE;
use crate::node::placement::{plan, sites, waits_for};
use crate::node::policy::until_not_overtaken;

impl NodeAdmin {
    /// Labels that are not named stay: also those that somebody else gives or takes at this moment.
    pub(super) async fn change_labels(&self, name: &str, request: ChangeLabels) -> Result<NodeLabels, Error> {
        until_not_overtaken(|| self.change_labels_read(name, &request)).await
    }

    /// The same, if nobody else changes them between the look at them and the change: `Busy` then.
    async fn change_labels_read(&self, name: &str, request: &ChangeLabels) -> Result<NodeLabels, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let node = node_named(&state, name)?;
        let parsed =
            |words: &[String]| words.iter().map(|word| word.parse::<Label>()).collect::<Result<BTreeSet<_>, _>>();
        let (add, remove) = (parsed(&request.add)?, parsed(&request.remove)?);
        let before: BTreeSet<Label> = state.places().labels(node).cloned().collect();
        let labels: BTreeSet<Label> = before.union(&add).filter(|label| !remove.contains(label)).cloned().collect();
        if labels != before {
            self.require_places_known(&state).await?;
            let set = |labels| Command::LabelNode { node, labels };
            match self.meta.replace(set(labels.clone()), set(before), METADATA_DEADLINE).await? {
                Response::PolicySet => {}
                other => return Err(out_of_turn(&other)),
            }
        }
        Ok(NodeLabels { node: name.to_owned(), labels: labels.iter().map(ToString::to_string).collect() })
    }

    pub(super) async fn placement_of(&self, name: &str) -> Result<PlacementStatus, Error> {
        let state = self.recall().await;
        let volume = volume_named(&state, name)?;
        Ok(self.told(&state, volume, state.places().wanted(volume.id)).await)
    }

    pub(super) async fn placement_of_group(&self, name: &str) -> Result<PlacementStatus, Error> {
        let state = self.recall().await;
        let volumes = members(&state, name)?;
        let first = first_of(&volumes)?;
        Ok(self.told(&state, first, state.places().wanted(first.id)).await)
    }

    pub(super) async fn place(&self, name: &str, request: ChangePlacement) -> Result<PlacementStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volume = volume_named(&state, name)?;
        if let Some(group) = state.group_of(volume.id) {
            let text = format!(
                "volume {name} is in group {0}, whose volumes are held by the same nodes: `helio group place {0}` places all of them",
                group.name
            );
            return Err(Error::new(ErrorKind::InvalidRequest, text));
        }
        self.place_all(&state, &[volume], request).await
    }

    pub(super) async fn place_all_of(&self, name: &str, request: ChangePlacement) -> Result<PlacementStatus, Error> {
        let state = self.meta.linearizable(METADATA_DEADLINE).await?;
        let volumes = members(&state, name)?;
        self.place_all(&state, &volumes, request).await
    }

    async fn place_all(
        &self,
        state: &MetaState,
        volumes: &[&Volume],
        request: ChangePlacement,
    ) -> Result<PlacementStatus, Error> {
        let placement = request.rule.as_deref().map(str::parse::<Placement>).transpose()?;
        let first = first_of(volumes)?;
        let status = self.told(state, first, placement.as_ref()).await;
        if !request.dry_run {
            self.require_places_known(state).await?;
            let volumes: BTreeSet<VolumeId> = volumes.iter().map(|volume| volume.id).collect();
            self.propose_of_places(Command::SetPlacement { volumes, placement }).await?;
        }
        Ok(status)
    }

    /// The nodes at which a new volume of `owner` is to have replicas by a rule.
    pub(super) async fn replicas_by(&self, state: &MetaState, owner: NodeId, rule: &Placement) -> BTreeSet<NodeId> {
        rule.plan(&sites(self, state).await, owner, &Held::default()).add
    }

    /// The nodes at which a new volume of `owner` is to have replicas when nothing is said of it: all others that are not leaving. Of more than a volume may have copies at,
    /// those that a rule for so many would take.
    pub(super) async fn replicas_unasked(&self, state: &MetaState, owner: NodeId) -> BTreeSet<NodeId> {
        let stays = |node: &NodeId| *node != owner && !is_leaving(state, *node);
        let others: BTreeSet<NodeId> = state.nodes().map(|node| node.id).filter(stays).collect();
        // Not otherwise: it is asked which nodes answer.
        if others.len() < COPIES_OF_VOLUME_MAX { others } else { self.replicas_by(state, owner, &most_copies()).await }
    }

    /// What a rule means for a volume now.
    pub(super) async fn told(&self, state: &MetaState, volume: &Volume, rule: Option<&Placement>) -> PlacementStatus {
        let sites = match rule {
            Some(_) => sites(self, state).await,
            None => Vec::new(),
        };
        let plan = rule.map_or_else(Plan::default, |rule| plan(state, &sites, volume, rule));
        // What another owner waits for it says itself.
        let is_in_force = volume.owner == self.this.id && rule == state.places().wanted(volume.id);
        let waits_for = if is_in_force { waits_for(self, state, &sites, volume, &plan) } else { Vec::new() };
        let names = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| state.name_of(*node)).collect::<Vec<_>>();
        let copies = std::iter::once(&volume.owner).chain(&volume.replicas);
        PlacementStatus {
            rule: rule.map(ToString::to_string),
            copies: copies.map(|node| state.name_of(*node)).collect(),
            add: names(&plan.add),
            surplus: names(&plan.surplus),
            lacking: plan.lacking.iter().map(|(among, count)| format!("{count} {among}")).collect(),
            owner_is_misplaced: plan.owner_is_misplaced,
            waits_for,
        }
    }

    /// Of those of `volumes` that have a rule of placement: who would have copies, beside the owner, when it has been carried out with `leaving` leaving.
    pub(super) async fn holders_without<'a>(
        &self,
        state: &MetaState,
        leaving: NodeId,
        volumes: Vec<&'a Volume>,
    ) -> Vec<(&'a Volume, BTreeSet<NodeId>)> {
        if volumes.is_empty() {
            return Vec::new();
        }
        let mut sites = sites(self, state).await;
        for site in sites.iter_mut().filter(|site| site.id == leaving) {
            site.labels.extend(LEAVING.parse::<Label>());
        }
        let holders = |volume: &'a Volume| {
            let plan = plan(state, &sites, volume, state.places().wanted(volume.id)?);
            let after = volume.replicas.difference(&plan.surplus).chain(&plan.add).copied();
            Some((volume, after.filter(|node| *node != leaving).collect()))
        };
        volumes.into_iter().filter_map(holders).collect()
    }

    /// Has the metadata say that `node` is leaving, where all know what that is.
    pub(super) async fn note_leaving(&self, state: &MetaState, node: NodeId) -> Result<(), Error> {
        if is_leaving(state, node) {
            return Ok(());
        }
        if let Err(why) = self.require_places_known(state).await {
            tracing::info!(%why, "it is not said of the node that it is leaving");
            return Ok(());
        }
        let labels = state.places().labels(node).cloned().chain(LEAVING.parse::<Label>()).collect();
        self.propose_of_places(Command::LabelNode { node, labels }).await
    }

    async fn propose_of_places(&self, command: Command) -> Result<(), Error> {
        match self.meta.carry_out(command, METADATA_DEADLINE).await? {
            Response::PolicySet => Ok(()),
            other => Err(out_of_turn(&other)),
        }
    }
}

fn is_leaving(state: &MetaState, node: NodeId) -> bool {
    state.places().labels(node).any(|label| label.as_str() == LEAVING)
}

/// As many copies as there may be, anywhere.
fn most_copies() -> Placement {
    const COPIES: u8 = COPIES_OF_VOLUME_MAX as u8;
    const _: () = assert!(COPIES as usize == COPIES_OF_VOLUME_MAX, "the number of copies of a rule has eight bits");
    Placement { shares: vec![Share { copies: COPIES, among: Among::Anywhere }], never: Vec::new() }
}

/// Refuses to make a volume with more copies than it may have. The metadata takes it as it comes, and refuses all changes of its replicas then that do
/// not leave few enough.
pub(super) fn require_few(volume: &VolumeName, replicas: &BTreeSet<NodeId>) -> Result<(), Error> {
    let copies = replicas.len() + 1;
    if copies <= COPIES_OF_VOLUME_MAX {
        return Ok(());
    }
    let text = format!(
        "volume {volume} would have {copies} copies, the owner's among them, and a volume has at most {COPIES_OF_VOLUME_MAX}: name at most {} replicas",
        COPIES_OF_VOLUME_MAX - 1
    );
    Err(Error::new(ErrorKind::InvalidRequest, text))
}

fn members<'a>(state: &'a MetaState, group: &str) -> Result<Vec<&'a Volume>, Error> {
    Ok(group_named(state, group)?.members.iter().filter_map(|id| state.volume(*id)).collect())
}

fn first_of<'a>(volumes: &[&'a Volume]) -> Result<&'a Volume, Error> {
    volumes.first().copied().ok_or_else(|| Error::new(ErrorKind::NotFound, "the group has no volumes any more"))
}

#[cfg(test)]
mod tests {
    use client_lib::policy::placement::Site;

    use super::*;

    /// In a cluster of 18 nodes a volume that was made without a word of replicas had 18 copies, and with 18 named as well. Taking one away left 17, which
    /// was refused as too many, with the advice to take one away; and so none of its nodes could be removed.
    #[test]
    fn a_volume_is_made_with_as_many_copies_as_it_may_have_and_no_more() {
        let site = |id: u64| Site {
            id: NodeId(id),
            provider: format!("p{}", id % 3).parse().expect("a name"),
            labels: BTreeSet::new(),
            is_up: true,
            load: 0,
        };
        let (sites, owner): (Vec<Site>, _) = ((1..=18).map(site).collect(), NodeId(7));
        let unasked = most_copies().plan(&sites, owner, &Held::default()).add;
        assert_eq!((unasked.len(), unasked.contains(&owner)), (COPIES_OF_VOLUME_MAX - 1, false));
        let name: VolumeName = "disk".parse().expect("a name");
        assert!(require_few(&name, &unasked).is_ok());
        let named = sites.iter().map(|site| site.id).filter(|id| *id != owner).collect();
        let refused = require_few(&name, &named).expect_err("too many");
        assert!(refused.message().contains("would have 18 copies"), "{refused}");
        assert!(refused.message().contains("at most 15 replicas"), "{refused}");
    }
}
