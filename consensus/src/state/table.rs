//! Records of the metadata, by key: a change costs what it changes, however many there are.
//!
//! Whoever follows the metadata has a copy of every state. Copies have all records in common but those that were changed since, and a
//! table knows which those are until they are stored.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Encoded as a map, in the order of the keys.
#[derive(Clone, Debug)]
pub(crate) struct Table<K: Ord, V> {
    rows: Arc<RedBlackTreeMapSync<K, V>>,
    /// Since [`take_changed`](Self::take_changed); some of them may be there no more.
    changed: BTreeSet<K>,
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// Rows that are stored already.
    pub(super) fn stored(rows: impl IntoIterator<Item = (K, V)>) -> Table<K, V> {
        Table { rows: Arc::new(rows.into_iter().collect()), changed: BTreeSet::new() }
    }

    /// Whether it is certain, without a look at the rows, that both have the same.
    pub(super) fn is(&self, other: &Table<K, V>) -> bool {
        Arc::ptr_eq(&self.rows, &other.rows)
    }

    /// Whether it is certain, without a look at it, that both have the same for `key`.
    pub(super) fn has_same(&self, other: &Table<K, V>, key: &K) -> bool {
        self.is(other)
            || match (self.get(key), other.get(key)) {
                (None, None) => true,
                (Some(one), Some(other)) => std::ptr::eq(one, other),
                _ => false,
            }
    }

    /// The keys of the rows that were inserted, changed or removed since this was asked last.
    pub(super) fn take_changed(&mut self) -> BTreeSet<K> {
        std::mem::take(&mut self.changed)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    pub(super) fn contains_key(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.size()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.rows.iter()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.rows.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.values()
    }

    /// The row with the greatest key.
    pub(super) fn last(&self) -> Option<(&K, &V)> {
        self.rows.last()
    }

    fn change(&mut self, key: &K) -> &mut RedBlackTreeMapSync<K, V> {
        self.changed.insert(key.clone());
        Arc::make_mut(&mut self.rows)
    }

    /// The row of `key`, to be changed.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        if !self.contains_key(key) {
            return None;
        }
        self.change(key).get_mut(key)
    }

    /// The row of `key`, to be changed; made if there is none.
    pub(super) fn get_or_default(&mut self, key: &K) -> &mut V
    where
        V: Default,
    {
        let rows = self.change(key);
        if !rows.contains_key(key) {
            rows.insert_mut(key.clone(), V::default());
        }
        rows.get_mut(key).expect("it is there, or was just made")
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        self.change(&key).insert_mut(key, value);
    }

    /// Removes the row of `key`, and returns it if there was one.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let found = self.get(key)?.clone();
        self.change(key).remove_mut(key);
        Some(found)
    }

    /// Removes the rows of which `keep` says so.
    pub(super) fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        let gone: Vec<K> = self.iter().filter(|(key, value)| !keep(key, value)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.change(&key).remove_mut(&key);
        }
    }

    /// Changes the rows of which `concerns` says so, and no others.
    pub(super) fn update(&mut self, concerns: impl Fn(&V) -> bool, change: impl Fn(&mut V)) {
        let found: Vec<K> = self.iter().filter(|(_, value)| concerns(value)).map(|(key, _)| key.clone()).collect();
        for key in found {
            self.get_mut(&key).map(&change);
        }
    }
}

impl<K: Ord + Clone, V: Clone> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table::stored([])
    }
}

/// Rows that are still to be stored.
impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(rows: T) -> Table<K, V> {
        let rows = Table::stored(rows);
        Table { changed: rows.keys().cloned().collect(), ..rows }
    }
}

impl<K: Ord + Clone, V: Clone + PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Table<K, V>) -> bool {
        self.is(other) || self.rows == other.rows
    }
}

impl<K: Ord + Clone, V: Clone + Eq> Eq for Table<K, V> {}

impl<K: Ord + Clone + Serialize, V: Clone + Serialize> Serialize for Table<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.rows.iter())
    }
}

impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> Deserialize<'de> for Table<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Table<K, V>, D::Error> {
        struct Rows<K, V>(std::marker::PhantomData<(K, V)>);
        impl<'de, K: Ord + Clone + Deserialize<'de>, V: Clone + Deserialize<'de>> de::Visitor<'de> for Rows<K, V> {
            type Value = Table<K, V>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Table<K, V>, A::Error> {
                std::iter::from_fn(|| map.next_entry().transpose()).collect()
            }
        }
        deserializer.deserialize_map(Rows(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_all_rows_in_common_but_the_changed_ones() {
        let mut table: Table<u32, String> = Table::stored((0..100).map(|key| (key, key.to_string())));
        let before = table.clone();
        assert!(table.is(&before));
        assert_eq!(table.get_mut(&200), None);
        assert_eq!(table.remove(&200), None);
        assert!(table.is(&before), "what is not there is not changed");
        table.get_mut(&7).expect("is there").push('!');
        assert_eq!(table.remove(&9).as_deref(), Some("9"));
        table.insert(100, "new".to_owned());
        table.get_or_default(&101).push('?');
        table.update(|value| value == "50", |value| value.push('.'));
        table.retain(|key, _| *key != 60);
        let changed = [7, 9, 50, 60, 100, 101];
        for key in 0..110 {
            assert_eq!(table.has_same(&before, &key), !changed.contains(&key), "{key}");
        }
        assert_eq!(Vec::from_iter(table.take_changed()), changed);
        assert_eq!(table.take_changed().len(), 0);
        assert_eq!((before.len(), before.get(&7).map(String::as_str)), (100, Some("7")), "the copy is as it was");
        assert_eq!(table.last(), Some((&101, &"?".to_owned())));
    }

    #[test]
    fn it_is_encoded_as_a_map_and_what_is_read_is_still_to_be_stored() {
        let rows = [(3u32, "c".to_owned()), (1, "a".to_owned()), (2, "b".to_owned())];
        let table = Table::stored(rows.clone());
        let bytes = postcard::to_stdvec(&table).expect("plain data");
        assert_eq!(bytes, postcard::to_stdvec(&std::collections::BTreeMap::from(rows)).expect("plain data"));
        let mut read: Table<u32, String> = postcard::from_bytes(&bytes).expect("reads");
        assert_eq!(read, table);
        assert_eq!(Vec::from_iter(read.take_changed()), [1, 2, 3]);
    }
}
