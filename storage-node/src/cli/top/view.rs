//! How the screen looks: three tables, what the selected volume waits for, and the keys.

use std::time::Instant;

use client_lib::wire::admin::{ClusterStatus, LinkStatus, MemberStatus, OwnerRow, VolumeRow};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, TableState, Wrap};

use super::sample::Sample;
use super::screen::Screen;
use crate::size::human;

const NODES: [&str; 6] = ["node", "provider", "role", "rtt", "volumes", "state"];
const LINKS: [&str; 7] = ["from", "to", "rate", "limit", "rtt", "to send", "behind"];
const VOLUMES: [&str; 8] = ["volume", "owner", "size", "class", "lag", "to send", "stale", "waits"];
/// Of a table beside its rows: borders and heading.
const FRAME_LINES: u16 = 3;
/// What a volume waits for, at the bottom.
const DETAIL_LINES: u16 = 4;

/// A table of text: heading and rows.
pub(super) type Rows = (Vec<&'static str>, Vec<Vec<String>>);

/// What is shown, as plain tables.
pub(super) fn tables(screen: &Screen) -> Vec<Rows> {
    let Some(sample) = &screen.sample else { return Vec::new() };
    vec![
        (NODES.to_vec(), node_rows(sample)),
        (LINKS.to_vec(), link_rows(sample, screen)),
        (VOLUMES.to_vec(), sample.overview.rows.iter().map(volume_row).collect()),
    ]
}

pub(super) fn draw(frame: &mut Frame<'_>, screen: &mut Screen, now: Instant) {
    let [title, body, keys] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(Line::from(heading(screen, now)).style(Modifier::BOLD), title);
    frame.render_widget(Line::from(footer(screen)), keys);
    let Some(sample) = &screen.sample else {
        let why = screen.silence.as_deref().unwrap_or("asking the cluster …");
        frame.render_widget(Paragraph::new(why).wrap(Wrap { trim: true }), body);
        return;
    };
    let (nodes, links) = (node_rows(sample), link_rows(sample, screen));
    let volumes: Vec<Vec<String>> = sample.overview.rows.iter().map(volume_row).collect();
    let height = |rows: &[Vec<String>]| Constraint::Max(rows.len() as u16 + FRAME_LINES);
    let [top, middle, bottom, detail] = Layout::vertical([
        height(&nodes),
        height(&links),
        Constraint::Min(FRAME_LINES + 1),
        Constraint::Length(DETAIL_LINES),
    ])
    .areas(body);
    let volumes_title = volumes_title(sample, screen);
    let detail_text = selected(sample, &screen.table);
    table(frame, top, &fitting("nodes", &nodes, top), &NODES, nodes, &mut TableState::default());
    table(frame, middle, &fitting("links", &links, middle), &LINKS, links, &mut TableState::default());
    table(frame, bottom, &volumes_title, &VOLUMES, volumes, &mut screen.table);
    let block = Block::default().borders(Borders::TOP);
    frame.render_widget(Paragraph::new(Text::from(detail_text)).wrap(Wrap { trim: true }).block(block), detail);
}

/// The title of a table that does not scroll, which says so where there is no room for all of it.
fn fitting(title: &str, rows: &[Vec<String>], area: Rect) -> String {
    let fit = usize::from(area.height.saturating_sub(FRAME_LINES));
    if fit < rows.len() {
        format!("{title}: {fit} of {}, a higher window shows all", rows.len())
    } else {
        title.to_owned()
    }
}

fn table(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    heading: &[&str],
    rows: Vec<Vec<String>>,
    state: &mut TableState,
) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        Constraint::Max(cells.chain([heading[column].len()]).max().unwrap_or(0) as u16)
    };
    let widths: Vec<Constraint> = (0..heading.len()).map(width).collect();
    let heading = Row::new(heading.iter().map(|name| name.to_uppercase())).style(Modifier::DIM);
    let table = Table::new(rows.into_iter().map(Row::new), widths)
        .header(heading)
        .column_spacing(2)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::default().borders(Borders::TOP).title(format!(" {title} ")));
    frame.render_stateful_widget(table, area, state);
}

