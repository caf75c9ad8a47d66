// SPDX-License-Identifier: GPL-2.0

//! The table on a terminal, again and again, until `q`.

use std::io::Result;
use std::path::Path;
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

use crate::host::Host;
use crate::rates::rows;
use crate::rates::Row;
use crate::show::cells;
use crate::show::HEADS;

/// Shows the host in `root` each so many seconds.
pub fn run(root: &Path, interval: Duration, ticks: u64) -> Result<()> {
    let look = || Host::look(root).map_err(std::io::Error::other);
    let mut terminal = ratatui::init();
    let result = (|| -> Result<()> {
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
            before = Some(now);
            let next = Instant::now() + interval;
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                if !event::poll(left)? {
                    break;
                }
                match event::read()? {
                    Event::Key(key) if ends(key.code, key.modifiers) => return Ok(()),
                    Event::Resize(..) => break,
                    _ => {}
                }
            }
        }
    })();
    ratatui::restore();
    result
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
