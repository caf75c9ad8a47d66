// SPDX-License-Identifier: GPL-2.0

//! The module's tracepoints, the system `vhost_net`.
//!
//! They are made by `vhost_net_events.c`, and `vhost_net_events.h` says what of each is recorded
//! and how it is printed. As `kernel::tracepoint`, which only knows those of the kernel crate's
//! own bindings. One that is off is a branch that is not there, and without `CONFIG_TRACEPOINTS`
//! there is none at all.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

#[cfg(CONFIG_TRACEPOINTS)]
use super::bindings as local;
use kernel::{
    ffi::c_char,
    prelude::*, //
};

/// A value as C has it.
trait ToC {
    type C;
    fn to_c(self) -> Self::C;
}

macro_rules! numbers {
    ($($ty:ty)*) => {$(
        impl ToC for $ty {
            type C = $ty;
            #[inline(always)]
            fn to_c(self) -> $ty {
                self
            }
        }
    )*};
}
numbers! { bool u16 u32 i32 u64 usize }

impl ToC for &CStr {
    type C = *const c_char;
    #[inline(always)]
    fn to_c(self) -> *const c_char {
        self.as_char_ptr()
    }
}

/// Declares for each tracepoint the function that passes it, and one that says whether it is on.
macro_rules! declare_trace {
    ($(
        $(#[$attr:meta])*
        fn $event:ident [$enabled:ident, $tracepoint:ident, $call:ident]
            ($($arg:ident : $ty:ty),* $(,)?);
    )*) => {$(
        /// Whether somebody traces this.
        #[inline(always)]
        #[allow(dead_code)]
        pub fn $enabled() -> bool {
            #[cfg(CONFIG_TRACEPOINTS)]
            // SAFETY: The key is the one of a tracepoint that C defines.
            let enabled = unsafe {
                kernel::jump_label::static_branch_unlikely!(
                    local::$tracepoint,
                    kernel::bindings::tracepoint,
                    key
                )
            };
            #[cfg(not(CONFIG_TRACEPOINTS))]
            let enabled = false;
            enabled
        }

        $(#[$attr])*
        #[inline(always)]
        pub fn $event($($arg: $ty),*) {
            if $enabled() {
                #[cfg(CONFIG_TRACEPOINTS)]
                // SAFETY: Strings end with a zero, and are copied before this returns; all else
                // are numbers.
                unsafe {
                    local::$call($($arg.to_c()),*)
                }
                #[cfg(not(CONFIG_TRACEPOINTS))]
                let _ = ($($arg.to_c()),*);
            }
        }
    )*};
}

declare_trace! {
    /// The driver kicked `queue`, which `worker` runs for `owner`.
    fn kick[kick_enabled, __tracepoint_vhost_net_kick, rust_do_trace_vhost_net_kick](
        owner: i32, worker: i32, queue: u32,
    );
    /// A turn begins. `cause` is a sum: 1, a kick; 2, the backend or something else is ready; 4, the
    /// worker had slept. `since` are nanoseconds since the kick, 0 if that is not known.
    fn work[work_enabled, __tracepoint_vhost_net_work, rust_do_trace_vhost_net_work](
        owner: i32, queue: u32, cause: u32, since: u64,
    );
    /// What a turn moved to the guest is about to be given to it.
    fn rx_end[rx_end_enabled, __tracepoint_vhost_net_rx_end, rust_do_trace_vhost_net_rx_end](
        packets: i32, bytes: usize, owner: i32, queue: u32, avail: u16, used: u16,
    );
    /// What a turn moved from the guest is sent.
    fn tx_end[tx_end_enabled, __tracepoint_vhost_net_tx_end, rust_do_trace_vhost_net_tx_end](
        packets: i32, bytes: usize, owner: i32, queue: u32, avail: u16, used: u16,
    );
    /// All before `used` was given back, and the driver is `signalled` or did not want that.
    fn call[call_enabled, __tracepoint_vhost_net_call, rust_do_trace_vhost_net_call](
        owner: i32, queue: u32, used: u16, signalled: bool,
    );
    /// Packets were lost, of `len` bytes together.
    fn drop[drop_enabled, __tracepoint_vhost_net_drop, rust_do_trace_vhost_net_drop](
        owner: i32, queue: u32, reason: &CStr, packets: u32, len: usize,
    );
    /// The queue stopped.
    fn stop[stop_enabled, __tracepoint_vhost_net_stop, rust_do_trace_vhost_net_stop](
        owner: i32, queue: u32, error: i32, reason: &CStr,
    );
    /// The IOTLB does not know an address.
    fn iotlb_miss[
        iotlb_miss_enabled,
        __tracepoint_vhost_net_iotlb_miss,
        rust_do_trace_vhost_net_iotlb_miss
    ](
        owner: i32, queue: u32, iova: u64, access: u32,
    );
    /// The network stack is done with packets that it had without a copy.
    fn zerocopy_done[
        zerocopy_done_enabled,
        __tracepoint_vhost_net_zerocopy_done,
        rust_do_trace_vhost_net_zerocopy_done
    ](
        owner: i32, queue: u32, sent: u32, copied: u32, in_flight: u32,
    );
}