fn heading(screen: &Screen, now: Instant) -> String {
    let Some(sample) = &screen.sample else { return "helio top".to_owned() };
    let ClusterStatus { node, members, .. } = &sample.cluster;
    let mut text = format!(
        "helio top: nodes {}, volumes {}, {} of them waiting; told by {node}",
        members.len(),
        sample.overview.volumes,
        sample.overview.waiting
    );
    if let Some(seconds) = screen.silent_for(now) {
        text.push_str(&format!("  NO ANSWER FOR {seconds} s: {}", screen.silence.as_deref().unwrap_or_default()));
    }
    text
}

fn footer(screen: &Screen) -> String {
    if screen.is_searching {
        return format!("search: {}_   Enter keeps it, Esc gives it up", screen.asked.search);
    }
    "q quit  s sort  r reverse  w only those that wait  / search  arrows select".to_owned()
}

fn volumes_title(sample: &Sample, screen: &Screen) -> String {
    let mut title = format!("volumes by {}", screen.asked.sort);
    if screen.asked.waiting {
        title.push_str(", only those that wait");
    }
    if !screen.asked.search.is_empty() {
        title.push_str(&format!(", with {:?}", screen.asked.search));
    }
    let (shown, matching) = (sample.overview.rows.len() as u64, sample.overview.matching);
    if shown < matching {
        title.push_str(&format!(", {shown} of {matching}"));
    }
    title
}

/// What the selected volume waits for; of the first one when none is.
fn selected(sample: &Sample, table: &TableState) -> Vec<Line<'static>> {
    let Some(row) = sample.overview.rows.get(table.selected().unwrap_or_default()) else {
        return vec![Line::from("no volume fits")];
    };
    if row.waits.is_empty() {
        return vec![Line::from(format!("{}: nothing waits", row.name))];
    }
    row.waits.iter().map(|why| Line::from(format!("{}: {why}", row.name))).collect()
}

fn node_rows(sample: &Sample) -> Vec<Vec<String>> {
    let owner = |name: &str| sample.overview.owners.iter().find(|row| row.node == name);
    sample.cluster.members.iter().map(|member| node_row(member, owner(&member.name))).collect()
}

fn node_row(member: &MemberStatus, owner: Option<&OwnerRow>) -> Vec<String> {
    let role = match (member.leader, member.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    };
    let faults = owner.map_or(0, |owner| owner.store_faults.len());
    let state = match (member.reachable, faults) {
        (false, _) => "DOES NOT ANSWER".to_owned(),
        (true, 0) => "answers".to_owned(),
        (true, 1) => "STORE FAILED".to_owned(),
        (true, many) => format!("{many} STORES FAILED"),
    };
    let owned = owner.map_or(0, |owner| owner.volumes);
    let rtt = milliseconds(member.rtt_ms);
    vec![member.name.clone(), member.provider.clone(), role.to_owned(), rtt, owned.to_string(), state]
}

fn link_rows(sample: &Sample, screen: &Screen) -> Vec<Vec<String>> {
    sample.links.links.iter().map(|link| link_row(link, sample, screen)).collect()
}

fn link_row(link: &LinkStatus, sample: &Sample, screen: &Screen) -> Vec<String> {
    let rate = screen.rates.get(&(link.from.clone(), link.to.clone()));
    let backlog = sample.overview.backlogs.iter().find(|backlog| backlog.from == link.from && backlog.to == link.to);
    let per_second = |rate: &u64| format!("{}/s", human(*rate));
    vec![
        link.from.clone(),
        link.to.clone(),
        rate.map_or_else(unknown, per_second),
        link.limit_bytes_per_second.as_ref().map_or_else(|| "none".to_owned(), per_second),
        milliseconds(link.rtt_ms),
        backlog.map_or_else(|| "0 B".to_owned(), |backlog| human(backlog.bytes)),
        backlog.map_or_else(|| "0 s".to_owned(), |backlog| span(backlog.seconds)),
    ]
}

fn volume_row(row: &VolumeRow) -> Vec<String> {
    // The replica that is furthest behind.
    let behind = row.replicas.iter().filter_map(|replica| replica.bytes_behind).max();
    vec![
        row.name.clone(),
        row.owner.clone(),
        human(row.size_bytes),
        row.durability.clone(),
        row.rpo_seconds.map_or_else(unknown, span),
        behind.map_or_else(unknown, human),
        row.stale_bytes.map_or_else(unknown, human),
        match (row.stepped_down, row.waits.len()) {
            (true, _) => "NOT SERVED".to_owned(),
            (false, 0) => String::new(),
            (false, waits) => waits.to_string(),
        },
    ]
}

