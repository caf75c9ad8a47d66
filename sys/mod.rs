// SPDX-License-Identifier: GPL-2.0

//! Safe access to the kernel facilities that the kernel crate lacks.
//!
//! One file for each facility, named as its C API is and written as if it were to go into
//! `rust/kernel/`. This is the only folder with `unsafe` in it.

pub mod compat;
pub mod counter;
pub mod eventfd;
pub mod iov_iter;
pub mod kcov;
pub mod kthread;
pub mod miscdev;
pub mod moduleparam;
pub mod nospec;
pub mod pid;
pub mod poll;
pub mod reaper;
pub mod receiver;
pub mod sched;
pub mod socket;
#[cfg(CONFIG_VHOST_NET_RUST_KUNIT_TEST)]
mod tests;
pub mod trace;
pub mod uaccess;
pub mod ubuf;
pub mod vhost_task;
pub mod xdp;

/// This module, as C's `THIS_MODULE`: null for a driver that is built in.
#[cfg(MODULE)]
const THIS_MODULE: *mut kernel::bindings::module =
    core::ptr::addr_of!(kernel::bindings::__this_module).cast_mut();
/// As above.
#[cfg(not(MODULE))]
const THIS_MODULE: *mut kernel::bindings::module = core::ptr::null_mut();

/// What `bindings.h` and `helpers.c` give.
#[allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]
mod bindings {
    include!(env!("VHOST_NET_BINDINGS"));
}
