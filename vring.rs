// SPDX-License-Identifier: GPL-2.0

//! The virtqueue: where a driver makes buffers available and the device gives them back used.
//!
//! A [`Vring`] is one queue in the split format (virtio 1.3, section 2.7), seen from the device.
//! The device [takes](Vring::take) the chains that it needs for a packet, completes or drops the
//! [`Take`], [publishes](Vring::publish) what was completed, and asks whether the driver
//! [wants a call](Vring::wants_call). A chain whose buffers are needed for longer it
//! [defers](Take::defer). The driver is hostile: every value of its memory is read
//! once and checked before use, and no ring content can make a method here panic, loop without
//! end, reach memory outside the ring and the memory table, or complete a chain twice.
//!
//! The caller serialises all access to a ring (its queue's mutex in the kernel).

#![forbid(unsafe_code)]

use crate::{
    features::Features,
    log::{
        Dirty,
        DirtyList,
        DirtyLog, //
    },
    memtable::{
        Access,
        GuestAddr,
        Hint,
        Iotlb,
        Iova,
        Maps,
        MemTable,
        Miss,
        Refused,
        Segments,
        MAX_SEGMENTS, //
    },
    usermem::{
        Segment,
        UserAddr,
        UserMemory, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};
use zerocopy_derive::Immutable;

/// The most descriptors that a ring may have (virtio 1.3, section 2.7: a power of two).
pub const MAX_NUM: u32 = 0x8000;

/// The most descriptors that an indirect table may have: they are linked by 16-bit numbers.
const MAX_INDIRECT: u32 = 0x1_0000;

/// The most descriptors that the chains of one packet may have, in the ring and in all their
/// indirect tables. An honest driver is far below; without a limit, a ring full of tables would
/// keep the device for minutes.
const MAX_PACKET: u32 = MAX_NUM + MAX_INDIRECT;

/// How many entries of the available ring are read at a time.
const HEADS: usize = 64;

/// Chains that are completed but not published; a turn publishes long before there are as many.
const MAX_DONE: usize = MAX_SEGMENTS + HEADS;

/// Why a queue can't go on: its ring or a buffer is malformed or out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kernel's error code for it.
    pub error: Error,
    /// What was found, for the person who debugs the driver.
    pub why: &'static str,
    /// The address that nothing is known of, if that is all that is wrong.
    pub miss: Option<Miss>,
}

impl Fault {
    /// Makes a fault.
    pub const fn new(error: Error, why: &'static str) -> Self {
        Self {
            error,
            why,
            miss: None,
        }
    }

    fn refused(refused: Refused, why: &'static str) -> Self {
        match refused {
            Refused::Unmapped(miss) => Self {
                miss: Some(miss),
                ..Self::new(EFAULT, why)
            },
            Refused::Denied => Self::new(EPERM, "a map does not allow the access"),
            Refused::TooMany => Self::new(ENOBUFS, "a chain has too many pieces"),
        }
    }
}

/// Gives an error its reason.
pub trait Because<T> {
    /// The same result, with the fault that the error is.
    fn because(self, why: &'static str) -> Result<T, Fault>;
}

impl<T> Because<T> for Result<T> {
    #[inline(always)]
    fn because(self, why: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(error, why))
    }
}

impl<T> Because<T> for Result<T, Refused> {
    #[inline(always)]
    fn because(self, why: &'static str) -> Result<T, Fault> {
        self.map_err(|refused| Fault::refused(refused, why))
    }
}

/// The byte order of a ring's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// Little: every modern device, and a legacy one of a little-endian guest.
    Little,
    /// Big: a legacy device of a big-endian guest.
    Big,
}

impl Endian {
    /// The byte order of the CPU.
    pub const NATIVE: Self = if cfg!(target_endian = "little") {
        Self::Little
    } else {
        Self::Big
    };

    /// Converts a 16-bit field from or to the CPU's order.
    #[inline(always)]
    pub fn u16(self, value: u16) -> u16 {
        match self {
            Self::Little => value.to_le(),
            Self::Big => value.to_be(),
        }
    }

    /// Converts a 32-bit field from or to the CPU's order.
    #[inline(always)]
    pub fn u32(self, value: u32) -> u32 {
        match self {
            Self::Little => value.to_le(),
            Self::Big => value.to_be(),
        }
    }

    /// Converts a 64-bit field from or to the CPU's order.
    #[inline(always)]
    pub fn u64(self, value: u64) -> u64 {
        match self {
            Self::Little => value.to_le(),
            Self::Big => value.to_be(),
        }
    }
}

/// `struct virtq_desc` (virtio 1.3, section 2.7.5), in the ring's byte order.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawDesc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// The size of a descriptor in bytes.
const DESC_SIZE: usize = size_of::<RawDesc>();

impl RawDesc {
    #[inline(always)]
    fn read(mem: &impl UserMemory, addr: UserAddr) -> Result<Self> {
        mem.read_u64x2(addr)
            .map(|words| zerocopy::transmute!(words))
    }
}

/// A descriptor, read once, in the CPU's byte order.
#[derive(Clone, Copy)]
struct Desc {
    addr: Iova,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    const F_NEXT: u16 = 1;
    const F_WRITE: u16 = 2;
    const F_INDIRECT: u16 = 4;

    #[inline(always)]
    fn new(raw: RawDesc, endian: Endian) -> Self {
        if endian == Endian::NATIVE {
            Self::convert(raw, Endian::NATIVE)
        } else {
            Self::convert_foreign(raw, endian)
        }
    }

    #[cold]
    fn convert_foreign(raw: RawDesc, endian: Endian) -> Self {
        Self::convert(raw, endian)
    }

    #[inline(always)]
    fn convert(raw: RawDesc, endian: Endian) -> Self {
        Self {
            addr: Iova::new(endian.u64(raw.addr)),
            len: endian.u32(raw.len),
            flags: endian.u16(raw.flags),
            next: endian.u16(raw.next),
        }
    }

