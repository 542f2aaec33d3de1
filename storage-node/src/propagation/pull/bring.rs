//! Asking holders for versions, one after the other or, where a guest waits, a second one beside the first.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use client_lib::transport::Class;
use client_lib::{Error, ErrorKind, Lsn, NodeId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::{Puller, Why, lock, runs_of};
use crate::peer::alike;
use crate::peer::client::PeerClient;
use crate::peer::message::{Alike, ENCODING_HELD, Message, PeerReply, PeerRequest};
use crate::peer::packing::{unpack_blocks, unpack_zstd};
use crate::propagation::manifest::{VersionRun, VersionedBlock};
use crate::serve::volume::store_failure;
use crate::shard::handle::StoreError;
use crate::volume::Moment;
use crate::volume::layers::Wanted;

impl Puller {
    /// Fetches these versions, from whoever has them.
    pub(super) async fn bring(
        &self,
        moment: Moment,
        mut wanted: Vec<(u32, Lsn)>,
        why: Why,
        visited: &[NodeId],
    ) -> Result<(), Error> {
        let mut last = None;
        let wants = |wanted: &[(u32, Lsn)]| !wanted.is_empty();
        if wants(&wanted) {
            self.bring_by_name(moment, &mut wanted, why, visited, &mut last).await?;
        }
        if wants(&wanted) {
            self.bring_newest(moment, &mut wanted, why, visited, &mut last).await?;
        }
        if !wants(&wanted) {
            return Ok(());
        }
        // That nothing is wanted any more is success too: another pull or an overwrite was faster.
        let still = self.lacking(moment, &runs_of(&wanted)).await?;
        match wanted.iter().any(|version| still.contains(version)) {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Unavailable,
                format!("no other holder of volume {} could send a block that is stale or damaged here", self.volume),
            )
            .caused_by(last.map_or_else(|| "there is no other holder".to_owned(), |error: Error| error.to_string()))),
        }
    }

    /// Asks one holder after the other for what is wanted by name, where a guest waits more than one at a time; takes from `wanted` what
    /// came.
    async fn bring_by_name(
        &self,
        moment: Moment,
        wanted: &mut Vec<(u32, Lsn)>,
        why: Why,
        visited: &[NodeId],
        last: &mut Option<Error>,
    ) -> Result<(), Error> {
        let order = self.order(visited).into_iter().filter(|node| self.peers.encodings(*node) & ENCODING_HELD != 0);
        let mut order = order.collect::<VecDeque<NodeId>>();
        let mut calls = FuturesUnordered::new();
        // Whose answer is late, from when on.
        let mut late: Option<(NodeId, Instant)> = None;
        loop {
            if calls.is_empty() {
                let Some(holder) = order.pop_front() else { return Ok(()) };
                late =
                    (why == Why::Demand).then(|| (holder, Instant::now() + self.peers.patience(holder, wanted.len())));
                calls.push(self.ask_held(holder, why, moment, wanted.clone()));
            }
            let hedge = late.filter(|_| calls.len() == 1 && !order.is_empty());
            tokio::select! {
                biased;
                Some((holder, outcome)) = calls.next() => match outcome {
                    Ok(blocks) => self.take(moment, wanted, why, blocks, holder, last).await?,
                    Err(error) => {
                        lock(&self.pulling.holders).failed(holder, self.pulling.began.elapsed());
                        *last = Some(error);
                    }
                },
                Some(holder) = overdue(hedge) => {
                    self.peers.links().hedged(holder);
                    lock(&self.pulling.fetched).hedged += 1;
                    if let Some(next) = order.pop_front() {
                        calls.push(self.ask_held(next, why, moment, wanted.clone()));
                    }
                    late = None;
                }
            }
            if wanted.is_empty() {
                // What is still on its way is not waited for: dropped, it ends at the other side too.
                return Ok(());
            }
        }
    }

    /// Stores what came, and takes it from `wanted`.
    async fn take(
        &self,
        moment: Moment,
        wanted: &mut Vec<(u32, Lsn)>,
        why: Why,
        blocks: Vec<VersionedBlock>,
        holder: NodeId,
        last: &mut Option<Error>,
    ) -> Result<(), Error> {
        let came: BTreeSet<(u32, Lsn)> = blocks.iter().map(|block| (block.block.0, block.lsn)).collect();
        let before = wanted.len();
        let landing = self.pulling.flights.land(came.iter().copied());
        match self.shard.receive(self.volume, blocks).await {
            Ok(stored) => {
                wanted.retain(|version| !came.contains(version));
                lock(&self.pulling.holders).had(holder, (before - wanted.len()) as f64 / before.max(1) as f64);
                if moment == Moment::Now {
                    self.pulling.count(why, stored.saturating_sub(landing.twice));
                }
                if !wanted.is_empty() {
                    *last = Some(Error::new(
                        ErrorKind::Unavailable,
                        format!("node {} holds other versions", self.peers.name(holder)),
                    ));
                }
                Ok(())
            }
            // What it sent is not what the manifest promised: another holder may be right.
            Err(error @ StoreError::Corrupt { .. }) => {
                lock(&self.pulling.holders).failed(holder, self.pulling.began.elapsed());
                *last = Some(store_failure(error));
                Ok(())
            }
            Err(error) => Err(store_failure(error)),
        }
    }

    async fn ask_held(
        &self,
        holder: NodeId,
        why: Why,
        moment: Moment,
        wanted: Vec<(u32, Lsn)>,
    ) -> (NodeId, Result<Vec<VersionedBlock>, Error>) {
        (holder, self.fetch_held(holder, why, moment, wanted).await)
    }

    /// Those of `wanted` that `holder` has, in the background; they are not stored. Nothing is offered for them.
    ///
    /// # Errors
    /// When it cannot be reached, or does not answer as it should.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ask_for(&self, holder: NodeId, wanted: Vec<(u32, Lsn)>) -> Result<Vec<VersionedBlock>, Error> {
        let request = self.held_request(Moment::Now, &wanted, Vec::new());
        let answer = self.peers.ask(holder, Class::Bulk, request, Bytes::new()).await?;
        held_in(&self.peers, holder, answer, Vec::new())
    }

    async fn fetch_held(
        &self,
        holder: NodeId,
        why: Why,
        moment: Moment,
        wanted: Vec<(u32, Lsn)>,
    ) -> Result<Vec<VersionedBlock>, Error> {
        let here = match moment == Moment::Now && alike::pays(self.peers.rate_from(holder)) {
            // Without it everything is sent.
            true => self.shard.read_alike(self.volume, Wanted::Now, runs_of(&wanted)).await.unwrap_or_default(),
            false => Vec::new(),
        };
        let request = self.held_request(moment, &wanted, alike::offers_of(&here));
        held_in(&self.peers, holder, self.peers.fetch(holder, why.class(), request).await?, here)
    }

    fn held_request(&self, moment: Moment, wanted: &[(u32, Lsn)], offers: Vec<Alike>) -> PeerRequest {
        PeerRequest::PullHeld { volume: self.volume, moment, wanted: VersionRun::of(wanted), offers }
    }

    /// Asks one holder after the other for the newest that it knows of these blocks, fetched by it if need be.
    async fn bring_newest(
        &self,
        moment: Moment,
        wanted: &mut Vec<(u32, Lsn)>,
        why: Why,
        visited: &[NodeId],
        last: &mut Option<Error>,
    ) -> Result<(), Error> {
        let mut told: Vec<NodeId> = visited.to_vec();
        told.push(self.me);
        for holder in self.order(visited) {
            match self.ask(holder, why.class(), moment, &runs_of(wanted), &told).await {
                Ok(blocks) => self.take(moment, wanted, why, blocks, holder, last).await?,
                Err(error) => *last = Some(error),
            }
            if wanted.is_empty() {
                return Ok(());
            }
            told.push(holder);
        }
        Ok(())
    }
}

/// The blocks of an answer to a pull by name, with those of `here` that it names.
fn held_in(
    peers: &PeerClient,
    holder: NodeId,
    answer: Message<PeerReply>,
    here: Vec<VersionedBlock>,
) -> Result<Vec<VersionedBlock>, Error> {
    match answer {
        Message { head: PeerReply::Held { blocks, is_zstd, alike }, payload } => {
            let mut blocks = match is_zstd {
                true => unpack_zstd(&blocks, &payload)?,
                false => unpack_blocks(&blocks, payload)?,
            };
            blocks.extend(alike::named(here, &alike));
            Ok(blocks)
        }
        message => Err(peers.unexpected(holder, &message.head)),
    }
}

/// Waits until an answer is late; for ever if none can be.
async fn overdue(late: Option<(NodeId, Instant)>) -> Option<NodeId> {
    match late {
        Some((holder, at)) => {
            tokio::time::sleep_until(at).await;
            Some(holder)
        }
        None => std::future::pending().await,
    }
}
