// SPDX-License-Identifier: GPL-2.0

//! A ring and its model, side by side.
//!
//! Each has its own copy of the same memory. Every step is done to both, and both must give the same
//! result and leave the same bytes behind. [`Driver`] is a driver that keeps the rules.
//!
//! The ring may be behind an IOTLB: then its parts and the buffers are in pieces all over user memory, which
//! move, and which the ring knows only as far as the owner has told of them. The model's ring is in one
//! place and stays there, and nothing else may be different.

use crate::{
    features::Features,
    log::{DirtyList, DirtyLog},
    mem::{number_of, Access, Event, Mem},
    memtable::{GuestAddr, Iotlb, Iova, MemTable, Region, Segments},
    model::{translate, Found, Logged, Model, ModelRegion, Piece, Trouble, MAX_PIECES},
    ring::Vring,
    usermem::UserAddr,
    vring::{Chain, Endian, Fault, RingAddrs, UsedLog},
    Tell,
};
use kernel::{prelude::*, sync::Arc};
use proptest::{prelude::*, test_runner::TestCaseError};
use std::collections::{HashMap, VecDeque};

/// What a step gives: an error ends the test.
pub type Step<T = ()> = std::result::Result<T, TestCaseError>;

/// Guest memory that is mapped.
pub const SPAN: std::ops::Range<u64> = 0x1000..0x5000;
/// The last bytes of the guest's address space, mapped.
pub const HIGH: u64 = 0xffff_ffff_ffff_f000;
/// Guest memory of more than 4 GiB that has no page behind it.
pub const HUGE: u64 = 0x10_0000_0000;
pub const HUGE_SIZE: u64 = 0x1_2000_0000;
/// A guest address that no region has.
pub const HOLE: u64 = 0x6000;

const DESC: u64 = 0x5000_0000_0000;
const AVAIL: u64 = 0x5100_0000_0000;
const USED: u64 = 0x5200_0000_0000;
const HUGE_USER: u64 = 0x5300_0000_0000;
const HIGH_USER: u64 = 0x5400_0000_0000;
const LOG: u64 = 0x6000_0000_0000;
const LOG_SIZE: u64 = 0x1000;
/// Below this, guest memory has its bits in the log.
const LOGGED: u64 = 0x700_0000;

/// What a ring is like.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub num: u32,
    pub big_endian: bool,
    pub event_idx: bool,
    pub notify_on_empty: bool,
    pub in_order: bool,
    /// Behind an IOTLB; the number chooses where things are, and what is known of them.
    pub behind: Option<u64>,
    /// Where [`SPAN`] is cut into regions.
    pub cuts: Vec<u16>,
    /// Moves the ring's parts, as far as they may move.
    pub skew: u8,
    /// The guest address of the used ring, for the log; below 112 MiB.
    pub log_addr: u32,
    /// The index of the first chain, and of the first used entry.
    pub avail_base: u16,
    pub used_base: u16,
}

impl Layout {
    pub fn endian(&self) -> Endian {
        if self.big_endian {
            Endian::Big
        } else {
            Endian::Little
        }
    }

    pub fn desc(&self) -> u64 {
        DESC + u64::from(self.skew) * 16
    }

    pub fn avail(&self) -> u64 {
        AVAIL + u64::from(self.skew) * 2
    }

    pub fn used(&self) -> u64 {
        USED + u64::from(self.skew) * 4
    }

    pub fn log(&self) -> u64 {
        LOG + u64::from(self.skew)
    }

    pub fn used_size(&self) -> u64 {
        4 + 8 * u64::from(self.num) + if self.event_idx { 2 } else { 0 }
    }

    pub fn addrs(&self) -> RingAddrs {
        RingAddrs {
            desc: UserAddr::new(self.desc()),
            avail: UserAddr::new(self.avail()),
            used: UserAddr::new(self.used()),
        }
    }

    pub fn features(&self) -> Features {
        let mut bits = vec![Features::INDIRECT_DESC];
        if self.event_idx {
            bits.push(Features::EVENT_IDX);
        }
        if self.notify_on_empty {
            bits.push(Features::NOTIFY_ON_EMPTY);
        }
        if self.in_order {
            bits.push(Features::IN_ORDER);
        }
        Features::of(&bits)
    }

    /// The regions of guest memory, not in order.
    pub fn regions(&self) -> Vec<ModelRegion> {
        let mut cuts: Vec<u64> = self
            .cuts
            .iter()
            .map(|&cut| SPAN.start + u64::from(cut))
            .filter(|cut| SPAN.contains(cut))
            .chain([SPAN.start, SPAN.end])
            .collect();
        cuts.sort_unstable();
        cuts.dedup();

        let mut regions = vec![
            ModelRegion::new(HUGE, u128::from(HUGE_SIZE), HUGE_USER),
            ModelRegion::new(HIGH, 0x1000, HIGH_USER),
        ];
        for (i, ends) in cuts.windows(2).enumerate() {
            let user = ((i as u64 + 1) << 32) + 0x777;
            regions.push(ModelRegion::new(
                ends[0],
                u128::from(ends[1] - ends[0]),
                user,
            ));
        }
        let count = regions.len();
        regions.rotate_left(usize::from(self.skew) % count);
        regions
    }

