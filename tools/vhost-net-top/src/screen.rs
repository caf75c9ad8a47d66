// SPDX-License-Identifier: GPL-2.0

//! The table on a terminal, again and again, until `q`.

use std::io::Result;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use ratatui::crossterm::event;
use ratatui::crossterm::event::Event;
use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyModifiers;
use ratatui::layout::Constraint;
use ratatui::layout::Layout;
use ratatui::style::Style;
use ratatui::style::Stylize;
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::widgets::Row as TableRow;
use ratatui::widgets::Table;
use ratatui::Frame;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;

use crate::host::Host;
use crate::rates::rows;
use crate::rates::Row;
use crate::show::cells;
use crate::show::HEADS;

/// How long a signal may wait.
const GLANCE: Duration = Duration::from_millis(200);

/// Shows the host in `root` each so many seconds.
pub fn run(root: &Path, interval: Duration, ticks: u64) -> Result<()> {
    // Whoever ends this by a signal is to have the terminal as it was.
    let ended = Arc::new(AtomicUsize::new(0));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register_usize(signal, ended.clone(), signal as usize)?;
    }
    let result = show(root, interval, ticks, &ended);
    ratatui::restore();
    match ended.load(Ordering::Relaxed) {
        0 => result,
        signal => signal_hook::low_level::emulate_default_handler(signal as i32),
    }
}

fn show(root: &Path, interval: Duration, ticks: u64, ended: &AtomicUsize) -> Result<()> {
    let look = || Host::look(root).map_err(std::io::Error::other);
    let mut terminal = ratatui::try_init()?;
    let mut before: Option<Host> = None;
    loop {
        let now = look()?;
        let mut all = rows(&now, before.as_ref(), ticks);
        all.sort_by(|a, b| {
            b.packets_per_second
                .unwrap_or(-1.0)
                .total_cmp(&a.packets_per_second.unwrap_or(-1.0))
        });
        terminal.draw(|frame| draw(frame, &now, &all, interval))?;
        let next = Instant::now() + interval;
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            if ended.load(Ordering::Relaxed) != 0 {
                return Ok(());
            }
            if !event::poll(left.min(GLANCE))? {
                continue;
            }
            match event::read()? {
                Event::Key(key) if ends(key.code, key.modifiers) => return Ok(()),
                // The same once more: rates of the time since the last look would be those of an instant.
                Event::Resize(..) => {
                    terminal.draw(|frame| draw(frame, &now, &all, interval))?;
                }
                _ => {}
            }
        }
        before = Some(now);
    }
}

fn ends(code: KeyCode, modifiers: KeyModifiers) -> bool {
    matches!(code, KeyCode::Char('q') | KeyCode::Esc)
        || code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL)
}

fn draw(frame: &mut Frame, host: &Host, rows: &[Row], interval: Duration) {
    let notes = host.notes();
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(2),
        Constraint::Length(notes.len() as u16),
    ])
    .split(frame.area());
    let devices = host.open.len();
    let sum = |f: fn(&Row) -> Option<f64>, queue: &str| -> f64 {
        let rows = rows.iter().filter(|row| row.queue == queue);
        rows.filter_map(f).sum()
    };
    let head = format!(
        "vhost-net-top: {devices} devices, to guests {} packets/s, from guests {} packets/s; every {interval:?}, q ends",
        crate::show::short(sum(|r| r.packets_per_second, "rx")),
        crate::show::short(sum(|r| r.packets_per_second, "tx")),
    );
    frame.render_widget(Line::from(head).bold(), areas[0]);
    let cells: Vec<_> = rows.iter().map(cells).collect();
    let width = |i: usize| {
        let widest = cells
            .iter()
            .map(|c| c[i].chars().count())
            .max()
            .unwrap_or(0);
        Constraint::Length(widest.max(HEADS[i].len()) as u16)
    };
    let widths: Vec<_> = (0..HEADS.len()).map(width).collect();
    let body = cells.iter().zip(rows).map(|(cells, row)| {
        let lost = row.drops_per_second.unwrap_or(0.0) > 0.0 || !row.stops.is_empty();
        let style = if lost {
            Style::new().red()
        } else {
            Style::new()
        };
        TableRow::new(cells.clone()).style(style)
    });
    let table = Table::new(body, widths).header(TableRow::new(HEADS).reversed());
    frame.render_widget(table.column_spacing(2), areas[1]);
    let notes: Vec<Line> = notes.into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(notes).dim(), areas[2]);
}