    #[inline(always)]
    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether it is a chain by itself, of one buffer.
    #[inline(always)]
    fn is_whole(&self) -> bool {
        self.flags & (Self::F_NEXT | Self::F_INDIRECT) == 0
    }
}

/// `struct virtq_used_elem` (virtio 1.3, section 2.7.8), in the ring's byte order.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
struct UsedElem {
    id: u32,
    len: u32,
}

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver asks for no calls.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device asks for no kicks.
const USED_F_NO_NOTIFY: u16 = 1;

/// Where a ring's three parts are: in user memory, or with an IOTLB where that says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAddrs {
    /// The descriptor table, 16 bytes a descriptor.
    pub desc: UserAddr,
    /// The available ring, a multiple of two.
    pub avail: UserAddr,
    /// The used ring, a multiple of four.
    pub used: UserAddr,
}

/// Both rings start with 16-bit flags and a 16-bit index.
const FLAGS: u64 = 0;
const IDX: u64 = 2;
const ENTRIES: u64 = 4;

/// Where the writes to a used ring are logged.
pub struct UsedLog {
    /// The log.
    pub log: DirtyLog,
    /// The guest address of the used ring. Not used with an IOTLB.
    pub addr: GuestAddr,
    /// Guest memory: with an IOTLB, what knows the guest addresses of the used ring.
    pub mem: Option<Arc<MemTable>>,
}

/// A part of the ring in user memory.
#[derive(Default)]
struct Area {
    /// All of it lies together, at `base`.
    flat: bool,
    base: UserAddr,
    /// If not, where its pieces are: there are none while that is not known.
    pieces: KVVec<Segment>,
}

impl Area {
    fn flat(base: UserAddr) -> Self {
        Self {
            flat: true,
            base,
            pieces: KVVec::new(),
        }
    }

    /// The area of `len` bytes that the driver has at `addr`, for an `access`.
    fn resolve(
        maps: &Maps,
        addr: UserAddr,
        len: u64,
        access: Access,
        hint: &mut Hint,
        scratch: &mut Segments,
    ) -> Result<Self, Fault> {
        let why = "the ring is not in memory";
        let addr = Iova::new(addr.get());
        let len = u32::try_from(len).map_err(|_| Fault::new(EINVAL, why))?;
        scratch.clear();
        maps.translate(addr, len, access, hint, scratch)
            .because(why)?;
        let mut area = Self::default();
        match scratch.as_slice() {
            [all] => area = Self::flat(all.addr()),
            several => area
                .pieces
                .extend_from_slice(several, GFP_KERNEL)
                .map_err(Error::from)
                .because("no memory to keep where the ring is")?,
        }
        Ok(area)
    }

    /// The user address of the `len` bytes at `offset`. Fails with [`EFAULT`] if they do not lie
    /// together.
    #[inline(always)]
    fn at(&self, offset: u64, len: usize) -> Result<UserAddr> {
        if self.flat {
            return Ok(self.base.offset(offset));
        }
        let (addr, together) = self.find(offset)?;
        if together < len {
            return Err(EFAULT);
        }
        Ok(addr)
    }

    /// The user address of the byte at `offset`, and how many bytes lie together from there.
    #[cold]
    fn find(&self, offset: u64) -> Result<(UserAddr, usize)> {
        let mut skip = usize::try_from(offset).map_err(|_| EFAULT)?;
        for piece in &self.pieces {
            if skip < piece.len() {
                let rest = piece.skip(skip);
                return Ok((rest.addr(), rest.len()));
            }
            skip -= piece.len();
        }
        Err(EFAULT)
    }

    /// Reads the 16-bit word at `offset`, which is even.
    #[inline(always)]
    fn load_u16(&self, mem: &impl UserMemory, offset: u64) -> Result<u16> {
        mem.load_u16(self.at(offset, 2)?)
    }

    /// Writes the 16-bit word at `offset`, which is even.
    #[inline(always)]
    fn store_u16(&self, mem: &impl UserMemory, offset: u64, value: u16) -> Result {
        mem.store_u16(self.at(offset, 2)?, value)
    }

    /// Reads `buf.len()` bytes from `offset`.
    #[inline(always)]
    fn read(&self, mem: &impl UserMemory, offset: u64, buf: &mut [u8]) -> Result {
        if self.flat {
            return mem.read(self.base.offset(offset), buf);
        }
        self.read_pieces(mem, offset, buf)
    }

    #[cold]
    fn read_pieces(&self, mem: &impl UserMemory, mut offset: u64, mut buf: &mut [u8]) -> Result {
        while !buf.is_empty() {
            let (addr, together) = self.find(offset)?;
            let count = together.min(buf.len());
            let (now, later) = buf.split_at_mut_checked(count).ok_or(EFAULT)?;
            mem.read(addr, now)?;
            offset += count as u64;
            buf = later;
        }
        Ok(())
    }

    /// Writes all of `buf` to `offset`.
    #[inline(always)]
    fn write(&self, mem: &impl UserMemory, offset: u64, buf: &[u8]) -> Result {
        if self.flat {
            return mem.write(self.base.offset(offset), buf);
        }
        self.write_pieces(mem, offset, buf)
    }

    #[cold]
    fn write_pieces(&self, mem: &impl UserMemory, mut offset: u64, mut buf: &[u8]) -> Result {
        while !buf.is_empty() {
            let (addr, together) = self.find(offset)?;
            let (now, later) = buf.split_at_checked(together).unwrap_or((buf, &[]));
            mem.write(addr, now)?;
            offset += now.len() as u64;
            buf = later;
        }
        Ok(())
    }
}

/// Entries of the available ring that were read together.
struct Heads {
    /// The index of the first one.
    first: u16,
    count: u16,
    /// In the ring's byte order.
    entries: [u16; HEADS],
}

