// SPDX-License-Identifier: GPL-2.0

//! The memory of a packed virtqueue, as the guest's driver reads and writes it (virtio 1.3, section 2.8).

use std::sync::atomic::fence;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use crate::ring::Used;
use crate::ring::NEXT;
use crate::ring::WRITE;
use crate::Mem;

/// The two bits of a descriptor that say whose it is.
pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// What an event suppression area asks for: always to be told, never, or at one descriptor. The fourth value is reserved.
pub const ENABLE: u16 = 0;
pub const DISABLE: u16 = 1;
pub const DESC: u16 = 2;
pub const RESERVED: u16 = 3;

static BY_DEFAULT: AtomicBool = AtomicBool::new(false);

/// Sets whether the rings of a guest are packed where its test does not say.
pub fn set_default(packed: bool) {
    BY_DEFAULT.store(packed, Ordering::Relaxed);
}

/// Is it packed rings that are tested?
pub fn by_default() -> bool {
    BY_DEFAULT.load(Ordering::Relaxed)
}

/// A place in the descriptor ring.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spot {
    /// How many descriptors came before it since the ring was new, if it began at 0 with a wrap counter of 1.
    at: u64,
    num: u16,
}

impl Spot {
    /// The place behind so many descriptors.
    pub fn new(at: u64, num: u16) -> Self {
        Spot { at, num }
    }

    /// Its index in the ring.
    pub fn index(self) -> u16 {
        (self.at % u64::from(self.num)) as u16
    }

    /// The wrap counter of whoever is here.
    pub fn wrap(self) -> bool {
        self.at / u64::from(self.num) % 2 == 0
    }

    /// Both, as a vring's base and an event have them.
    pub fn half(self) -> u16 {
        self.index() | u16::from(self.wrap()) << 15
    }

    /// What GET_VRING_BASE says of a device that has used all before this and taken nothing behind.
    pub fn base(self) -> u32 {
        u32::from(self.half()) * 0x1_0001
    }

    /// The place `count` descriptors further on.
    pub fn after(self, count: usize) -> Self {
        Spot::new(self.at + count as u64, self.num)
    }

    /// The place so many descriptors before.
    pub fn before(self, count: usize) -> Self {
        // Two laps are none.
        let laps = 2 * count.div_ceil(self.num.into()) as u64;
        Spot::new(
            self.at + laps * u64::from(self.num) - count as u64,
            self.num,
        )
    }

    /// The flags of a descriptor that is available here.
    pub fn avail(self) -> u16 {
        if self.wrap() {
            AVAIL
        } else {
            USED
        }
    }

    /// The flags of one that is used here.
    pub fn used(self) -> u16 {
        if self.wrap() {
            AVAIL | USED
        } else {
            0
        }
    }

    /// How many descriptors it is from `other` to here, within two laps.
    fn since(self, other: Spot) -> u64 {
        let laps = 2 * u64::from(self.num);
        (self.at % laps + laps - other.at % laps) % laps
    }
}

/// A descriptor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub id: u16,
    pub flags: u16,
}

/// A packed virtqueue's memory, and where the driver stands in it.
pub struct Packed {
    mem: Arc<Mem>,
    num: u16,
    desc: u64,
    driver: u64,
    device: u64,
    /// The next descriptor to make available.
    pub avail: Spot,
    /// The next to look at for a used one.
    pub used: Spot,
    /// What was available when the device was last told.
    told: Spot,
    /// The first descriptor that is written but not yet available, and the flags that make it and all behind it so.
    first: Option<(Spot, u16)>,
}

impl Packed {
    /// A ring of `num` descriptors at `desc`, with the driver's and the device's event suppression areas.
    pub fn new(mem: &Arc<Mem>, num: u16, desc: u64, driver: u64, device: u64) -> Self {
        let start = Spot::new(0, num);
        Packed {
            mem: mem.clone(),
            num,
            desc,
            driver,
            device,
            avail: start,
            used: start,
            told: start,
            first: None,
        }
    }

    /// Starts again behind so many descriptors, with nothing available.
    pub fn reset(&mut self, at: u64) {
        let start = Spot::new(at, self.num);
        (self.avail, self.used, self.told) = (start, start, start);
        self.first = None;
        for i in 0..usize::from(self.num) {
            // What is before here was used in this lap, the rest in the one before.
            let lap = if i < start.index().into() {
                start
            } else {
                start.before(self.num.into())
            };
            self.store(self.flags_at(i as u16), lap.used());
        }
    }

    fn u16_at(&self, gpa: u64) -> &AtomicU16 {
        let (p, left) = self.mem.hva(gpa);
        assert!(left >= 2);
        // SAFETY: two bytes are mapped there, aligned, as long as `mem` lives.
        unsafe { AtomicU16::from_ptr(p.cast()) }
    }

