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

/// A command of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The line of the page, from 1; of a text between backticks that of its paragraph.
    pub line: usize,
    /// Whether it stands in running text, where it may be cut short.
    pub in_text: bool,
    /// Its words.
    pub words: Vec<String>,
}

/// The commands of a page that begin with one of these programs, in blocks of code and between backticks.
#[must_use]
pub fn commands(page: &str, programs: &[&str]) -> Vec<Said> {
    let mut found = Vec::new();
    let mut said = |line: usize, in_text: bool, text: &str| {
        let of_programs = simple_commands(text).into_iter().filter(|words| runs(words, programs));
        found.extend(of_programs.map(|words| Said { line, in_text, words }));
    };
    let (mut fenced, mut continued, mut paragraph) = (false, String::new(), (0, String::new()));
    for (at, line) in page.lines().chain([""]).enumerate() {
        let begins_fence = line.trim_start().starts_with("```");
        let is_code = !begins_fence && (fenced || line.starts_with("    "));
        fenced ^= begins_fence;
        if is_code {
            continued.push_str(line.trim());
            match continued.strip_suffix('\\') {
                Some(begun) => continued = format!("{begun} "),
                None => said(at + 1, false, &std::mem::take(&mut continued)),
            }
        }
        // A line of four spaces may be the rest of a paragraph in a list, with backticks that go on.
        if line.trim().is_empty() || begins_fence || fenced {
            let (begin, text) = std::mem::take(&mut paragraph);
            text.split('`').skip(1).step_by(2).for_each(|code| said(begin, true, &code.replace("\\|", "|")));
        } else {
            if paragraph.1.is_empty() {
                paragraph.0 = at + 1;
            }
            paragraph.1.push_str(line);
            paragraph.1.push(' ');
        }
    }
    found
}

/// Makes the program the first word; whether it is one of these.
fn runs(words: &[String], programs: &[&str]) -> bool {
    words.first().is_some_and(|first| programs.contains(&first.as_str()))
}

/// The commands of a line of a shell, each as its words, the program without its directory. What comes behind a redirection is left
/// out, and so are `sudo` and variables that are set for one command.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let (mut word, mut quote, mut redirected) = (None::<String>, None, false);
    let end_word = |all: &mut Vec<Vec<String>>, word: &mut Option<String>, redirected: bool| {
        if let (Some(word), Some(command)) = (word.take(), all.last_mut().filter(|_| !redirected)) {
            command.push(word);
        }
    };
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                word.get_or_insert_default();
                quote = Some(c);
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => end_word(&mut all, &mut word, redirected),
            // Between letters it is a choice of words, as in `a|b`.
            (None, '|') if word.is_some() => word.get_or_insert_default().push(c),
            (None, '<' | '>') => {
                // The number of what is redirected is no word of the command.
                word = word.filter(|word| !word.chars().all(|c| c.is_ascii_digit()));
                end_word(&mut all, &mut word, redirected);
                redirected = true;
            }
            (None, '|' | '&' | ';' | '(' | ')') => {
                end_word(&mut all, &mut word, redirected);
                redirected = false;
                all.push(Vec::new());
            }
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    end_word(&mut all, &mut word, redirected);
    all.into_iter().map(begin_with_program).collect()
}

fn begin_with_program(words: Vec<String>) -> Vec<String> {
    let mut words: Vec<String> = words.into_iter().collect();
    let is_set = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    while words.first().is_some_and(is_set) || words.first().is_some_and(|word| word == "$") {
        words.remove(0);
    }
    if words.first().is_some_and(|word| word == "sudo") {
        let user = usize::from(words.get(1).is_some_and(|word| word == "-u")) * 2;
        words.drain(..(1 + user).min(words.len()));
    }
    if let Some(first) = words.first_mut() {
        let program = first.strip_prefix("ExecStart=").unwrap_or(first);
        *first = program.rsplit('/').next().unwrap_or(program).to_owned();
    }
    words
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

    #[test]
    fn commands_are_found_in_blocks_and_in_text() {
        let page = "Use `helio a --b` or\n`helio\nc`, not `other`.\n\n    sudo -u x helio d 'e f' 2>&1 | /usr/bin/helio g > h # i\n\n```\nX=1 helio j \\\n  k && helio-nbd l\n```\n| `helio m\\|n` |\n";
        let found: Vec<String> =
            commands(page, &["helio", "helio-nbd"]).iter().map(|said| said.words.join("·")).collect();
        assert_eq!(
            found,
            ["helio·a·--b", "helio·c", "helio·d·e f", "helio·g", "helio·j·k", "helio-nbd·l", "helio·m|n"]
        );
    }
}
