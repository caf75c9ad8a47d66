// SPDX-License-Identifier: GPL-2.0

//! Rows as text: a table, JSON, and what Prometheus' node exporter reads.

use std::fmt::Write;

use serde_json::json;

use crate::host::Host;
use crate::rates::Row;

/// The heads of the columns.
pub const HEADS: [&str; 13] = [
    "PID", "PROCESS", "VM", "TAP", "Q", "PKT/S", "BIT/S", "PKT/TURN", "SUPPR", "DROPS", "STOPS",
    "WORKER", "CPU  ON",
];

/// A number with three digits and a letter for its thousands.
pub fn short(n: f64) -> String {
    let mut n = n;
    for unit in ["", "k", "M", "G", "T"] {
        if n < 999.5 || unit == "T" {
            return match (unit, n) {
                ("", n) => format!("{n:.0}"),
                (unit, n) if n < 9.95 => format!("{n:.1}{unit}"),
                (unit, n) => format!("{n:.0}{unit}"),
            };
        }
        n /= 1000.0;
    }
    String::new()
}

fn number(n: Option<f64>) -> String {
    n.map_or("-".into(), short)
}

fn percent(n: Option<f64>) -> String {
    n.map_or("-".into(), |n| format!("{:.0}%", 100.0 * n))
}

/// `reason count`, the most frequent first, of which one is shown.
fn reasons(all: &[(String, u64)]) -> String {
    match all.iter().max_by_key(|(_, n)| n) {
        None => "0".into(),
        Some((name, n)) if all.len() == 1 => format!("{} {name}", short(*n as f64)),
        Some((name, n)) => format!("{} {name}+{}", short(*n as f64), all.len() - 1),
    }
}

/// What stands in the columns. Names are what other users say: nothing in them gets to control the terminal.
pub fn cells(row: &Row) -> [String; 13] {
    let known = row.backend != "?";
    let or = |text: String| if known { text } else { "?".into() };
    let stops = match row.last_fault.as_str() {
        "none" | "?" | "" => reasons(&row.stops),
        fault => format!("{}: {fault}", reasons(&row.stops)),
    };
    [
        row.pid.to_string(),
        row.process.clone(),
        row.vm.clone().unwrap_or("-".into()),
        row.tap.clone().unwrap_or("-".into()),
        row.queue.clone(),
        or(number(row.packets_per_second)),
        or(number(row.bits_per_second)),
        or(row
            .packets_per_turn
            .map_or("-".into(), |n| format!("{n:.1}"))),
        or(percent(row.suppressed)),
        or(reasons(&row.drops)),
        or(stops),
        row.worker.map_or("-".into(), |w| w.to_string()),
        format!("{:>4} {}", percent(row.worker_cpu), row.worker_allowed),
    ]
    .map(|cell| cell.replace(char::is_control, "?"))
}