impl Heads {
    #[inline(always)]
    fn get(&self, index: u16) -> Option<u16> {
        let at = index.wrapping_sub(self.first);
        if at >= self.count {
            return None;
        }
        // There are no more than `HEADS`.
        Some(self.entries[usize::from(at) % HEADS])
    }
}

/// A chain that was taken from a ring.
///
/// Its buffers follow each other in the [`Segments`] that the caller gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The number of its first descriptor: the name by which the driver knows it.
    pub head: u16,
    /// The number of segments that the device may read; they come first.
    pub readable: usize,
    /// The number of segments that the device may write; they come last.
    pub writable: usize,
    /// The number of descriptors that were read for it.
    pub descriptors: u32,
}

/// A chain that is neither in its ring nor completed: its buffers are still in use.
///
/// It goes back to [`Vring::complete_deferred`] of its ring; dropped, it stays deferred.
#[derive(Debug)]
#[must_use = "dropped, it is never completed"]
pub struct Deferred {
    elem: UsedElem,
    /// The [`Vring::era`] that it was deferred in.
    era: u32,
}

/// A split virtqueue in user memory `M`.
pub struct Vring<M> {
    mem: M,
    /// The number of descriptors, a power of two from 1 to [`MAX_NUM`].
    num: u16,
    addrs: RingAddrs,
    /// `addrs` are addresses of the driver, which the IOTLB knows.
    behind_iotlb: bool,
    /// With an IOTLB, the generation of it that the areas were found in.
    found_in: Option<u64>,
    desc: Area,
    avail: Area,
    used: Area,
    endian: Endian,
    event_idx: bool,
    notify_on_empty: bool,
    in_order: bool,
    used_log: Option<UsedLog>,
    /// The index of the next chain to take (`last_avail_idx`).
    next_avail: u16,
    /// With `in_order`: the place in the descriptor table of the next chain, which wraps; unknown
    /// until a chain was taken.
    next_desc: Option<u16>,
    /// The driver's index as last read.
    avail_idx: u16,
    /// The index of the next used entry to write.
    used_idx: u16,
    used_flags: u16,
    /// The used index at the last call that counted for the event index, if it is still
    /// meaningful.
    called_at: Option<u16>,
    /// Something went to the log since [`Self::logged`] was asked last.
    logged: bool,
    /// Something did not, since [`Self::log_failed`] was asked last.
    log_failed: bool,
    heads: Heads,
    /// Used entries that are not published: one for each completed chain, or with `in_order` one
    /// for each packet that was received and one for all that were transmitted.
    done: KVVec<UsedElem>,
    /// With `in_order`: how many chains each of `done` stands for.
    spans: KVVec<u16>,
    /// How many chains `done` stands for.
    unpublished: usize,
    /// How many chains are deferred.
    deferred: usize,
    /// How many chains may be taken and not published: as many as the ring has and as there is
    /// room for, less those that are deferred.
    limit: usize,
    /// Changes, and wraps, when deferred chains are forgotten.
    era: u32,
    hint: Hint,
    /// The user memory of the indirect table that is being read.
    table: Segments,
}

