// SPDX-License-Identifier: GPL-2.0

//! The other side of the wire: more packets than the guest can take.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use kselftest::frame;
use kselftest::net::index;
use kselftest::net::tcp_frame;
use kselftest::Peer;
use kselftest::Res;

use crate::sys::send;
use crate::sys::Rng;
use crate::World;

/// Sends for ever, and counts what the taps did.
pub fn run(world: &World, tap: i32) -> Res {
    let mut rng = Rng::new(world.seed, 4);
    let (plain, offloaded) = (Peer::sender(tap, false)?, Peer::sender(tap, true)?);
    let lo = Peer::sender(index("lo")?, false)?;
    let mut other = None;
    let mut packets: Vec<_> = (0..40)
        .map(|i| frame(i, 14 + rng.below(1500) as usize))
        .collect();
    packets.extend((0..4).map(|i| frame(i, 14 + rng.below(65000) as usize)));
    let large: Vec<_> = (0..3)
        .map(|i| {
            // To be cut into packets of 1400 bytes by whoever gets it.
            let header = [1, 1, 54, 0, 0x78, 0x05, 34, 0, 16, 0];
            [&header[..], &tcp_frame(3000 + 20000 * i, i as u32)].concat()
        })
        .collect();
    let mut seen = Seen::default();
    loop {
        let now = world.other_tap.load(Relaxed);
        if other.as_ref().is_none_or(|(index, _)| *index != now) {
            // It may be gone already.
            other = Peer::sender(now, false).ok().map(|peer| (now, peer));
        }
        let to = rng.below(16);
        let count = (0..rng.below(64)).filter(|_| match (to, &other) {
            (0 | 1, _) => send(&offloaded.fd, &large[rng.below(3) as usize]),
            (2, _) => send(&lo.fd, &packets[rng.below(40) as usize]),
            (3..6, Some((_, other))) => send(&other.fd, &packets[rng.below(44) as usize]),
            _ => send(&plain.fd, &packets[rng.below(44) as usize]),
        });
        world.counts.flood.fetch_add(count.count() as u64, Relaxed);
        seen.look(world)?;
        std::thread::sleep(Duration::from_micros(rng.below(4000)));
    }
}

/// What the interfaces have counted so far.
#[derive(Default)]
struct Seen {
    sent: u64,
    received: u64,
}

impl Seen {
    fn look(&mut self, world: &World) -> Res {
        let (mut sent, mut received) = (0, 0);
        for line in std::fs::read_to_string("/proc/thread-self/net/dev")?.lines() {
            let Some((name, numbers)) = line.split_once(':') else {
                continue;
            };
            if !name.trim().starts_with('t') {
                continue;
            }
            let numbers: Vec<u64> = numbers
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect();
            sent += numbers.get(1).copied().unwrap_or(0);
            received += numbers.get(9).copied().unwrap_or(0);
        }
        // An interface that is gone takes its count with it.
        world
            .counts
            .sent
            .fetch_add(sent.saturating_sub(self.sent), Relaxed);
        world
            .counts
            .received
            .fetch_add(received.saturating_sub(self.received), Relaxed);
        (self.sent, self.received) = (sent, received);
        Ok(())
    }
}
