// SPDX-License-Identifier: GPL-2.0

//! The guest: a driver that keeps packets moving, makes mistakes, and writes to its rings while the device
//! reads them.

use std::sync::atomic::fence;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use kselftest::ring::INDIRECT;
use kselftest::ring::NEXT;
use kselftest::ring::WRITE;
use kselftest::RX;

use crate::arena::Slot;
use crate::count::kind;
use crate::packed;
use crate::packed::Driver;
use crate::sys::Rng;
use crate::Place;
use crate::World;

/// A descriptor: address, length, flags.
pub type Desc = (u64, u32, u16);

/// The end of a region's memory that is for indirect tables.
const TABLES: u64 = 1 << 14;

/// A driver of both queues.
pub struct Guest<'a> {
    pub world: &'a World<'a>,
    pub rng: Rng,
    pub queues: [Queue; 2],
}

#[derive(Default)]
pub struct Queue {
    pub epoch: u64,
    /// The available index.
    idx: u16,
    /// The next descriptor to write.
    desc: u16,
    /// The used index that was seen last.
    used: u16,
    /// Where the driver of a packed ring is.
    pub packed: Driver,
}

/// Values that are special somewhere.
fn wild(rng: &mut Rng, slots: &[Slot]) -> u64 {
    let s = rng.pick(slots);
    match rng.below(9) {
        0 => 0,
        1 => u64::MAX - rng.below(20),
        2 => 1 << 63,
        3 => s.gpa + s.size,
        4 => s.gpa.wrapping_sub(1),
        5 => s.hva,
        6 => 0xffff_8880_0000_0000 + rng.below(1 << 30),
        7 => (1 << 47) - 4096 - rng.below(4096),
        _ => rng.next(),
    }
}

impl<'a> Guest<'a> {
    pub fn new(world: &'a World<'a>, part: u64) -> Self {
        Guest {
            world,
            rng: Rng::new(world.seed, part),
            queues: Default::default(),
        }
    }

    /// Drives both queues for ever.
    pub fn drive(&mut self) -> ! {
        loop {
            let busy = [self.step(0), self.step(1)].contains(&true);
            if !busy || self.rng.one_in(64) {
                std::thread::sleep(Duration::from_micros(self.rng.below(1000)));
            }
        }
    }

    /// Offers some chains, if there is room. Returns whether there was.
    fn step(&mut self, q: usize) -> bool {
        let p = self.world.place(q);
        if p.num == 0 {
            return false;
        }
        if p.packed {
            return self.step_packed(q, &p);
        }
        let counts = self.world.counts;
        let state = &mut self.queues[q];
        if state.epoch != p.epoch {
            *state = Queue {
                epoch: p.epoch,
                idx: p.base,
                desc: p.base,
                used: p.base,
                ..Default::default()
            };
        }
        let used = self.world.arena.get_u16(p.used + 2);
        let more = used.wrapping_sub(state.used);
        if more <= p.num {
            counts.used[q].fetch_add(more.into(), Relaxed);
        }
        state.used = used;
        let stops = self.world.err[q].read().unwrap_or(0);
        counts.stops[q].fetch_add(stops, Relaxed);
        // After a fault it goes on behind what was used, most often.
        if stops > 0 && !self.rng.one_in(8) {
            state.idx = used;
            state.desc = used;
        }
        let there = state.idx.wrapping_sub(used);
        let room = p.num.saturating_sub(there);
        let chains = match room {
            0 if self.rng.one_in(50) => 1,
            0 => 0,
            room => 1 + self.rng.below(room.min(32).into()),
        };
        for _ in 0..chains {
            self.chain(q, &p);
        }
        fence(SeqCst);
        let mut idx = self.queues[q].idx;
        if self.rng.one_in(200) {
            idx =
                idx.wrapping_add(
                    self.rng
                        .pick(&[1, p.num, p.num.wrapping_add(1), 0x8000, 0xffff]),
                );
        }
        self.put_u16(p.avail + 2, idx);
        if self.rng.one_in(20) {
            let flags = self.rng.pick(&[0, 0, 1, 0xffff]);
            self.put_u16(p.avail, flags);
        }
        let event = self
            .rng
            .pick(&[used, used, used.wrapping_sub(1), idx, 0x5555]);
        self.put_u16(p.avail + 4 + 2 * u64::from(p.num), event);
        fence(SeqCst);
        if !self.rng.one_in(10) {
            let _ = self.world.kick[q].write(1);
        }
        counts.steps.fetch_add(1, Relaxed);
        chains > 0
    }

    pub fn put_u16(&self, hva: u64, value: u16) {
        self.world.arena.put(hva, &value.to_le_bytes());
    }