impl<M: UserMemory> Vring<M> {
    /// Makes a ring of one descriptor at no useful address.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new(mem: M) -> Result<Self> {
        Ok(Self {
            mem,
            num: 1,
            addrs: RingAddrs::default(),
            behind_iotlb: false,
            found_in: None,
            desc: Area::default(),
            avail: Area::default(),
            used: Area::default(),
            endian: Endian::NATIVE,
            event_idx: false,
            notify_on_empty: false,
            in_order: false,
            used_log: None,
            next_avail: 0,
            next_desc: None,
            avail_idx: 0,
            used_idx: 0,
            used_flags: 0,
            called_at: None,
            logged: false,
            log_failed: false,
            heads: Heads {
                first: 0,
                count: 0,
                entries: [0; HEADS],
            },
            done: KVVec::with_capacity(MAX_DONE, GFP_KERNEL)?,
            spans: KVVec::with_capacity(MAX_DONE, GFP_KERNEL)?,
            unpublished: 0,
            deferred: 0,
            limit: 1,
            era: 0,
            hint: Hint::default(),
            table: Segments::new()?,
        })
    }

    /// Puts the ring into the state that [`Self::new`] made.
    pub fn reset(&mut self) {
        self.num = 1;
        self.set_behind_iotlb(false);
        self.set_addrs(RingAddrs::default());
        self.endian = Endian::NATIVE;
        self.set_features(Features::default());
        self.used_log = None;
        self.used_idx = 0;
        self.used_flags = 0;
        self.called_at = None;
        self.logged = false;
        self.log_failed = false;
        self.set_base(0);
    }

    /// The user memory that the ring is in.
    pub fn mem(&self) -> &M {
        &self.mem
    }

    /// The byte order of the ring, and of the packet headers in its buffers.
    pub fn endian(&self) -> Endian {
        self.endian
    }

    /// The number of descriptors.
    pub fn num(&self) -> u16 {
        self.num
    }

    /// Sets the number of descriptors. What was deferred, or completed but not published, is
    /// forgotten.
    ///
    /// Fails with [`EINVAL`] unless `num` is a power of two from 1 to [`MAX_NUM`].
    pub fn set_num(&mut self, num: u32) -> Result {
        if !num.is_power_of_two() || num > MAX_NUM {
            return Err(EINVAL);
        }
        self.num = num as u16;
        self.forget_taken();
        self.forget_heads();
        self.forget_areas();
        Ok(())
    }

    /// Where the ring is.
    pub fn addrs(&self) -> RingAddrs {
        self.addrs
    }

    /// Moves the ring to `addrs`, which have the alignment that [`RingAddrs`] asks for.
    pub fn set_addrs(&mut self, addrs: RingAddrs) {
        self.addrs = addrs;
        self.forget_heads();
        self.forget_areas();
    }

    /// Sets whether the ring's addresses are such that an IOTLB knows. If so it has to be
    /// [found](Self::find) before it is used.
    pub fn set_behind_iotlb(&mut self, behind: bool) {
        self.behind_iotlb = behind;
        self.forget_areas();
    }

    fn forget_areas(&mut self) {
        self.found_in = None;
        let area = |addr| match self.behind_iotlb {
            true => Area::default(),
            false => Area::flat(addr),
        };
        (self.desc, self.avail, self.used) = (
            area(self.addrs.desc),
            area(self.addrs.avail),
            area(self.addrs.used),
        );
    }

    /// Finds the ring in user memory, if it may have moved since this was last asked.
    ///
    /// Fails with [`EFAULT`] if part of it is not mapped, with [`EPERM`] if a map does not allow
    /// what the ring is for, with [`ENOBUFS`] if it is in too many pieces, and with [`ENOMEM`].
    pub fn find(&mut self, iotlb: &Iotlb) -> Result<(), Fault> {
        if self.found_in == Some(iotlb.generation()) {
            return Ok(());
        }
        self.forget_areas();
        let (maps, addrs) = (iotlb.maps(), self.addrs);
        let desc_size = u64::from(self.num) * DESC_SIZE as u64;
        let (avail_size, used_size) = (self.avail_size(), self.used_size());
        let (hint, table) = (&mut self.hint, &mut self.table);
        let mut area = |addr, len, access| Area::resolve(maps, addr, len, access, hint, table);
        self.desc = area(addrs.desc, desc_size, Access::Read)?;
        self.avail = area(addrs.avail, avail_size, Access::Read)?;
        self.used = area(addrs.used, used_size, Access::Write)?;
        self.found_in = Some(iotlb.generation());
        Ok(())
    }

    /// The index of the chain that the device will take next.
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    /// Makes `base` the index of the chain that the device will take next. What was deferred, or
    /// completed but not published, is forgotten.
    pub fn set_base(&mut self, base: u16) {
        self.next_avail = base;
        self.next_desc = None;
        self.avail_idx = base;
        self.forget_taken();
        self.forget_heads();
    }

    /// Sets the features that the driver accepted. If the order of use changes, what was deferred,
    /// or completed but not published, is forgotten.
    pub fn set_features(&mut self, features: Features) {
        self.event_idx = features.has(Features::EVENT_IDX);
        self.forget_areas();
        self.notify_on_empty = features.has(Features::NOTIFY_ON_EMPTY);
        let in_order = features.has(Features::IN_ORDER);
        if in_order != self.in_order {
            self.in_order = in_order;
            self.next_desc = None;
            self.forget_taken();
        }
    }

    /// Sets where writes to the used ring are logged.
    pub fn set_used_log(&mut self, log: Option<UsedLog>) {
        self.used_log = log;
    }

    /// Whether a write to the used ring was logged since this was last asked.
    pub fn logged(&mut self) -> bool {
        core::mem::take(&mut self.logged)
    }

    /// Whether a write to the used ring should have been logged since this was last asked, and the
    /// log was not mapped.
    pub fn log_failed(&mut self) -> bool {
        core::mem::take(&mut self.log_failed)
    }

    /// The size in bytes of the used ring.
    pub fn used_size(&self) -> u64 {
        self.avail_event() + if self.event_idx { 2 } else { 0 }
    }

    fn avail_size(&self) -> u64 {
        self.used_event() + if self.event_idx { 2 } else { 0 }
    }

    /// Whether a ring at `addrs` would be within user space.
    pub fn access_ok(&self, addrs: RingAddrs) -> bool {
        self.mem
            .access_ok(addrs.desc, u64::from(self.num) * DESC_SIZE as u64)
            && self.mem.access_ok(addrs.avail, self.avail_size())
            && self.mem.access_ok(addrs.used, self.used_size())
    }

    /// Readies the ring for its device: tells the driver whether kicks are wanted, and goes on
    /// behind the last entry that the used ring holds. `iotlb` is what knows where that is, if it
    /// is not in user memory.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written or read; then the ring is as
    /// before.
    pub fn start(&mut self, endian: Endian, iotlb: Option<&Iotlb>) -> Result<(), Fault> {
        if let Some(iotlb) = iotlb {
            // No more of the ring has to be there yet.
            let (maps, addr, len) = (iotlb.maps(), self.addrs.used, IDX + 2);
            let (hint, table) = (&mut self.hint, &mut self.table);
            let mut area = |access| Area::resolve(maps, addr, len, access, hint, table);
            area(Access::Read)?;
            self.used = area(Access::Write)?;
        }
        let before = core::mem::replace(&mut self.endian, endian);
        let started = self.try_start();
        if iotlb.is_some() {
            self.forget_areas();
        }
        started.inspect_err(|_| self.endian = before)?;
        if endian != before {
            // It is in the other byte order.
            self.forget_taken();
        }
        Ok(())
    }

    fn try_start(&mut self) -> Result<(), Fault> {
        self.write_used_flags()
            .because("the used ring's flags can't be written")?;
        self.called_at = None;
        let used_idx = self
            .used
            .load_u16(&self.mem, IDX)
            .because("the used ring's index can't be read")?;
        self.used_idx = self.endian.u16(used_idx);
        Ok(())
    }

    /// Starts to take the chains of a packet.
    #[inline(always)]
    pub fn take(&mut self) -> Take<'_, M> {
        Take {
            done: self.done.len(),
            next_desc: self.next_desc,
            chains: 0,
            descriptors: 0,
            ring: self,
        }
    }

    /// Completes a chain of this ring that was deferred. If the ring has forgotten those since,
    /// this does nothing.
    pub fn complete_deferred(&mut self, chain: Deferred) {
        if chain.era != self.era {
            return;
        }
        self.deferred = self.deferred.saturating_sub(1);
        self.update_limit();
        // There is room: the limit leaves some for each deferred chain.
        let _ = self.done.push_within_capacity(chain.elem);
        self.unpublished += 1;
    }

    fn update_limit(&mut self) {
        self.limit = usize::from(self.num).min(MAX_DONE);
        self.limit = self.limit.saturating_sub(self.deferred);
    }

    /// The number of chains that are completed but not published.
    #[inline(always)]
    pub fn unpublished(&self) -> usize {
        self.unpublished
    }

    /// Whether the driver has made nothing available that was not taken.
    ///
    /// A ring that can't be read is not empty: the next [`Take::next_chain`] says what is wrong.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        self.avail_idx == self.next_avail && matches!(self.read_avail_idx(), Ok(false))
    }

    /// Gives the completed chains to the driver, in the order they were completed.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written. The chains stay completed, and the
    /// next call tries them again.
    pub fn publish(&mut self) -> Result<(), Fault> {
        let old = self.used_idx;
        // No more than a ring has, and so no more than a `u16` holds.
        let new = old.wrapping_add(self.unpublished as u16);
        if self.in_order {
            self.write_used_in_order(old)
        } else {
            self.write_used_elems(old)
        }
        .because("the used ring can't be written")?;

        // The entries before the index that shows them; pairs with the driver's read barrier
        // between its reads of the index and of the entries.
        self.mem.write_barrier();
        self.used
            .store_u16(&self.mem, IDX, self.endian.u16(new))
            .because("the used ring's index can't be written")?;
        self.log_used(IDX, 2);

        self.forget_done();
        self.used_idx = new;
        // If the driver has not been called for so long that the index went around, where it was
        // called last says nothing any more.
        if let Some(called_at) = self.called_at {
            if new.wrapping_sub(called_at) < new.wrapping_sub(old) {
                self.called_at = None;
            }
        }
        Ok(())
    }

    fn write_used_elems(&mut self, first: u16) -> Result {
        let mut from = 0;
        let mut at = usize::from(self.slot(first));
        while let Some(elems) = self.done.get(from..).filter(|elems| !elems.is_empty()) {
            // At most to the end of the ring, then on from its start.
            let room = usize::from(self.num).saturating_sub(at);
            let now = elems.get(..room).unwrap_or(elems);
            let (count, len) = (now.len(), size_of_val(now) as u64);
            let offset = ENTRIES + at as u64 * size_of::<UsedElem>() as u64;
            self.used.write(&self.mem, offset, now.as_bytes())?;
            self.log_used(offset, len);
            from += count;
            at = 0;
        }
        Ok(())
    }

    /// Writes an entry where the first of the chains that it stands for belongs (virtio 1.3,
    /// section 2.7.9).
    fn write_used_in_order(&mut self, mut index: u16) -> Result {
        for number in 0..self.done.len() {
            let (Some(elem), Some(span)) = (self.done.get(number), self.spans.get(number)) else {
                break;
            };
            let (elem, span) = (*elem, *span);
            let len = size_of::<UsedElem>() as u64;
            let offset = ENTRIES + u64::from(self.slot(index)) * len;
            self.used.write(&self.mem, offset, elem.as_bytes())?;
            self.log_used(offset, len);
            index = index.wrapping_add(span);
        }
        Ok(())
    }

    fn forget_taken(&mut self) {
        self.forget_done();
        self.deferred = 0;
        self.era = self.era.wrapping_add(1);
        self.update_limit();
    }

    fn forget_done(&mut self) {
        self.done.clear();
        self.spans.clear();
        self.unpublished = 0;
    }

    /// Whether the driver is to be called for what was published since this was last asked.
    ///
    /// Fails with [`EFAULT`] if the available ring can't be read; then call the driver.
    pub fn wants_call(&mut self) -> Result<bool, Fault> {
        // The used index before the driver's suppression; pairs with the barrier that the driver
        // has between enabling calls and looking at the used index again.
        self.mem.full_barrier();

        if self.notify_on_empty && self.avail_idx == self.next_avail {
            return Ok(true);
        }
        if !self.event_idx {
            let flags = self
                .avail
                .load_u16(&self.mem, FLAGS)
                .because("the available ring's flags can't be read")?;
            return Ok(self.endian.u16(flags) & AVAIL_F_NO_INTERRUPT == 0);
        }
        let new = self.used_idx;
        let Some(old) = self.called_at.replace(new) else {
            return Ok(true);
        };
        let event = self
            .avail
            .load_u16(&self.mem, self.used_event())
            .because("the used event index can't be read")?;
        Ok(passed_event(self.endian.u16(event), new, old))
    }

    /// Asks the driver not to kick.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written. The driver may kick all the same.
    #[inline]
    pub fn disable_kicks(&mut self) -> Result<(), Fault> {
        if self.used_flags & USED_F_NO_NOTIFY != 0 {
            return Ok(());
        }
        self.used_flags |= USED_F_NO_NOTIFY;
        if self.event_idx {
            // The event index, left behind, asks for no more.
            return Ok(());
        }
        self.write_used_flags()
            .because("the used ring's flags can't be written")
    }

    /// Asks the driver to kick when it makes more available.
    ///
    /// Returns true if it has done so meanwhile: no kick may come for that. Fails with [`EFAULT`]
    /// if the used ring can't be written or the available ring can't be read, and with [`EINVAL`]
    /// if the available index is impossible.
    pub fn enable_kicks(&mut self) -> Result<bool, Fault> {
        if self.used_flags & USED_F_NO_NOTIFY == 0 {
            return Ok(false);
        }
        self.used_flags &= !USED_F_NO_NOTIFY;
        if self.event_idx {
            let offset = self.avail_event();
            self.used
                .store_u16(&self.mem, offset, self.endian.u16(self.avail_idx))
                .because("the available event index can't be written")?;
            self.log_used(offset, 2);
        } else {
            self.write_used_flags()
                .because("the used ring's flags can't be written")?;
        }
        // The request before the look at the index; pairs with the barrier that the driver has
        // between moving the index and looking whether a kick is wanted.
        self.mem.full_barrier();
        self.read_avail_idx()
    }

    /// Reads the driver's index. Returns whether it moved.
    #[inline(never)]
    fn read_avail_idx(&mut self) -> Result<bool, Fault> {
        let raw = self
            .avail
            .load_u16(&self.mem, IDX)
            .because("the available index can't be read")?;
        let avail_idx = self.endian.u16(raw);
        if avail_idx.wrapping_sub(self.next_avail) > self.num {
            return Err(Fault::new(EINVAL, "the available index jumped"));
        }
        if avail_idx == self.avail_idx {
            return Ok(false);
        }
        self.avail_idx = avail_idx;
        // The index before the entries and descriptors that it shows; pairs with the write barrier
        // that the driver has before it moves the index.
        self.mem.read_barrier();
        Ok(true)
    }

    /// The first descriptor of the chain at `next_avail`, which the driver has made available.
    #[inline(always)]
    fn head(&mut self) -> Result<u16> {
        if self.in_order {
            if let Some(next) = self.next_desc {
                // The driver takes its descriptors in the order of the table.
                return Ok(self.slot(next));
            }
        }
        let index = self.next_avail;
        let raw = match self.heads.get(index) {
            Some(raw) => raw,
            None => self.read_heads(index)?,
        };
        Ok(self.endian.u16(raw))
    }

    /// Reads the available entries from `index` to the end of the ring, and returns the first.
    #[inline(never)]
    fn read_heads(&mut self, index: u16) -> Result<u16> {
        let at = self.slot(index);
        let offset = ENTRIES + u64::from(at) * 2;
        let available = self.avail_idx.wrapping_sub(index).min(self.num - at);
        let count = usize::from(available).min(HEADS);

        self.forget_heads();
        if count <= 1 {
            return self.avail.load_u16(&self.mem, offset);
        }
        let entries = self.heads.entries.get_mut(..count).ok_or(EFAULT)?;
        self.avail.read(&self.mem, offset, entries.as_mut_bytes())?;
        let head = entries.first().copied().ok_or(EFAULT)?;
        self.heads.first = index;
        self.heads.count = count as u16;
        Ok(head)
    }

    /// Forgets what was read of the available ring ahead of its use.
    pub fn forget_heads(&mut self) {
        self.heads.count = 0;
    }

    #[inline(always)]
    fn read_desc(&self, index: u16) -> Result<Desc, Fault> {
        let offset = u64::from(index) * DESC_SIZE as u64;
        let raw = if self.desc.flat {
            RawDesc::read(&self.mem, self.desc.base.offset(offset))
        } else {
            self.read_desc_pieces(offset)
        };
        let raw = raw.because("a descriptor can't be read")?;
        Ok(Desc::new(raw, self.endian))
    }

    #[cold]
    fn read_desc_pieces(&self, offset: u64) -> Result<RawDesc> {
        let mut raw = RawDesc::default();
        self.desc
            .read_pieces(&self.mem, offset, raw.as_mut_bytes())?;
        Ok(raw)
    }

    /// Follows the chain whose first descriptor is `desc`. Returns what was found, and how many
    /// descriptors it has in the ring itself. Fails as [`Take::next_chain`] does of a chain.
    #[inline(never)]
    fn follow(&mut self, mut desc: Desc, mut parts: Parts<'_>) -> Result<(Found, u16), Fault> {
        let mut count = 1;
        loop {
            if desc.has(Desc::F_INDIRECT) {
                self.follow_indirect(desc, &mut parts)?;
            } else {
                parts.add(desc, &mut self.hint)?;
            }
            if !desc.has(Desc::F_NEXT) {
                return Ok((parts.found, count));
            }
            if desc.next >= self.num {
                return Err(Fault::new(EINVAL, "a descriptor index is out of range"));
            }
            count += 1;
            if count > self.num {
                return Err(Fault::new(EINVAL, "a chain of descriptors loops"));
            }
            desc = self.read_desc(desc.next)?;
        }
    }

    /// Adds the buffers of the indirect table that `desc` names (virtio 1.3, section 2.7.5.3).
    ///
    /// The table is read from its start in order, wherever its descriptors say the next one is.
    fn follow_indirect(&mut self, desc: Desc, parts: &mut Parts<'_>) -> Result<(), Fault> {
        if desc.len % DESC_SIZE as u32 != 0 {
            return Err(Fault::new(
                EINVAL,
                "an indirect table has part of a descriptor",
            ));
        }
        self.table.clear();
        parts
            .maps
            .translate(
                desc.addr,
                desc.len,
                Access::Read,
                &mut self.hint,
                &mut self.table,
            )
            .because("an indirect table is not in memory")?;
        let count = desc.len / DESC_SIZE as u32;
        if count > MAX_INDIRECT {
            return Err(Fault::new(E2BIG, "an indirect table is too long"));
        }

        let mut reader = TableReader::new(&self.table);
        for _ in 0..count {
            let raw = reader
                .next(&self.mem)
                .because("an indirect table can't be read")?;
            let desc = Desc::new(raw, self.endian);
            if desc.has(Desc::F_INDIRECT) {
                return Err(Fault::new(EINVAL, "an indirect table is nested"));
            }
            parts.add(desc, &mut self.hint)?;
            if !desc.has(Desc::F_NEXT) {
                return Ok(());
            }
        }
        Err(Fault::new(EINVAL, "an indirect table goes on past its end"))
    }

    /// Makes one used entry of those behind the first `done`, for a packet of so many chains: it
    /// has the head of the last chain, and what was written there. The driver knows that the
    /// chains before it are full.
    fn merge(&mut self, done: usize, chains: u16) {
        let Some(last) = self.done.last().copied().filter(|_| chains > 0) else {
            return;
        };
        self.done.truncate(done);
        // Chains that nothing was written to need no entry of their own.
        if let (Some(elem), Some(span)) = (self.done.last_mut(), self.spans.last_mut()) {
            if elem.len == 0 && last.len == 0 {
                elem.id = last.id;
                *span = span.wrapping_add(chains);
                return;
            }
        }
        // There is room: the entries of the packet were just taken away.
        let _ = self.done.push_within_capacity(last);
        let _ = self.spans.push_within_capacity(chains);
    }

    /// Puts the last `chains` that were taken back into the ring. Before them there were `done`
    /// entries, and `next_desc` came next.
    #[inline(never)]
    fn give_back(&mut self, done: usize, next_desc: Option<u16>, chains: u16) {
        self.done.truncate(done);
        self.next_desc = next_desc;
        self.next_avail = self.next_avail.wrapping_sub(chains);
    }

    /// What is wrong when another chain is to be taken and `out_there` are not published.
    #[cold]
    fn too_many(&self, out_there: usize) -> Fault {
        // So many can be out only if one was made available again before it was used.
        if out_there + self.deferred >= usize::from(self.num) {
            Fault::new(EINVAL, "a chain is available twice")
        } else {
            Fault::new(ENOBUFS, "too many chains are completed")
        }
    }

    fn write_used_flags(&mut self) -> Result {
        self.used
            .store_u16(&self.mem, FLAGS, self.endian.u16(self.used_flags))?;
        self.log_used(FLAGS, 2);
        Ok(())
    }

    /// Logs a write of `len` bytes at `offset` of the used ring, if that is asked for.
    #[inline(always)]
    fn log_used(&mut self, offset: u64, len: u64) {
        if self.used_log.is_some() {
            self.write_log(offset, len);
        }
    }

    #[cold]
    fn write_log(&mut self, offset: u64, len: u64) {
        let Some(used_log) = &self.used_log else {
            return;
        };
        // The write before its bit in the log; pairs with the VMM's atomic exchange of the log.
        self.mem.write_barrier();
        let marked = if self.behind_iotlb {
            self.mark_user(used_log, offset, len)
        } else {
            used_log
                .log
                .mark(&self.mem, used_log.addr.offset(offset), len)
        };
        // A log that is not mapped is the VMM's loss: what was written stays.
        self.log_failed |= marked.is_err();
        self.logged = true;
    }

    /// Marks `len` bytes at `offset` of the used ring wherever guest memory has them.
    fn mark_user(&self, used_log: &UsedLog, mut offset: u64, len: u64) -> Result {
        let mem = used_log.mem.as_ref().ok_or(EFAULT)?;
        let end = offset + len;
        while offset < end {
            let (addr, count) = if self.used.flat {
                (self.used.base.offset(offset), end - offset)
            } else {
                let (addr, together) = self.used.find(offset)?;
                (addr, (together as u64).min(end - offset))
            };
            used_log.log.mark_user(&self.mem, mem, addr, count)?;
            offset += count;
        }
        Ok(())
    }

    /// Where `index` is in a ring.
    #[inline(always)]
    fn slot(&self, index: u16) -> u16 {
        // `num` is a power of two, at least 1.
        index & self.num.wrapping_sub(1)
    }

    /// The offset of the used event index in the available ring.
    #[inline(always)]
    fn used_event(&self) -> u64 {
        ENTRIES + u64::from(self.num) * 2
    }

    /// The offset of the available event index in the used ring.
    #[inline(always)]
    fn avail_event(&self) -> u64 {
        ENTRIES + u64::from(self.num) * size_of::<UsedElem>() as u64
    }
}

