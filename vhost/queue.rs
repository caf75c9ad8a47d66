// SPDX-License-Identifier: GPL-2.0

//! A queue: its ring, its eventfds, and what the owner said of them.
//!
//! All of it is under the queue's mutex. It knows no thread: who runs it can be woken ([`Wake`]).

#![forbid(unsafe_code)]

use super::{
    identity::Identity,
    shown::{
        Facts,
        Shown, //
    },
    stats::Stats,
    work::WorkBits, //
};
use crate::{
    features::Features,
    log::DirtyLog,
    memtable::{
        Ahead,
        GuestAddr,
        Iotlb,
        MemTable, //
    },
    sys::{
        eventfd::{
            EventFdCtx,
            EventFdFile, //
        },
        poll::{
            self,
            PollEntry,
            Wake, //
        },
        uaccess::CurrentMm, //
    },
    uapi,
    vring::{
        Endian,
        Fault,
        RingAddrs,
        Vring,
        Wanted, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    time::Delta, //
};

/// What a kind of device keeps for a queue.
pub trait QueueState: Send + Unpin {
    /// The kind of backend that the queue has, if it has one: then it is running.
    fn backend(&self) -> Option<&'static str>;

    /// The backend that a [reset](Self::reset) let go of.
    type Released;

    /// Lets go of the backend, and of all that depends on the owner. What may have to be waited
    /// for is returned, to be dropped when the queue is not locked.
    fn reset(&mut self) -> Self::Released;
}

/// An entry that has a queue run when a file gets ready.
pub type QueuePoll<W> = Pin<KBox<PollEntry<W>>>;

fn kick_poll<W: Wake>(index: usize) -> Result<QueuePoll<W>> {
    KBox::pin_init(
        PollEntry::new(poll::IN, WorkBits::kick(index)),
        GFP_KERNEL_ACCOUNT,
    )
}

/// Makes the entry that waits for the backend of queue `index`, for the events of `mask`.
///
/// Fails with [`ENOMEM`].
pub fn backend_poll<W: Wake>(index: usize, mask: u32) -> Result<QueuePoll<W>> {
    KBox::pin_init(
        PollEntry::new(mask, WorkBits::ready(index)),
        GFP_KERNEL_ACCOUNT,
    )
}

/// A queue of a device.
pub struct Queue<S: QueueState, W: Wake> {
    /// The ring.
    pub ring: Vring,
    /// Guest memory, once the owner has described it.
    pub mem: Option<Arc<MemTable>>,
    /// What knows the driver's addresses, if they are not guest physical ones. A turn of the
    /// worker has it locked: who has taken maps away knows that they are no longer used, but for
    /// packets that are on their way without a copy.
    pub iotlb: Option<Arc<Mutex<Iotlb>>>,
    /// What the IOTLB did not know when the queue was last stopped by that.
    pub(super) ahead: Ahead,
    /// What it needed next then.
    wanted: Wanted,
    /// What the driver accepted.
    pub features: Features,
    /// What the device keeps.
    pub state: S,
    /// What the queue did. Others read it at any time.
    pub stats: Arc<Stats>,
    /// Why the queue stopped last.
    last_fault: Option<Fault>,
    /// The queue moves nothing until it is kicked, is told of an address, or is set up anew.
    pub(super) halted: bool,
    /// It was kicked, and what it needs then is still to be asked for.
    pub(super) asks_again: bool,
    /// What others see.
    shown: Arc<Shown>,
    /// It has changed.
    pub(super) facts_changed: bool,
    pub(super) index: usize,
    /// Who runs it, once there is an owner.
    pub(super) worker: Option<Arc<W>>,
    /// What that is called.
    pub(super) identity: Option<Arc<Identity>>,
    /// The same worker runs the other queue.
    pub(super) shares_worker: bool,
    pub(super) kick: Option<EventFdFile>,
    pub(super) kick_poll: QueuePoll<W>,
    pub(super) call: Option<EventFdCtx>,
    pub(super) err: Option<EventFdCtx>,
    pub(super) log_event: Option<Arc<EventFdCtx>>,
    pub(super) log: DirtyLog,
    /// Where the used ring is logged, if that was asked for.
    pub(super) used_log: Option<GuestAddr>,
    /// The byte order of a legacy driver.
    pub(super) legacy_endian: Endian,
    pub(super) busyloop_timeout: u32,
    /// The type of the messages about this queue.
    pub(super) message_kind: u32,
}

impl<S: QueueState, W: Wake> Queue<S, W> {
    /// A queue of a new device, with this number. Fails with [`ENOMEM`].
    pub(super) fn new(index: usize, state: S, shown: Arc<Shown>) -> Result<KBox<Self>> {
        let kick_poll = kick_poll(index)?;
        // In its place: it is large for a stack.
        let queue = try_init!(Self {
            ring: Vring::new()?,
            mem: None,
            iotlb: None,
            ahead: Ahead::none(),
            wanted: Wanted::default(),
            features: Features::default(),
            state,
            stats: shown.stats.clone(),
            last_fault: None,
            halted: false,
            asks_again: false,
            shown,
            facts_changed: true,
            index,
            worker: None,
            identity: None,
            shares_worker: true,
            kick: None,
            kick_poll,
            call: None,
            err: None,
            log_event: None,
            log: DirtyLog::default(),
            used_log: None,
            legacy_endian: Endian::NATIVE,
            busyloop_timeout: 0,
            message_kind: uapi::IOTLB_MSG,
        });
        KBox::init(queue, GFP_KERNEL_ACCOUNT)
    }

    /// Puts the queue into the state of a new device, but for its statistics, and what the device
    /// keeps, which was reset before. The worker does not run it any more.
    pub(super) fn reset(&mut self) {
        self.kick_poll.as_mut().stop();
        self.last_fault = None;
        self.halted = false;
        self.asks_again = false;
        self.ring.reset();
        self.mem = None;
        self.iotlb = None;
        self.features = Features::default();
        self.worker = None;
        self.identity = None;
        self.stats.set_owner(0);
        self.stats.in_flight.set(0);
        self.kick = None;
        self.call = None;
        self.err = None;
        self.log_event = None;
        self.log = DirtyLog::default();
        self.used_log = None;
        self.legacy_endian = Endian::NATIVE;
        self.busyloop_timeout = 0;
        self.message_kind = uapi::IOTLB_MSG;
    }

    /// Whether the queue has a backend.
    pub(super) fn is_running(&self) -> bool {
        self.state.backend().is_some()
    }

    /// The log of guest memory, if the driver's features ask for it.
    pub fn log(&self) -> Option<DirtyLog> {
        self.features.has(Features::LOG_ALL).then_some(self.log)
    }

    /// Tells the owner that something was logged.
    pub fn signal_log(&self) {
        if let Some(event) = &self.log_event {
            event.signal();
        }
    }

    /// Makes the worker run this queue again, after the others.
    pub fn run_again(&self) {
        if let Some(worker) = &self.worker {
            worker.wake(WorkBits::ready(self.index));
        }
    }

    /// How long the worker looks for work before it waits for it; none if it does not.
    pub fn busyloop_timeout(&self) -> Option<Delta> {
        // A unit is the microsecond of the C driver: 1024 ns.
        let timeout = i64::from(self.busyloop_timeout) << 10;
        (timeout > 0).then_some(Delta::from_nanos(timeout))
    }

    /// Has another worker run the queue: kicks wake that from now on. Returns the one before.
    pub(super) fn set_worker(&mut self, worker: Arc<W>, identity: Arc<Identity>) -> Option<Arc<W>> {
        self.kick_poll.as_mut().set_target(worker.clone());
        self.identity = Some(identity);
        self.worker.replace(worker)
    }

    /// Whether the worker runs the other queue too.
    pub fn shares_worker(&self) -> bool {
        self.shares_worker
    }

    /// Who runs this queue, once there is an owner.
    pub fn worker(&self) -> Option<Arc<W>> {
        self.worker.clone()
    }

    /// As [`Self::worker`], and what the driver has of the queue.
    pub fn worker_and_state(&mut self) -> Option<(&Arc<W>, &mut S)> {
        Some((self.worker.as_ref()?, &mut self.state))
    }

    /// The queue's number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The queue can't go on: tells the owner, and whoever looks at `fdinfo`.
    pub fn fault(&mut self, fault: Fault) {
        self.stats.stopped(&fault);
        self.last_fault = Some(fault);
        self.facts_changed = true;
        if let Some(err) = &self.err {
            err.signal();
        }
    }

    /// Looks, after a fault that is a miss, for what else the IOTLB does not know of what the
    /// queue will come upon, of which it needs `wanted` next. Without `iotlb` it looks for nothing.
    pub fn look_ahead(
        &mut self,
        mm: CurrentMm<'_>,
        fault: Fault,
        iotlb: Option<&Iotlb>,
        wanted: Wanted,
    ) {
        let Some(miss) = fault.miss() else {
            return;
        };
        self.ahead.begin(iotlb.map_or(0, Iotlb::limit));
        self.ahead.push(miss);
        self.wanted = wanted;
        if let Some(iotlb) = iotlb {
            self.ring.look_ahead(mm, iotlb, wanted, &mut self.ahead);
        }
    }

    /// Looks again, now that what was missing then is there: what the IOTLB does not know of what
    /// that shows, as the buffers that an indirect table names. Returns whether the queue needs any
    /// of it next.
    pub(super) fn look_on(&mut self, mm: CurrentMm<'_>, iotlb: &Iotlb) -> bool {
        self.ahead.begin(iotlb.limit());
        // What is missing of the ring itself, the look says too.
        let _ = self.ring.find(iotlb);
        (self.ring).look_ahead(mm, iotlb, self.wanted, &mut self.ahead);
        self.ahead.needs_any()
    }

    /// Whether the ring is where the owner put it.
    pub fn is_set_up(&self) -> bool {
        self.ring.addrs() != RingAddrs::default()
    }

    /// Readies the ring for a backend, with its IOTLB if it has one. Fails as [`Vring::start`].
    pub(super) fn try_start(
        &mut self,
        mm: CurrentMm<'_>,
        iotlb: Option<&Iotlb>,
    ) -> Result<(), Fault> {
        let endian = if self.features.has(Features::VERSION_1) {
            Endian::Little
        } else {
            self.legacy_endian
        };
        let started = self.ring.start(mm, endian, iotlb);
        self.after_used_write();
        started
    }

    /// Asks the driver not to kick. Fails as [`Vring::disable_kicks`].
    pub fn disable_kicks(&mut self, mm: CurrentMm<'_>) -> Result<(), Fault> {
        let result = self.ring.disable_kicks(mm);
        self.after_used_write();
        result
    }

    /// Asks the driver to kick. Returns whether it made something available meanwhile; then kicks
    /// are disabled again, and the caller looks for it.
    ///
    /// Fails as [`Vring::enable_kicks`].
    pub fn enable_kicks(&mut self, mm: CurrentMm<'_>) -> Result<bool, Fault> {
        let more = self.ring.enable_kicks(mm);
        self.after_used_write();
        if let Ok(true) = more {
            self.disable_kicks(mm)?;
        }
        more
    }

    /// Gives the completed chains to the driver, and calls it if it wants that.
    ///
    /// Fails with [`EFAULT`] if the used ring can't be written; then they are still completed. So
    /// it does, after a call, if the driver can't be asked whether it wants one.
    pub fn publish(&mut self, mm: CurrentMm<'_>) -> Result<(), Fault> {
        if self.ring.unpublished() == 0 {
            return Ok(());
        }
        let published = self.ring.publish(mm);
        self.after_used_write();
        published?;
        let Some(call) = &self.call else {
            return Ok(());
        };
        // When in doubt, call: a driver that is called for nothing only looks.
        let wanted = self.ring.wants_call(mm);
        let signalled = !matches!(wanted, Ok(false));
        self.stats.called(signalled, || self.ring.used_idx());
        if signalled {
            call.signal();
        }
        wanted.map(|_| ())
    }

    fn after_used_write(&mut self) {
        if self.ring.logged() {
            self.signal_log();
        }
        if self.ring.log_failed() {
            self.stats.unlogged.add(1);
        }
    }

    /// Whether the queue moves nothing until it is kicked, is told of an address, or is set up
    /// anew.
    pub fn is_halted(&self) -> bool {
        self.halted
    }

    /// The queue begins a turn. Returns whether it was `kicked`, then or for the turn that this one
    /// [repeats](super::Device::run_again_if_late).
    pub fn go_on(&mut self, kicked: bool) -> bool {
        self.halted = false;
        core::mem::take(&mut self.asks_again) || kicked
    }

    /// Lets others see what the queue is, if that has changed.
    #[inline]
    pub(super) fn show(&mut self) {
        if core::mem::take(&mut self.facts_changed) {
            self.show_facts();
        }
    }

    #[cold]
    fn show_facts(&self) {
        self.shown.set_facts(Facts {
            features: self.features,
            num: self.ring.num(),
            backend: self.state.backend(),
            fault: self.last_fault.map(|fault| fault.why.text()),
            worker: self.identity.clone(),
        });
    }
}
