//! What is asked before something that cannot be taken back, of a person at a terminal.

use std::io::{IsTerminal, Write};

use anyhow::bail;

/// Asks the question of `ask`, whether to go on; goes on without asking where nobody could answer.
///
/// # Errors
/// When the answer is no; what `ask` fails with.
pub(super) fn confirm(ask: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Ok(());
    }
    let question = ask()?;
    let mut errors = std::io::stderr();
    write!(errors, "{question} [y/N] ")?;
    errors.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !is_yes(&answer) {
        bail!("nothing was changed");
    }
    Ok(())
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
}
