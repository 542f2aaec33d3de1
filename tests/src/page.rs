//! Pages of the documentation that tests read: their blocks of commands.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// The tree that the tests are of.
#[must_use]
pub fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Commands for one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What its first line says after `# `: where it is for.
    pub place: String,
    /// The line of the page at which it begins, from 1.
    pub line: usize,
    /// The commands.
    pub commands: Vec<String>,
}

/// The blocks marked `sh` of a page, each of which begins with a comment that says where it is for.
///
/// # Errors
/// For a block that does not, or does not end.
pub fn blocks(page: &str) -> anyhow::Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        if line != "```sh" {
            continue;
        }
        let (_, first) = lines.next().context("the page ends in a block")?;
        let place = first.strip_prefix("# ").with_context(|| format!("line {}: where is this for?", at + 2))?;
        let commands: Vec<String> =
            lines.by_ref().map(|(_, line)| line.to_owned()).take_while(|line| line != "```").collect();
        ensure!(!commands.is_empty(), "line {}: there is nothing in it", at + 1);
        blocks.push(Block { place: place.to_owned(), line: at + 1, commands });
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_and_say_where_they_are_for() {
        let found = blocks("# Page\n\n```sh\n# on a\none\n\ntwo\n```\n```toml\nx = 1\n```\n").expect("is a page");
        let commands = ["one", "", "two"].map(str::to_owned).to_vec();
        assert_eq!(found, [Block { place: "on a".to_owned(), line: 3, commands }]);
        blocks("```sh\nhelio\n```\n").expect_err("nobody knows where");
        blocks("```sh\n").expect_err("it does not end");
    }
}
