// SPDX-License-Identifier: GPL-2.0

//! What a turn moves until it pauses, for who traces it.

#![forbid(unsafe_code)]

use super::net::{
    Queue,
    RX, //
};
use crate::{
    sys::trace,
    vhost::Stats, //
};

/// What a turn moves until it pauses. Each turn has one, and more where something was moved again
/// after a pause.
pub struct Stretch {
    packets: u64,
    bytes: u64,
    told: bool,
}

impl Stretch {
    /// It begins now.
    #[inline(always)]
    pub fn begin(stats: &Stats) -> Self {
        Self {
            packets: stats.packets.get(),
            bytes: stats.bytes.get(),
            told: false,
        }
    }

    /// It ends, and the next one begins. What was moved is about to be given to the driver.
    #[inline(always)]
    pub fn end(&mut self, queue: &Queue) {
        if trace::rx_end_enabled() || trace::tx_end_enabled() {
            self.tell(queue);
        }
    }

    #[cold]
    fn tell(&mut self, queue: &Queue) {
        let stats = &queue.stats;
        let now = Self::begin(stats);
        let packets = now.packets.wrapping_sub(self.packets);
        let bytes = now.bytes.wrapping_sub(self.bytes);
        if packets > 0 || !self.told {
            let tell = match queue.index() {
                RX => trace::rx_end,
                _ => trace::tx_end,
            };
            tell(
                packets as i32,
                bytes as usize,
                stats.owner(),
                queue.index() as u32,
                queue.ring.base(),
                queue.ring.used_idx(),
            );
        }
        *self = Self { told: true, ..now };
    }
}