/// A table, its columns as wide as they need to be.
pub fn table(rows: &[Row]) -> String {
    let mut lines: Vec<Vec<String>> = vec![HEADS.map(String::from).to_vec()];
    lines.extend(rows.iter().map(|row| cells(row).to_vec()));
    let width = |i: usize| {
        lines
            .iter()
            .map(|l| l[i].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..HEADS.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for (i, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            // Numbers stand on the right.
            let _ = match i {
                0 | 5..=8 => write!(out, "{cell:>width$}  "),
                _ => write!(out, "{cell:<width$}  "),
            };
        }
        text += out.trim_end();
        text.push('\n');
    }
    text
}

/// One JSON object: the rows, all counters, and what can't be seen.
pub fn json(host: &Host, rows: &[Row], seconds: f64) -> String {
    let value = json!({
        "seconds": seconds,
        "queues": rows,
        "devices": host.open,
        "notes": host.notes(),
    });
    serde_json::to_string(&value).unwrap_or_default()
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Metrics as the node exporter's `textfile` collector reads them: counters only, for rates are Prometheus' own affair.
pub fn prometheus(host: &Host) -> String {
    // The samples of a metric stand together.
    let mut metrics = std::collections::BTreeMap::<(String, &str, &str), Vec<String>>::new();
    let mut add = |name: &str, kind, help, labels: String, value: u64| {
        let name = format!("vhost_net_{name}");
        let sample = if labels.is_empty() {
            format!("{name} {value}")
        } else {
            format!("{name}{{{labels}}} {value}")
        };
        metrics.entry((name, kind, help)).or_default().push(sample);
    };
    for open in &host.open {
        let of = |text: &Option<String>| escaped(text.as_deref().unwrap_or(""));
        let device = format!(
            "pid=\"{}\",fd=\"{}\",vm=\"{}\",tap=\"{}\"",
            open.pid,
            open.fd.map_or(String::new(), |fd| fd.to_string()),
            of(&open.vm),
            of(&open.tap)
        );
        for (name, queue) in open.device.iter().flat_map(|d| &d.queues) {
            let labels = format!("{device},queue=\"{name}\"");
            for (key, &value) in &queue.counters {
                let by = |start, label| {
                    let rest = key.strip_prefix(start)?;
                    Some(format!("{labels},{label}=\"{}\"", escaped(rest)))
                };
                if let Some(labels) = by("drops-", "reason") {
                    add(
                        "drops_total",
                        "counter",
                        "Packets that were lost.",
                        labels,
                        value,
                    );
                } else if let Some(labels) = by("stops-", "reason") {
                    add(
                        "stops_total",
                        "counter",
                        "Times that the queue stopped.",
                        labels,
                        value,
                    );
                } else if let Some(labels) = by("packets-from-", "bytes") {
                    add(
                        "sizes_total",
                        "counter",
                        "Packets by their least length.",
                        labels,
                        value,
                    );
                } else {
                    let name = format!("{}_total", key.replace('-', "_"));
                    add(
                        &name,
                        "counter",
                        "See docs/observing.md.",
                        labels.clone(),
                        value,
                    );
                }
            }
            add(
                "zerocopy_in_flight",
                "gauge",
                "Packets sent without a copy and not done.",
                labels,
                queue.in_flight,
            );
        }
        // Those of a process that can't be looked into differ by their workers only.
        let worker = open.worker.as_ref();
        let worker = worker.map_or(String::new(), |worker| worker.id.to_string());
        let seen = u64::from(open.device.is_some());
        add(
            "device_readable",
            "gauge",
            "Whether the counters can be read.",
            format!("{device},worker=\"{worker}\""),
            seen,
        );
    }
    let hidden = host.hidden as u64;
    add(
        "hidden_processes",
        "gauge",
        "Processes that can't be looked into.",
        String::new(),
        hidden,
    );
    let mut text = String::new();
    for ((name, kind, help), samples) in metrics {
        let _ = write!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{}\n",
            samples.join("\n")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::host::Open;
    use crate::host::Worker;
    use crate::rates;
    use std::time::Instant;

    fn host() -> Host {
        let open = Open {
            pid: 100,
            process: "qemu".into(),
            vm: Some("a{} \"b\"\\".into()),
            fd: Some(3),
            device: Device::parse(include_str!("../tests/fdinfo")),
            ..Open::default()
        };
        let blind = |id| Open {
            pid: 200,
            process: "other".into(),
            worker: Some(Worker {
                id,
                ..Worker::default()
            }),
            ..Open::default()
        };
        Host {
            at: Instant::now(),
            open: vec![open, blind(201), blind(202)],
            hidden: 7,
            silent: 0,
        }
    }

    #[test]
    fn numbers() {
        for (n, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (999.6, "1.0k"),
            (1234.0, "1.2k"),
            (123_456.0, "123k"),
            (9.99e9, "10G"),
            (5e15, "5000T"),
        ] {
            assert_eq!(short(n), text);
        }
    }

    #[test]
    fn names_do_not_control_the_terminal() {
        let mut host = host();
        host.open[1].process = "\u{1b}[2J".into();
        host.open[1].vm = Some("a\nb\u{9b}c".into());
        host.open[1].tap = Some("\r\u{7f}".into());
        let rows = rates::rows(&host, None, 100);
        let table = table(&rows);
        assert_eq!(table.lines().count(), 5, "{table:?}");
        assert!(table.contains("?[2J"), "{table:?}");
        assert!(table.contains("a?b?c"), "{table:?}");
        let control = |c: char| c.is_control() && c != '\n';
        assert!(!table.contains(control), "{table:?}");
    }

    #[test]
    fn metrics() {
        let text = prometheus(&host());
        let line =
            r#"vhost_net_packets_total{pid="100",fd="3",vm="a{} \"b\"\\",tap="",queue="tx"} 1234"#;
        assert!(text.lines().any(|l| l == line), "{text}");
        let line = r#"vhost_net_drops_total{pid="100",fd="3",vm="a{} \"b\"\\",tap="",queue="tx",reason="short"} 2"#;
        assert!(text.lines().any(|l| l == line), "{text}");
        assert!(
            text.lines().any(|l| l == "vhost_net_hidden_processes 7"),
            "{text}"
        );
        // A name and its kind once, and each sample behind those.
        let heads = text
            .lines()
            .filter(|l| l.starts_with("# TYPE vhost_net_drops_total "));
        assert_eq!(heads.count(), 1);
        // The same sample twice would cost the whole file.
        let samples = text.lines().filter_map(|l| Some(l.rsplit_once(' ')?.0));
        let samples: Vec<_> = samples.filter(|l| !l.starts_with('#')).collect();
        let different: std::collections::BTreeSet<_> = samples.iter().collect();
        assert_eq!(different.len(), samples.len(), "{text}");
        for line in text.lines() {
            assert!(
                line.starts_with("# ") || line.rsplit(' ').next().unwrap().parse::<u64>().is_ok(),
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_not_to_be_seen() {
        let host = host();
        let rows = rates::rows(&host, None, 100);
        assert_eq!(rows.len(), 4);
        let blind = cells(rows.last().unwrap());
        assert_eq!((blind[4].as_str(), blind[5].as_str()), ("?", "?"));
        assert!(
            host.notes()[0].contains("7 processes"),
            "{:?}",
            host.notes()
        );
        let value: serde_json::Value = serde_json::from_str(&json(&host, &rows, 0.0)).unwrap();
        assert_eq!(value["queues"].as_array().unwrap().len(), 4);
        assert!(value["devices"][1]["device"].is_null());
        let table = table(&rows);
        assert_eq!(table.lines().count(), 5);
        assert!(
            table.contains("a buffer to transmit is writable"),
            "{table}"
        );
    }
}
