// SPDX-License-Identifier: GPL-2.0

//! Guest memory, and what lies around it.
//!
//! Regions of odd sizes lie at odd addresses in an arena, all of whose other bytes are canaries. So do the
//! marks of the dirty log. The arena is shared with the children that use it, and so can be looked at when
//! they are dead.

use kselftest::sys::page_size;
use kselftest::sys::Region;
use kselftest::Res;

use crate::sys::forbid;
use crate::sys::protect;
use crate::sys::shared;
use crate::sys::Rng;
use crate::sys::PAGE;

/// The size of the arena.
const SIZE: usize = 5 << 20;
/// How many regions there are. The first two have room for rings.
pub const SLOTS: usize = 8;
/// The guest address of the first region, or a bit more.
const GPA: u64 = 0x10_0000;
/// The guest pages behind a region that the log of a used ring may reach.
const LOG_SLACK: u64 = 40;
/// The size of the hole.
const HOLE: usize = 64 << 10;
/// The size of the log: more than all regions need.
const LOG: usize = 1 << 12;

/// The size of the log with what is around it: whole pages of this machine.
fn log_room() -> usize {
    (2 * PAGE + LOG).next_multiple_of(page_size())
}

/// A region that a memory table may name, or part of.
#[derive(Clone, Copy)]
pub struct Slot {
    pub gpa: u64,
    pub hva: u64,
    pub size: u64,
}

impl Slot {
    pub fn region(&self) -> Region {
        Region {
            gpa: self.gpa,
            size: self.size,
            hva: self.hva,
            flags: 0,
        }
    }
}

/// What was written that is not guest memory.
pub struct Damage {
    pub what: String,
    /// The first byte, unless it is in the log.
    pub hva: Option<u64>,
}

pub struct Arena {
    start: *mut u8,
    pattern: Vec<u8>,
    pub slots: Vec<Slot>,
    /// Guest memory that is not always there: what may be done with it changes. Only the device goes there.
    pub hole: Slot,
    log: *mut u8,
    /// Where the device is told that the log is.
    pub log_base: u64,
}

// SAFETY: the pointers are to shared mappings that are never taken away; `put` and `get` copy.
unsafe impl Sync for Arena {}

impl Arena {
    pub fn new() -> Res<Self> {
        let start = shared(SIZE)?;
        // Behind the log there is nothing for a while: guest addresses that no region has are marked there.
        let room = log_room();
        let log = shared(room + (64 << 20))?;
        forbid(log.wrapping_add(room), 64 << 20)?;
        let mut rng = Rng::new(0x5eed, 0);
        let hole = shared(HOLE)?;
        Ok(Arena {
            start,
            pattern: (0..SIZE / 8)
                .flat_map(|_| rng.next().to_le_bytes())
                .collect(),
            slots: vec![],
            hole: Slot {
                gpa: 0,
                hva: hole as u64,
                size: HOLE as u64,
            },
            log,
            log_base: 0,
        })
    }

    /// Lays the regions out anew, and fills all that is around them.
    pub fn lay_out(&mut self, rng: &mut Rng) {
        self.slots.clear();
        let (mut at, mut gpa) = (
            1 + rng.below(2 * PAGE as u64),
            GPA + rng.below(3 * PAGE as u64),
        );
        for i in 0..SLOTS {
            let size = match (i, rng.below(3)) {
                (0 | 1, _) => (600 << 10) + rng.below(200 << 10),
                (_, 0) => 1 + rng.below(200),
                (_, 1) => 1 + rng.below(3 * PAGE as u64),
                _ => 1 + rng.below(256 << 10),
            };
            let hva = self.start as u64 + at;
            self.slots.push(Slot { gpa, hva, size });
            at += size + if rng.one_in(3) { 64 } else { PAGE as u64 } + rng.below(2 * PAGE as u64);
            gpa += size;
            // Some follow each other, as the guest sees it.
            if !rng.one_in(3) {
                gpa += (LOG_SLACK + 10 + rng.below(100)) * PAGE as u64 + rng.below(PAGE as u64);
            }
        }
        self.hole.gpa = gpa.next_multiple_of(PAGE as u64);
        gpa = self.hole.gpa + self.hole.size;
        assert!((at as usize) < SIZE && (gpa as usize) < (LOG - 64) * 8 * PAGE);
        // SAFETY: both are that long, and ours.
        unsafe {
            self.start.copy_from(self.pattern.as_ptr(), SIZE);
            self.log.write_bytes(0, log_room());
        }
        self.log_base = self.log as u64 + PAGE as u64 + rng.below(60);
    }

