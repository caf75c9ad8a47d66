// SPDX-License-Identifier: GPL-2.0

//! Two looks at a host, and what happened between: a row for each queue.

use serde::Serialize;

use crate::device::Queue;
use crate::device::QUEUES;
use crate::host::Host;
use crate::host::Open;

/// A queue, between two looks.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub pid: i32,
    pub process: String,
    pub vm: Option<String>,
    pub fd: Option<i32>,
    pub tap: Option<String>,
    /// `rx` or `tx`; `?` where only the worker is to be seen.
    pub queue: String,
    pub backend: String,
    pub packets_per_second: Option<f64>,
    pub bits_per_second: Option<f64>,
    /// Packets that a turn of the worker moved, on average.
    pub packets_per_turn: Option<f64>,
    /// The part of the calls that the guest did not want.
    pub suppressed: Option<f64>,
    pub drops_per_second: Option<f64>,
    /// All packets that were dropped, by reason.
    pub drops: Vec<(String, u64)>,
    /// All stops, by reason, and the words of the last one.
    pub stops: Vec<(String, u64)>,
    pub last_fault: String,
    pub worker: Option<i32>,
    /// The part of a processor that the worker used: for both queues of a device, if they have one.
    pub worker_cpu: Option<f64>,
    /// The processors that it may use.
    pub worker_allowed: String,
}

/// By how much a counter grew. One that went back is another device's.
fn grown(now: &Queue, before: &Queue, key: &str) -> f64 {
    now.count(key).saturating_sub(before.count(key)) as f64
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

fn row(now: &Open, before: Option<&Open>, name: &str, seconds: f64, ticks: u64) -> Row {
    let queue = now.device.as_ref().and_then(|d| d.queues.get(name));
    let old = before.and_then(|b| b.device.as_ref()?.queues.get(name));
    let both = queue.zip(old).filter(|_| seconds > 0.0);
    let grown = |key: &'static str| both.map(|(now, before)| grown(now, before, key));
    let worker = now.worker_of(name);
    let used = worker.zip(before.and_then(|b| b.worker_of(name)));
    let used = used.filter(|(now, before)| now.id == before.id);
    let used = used.map(|(now, before)| now.ticks.saturating_sub(before.ticks) as f64);
    let drops = |q: &Queue| q.sum("drops-") as f64;
    Row {
        pid: now.pid,
        process: now.process.clone(),
        vm: now.vm.clone(),
        fd: now.fd,
        tap: now.tap.clone(),
        queue: name.to_string(),
        backend: queue.map_or("?".into(), |q| q.backend.clone()),
        packets_per_second: grown("packets").map(|n| n / seconds),
        bits_per_second: grown("bytes").map(|n| 8.0 * n / seconds),
        packets_per_turn: grown("packets")
            .zip(grown("turns"))
            .and_then(|(n, t)| ratio(n, t)),
        suppressed: grown("calls-suppressed")
            .zip(grown("calls"))
            .and_then(|(s, c)| ratio(s, s + c)),
        drops_per_second: both.map(|(now, old)| (drops(now) - drops(old)).max(0.0) / seconds),
        drops: queue.map_or(vec![], |q| q.reasons("drops-")),
        stops: queue.map_or(vec![], |q| q.reasons("stops-")),
        last_fault: queue.map_or("?".into(), |q| q.last_fault.clone()),
        worker: worker.map(|w| w.id),
        worker_cpu: used
            .map(|n| n / ticks as f64 / seconds)
            .filter(|n| n.is_finite()),
        worker_allowed: worker.map_or(String::new(), |w| w.allowed.clone()),
    }
}

/// The rows of all queues. Without a look before there are no rates. A second has so many `ticks`.
pub fn rows(now: &Host, before: Option<&Host>, ticks: u64) -> Vec<Row> {
    let seconds = before.map_or(0.0, |b| now.at.duration_since(b.at).as_secs_f64());
    let mut rows = vec![];
    for open in &now.open {
        let old = before.and_then(|b| b.open.iter().find(|o| o.key() == open.key()));
        let names: &[&str] = if open.device.is_some() {
            &QUEUES
        } else {
            &["?"]
        };
        rows.extend(
            names
                .iter()
                .map(|name| row(open, old, name, seconds, ticks)),
        );
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::host::Worker;
    use std::time::Duration;
    use std::time::Instant;

    fn look(at: Instant, packets: u64, turns: u64, ticks: u64) -> Host {
        let text = format!(
            "tx-packets:\t{packets}\ntx-bytes:\t{}\ntx-turns:\t{turns}\ntx-calls:\t{turns}\ntx-calls-suppressed:\t{}\ntx-worker:\t7\n",
            100 * packets,
            3 * turns
        );
        let worker = Worker {
            id: 7,
            ticks,
            ..Worker::default()
        };
        let open = Open {
            pid: 1,
            fd: Some(3),
            device: Device::parse(&text),
            worker: Some(worker),
            ..Open::default()
        };
        Host {
            at,
            open: vec![open],
            hidden: 0,
            silent: 0,
        }
    }

    #[test]
    fn between_two_looks() {
        let begin = Instant::now();
        let before = look(begin, 1000, 10, 500);
        let now = look(begin + Duration::from_secs(2), 3000, 110, 600);
        let rows = rows(&now, Some(&before), 100);
        let tx = rows.iter().find(|row| row.queue == "tx").unwrap();
        assert_eq!(tx.packets_per_second, Some(1000.0));
        assert_eq!(tx.bits_per_second, Some(800_000.0));
        assert_eq!(tx.packets_per_turn, Some(20.0));
        assert_eq!(tx.suppressed, Some(0.75));
        assert_eq!(tx.worker_cpu, Some(0.5));
    }

    #[test]
    fn the_first_look_has_no_rates() {
        let now = look(Instant::now(), 3000, 110, 600);
        let rows = rows(&now, None, 100);
        assert!(rows.iter().all(|row| row.packets_per_second.is_none()));
        assert!(rows.iter().all(|row| row.worker_cpu.is_none()));
    }

    #[test]
    fn counters_that_went_back() {
        let begin = Instant::now();
        let before = look(begin, 1000, 10, 500);
        let now = look(begin + Duration::from_secs(1), 10, 1, 1);
        let rows = rows(&now, Some(&before), 100);
        assert!(rows
            .iter()
            .all(|row| row.packets_per_second.unwrap_or(0.0) == 0.0));
    }
}