/// Whether the step of an index from `old` to `new` passed `event` (virtio 1.3, section 2.7.7.2).
#[inline(always)]
fn passed_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// What was found of a packet's chains; of the one at hand, how many segments.
#[derive(Clone, Copy)]
struct Found {
    readable: usize,
    writable: usize,
    descriptors: u32,
}

/// Where what is found goes to.
struct Parts<'a> {
    maps: &'a Maps,
    out: &'a mut Segments,
    dirty: Option<&'a mut DirtyList>,
    found: Found,
}

impl Parts<'_> {
    /// Adds the buffer of a descriptor.
    #[inline(always)]
    fn add(&mut self, desc: Desc, hint: &mut Hint) -> Result<(), Fault> {
        let found = &mut self.found;
        found.descriptors += 1;
        if found.descriptors > MAX_PACKET {
            return Err(Fault::new(EINVAL, "a packet has too many descriptors"));
        }
        let before = self.out.len();
        let access = if desc.has(Desc::F_WRITE) {
            Access::Write
        } else {
            Access::Read
        };
        self.maps
            .translate(desc.addr, desc.len, access, hint, self.out)
            .because("a buffer is not in memory")?;
        let count = self.out.len() - before;

        if access == Access::Write {
            found.writable += count;
            if let Some(dirty) = self.dirty.as_deref_mut().filter(|_| count > 0) {
                dirty
                    .push(Dirty {
                        addr: desc.addr.as_physical(),
                        len: u64::from(desc.len),
                    })
                    .because("a chain has too many buffers to log")?;
            }
        } else if found.writable > 0 {
            return Err(Fault::new(
                EINVAL,
                "a readable buffer follows a writable one",
            ));
        } else {
            found.readable += count;
        }
        Ok(())
    }
}