    fn avail_size(&self) -> u64 {
        4 + 2 * u64::from(self.num) + if self.event_idx { 2 } else { 0 }
    }

    /// The ring's parts, each as its address, its size, and whether the device writes it.
    fn parts(&self) -> [(u64, u64, bool); 3] {
        [
            (self.desc(), 16 * u64::from(self.num), false),
            (self.avail(), self.avail_size(), false),
            (self.used(), self.used_size(), true),
        ]
    }

    /// Whether `addr` is in a part of the ring.
    pub fn is_ring(&self, addr: u64) -> bool {
        let has = |&(start, size, _): &(u64, u64, bool)| (start..start + size).contains(&addr);
        self.parts().iter().any(has)
    }

    /// The regions of the ring's parts, which are cut at even addresses.
    fn ring_regions(&self, places: &mut Places) -> Vec<ModelRegion> {
        let mut regions = Vec::new();
        for (start, size, _) in self.parts() {
            let count = places.random(7);
            let mut cuts = vec![start, start + size];
            cuts.extend((0..count).map(|i| {
                // The first is where most happens.
                let most = if i == 0 { size.min(40) } else { size };
                start + places.random(most / 2) * 2
            }));
            cuts.sort_unstable();
            cuts.dedup();
            for ends in cuts.windows(2) {
                let size = ends[1] - ends[0];
                let user = places.place(size);
                regions.push(ModelRegion::new(ends[0], u128::from(size), user));
            }
        }
        regions
    }

    /// What the ring may do to the user memory of an address that the driver has.
    fn access(&self, addr: u64) -> Access {
        let used = self.used()..self.used() + self.used_size();
        if addr == HUGE {
            Access::Unmapped
        } else if used.contains(&addr) {
            Access::ReadWrite
        } else {
            Access::Read
        }
    }

    fn memory(&self, regions: &[ModelRegion]) -> Mem {
        let mem = Mem::new();
        mem.add(LOG, LOG_SIZE, Access::ReadWrite);
        for region in regions {
            mem.add(region.user, region.size as u64, self.access(region.guest));
        }
        mem
    }

    /// The ring's parts where they are if no IOTLB says otherwise.
    fn add_parts(&self, mem: &Mem) {
        for (start, size, _) in self.parts() {
            mem.add(start, size, self.access(start));
        }
    }

    /// The memory table of these regions.
    pub fn table(&self) -> MemTable {
        table(&self.regions())
    }

    /// Sets a ring up that is new or reset. It does not start.
    pub fn set_up(&self, ring: &mut Vring<Mem>, base: u16) {
        ring.set_num(self.num).unwrap();
        ring.set_features(self.features());
        ring.set_behind_iotlb(self.behind.is_some());
        ring.set_addrs(self.addrs());
        ring.set_base(base);
    }
}

/// Any of these; the ring finds all of its parts again before it goes on.
pub fn shake() -> impl Strategy<Value = Shake> {
    prop_oneof![
        8 => Just(Shake::Move),
        4 => (0..4u8).prop_map(Shake::Forbid),
        8 => Just(Shake::Forget),
        1 => Just(Shake::ForgetAll),
    ]
}

/// Chooses where in user memory things are.
struct Places {
    state: u64,
    /// In each of these, everything is behind what was placed there before.
    next: [u64; 2],
}

impl Places {
    fn new(seed: u64) -> Self {
        Self {
            state: seed,
            next: [0x2000_0000_0000, 0x3000_0000_0000],
        }
    }

    /// A number below `end`, which is not 0.
    fn random(&mut self, end: u64) -> u64 {
        // Knuth's MMIX; the upper bits are the good ones.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 32) % end
    }

    /// An even address for `size` bytes, which were nothing else before.
    fn place(&mut self, size: u64) -> u64 {
        let gap = [0, 0, 2, 0x1000][self.random(4) as usize];
        let next = &mut self.next[self.state as usize >> 40 & 1];
        let at = *next + gap;
        *next = (at + size).next_multiple_of(2);
        at
    }
}

/// What the owner does to its user memory and to what it told of that.
#[derive(Clone, Copy, Debug)]
pub enum Shake {
    /// Another place, which the device is told of if it knew the old one.
    Move,
    /// The device may do no more than this to it.
    Forbid(u8),
    /// The device is to forget where it is.
    Forget,
    /// The device is to forget everything.
    ForgetAll,
}

