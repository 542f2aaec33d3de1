//! What is on the screen: the newest sample, what is asked for, and what keys do.

use std::collections::BTreeMap;
use std::time::Instant;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;

use super::sample::{Sample, rates};

/// What volumes can be sorted by; as `helio top --sort` and the API call it.
pub(super) const COLUMNS: [&str; 6] = ["name", "owner", "size", "lag", "behind", "stale"];
/// Those that are read from A to Z: numbers are read from the largest on.
const WORDS: [&str; 2] = ["name", "owner"];
/// Rows that are asked for: more than anybody scrolls through.
const ROWS_MAX: usize = 500;
/// Rows that a page key moves by.
const PAGE: usize = 10;

/// Which volumes are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) sort: String,
    pub(super) descending: bool,
    pub(super) waiting: bool,
    pub(super) search: String,
}

impl Asked {
    pub(super) fn by(sort: &str) -> Asked {
        let descending = !WORDS.contains(&sort);
        Asked { sort: sort.to_owned(), descending, waiting: false, search: String::new() }
    }

    /// Of the URL. What is searched for has only characters that need no escape.
    pub(super) fn query(&self) -> String {
        let Asked { sort, descending, waiting, search } = self;
        format!("sort={sort}&descending={descending}&waiting={waiting}&search={search}&limit={ROWS_MAX}")
    }
}

/// Everything that is drawn.
pub(super) struct Screen {
    pub(super) asked: Asked,
    pub(super) sample: Option<Sample>,
    pub(super) rates: BTreeMap<(String, String), u64>,
    /// Why the newest question was not answered.
    pub(super) silence: Option<String>,
    pub(super) table: TableState,
    /// Whether keys are letters of what is searched for.
    pub(super) is_searching: bool,
}

impl Screen {
    pub(super) fn new(asked: Asked) -> Screen {
        let (table, rates) = (TableState::default(), BTreeMap::new());
        Screen { asked, sample: None, rates, silence: None, table, is_searching: false }
    }

    pub(super) fn with(mut self, sample: Sample) -> Screen {
        self.tell(Ok(sample));
        self
    }

    /// What the cluster answered.
    pub(super) fn tell(&mut self, answer: Result<Sample, String>) {
        match answer {
            Ok(sample) => {
                if let Some(before) = &self.sample {
                    self.rates = rates(before, &sample);
                }
                let rows = sample.overview.rows.len();
                let selected = self.table.selected().map(|at| at.min(rows.saturating_sub(1)));
                self.table.select(selected.filter(|_| rows > 0));
                (self.sample, self.silence) = (Some(sample), None);
            }
            Err(why) => self.silence = Some(why),
        }
    }

    /// For how long the cluster has not answered, in seconds.
    pub(super) fn silent_for(&self, now: Instant) -> Option<u64> {
        self.silence.as_ref()?;
        self.sample.as_ref().map(|sample| now.saturating_duration_since(sample.taken).as_secs())
    }

    /// Does what a key means; returns whether that is the end.
    pub(super) fn press(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return key.code == KeyCode::Char('c');
        }
        if self.is_searching {
            self.search(key.code);
            return false;
        }
        let rows = self.sample.as_ref().map_or(0, |sample| sample.overview.rows.len());
        let at = self.table.selected();
        let last = rows.checked_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('s') => {
                let column = COLUMNS.iter().position(|column| *column == self.asked.sort).unwrap_or_default();
                let Asked { sort, descending, .. } = Asked::by(COLUMNS[(column + 1) % COLUMNS.len()]);
                (self.asked.sort, self.asked.descending) = (sort, descending);
            }
            KeyCode::Char('r') => self.asked.descending = !self.asked.descending,
            KeyCode::Char('w') => self.asked.waiting = !self.asked.waiting,
            KeyCode::Char('/') => self.is_searching = true,
            KeyCode::Down | KeyCode::Char('j') => {
                self.table.select(last.map(|last| at.map_or(0, |at| (at + 1).min(last))));
            }
            KeyCode::PageDown => self.table.select(last.map(|last| at.map_or(0, |at| (at + PAGE).min(last)))),
            KeyCode::Up | KeyCode::Char('k') => self.table.select(last.map(|_| at.unwrap_or(0).saturating_sub(1))),
            KeyCode::PageUp => self.table.select(last.map(|_| at.unwrap_or(0).saturating_sub(PAGE))),
            KeyCode::Home => self.table.select(last.map(|_| 0)),
            KeyCode::End => self.table.select(last),
            _ => {}
        }
        false
    }

    fn search(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.is_searching = false,
            KeyCode::Esc => {
                self.is_searching = false;
                self.asked.search.clear();
            }
            KeyCode::Backspace => drop(self.asked.search.pop()),
            // Those of names, which is all that is searched.
            KeyCode::Char(letter) if letter.is_ascii_alphanumeric() || "._-".contains(letter) => {
                self.asked.search.push(letter);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;

    fn press(screen: &mut Screen, codes: impl IntoIterator<Item = KeyCode>) -> bool {
        codes.into_iter().any(|code| screen.press(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    #[test]
    fn keys_change_what_is_asked_for() {
        let mut screen = Screen::new(Asked::by("name"));
        assert_eq!(screen.asked.query(), "sort=name&descending=false&waiting=false&search=&limit=500");
        press(&mut screen, ['s', 's', 'w'].map(KeyCode::Char));
        assert_eq!(screen.asked.query(), "sort=size&descending=true&waiting=true&search=&limit=500");
        press(&mut screen, "r/q&-1".chars().map(KeyCode::Char));
        assert_eq!(screen.asked.query(), "sort=size&descending=false&waiting=true&search=q-1&limit=500");
        press(&mut screen, [KeyCode::Backspace, KeyCode::Enter]);
        assert_eq!((screen.asked.search.as_str(), screen.is_searching), ("q-", false));
        press(&mut screen, [KeyCode::Char('/'), KeyCode::Esc]);
        assert_eq!(screen.asked.search, "", "given up");
        assert!(press(&mut screen, [KeyCode::Char('q')]));
        assert!(screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }

    #[test]
    fn the_selection_stays_within_what_there_is() {
        let mut screen = Screen::new(Asked::by("name"));
        press(&mut screen, [KeyCode::Down, KeyCode::End]);
        assert_eq!(screen.table.selected(), None, "there is nothing yet");
        screen.tell(Ok(sample(Instant::now(), 0)));
        press(&mut screen, [KeyCode::Down]);
        assert_eq!(screen.table.selected(), Some(0));
        press(&mut screen, [KeyCode::PageDown, KeyCode::Down]);
        assert_eq!(screen.table.selected(), Some(1));
        let mut fewer = sample(Instant::now(), 0);
        fewer.overview.rows.truncate(1);
        screen.tell(Ok(fewer));
        assert_eq!(screen.table.selected(), Some(0));
        press(&mut screen, [KeyCode::Up]);
        assert_eq!(screen.table.selected(), Some(0));
    }

    #[test]
    fn what_was_told_last_stays_when_nobody_answers() {
        let mut screen = Screen::new(Asked::by("name"));
        screen.tell(Err("refused".to_owned()));
        assert_eq!(screen.silent_for(Instant::now()), None, "nothing was told yet");
        let told = Instant::now();
        screen.tell(Ok(sample(told, 0)));
        screen.tell(Err("refused".to_owned()));
        assert_eq!(screen.silent_for(told + std::time::Duration::from_secs(5)), Some(5));
        assert!(screen.sample.is_some());
        screen.tell(Ok(sample(Instant::now(), 0)));
        assert_eq!(screen.silent_for(Instant::now()), None);
    }
}
