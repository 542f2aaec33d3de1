//! `helio man`: manual pages, one per command, made of what `--help` says.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;

use super::Helio;

/// Write manual pages, one for each command, into a directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  helio man /usr/local/share/man/man1 && man helio-volume-migrate")]
pub(super) struct Man {
    /// The directory; made if it is not there
    directory: PathBuf,
}

pub(super) fn run(man: &Man) -> anyhow::Result<()> {
    let written = write(&man.directory).with_context(|| format!("{} cannot be written", man.directory.display()))?;
    println!("{written} pages in {}", man.directory.display());
    Ok(())
}

fn write(directory: &Path) -> std::io::Result<usize> {
    std::fs::create_dir_all(directory)?;
    let mut helio = Helio::command();
    // Gives every command its whole name, and the options that hold for all.
    helio.build();
    let mut commands = Vec::new();
    collect(&helio, &mut commands);
    for command in &commands {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        Page::new((*command).clone()).render(&mut std::fs::File::create(directory.join(format!("{name}.1")))?)?;
    }
    Ok(commands.len())
}

/// `command` and those below it.
fn collect<'a>(command: &'a Command, commands: &mut Vec<&'a Command>) {
    commands.push(command);
    let below = command.get_subcommands().filter(|below| below.get_name() != "help" && !below.is_hide_set());
    below.for_each(|below| collect(below, commands));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_options_and_examples() {
        let directory = tempfile::tempdir().expect("a directory");
        let written = write(&directory.path().join("man1")).expect("is written");
        let page = |name: &str| {
            let path = directory.path().join("man1").join(name);
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let migrate = page("helio-volume-migrate.1");
        assert!(migrate.contains("on\\-write") && migrate.contains("helio volume migrate"), "{migrate}");
        assert!(page("helio.1").contains("helio\\-doctor(1)"), "{}", page("helio.1"));
        assert_eq!(std::fs::read_dir(directory.path().join("man1")).expect("is there").count(), written);
    }
}