/// The memory table of `regions`, whose sizes fit 64 bits.
pub fn table(regions: &[ModelRegion]) -> MemTable {
    MemTable::new(regions.iter().map(|region| Region {
        guest: GuestAddr::new(region.guest),
        size: region.size as u64,
        user: UserAddr::new(region.user),
    }))
    .unwrap()
}

/// A ring and its model.
pub struct Pair {
    pub layout: Layout,
    pub regions: Vec<ModelRegion>,
    pub mem: Mem,
    pub ring: Vring<Mem>,
    pub model: Model,
    pub table: MemTable,
    /// What the ring knows of `regions`, if it is behind an IOTLB. They have its parts then too.
    pub iotlb: Option<Iotlb>,
    places: Places,
    log: bool,
    pub out: Segments,
    pub dirty: DirtyList,
    /// Chains in the order they were completed, with the bytes written.
    pub completed: VecDeque<(u16, u32)>,
    /// The most reads, and bytes read, that one chain took.
    pub most_reads: (u64, u64),
}

impl Pair {
    pub fn new(layout: Layout) -> Self {
        let mut regions = layout.regions();
        let mut places = Places::new(layout.behind.unwrap_or_default());
        let model_mem = layout.memory(&regions);
        layout.add_parts(&model_mem);
        if layout.behind.is_some() {
            regions.extend(layout.ring_regions(&mut places));
        }
        let mem = layout.memory(&regions);
        if layout.behind.is_none() {
            layout.add_parts(&mem);
        }
        let model = Model {
            mem: model_mem,
            num: layout.num,
            desc: layout.desc(),
            avail: layout.avail(),
            used: layout.used(),
            endian: layout.endian(),
            event_idx: layout.event_idx,
            notify_on_empty: layout.notify_on_empty,
            in_order: layout.in_order,
            log: None,
            last_avail: layout.avail_base,
            next_desc: None,
            seen_avail: layout.avail_base,
            last_used: 0,
            quiet: false,
            signalled: None,
            done: Vec::new(),
            logged: false,
        };
        let mut pair = Self {
            ring: Vring::new(mem.clone()).unwrap(),
            model,
            table: table(&regions),
            iotlb: layout.behind.map(|_| Iotlb::new(1024)),
            places,
            log: false,
            regions,
            out: Segments::new().unwrap(),
            dirty: DirtyList::new().unwrap(),
            completed: VecDeque::new(),
            most_reads: (0, 0),
            mem,
            layout,
        };
        if pair.iotlb.is_some() {
            for i in 0..pair.regions.len() {
                // Most is known, and most of that may be both read and written.
                let perm = match pair.places.random(8) {
                    0 | 1 => None,
                    2 => Some(1),
                    3 => Some(2),
                    _ => Some(3),
                };
                pair.regions[i].perm = None;
                pair.tell(i, perm);
            }
        }
        pair.put_u16(pair.layout.avail() + 2, pair.layout.avail_base);
        pair.put_u16(pair.layout.used() + 2, pair.layout.used_base);
        pair.layout.set_up(&mut pair.ring, pair.layout.avail_base);
        pair.start().unwrap();
        pair
    }

    /// Tells the IOTLB of a region from now on, or to forget it.
    fn tell(&mut self, index: usize, perm: Option<u8>) {
        let (Some(iotlb), Some(region)) = (&mut self.iotlb, self.regions.get_mut(index)) else {
            return;
        };
        let (addr, size) = (Iova::new(region.guest), region.size as u64);
        if region.perm.is_some() {
            iotlb.invalidate(addr, size).unwrap();
        }
        if let Some(perm) = perm {
            let user = UserAddr::new(region.user);
            iotlb.tell(addr, size, user, perm).unwrap();
        }
        region.perm = perm;
    }

    /// Tells the IOTLB all.
    pub fn tell_all(&mut self) {
        for index in 0..self.regions.len() {
            self.tell(index, Some(3));
        }
    }

    /// Answers what the ring was in trouble with. Returns false if there is no answer to that.
    fn answer(&mut self, trouble: Trouble) -> bool {
        let Some((addr, write)) = trouble.at.filter(|_| self.iotlb.is_some()) else {
            return false;
        };
        let has = |region: &ModelRegion| region.byte(u128::from(addr)).is_some();
        let Some(index) = self.regions.iter().position(has) else {
            return false;
        };
        let wanted = 1 << u8::from(write);
        match self.regions[index].perm {
            Some(perm) if perm & wanted != 0 => false,
            Some(perm) => {
                self.tell(index, Some(perm | wanted));
                true
            }
            None => {
                let perm = if self.places.random(2) == 0 {
                    wanted
                } else {
                    3
                };
                self.tell(index, Some(perm));
                true
            }
        }
    }

