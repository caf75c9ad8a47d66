// SPDX-License-Identifier: GPL-2.0

//! A packed ring, a driver that keeps the rules, and what the device should do, as plainly as possible.
//!
//! Both sides of the model count descriptors from the start, in numbers that never wrap: a place in the
//! ring is such a number modulo the size, with the wrap counter that the quotient says.

use crate::{
    features::Features,
    log::{DirtyList, DirtyLog},
    mem::{Access, Mem},
    memtable::{GuestAddr, MemTable, Region, Segments},
    pair::Step,
    ring::Vring,
    usermem::UserAddr,
    vring::{Deferred, Endian, RingAddrs, UsedLog},
};
use kernel::sync::Arc;
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};

pub const DESC: u64 = 0x5000_0000_0000;
pub const DRIVER: u64 = 0x5100_0000_0000;
pub const DEVICE: u64 = 0x5200_0000_0000;
pub const LOG: u64 = 0x6000_0000_0000;
const LOG_SIZE: u64 = 0x1000;

/// Guest memory: two regions beside each other, of which the second is elsewhere in user memory. The ring
/// has a region of its own, at another guest address than its user address.
pub const GUEST: std::ops::Range<u64> = 0x1000..0x9000;
pub const CUT: u64 = 0x4321;
pub const USERS: [u64; 2] = [0x7100_0000_0000, 0x7200_0000_0000];
pub const RING_GUEST: u64 = 0x20_0000;
/// Where indirect tables are: one for each chain, by its id.
pub const TABLES: u64 = 0x10_0000;
pub const TABLES_SIZE: u64 = 0x4_0000;
pub const TABLES_USER: u64 = 0x7300_0000_0000;
const TABLE: u64 = 0x100;

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;
pub const F_AVAIL: u16 = 1 << 7;
pub const F_USED: u16 = 1 << 15;

pub const ENABLE: u16 = 0;
pub const DISABLE: u16 = 1;
pub const BY_PLACE: u16 = 2;

/// What a ring is like.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub num: u32,
    pub event_idx: bool,
    pub in_order: bool,
    /// Where both sides start: any number, of which the place is taken.
    pub start: u64,
}

impl Layout {
    pub fn features(&self) -> Features {
        let mut bits = vec![Features::VERSION_1, Features::RING_PACKED];
        if self.event_idx {
            bits.push(Features::EVENT_IDX);
        }
        if self.in_order {
            bits.push(Features::IN_ORDER);
        }
        Features::of(&bits)
    }

    /// The place of a descriptor of this number, as the bits that the interface has.
    pub fn place(&self, number: u64) -> u16 {
        let num = u64::from(self.num);
        let wrap = if (number / num) % 2 == 0 { 0x8000 } else { 0 };
        (number % num) as u16 | wrap
    }

    fn wrap(&self, number: u64) -> bool {
        self.place(number) & 0x8000 != 0
    }

    fn desc(&self, number: u64) -> u64 {
        DESC + 16 * (number % u64::from(self.num))
    }

    pub fn addrs(&self) -> RingAddrs {
        RingAddrs {
            desc: UserAddr::new(DESC),
            avail: UserAddr::new(DRIVER),
            used: UserAddr::new(DEVICE),
        }
    }

    pub fn memory(&self) -> Mem {
        let mem = Mem::new();
        mem.add(DESC, 16 * u64::from(self.num), Access::ReadWrite);
        mem.add(DRIVER, 4, Access::Read);
        mem.add(DEVICE, 4, Access::ReadWrite);
        mem.add(LOG, LOG_SIZE, Access::ReadWrite);
        mem.add(USERS[0], CUT - GUEST.start, Access::Read);
        mem.add(USERS[1], GUEST.end - CUT, Access::Read);
        mem.add(TABLES_USER, TABLES_SIZE, Access::Read);
        mem
    }

    pub fn table(&self) -> Arc<MemTable> {
        let region = |guest, size, user| Region {
            guest: GuestAddr::new(guest),
            size,
            user: UserAddr::new(user),
        };
        let regions = [
            region(GUEST.start, CUT - GUEST.start, USERS[0]),
            region(CUT, GUEST.end - CUT, USERS[1]),
            region(TABLES, TABLES_SIZE, TABLES_USER),
            region(RING_GUEST, 16 * u64::from(self.num), DESC),
        ];
        Arc::new(MemTable::new(regions.into_iter()).unwrap())
    }

    /// The base of a ring with nothing out there, at this place.
    pub fn base(&self, number: u64) -> u32 {
        u32::from(self.place(number)) * 0x1_0001
    }

