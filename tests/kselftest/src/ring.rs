// SPDX-License-Identifier: GPL-2.0

//! The driver's side of a split virtqueue.

use std::sync::atomic::fence;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::sys::readable;
use crate::Fail;
use crate::Mem;
use crate::Res;
use crate::PATIENCE;

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

/// A split virtqueue, as the guest's driver holds it.
pub struct Ring {
    mem: Arc<Mem>,
    pub num: u16,
    pub event_idx: bool,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    /// Next entry of the avail ring to fill.
    pub avail_idx: u16,
    /// What was published when the device was last told.
    told: u16,
    /// Next entry of the used ring to look at.
    pub used_idx: u16,
    free: Vec<u16>,
    /// The descriptors of each chain that the device has, by its head.
    chains: Vec<Vec<u16>>,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
}

impl Ring {
    /// A queue of `num` entries in fresh guest memory that starts counting at `base`.
    pub fn new(mem: &Arc<Mem>, num: u16, event_idx: bool, base: u16) -> Res<Self> {
        let n = usize::from(num);
        let mut ring = Ring {
            mem: mem.clone(),
            num,
            event_idx,
            desc: mem.alloc(16 * n, 4096),
            avail: mem.alloc(6 + 2 * n, 4096),
            used: mem.alloc(6 + 8 * n, 4096),
            avail_idx: 0,
            told: 0,
            used_idx: 0,
            free: vec![],
            chains: vec![],
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            err: EventFd::new(EFD_NONBLOCK)?,
        };
        // What follows the last ring belongs to no one: a write past the end is visible there.
        mem.alloc(4096, 4096);
        ring.reset(base);
        Ok(ring)
    }