    /// The owner does something to one of its regions.
    pub fn shake(&mut self, shake: Shake, which: u16) -> Step {
        if self.iotlb.is_none() {
            return Ok(());
        }
        let index = usize::from(which) % self.regions.len();
        let region = self.regions[index];
        match shake {
            Shake::Forget => self.tell(index, None),
            Shake::Forbid(perm) => self.tell(index, Some(perm)),
            Shake::ForgetAll => {
                let iotlb = self.iotlb.as_mut().unwrap();
                iotlb.invalidate(Iova::new(0), u64::MAX).unwrap();
                for region in &mut self.regions {
                    region.perm = None;
                }
            }
            Shake::Move => {
                let user = self.places.place(region.size as u64);
                let access = self.layout.access(region.guest);
                let ring = self.layout.is_ring(region.guest);
                for mem in [Some(&self.mem), (!ring).then_some(&self.model.mem)] {
                    let Some(mem) = mem else { continue };
                    let bytes = mem.remove(region.user);
                    mem.add(user, region.size as u64, access);
                    if access != Access::Unmapped {
                        mem.put(user, &bytes);
                    }
                }
                self.regions[index].user = user;
                self.tell(index, region.perm);
                // The guest's memory is there too.
                self.set_log(self.log)?;
            }
        }
        self.check()
    }

    /// Lets a ring behind an IOTLB find itself, as a device does before it looks at it, and tells it what it
    /// misses.
    pub fn find(&mut self) -> Step {
        while let Some(iotlb) = &self.iotlb {
            self.mem.events();
            let got = self.ring.find(iotlb);
            let want = (self.layout.parts().iter()).try_for_each(|&(start, size, write)| {
                translate(&self.regions, start, size as u32, write, MAX_PIECES).map(|_| ())
            });
            same(got, want)?;
            prop_assert_eq!(self.mem.events(), vec![]);
            self.check()?;
            match want {
                Ok(()) => break,
                Err(trouble) => prop_assert!(self.answer(trouble)),
            }
        }
        Ok(())
    }

    /// Starts the ring, and tells it what it misses.
    fn start(&mut self) -> Step {
        loop {
            let got = self.ring.start(self.layout.endian(), self.iotlb.as_ref());
            let missing = [false, true].iter().find_map(|&write| {
                // Its flags and its index.
                let used = translate(&self.regions, self.layout.used(), 4, write, MAX_PIECES);
                used.err().filter(|_| self.iotlb.is_some())
            });
            match missing {
                Some(trouble) => {
                    same(got, Err(trouble))?;
                    prop_assert!(self.answer(trouble));
                }
                None => {
                    same(got, self.model.start().map_err(Trouble::from))?;
                    return self.check();
                }
            }
        }
    }

    /// The user memory that the ring has `len` bytes from `addr` in, whatever it knows.
    fn pieces(&self, addr: u64, len: u64) -> Vec<Piece> {
        let end = u128::from(addr) + u128::from(len);
        let mut at = u128::from(addr);
        let mut pieces = Vec::new();
        while at < end {
            let region = self.regions.iter().find(|region| region.byte(at).is_some());
            // The ring's parts, without an IOTLB.
            let Some(region) = region else {
                return vec![(addr, len)];
            };
            let next = end.min(u128::from(region.guest) + region.size);
            pieces.push((region.byte(at).unwrap(), (next - at) as u64));
            at = next;
        }
        pieces
    }

    /// The user address that the ring has the byte at `addr` at.
    pub fn place_of(&self, addr: u64) -> u64 {
        self.pieces(addr, 1)[0].0
    }

    /// What the ring has at `addr`; [`None`] where it is not mapped.
    pub fn get(&self, addr: u64, len: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (user, len) in self.pieces(addr, len) {
            bytes.extend_from_slice(&self.mem.get(user, len)?);
        }
        Some(bytes)
    }

    /// The driver's or the VMM's write to a part of the ring.
    pub fn put(&mut self, addr: u64, bytes: &[u8]) {
        self.model.mem.put(addr, bytes);
        let mut bytes = bytes;
        for (user, len) in self.pieces(addr, bytes.len() as u64) {
            let (now, later) = bytes.split_at(len as usize);
            self.mem.put(user, now);
            bytes = later;
        }
    }

    pub fn put_u16(&mut self, addr: u64, value: u16) {
        self.put(addr, &crate::mem::bytes_of_u16(value, self.layout.endian()));
    }

    /// The driver's write to guest memory, over the regions it falls into.
    pub fn put_guest(&mut self, guest: u64, bytes: &[u8]) {
        let mut bytes = bytes;
        for (user, len) in self.pieces(guest, bytes.len() as u64) {
            let (now, later) = bytes.split_at(len as usize);
            self.mem.put(user, now);
            self.model.mem.put(user, now);
            bytes = later;
        }
    }

    /// A descriptor as the ring has it.
    pub fn desc(&self, addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
        raw_desc(self.layout.endian(), addr, len, flags, next)
    }

    /// Where the driver's number of the last entry that it wants to be called for is.
    pub fn used_event(&self) -> Option<u64> {
        let at = self.layout.avail() + 4 + 2 * u64::from(self.layout.num);
        self.layout.event_idx.then_some(at)
    }

