//! `helio completions`: what a shell needs to complete commands, options and their values.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::Helio;

/// Print what a shell needs to complete this command
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  helio completions bash > /etc/bash_completion.d/helio\n  helio completions zsh > \"${fpath[1]}/_helio\"\n  helio completions fish > ~/.config/fish/completions/helio.fish"
)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

pub(super) fn run(completions: &Completions) -> anyhow::Result<()> {
    print!("{}", String::from_utf8_lossy(&script(completions.shell)));
    Ok(())
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    generate(shell, &mut Helio::command(), "helio", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_is_told_of_commands_below_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = String::from_utf8(script(shell)).expect("is text");
            for word in ["migrate", "on-write", "doctor"] {
                assert!(script.contains(word), "{word} for {shell}");
            }
        }
    }
}
