//! Whether a sync will be asked for: clients that flush after every write do so again and again.
//!
//! Such a client waits twice, for the write and for the flush, with its own time between them. A sync that begins when the
//! write is done, not when the flush comes, is under way in that time.

/// Syncs in a row, each asked for by itself after an append, from which on the next one is expected. A wrong guess costs one
/// sync, and the next guess comes only after as many right ones.
const EXPECTED_AFTER: u32 = 4;

/// Watches appends and syncs.
#[derive(Debug, Default)]
pub(super) struct Foresight {
    in_a_row: u32,
    /// An append was done, and no sync was asked for since.
    is_open: bool,
}

impl Foresight {
    /// An append is done, and nothing else is under way. Returns whether a sync of it will be asked for.
    pub(super) fn appended(&mut self) -> bool {
        if self.is_open {
            self.in_a_row = 0;
        }
        self.is_open = true;
        self.in_a_row >= EXPECTED_AFTER
    }

    /// A sync is asked for.
    pub(super) fn asked(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_expected_of_who_has_always_asked_for_one() {
        let mut foresight = Foresight::default();
        for _ in 0..EXPECTED_AFTER {
            assert!(!foresight.appended());
            foresight.asked();
            foresight.asked();
        }
        assert!(foresight.appended());
        foresight.asked();
        assert!(foresight.appended(), "goes on");
        assert!(!foresight.appended(), "was wrong");
        for _ in 0..EXPECTED_AFTER {
            foresight.asked();
            assert!(!foresight.appended() || foresight.in_a_row == EXPECTED_AFTER);
        }
    }

    #[test]
    fn who_flushes_now_and_then_is_not_foreseen() {
        let mut foresight = Foresight::default();
        for number in 1..1000 {
            assert!(!foresight.appended());
            if number % 2 == 0 {
                foresight.asked();
            }
        }
    }
}