    /// Takes up to `written.len()` chains, and completes them or gives them back. Returns what was
    /// found, and the error if there was one that the owner could do nothing about.
    pub fn take(&mut self, written: &[u32], complete: bool) -> Step<(Vec<Found>, Option<Error>)> {
        let mut all = Vec::new();
        loop {
            let (found, trouble) = self.take_once(&written[all.len()..], complete)?;
            let again = trouble.is_some_and(|trouble| self.answer(trouble));
            if complete || !again {
                all.extend(found);
            }
            if !again {
                return Ok((all, trouble.map(|trouble| trouble.error)));
            }
        }
    }

    fn take_once(
        &mut self,
        written: &[u32],
        complete: bool,
    ) -> Step<(Vec<Found>, Option<Trouble>)> {
        self.find()?;
        self.out.clear();
        self.dirty.clear();
        let mut found = Vec::new();
        let mut trouble = None;
        let idx = self.place_of(self.layout.avail() + 2);
        let maps = match &self.iotlb {
            Some(iotlb) => iotlb.maps(),
            None => self.table.maps(),
        };
        let mut take = self.ring.take();
        self.mem.reads();
        self.mem.events();

        for &len in written {
            let had = (self.out.len(), self.dirty.as_slice().len());
            let got = take.next_chain(maps, &mut self.out, Some(&mut self.dirty));
            let (reads, bytes) = self.mem.reads();
            self.most_reads.0 = self.most_reads.0.max(reads);
            self.most_reads.1 = self.most_reads.1.max(bytes);
            let want = self.model.take(&self.regions, MAX_PIECES - had.0);
            let got = match (got, want) {
                (Ok(None), Ok(None)) => break,
                (Ok(Some(got)), Ok(Some(want))) => {
                    prop_assert_eq!(flatten(got, &self.out, &self.dirty, had), want.clone());
                    want
                }
                (Err(got), Err(want)) => {
                    same(Err(got), Err(want))?;
                    trouble = Some(want);
                    break;
                }
                (got, want) => {
                    prop_assert!(false, "got {:?}, not {:?}", got, want);
                    break;
                }
            };
            take.set_written(len);
            self.model.done.last_mut().unwrap().len = len;
            if len % 4 == 0 {
                prop_assert_eq!(take.is_last(), self.model.is_empty());
            }
            found.push((got, len));
        }

        prop_assert_eq!(usize::from(take.chains()), found.len());
        // What is read behind a look at the index, is read after a read barrier.
        let mut fresh = false;
        for event in self.mem.events() {
            match event {
                Event::Read { addr, .. } if addr == idx => fresh = true,
                Event::Read { .. } => prop_assert!(!fresh, "an entry before the index"),
                Event::ReadBarrier => fresh = false,
                other => prop_assert!(false, "{:?}", other),
            }
        }
        if complete {
            take.complete();
            self.model.complete();
            self.completed
                .extend(found.iter().map(|(found, len)| (found.head, *len)));
        } else {
            drop(take);
            self.model.give_back(found.len());
        }
        self.check()?;
        Ok((found.into_iter().map(|(found, _)| found).collect(), trouble))
    }

    pub fn publish(&mut self) -> Step {
        self.find()?;
        self.mem.events();
        let got = self.ring.publish();
        prop_assert_eq!(got.map_err(|fault| fault.error), self.model.publish());
        self.check_publish_order()?;
        self.check()
    }

    /// All entries, then a write barrier, then the index; a barrier before each mark in the log.
    fn check_publish_order(&mut self) -> Step {
        let idx = self.place_of(self.layout.used() + 2);
        let mut ordered = false;
        for event in self.mem.events() {
            match event {
                Event::Write { addr, .. } => {
                    prop_assert!(addr != idx || ordered, "the index before the entries");
                    ordered = false;
                }
                Event::SetBits { .. } => prop_assert!(ordered, "the log before the write"),
                Event::WriteBarrier => ordered = true,
                Event::Read { .. } => prop_assert!(false, "a read"),
                Event::ReadBarrier | Event::FullBarrier => {}
            }
        }
        Ok(())
    }

    pub fn wants_call(&mut self) -> Step {
        self.find()?;
        self.mem.events();
        let got = self.ring.wants_call();
        prop_assert_eq!(
            got.map_err(|fault| fault.error),
            self.model.wants_call(),
            "a call"
        );
        prop_assert_eq!(self.mem.events()[0], Event::FullBarrier);
        self.check()
    }

    pub fn disable_kicks(&mut self) -> Step {
        self.find()?;
        let got = self.ring.disable_kicks();
        prop_assert_eq!(got.map_err(|f| f.error), self.model.disable_kicks());
        self.check()
    }

