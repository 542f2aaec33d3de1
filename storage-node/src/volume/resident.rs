//! How much of ranges of a volume is here, and how much is known and elsewhere: for a picture of it.
//!
//! What is elsewhere is in the layers only, so it is counted exactly. What is here is mostly in the base, whose pages may
//! be millions: a few of those of a range are looked at, and the others, of which it is known that they exist, are taken to be like them.
//! So a picture costs a look at so many pages as it has parts, however large the volume is.

use std::collections::BTreeSet;

use super::Volume;
use crate::map::Map;
use crate::map::page::PAGE_ENTRIES;
use crate::map::store::MapError;

/// Blocks of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Here, in the newest version that is known.
    pub local: u64,
    /// Known and elsewhere.
    pub stale: u64,
    /// Whether `local` is a guess from some of the pages.
    pub is_guess: bool,
}

impl Volume {
    /// What is here of the blocks from `first` to `last`, both included, looking at no more than `pages_max` pages of the base, which is at
    /// least 1; and how many blocks were looked at one by one.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub fn resident(
        &self,
        first: u32,
        last: u32,
        pages_max: u32,
        map: &mut Map,
    ) -> Result<(Resident, usize), MapError> {
        assert!(pages_max >= 1, "something must be looked at");
        let mut found = Resident::default();
        let above: BTreeSet<u32> = self.layers.blocks(first, last);
        let mut looked = above.len();
        for block in &above {
            match self.layers.view(*block).map(|version| version.content) {
                Some(content) if content.is_stale() => found.stale += 1,
                Some(content) if content.place().is_some() => found.local += 1,
                _ => {}
            }
        }
        let (first_page, last_page) = (first / PAGE_ENTRIES, last / PAGE_ENTRIES);
        let pages = map.cache.pages_between(self.id, first_page, last_page);
        // Every so many of the range's pages, whether they exist or not: the same ones each time, so that a picture does not flicker.
        let step = pages.div_ceil(u64::from(pages_max)).max(1);
        let (mut seen, mut here, mut index) = (0u64, 0u64, 0u64);
        let mut next = map.cache.next_page(self.id, first_page);
        while let Some(page) = next.filter(|page| *page <= last_page) {
            if let Some(entries) = map.cache.page(self.id, page)?.cloned() {
                let base = page * PAGE_ENTRIES;
                let local = entries.iter().filter(|(_, version)| version.content.place().is_some());
                let blocks = local.map(|(entry, _)| base + u32::from(entry));
                here += blocks.filter(|block| (first..=last).contains(block) && !above.contains(block)).count() as u64;
                seen += 1;
                looked += PAGE_ENTRIES as usize;
            }
            index += step;
            next = match step {
                1 => page.checked_add(1).and_then(|after| map.cache.next_page(self.id, after)),
                _ => map.cache.nth_page(self.id, first_page, index),
            };
        }
        found.is_guess = seen < pages;
        let blocks = u64::from(last - first) + 1;
        let guess = (here * pages).checked_div(seen).unwrap_or(0);
        found.local += guess.min(blocks.saturating_sub(above.len() as u64));
        Ok((found, looked))
    }
}