    fn store(&self, gpa: u64, value: u16) {
        self.u16_at(gpa).store(value.to_le(), Ordering::Release);
    }

    fn load(&self, gpa: u64) -> u16 {
        u16::from_le(self.u16_at(gpa).load(Ordering::Acquire))
    }

    fn desc_at(&self, index: u16) -> u64 {
        self.desc + 16 * u64::from(index)
    }

    fn flags_at(&self, index: u16) -> u64 {
        self.desc_at(index) + 14
    }

    /// What stands in the ring.
    pub fn read(&self, spot: Spot) -> Desc {
        let flags = self.load(self.flags_at(spot.index()));
        let d = self.mem.read(self.desc_at(spot.index()), 14);
        Desc {
            addr: u64::from_le_bytes(d[..8].try_into().unwrap()),
            len: u32::from_le_bytes(d[8..12].try_into().unwrap()),
            id: u16::from_le_bytes(d[12..].try_into().unwrap()),
            flags,
        }
    }

    /// Writes a descriptor, whatever its content, the flags last.
    pub fn write(&self, spot: Spot, d: Desc) {
        self.write_but_flags(spot, d);
        self.store(self.flags_at(spot.index()), d.flags);
    }

    /// The same, and leaves the flags.
    fn write_but_flags(&self, spot: Spot, d: Desc) {
        let mut bytes = [0; 14];
        bytes[..8].copy_from_slice(&d.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&d.len.to_le_bytes());
        bytes[12..].copy_from_slice(&d.id.to_le_bytes());
        self.mem.write(self.desc_at(spot.index()), &bytes);
    }

    /// Writes a chain of descriptors (address, length, flags except NEXT) that is not yet available. Only its last one has the
    /// buffer's id: in the others that field means nothing.
    pub fn add(&mut self, list: &[(u64, u32, u16)], id: u16) {
        for (i, &(addr, len, flags)) in list.iter().enumerate() {
            let last = i + 1 == list.len();
            let d = Desc {
                addr,
                len,
                id: if last { id } else { 0xdead },
                flags: flags | self.avail.avail() | if last { 0 } else { NEXT },
            };
            if self.first.is_none() {
                self.write_but_flags(self.avail, d);
                self.first = Some((self.avail, d.flags));
            } else {
                self.write(self.avail, d);
            }
            self.avail = self.avail.after(1);
        }
    }

    /// Makes all that was added available.
    pub fn publish(&mut self) {
        if let Some((spot, flags)) = self.first.take() {
            self.store(self.flags_at(spot.index()), flags);
        }
    }

    /// What was added and is not yet available was not added.
    pub fn take_back(&mut self) {
        self.avail = self.used;
        self.first = None;
    }

    /// The used descriptor here, if there is one. Its length counts if it says that something was written.
    pub fn used_at(&self, spot: Spot) -> Option<Used> {
        let flags = self.load(self.flags_at(spot.index()));
        if flags & (AVAIL | USED) != spot.used() {
            return None;
        }
        let d = self.read(spot);
        Some(Used {
            id: d.id.into(),
            len: if flags & WRITE != 0 { d.len } else { 0 },
        })
    }

    /// The device's event suppression area: what it asks for, and the place if it asks for one.
    pub fn device_event(&self) -> (u16, u16) {
        let flags = self.load(self.device + 2) & 3;
        (flags, self.load(self.device))
    }

    /// Writes what the device writes, as one that was there before it did.
    pub fn set_device_event(&self, flags: u16, place: u16) {
        self.store(self.device, place);
        self.store(self.device + 2, flags);
    }

    /// Asks the device for calls.
    pub fn set_driver_event(&self, flags: u16, place: u16) {
        self.store(self.driver, place);
        self.store(self.driver + 2, flags);
        fence(Ordering::SeqCst);
    }

    /// Asks for a call when this is used.
    pub fn call_at(&self, spot: Spot) {
        self.set_driver_event(DESC, spot.half());
    }

    /// Does the device want to be told of what is available since it was last told?
    pub fn wants_kick(&self) -> bool {
        match self.device_event() {
            (ENABLE, _) => true,
            (DESC, place) => self.spot_of(place).since(self.told) < self.avail.since(self.told),
            _ => false,
        }
    }

    /// Does it want to be told of the very next?
    pub fn wants_next(&self) -> bool {
        match self.device_event() {
            (ENABLE, _) => true,
            (DESC, place) => place == self.avail.half(),
            _ => false,
        }
    }

    /// The device was told of all that is available.
    pub fn tell(&mut self) {
        self.told = self.avail;
    }

    fn spot_of(&self, place: u16) -> Spot {
        let lap = if place & USED != 0 { 0 } else { self.num };
        Spot::new(u64::from(place & 0x7fff) + u64::from(lap), self.num)
    }
}