    pub fn enable_kicks(&mut self) -> Step {
        self.find()?;
        self.mem.events();
        let got = self.ring.enable_kicks();
        prop_assert_eq!(
            got.map_err(|fault| fault.error),
            self.model.enable_kicks(),
            "a kick"
        );
        // The last write and the read after it have a full barrier between them.
        let events = self.mem.events();
        let last_write = events
            .iter()
            .rposition(|event| matches!(event, Event::Write { .. }));
        let read = events
            .iter()
            .position(|event| matches!(event, Event::Read { .. }));
        if let (Some(write), Some(read)) = (last_write, read) {
            prop_assert!(write < read, "the index was read too early");
            prop_assert!(events[write..read].contains(&Event::FullBarrier));
        }
        self.check()
    }

    pub fn is_empty(&mut self) -> Step {
        self.find()?;
        prop_assert_eq!(self.ring.is_empty(), self.model.is_empty(), "empty");
        self.check()
    }

    pub fn set_log(&mut self, on: bool) -> Step {
        self.log = on;
        let base = self.layout.log();
        let mut addr = GuestAddr::new(u64::from(self.layout.log_addr));
        let mut ranges = vec![Logged {
            offset: 0,
            size: self.layout.used_size(),
            guest: addr.get(),
        }];
        let mut table = None;
        if self.iotlb.is_some() {
            addr = GuestAddr::new(LOGGED + 0x80_0000);
            let memory;
            (ranges, memory) = self.guest_memory();
            table = Some(Arc::new(memory));
        }
        self.model.log = on.then_some((base, ranges));
        self.ring.set_used_log(on.then_some(UsedLog {
            log: DirtyLog::new(UserAddr::new(base)),
            addr,
            mem: table,
        }));
        self.check()
    }

    /// Guest memory that the used ring is in: each piece of it in two regions, or also in a third.
    fn guest_memory(&mut self) -> (Vec<Logged>, MemTable) {
        let used = self.layout.used()..self.layout.used() + self.layout.used_size();
        let pieces: Vec<_> = self
            .regions
            .iter()
            .filter(|r| used.contains(&r.guest))
            .collect();
        let mut regions = Vec::new();
        for piece in &pieces {
            let size = piece.size as u64;
            let cut = self.places.random(size);
            let third = if self.places.random(2) == 0 { size } else { 0 };
            for (skip, size) in [(0, cut), (cut, size - cut), (0, third)] {
                if size > 0 {
                    // It has some of what is around the piece too.
                    let (before, behind) = (self.places.random(3), self.places.random(3));
                    regions.push(Region {
                        guest: GuestAddr::new(self.places.random(LOGGED)),
                        size: before + size + behind,
                        user: UserAddr::new(piece.user + skip - before),
                    });
                }
            }
        }
        let mut ranges = Vec::new();
        for piece in &pieces {
            for region in &regions {
                let user = region.user.get();
                let first = piece.user.max(user);
                let end = (piece.user + piece.size as u64).min(user + region.size);
                if first < end {
                    ranges.push(Logged {
                        offset: piece.guest - used.start + (first - piece.user),
                        size: end - first,
                        guest: region.guest.get() + (first - user),
                    });
                }
            }
        }
        (ranges, MemTable::new(regions.into_iter()).unwrap())
    }

    pub fn logged(&mut self) -> Step {
        prop_assert_eq!(self.ring.logged(), self.model.logged, "logged");
        self.model.logged = false;
        prop_assert!(!self.ring.logged());
        prop_assert!(!self.ring.log_failed());
        Ok(())
    }

    /// Stops the ring, and starts it again or another in its place where it stood.
    pub fn resume(&mut self, another: bool) -> Step {
        if self.layout.in_order {
            // Where it stood in the descriptor table, nobody can say but the ring itself.
            return self.start();
        }
        let base = self.ring.base();
        self.set_log(false)?;
        if another {
            self.ring = Vring::new(self.mem.clone()).unwrap();
        } else {
            self.ring.reset();
        }
        self.layout.set_up(&mut self.ring, base);
        self.model.seen_avail = base;
        self.model.quiet = false;
        self.model.logged = false;
        self.start()
    }

    /// What must hold at all times.
    pub fn check(&mut self) -> Step {
        prop_assert_eq!(self.mem.violations(), vec![]);
        let (used, size) = (self.layout.used(), self.layout.used_size());
        let same = self.get(used, size) == self.model.mem.get(used, size);
        prop_assert!(same, "the used rings differ");
        let same = self.mem.get(LOG, LOG_SIZE) == self.model.mem.get(LOG, LOG_SIZE);
        prop_assert!(same, "the logs differ");
        prop_assert_eq!(self.ring.base(), self.model.last_avail);
        prop_assert_eq!(self.ring.used_idx(), self.model.last_used);
        prop_assert_eq!(self.ring.unpublished(), self.model.done.len());
        prop_assert_eq!(self.ring.is_quiet(), self.model.quiet);
        Ok(())
    }
}