    /// A ring that was set up as a VMM does it.
    pub fn ring(&self, mem: &Mem, base: u32) -> Vring<Mem> {
        let mut ring = Vring::new(mem.clone()).unwrap();
        ring.make_room(self.features()).unwrap();
        ring.set_features(self.features());
        ring.set_num(self.num).unwrap();
        ring.set_vring_base(base).unwrap();
        ring.set_addrs(self.addrs());
        ring.start(Endian::Little, None).unwrap();
        ring
    }

    /// A ring behind an IOTLB that is not started yet.
    pub fn ring_behind(&self, mem: &Mem) -> Vring<Mem> {
        let mut ring = Vring::new(mem.clone()).unwrap();
        ring.make_room(self.features()).unwrap();
        ring.set_features(self.features());
        ring.set_behind_iotlb(true);
        ring.set_num(self.num).unwrap();
        ring.set_addrs(self.addrs());
        ring
    }
}

/// What a driver's chain is like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The place and the length of each buffer; at least one.
    pub buffers: Vec<(u16, u16)>,
    /// How many of them the device may read; the others it may write.
    pub readable: usize,
    /// All are in an indirect table.
    pub indirect: bool,
}

/// A chain that the driver made available.
#[derive(Clone, Debug)]
pub struct Made {
    pub id: u16,
    /// The user memory of its buffers, and how many of these pieces may be read.
    pieces: Vec<(u64, u64)>,
    readable: usize,
    descs: u64,
}

/// A used descriptor to be: the id, the length and the number of descriptors that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    id: u16,
    len: u32,
    descs: u64,
}

/// What the device does with the chains that it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Complete,
    CompleteEmpty,
    PutBack,
    /// If it is one only.
    Defer,
}

/// The ring, its driver and its model.
pub struct Pair {
    pub layout: Layout,
    pub mem: Mem,
    pub ring: Vring<Mem>,
    table: Arc<MemTable>,
    out: Segments,
    // The driver.
    free: Vec<u16>,
    /// Where it makes the next chain available, and where it looks for the next used descriptor.
    next: u64,
    reaped: u64,
    /// What is with the device, by id.
    made: HashMap<u16, Made>,
    // The device.
    /// What was made available and not taken.
    waiting: VecDeque<Made>,
    avail: u64,
    used: u64,
    /// So far it has looked, at chains that it put back.
    seen: u64,
    to_be: Vec<Used>,
    completed: usize,
    deferred: Vec<(Deferred, Used)>,
    /// What was published and not reaped.
    published: VecDeque<Used>,
    /// Where it was last asked whether to call.
    asked: Option<u64>,
    quiet: bool,
    /// A kick was asked for, for the next chain.
    armed: bool,
    logging: bool,
}

impl Pair {
    pub fn new(layout: Layout) -> Self {
        let mem = layout.memory();
        let start = layout.start;
        let base = layout.base(start);
        // Zeroes are nothing in the first time around; later there is what the last one left.
        for i in 0..u64::from(layout.num) {
            let at = layout.desc(start + i);
            let before = start + i;
            let flags = match (before >= u64::from(layout.num), layout.wrap(before)) {
                (false, _) => 0,
                // Used, with the other wrap counter.
                (true, false) => F_AVAIL | F_USED,
                (true, true) => 0,
            };
            mem.put(at + 14, &flags.to_le_bytes());
        }
        // As another host left it.
        mem.put(DEVICE, &[0xff, 0xff, DISABLE as u8, 0]);
        let ring = layout.ring(&mem, base);
        Self {
            table: layout.table(),
            out: Segments::new().unwrap(),
            free: (0..layout.num as u16).rev().collect(),
            next: start,
            reaped: start,
            made: HashMap::new(),
            waiting: VecDeque::new(),
            avail: start,
            used: start,
            seen: start,
            to_be: Vec::new(),
            completed: 0,
            deferred: Vec::new(),
            published: VecDeque::new(),
            asked: None,
            quiet: false,
            armed: false,
            logging: false,
            layout,
            mem,
            ring,
        }
    }

    fn word(&self, at: u64) -> u16 {
        self.mem.get_u16(at, Endian::Little)
    }

    fn put_desc(&self, number: u64, addr: u64, len: u32, id: u16, flags: u16) {
        let wrap = if self.layout.wrap(number) {
            F_AVAIL
        } else {
            F_USED
        };
        let mut raw = Vec::new();
        raw.extend(addr.to_le_bytes());
        raw.extend(len.to_le_bytes());
        raw.extend(id.to_le_bytes());
        raw.extend((flags | wrap).to_le_bytes());
        self.mem.put(self.layout.desc(number), &raw);
    }

