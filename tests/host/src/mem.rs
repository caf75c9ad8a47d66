// SPDX-License-Identifier: GPL-2.0

//! User memory for the tests: a few areas of bytes in an empty address space.
//!
//! The code under test may touch the areas, with the access that each allows, and nothing else. Every
//! other access fails, as it would in the kernel, and is remembered as a violation.

use crate::{
    usermem::{UserAddr, UserMemory},
    vring::Endian,
};
use kernel::prelude::*;
use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
};

/// The end of the user address space (`TASK_SIZE_MAX` of x86-64).
pub const USER_END: u64 = 0x7fff_ffff_f000;

/// What the code under test did, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Read { addr: u64, len: u64 },
    Write { addr: u64, len: u64 },
    SetBits { addr: u64, mask: u32 },
    ReadBarrier,
    WriteBarrier,
    FullBarrier,
}

/// What the code under test may do to an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
    /// It may try; the area is not mapped.
    Unmapped,
}

struct Area {
    start: u64,
    len: u64,
    access: Access,
    bytes: Vec<u8>,
}

/// Changes what a read gets: the address and the bytes.
pub type Meddler = Box<dyn FnMut(u64, &mut [u8])>;

#[derive(Default)]
struct Inner {
    areas: RefCell<Vec<Area>>,
    failing: RefCell<Vec<Range<u64>>>,
    events: RefCell<Vec<Event>>,
    violations: RefCell<Vec<Event>>,
    reads: Cell<u64>,
    bytes_read: Cell<u64>,
    meddler: RefCell<Option<Meddler>>,
}

/// A handle to the memory; its clones share it.
#[derive(Clone, Default)]
pub struct Mem(Rc<Inner>);

impl Mem {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an area, filled with zeroes.
    pub fn add(&self, start: u64, len: u64, access: Access) {
        let mut areas = self.0.areas.borrow_mut();
        for area in areas.iter() {
            assert!(start >= area.start + area.len || start + len <= area.start);
        }
        let size = if access == Access::Unmapped { 0 } else { len };
        areas.push(Area {
            start,
            len,
            access,
            bytes: vec![0; size as usize],
        });
    }

    /// Takes away the area that starts at `start`. Returns what was in it.
    pub fn remove(&self, start: u64) -> Vec<u8> {
        let mut areas = self.0.areas.borrow_mut();
        let at = areas.iter().position(|area| area.start == start);
        areas.swap_remove(at.expect("there is no such area")).bytes
    }

    /// Lets accesses that touch `range` fail from now on. That is no violation.
    pub fn fail(&self, range: Range<u64>) {
        self.0.failing.borrow_mut().push(range);
    }

    /// Takes back every [`Self::fail`].
    pub fn heal(&self) {
        self.0.failing.borrow_mut().clear();
    }

    /// Calls `meddler` on all that is read from now on.
    pub fn meddle(&self, meddler: Meddler) {
        *self.0.meddler.borrow_mut() = Some(meddler);
    }

    /// The test's own look at memory; [`None`] where it is not mapped.
    pub fn get(&self, addr: u64, len: u64) -> Option<Vec<u8>> {
        if self.fails(addr, len) {
            return None;
        }
        let areas = self.0.areas.borrow();
        let area = find(&areas, addr, len)?;
        let at = (addr - area.start) as usize;
        area.bytes.get(at..at + len as usize).map(<[u8]>::to_vec)
    }

    /// The test's own change of memory. Returns whether it is mapped.
    #[must_use]
    pub fn try_put(&self, addr: u64, bytes: &[u8]) -> bool {
        let len = bytes.len() as u64;
        if self.fails(addr, len) {
            return false;
        }
        let mut areas = self.0.areas.borrow_mut();
        let Some(area) = find_mut(&mut areas, addr, len) else {
            return false;
        };
        let at = (addr - area.start) as usize;
        match area.bytes.get_mut(at..at + bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            None => return false,
        }
        true
    }

