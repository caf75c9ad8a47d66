// SPDX-License-Identifier: GPL-2.0

//! User memory that the network stack sends from, without a copy.
//!
//! C header: [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h) (`struct ubuf_info`)

use super::{
    bindings as local,
    poll::Wake,
    socket::Socket,
    uaccess::CurrentMm, //
};
use crate::{
    memtable::Segments,
    usermem::Segment, //
};
use kernel::{
    bindings,
    container_of,
    ffi::c_void,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            AtomicType,
            Full,
            Relaxed,
            Release, //
        },
        rcu,
        Arc, //
    },
    types::Opaque, //
};

/// The most packets that a [`UserBufs`] keeps, each in a slot.
pub const MAX_PACKETS: usize = 128;

/// The target is told after so many packets.
const WAKE_EVERY: i32 = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum State {
    /// The network stack has it.
    InFlight,
    /// It was sent from user memory.
    Sent,
    /// It was copied after all, or lost.
    Copied,
}

// SAFETY: `State` and `i32` have the same size and alignment, and each `State` is an `i32` that
// is transmuted back to it.
unsafe impl AtomicType for State {
    type Repr = i32;
}

/// What the network stack knows of a packet.
#[repr(C)]
struct Slot<T: Wake> {
    ubuf: bindings::ubuf_info,
    state: Atomic<State>,
    shared: *const Shared<T>,
}

/// What the network stack uses, behind the back of the owner.
///
/// # Invariants
///
/// `in_flight` is no less than the number of slots in the state [`State::InFlight`]. While such a
/// slot's `ubuf` is not completed, all of the slot is valid, only `ubuf.refcnt` and `state`
/// change, and `shared` points to this. `target` comes from [`Arc::into_raw`]; one that was replaced
/// lives until all who may have read it have left their RCU critical sections.
#[pin_data(PinnedDrop)]
struct Shared<T: Wake> {
    in_flight: Atomic<i32>,
    target: Atomic<*const T>,
    token: u32,
    #[pin]
    slots: Opaque<[Slot<T>; MAX_PACKETS]>,
}

// SAFETY: The slots are accessed by their owner and by the network stack in turn, as their state
// says, from any thread. The target is `Send + Sync`.
unsafe impl<T: Wake> Send for Shared<T> {}
// SAFETY: As above.
unsafe impl<T: Wake> Sync for Shared<T> {}

impl<T: Wake> Shared<T> {
    /// What a `ubuf` points to, which lives as long as the module.
    const OPS: &'static bindings::ubuf_info_ops = &bindings::ubuf_info_ops {
        complete: Some(Self::complete),
        link_skb: None,
    };

    /// The slot of the packet with this number.
    fn slot(&self, number: usize) -> *mut Slot<T> {
        let slots = self.slots.get().cast::<Slot<T>>();
        // SAFETY: The remainder is an index of the array.
        unsafe { slots.add(number % MAX_PACKETS) }
    }

    /// A packet is no longer in flight. Returns how many still are.
    ///
    /// Then only RCU, or a reference, keeps this alive.
    fn put(&self) -> i32 {
        // All that was done with the packet before who waits goes on; pairs with the acquire of
        // `wait`.
        let left = self.in_flight.fetch_add(-1, Full) - 1;
        if left == 0 {
            // SAFETY: The function takes any address, and does not access it.
            unsafe { bindings::wake_up_var(self.in_flight.as_ptr().cast::<c_void>()) };
        }
        left
    }

    fn wait(&self) {
        // SAFETY: The counter is valid, an `atomic_t` is laid out as the `i32` in it, and who
        // makes it zero wakes those who wait for its address.
        unsafe { local::wait_var_event_zero(self.in_flight.as_ptr().cast()) }
    }

    /// Called in any context when a reference to `ubuf` is put.
    ///
    /// # Safety
    ///
    /// `ubuf` is the one of a slot in the state [`State::InFlight`], and the reference is the
    /// caller's.
    unsafe extern "C" fn complete(
        _skb: *mut bindings::sk_buff,
        ubuf: *mut bindings::ubuf_info,
        success: bool,
    ) {
        // SAFETY: By the safety requirement.
        if !unsafe { bindings::refcount_dec_and_test(&raw mut (*ubuf).refcnt) } {
            return;
        }
        // The owner waits until none is in flight, and then for this.
        let _guard = rcu::read_lock();
        // SAFETY: By the safety requirement this is part of a slot.
        let slot = unsafe { container_of!(ubuf, Slot<T>, ubuf) };
        // SAFETY: The slot is in flight, so by the type invariant it is valid and part of
        // `shared`. That is alive as long as the packet is counted, and then until the end of the
        // critical section.
        let (state, shared) = unsafe { (&(*slot).state, &*(*slot).shared) };
        // Nothing touches the slot after this; pairs with the acquire of `UserBufs::pop`.
        state.store(if success { State::Sent } else { State::Copied }, Release);
        let left = shared.put();
        if left % WAKE_EVERY == 0 {
            // The target as it was when it got there; pairs with the exchange in `set_target`.
            let target = shared.target.load(Acquire);
            // SAFETY: By the type invariant it lives until the end of the critical section.
            unsafe { &*target }.wake(shared.token);
        }
    }
}

