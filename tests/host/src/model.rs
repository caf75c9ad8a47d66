// SPDX-License-Identifier: GPL-2.0

//! What a device should do, said as plainly as possible.
//!
//! It follows the rules of the C driver (`vhost_get_vq_desc()`, `vhost_add_used_n()`, `vhost_notify()`,
//! `vhost_enable_notify()`, `vhost_disable_notify()`, `log_write()`), and shares no code with the ring
//! code that it judges. It is slow, and reads memory as often as it likes.

use crate::{
    mem::{bytes_of_u16, number_of, u16_of, Mem},
    vring::Endian,
};
use kernel::prelude::*;

/// The most pieces of user memory that a chain may have.
pub const MAX_PIECES: usize = 1024;

/// A region of guest memory: it is not empty and does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelRegion {
    pub guest: u64,
    pub size: u128,
    pub user: u64,
    /// What may be done to it, 1 is to read and 2 is to write; [`None`] if the device has not been told of
    /// it.
    pub perm: Option<u8>,
}

impl ModelRegion {
    /// A region that may be read and written.
    pub fn new(guest: u64, size: u128, user: u64) -> Self {
        Self {
            guest,
            size,
            user,
            perm: Some(3),
        }
    }

    /// The user address of a guest byte, if the region has it.
    pub fn byte(&self, guest: u128) -> Option<u64> {
        let first = u128::from(self.guest);
        (first <= guest && guest < first + self.size)
            .then(|| self.user.wrapping_add((guest - first) as u64))
    }
}

/// Which of `regions` has a guest byte: the one that starts first, and of these the first of the list.
pub fn owner_of(regions: &[ModelRegion], guest: u128) -> Option<usize> {
    (0..regions.len())
        .filter(|&i| regions[i].perm.is_some() && regions[i].byte(guest).is_some())
        .min_by_key(|&i| (regions[i].guest, i))
}

/// A piece of user memory.
pub type Piece = (u64, u64);

/// Why something can't be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub error: Error,
    /// The address that no region has, or whose region does not allow it, and whether it was to be written.
    pub at: Option<(u64, bool)>,
}

impl Trouble {
    /// What the owner is told of it.
    pub fn miss(&self) -> Option<(u64, bool)> {
        self.at.filter(|_| self.error == EFAULT)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self { error, at: None }
    }
}

/// The pieces behind `len` bytes from `guest` that are to be read or written, at most `room` of them.
pub fn translate(
    regions: &[ModelRegion],
    guest: u64,
    len: u32,
    write: bool,
    room: usize,
) -> Result<Vec<Piece>, Trouble> {
    let mut pieces = Vec::new();
    let end = u128::from(guest) + u128::from(len);
    let mut at = u128::from(guest);
    while at < end {
        // A range that goes around the end of the address space is nowhere.
        let addr = u64::try_from(at).ok();
        if addr.is_some() && pieces.len() >= room {
            return Err(ENOBUFS.into());
        }
        let trouble = |error| Trouble {
            error,
            at: Some((addr.unwrap_or(guest), write)),
        };
        let region = &regions[owner_of(regions, at).ok_or(trouble(EFAULT))?];
        if region.perm.unwrap() & (1 << u8::from(write)) == 0 {
            return Err(trouble(EPERM));
        }
        let region_end = u128::from(region.guest) + region.size;
        let next = end.min(region_end);
        pieces.push((region.byte(at).unwrap(), (next - at) as u64));
        at = next;
    }
    Ok(pieces)
}

/// A bitmap of pages: sets the bit of each page that has one of `len` bytes from `addr`.
pub fn mark(mem: &Mem, base: u64, addr: u64, len: u64) {
    if len == 0 {
        return;
    }
    for page in addr / 4096..=(addr + len - 1) / 4096 {
        let byte = base + page / 8;
        let old = mem.get(byte, 1).expect("the log is mapped")[0];
        mem.put(byte, &[old | 1 << (page % 8)]);
    }
}

/// What a chain should give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub head: u16,
    pub readable: usize,
    pub writable: usize,
    pub pieces: Vec<Piece>,
    pub dirty: Vec<(u64, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct RawDesc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A chain that is taken and not published.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub head: u16,
    /// The bytes that the device wrote.
    pub len: u32,
    /// The descriptors that it has in the ring itself.
    descs: u16,
    /// It is the last one of its packet.
    ends: bool,
}

/// A range of the used ring, and the guest address of its first byte.
#[derive(Clone, Debug)]
pub struct Logged {
    pub offset: u64,
    pub size: u64,
    pub guest: u64,
}

