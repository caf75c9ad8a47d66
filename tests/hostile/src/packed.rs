// SPDX-License-Identifier: GPL-2.0

//! A driver of packed rings that is as bad as the one of split rings.

use std::collections::VecDeque;
use std::sync::atomic::fence;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::Ordering::SeqCst;

use kselftest::packed::Spot;
use kselftest::packed::AVAIL;
use kselftest::packed::USED;
use kselftest::ring::NEXT;
use kselftest::ring::WRITE;

use crate::arena::Arena;
use crate::guest::Guest;
use crate::sys::Rng;
use crate::Place;

/// Where a driver is in a packed ring: behind how many descriptors.
#[derive(Default)]
pub struct Driver {
    /// The next to make available.
    avail: u64,
    /// The next to look at for a used one.
    used: u64,
    /// The id of each chain that the device has, and how many descriptors it has.
    chains: VecDeque<(u16, u16)>,
}

/// What SET_VRING_BASE says of a ring that starts where this one does.
pub fn base(p: &Place) -> u32 {
    Spot::new(p.base.into(), p.num.max(1)).base()
}

/// Behind how many descriptors a device is that says this of its base.
pub fn position(base: u32, num: u16) -> u16 {
    let lap = if base & 0x8000 != 0 { 0 } else { num };
    (base as u16 & 0x7fff).wrapping_add(lap)
}

/// Makes no descriptor available.
pub fn clear(arena: &Arena, p: &Place) {
    let start = Spot::new(p.base.into(), p.num.max(1));
    for i in 0..p.num {
        let lap = match i < start.index() {
            true => start,
            false => start.before(p.num.into()),
        };
        arena.put(p.desc + 16 * u64::from(i) + 14, &lap.used().to_le_bytes());
    }
}

/// Flags that a descriptor may have, at the wrong time.
pub fn wild_flags(rng: &mut Rng) -> u16 {
    let whose = rng.pick(&[AVAIL, USED, AVAIL | USED, 0]);
    whose | rng.pick(&[0, NEXT, WRITE, NEXT | WRITE, 4])
}

impl Guest<'_> {
    /// Offers some chains on a packed ring, if there is room. Returns whether there was.
    pub fn step_packed(&mut self, q: usize, p: &Place) -> bool {
        let counts = self.world.counts;
        if self.queues[q].epoch != p.epoch {
            self.queues[q].epoch = p.epoch;
            let at = p.base.into();
            self.queues[q].packed = Driver {
                avail: at,
                used: at,
                chains: VecDeque::new(),
            };
        }
        let used = self.look(q, p);
        counts.used[q].fetch_add(used, Relaxed);
        counts.packed[q].fetch_add(used, Relaxed);
        let stops = self.world.err[q].read().unwrap_or(0);
        counts.stops[q].fetch_add(stops, Relaxed);
        let driver = &mut self.queues[q].packed;
        // After a fault it goes on behind what was used, most often.
        if stops > 0 && !self.rng.one_in(8) {
            driver.avail = driver.used;
            driver.chains.clear();
        }
        let there = driver.avail - driver.used;
        let room = u64::from(p.num).saturating_sub(there);
        let chains = match room {
            0 if self.rng.one_in(50) => 1,
            0 => 0,
            room => 1 + self.rng.below(room.min(32)),
        };
        let mut offered = false;
        for _ in 0..chains {
            let (list, bad) = self.list(q, p);
            let driver = &self.queues[q].packed;
            let there = (driver.avail - driver.used) as usize;
            if there + list.len() > usize::from(p.num) && !self.rng.one_in(200) {
                break;
            }
            self.chain_packed(q, p, &list, bad);
            offered = true;
        }
        self.ask(q, p);
        if !self.rng.one_in(10) {
            let _ = self.world.kick[q].write(1);
        }
        counts.steps.fetch_add(1, Relaxed);
        offered
    }

    /// Takes what was used. Returns how many chains those were.
    fn look(&mut self, q: usize, p: &Place) -> u64 {
        let arena = self.world.arena;
        let driver = &mut self.queues[q].packed;
        let mut count = 0;
        while !driver.chains.is_empty() {
            let spot = Spot::new(driver.used, p.num);
            let at = p.desc + 16 * u64::from(spot.index());
            if arena.get_u16(at + 14) & (AVAIL | USED) != spot.used() {
                break;
            }
            fence(SeqCst);
            let id = arena.get_u16(at + 12);
            // Used in order, it stands for all before it. What it does not have is somebody else's mistake.
            let Some(last) = driver.chains.iter().position(|c| c.0 == id) else {
                break;
            };
            let all: Vec<_> = driver.chains.drain(..=last).collect();
            driver.used += all.iter().map(|c| u64::from(c.1)).sum::<u64>();
            count += all.len() as u64;
        }
        count
    }

    /// Offers a chain: all but its first descriptor, and then that, most often.
    fn chain_packed(&mut self, q: usize, p: &Place, list: &[(u64, u32, u16)], bad: bool) {
        let start = Spot::new(self.queues[q].packed.avail, p.num);
        let id = match bad && self.rng.one_in(5) {
            true => self.rng.next() as u16,
            false => start.index(),
        };
        let last = list.len() - 1;
        let mut order: Vec<_> = (0..list.len()).rev().collect();
        if self.rng.one_in(10) {
            order.reverse();
        }
        for i in order {
            let (addr, len, mut flags) = list[i];
            let spot = start.after(i);
            flags |= spot.avail() | if i < last { NEXT } else { 0 };
            if bad && self.rng.one_in(4) {
                flags ^= self.rng.pick(&[AVAIL, USED, AVAIL | USED, NEXT, 4]);
            }
            let mut d = [0; 14];
            d[..8].copy_from_slice(&addr.to_le_bytes());
            d[8..12].copy_from_slice(&len.to_le_bytes());
            let named = if i == last {
                id
            } else {
                self.rng.next() as u16
            };
            d[12..].copy_from_slice(&named.to_le_bytes());
            let at = p.desc + 16 * u64::from(spot.index());
            self.world.arena.put(at, &d);
            fence(SeqCst);
            self.put_u16(at + 14, flags);
        }
        let driver = &mut self.queues[q].packed;
        driver.avail += list.len() as u64;
        driver.chains.push_back((id, list.len() as u16));
    }

    /// Asks for calls, in one way or another.
    fn ask(&mut self, q: usize, p: &Place) {
        fence(SeqCst);
        let driver = &self.queues[q].packed;
        let (used, avail) = (driver.used, driver.avail);
        let place = self.rng.pick(&[used, used, used + 1, avail, 0x5555]);
        let place = match self.rng.one_in(20) {
            true => self.rng.next() as u16,
            false => Spot::new(place, p.num).half(),
        };
        self.put_u16(p.avail, place);
        let flags = self.rng.pick(&[0, 0, 1, 2, 2, 2, 3, 0xffff]);
        self.put_u16(p.avail + 2, flags);
        fence(SeqCst);
    }
}