fn unknown() -> String {
    "-".to_owned()
}

fn milliseconds(rtt: Option<f64>) -> String {
    rtt.map_or_else(unknown, |rtt| format!("{rtt:.1} ms"))
}

/// A span of time in the unit that suits it.
fn span(seconds: f64) -> String {
    match seconds {
        ..10.0 => format!("{seconds:.1} s"),
        ..120.0 => format!("{seconds:.0} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.0} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::sample::tests::sample;
    use super::super::screen::Asked;
    use super::*;

    /// The screen as lines of text.
    fn drawn(screen: &mut Screen, now: Instant, (width, height): (u16, u16)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, screen, now)).expect("is drawn");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn nodes_links_and_volumes_are_shown_with_what_waits() {
        let begun = Instant::now();
        let mut screen =
            Screen::new(Asked::by("lag")).with(sample(begun, 0)).with(sample(begun + Duration::from_secs(1), 2 << 20));
        let lines = drawn(&mut screen, begun, (100, 24));
        let has = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(has(&["nodes 2, volumes 2, 1 of them waiting; told by a"]), "{lines:#?}");
        assert!(has(&["b", "cloud-2", "voter", "60.2 ms", "DOES NOT ANSWER"]), "{lines:#?}");
        assert!(has(&["a", "b", "2 MiB/s", "none", "6 MiB", "75 s"]), "{lines:#?}");
        assert!(has(&["volumes by lag"]) && has(&["disk", "10 GiB", "geo:1", "75 s", "3 MiB", "1 MiB"]), "{lines:#?}");
        assert!(has(&["disk: replica b does not answer"]), "{lines:#?}");
        // Rows for which a low window has no room were left out without a word.
        let is_cut = |lines: &[String]| lines.iter().any(|line| line.contains("a higher window shows all"));
        assert!(!is_cut(&lines) && is_cut(&drawn(&mut screen, begun, (100, 16))));
        screen.tell(Err("connection refused".to_owned()));
        let lines = drawn(&mut screen, begun + Duration::from_secs(9), (100, 24));
        assert!(lines[0].contains("NO ANSWER FOR 8 s: connection refused"), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("geo:1")), "what was told last stays: {lines:#?}");
    }

    #[test]
    fn a_failed_store_and_an_owner_that_has_stepped_down_are_told_from_what_waits() {
        use client_lib::wire::admin::StoreFault;
        let begun = Instant::now();
        let mut failed = sample(begun, 0);
        failed.overview.owners[0].store_faults =
            vec![StoreFault { store: "/mnt/a".to_owned(), ..StoreFault::default() }];
        failed.overview.rows[1].stepped_down = true;
        let mut screen = Screen::new(Asked::by("name")).with(failed);
        let lines = drawn(&mut screen, begun, (100, 24));
        let has = |words: &[&str]| lines.iter().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(has(&["a", "cloud-1", "leader", "STORE FAILED"]) && has(&["other", "NOT SERVED"]), "{lines:#?}");
    }

    #[test]
    fn a_small_terminal_and_an_empty_cluster_are_drawn_too() {
        let mut screen = Screen::new(Asked::by("name"));
        assert!(drawn(&mut screen, Instant::now(), (40, 6))[1].contains("asking the cluster"));
        let mut empty = sample(Instant::now(), 0);
        empty.overview.rows.clear();
        screen.tell(Ok(empty));
        for size in [(20, 4), (40, 10), (200, 60)] {
            drawn(&mut screen, Instant::now(), size);
        }
        let lines = drawn(&mut screen, Instant::now(), (80, 24));
        assert!(lines.iter().any(|line| line.contains("no volume fits")), "{lines:#?}");
    }

    #[test]
    fn times_are_told_in_the_unit_that_suits_them() {
        let told = [0.04, 9.5, 75.0, 600.0, 90_000.0].map(span);
        assert_eq!(told, ["0.0 s", "9.5 s", "75 s", "10 min", "25 h"]);
    }
}