    /// The regions, and the hole.
    pub fn everything(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().chain([&self.hole])
    }

    /// Changes what may be done with some pages of the hole, in this process.
    pub fn dig(&self, rng: &mut Rng) -> Res {
        let page = page_size();
        let pages = HOLE / page;
        let first = rng.below(pages as u64) as usize;
        let count = 1 + rng.below((pages - first) as u64) as usize;
        let prot = rng.pick(&[
            libc::PROT_NONE,
            libc::PROT_READ,
            libc::PROT_READ | libc::PROT_WRITE,
        ]);
        let at = (self.hole.hva as *mut u8).wrapping_add(first * page);
        protect(at, count * page, prot)
    }

    /// Whether `len` bytes at `hva` are within one region.
    pub fn holds(&self, hva: u64, len: u64) -> bool {
        let inside =
            |s: &Slot| hva >= s.hva && hva - s.hva <= s.size && len <= s.size - (hva - s.hva);
        self.slots.iter().any(inside)
    }

    /// Writes to a region. Others write there too.
    pub fn put(&self, hva: u64, data: &[u8]) {
        assert!(
            self.holds(hva, data.len() as u64),
            "the guest leaves its memory"
        );
        // SAFETY: looked at above; nobody relies on what is there.
        unsafe { (hva as *mut u8).copy_from(data.as_ptr(), data.len()) }
    }

    /// Reads two bytes of a region.
    pub fn get_u16(&self, hva: u64) -> u16 {
        assert!(self.holds(hva, 2), "the guest leaves its memory");
        // SAFETY: looked at above; any bytes will do.
        unsafe { (hva as *const u16).read_unaligned() }
    }

    /// The region that has this guest address.
    pub fn find(&self, gpa: u64) -> Option<&Slot> {
        self.slots
            .iter()
            .find(|s| gpa >= s.gpa && gpa - s.gpa < s.size)
    }

    /// What was written that is not guest memory; nothing, if all is well.
    pub fn damage(&self) -> Option<Damage> {
        // SAFETY: it is that long. Whoever used it is dead.
        let now = unsafe { std::slice::from_raw_parts(self.start, SIZE) };
        let mut from = 0;
        let ends =
            (self.slots.iter()).map(|s| ((s.hva - self.start as u64) as usize, s.size as usize));
        for (number, (begin, len)) in ends.chain([(SIZE, 0)]).enumerate() {
            if now[from..begin] != self.pattern[from..begin] {
                let bad = |i: &usize| now[*i] != self.pattern[*i];
                let (first, count) = ((from..begin).find(bad)?, (from..begin).filter(bad).count());
                let what = format!(
                    "{count} bytes between regions {} and {number}, the first {} behind the one and {} before \
                     the other: {:02x?}",
                    number as isize - 1,
                    first - from,
                    begin - first,
                    &now[first..begin.min(first + 24)]
                );
                let hva = Some(self.start as u64 + first as u64);
                return Some(Damage { what, hva });
            }
            from = begin + len;
        }
        let what = self.marks()?;
        Some(Damage { what, hva: None })
    }

    /// Marks in the log for what is no guest memory.
    fn marks(&self) -> Option<String> {
        let skew = (self.log_base - self.log as u64) as usize;
        // SAFETY: it is that long.
        let log = unsafe { std::slice::from_raw_parts(self.log, log_room()) };
        let page = PAGE as u64;
        for (i, byte) in log.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            let Some(first) = i.checked_sub(skew) else {
                return Some(format!("marks {byte:#x} {} bytes before the log", skew - i));
            };
            for number in (0..8)
                .filter(|bit| byte >> bit & 1 != 0)
                .map(|bit| first as u64 * 8 + bit)
            {
                let may = |s: &Slot| {
                    (s.gpa / page..=(s.gpa + s.size - 1) / page + LOG_SLACK).contains(&number)
                };
                if !self.everything().any(may) {
                    return Some(format!(
                        "a mark for guest page {number:#x}, which no region has"
                    ));
                }
            }
        }
        None
    }

    /// How many pages are marked.
    pub fn marked(&self) -> u64 {
        // SAFETY: it is that long.
        let log = unsafe { std::slice::from_raw_parts(self.log, log_room()) };
        log.iter().map(|b| u64::from(b.count_ones())).sum()
    }
}
