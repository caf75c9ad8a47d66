// SPDX-License-Identifier: GPL-2.0

//! Which notifications the two sides of a packed ring want (virtio 1.3, sections 2.8.10 and
//! 2.8.14): kicks, of what was made available, and calls, of what was used.
//!
//! Each side has an area for what it asks: all, none, or only what comes past a place in the ring.
//! As with the split format it asks, then looks at the ring again; the other one writes to the
//! ring, then looks whether it was asked. With the barriers between, one of them sees the other.

#![forbid(unsafe_code)]

use super::place::Place;
use crate::{
    features::Features,
    usermem::UserMemory,
    vring::{
        fault::{
            Because,
            Fault,
            Why, //
        },
        memory::RingMemory, //
    }, //
};
use kernel::prelude::*;

/// `struct pvirtq_event_suppress`: a place, and flags. The rest of these is reserved.
const PLACE: u64 = 0;
const FLAGS: u64 = 2;
const FLAGS_MASK: u16 = 3;
/// The size of an area in bytes.
pub(super) const SIZE: u64 = 4;

/// `RING_EVENT_FLAGS_ENABLE`: all.
const ENABLE: u16 = 0;
/// `RING_EVENT_FLAGS_DISABLE`: none.
const DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`: what comes past the place, if `VIRTIO_RING_F_EVENT_IDX` was accepted.
const DESC: u16 = 2;

/// Kicks and calls.
pub(super) struct Events {
    /// They may be suppressed by place.
    by_place: bool,
    /// No kicks are wanted.
    quiet: bool,
    /// The flags that are in the device's area, if they are [`DESC`].
    flags: u16,
    /// How many descriptors were used since it was last asked whether to call, which saturates; if
    /// it was.
    moved: Option<u16>,
}

impl Events {
    /// All are wanted.
    pub(super) const fn new() -> Self {
        Self {
            by_place: false,
            quiet: false,
            flags: ENABLE,
            moved: None,
        }
    }

    pub(super) fn set_features(&mut self, features: Features) {
        self.by_place = features.has(Features::EVENT_IDX);
    }

    /// Tells the driver whether kicks are wanted: what was there is another host's.
    pub(super) fn start<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        self.write_flags(memory, mem, if self.quiet { DISABLE } else { ENABLE })?;
        self.moved = None;
        Ok(())
    }

    /// The area may be another: what it holds is not known to be what was written last.
    pub(super) fn forget_area(&mut self) {
        self.flags = ENABLE;
    }

    /// Whether the driver is asked not to kick.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// So many descriptors were used.
    #[inline(always)]
    pub(super) fn published(&mut self, descs: u16) {
        if let Some(moved) = &mut self.moved {
            *moved = moved.saturating_add(descs);
        }
    }

    /// As `Vring::wants_call`. The ring has `num` descriptors, of which the one at `used` is used
    /// next.
    pub(super) fn wants_call<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
        num: u16,
        used: Place,
    ) -> Result<bool, Fault> {
        // The used descriptors before the driver's suppression; pairs with the barrier that the
        // driver has between enabling calls and looking at its next descriptor again.
        mem.full_barrier();

        let flags = memory
            .load_avail(mem, FLAGS)
            .because(Why::DriverEventRead)?;
        let moved = self.moved.replace(0);
        match flags & FLAGS_MASK {
            DISABLE => return Ok(false),
            DESC if self.by_place => {}
            // Also what means nothing: when in doubt, call.
            _ => return Ok(true),
        }
        // Read in whatever order: if one of the two is older than the other, the driver has not looked
        // at its descriptor again yet.
        let event = memory
            .load_avail(mem, PLACE)
            .because(Why::DriverEventRead)?;
        Ok(moved.is_none_or(|moved| passed(Place::from_bits(event), used, moved, num)))
    }

    /// As `Vring::disable_kicks`.
    #[inline]
    pub(super) fn disable_kicks<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        if self.quiet {
            return Ok(());
        }
        self.quiet = true;
        if self.by_place && self.flags == DESC {
            // The place, left behind, asks for one in two times around at most.
            return Ok(());
        }
        self.write_flags(memory, mem, DISABLE)
    }

    /// Asks for a kick when the descriptor at `place` is made available. Returns false if that was
    /// asked for already.
    ///
    /// Fails with [`EFAULT`] if the device's area can't be written.
    pub(super) fn enable_kicks<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
        place: Place,
    ) -> Result<bool, Fault> {
        if !self.quiet {
            return Ok(false);
        }
        self.quiet = false;
        if self.by_place {
            memory
                .store_used(mem, PLACE, place.bits())
                .because(Why::DeviceEventWrite)?;
            if self.flags != DESC {
                // In whatever order they are seen: who sees only one of them has made available
                // what the look at the descriptor will find.
                self.write_flags(memory, mem, DESC)?;
            }
        } else {
            self.write_flags(memory, mem, ENABLE)?;
        }
        // The request before the look at the descriptor, which is the caller's next step; pairs
        // with the barrier that the driver has between making it available and looking whether a
        // kick is wanted.
        mem.full_barrier();
        Ok(true)
    }

    fn write_flags<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
        flags: u16,
    ) -> Result<(), Fault> {
        memory
            .store_used(mem, FLAGS, flags)
            .because(Why::DeviceEventWrite)?;
        self.flags = flags;
        Ok(())
    }
}

/// Whether the last `moved` steps, which led to `now` in a ring of `num` descriptors, passed
/// `event`.
#[inline(always)]
fn passed(event: Place, now: Place, moved: u16, num: u16) -> bool {
    if moved > num {
        // Around once more: the place says nothing any more.
        return true;
    }
    // With the other wrap counter, it is behind us a time around earlier: one that is ahead of us a
    // time around later is as far away, and no step has passed it either.
    let around = if event.wrap() == now.wrap() { 0 } else { num };
    let steps = i32::from(now.index()) - i32::from(event.index()) + i32::from(around);
    (1..=i32::from(moved)).contains(&steps)
}