/// A device model on its own copy of memory.
pub struct Model {
    pub mem: Mem,
    pub num: u32,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub endian: Endian,
    pub event_idx: bool,
    pub notify_on_empty: bool,
    pub in_order: bool,
    /// The log's user address, and the ranges of the used ring that are guest memory.
    pub log: Option<(u64, Vec<Logged>)>,
    /// The index of the next chain to take.
    pub last_avail: u16,
    /// With `in_order`: the descriptor that the next chain starts with, once a chain was taken. The C
    /// driver takes the base for it, which is wrong if chains have several descriptors.
    pub next_desc: Option<u16>,
    /// The driver's index as it was last seen.
    pub seen_avail: u16,
    /// The index of the next used entry.
    pub last_used: u16,
    /// The device asked for no kicks.
    pub quiet: bool,
    /// The used index at the last decision about a call.
    pub signalled: Option<u16>,
    /// Chains that are completed and not published.
    pub done: Vec<Done>,
    /// Something was logged.
    pub logged: bool,
}

impl Model {
    pub fn start(&mut self) -> Result {
        self.put_flags()?;
        self.signalled = None;
        self.last_used = self.field(self.used + 2)?;
        Ok(())
    }

    pub fn set_base(&mut self, base: u16) {
        self.last_avail = base;
        self.next_desc = None;
        self.seen_avail = base;
        self.done.clear();
    }

