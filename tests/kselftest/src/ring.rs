// SPDX-License-Identifier: GPL-2.0

//! The driver's side of a virtqueue, split or packed.

mod used;

use std::collections::VecDeque;
use std::sync::atomic::fence;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::feature::EVENT_IDX;
use crate::feature::IN_ORDER;
use crate::feature::RING_PACKED;
use crate::packed::Packed;
use crate::sys::page_size;
use crate::Config;
use crate::Mem;
use crate::Res;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seg {
    pub gpa: u64,
    pub len: u32,
    /// The device writes it.
    pub write: bool,
}

impl Seg {
    /// A buffer that the device reads.
    pub fn r(gpa: u64, len: usize) -> Self {
        Seg {
            gpa,
            len: len as u32,
            write: false,
        }
    }

    /// A buffer that the device writes.
    pub fn w(gpa: u64, len: usize) -> Self {
        Seg {
            gpa,
            len: len as u32,
            write: true,
        }
    }
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Used {
    pub id: u32,
    pub len: u32,
}

/// A virtqueue, as the guest's driver holds it.
///
/// Its indices count chains in both formats. In a packed ring `avail` is the driver's event suppression area and `used` the
/// device's, and a chain's head is the id of its buffer.
pub struct Ring {
    mem: Arc<Mem>,
    pub num: u16,
    pub event_idx: bool,
    /// The device uses chains in order, and may write one entry for many.
    pub in_order: bool,
    /// All fields are big-endian.
    pub big_endian: bool,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// Where a packed ring stands; none if it is split.
    packed: Option<Packed>,
    /// Next entry of the avail ring to fill.
    pub avail_idx: u16,
    /// What was published when the device was last told.
    told: u16,
    /// Next entry of the used ring to look at.
    pub used_idx: u16,
    /// Descriptors of a split ring. In a packed one any may be taken for any chain, which has as many of them as it is long.
    free: Vec<u16>,
    /// The descriptors of each chain that the device has, by its head.
    chains: Vec<Vec<u16>>,
    /// How many bytes the device may write to each chain, by its head.
    room: Vec<u32>,
    /// The heads that the device has, in the order they were offered.
    order: VecDeque<u16>,
    /// What is left of an entry that stands for many chains.
    batch: VecDeque<Used>,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
}

impl Ring {
    /// A queue of `num` entries in fresh guest memory.
    pub fn new(mem: &Arc<Mem>, num: u16, cfg: &Config) -> Res<Self> {
        let n = usize::from(num);
        let packed = cfg.features & RING_PACKED != 0;
        let (avail_len, used_len) = if packed {
            (4, 4)
        } else {
            (6 + 2 * n, 6 + 8 * n)
        };
        // In pages of their own, which can be taken away.
        let page = page_size();
        let desc = mem.alloc(16 * n, page as u64);
        let avail = mem.alloc(avail_len, page as u64);
        let used = mem.alloc(used_len, page as u64);
        let mut ring = Ring {
            mem: mem.clone(),
            num,
            event_idx: cfg.features & EVENT_IDX != 0,
            in_order: cfg.features & IN_ORDER != 0,
            big_endian: cfg.big_endian,
            desc,
            avail,
            used,
            packed: packed.then(|| Packed::new(mem, num, desc, avail, used)),
            avail_idx: 0,
            told: 0,
            used_idx: 0,
            free: vec![],
            chains: vec![],
            room: vec![],
            order: VecDeque::new(),
            batch: VecDeque::new(),
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            err: EventFd::new(EFD_NONBLOCK)?,
        };
        // What follows the last ring belongs to no one: a write past the end is visible there.
        mem.alloc(page, page as u64);
        ring.reset(cfg.base);
        Ok(ring)
    }

    /// Forgets every chain and starts again at `base`, as a driver does after a device reset.
    pub fn reset(&mut self, base: u16) {
        let n = usize::from(self.num);
        let (avail_len, used_len) = match self.packed {
            Some(_) => (4, 4),
            None => (6 + 2 * n, 6 + 8 * n),
        };
        self.mem.fill(self.desc, 16 * n, 0);
        self.mem.fill(self.avail, avail_len, 0);
        self.mem.fill(self.used, used_len, 0);
        // In order, the first chain's descriptor is the one that the base names.
        let first = if self.in_order { base } else { 0 };
        let id = |i: u16| ((u32::from(first) + u32::from(i)) % u32::from(self.num)) as u16;
        self.free = (0..self.num).rev().map(id).collect();
        self.chains = vec![vec![]; n];
        self.room = vec![0; n];
        self.order.clear();
        self.batch.clear();
        self.avail_idx = base;
        self.told = base;
        self.used_idx = base;
        match &mut self.packed {
            Some(packed) => packed.reset(base.into()),
            None => {
                self.set_u16(self.used + 2, base);
                self.publish();
            }
        }
        self.set_used_event(base);
        while self.err.read().is_ok() {}
        while self.call.read().is_ok() {}
        while self.kick.read().is_ok() {}
    }