    /// Forgets every chain and starts again at `base`, as a driver does after a device reset.
    pub fn reset(&mut self, base: u16) {
        let n = usize::from(self.num);
        self.mem.fill(self.desc, 16 * n, 0);
        self.mem.fill(self.avail, 6 + 2 * n, 0);
        self.mem.fill(self.used, 6 + 8 * n, 0);
        self.free = (0..self.num).rev().collect();
        self.chains = vec![vec![]; n];
        self.avail_idx = base;
        self.told = base;
        self.used_idx = base;
        self.u16_at(self.used + 2).store(base, Ordering::Release);
        self.publish();
        self.set_used_event(base);
        while self.err.read().is_ok() {}
        while self.call.read().is_ok() {}
        while self.kick.read().is_ok() {}
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

    /// Writes a descriptor, of the table or of an indirect one, whatever its content.
    pub fn put_desc(&self, table: u64, i: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut d = [0; 16];
        d[..8].copy_from_slice(&addr.to_le_bytes());
        d[8..12].copy_from_slice(&len.to_le_bytes());
        d[12..14].copy_from_slice(&flags.to_le_bytes());
        d[14..].copy_from_slice(&next.to_le_bytes());
        self.mem.write(table + 16 * u64::from(i), &d);
    }

    /// Writes an indirect table.
    pub fn put_table(&self, table: u64, segs: &[Seg]) {
        for (i, s) in segs.iter().enumerate() {
            let next = if i + 1 < segs.len() { NEXT } else { 0 };
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
        self.add_raw(&[(table, 16 * segs.len() as u32, INDIRECT)])
    }

    /// Puts a chain of descriptors (address, length, flags except NEXT) on the avail ring.
    pub fn add_raw(&mut self, list: &[(u64, u32, u16)]) -> u16 {
        assert!(
            !list.is_empty() && list.len() <= self.free.len(),
            "no free descriptors"
        );
        let ids: Vec<u16> = list.iter().map(|_| self.free.pop().unwrap()).collect();
        for (i, &(addr, len, flags)) in list.iter().enumerate() {
            let next = ids.get(i + 1).copied();
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            self.put_desc(self.desc, ids[i], addr, len, flags, next.unwrap_or(0xdead));
        }
        let head = ids[0];
        self.chains[usize::from(head)] = ids;
        self.offer(head);
        head
    }

    /// Puts a head on the avail ring, not yet visible to the device.
    pub fn offer(&mut self, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.avail_idx & (self.num - 1));
        self.u16_at(slot).store(head, Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Makes what was offered visible to the device.
    pub fn publish(&self) {
        self.u16_at(self.avail + 2)
            .store(self.avail_idx, Ordering::Release);
    }

    /// Sets the index that the device sees to any value.
    pub fn publish_idx(&self, idx: u16) {
        self.u16_at(self.avail + 2).store(idx, Ordering::Release);
    }

    /// Does the device want to be told of what was published since it was last told?
    pub fn wants_kick(&self) -> bool {
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.avail_event();
            let (new, old) = (self.avail_idx, self.told);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used_flags() & 1 == 0
        }
    }

    /// Publishes, and tells the device if it asked for that.
    pub fn submit(&mut self) {
        self.publish();
        if self.wants_kick() {
            self.kick();
        }
        self.told = self.avail_idx;
    }

    /// Tells the device, asked or not.
    pub fn kick(&self) {
        self.kick.write(1).expect("kick");
    }

    /// The used ring's flags: 1, no kicks wanted.
    pub fn used_flags(&self) -> u16 {
        self.u16_at(self.used).load(Ordering::Acquire)
    }

    /// The used ring's index: how many chains the device has ever completed.
    pub fn device_idx(&self) -> u16 {
        self.u16_at(self.used + 2).load(Ordering::Acquire)
    }

    /// The index that an avail index has to pass before the device wants a kick.
    pub fn avail_event(&self) -> u16 {
        self.u16_at(self.used + 4 + 8 * u64::from(self.num))
            .load(Ordering::Acquire)
    }

    /// Sets the avail ring's flags: 1, no calls wanted.
    pub fn set_avail_flags(&self, flags: u16) {
        self.u16_at(self.avail).store(flags, Ordering::Release);
    }

    /// Asks for a call when the used index passes `idx`.
    pub fn set_used_event(&self, idx: u16) {
        self.u16_at(self.avail + 4 + 2 * u64::from(self.num))
            .store(idx, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Takes one entry off the used ring, if there is one.
    pub fn pop(&mut self) -> Option<Used> {
        if self.device_idx() == self.used_idx {
            return None;
        }
        let slot = self.used + 4 + 8 * u64::from(self.used_idx & (self.num - 1));
        let id = self.u32_at(slot).load(Ordering::Relaxed);
        let len = self.u32_at(slot + 4).load(Ordering::Relaxed);
        self.used_idx = self.used_idx.wrapping_add(1);
        let ids = match self.chains.get_mut(id as usize) {
            Some(c) if !c.is_empty() => std::mem::take(c),
            _ => panic!("the device used chain {id} that it does not have"),
        };
        self.free.extend(ids.iter().rev());
        Some(Used { id, len })
    }

    /// Sleeps until the device has used a chain, and takes it.
    ///
    /// It sleeps on the call eventfd, having asked for a call as the specification says: a device that
    /// forgets to call makes this fail.
    pub fn wait(&mut self) -> Res<Used> {
        let deadline = Instant::now() + Duration::from_secs(PATIENCE);
        loop {
            if let Some(u) = self.pop() {
                return Ok(u);
            }
            if self.event_idx {
                self.set_used_event(self.used_idx);
                if let Some(u) = self.pop() {
                    return Ok(u);
                }
            }
            if !readable(&self.call, deadline) {
                let late = if self.device_idx() == self.used_idx {
                    "nor used"
                } else {
                    "but used"
                };
                let errs = self.err.read().unwrap_or(0);
                return Err(Fail(format!(
                    "no call in {PATIENCE} s, {late} (avail {}, used {}, errors {errs})",
                    self.avail_idx, self.used_idx
                )));
            }
            let _ = self.call.read();
        }
    }

    /// Waits until the device has used a chain without asking for a call, and takes it.
    pub fn spin(&mut self) -> Res<Used> {
        let mut got = None;
        crate::sys::until(|| {
            got = self.pop();
            got.is_some()
        });
        got.ok_or_else(|| {
            Fail(format!(
                "nothing used in {PATIENCE} s (at {})",
                self.used_idx
            ))
        })
    }

    /// Waits for the error eventfd. Its count is consumed.
    pub fn wait_err(&self) -> Res {
        let deadline = Instant::now() + Duration::from_secs(PATIENCE);
        crate::check!(readable(&self.err, deadline), "no error signalled");
        let _ = self.err.read();
        Ok(())
    }

    /// How many calls came since this was last asked.
    pub fn calls(&self) -> u64 {
        self.call.read().unwrap_or(0)
    }
}
