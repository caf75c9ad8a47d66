// SPDX-License-Identifier: GPL-2.0

//! A device as `/proc/PID/fdinfo/FD` describes it.

use std::collections::BTreeMap;

use serde::Serialize;

/// The two directions, as seen by the guest: the names under which the driver prints them.
pub const QUEUES: [&str; 2] = ["rx", "tx"];

/// What a queue is and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Queue {
    pub size: u64,
    pub backend: String,
    pub last_fault: String,
    /// All numbers that only grow, by their key without the queue's name.
    pub counters: BTreeMap<String, u64>,
    /// The number of packets that are on their way without a copy.
    pub in_flight: u64,
    /// The thread that runs it; 0 if there is none, or it is not to be seen from here.
    pub worker: i32,
}

impl Queue {
    /// A counter; 0 if the driver has no such.
    pub fn count(&self, key: &str) -> u64 {
        self.counters.get(key).copied().unwrap_or(0)
    }

    /// The sum of the counters whose key begins so.
    pub fn sum(&self, start: &str) -> u64 {
        let all = self
            .counters
            .iter()
            .filter(|(key, _)| key.starts_with(start));
        all.map(|(_, n)| n).sum()
    }

    /// Those of them that are not zero, as `name count`, without that beginning.
    pub fn reasons(&self, start: &str) -> Vec<(String, u64)> {
        let all = self.counters.iter().filter(|(_, &n)| n > 0);
        all.filter_map(|(key, &n)| Some((key.strip_prefix(start)?.to_string(), n)))
            .collect()
    }
}

/// What a device is and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Device {
    pub queues: BTreeMap<String, Queue>,
}

impl Device {
    /// Reads what the driver prints. Nothing, if the driver prints nothing: the C driver does not.
    pub fn parse(text: &str) -> Option<Self> {
        let mut device = Device::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else {
                continue;
            };
            let value = value.trim();
            let Some((queue, key)) = key.split_once('-') else {
                continue;
            };
            if !QUEUES.contains(&queue) {
                continue;
            }
            let queue = device.queues.entry(queue.to_string()).or_default();
            let number = value.parse();
            match (key, number) {
                ("backend", _) => queue.backend = value.to_string(),
                ("last-fault", _) => queue.last_fault = value.to_string(),
                ("size", Ok(n)) => queue.size = n,
                ("zerocopy-in-flight", Ok(n)) => queue.in_flight = n,
                ("worker", Ok(n)) => queue.worker = n as i32,
                (key, Ok(n)) => {
                    queue.counters.insert(key.to_string(), n);
                }
                // Of a driver newer than this.
                (_, Err(_)) => {}
            }
        }
        (!device.queues.is_empty()).then_some(device)
    }

    /// The thread that works for it, or for one of its queues, if that is to be seen.
    pub fn worker(&self) -> Option<i32> {
        self.queues.values().map(|q| q.worker).find(|&w| w > 0)
    }

    /// The queues for which another thread works than [`Self::worker`], and that.
    pub fn other_workers(&self) -> impl Iterator<Item = (&str, i32)> {
        let first = self.worker().unwrap_or(0);
        let workers = self.queues.iter().map(|(name, q)| (&**name, q.worker));
        workers.filter(move |&(_, worker)| worker > 0 && worker != first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub const TEXT: &str = include_str!("../tests/fdinfo");

    #[test]
    fn what_the_driver_prints() {
        let device = Device::parse(TEXT).unwrap();
        assert_eq!(device.queues.len(), 2);
        let tx = &device.queues["tx"];
        assert_eq!((tx.size, tx.backend.as_str()), (256, "tap"));
        assert_eq!(tx.count("packets"), 1234);
        assert_eq!(tx.sum("drops-"), 3);
        let reasons = [("header".to_string(), 1), ("short".to_string(), 2)];
        assert_eq!(tx.reasons("drops-"), reasons);
        assert_eq!(tx.last_fault, "a buffer to transmit is writable");
        assert_eq!(device.worker(), Some(4321));
        assert_eq!(device.other_workers().count(), 0);
        assert_eq!(tx.in_flight, 5);
        assert_eq!(tx.counters.get("zerocopy-in-flight"), None);
    }

    #[test]
    fn the_c_driver_prints_nothing() {
        assert_eq!(
            Device::parse("pos:\t0\nflags:\t02\nmnt_id:\t30\nino:\t200\n"),
            None
        );
        assert_eq!(Device::parse(""), None);
    }

    #[test]
    fn a_worker_for_each_queue() {
        let device = Device::parse("rx-worker:\t5\ntx-worker:\t6\n").unwrap();
        assert_eq!(device.worker(), Some(5));
        assert_eq!(device.other_workers().collect::<Vec<_>>(), [("tx", 6)]);
        // One that was killed is not there.
        let device = Device::parse("rx-worker:\t0\ntx-worker:\t6\n").unwrap();
        assert_eq!(device.worker(), Some(6));
        assert_eq!(device.other_workers().count(), 0);
    }

    #[test]
    fn lines_that_nobody_knows() {
        let device = Device::parse("rx-packets:\t5\nrx-new-thing:\tyes, very\nnonsense\nrx-\n-:\n");
        assert_eq!(device.unwrap().queues["rx"].count("packets"), 5);
        // A number too large, or none.
        let device = Device::parse("rx-packets:\t99999999999999999999999\nrx-size:\t-1\n").unwrap();
        assert_eq!(device.queues["rx"].count("packets"), 0);
    }
}