    /// What only a packed ring has.
    pub fn packed(&self) -> &Packed {
        self.packed.as_ref().expect("a packed ring")
    }

    /// The same, to write it.
    pub fn packed_mut(&mut self) -> &mut Packed {
        self.packed.as_mut().expect("a packed ring")
    }

    /// What GET_VRING_BASE says of a device that has taken nothing but what the driver saw used.
    pub fn base(&self) -> u32 {
        match &self.packed {
            Some(packed) => packed.used.base(),
            None => self.used_idx.into(),
        }
    }

    fn u16_at(&self, gpa: u64) -> &AtomicU16 {
        let (p, left) = self.mem.hva(gpa);
        assert!(left >= 2);
        // SAFETY: two bytes are mapped there, aligned, as long as `mem` lives.
        unsafe { AtomicU16::from_ptr(p.cast()) }
    }

    fn u32_at(&self, gpa: u64) -> &AtomicU32 {
        let (p, left) = self.mem.hva(gpa);
        assert!(left >= 4);
        // SAFETY: four bytes are mapped there, aligned, as long as `mem` lives.
        unsafe { AtomicU32::from_ptr(p.cast()) }
    }

    fn set_u16(&self, gpa: u64, value: u16) {
        let value = if self.big_endian {
            value.to_be()
        } else {
            value.to_le()
        };
        self.u16_at(gpa).store(value, Ordering::Release);
    }

    fn get_u16(&self, gpa: u64) -> u16 {
        let value = self.u16_at(gpa).load(Ordering::Acquire);
        if self.big_endian {
            u16::from_be(value)
        } else {
            u16::from_le(value)
        }
    }

    fn get_u32(&self, gpa: u64) -> u32 {
        let value = self.u32_at(gpa).load(Ordering::Relaxed);
        if self.big_endian {
            u32::from_be(value)
        } else {
            u32::from_le(value)
        }
    }

    /// Writes a descriptor, of a split ring's table or of an indirect one of any ring, whatever its content. In a packed ring
    /// `next` means nothing.
    pub fn put_desc(&self, table: u64, i: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let (third, fourth) = match self.packed {
            Some(_) => (next, flags),
            None => (flags, next),
        };
        let mut d = [0; 16];
        d[..8].copy_from_slice(&addr.to_le_bytes());
        d[8..12].copy_from_slice(&len.to_le_bytes());
        d[12..14].copy_from_slice(&third.to_le_bytes());
        d[14..].copy_from_slice(&fourth.to_le_bytes());
        if self.big_endian {
            for field in [0..8, 8..12, 12..14, 14..16] {
                d[field].reverse();
            }
        }
        self.mem.write(table + 16 * u64::from(i), &d);
    }

    /// Writes an indirect table. In that of a packed ring all descriptors belong to the chain.
    pub fn put_table(&self, table: u64, segs: &[Seg]) {
        for (i, s) in segs.iter().enumerate() {
            let next = match self.packed.is_none() && i + 1 < segs.len() {
                true => NEXT,
                false => 0,
            };
            let write = if s.write { WRITE } else { 0 };
            self.put_desc(table, i as u16, s.gpa, s.len, next | write, i as u16 + 1);
        }
    }

    /// How many descriptors are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The heads of the chains that the device has.
    pub fn held(&self) -> Vec<u16> {
        (0..self.num)
            .filter(|&h| !self.chains[usize::from(h)].is_empty())
            .collect()
    }

    /// Puts a chain on the avail ring, not yet visible to the device. Returns its head.
    pub fn add(&mut self, segs: &[Seg]) -> u16 {
        let list: Vec<_> = segs
            .iter()
            .map(|s| (s.gpa, s.len, if s.write { WRITE } else { 0 }))
            .collect();
        self.add_raw(&list)
    }

    /// Puts a chain of one indirect descriptor on the avail ring; its table is written to `table`.
    pub fn add_indirect(&mut self, segs: &[Seg], table: u64) -> u16 {
        self.put_table(table, segs);
        let head = self.add_raw(&[(table, 16 * segs.len() as u32, INDIRECT)]);
        let written = segs.iter().filter(|s| s.write);
        self.room[usize::from(head)] = written.map(|s| s.len).sum();
        head
    }

    /// Puts a chain of descriptors (address, length, flags except NEXT) on the avail ring.
    pub fn add_raw(&mut self, list: &[(u64, u32, u16)]) -> u16 {
        assert!(
            !list.is_empty() && list.len() <= self.free.len(),
            "no free descriptors"
        );
        let ids: Vec<u16> = list.iter().map(|_| self.free.pop().unwrap()).collect();
        let head = ids[0];
        if let Some(packed) = &mut self.packed {
            packed.add(list, head);
        } else {
            for (i, &(addr, len, flags)) in list.iter().enumerate() {
                let next = ids.get(i + 1).copied();
                let flags = flags | if next.is_some() { NEXT } else { 0 };
                self.put_desc(self.desc, ids[i], addr, len, flags, next.unwrap_or(0xdead));
            }
        }
        self.chains[usize::from(head)] = ids;
        let written = list.iter().filter(|d| d.2 & WRITE != 0);
        self.room[usize::from(head)] = written.map(|d| d.1).sum();
        self.offer(head);
        head
    }

