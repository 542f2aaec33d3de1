//! The metadata contexts that are offered, and sets of them ("Metadata querying").
//!
//! Owns names, numbers and what queries select. What a context says of a range is for `export`.

/// A metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: what is allocated, and what reads as zeroes.
    Allocation,
    /// `helio:residency`: what is here, and what a read would have to fetch from elsewhere.
    Residency,
}

impl Context {
    /// Every context, in the order in which they are listed and answered.
    pub const ALL: [Context; 2] = [Context::Allocation, Context::Residency];

    /// The name by which clients select it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::Residency => "helio:residency",
        }
    }

    /// Its number in replies and filters.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Context::Allocation => 1,
            Context::Residency => 2,
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of metadata contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts(u8);

impl Contexts {
    /// Those of `contexts`.
    #[must_use]
    pub fn of(contexts: &[Context]) -> Contexts {
        Contexts(contexts.iter().fold(0, |set, context| set | context.bit()))
    }

    /// What `queries` name in a list. A namespace alone is a wildcard ("The `base:` metadata namespace"; ours are the same),
    /// no query at all lists everything. Unknown queries are ignored.
    #[must_use]
    pub fn listed(queries: &[&str]) -> Contexts {
        let is_listed = |context: &Context| {
            let namespace = context.name().split_inclusive(':').next();
            queries.is_empty() || queries.iter().any(|query| *query == context.name() || Some(*query) == namespace)
        };
        Contexts(Context::ALL.into_iter().filter(is_listed).fold(0, |set, context| set | context.bit()))
    }

    /// What `queries` select: a wildcard selects nothing, nor does no query.
    #[must_use]
    pub fn selected(queries: &[&str]) -> Contexts {
        let is_selected = |context: &Context| queries.contains(&context.name());
        Contexts(Context::ALL.into_iter().filter(is_selected).fold(0, |set, context| set | context.bit()))
    }

    /// Those of the set that `ids` number, each once; `None` when a number is repeated or not of the set.
    #[must_use]
    pub fn filtered(self, ids: &[u32]) -> Option<Contexts> {
        ids.iter().try_fold(Contexts::default(), |found, id| {
            let context = self.iter().find(|context| context.id() == *id)?;
            (!found.contains(context)).then_some(Contexts(found.0 | context.bit()))
        })
    }

    /// Whether `context` is in the set.
    #[must_use]
    pub const fn contains(self, context: Context) -> bool {
        self.0 & context.bit() != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Each of them, in the order of [`Context::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.contains(*context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_list_and_do_not_select() {
        let [allocation, residency] = Context::ALL.map(|context| Contexts::of(&[context]));
        for (queries, listed, selected) in [
            (&[][..], Contexts::of(&Context::ALL), Contexts::default()),
            (&["base:"], allocation, Contexts::default()),
            (&["base:allocation"], allocation, allocation),
            (&["x-y:z", "base:allocation"], allocation, allocation),
            (&["helio:"], residency, Contexts::default()),
            (&["base:", "helio:residency"], Contexts::of(&Context::ALL), residency),
            (&["base", "base:alloc", "base:allocation:", "qemu:"], Contexts::default(), Contexts::default()),
        ] {
            assert_eq!((Contexts::listed(queries), Contexts::selected(queries)), (listed, selected), "{queries:?}");
        }
    }

    #[test]
    fn filters_name_each_context_of_the_set_at_most_once() {
        let all = Contexts::of(&Context::ALL);
        assert_eq!(all.filtered(&[2, 1]), Some(all));
        assert_eq!(all.filtered(&[1]), Some(Contexts::of(&[Context::Allocation])));
        assert_eq!(all.filtered(&[]), Some(Contexts::default()));
        for wrong in [&[1, 1][..], &[0], &[1, 77]] {
            assert_eq!(all.filtered(wrong), None, "{wrong:?}");
        }
        assert_eq!(Contexts::of(&[Context::Residency]).filtered(&[1]), None, "not of the set");
    }
}
