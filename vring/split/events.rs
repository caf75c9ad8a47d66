// SPDX-License-Identifier: GPL-2.0

//! Which notifications the two sides of a ring in the split format want (virtio 1.3, sections
//! 2.7.7 and 2.7.10): kicks, of what was made available, and calls, of what was used.
//!
//! Each side asks, then looks at the ring again; the other one moves its index, then looks whether
//! it was asked. With the barriers between, one of them sees the other.

#![forbid(unsafe_code)]

use super::layout::{
    avail_event,
    used_event,
    FLAGS, //
};
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

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver asks for no calls.
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device asks for no kicks.
const USED_F_NO_NOTIFY: u16 = 1;

/// Kicks and calls.
#[derive(Default)]
pub(super) struct Events {
    /// They are suppressed by index, not by flag.
    by_index: bool,
    notify_on_empty: bool,
    used_flags: u16,
    /// By index: the used index when it was last asked whether to call, if that still says
    /// something.
    called_at: Option<u16>,
}

impl Events {
    pub(super) fn set_features(&mut self, features: Features) {
        self.by_index = features.has(Features::EVENT_IDX);
        self.notify_on_empty = features.has(Features::NOTIFY_ON_EMPTY);
    }

    /// Whether the driver is asked not to kick.
    pub(super) fn is_quiet(&self) -> bool {
        self.used_flags & USED_F_NO_NOTIFY != 0
    }

    pub(super) fn by_index(&self) -> bool {
        self.by_index
    }

    /// Tells the driver whether kicks are wanted.
    pub(super) fn start<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        self.write_flags(memory, mem)?;
        self.called_at = None;
        Ok(())
    }

    /// The used index moved from `old` to `new`.
    #[inline(always)]
    pub(super) fn published(&mut self, old: u16, new: u16) {
        // If the driver has not been called for so long that the index went around, where it was
        // called last says nothing any more.
        if let Some(called_at) = self.called_at {
            if new.wrapping_sub(called_at) < new.wrapping_sub(old) {
                self.called_at = None;
            }
        }
    }

    /// As `Vring::wants_call`. The ring has `num` descriptors, its used index is `used_idx`, and
    /// `empty` says that no more is known to be available.
    pub(super) fn wants_call<M: UserMemory>(
        &mut self,
        memory: &RingMemory,
        mem: M,
        num: u16,
        used_idx: u16,
        empty: bool,
    ) -> Result<bool, Fault> {
        // The used index before the driver's suppression; pairs with the barrier that the driver
        // has between enabling calls and looking at the used index again.
        mem.full_barrier();

        if self.notify_on_empty && empty {
            return Ok(true);
        }
        if !self.by_index {
            let flags = memory.load_avail(mem, FLAGS).because(Why::AvailFlagsRead)?;
            return Ok(flags & AVAIL_F_NO_INTERRUPT == 0);
        }
        let Some(called_at) = self.called_at.replace(used_idx) else {
            return Ok(true);
        };
        let event = memory
            .load_avail(mem, used_event(num))
            .because(Why::UsedEventRead)?;
        Ok(passed(event, used_idx, called_at))
    }

    /// As `Vring::disable_kicks`.
    #[inline]
    pub(super) fn disable_kicks<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
    ) -> Result<(), Fault> {
        if self.is_quiet() {
            return Ok(());
        }
        self.used_flags |= USED_F_NO_NOTIFY;
        if self.by_index {
            // The event index, left behind, asks for no more.
            return Ok(());
        }
        self.write_flags(memory, mem)
    }

    /// Asks for a kick when the available index, which is `avail_idx`, moves on. Returns false if
    /// that was asked for already. The ring has `num` descriptors.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written.
    pub(super) fn enable_kicks<M: UserMemory>(
        &mut self,
        memory: &mut RingMemory,
        mem: M,
        num: u16,
        avail_idx: u16,
    ) -> Result<bool, Fault> {
        if !self.is_quiet() {
            return Ok(false);
        }
        self.used_flags &= !USED_F_NO_NOTIFY;
        if self.by_index {
            memory
                .store_used(mem, avail_event(num), avail_idx)
                .because(Why::AvailEventWrite)?;
        } else {
            self.write_flags(memory, mem)?;
        }
        // The request before the look at the index, which is the caller's next step; pairs with
        // the barrier that the driver has between moving the index and looking whether a kick is
        // wanted.
        mem.full_barrier();
        Ok(true)
    }

    fn write_flags<M: UserMemory>(&self, memory: &mut RingMemory, mem: M) -> Result<(), Fault> {
        memory
            .store_used(mem, FLAGS, self.used_flags)
            .because(Why::UsedFlagsWrite)
    }
}

/// Whether the step of an index from `old` to `new` passed `event` (virtio 1.3, section 2.7.7.2).
#[inline(always)]
fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