    fn field(&self, addr: u64) -> Result<u16> {
        let bytes = self.mem.get(addr, 2).ok_or(EFAULT)?;
        Ok(u16_of([bytes[0], bytes[1]], self.endian))
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result {
        if !self.mem.try_put(self.used + offset, bytes) {
            return Err(EFAULT);
        }
        if let Some((base, ranges)) = &self.log {
            let end = offset + bytes.len() as u64;
            for range in ranges {
                let first = offset.max(range.offset);
                let len = end.min(range.offset + range.size).saturating_sub(first);
                let guest = (range.guest + first).wrapping_sub(range.offset);
                mark(&self.mem, *base, guest, len);
            }
            self.logged = true;
        }
        Ok(())
    }

    fn put_field(&mut self, offset: u64, value: u16) -> Result {
        self.put(offset, &bytes_of_u16(value, self.endian))
    }

    fn put_flags(&mut self) -> Result {
        self.put_field(0, u16::from(self.quiet))
    }

    fn used_event(&self) -> u64 {
        self.avail + 4 + 2 * u64::from(self.num)
    }

    fn parse(&self, bytes: &[u8]) -> RawDesc {
        let part = |from: usize, len: usize| number_of(&bytes[from..from + len], self.endian);
        RawDesc {
            addr: part(0, 8),
            len: part(8, 4) as u32,
            flags: part(12, 2) as u16,
            next: part(14, 2) as u16,
        }
    }

    /// Looks at the driver's index. Returns whether it moved.
    fn look(&mut self) -> Result<bool> {
        let idx = self.field(self.avail + 2)?;
        if u32::from(idx.wrapping_sub(self.last_avail)) > self.num {
            return Err(EINVAL);
        }
        let moved = idx != self.seen_avail;
        self.seen_avail = idx;
        Ok(moved)
    }

    pub fn is_empty(&mut self) -> bool {
        self.seen_avail == self.last_avail && self.look() == Ok(false)
    }

    /// Takes the next chain; `room` is the number of pieces that it may have.
    pub fn take(&mut self, regions: &[ModelRegion], room: usize) -> Result<Option<Found>, Trouble> {
        if self.seen_avail == self.last_avail && !self.look()? {
            return Ok(None);
        }
        // The C driver has no such rule: it would write past the end of the used ring.
        if self.done.len() >= self.num as usize {
            return Err(EINVAL.into());
        }
        let head = if let Some(next) = self.next_desc.filter(|_| self.in_order) {
            // The driver takes its descriptors one after the other, whatever it says.
            (u32::from(next) % self.num) as u16
        } else {
            let slot = u64::from(self.last_avail) % u64::from(self.num);
            self.field(self.avail + 4 + 2 * slot)?
        };
        if u32::from(head) >= self.num {
            return Err(EINVAL.into());
        }

        let mut found = Found {
            head,
            ..Found::default()
        };
        let mut index = head;
        for descs in 1..=self.num as u16 {
            if u32::from(index) >= self.num {
                return Err(EINVAL.into());
            }
            let at = self.desc + 16 * u64::from(index);
            let desc = self.parse(&self.mem.get(at, 16).ok_or(EFAULT)?);
            if desc.flags & INDIRECT != 0 {
                self.indirect(desc, regions, room, &mut found)?;
            } else {
                buffer(desc, regions, room, &mut found)?;
            }
            if desc.flags & NEXT == 0 {
                self.last_avail = self.last_avail.wrapping_add(1);
                self.next_desc = Some(head.wrapping_add(descs));
                self.done.push(Done {
                    head,
                    len: 0,
                    descs,
                    ends: false,
                });
                return Ok(Some(found));
            }
            index = desc.next;
        }
        Err(EINVAL.into())
    }

    fn indirect(
        &self,
        table: RawDesc,
        regions: &[ModelRegion],
        room: usize,
        found: &mut Found,
    ) -> Result<(), Trouble> {
        if table.len % 16 != 0 {
            return Err(EINVAL.into());
        }
        let pieces = translate(regions, table.addr, table.len, false, MAX_PIECES)?;
        if table.len / 16 > 0x1_0000 {
            return Err(E2BIG.into());
        }
        let mut bytes = pieces
            .iter()
            .flat_map(|&(user, len)| (0..len).map(move |i| user + i));
        for _ in 0..table.len / 16 {
            let mut raw = Vec::new();
            for user in bytes.by_ref().take(16) {
                // The C driver says `EINVAL` to memory that is not mapped here.
                raw.extend(self.mem.get(user, 1).ok_or(EFAULT)?);
            }
            let desc = self.parse(&raw);
            if desc.flags & INDIRECT != 0 {
                return Err(EINVAL.into());
            }
            buffer(desc, regions, room, found)?;
            if desc.flags & NEXT == 0 {
                return Ok(());
            }
        }
        Err(EINVAL.into())
    }

    /// Gives back the `count` chains that were taken last.
    pub fn give_back(&mut self, count: usize) {
        for done in self.done.split_off(self.done.len() - count) {
            self.next_desc = self.next_desc.map(|next| next.wrapping_sub(done.descs));
        }
        self.last_avail = self.last_avail.wrapping_sub(count as u16);
    }

    /// The chains that were taken last, and not given back, are a packet.
    pub fn complete(&mut self) {
        if let Some(last) = self.done.last_mut() {
            last.ends = true;
        }
    }

    /// Which chains one used entry stands for.
    fn entries(&mut self) -> Vec<Vec<Done>> {
        let done = std::mem::take(&mut self.done);
        if !self.in_order {
            return done.into_iter().map(|done| vec![done]).collect();
        }
        let mut entries: Vec<Vec<Done>> = Vec::new();
        for packet in done.split_inclusive(|done| done.ends) {
            let empty = |chains: &[Done]| chains.last().is_some_and(|last| last.len == 0);
            match entries.last_mut() {
                // As on a queue that transmits, where nothing is written.
                Some(last) if empty(last) && empty(packet) => last.extend(packet),
                _ => entries.push(packet.to_vec()),
            }
        }
        entries
    }

    pub fn publish(&mut self) -> Result {
        for chains in self.entries() {
            let slot = u64::from(self.last_used) % u64::from(self.num);
            let last = chains.last().expect("an entry without a chain");
            let mut elem = Vec::new();
            for value in [u32::from(last.head), last.len] {
                match self.endian {
                    Endian::Little => elem.extend(value.to_le_bytes()),
                    Endian::Big => elem.extend(value.to_be_bytes()),
                }
            }
            self.put(4 + 8 * slot, &elem)?;
            for _ in chains {
                self.last_used = self.last_used.wrapping_add(1);
                // The index came around to where the driver was called last: that says nothing now.
                if self.signalled == Some(self.last_used) {
                    self.signalled = None;
                }
            }
        }
        self.put_field(2, self.last_used)
    }

    pub fn wants_call(&mut self) -> Result<bool> {
        if self.notify_on_empty && self.seen_avail == self.last_avail {
            return Ok(true);
        }
        if !self.event_idx {
            return Ok(self.field(self.avail)? & 1 == 0);
        }
        let Some(old) = self.signalled.replace(self.last_used) else {
            return Ok(true);
        };
        let event = self.field(self.used_event())?;
        // Whether the entry that the driver waits for is among those published since.
        let mut index = old;
        while index != self.last_used {
            if index == event {
                return Ok(true);
            }
            index = index.wrapping_add(1);
        }
        Ok(false)
    }

    pub fn disable_kicks(&mut self) -> Result {
        if self.quiet {
            return Ok(());
        }
        self.quiet = true;
        if self.event_idx {
            Ok(())
        } else {
            self.put_flags()
        }
    }

    pub fn enable_kicks(&mut self) -> Result<bool> {
        if !self.quiet {
            return Ok(false);
        }
        self.quiet = false;
        if self.event_idx {
            self.put_field(4 + 8 * u64::from(self.num), self.seen_avail)?;
        } else {
            self.put_flags()?;
        }
        self.look()
    }
}

/// Adds the buffer of a descriptor to what was found.
fn buffer(
    desc: RawDesc,
    regions: &[ModelRegion],
    room: usize,
    found: &mut Found,
) -> Result<(), Trouble> {
    let room = room - found.pieces.len();
    let write = desc.flags & WRITE != 0;
    let pieces = translate(regions, desc.addr, desc.len, write, room)?;
    if write {
        found.writable += pieces.len();
        if !pieces.is_empty() {
            found.dirty.push((desc.addr, desc.len));
        }
    } else if found.writable > 0 {
        return Err(EINVAL.into());
    } else {
        found.readable += pieces.len();
    }
    found.pieces.extend(pieces);
    Ok(())
}
