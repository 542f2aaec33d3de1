//! What is asked before something that cannot be taken back, of a person at a terminal.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};

use anyhow::{Context, bail, ensure};

/// The terminal of whoever runs this, wherever its output goes.
const TERMINAL: &str = "/dev/tty";

/// What is said where nobody can be asked.
const UNASKED: &str = "it cannot be asked whether that is meant, and nothing was changed: --yes says that it is meant";

/// Asks the question of `ask`, whether to go on.
///
/// # Errors
/// When the answer is no; when input is no terminal, or the question cannot be shown to who would answer it; what `ask` fails with.
pub(super) fn confirm(ask: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
    ensure!(io::stdin().is_terminal(), UNASKED);
    let mut shown = shown_at(io::stderr().is_terminal(), || {
        Ok(Box::new(OpenOptions::new().write(true).open(TERMINAL)?) as Box<dyn Write>)
    })?;
    let question = ask()?;
    write!(shown, "{question} [y/N] ")?;
    shown.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !is_yes(&answer) {
        bail!("nothing was changed");
    }
    Ok(())
}

/// Where somebody sees the question whose terminal is the input.
fn shown_at(
    sees_errors: bool,
    terminal: impl FnOnce() -> io::Result<Box<dyn Write>>,
) -> anyhow::Result<Box<dyn Write>> {
    if sees_errors {
        return Ok(Box::new(io::stderr()));
    }
    terminal().context(UNASKED)
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_one() {
        assert!(["y\n", "Y", " yes \n", "YES\r\n"].into_iter().all(is_yes));
        assert!(!["", "\n", "n\n", "yep\n", "y y\n"].into_iter().any(is_yes));
    }

    /// `helio volume delete disk 2>log` at a terminal deleted the volume unasked: that errors went to a file was taken for a
    /// sign that nobody was there.
    #[test]
    fn a_person_whose_errors_go_elsewhere_is_asked_at_the_terminal_or_nothing_is_done() {
        let mut is_opened = false;
        let shown = shown_at(false, || {
            is_opened = true;
            Ok(Box::new(Vec::new()))
        });
        assert!(shown.is_ok() && is_opened);
        let refused = shown_at(false, || Err(io::ErrorKind::NotFound.into())).err().expect("nobody sees a question");
        assert!(refused.to_string().contains("--yes"), "{refused}");
        assert!(shown_at(true, || panic!("it is not wanted")).is_ok());
    }
}