    fn put_guest(&self, guest: u64, bytes: &[u8]) {
        self.mem.put(TABLES_USER + (guest - TABLES), bytes);
    }

    /// The driver makes a chain available, unless there is no room for it. Returns whether it did, and
    /// whether it is to kick.
    pub fn add(&mut self, shape: &Shape) -> Step<Option<bool>> {
        let count = shape.buffers.len() as u64;
        let descs = if shape.indirect { 1 } else { count };
        let left = u64::from(self.layout.num) - (self.next - self.reaped);
        let fits = u64::from(u16::MAX) * TABLE > TABLES_SIZE || !shape.indirect;
        if descs > left || !fits || self.free.is_empty() {
            return Ok(None);
        }
        // In order, the id is what it is with Linux.
        let id = if self.layout.in_order {
            (self.next % u64::from(self.layout.num)) as u16
        } else {
            self.free.pop().unwrap()
        };
        let mut pieces = [Vec::new(), Vec::new()];
        let mut descriptors = Vec::new();
        for (i, &(at, len)) in shape.buffers.iter().enumerate() {
            let write = i >= shape.readable;
            let (len, room) = (u64::from(len % 0x1800), GUEST.end - GUEST.start - 0x1800);
            let guest = GUEST.start + u64::from(at) % room;
            let split = CUT.clamp(guest, guest + len);
            for (start, end, cut, user) in [
                (guest, split, GUEST.start, USERS[0]),
                (split, guest + len, CUT, USERS[1]),
            ] {
                if start < end {
                    pieces[usize::from(write)].push((user + (start - cut), end - start));
                }
            }
            descriptors.push((guest, len as u32, if write { F_WRITE } else { 0 }));
        }
        if shape.indirect {
            let table = TABLES + u64::from(id) * TABLE % TABLES_SIZE;
            let mut raw = Vec::new();
            for &(guest, len, flags) in &descriptors {
                raw.extend(guest.to_le_bytes());
                raw.extend(len.to_le_bytes());
                // What means nothing in a table.
                raw.extend([0xad, 0xde]);
                raw.extend((flags | F_NEXT | F_INDIRECT | F_USED).to_le_bytes());
            }
            self.put_guest(table, &raw);
            // The id of a table is that of the ring's descriptor.
            self.put_desc(self.next, table, raw.len() as u32, id, F_INDIRECT | F_WRITE);
        } else {
            for (i, &(guest, len, flags)) in descriptors.iter().enumerate().rev() {
                let last = i + 1 == descriptors.len();
                let more = if last { 0 } else { F_NEXT };
                // The last one has the id; those before it have none that counts.
                let id = if last { id } else { !id };
                self.put_desc(self.next + i as u64, guest, len, id, flags | more);
            }
        }
        let readable = pieces[0].len();
        let made = Made {
            id,
            pieces: pieces.concat(),
            readable,
            descs,
        };
        let old = self.next;
        self.next += descs;
        prop_assert!(self.made.insert(id, made.clone()).is_none());
        self.waiting.push_back(made);
        let kick = self.wants_kick(old);
        if core::mem::take(&mut self.armed) {
            prop_assert!(kick, "a kick that was asked for");
        }
        if self.quiet && !self.layout.event_idx {
            prop_assert!(!kick, "a kick that nobody wants");
        }
        Ok(Some(kick))
    }

    /// Whether the device wants a kick for what was made available since `old`.
    fn wants_kick(&self, old: u64) -> bool {
        let (place, flags) = (self.word(DEVICE), self.word(DEVICE + 2));
        match flags {
            ENABLE => true,
            DISABLE => false,
            _ => (old..self.next).any(|number| self.layout.place(number) == place),
        }
    }