#[pinned_drop]
impl<T: Wake> PinnedDrop for Shared<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant. Nobody has a reference to this, so nobody reads it.
        drop(unsafe { Arc::from_raw(self.target.load(Relaxed)) });
    }
}

/// A target that was replaced. Dropped, it waits until nobody can be telling it something.
pub struct Replaced<T: Wake> {
    /// There may be somebody.
    used: bool,
    _target: Arc<T>,
}

impl<T: Wake> Drop for Replaced<T> {
    fn drop(&mut self) {
        if self.used {
            // SAFETY: Without preconditions, but for a context that may sleep.
            unsafe { bindings::synchronize_rcu() };
        }
    }
}

/// Whether a packet has room for the pages behind `segments` without their first `skip` bytes. One
/// that has not is copied anyway.
pub fn fits(segments: &[Segment], mut skip: usize) -> bool {
    let mut pages = 0usize;
    for segment in segments {
        let rest = segment.skip(skip);
        skip = skip.saturating_sub(segment.len());
        if rest.len() > 0 {
            let offset = rest.addr().get() as usize % PAGE_SIZE;
            pages = pages.saturating_add(offset.saturating_add(rest.len()).div_ceil(PAGE_SIZE));
        }
    }
    pages <= local::SKB_FRAGS_MAX as usize
}

/// A packet that the network stack is done with.
pub struct Done {
    /// The slot that it had.
    pub slot: usize,
    /// It was copied after all, or lost.
    pub copied: bool,
}

/// Packets that the network stack sends from user memory.
///
/// They are kept in the order in which they were sent until they are [taken out](Self::pop). Each
/// time that some more are done the target is told, and at the latest when none is in flight any
/// more. Dropped, it waits for that, however long it takes.
///
/// # Invariants
///
/// The packets from `first` on, `count` of them, have the slots of their numbers, and these were
/// written. All others are not in flight.
pub struct UserBufs<T: Wake> {
    shared: Arc<Shared<T>>,
    first: usize,
    count: usize,
    /// There was a packet: its callback may not be over.
    used: bool,
}