/// Whether the ring says what the model says.
fn same(got: std::result::Result<(), Fault>, want: std::result::Result<(), Trouble>) -> Step {
    match (got, want) {
        (Ok(()), Ok(())) => {}
        (Err(got), Err(want)) => {
            prop_assert_eq!(got.error, want.error, "{:?}", got.why);
            let write = |access| access == crate::memtable::Access::Write;
            let miss = got.miss().map(|miss| (miss.addr.get(), write(miss.access)));
            prop_assert_eq!(miss, want.miss(), "{:?}", got.why);
        }
        (got, want) => prop_assert!(false, "got {:?}, not {:?}", got, want),
    }
    Ok(())
}

/// A chain, its segments and its dirty ranges, as the model has them.
fn flatten(chain: Chain, out: &Segments, dirty: &DirtyList, had: (usize, usize)) -> Found {
    Found {
        head: chain.head,
        readable: chain.readable,
        writable: chain.writable,
        pieces: out.as_slice()[had.0..]
            .iter()
            .map(|segment| (segment.addr().get(), segment.len() as u64))
            .collect(),
        dirty: dirty.as_slice()[had.1..]
            .iter()
            .map(|dirty| (dirty.addr.get(), dirty.len as u32))
            .collect(),
    }
}

pub fn raw_desc(endian: Endian, addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut raw = [0; 16];
    let (a, l, f, n) = match endian {
        Endian::Little => (
            addr.to_le_bytes(),
            len.to_le_bytes(),
            flags.to_le_bytes(),
            next.to_le_bytes(),
        ),
        Endian::Big => (
            addr.to_be_bytes(),
            len.to_be_bytes(),
            flags.to_be_bytes(),
            next.to_be_bytes(),
        ),
    };
    raw[..8].copy_from_slice(&a);
    raw[8..12].copy_from_slice(&l);
    raw[12..14].copy_from_slice(&f);
    raw[14..].copy_from_slice(&n);
    raw
}

pub const F_NEXT: u16 = 1;
pub const F_WRITE: u16 = 2;
pub const F_INDIRECT: u16 = 4;

/// What a driver's chain is like.
#[derive(Clone, Debug)]
pub struct Shape {
    /// A number that says where, and the length, of each buffer; at least one.
    pub buffers: Vec<(u16, u16)>,
    /// How many of them the device may read; the others it may write.
    pub readable: usize,
    /// How many buffers follow each other in one indirect table, or directly where it is zero.
    pub tables: Vec<usize>,
}

/// A chain that the driver made available.
#[derive(Clone, Debug)]
struct Made {
    buffers: Vec<(u64, u32, bool)>,
    descs: Vec<u16>,
    slots: Vec<usize>,
}

/// A driver that keeps the rules.
pub struct Driver {
    /// The last is taken first.
    free: Vec<u16>,
    /// Places for indirect tables that are free.
    slots: Vec<usize>,
    /// By the first descriptor of the chain.
    made: HashMap<u16, Made>,
    /// The heads in the order they were made available, which the device has not taken.
    queue: VecDeque<u16>,
    next_avail: u16,
    last_used: u16,
    in_order: bool,
}

const SLOT: u64 = 0x200;
const SLOTS: u64 = 16;
const SLOT_DESCS: usize = 31;

impl Driver {
    pub fn new(layout: &Layout) -> Self {
        let at = |i: u32| {
            if layout.in_order {
                (u32::from(layout.avail_base) + layout.num - 1 - i) % layout.num
            } else {
                // Not in order: 5 shares no factor with a power of two.
                (i.wrapping_mul(5).wrapping_add(u32::from(layout.skew))) % layout.num
            }
        };
        Self {
            free: (0..layout.num).map(|i| at(i) as u16).collect(),
            slots: (0..SLOTS as usize).collect(),
            made: HashMap::new(),
            queue: VecDeque::new(),
            next_avail: layout.avail_base,
            last_used: layout.used_base,
            in_order: layout.in_order,
        }
    }

    /// How many chains are with the device.
    pub fn in_flight(&self) -> usize {
        self.made.len()
    }