    /// The device takes up to `written.len()` chains as one packet. Returns how many there were.
    pub fn take(&mut self, written: &[u32], what: What) -> Step<usize> {
        self.out.clear();
        let mut dirty = DirtyList::new().unwrap();
        let mut take = self.ring.take();
        let mut count = 0;
        let mut descs = 0;
        let mut used = Vec::new();
        for &len in written {
            let had = self.out.len();
            let chain = take.next_chain(self.table.maps(), &mut self.out, Some(&mut dirty));
            let Some(chain) = chain.unwrap() else {
                prop_assert_eq!(self.waiting.len(), count, "a chain is not seen");
                break;
            };
            prop_assert!(count < self.waiting.len(), "there is no such chain");
            let made = &self.waiting[count];
            let pieces: Vec<_> = self.out.as_slice()[had..]
                .iter()
                .map(|segment| (segment.addr().get(), segment.len() as u64))
                .collect();
            prop_assert_eq!(chain.head, made.id);
            prop_assert_eq!(&pieces, &made.pieces);
            prop_assert_eq!(
                (chain.readable, chain.writable),
                (made.readable, pieces.len() - made.readable)
            );
            take.set_written(len);
            used.push(Used {
                id: made.id,
                len: if what == What::CompleteEmpty { 0 } else { len },
                descs: made.descs,
            });
            descs += made.descs;
            count += 1;
        }
        prop_assert_eq!(usize::from(take.chains()), count);
        prop_assert_eq!(take.is_last(), count == self.waiting.len());
        match what {
            What::PutBack => {
                drop(take);
                if count > 0 {
                    self.seen = self.avail + descs;
                }
                return Ok(count);
            }
            What::Defer => {
                let deferred = take.defer();
                prop_assert_eq!(deferred.is_some(), count == 1 && !self.layout.in_order);
                let Some(deferred) = deferred else {
                    if count > 0 {
                        self.seen = self.avail + descs;
                    }
                    return Ok(count);
                };
                self.deferred.push((deferred, used[0]));
            }
            What::Complete | What::CompleteEmpty => {
                if what == What::Complete {
                    take.complete();
                } else {
                    take.complete_empty();
                }
                self.complete(&used, what);
            }
        }
        self.waiting.drain(..count);
        self.avail += descs;
        self.seen = self.avail;
        Ok(count)
    }

    /// What the chains of a packet come back as.
    fn complete(&mut self, chains: &[Used], what: What) {
        self.completed += chains.len();
        let Some(last) = chains
            .last()
            .filter(|_| self.layout.in_order && what == What::Complete)
        else {
            self.to_be.extend(chains);
            return;
        };
        let descs = chains.iter().map(|used| used.descs).sum();
        match self.to_be.last_mut() {
            Some(before) if before.len == 0 && last.len == 0 => {
                before.id = last.id;
                before.descs += descs;
            }
            _ => self.to_be.push(Used { descs, ..*last }),
        }
    }

    pub fn complete_deferred(&mut self, which: usize) {
        if self.deferred.is_empty() {
            return;
        }
        let (deferred, used) = self.deferred.swap_remove(which % self.deferred.len());
        self.ring.complete_deferred(deferred);
        self.to_be.push(used);
        self.completed += 1;
    }

    pub fn publish(&mut self) -> Step {
        self.mem.events();
        self.ring.publish().unwrap();
        let from = self.used;
        for used in self.to_be.drain(..) {
            self.used += used.descs;
            self.published.push_back(used);
        }
        self.completed = 0;
        if self.logging && self.used > from {
            prop_assert!(self.ring.logged());
        }
        Ok(())
    }

    /// The driver takes back what is used, as far as it sees it.
    pub fn reap(&mut self) -> Step {
        loop {
            let at = self.layout.desc(self.reaped);
            let flags = self.word(at + 14);
            let wrap = self.layout.wrap(self.reaped);
            let is_used = (flags & F_AVAIL != 0) == wrap && (flags & F_USED != 0) == wrap;
            let Some(used) = self.published.front().copied().filter(|_| is_used) else {
                prop_assert!(!is_used, "a descriptor is used that nobody published");
                prop_assert!(self.published.is_empty(), "what was published is not used");
                return Ok(());
            };
            self.published.pop_front();
            let id = self.word(at + 12);
            let len = self.mem.get_u32(at + 8, Endian::Little);
            prop_assert_eq!((id, len), (used.id, used.len));
            prop_assert_eq!(flags & F_WRITE != 0, len > 0);
            prop_assert_eq!(flags & !(F_AVAIL | F_USED | F_WRITE), 0);
            self.take_back(used)?;
        }
    }

    fn take_back(&mut self, used: Used) -> Step {
        if !self.layout.in_order {
            let made = self.made.remove(&used.id);
            prop_assert!(made.is_some(), "chain {} was completed twice", used.id);
            prop_assert_eq!(made.unwrap().descs, used.descs);
            self.free.push(used.id);
            self.reaped += used.descs;
            return Ok(());
        }
        // It stands for the chains before it, too.
        let end = self.reaped + used.descs;
        loop {
            let id = (self.reaped % u64::from(self.layout.num)) as u16;
            let made = self.made.remove(&id);
            prop_assert!(made.is_some(), "chain {} was completed twice", id);
            self.reaped += made.unwrap().descs;
            if id == used.id && self.reaped == end {
                return Ok(());
            }
            prop_assert!(self.reaped < end, "{} is not where it should be", used.id);
        }
    }