    /// Offers a chain, which is good but for one in forty.
    fn chain(&mut self, q: usize, p: &Place) {
        let mask = p.num - 1;
        let (list, bad) = self.list(q, p);
        let first = self.queues[q].desc & mask;
        let count = list.len();
        for (i, (addr, len, mut flags)) in list.into_iter().enumerate() {
            let at = first.wrapping_add(i as u16) & mask;
            let mut next = at.wrapping_add(1) & mask;
            if i + 1 < count {
                flags |= NEXT;
            }
            if bad && self.rng.one_in(4) {
                flags |= NEXT;
                next = self.rng.pick(&[at, first, p.num, 0xffff, 0]);
            }
            self.descriptor(p.desc + 16 * u64::from(at), addr, len, flags, next);
        }
        let queue = &mut self.queues[q];
        queue.desc = queue.desc.wrapping_add(count as u16);
        let slot = p.avail + 4 + 2 * u64::from(queue.idx & mask);
        queue.idx = queue.idx.wrapping_add(1);
        let head = match bad && self.rng.one_in(5) {
            true => self.rng.pick(&[p.num, 0xffff, 0, first.wrapping_sub(1)]),
            false => first,
        };
        self.put_u16(slot, head);
    }

    /// The descriptors of a chain, and whether there is a mistake in it.
    pub fn list(&mut self, q: usize, p: &Place) -> (Vec<Desc>, bool) {
        let mut list = self.buffers(q, p.num);
        let reported = self.rng.one_in(20) && self.reported(q, &mut list);
        let bad = !reported && self.rng.one_in(40);
        if bad {
            self.spoil(&mut list);
        }
        if list.len() > usize::from(p.num.min(4)) || self.rng.one_in(5) {
            list = self.indirect(&list, bad, p.packed);
        }
        (list, bad)
    }

    /// Of a split ring the last two are flags and the next, of a packed one id and flags.
    fn descriptor(&self, hva: u64, addr: u64, len: u32, third: u16, fourth: u16) {
        let mut d = [0; 16];
        d[..8].copy_from_slice(&addr.to_le_bytes());
        d[8..12].copy_from_slice(&len.to_le_bytes());
        d[12..14].copy_from_slice(&third.to_le_bytes());
        d[14..].copy_from_slice(&fourth.to_le_bytes());
        self.world.arena.put(hva, &d);
    }

    /// Buffers of a good packet, all of them in guest memory.
    fn buffers(&mut self, q: usize, num: u16) -> Vec<Desc> {
        let pieces = 1 + self.rng.below(u64::from(num.min(4)));
        let mut list = vec![];
        for i in 0..pieces {
            let slots = &self.world.arena.slots;
            // The first one has room for a header. The rings are in the first halves.
            let slot = self.rng.pick(if i == 0 { &slots[..2] } else { slots });
            let from = if slot.size > 500 << 10 {
                slot.size / 2
            } else {
                0
            };
            let offset = from + self.rng.below(slot.size - from);
            let left = (slot.size - offset - TABLES.min(slot.size - offset - 1)) as u32;
            let want = match (q == RX, self.rng.below(20)) {
                (true, 0) => 1 + self.rng.below(70000) as u32,
                (true, _) => 1700,
                (false, 0) => 1 + self.rng.below(65000) as u32,
                (false, _) => 60 + self.rng.below(1400) as u32,
            };
            let len = left.min(want).max(1);
            if q != RX && i == 0 && len >= 40 {
                // A header that asks for nothing, and a packet of an unknown type.
                let mut start = [0; 40];
                start[12] = 2;
                start[24..26].copy_from_slice(&[0x88, 0xb5]);
                self.world.arena.put(slot.hva + offset, &start);
            }
            list.push((slot.gpa + offset, len, if q == RX { WRITE } else { 0 }));
        }
        list
    }

    /// Makes of a good chain one that drivers in the field were reported to make: none of its ring is wrong. Returns whether
    /// it did.
    fn reported(&mut self, q: usize, list: &mut Vec<Desc>) -> bool {
        let Some(&(addr, _, flags)) = list.first() else {
            return false;
        };
        let arena = self.world.arena;
        let kind = match self.rng.below(4) {
            // The same memory again and again; its end is left for tables.
            0 => {
                let slot = arena.slots[0];
                let len = slot.size / 2 - TABLES;
                let count = (5u64 << 20).div_ceil(len) + self.rng.below(4);
                *list = vec![(slot.gpa + slot.size / 2, len as u32, flags); count as usize];
                kind::HUGE
            }
            1 => {
                *list = vec![(addr, 1 + self.rng.below(11) as u32, flags)];
                kind::SHORT
            }
            _ => {
                let hole = arena.hole;
                let len = 60 + self.rng.below(1600);
                let at = hole.gpa + self.rng.below(hole.size - len);
                // The header, or what comes behind it.
                let piece = (at, len as u32, flags);
                if self.rng.one_in(2) {
                    *list = vec![piece];
                } else {
                    list.truncate(1);
                    list.push(piece);
                }
                kind::HOLE
            }
        };
        if q == RX && kind == kind::HUGE {
            // As a buffer to receive it is as good as any.
            return true;
        }
        self.world.counts.kind(kind);
        true
    }