    /// Writes a chain, unless there is no room for it. [`Self::expose`] makes it available.
    pub fn add(&mut self, pair: &mut Pair, shape: &Shape) -> bool {
        // Group the buffers: one direct descriptor, or one table.
        let mut buffers = Vec::new();
        for (i, &(seed, len)) in shape.buffers.iter().enumerate() {
            let len = u64::from(len) % 0x1800;
            let room = SPAN.end - SPAN.start - len;
            let addr = if seed % 16 == 0 && len > 0 && len <= 0x1000 {
                0u64.wrapping_sub(len)
            } else {
                SPAN.start + u64::from(seed) * 7 % (room + 1)
            };
            buffers.push((addr, len as u32, i >= shape.readable));
        }
        let mut groups = Vec::new();
        let mut rest = buffers.as_slice();
        let mut tables = shape.tables.iter();
        while !rest.is_empty() {
            let count = tables.next().copied().unwrap_or(0).min(SLOT_DESCS);
            let (group, others) = rest.split_at(count.max(1).min(rest.len()));
            groups.push((count > 0, group));
            rest = others;
        }
        let wanted = groups.iter().filter(|(indirect, _)| *indirect).count();
        if groups.len() > self.free.len() || wanted > self.slots.len() {
            return false;
        }

        let mut descs = self.free.split_off(self.free.len() - groups.len());
        if pair.layout.in_order {
            descs.reverse();
        }
        let slots = self.slots.split_off(self.slots.len() - wanted);
        let mut free_slots = slots.iter();
        for (i, (indirect, group)) in groups.iter().enumerate() {
            let (next, more) = match descs.get(i + 1) {
                Some(next) => (*next, F_NEXT),
                None => (0xdead, 0),
            };
            let raw = if *indirect {
                let addr = SPAN.end - SLOTS * SLOT + *free_slots.next().unwrap() as u64 * SLOT + 3;
                let mut table = Vec::new();
                for (j, &(addr, len, write)) in group.iter().enumerate() {
                    let more = if j + 1 < group.len() { F_NEXT } else { 0 };
                    let write = if write { F_WRITE } else { 0 };
                    table.extend(pair.desc(addr, len, more | write, j as u16 + 1));
                }
                pair.put_guest(addr, &table);
                pair.desc(addr, table.len() as u32, F_INDIRECT | more, next)
            } else {
                let (addr, len, write) = group[0];
                let write = if write { F_WRITE } else { 0 };
                pair.desc(addr, len, write | more, next)
            };
            pair.put(pair.layout.desc() + 16 * u64::from(descs[i]), &raw);
        }

        let head = descs[0];
        let slot = u64::from(self.next_avail) % u64::from(pair.layout.num);
        pair.put_u16(pair.layout.avail() + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.queue.push_back(head);
        let made = Made {
            buffers,
            descs,
            slots,
        };
        assert!(self.made.insert(head, made).is_none());
        true
    }

    /// Makes available what was added.
    pub fn expose(&mut self, pair: &mut Pair) {
        pair.put_u16(pair.layout.avail() + 2, self.next_avail);
    }

    /// Checks the chains that the device took against what was added. `completed` says that they
    /// won't be taken again.
    pub fn check_taken(&mut self, pair: &Pair, found: &[Found], completed: bool) -> Step {
        for (i, found) in found.iter().enumerate() {
            prop_assert_eq!(Some(&found.head), self.queue.get(i));
            let made = &self.made[&found.head];
            let mut pieces = [Vec::new(), Vec::new()];
            for &(addr, len, write) in &made.buffers {
                let these = translate(&pair.regions, addr, len, write, MAX_PIECES).unwrap();
                pieces[usize::from(write)].extend(these);
            }
            prop_assert_eq!(
                (found.readable, found.writable),
                (pieces[0].len(), pieces[1].len())
            );
            prop_assert_eq!(&found.pieces, &pieces.concat());
        }
        if completed {
            self.queue.drain(..found.len());
        }
        Ok(())
    }

    /// Takes back what the device published.
    pub fn reap(&mut self, pair: &mut Pair) -> Step {
        let used = pair.layout.used();
        let number = |pair: &Pair, at, len| {
            number_of(&pair.get(used + at, len).unwrap(), pair.layout.endian())
        };
        let idx = number(pair, 2, 2) as u16;
        while self.last_used != idx {
            let slot = u64::from(self.last_used) % u64::from(pair.layout.num);
            let id = number(pair, 4 + 8 * slot, 4) as u32;
            let len = number(pair, 8 + 8 * slot, 4) as u32;
            // An entry stands for the chains before its own, if it stands for more than one.
            while pair.layout.in_order {
                match pair.completed.front() {
                    Some(&(head, _)) if u32::from(head) != id => {
                        pair.completed.pop_front();
                        self.take_back(head)?;
                        prop_assert!(self.last_used != idx, "more chains than the index says");
                    }
                    _ => break,
                }
            }
            prop_assert_eq!(
                pair.completed
                    .pop_front()
                    .map(|(head, len)| (u32::from(head), len)),
                Some((id, len))
            );
            self.take_back(id as u16)?;
        }
        Ok(())
    }

    fn take_back(&mut self, head: u16) -> Step {
        let made = self.made.remove(&head);
        prop_assert!(made.is_some(), "chain {} was completed twice", head);
        let made = made.unwrap();
        if self.in_order {
            self.free.splice(0..0, made.descs.into_iter().rev());
        } else {
            self.free.extend(made.descs);
        }
        self.slots.extend(made.slots);
        self.last_used = self.last_used.wrapping_add(1);
        Ok(())
    }
}
