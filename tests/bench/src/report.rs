// SPDX-License-Identifier: GPL-2.0

//! The tables, and the file with all results.

use std::collections::BTreeSet;
use std::path::Path;

use kselftest::Fail;
use kselftest::Res;
use serde::Serialize;
use serde_json::json;

use crate::case;
use crate::case::Case;
use crate::Line;

/// What the measurements of a case come to.
#[derive(Serialize)]
struct Summary {
    mode: String,
    case: &'static str,
    goal: f64,
    /// The medians of both drivers, a packet. `None`: missing or failed.
    c: Option<Figures>,
    rust: Option<Figures>,
    /// Rust / C.
    worker: Option<Ratio>,
    machine: Option<Ratio>,
    span: Option<Ratio>,
    /// Why there are no figures.
    notes: BTreeSet<String>,
}

#[derive(Serialize)]
struct Figures {
    worker: f64,
    machine: f64,
    span: f64,
    misses: f64,
    owner_waits: f64,
    worker_waits: f64,
}

/// Of the quotients of each round.
#[derive(Serialize)]
struct Ratio {
    median: f64,
    least: f64,
    most: f64,
}

/// Prints a table a mode and writes `results`. Fails when a measurement failed.
pub fn report(results: &Path, files: &[&str]) -> Res {
    let mut lines: Vec<Line> = vec![];
    for file in files {
        for line in std::fs::read_to_string(file)?.lines() {
            lines.push(
                serde_json::from_str(line).map_err(|e| Fail(format!("{file}: {e}: {line}")))?,
            );
        }
    }
    let about = |name: &str| std::env::var(name).unwrap_or_default();
    let (date, kernel, commit) = (
        about("BENCH_DATE"),
        about("BENCH_KERNEL"),
        about("BENCH_COMMIT"),
    );
    let command = about("BENCH_COMMAND");
    println!("{command}, {date}, kernel {kernel}, commit {commit}");

    let mut summaries = vec![];
    for mode in ["icount", "clock"] {
        let here: Vec<_> = lines.iter().filter(|l| l.mode == mode).collect();
        if here.is_empty() {
            continue;
        }
        let rounds = here.iter().map(|l| l.round).max().unwrap_or(0);
        let of_mode: Vec<_> = case::all()
            .filter_map(|c| summary(mode, c, &here))
            .collect();
        match mode {
            "icount" => print_icount(rounds, &of_mode),
            _ => {
                print_clock(rounds, &of_mode);
                print_misses(&of_mode);
                print_wakeups(&of_mode);
            }
        }
        let notes: BTreeSet<_> = of_mode
            .iter()
            .flat_map(|s| s.notes.iter().map(move |n| format!("{}: {n}", s.case)))
            .collect();
        notes.iter().for_each(|n| println!("{n}"));
        summaries.extend(of_mode);
    }
    let all = json!({
        "command": command, "date": date, "kernel": kernel, "commit": commit,
        "summary": summaries, "measurements": lines,
    });
    std::fs::write(results, format!("{all:#}\n"))?;
    match lines.iter().filter(|l| l.failed.is_some()).count() {
        0 => Ok(()),
        n => Err(Fail(format!("{n} of {} measurements failed", lines.len()))),
    }
}

/// The summary of a case, if it was run.
fn summary(mode: &str, case: &Case, lines: &[&Line]) -> Option<Summary> {
    let of = |driver: &str| -> Vec<&Line> {
        let mine = |l: &&&Line| l.case == case.name && l.driver == driver;
        lines.iter().filter(mine).copied().collect()
    };
    let (c, rust) = (of("c"), of("rust"));
    if c.is_empty() {
        return None;
    }
    let mut notes = BTreeSet::new();
    for l in c.iter().chain(&rust) {
        if let Some(why) = &l.failed {
            notes.insert(format!("{} failed: {why}", l.driver));
        }
        if !l.missing.is_empty() {
            let bits: Vec<_> = l.missing.iter().map(u32::to_string).collect();
            notes.insert(format!(
                "missing in {}: feature bit {}",
                l.driver,
                bits.join(", ")
            ));
        }
    }
    let ratio = |value: fn(&Line) -> f64| {
        let pairs = c
            .iter()
            .zip(&rust)
            .filter(|(c, r)| c.packets > 0 && r.packets > 0);
        let mut v: Vec<_> = pairs.map(|(c, r)| value(r) / value(c)).collect();
        v.sort_by(f64::total_cmp);
        Some(Ratio {
            median: median(&v)?,
            least: *v.first()?,
            most: *v.last()?,
        })
    };
    Some(Summary {
        mode: mode.into(),
        case: case.name,
        goal: match mode {
            "icount" => case.goal,
            _ => case.clock_goal,
        },
        c: figures(&c),
        rust: figures(&rust),
        worker: ratio(worker),
        machine: ratio(machine),
        span: ratio(span),
        notes,
    })
}

fn worker(l: &Line) -> f64 {
    l.worker_ns as f64 / l.packets as f64
}

fn machine(l: &Line) -> f64 {
    l.machine_ns as f64 / l.packets as f64
}

fn span(l: &Line) -> f64 {
    l.span_ns as f64 / l.packets as f64
}