    /// The driver asks for calls: with these flags, and a place so far from its next used descriptor.
    pub fn ask_for_calls(&mut self, flags: u16, delta: i32) {
        let number = self.reaped.saturating_add_signed(i64::from(delta));
        let place = self.layout.place(number);
        self.mem.put(DRIVER, &place.to_le_bytes());
        self.mem.put(DRIVER + 2, &flags.to_le_bytes());
    }

    pub fn wants_call(&mut self) -> Step {
        let got = self.ring.wants_call().unwrap();
        let (place, flags) = (self.word(DRIVER), self.word(DRIVER + 2) & 3);
        let asked = self.asked.replace(self.used);
        let want = match flags {
            DISABLE => Some(false),
            BY_PLACE if self.layout.event_idx => match asked {
                None => Some(true),
                // Further than a place can say.
                Some(asked) if self.used - asked > u64::from(self.layout.num) => None,
                Some(asked) => {
                    Some((asked..self.used).any(|number| self.layout.place(number) == place))
                }
            },
            _ => Some(true),
        };
        if let Some(want) = want {
            prop_assert_eq!(got, want);
        }
        Ok(())
    }

    pub fn disable_kicks(&mut self) -> Step {
        self.ring.disable_kicks().unwrap();
        self.quiet = true;
        self.armed = false;
        Ok(())
    }

    pub fn enable_kicks(&mut self) -> Step {
        let got = self.ring.enable_kicks().unwrap();
        if core::mem::take(&mut self.quiet) {
            prop_assert_eq!(got, self.next > self.seen);
            self.armed = !got;
        } else {
            prop_assert!(!got);
        }
        Ok(())
    }

    /// Stops the device, when nothing is out there, and goes on with another in its place. `dpdk` says
    /// that one which is at the start is told no upper half.
    pub fn resume(&mut self, dpdk: bool) -> Step {
        while !self.deferred.is_empty() {
            self.complete_deferred(0);
        }
        self.publish()?;
        let base = self.ring.vring_base();
        prop_assert_eq!(base, self.layout.base(self.avail));
        let base = if dpdk && base == 0x8000_8000 {
            0x8000
        } else {
            base
        };
        self.ring = self.layout.ring(&self.mem, base);
        self.asked = None;
        self.quiet = false;
        self.armed = true;
        self.seen = self.avail;
        self.logging = false;
        Ok(())
    }

    /// Logs what is written to the ring, or does not any more.
    pub fn set_log(&mut self, on: bool) {
        self.logging = on;
        self.ring.logged();
        self.ring.set_used_log(on.then(|| UsedLog {
            log: DirtyLog::new(UserAddr::new(LOG)),
            addr: GuestAddr::new(0),
            mem: Some(self.table.clone()),
        }));
    }

    /// The pages of guest memory that are marked in the log, which is empty then.
    pub fn logged_pages(&self) -> Vec<u64> {
        let bytes = self.mem.get(LOG, LOG_SIZE).unwrap();
        self.mem.put(LOG, &vec![0; LOG_SIZE as usize]);
        let bit = |page: &u64| bytes[(page / 8) as usize] & (1 << (page % 8)) != 0;
        (0..LOG_SIZE * 8).filter(bit).collect()
    }

    /// How many chains are with the device.
    pub fn in_flight(&self) -> usize {
        self.made.len()
    }

    /// How many descriptors the driver may still make available.
    pub fn room(&self) -> u64 {
        u64::from(self.layout.num) - (self.next - self.reaped)
    }

    /// What must hold at all times.
    pub fn check(&mut self) -> Step {
        prop_assert_eq!(self.mem.violations(), vec![]);
        prop_assert_eq!(self.ring.base(), self.layout.place(self.avail));
        prop_assert_eq!(self.ring.used_idx(), self.layout.place(self.used));
        prop_assert_eq!(self.ring.unpublished(), self.completed);
        prop_assert_eq!(self.ring.is_empty(), self.waiting.is_empty());
        prop_assert_eq!(self.ring.is_quiet(), self.quiet);
        prop_assert!(!self.ring.log_failed());
        Ok(())
    }

    /// All that was made available comes back, once.
    pub fn drain(&mut self) -> Step {
        while self.take(&[1], What::Complete)? > 0 {
            self.publish()?;
            self.reap()?;
        }
        while !self.deferred.is_empty() {
            self.complete_deferred(self.completed);
        }
        self.publish()?;
        self.reap()?;
        self.check()?;
        prop_assert_eq!(self.in_flight(), 0, "a chain was lost");
        prop_assert_eq!(self.room(), u64::from(self.layout.num));
        Ok(())
    }
}
