// SPDX-License-Identifier: GPL-2.0

//! Who has the IOTLB, and what the owner writes meanwhile.
//!
//! A turn has the IOTLB locked from packet to packet. An invalidation waits until it lets go, for
//! then nobody uses what is taken back. An update does not, if it adds to what is known and changes
//! nothing of it, as the page that answers a miss: it is put off, and made by whoever has the IOTLB
//! next. Who needs it sooner comes upon a miss, and looks.

#![forbid(unsafe_code)]

use super::{
    device::{
        Device,
        Driver,
        Queue, //
    },
    misses::{
        Misses,
        MAX_LATE, //
    },
    state::State,
    work::QUEUES, //
};
use crate::{
    memtable::{
        Iotlb,
        Update, //
    },
    sys::counter::Waiters,
};
use kernel::{
    prelude::*,
    sync::{
        lock::mutex::MutexGuard,
        Mutex, //
    }, //
};

impl<D: Driver> Device<D> {
    /// Locks the IOTLB, for a turn: another worker's may have it.
    pub fn iotlb_to_run<'a>(&self, iotlb: &'a Mutex<Iotlb>) -> MutexGuard<'a, Iotlb> {
        let locked = iotlb.try_lock();
        let locked = locked.unwrap_or_else(|| self.iotlb_waiters.during(|| iotlb.lock()));
        self.caught_up(locked)
    }

    /// Who waits for that.
    pub fn iotlb_waiters(&self) -> &Waiters {
        &self.iotlb_waiters
    }

    /// Locks the IOTLB, for the owner. As [`Self::lock_for_owner`].
    pub fn lock_iotlb<'a>(&self, iotlb: &'a Mutex<Iotlb>) -> MutexGuard<'a, Iotlb> {
        self.caught_up(self.lock_for_owner(iotlb))
    }

    /// Locks the IOTLB, for the owner, unless a turn has it.
    pub(super) fn try_lock_iotlb<'a>(
        &self,
        iotlb: &'a Mutex<Iotlb>,
    ) -> Option<MutexGuard<'a, Iotlb>> {
        Some(self.caught_up(iotlb.try_lock()?))
    }

    /// Makes the updates that were put off. For the owner, and for a worker that an answer has
    /// woken, these are all; another worker may not see yet that there are any, and
    /// [looks again](Self::wait_for_misses) before it waits.
    #[inline(always)]
    fn caught_up<'a>(&self, mut iotlb: MutexGuard<'a, Iotlb>) -> MutexGuard<'a, Iotlb> {
        if self.has_late() {
            self.catch_up(&mut iotlb);
        }
        iotlb
    }

    #[cold]
    fn catch_up(&self, iotlb: &mut Iotlb) {
        iotlb.catch_up(|none| self.change_late(|misses| misses.take_late(none)));
    }

    /// Calls `f`, which may change what updates are put off.
    pub(super) fn change_late<R>(&self, f: impl FnOnce(&mut Misses<QUEUES>) -> R) -> R {
        let mut misses = self.misses.lock();
        let result = f(&mut misses);
        self.has_late.set(misses.has_late().into());
        result
    }

    #[inline(always)]
    fn has_late(&self) -> bool {
        self.has_late.get() != 0
    }

    /// If updates were put off during the turn of a queue that lacks a map, has it run again, after
    /// the other one, for it may be among these. Returns whether it does. `again` is as for
    /// [`Self::halt`].
    pub fn run_again_if_late(&self, queue: &mut Queue<D>, again: bool) -> bool {
        if !self.has_late() {
            return false;
        }
        queue.halted = false;
        queue.asks_again = again;
        queue.run_again();
        true
    }

    /// Makes an update of the IOTLB, or puts it off, if a turn has that. What was put off takes no
    /// memory when it is made: there is room for it, which is made here, and with a new IOTLB.
    /// What would come before a map that is there is not put off: the turn would go by that map.
    ///
    /// Fails with [`EFAULT`] if there is none, and with [`ENOMEM`].
    pub(super) fn update(&self, state: &mut State<Self>, update: Update) -> Result {
        let iotlb = state.iotlb.as_deref().ok_or(EFAULT)?;
        let only_adds = update.changes_nothing(state.grain);
        state.grain = state.grain.min(update.grain());
        let locked = self.try_lock_iotlb(iotlb);
        if locked.is_none()
            && only_adds
            && state.late_room > 0
            && self.change_late(|misses| misses.put_off(update))
        {
            state.late_room -= 1;
            return Ok(());
        }
        let mut locked = locked.unwrap_or_else(|| self.lock_iotlb(iotlb));
        let made = locked.update(update);
        let room = locked.make_room(MAX_LATE);
        state.late_room = room.map_or(0, |()| MAX_LATE);
        made
    }
}