/// Reads an indirect table, which may fall into several pieces of user memory.
struct TableReader<'a> {
    segments: &'a [Segment],
    /// The rest of the segment before these.
    rest: Segment,
}

impl<'a> TableReader<'a> {
    fn new(table: &'a Segments) -> Self {
        Self {
            segments: table.as_slice(),
            rest: Segment::default(),
        }
    }

    #[inline(always)]
    fn next(&mut self, mem: &impl UserMemory) -> Result<RawDesc> {
        if self.rest.len() == 0 {
            self.refill()?;
        }
        if self.rest.len() >= DESC_SIZE {
            let raw = RawDesc::read(mem, self.rest.addr())?;
            self.rest = self.rest.skip(DESC_SIZE);
            return Ok(raw);
        }
        let mut raw = RawDesc::default();
        self.next_in_pieces(mem, raw.as_mut_bytes())?;
        Ok(raw)
    }

    #[cold]
    fn next_in_pieces(&mut self, mem: &impl UserMemory, mut bytes: &mut [u8]) -> Result {
        while !bytes.is_empty() {
            if self.rest.len() == 0 {
                self.refill()?;
            }
            let count = self.rest.len().min(bytes.len());
            let (now, later) = bytes.split_at_mut_checked(count).ok_or(EFAULT)?;
            mem.read(self.rest.addr(), now)?;
            self.rest = self.rest.skip(count);
            bytes = later;
        }
        Ok(())
    }

