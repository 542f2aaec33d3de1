//! Values that are merged with what is written beside them, when they are read and when RocksDB compacts them.

use super::keys::TABLE_SHEAF;
use crate::map::page::sheaf::Sheaf;
use crate::map::page::{Page, merge_values};

/// The value of a page with `operands`, each a value with entries, over it. What cannot be decoded stays as it is, so that
/// this page is found to be damaged when it is read, and not the whole store when it is compacted.
fn merge_page<'a>(page: Option<&[u8]>, operands: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut merged = page.unwrap_or_default().to_vec();
    for operand in operands {
        match merge_values(&merged, operand) {
            Ok(value) => merged = value,
            Err(error) => {
                tracing::error!(%error, "a page of the map cannot be merged with what changed in it");
                return if Page::decode_base(&merged).is_ok() { operand.to_vec() } else { merged };
            }
        }
    }
    merged
}

/// As [`merge_page`], for the value of a sheaf. What comes out of something damaged is damaged.
fn merge_sheaf<'a>(value: Option<&'a [u8]>, operands: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut merged: Option<Sheaf> = None;
    for next in value.into_iter().chain(operands) {
        match Sheaf::decode(next) {
            Ok(newer) => {
                merged = Some(match merged {
                    None => newer,
                    Some(older) => older.merge(newer),
                });
            }
            Err(error) => {
                tracing::error!(%error, "a sheaf of the map cannot be merged with what changed in it");
                return next.to_vec();
            }
        }
    }
    merged.unwrap_or_default().encode().unwrap_or_else(|| {
        tracing::error!("a page in a sheaf of the map has more entries than it may have");
        Vec::new()
    })
}

/// What RocksDB calls for whatever is merged.
pub(super) fn merge<'a>(key: &[u8], value: Option<&'a [u8]>, operands: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    match key.first() {
        Some(&TABLE_SHEAF) => merge_sheaf(value, operands),
        _ => merge_page(value, operands),
    }
}