    /// The test's own change of memory, which is mapped.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        assert!(self.try_put(addr, bytes), "{addr:#x} is not mapped");
    }

    /// A 16-bit field, mapped, in the byte order `endian`.
    pub fn get_u16(&self, addr: u64, endian: Endian) -> u16 {
        let bytes = self.get(addr, 2).expect("not mapped");
        u16_of([bytes[0], bytes[1]], endian)
    }

    /// Changes a 16-bit field.
    pub fn put_u16(&self, addr: u64, value: u16, endian: Endian) {
        self.put(addr, &bytes_of_u16(value, endian));
    }

    /// A 32-bit field, mapped, in the byte order `endian`.
    pub fn get_u32(&self, addr: u64, endian: Endian) -> u32 {
        number_of(&self.get(addr, 4).expect("not mapped"), endian) as u32
    }

    /// What the code under test did since this was last asked.
    pub fn events(&self) -> Vec<Event> {
        self.0.events.take()
    }

    /// The number of reads and of bytes read since this was last asked.
    pub fn reads(&self) -> (u64, u64) {
        (self.0.reads.take(), self.0.bytes_read.take())
    }

    /// The accesses that were not allowed, ever.
    pub fn violations(&self) -> Vec<Event> {
        self.0.violations.borrow().clone()
    }

    fn fails(&self, addr: u64, len: u64) -> bool {
        let end = addr.saturating_add(len);
        self.0
            .failing
            .borrow()
            .iter()
            .any(|range| addr < range.end && range.start < end)
    }

    /// Notes an access; fails if it can't be.
    fn note(&self, event: Event, addr: u64, len: u64, write: bool, aligned: u64) -> Result {
        self.0.events.borrow_mut().push(event);
        let areas = self.0.areas.borrow();
        let allowed = match find(&areas, addr, len).map(|area| area.access) {
            Some(Access::Read) => !write,
            Some(Access::ReadWrite | Access::Unmapped) => true,
            None => false,
        };
        if !allowed || len == 0 || addr % aligned != 0 {
            self.0.violations.borrow_mut().push(event);
            return Err(EFAULT);
        }
        if self.fails(addr, len) || !mapped(&areas, addr, len) {
            return Err(EFAULT);
        }
        Ok(())
    }

    fn get_noted(&self, addr: u64, buf: &mut [u8], aligned: u64) -> Result {
        let len = buf.len() as u64;
        self.0.reads.set(self.0.reads.get() + 1);
        self.0.bytes_read.set(self.0.bytes_read.get() + len);
        self.note(Event::Read { addr, len }, addr, len, false, aligned)?;
        buf.copy_from_slice(&self.get(addr, len).ok_or(EFAULT)?);
        if let Some(meddler) = self.0.meddler.borrow_mut().as_mut() {
            meddler(addr, buf);
        }
        Ok(())
    }

    fn put_noted(&self, addr: u64, buf: &[u8], aligned: u64) -> Result {
        let len = buf.len() as u64;
        self.note(Event::Write { addr, len }, addr, len, true, aligned)?;
        self.put(addr, buf);
        Ok(())
    }
}

fn within(area: &Area, addr: u64, len: u64) -> bool {
    addr >= area.start && addr - area.start <= area.len && len <= area.len - (addr - area.start)
}

fn find(areas: &[Area], addr: u64, len: u64) -> Option<&Area> {
    areas.iter().find(|area| within(area, addr, len))
}

fn find_mut(areas: &mut [Area], addr: u64, len: u64) -> Option<&mut Area> {
    areas.iter_mut().find(|area| within(area, addr, len))
}

fn mapped(areas: &[Area], addr: u64, len: u64) -> bool {
    find(areas, addr, len).is_some_and(|area| area.access != Access::Unmapped)
}

/// The number that at most 8 bytes are.
pub fn number_of(bytes: &[u8], endian: Endian) -> u64 {
    let number = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    match endian {
        Endian::Little => bytes.iter().rev().fold(0, number),
        Endian::Big => bytes.iter().fold(0, number),
    }
}

pub fn u16_of(bytes: [u8; 2], endian: Endian) -> u16 {
    match endian {
        Endian::Little => u16::from_le_bytes(bytes),
        Endian::Big => u16::from_be_bytes(bytes),
    }
}

pub fn bytes_of_u16(value: u16, endian: Endian) -> [u8; 2] {
    match endian {
        Endian::Little => value.to_le_bytes(),
        Endian::Big => value.to_be_bytes(),
    }
}

impl UserMemory for &Mem {
    fn access_ok(&self, addr: UserAddr, len: u64) -> bool {
        len <= USER_END && addr.get() <= USER_END - len
    }

    fn read(&self, addr: UserAddr, buf: &mut [u8]) -> Result {
        self.get_noted(addr.get(), buf, 1)
    }

    fn write(&self, addr: UserAddr, buf: &[u8]) -> Result {
        self.put_noted(addr.get(), buf, 1)
    }

    fn load_u16(&self, addr: UserAddr) -> Result<u16> {
        let mut bytes = [0; 2];
        self.get_noted(addr.get(), &mut bytes, 2)?;
        Ok(u16::from_ne_bytes(bytes))
    }

    fn store_u16(&self, addr: UserAddr, value: u16) -> Result {
        self.put_noted(addr.get(), &value.to_ne_bytes(), 2)
    }

    fn read_u64x2_last_first(&self, addr: UserAddr) -> Result<[u64; 2]> {
        let mut bytes = [[0; 8]; 2];
        self.get_noted(addr.get() + 8, &mut bytes[1], 8)?;
        self.read_barrier();
        self.get_noted(addr.get(), &mut bytes[0], 8)?;
        Ok(bytes.map(u64::from_ne_bytes))
    }

    fn store_u64(&self, addr: UserAddr, value: u64) -> Result {
        self.put_noted(addr.get(), &value.to_ne_bytes(), 8)
    }

    fn set_bits(&self, addr: UserAddr, mask: u32) -> Result {
        let addr = addr.get();
        self.note(Event::SetBits { addr, mask }, addr, 4, true, 4)?;
        let bytes = self.get(addr, 4).ok_or(EFAULT)?;
        let word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.put(addr, &(word | mask).to_ne_bytes());
        Ok(())
    }

    fn read_barrier(&self) {
        self.0.events.borrow_mut().push(Event::ReadBarrier);
    }

    fn write_barrier(&self) {
        self.0.events.borrow_mut().push(Event::WriteBarrier);
    }

    fn full_barrier(&self) {
        self.0.events.borrow_mut().push(Event::FullBarrier);
    }
}