impl<T: Wake> UserBufs<T> {
    /// Makes a keeper of no packets, which tells `target` its `token`.
    ///
    /// Fails with [`ENOMEM`].
    pub fn new(target: Arc<T>, token: u32) -> Result<Self> {
        // INVARIANT: No slot is in flight.
        let shared = Arc::pin_init(
            pin_init!(Shared {
                in_flight: Atomic::new(0),
                target: Atomic::new(Arc::into_raw(target)),
                token,
                slots <- Opaque::ffi_init(|_| ()),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // INVARIANT: There are no packets.
        Ok(Self {
            shared,
            first: 0,
            count: 0,
            used: false,
        })
    }

    /// Tells `target` from now on. Returns the one before, which may be told something as long as that
    /// is not dropped; the caller drops it where it may sleep.
    pub fn set_target(&mut self, target: Arc<T>) -> Replaced<T> {
        // INVARIANT: The old one lives until `Replaced` was dropped, which waits for its readers.
        let old = self.shared.target.xchg(Arc::into_raw(target), Full);
        Replaced {
            used: self.used,
            // SAFETY: By the type invariant of `Shared` it comes from `into_raw`, and it is there no more.
            _target: unsafe { Arc::from_raw(old) },
        }
    }

    /// The number of packets, in flight or not.
    pub fn len(&self) -> usize {
        self.count
    }

    /// As [`Socket::send`] to a tap, which uses the memory of `segments` until the packet is done.
    ///
    /// Returns the slot that the packet has. Fails also with [`ENOSPC`] if there are
    /// [`MAX_PACKETS`]. After an error the packet is not kept.
    pub fn send(
        &mut self,
        mm: CurrentMm<'_>,
        sock: &Socket,
        segments: &Segments,
        skip: usize,
        more: bool,
    ) -> Result<usize> {
        if self.count >= MAX_PACKETS {
            return Err(ENOSPC);
        }
        self.used = true;
        let number = self.first.wrapping_add(self.count);
        let slot = self.shared.slot(number);
        // SAFETY: The slot is part of the array, and not in flight: nobody else accesses it.
        // INVARIANT: It was counted before.
        unsafe {
            self.shared.in_flight.fetch_add(1, Relaxed);
            slot.write(Slot {
                ubuf: bindings::ubuf_info {
                    ops: Shared::<T>::OPS,
                    refcnt: bindings::REFCOUNT_INIT(1),
                    flags: (bindings::SKBFL_ZEROCOPY_ENABLE | bindings::SKBFL_SHARED_FRAG) as u8,
                },
                state: Atomic::new(State::InFlight),
                shared: Arc::as_ptr(&self.shared),
            });
        }
        // SAFETY: `ubuf` and its operations are valid until it is completed, as it is counted.
        let sent = unsafe { sock.send_ubuf(mm, segments, skip, more, &raw mut (*slot).ubuf) };
        if let Err(err) = sent {
            // SAFETY: The slot was written.
            let state = unsafe { &(*slot).state };
            // The socket no longer has it. It may have completed it before it failed.
            if state.load(Acquire) == State::InFlight {
                // INVARIANT: It is counted no more, and will not be completed.
                state.store(State::Copied, Relaxed);
                self.shared.put();
            }
            return Err(err);
        }
        // INVARIANT: The slot was written.
        self.count += 1;
        Ok(number % MAX_PACKETS)
    }

    /// Takes out the packet that was sent first, if it is done.
    pub fn pop(&mut self) -> Option<Done> {
        if self.count == 0 {
            return None;
        }
        // SAFETY: By the type invariant the slot was written.
        let state = unsafe { &(*self.shared.slot(self.first)).state };
        // Nothing is done to the slot before it is done with; pairs with the release of
        // `Shared::complete`.
        let state = state.load(Acquire);
        if state == State::InFlight {
            return None;
        }
        let slot = self.first % MAX_PACKETS;
        // INVARIANT: It is not in flight.
        self.first = self.first.wrapping_add(1);
        self.count -= 1;
        Some(Done {
            slot,
            copied: state != State::Sent,
        })
    }

    /// The packets that are in flight, to be waited for.
    pub fn in_flight(&self) -> InFlight<T> {
        InFlight(self.shared.clone())
    }
}

impl<T: Wake> Drop for UserBufs<T> {
    fn drop(&mut self) {
        self.shared.wait();
        if self.used {
            // The callbacks that made it so may still be at it.
            // SAFETY: Without preconditions, but for a context that may sleep.
            unsafe { bindings::synchronize_rcu() };
        }
    }
}

/// The packets of a [`UserBufs`] that are in flight.
pub struct InFlight<T: Wake>(Arc<Shared<T>>);

impl<T: Wake> InFlight<T> {
    /// Waits until there are none. This can't be interrupted.
    pub fn wait(&self) {
        self.0.wait();
    }
}
