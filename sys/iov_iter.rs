// SPDX-License-Identifier: GPL-2.0

//! Iterators over user memory.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use super::bindings as local;
use crate::{
    memtable::Segments,
    usermem::Segment, //
};
use kernel::{
    bindings,
    ffi::c_void,
    static_assert, //
};

// A list of segments is handed to the C side as an array of these.
static_assert!(size_of::<Segment>() == size_of::<bindings::iovec>());
static_assert!(align_of::<Segment>() == align_of::<bindings::iovec>());
// An iterator that is all zeroes goes over no bytes of one buffer, which are to be written.
static_assert!(bindings::iter_type_ITER_UBUF == 0 && bindings::ITER_DEST == 0);

/// Makes `iter` go over at most `len` bytes of `segments` behind their first `skip` bytes.
#[inline(always)]
pub(super) fn init_iter(
    iter: &mut bindings::iov_iter,
    direction: u32,
    segments: &Segments,
    skip: usize,
    len: usize,
) {
    let Some(segment) = segments.only() else {
        let end = segments.total().min(skip.saturating_add(len));
        return init_iter_list(iter, direction, segments.as_slice(), skip, end);
    };
    let rest = segment.skip(skip);
    // SAFETY: `iter` is valid for writes. Where the segment points to is checked at the access.
    unsafe {
        local::iov_iter_ubuf(
            iter,
            direction,
            rest.addr().get() as *mut c_void,
            rest.len().min(len),
        )
    }
}

/// Makes `iter` go over `segments` from byte `skip` to byte `end`, which is no more than there is.
fn init_iter_list(
    iter: &mut bindings::iov_iter,
    direction: u32,
    segments: &[Segment],
    skip: usize,
    end: usize,
) {
    // SAFETY: A segment is laid out as an `iovec`. Where it points to is checked at the access.
    // The list outlives the iterator: those who call `init_iter` borrow the list, and use the
    // iterator only in a call within their own bodies.
    unsafe {
        bindings::iov_iter_init(
            iter,
            direction,
            segments.as_ptr().cast::<bindings::iovec>(),
            segments.len(),
            end,
        );
        if skip > 0 {
            bindings::iov_iter_advance(iter, skip);
        }
    }
}