    fn refill(&mut self) -> Result {
        let (first, others) = self.segments.split_first().ok_or(EFAULT)?;
        self.rest = *first;
        self.segments = others;
        Ok(())
    }
}

/// The chains of a packet, taken from the ring and not yet completed.
///
/// Dropping it gives them all back: the next [`Vring::take`] finds them again.
#[must_use = "dropped, it gives its chains back"]
pub struct Take<'ring, M: UserMemory> {
    ring: &'ring mut Vring<M>,
    /// The length of `ring.done` before; the chains of this packet follow.
    done: usize,
    /// As `ring.next_desc` was before.
    next_desc: Option<u16>,
    chains: u16,
    /// All descriptors that were read for these chains.
    descriptors: u32,
}

impl<M: UserMemory> Take<'_, M> {
    /// Takes one more chain. Its buffers are added to `out`, and if `dirty` is given the guest
    /// addresses of the writable ones to that.
    ///
    /// Returns [`None`] if the driver has made no more available. Fails with [`EINVAL`] if the
    /// ring or the chain is malformed, with [`EFAULT`] if part of it is not in memory, with
    /// [`ENOBUFS`] if it has too many pieces, and with [`E2BIG`] if an indirect table is too long.
    /// After an error the chain is still in the ring.
    #[inline(always)]
    pub fn next_chain(
        &mut self,
        maps: &Maps,
        out: &mut Segments,
        dirty: Option<&mut DirtyList>,
    ) -> Result<Option<Chain>, Fault> {
        let ring = &mut *self.ring;
        if ring.avail_idx == ring.next_avail {
            if !ring.read_avail_idx()? {
                return Ok(None);
            }
        }
        let out_there = ring.unpublished + usize::from(self.chains);
        if out_there >= ring.limit {
            return Err(ring.too_many(out_there));
        }
        let head = ring
            .head()
            .because("an entry of the available ring can't be read")?;
        if head >= ring.num {
            return Err(Fault::new(EINVAL, "the head of a chain is out of range"));
        }
        let desc = ring.read_desc(head)?;
        let mut parts = Parts {
            maps,
            out,
            dirty,
            found: Found {
                readable: 0,
                writable: 0,
                descriptors: self.descriptors,
            },
        };
        let (found, descs) = if desc.is_whole() {
            parts.add(desc, &mut ring.hint)?;
            (parts.found, 1)
        } else {
            ring.follow(desc, parts)?
        };
        ring.done
            .push_within_capacity(UsedElem {
                id: ring.endian.u32(u32::from(head)),
                len: 0,
            })
            .map_err(|_| Fault::new(ENOBUFS, "too many chains are completed"))?;
        ring.next_avail = ring.next_avail.wrapping_add(1);
        if ring.in_order {
            ring.next_desc = Some(head.wrapping_add(descs));
        }
        let chain = Chain {
            head,
            readable: found.readable,
            writable: found.writable,
            descriptors: found.descriptors - self.descriptors,
        };
        self.descriptors = found.descriptors;
        self.chains = self.chains.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Whether there is no more in the ring, as [`Vring::is_empty`].
    pub fn is_last(&mut self) -> bool {
        self.ring.is_empty()
    }

    /// The number of descriptors of the ring.
    pub fn num(&self) -> u16 {
        self.ring.num
    }

    /// The number of descriptors that were read for the chains taken.
    pub fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// The number of chains taken.
    pub fn chains(&self) -> u16 {
        self.chains
    }

    /// Says how many bytes the device wrote to the chain that was taken last; none until said.
    #[inline(always)]
    pub fn set_written(&mut self, len: u32) {
        let ring = &mut *self.ring;
        if self.chains > 0 {
            if let Some(elem) = ring.done.last_mut() {
                elem.len = ring.endian.u32(len);
            }
        }
    }

    /// Completes the chains: the next [`Vring::publish`] gives them to the driver.
    #[inline(always)]
    pub fn complete(self) {
        if self.ring.in_order {
            self.ring.merge(self.done, self.chains);
        }
        self.ring.unpublished += usize::from(self.chains);
        // They are not to be given back.
        core::mem::forget(self);
    }

    /// Takes the chain out of the ring until [`Vring::complete_deferred`], in whatever order.
    ///
    /// Returns [`None`], and gives the chains back, if there is not just one, or if the ring is
    /// used in order.
    pub fn defer(mut self) -> Option<Deferred> {
        if self.chains != 1 || self.ring.in_order {
            return None;
        }
        let elem = self.ring.done.pop()?;
        self.chains = 0;
        self.ring.deferred += 1;
        self.ring.update_limit();
        Some(Deferred {
            elem,
            era: self.ring.era,
        })
    }
}

impl<M: UserMemory> Drop for Take<'_, M> {
    #[inline(always)]
    fn drop(&mut self) {
        self.ring.give_back(self.done, self.next_desc, self.chains);
    }
}
