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
/// after a pause. Nothing of one that began while nobody traced.
pub struct Stretch(Option<Counts>);

/// What the queue had moved when it began.
struct Counts {
    packets: u64,
    bytes: u64,
    /// Whether the turn has told of one before.
    told: bool,
}

impl Counts {
    #[cold]
    fn now(stats: &Stats, told: bool) -> Self {
        Self {
            packets: stats.packets.get(),
            bytes: stats.bytes.get(),
            told,
        }
    }
}

#[inline(always)]
fn is_traced() -> bool {
    trace::rx_end_enabled() || trace::tx_end_enabled()
}

impl Stretch {
    /// It begins now.
    #[inline(always)]
    pub fn begin(stats: &Stats) -> Self {
        Self(is_traced().then(|| Counts::now(stats, false)))
    }

    /// It ends, and the next one begins. What was moved is about to be given to the driver.
    #[inline(always)]
    pub fn end(&mut self, queue: &Queue) {
        if is_traced() {
            self.tell(queue);
        }
    }

    #[cold]
    fn tell(&mut self, queue: &Queue) {
        let stats = &queue.stats;
        let now = Counts::now(stats, true);
        let Some(begin) = self.0.replace(now) else {
            return;
        };
        let packets = stats.packets.get().wrapping_sub(begin.packets);
        let bytes = stats.bytes.get().wrapping_sub(begin.bytes);
        if packets > 0 || !begin.told {
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
    }
}
