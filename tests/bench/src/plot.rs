// SPDX-License-Identifier: GPL-2.0

//! Charts of the results.

use std::path::Path;

use kselftest::bail;
use kselftest::Fail;
use kselftest::Res;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use plotters::style::text_anchor::Pos;
use plotters::style::text_anchor::VPos;
use serde::Deserialize;

/// What `report` wrote, as far as it is drawn.
#[derive(Deserialize)]
struct Results {
    command: String,
    date: String,
    kernel: String,
    summary: Vec<Summary>,
}

#[derive(Deserialize)]
struct Summary {
    mode: String,
    case: String,
    goal: f64,
    worker: Option<Ratio>,
    span: Option<Ratio>,
}

#[derive(Clone, Copy, Deserialize)]
struct Ratio {
    median: f64,
    least: f64,
    most: f64,
}

/// A case's bar.
struct Bar<'a> {
    case: &'a str,
    ratio: Ratio,
    goal: f64,
}

/// The file, the title, and what is drawn for a case.
type Chart = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Summary) -> Option<Ratio>,
);

const CHARTS: [Chart; 2] = [
    (
        "icount",
        "bench-instructions.svg",
        "Instructions of the worker a packet, Rust / C",
        |s| s.worker,
    ),
    (
        "clock",
        "bench-clock.svg",
        "Time from kick to call a packet, Rust / C",
        |s| s.span,
    ),
];

const WIDTH: u32 = 860;
/// Of a bar and the gap below it.
const ROW: u32 = 20;
/// Where the names end and the bars begin.
const NAMES: u32 = 120;
/// For the title, and for the text below.
const HEAD: u32 = 40;
const FOOT: u32 = 60;
const GRAY: RGBColor = RGBColor(110, 110, 110);
const GREEN: RGBColor = RGBColor(46, 125, 80);
const RED: RGBColor = RGBColor(190, 60, 50);

/// Draws a chart a mode that `results` has, in `folder`. A bar is green where the ratio is no more
/// than the goal, which is a dark line; the spread of the rounds is a thin one.
pub fn plot(results: &Path, folder: &Path) -> Res {
    let text = std::fs::read_to_string(results)?;
    let results: Results = serde_json::from_str(&text)?;
    let mut drawn = 0;
    for (mode, file, title, ratio) in CHARTS {
        let of_mode = results.summary.iter().filter(|s| s.mode == mode);
        let bars: Vec<_> = of_mode
            .filter_map(|s| {
                Some(Bar {
                    case: &s.case,
                    ratio: ratio(s)?,
                    goal: s.goal,
                })
            })
            .collect();
        if bars.is_empty() {
            continue;
        }
        let about = format!(
            "{}, {}, kernel {}",
            results.command, results.date, results.kernel
        );
        let path = folder.join(file);
        draw(&path, title, &about, &bars).map_err(|e| Fail(format!("{}: {e}", path.display())))?;
        println!("{}", path.display());
        drawn += 1;
    }
    if drawn == 0 {
        bail!("there is nothing to draw");
    }
    Ok(())
}

fn draw(
    path: &Path,
    title: &str,
    about: &str,
    bars: &[Bar<'_>],
) -> Result<(), Box<dyn std::error::Error>> {
    let height = HEAD + ROW * bars.len() as u32 + FOOT;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let font = |size: i32| ("sans-serif", size).into_font();
    area.draw_text(title, &font(18).color(&BLACK), (NAMES as i32, 12))?;
    let legend = "line: the goal; whisker: the spread of the rounds";
    let foot = (height - FOOT) as i32;
    area.draw_text(about, &font(12).color(&GRAY), (NAMES as i32, foot + 24))?;
    area.draw_text(legend, &font(12).color(&GRAY), (NAMES as i32, foot + 42))?;

    // To the next quarter above what is to be seen; the rest of a long whisker is cut off.
    let most = bars
        .iter()
        .map(|b| b.ratio.median.max(b.goal))
        .fold(1.0, f64::max);
    let end = (most * 4.0 + 0.5).ceil() / 4.0;
    let room = f64::from(WIDTH - NAMES - 60);
    let x = |value: f64| NAMES as i32 + (value.min(end) / end * room) as i32;

    let ticks = (0..).map(|i| f64::from(i) / 4.0).take_while(|t| *t <= end);
    for tick in ticks {
        let at = x(tick);
        let line = [(at, HEAD as i32), (at, foot)];
        area.draw(&PathElement::new(
            line,
            if tick == 1.0 {
                GRAY
            } else {
                RGBColor(220, 220, 220)
            },
        ))?;
        let style = font(12).color(&GRAY).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw_text(&format!("{tick:.2}"), &style, (at, foot + 6))?;
    }
    for (i, bar) in bars.iter().enumerate() {
        let top = (HEAD + ROW * i as u32) as i32 + 3;
        let bottom = top + ROW as i32 - 6;
        let middle = (top + bottom) / 2;
        let color = if bar.ratio.median <= bar.goal {
            GREEN
        } else {
            RED
        };
        let name = font(13)
            .color(&BLACK)
            .pos(Pos::new(HPos::Right, VPos::Center));
        area.draw_text(bar.case, &name, (NAMES as i32 - 8, middle))?;
        area.draw(&Rectangle::new(
            [(x(0.0), top), (x(bar.ratio.median), bottom)],
            color.filled(),
        ))?;
        area.draw(&PathElement::new(
            [(x(bar.ratio.least), middle), (x(bar.ratio.most), middle)],
            BLACK,
        ))?;
        let goal = x(bar.goal);
        area.draw(&PathElement::new(
            [(goal, top - 2), (goal, bottom + 2)],
            BLACK.stroke_width(2),
        ))?;
        let value = font(12)
            .color(&BLACK)
            .pos(Pos::new(HPos::Left, VPos::Center));
        let after = x(bar.ratio.median.max(bar.ratio.most).max(bar.goal)) + 6;
        area.draw_text(&format!("{:.3}", bar.ratio.median), &value, (after, middle))?;
    }
    area.present()?;
    Ok(())
}
