//! The quick start for separate machines, carried out as a new user would: the commands of `docs/quick-start.md`, word for word, on three
//! machines with addresses and routes of their own. So the page cannot rot.

use std::time::Instant;

use anyhow::{Context, ensure};
use tests::cluster::helio;
use tests::machines::{Internet, Machine};
use tests::page::{Block, blocks, tree};

/// The machines of the page.
const MACHINES: [(&str, &str); 3] = [("a", "192.0.2.1"), ("b", "198.51.100.1"), ("c", "203.0.113.1")];

/// Where a block is for that is not carried out: `tests/package.rs` makes the package.
const ELSEWHERE: &str = "where you build";

/// What a reader of the page has in his head: the token that was shown to him, and the sum that a disk should have.
#[derive(Default)]
struct Reader {
    token: Option<String>,
    sum: Option<String>,
    compared: usize,
}

impl Reader {
    /// What he types for this line.
    fn types(&self, line: &str) -> anyhow::Result<String> {
        let (command, _) = line.split_once("  #").unwrap_or((line, ""));
        let command = command.trim_end();
        if command.starts_with("helio cluster join") {
            ensure!(command.ends_with(" -"), "the token is not for the command line, where others see it: {line}");
            let token = self.token.as_deref().context("a token was shown")?;
            return Ok(format!("{command} <<< '{token}'"));
        }
        // It finds fault with machines that tests run on, and that is no fault of the page.
        Ok(if command.starts_with("helio doctor") { format!("{command} || [ $? = 1 ]") } else { command.to_owned() })
    }

    /// Looks at what a line printed.
    fn looks(&mut self, line: &str, printed: &str) -> anyhow::Result<()> {
        if line.starts_with("helio cluster init") {
            let is_token = |line: &&str| !line.contains(' ') && line.contains('@');
            self.token = Some(printed.lines().find(is_token).context("the token has a line of its own")?.to_owned());
        } else if line.ends_with("| sha256sum") {
            let expected = self.sum.as_deref().context("the page has told the sum before")?;
            ensure!(printed.trim() == expected, "{line}\nsays {printed}and not {expected}");
            self.compared += 1;
        } else if line.starts_with("sha256sum") {
            self.sum = Some(printed.trim().to_owned());
        }
        Ok(())
    }
}

/// The lines of a block, a text that is fed to a command with it.
fn commands(block: &Block) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut is_fed = false;
    for line in &block.commands {
        match all.last_mut().filter(|_| is_fed) {
            Some(command) => {
                command.push('\n');
                command.push_str(line);
                is_fed = line != "END";
            }
            None => {
                all.push(line.clone());
                is_fed = line.ends_with("<<'END'");
            }
        }
    }
    all
}

fn carry_out(machine: &mut Machine, block: &Block, reader: &mut Reader) -> anyhow::Result<()> {
    for line in commands(block) {
        let typed = reader.types(&line)?;
        let begun = Instant::now();
        let printed = machine.tell(&typed).with_context(|| {
            let log = std::fs::read_to_string(machine.directory().join("node.log")).unwrap_or_default();
            format!("docs/quick-start.md, line {}; the node says:\n{log}", block.line)
        })?;
        let (place, took) = (&block.place, begun.elapsed().as_secs_f64());
        println!("{place}, {took:.1} s: {}\n{printed}", line.lines().next().unwrap_or_default());
        reader.looks(&line, &printed)?;
    }
    Ok(())
}

#[test]
fn three_machines_of_three_providers_by_the_quick_start_alone() {
    let internet = match Internet::new().expect("is set up") {
        Ok(internet) => internet,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let page = std::fs::read_to_string(tree().join("docs/quick-start.md")).expect("is there");
    let directory = tempfile::tempdir().expect("a directory");
    let programs = helio().expect("is built").parent().expect("lies in a directory").to_owned();
    let start = |(name, address): (&str, &str)| {
        assert!(page.contains(&format!("listen = \"{address}:10810\"")), "the page has {name} at {address}");
        let own = directory.path().join(name);
        std::fs::create_dir(&own).expect("is made");
        (format!("on {name}"), internet.machine(name, address, &own, &programs).expect("is set up"))
    };
    let mut machines: Vec<(String, Machine)> = MACHINES.into_iter().map(start).collect();
    let mut reader = Reader::default();
    for block in blocks(&page).expect("the page can be read") {
        match machines.iter_mut().find(|(place, _)| *place == block.place) {
            Some((_, machine)) => {
                carry_out(machine, &block, &mut reader).unwrap_or_else(|error| panic!("{error:#}"));
            }
            None => assert_eq!(block.place, ELSEWHERE, "line {}", block.line),
        }
    }
    assert_eq!(
        reader.compared, 3,
        "the disk was looked at where it had moved to, where it was taken over, and at the node that was back"
    );
}
