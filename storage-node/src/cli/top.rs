//! `helio top`: nodes, links and volumes of a cluster at a glance, again and again.
//!
//! A thread asks, so that a cluster that does not answer holds up no key: what was told last stays on the screen, with its age.
//! [`screen`] is what keys change and samples bring, [`view`] how it looks.

mod sample;
mod screen;
mod view;

use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use client_lib::error::whole;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use self::sample::Sample;
use self::screen::{Asked, Screen};
use super::Common;
use super::client::{Client, print_json, print_table};

/// How long a key may wait for what was asked meanwhile to be drawn.
const TURN: Duration = Duration::from_millis(100);

/// Watch a cluster: nodes, links and their rates, volumes with what they lack and wait for
#[derive(Debug, Args)]
#[command(
    after_help = "Keys: q quit, s sort by the next column, r reverse, w only volumes that wait, / search, arrows and page keys move.\n\nExamples:\n  helio top\n  helio top --once --sort lag"
)]
pub(super) struct Top {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// Sort volumes by name, owner, size, lag, behind or stale; all but the first two from the largest on
    #[arg(long, value_name = "COLUMN", default_value = "name", value_parser = screen::COLUMNS)]
    sort: String,
    /// Print one look and end
    #[arg(long)]
    once: bool,
    /// Print one look as JSON and end
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if (0.2..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("0.2 to 3600 seconds".to_owned()) }
}

pub(super) fn run(top: &Top, common: &Common) -> anyhow::Result<()> {
    let client = Client::find(common)?;
    let asked = Asked::by(&top.sort);
    if top.json {
        return print_json(&Sample::take(&client, &asked)?.told());
    }
    if top.once {
        let sample = Sample::take(&client, &asked)?;
        for (heading, rows) in view::tables(&Screen::new(asked).with(sample)) {
            print_table(&heading, rows);
            println!();
        }
        return Ok(());
    }
    if !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
        bail!("this is no terminal: `helio top --once` prints one look, and --json prints it for programs");
    }
    let (questions, asked_for) = channel();
    let (answers, told) = channel();
    let every = Duration::from_secs_f64(top.interval);
    let screen = Screen::new(asked);
    questions.send(screen.asked.clone()).ok();
    std::thread::Builder::new()
        .name("top".to_owned())
        .spawn(move || keep_asking(&client, every, &asked_for, &answers))?;
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(&mut terminal, screen, &questions, &told);
    ratatui::try_restore()?;
    outcome
}

/// Takes a sample now, whenever something else is asked for, and when `every` has passed; until nobody asks any more.
fn keep_asking(client: &Client, every: Duration, asked: &Receiver<Asked>, answers: &Sender<Result<Sample, String>>) {
    let Ok(mut current) = asked.recv() else { return };
    loop {
        let sample = Sample::take(client, &current).map_err(|error| whole(error.as_ref()));
        if answers.send(sample).is_err() {
            return;
        }
        match asked.recv_timeout(every) {
            Ok(next) => current = asked.try_iter().last().unwrap_or(next),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn watch(
    terminal: &mut DefaultTerminal,
    mut screen: Screen,
    questions: &Sender<Asked>,
    told: &Receiver<Result<Sample, String>>,
) -> anyhow::Result<()> {
    loop {
        for answer in told.try_iter() {
            screen.tell(answer);
        }
        terminal.draw(|frame| view::draw(frame, &mut screen, Instant::now()))?;
        if !event::poll(TURN)? {
            continue;
        }
        let Event::Key(key) = event::read()? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        let before = screen.asked.clone();
        if screen.press(key) {
            return Ok(());
        }
        if screen.asked != before {
            questions.send(screen.asked.clone()).ok();
        }
    }
}