    /// Puts a mistake into a chain.
    fn spoil(&mut self, list: &mut [Desc]) {
        let slots = &self.world.arena.slots;
        let i = self.rng.below(list.len() as u64) as usize;
        let d = &mut list[i];
        match self.rng.below(6) {
            0 => d.0 = wild(&mut self.rng, slots),
            1 => d.1 = self.rng.pick(&[0, 1, 9, u32::MAX, 1 << 31, 1 << 20]),
            // Across the end of a region.
            2 | 3 => {
                let s = self.rng.pick(slots);
                let inside = 1 + self.rng.below(s.size.min(64));
                d.0 = s.gpa + s.size - inside;
                d.1 = (inside + 1 + self.rng.below(2000)) as u32;
            }
            4 => d.2 ^= WRITE,
            _ => d.2 = self.rng.next() as u16,
        }
    }

    /// Moves a chain into an indirect table.
    fn indirect(&mut self, list: &[Desc], bad: bool, packed: bool) -> Vec<Desc> {
        let slots: Vec<_> = (self.world.arena.slots.iter().copied())
            .filter(|s| s.size > 2 * TABLES)
            .collect();
        let slot = self.rng.pick(&slots);
        let mut offset = slot.size - TABLES + self.rng.below(TABLES - 1024);
        if bad && self.rng.one_in(3) {
            // The table ends where the region does, or would go on behind it.
            offset = slot.size - 16 * list.len() as u64;
        }
        for (i, &(addr, len, mut flags)) in list.iter().enumerate() {
            if i + 1 < list.len() {
                flags |= NEXT;
            }
            if bad && self.rng.one_in(6) {
                flags |= self.rng.pick(&[INDIRECT, NEXT]);
            }
            let (third, fourth) = match packed {
                true => (i as u16 + 1, flags),
                false => (flags, i as u16 + 1),
            };
            let at = slot.hva + offset + 16 * i as u64;
            self.descriptor(at, addr, len, third, fourth);
        }
        let mut len = 16 * list.len() as u32;
        if bad && self.rng.one_in(3) {
            len = self.rng.pick(&[
                0,
                1,
                15,
                16,
                len + 16,
                len + 1,
                1 << 20,
                1 << 21,
                u32::MAX & !15,
            ]);
        }
        vec![(slot.gpa + offset, len, INDIRECT)]
    }

    /// Writes to the rings and tables at random, for ever.
    pub fn poke(&mut self) -> ! {
        let arena = self.world.arena;
        loop {
            for _ in 0..self.rng.below(6) {
                let q = self.rng.below(2) as usize;
                let p = self.world.place(q);
                if p.num == 0 {
                    continue;
                }
                let i = self.rng.below(p.num.into());
                let value = match self.rng.below(3) {
                    0 => wild(&mut self.rng, &arena.slots),
                    1 => self.rng.below(8),
                    _ => self.rng.next(),
                };
                let bytes = &value.to_le_bytes();
                match self.rng.below(12) {
                    0 => arena.put(p.desc + 16 * i, bytes),
                    1 => arena.put(p.desc + 16 * i + 8, &bytes[..4]),
                    2 => arena.put(p.desc + 16 * i + 12, &bytes[..2]),
                    // The flags of a packed ring: now and then such as it has.
                    3 if p.packed && self.rng.one_in(2) => {
                        let flags = packed::wild_flags(&mut self.rng);
                        self.put_u16(p.desc + 16 * i + 14, flags);
                    }
                    3 => arena.put(p.desc + 16 * i + 14, &bytes[..2]),
                    4 => arena.put(p.avail + 4 + 2 * i, &bytes[..2]),
                    5 => arena.put(p.avail, &bytes[..2]),
                    6 if self.rng.one_in(4) => arena.put(p.avail + 2, &bytes[..2]),
                    7 => arena.put(p.used, &bytes[..2]),
                    8 if self.rng.one_in(4) => arena.put(p.used + 2, &bytes[..2]),
                    9 => arena.put(p.used + 4 + 8 * i, bytes),
                    _ => {
                        let s = self.rng.pick(&arena.slots);
                        if s.size > 2 * TABLES {
                            arena.put(s.hva + s.size - TABLES + self.rng.below(TABLES - 8), bytes);
                        }
                    }
                }
                self.world.counts.pokes.fetch_add(1, Relaxed);
            }
            std::thread::sleep(Duration::from_micros(self.rng.below(4000)));
        }
    }
}