    /// Puts a head on the avail ring, not yet visible to the device.
    pub fn offer(&mut self, head: u16) {
        if self.packed.is_none() {
            let slot = self.avail + 4 + 2 * u64::from(self.avail_idx & (self.num - 1));
            self.set_u16(slot, head);
        }
        self.order.push_back(head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Offers a chain that the driver has kept: a split ring still has its descriptors, a packed one needs them once more
    /// (address, length, flags except NEXT).
    pub fn offer_again(&mut self, head: u16, list: &[(u64, u32, u16)]) {
        if let Some(packed) = &mut self.packed {
            packed.add(list, head);
        }
        self.offer(head);
    }

    /// What was offered and is not yet visible to the device is the driver's again. The chains keep their heads.
    pub fn take_back(&mut self) {
        self.avail_idx = self.used_idx;
        self.order.clear();
        if let Some(packed) = &mut self.packed {
            packed.take_back();
        }
    }

    /// All that was offered is used. The chains keep their heads.
    pub fn take_all(&mut self) {
        self.used_idx = self.avail_idx;
        self.order.clear();
        if let Some(packed) = &mut self.packed {
            packed.used = packed.avail;
        }
    }

    /// Makes what was offered visible to the device.
    pub fn publish(&mut self) {
        match &mut self.packed {
            Some(packed) => packed.publish(),
            None => self.set_u16(self.avail + 2, self.avail_idx),
        }
    }

    /// Sets the index that the device sees to any value.
    pub fn publish_idx(&self, idx: u16) {
        self.split();
        self.set_u16(self.avail + 2, idx);
    }

    /// Does the device want to be told of what was published since it was last told?
    pub fn wants_kick(&self) -> bool {
        fence(Ordering::SeqCst);
        if let Some(packed) = &self.packed {
            packed.wants_kick()
        } else if self.event_idx {
            let event = self.avail_event();
            let (new, old) = (self.avail_idx, self.told);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used_flags() & 1 == 0
        }
    }

    /// Does the device want to be told of the very next chain?
    pub fn wants_next(&self) -> bool {
        match &self.packed {
            Some(packed) => packed.wants_next(),
            None if self.event_idx => self.avail_event() == self.avail_idx,
            None => self.used_flags() & 1 == 0,
        }
    }

    /// Publishes, and tells the device if it asked for that.
    pub fn submit(&mut self) {
        self.publish();
        if self.wants_kick() {
            self.kick();
        }
        self.told = self.avail_idx;
        if let Some(packed) = &mut self.packed {
            packed.tell();
        }
    }

    /// Tells the device, asked or not.
    pub fn kick(&self) {
        self.kick.write(1).expect("kick");
    }

    /// The used ring's flags: 1, no kicks wanted.
    pub fn used_flags(&self) -> u16 {
        match &self.packed {
            Some(packed) => packed.device_event().0,
            None => self.get_u16(self.used),
        }
    }

    fn split(&self) {
        assert!(self.packed.is_none(), "only a split ring has this");
    }

    /// The index that an avail index has to pass before the device wants a kick.
    pub fn avail_event(&self) -> u16 {
        self.split();
        self.get_u16(self.used + 4 + 8 * u64::from(self.num))
    }

    /// Sets the avail ring's flags: 1, no calls wanted.
    pub fn set_avail_flags(&self, flags: u16) {
        match &self.packed {
            Some(packed) => packed.set_driver_event(flags, 0),
            None => self.set_u16(self.avail, flags),
        }
    }

    /// Asks for a call when the used index passes `idx`. In a packed ring that is where its chain is, if they are used in order;
    /// those that are not yet there are taken to have one descriptor.
    pub fn set_used_event(&self, idx: u16) {
        if let Some(packed) = &self.packed {
            let ahead = idx.wrapping_sub(self.used_idx) as i16;
            let length = |&h: &u16| self.chains[usize::from(h)].len() - 1;
            let more: usize = self
                .order
                .iter()
                .take(ahead.max(0) as usize)
                .map(length)
                .sum();
            let spot = match usize::try_from(ahead) {
                Ok(ahead) => packed.used.after(ahead + more),
                Err(_) => packed.used.before(ahead.unsigned_abs().into()),
            };
            if self.event_idx {
                packed.call_at(spot);
            }
            return;
        }
        self.set_u16(self.avail + 4 + 2 * u64::from(self.num), idx);
        fence(Ordering::SeqCst);
    }
}
