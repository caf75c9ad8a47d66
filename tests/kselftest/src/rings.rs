// SPDX-License-Identifier: GPL-2.0

//! Streams through rings of all sizes: the same for what is sent and what is received.

use crate::amount;
use crate::feature::*;
use crate::mem;
use crate::some;
use crate::sys;
use crate::Config;
use crate::Res;

/// Moves so many packets in one direction; the function is the length of each, by its number.
pub type Many = fn(Config, u32, fn(u32) -> usize) -> Res;

pub fn ring_1(many: Many) -> Res {
    many(Config::default().num(1), 200, |i| 60 + i as usize % 100)
}

pub fn ring_2(many: Many) -> Res {
    many(Config::with(VERSION_1 | EVENT_IDX).num(2), 300, |i| {
        60 + i as usize % 100
    })
}

pub fn ring_256(many: Many) -> Res {
    // From 37 on, so that some batches cross the ring's end.
    many(Config::default().base(37), 2000, |i| 60 + i as usize % 1454)
}

pub fn ring_32768(many: Many) -> Res {
    let cfg = Config {
        regions: vec![(mem::BASE, 160 << 20)],
        base: if sys::on_debug_kernel() { 32_000 } else { 0 },
        ..Config::default().num(32768)
    };
    many(cfg, amount(40_000), |i| 60 + i as usize % 7)
}

/// The indices pass 65535, with and without event indices, at every ring size.
pub fn index_wrap(many: Many) -> Res {
    for &num in some(&[1, 64, 2, 256]) {
        for features in [VERSION_1, VERSION_1 | EVENT_IDX, 0] {
            let cfg = Config::with(features)
                .num(num)
                .base(65536u32.wrapping_sub(300) as u16);
            many(cfg, 600, |i| 60 + i as usize % 40)?;
        }
    }
    Ok(())
}

/// The same without help: more packets than 65536.
pub fn index_wrap_long(many: Many) -> Res {
    // Fewer go round only from further on.
    let base = if sys::on_debug_kernel() { 64_000 } else { 0 };
    let cfg = Config::with(VERSION_1 | EVENT_IDX).base(base);
    many(cfg, amount(66_000), |_| 60)
}