fn figures(lines: &[&Line]) -> Option<Figures> {
    let of = |value: fn(&Line) -> f64| {
        let mut v: Vec<_> = lines
            .iter()
            .filter(|l| l.packets > 0)
            .map(|l| value(l))
            .collect();
        v.sort_by(f64::total_cmp);
        median(&v)
    };
    Some(Figures {
        worker: of(worker)?,
        machine: of(machine)?,
        span: of(span)?,
        misses: of(|l| l.misses as f64 / l.packets as f64)?,
        owner_waits: of(|l| l.owner_waits as f64 / l.packets as f64)?,
        worker_waits: of(|l| l.worker_waits as f64 / l.packets as f64)?,
    })
}

/// Of sorted values.
fn median(v: &[f64]) -> Option<f64> {
    let high = v.get(v.len() / 2)?;
    let low = v.get((v.len() - 1) / 2)?;
    Some((low + high) / 2.0)
}

/// A figure with its thousands apart, or what stands for one that is not there.
fn figure(f: &Option<Figures>, value: fn(&Figures) -> f64, s: &Summary, driver: &str) -> String {
    let Some(f) = f else {
        let missing = s
            .notes
            .iter()
            .any(|n| n.starts_with(&format!("missing in {driver}")));
        return if missing { "missing" } else { "failed" }.into();
    };
    let mut text = format!("{:.0}", value(f));
    let mut at = text.len();
    while at > 3 {
        at -= 3;
        text.insert(at, ',');
    }
    text
}

fn quotient(r: &Option<Ratio>) -> String {
    r.as_ref()
        .map_or("-".into(), |r| format!("{:.3}", r.median))
}

fn print_icount(rounds: usize, all: &[Summary]) {
    println!();
    println!("Instructions a packet, one processor under icount (rounds: {rounds}, medians; ratio: Rust / C)");
    println!();
    let head =
        "| case                 | worker: C |    Rust | ratio | goal | machine: C |    Rust | ratio |";
    println!("{head}");
    println!(
        "| :------------------- | --------: | ------: | ----: | ---: | ---------: | ------: | ----: |"
    );
    for s in all {
        println!(
            "| {:20} | {:>9} | {:>7} | {:>5} | {:>4.2} | {:>10} | {:>7} | {:>5} |",
            s.case,
            figure(&s.c, |f| f.worker, s, "c"),
            figure(&s.rust, |f| f.worker, s, "rust"),
            quotient(&s.worker),
            s.goal,
            figure(&s.c, |f| f.machine, s, "c"),
            figure(&s.rust, |f| f.machine, s, "rust"),
            quotient(&s.machine),
        );
    }
    println!();
}

/// What an IOMMU costs that maps packets anew: messages, and who had to be woken.
fn print_misses(all: &[Summary]) {
    let with_misses = |s: &&Summary| s.c.as_ref().is_some_and(|f| f.misses > 0.0);
    let of_note: Vec<_> = all.iter().filter(with_misses).collect();
    if of_note.is_empty() {
        return;
    }
    println!("A packet behind an IOMMU: misses that the owner answered, and how often it and the worker waited (medians)");
    println!();
    println!(
        "| case                 | misses: C |   Rust | owner: C |   Rust | worker: C |   Rust |"
    );
    println!(
        "| :------------------- | --------: | -----: | -------: | -----: | --------: | -----: |"
    );
    for s in of_note {
        let of = |f: &Option<Figures>, value: fn(&Figures) -> f64| {
            f.as_ref()
                .map_or("-".into(), |f| format!("{:.2}", value(f)))
        };
        println!(
            "| {:20} | {:>9} | {:>6} | {:>8} | {:>6} | {:>9} | {:>6} |",
            s.case,
            of(&s.c, |f| f.misses),
            of(&s.rust, |f| f.misses),
            of(&s.c, |f| f.owner_waits),
            of(&s.rust, |f| f.owner_waits),
            of(&s.c, |f| f.worker_waits),
            of(&s.rust, |f| f.worker_waits),
        );
    }
    println!();
}

/// How often the worker is woken by packets that come one by one.
fn print_wakeups(all: &[Summary]) {
    for s in all.iter().filter(|s| s.case.starts_with("rx-paced")) {
        let of = |f: &Option<Figures>| {
            f.as_ref()
                .map_or("-".into(), |f| format!("{:.2}", f.worker_waits))
        };
        println!(
            "{}: wake-ups of the worker a packet (medians): C {}, Rust {}",
            s.case,
            of(&s.c),
            of(&s.rust)
        );
    }
    println!();
}

fn print_clock(rounds: usize, all: &[Summary]) {
    println!();
    println!("Nanoseconds a packet from kick to call, two processors (rounds: {rounds}; ratio: Rust / C of each round)");
    println!();
    println!(
        "| case                 |       C |    Rust | ratio: median |         spread | goal |"
    );
    println!(
        "| :------------------- | ------: | ------: | ------------: | -------------: | ---: |"
    );
    for s in all {
        let spread = s
            .span
            .as_ref()
            .map_or("-".into(), |r| format!("{:.3} to {:.3}", r.least, r.most));
        println!(
            "| {:20} | {:>7} | {:>7} | {:>13} | {:>14} | {:>4.2} |",
            s.case,
            figure(&s.c, |f| f.span, s, "c"),
            figure(&s.rust, |f| f.span, s, "rust"),
            quotient(&s.span),
            spread,
            s.goal,
        );
    }
    println!();
}
