// SPDX-License-Identifier: GPL-2.0

//! Indices that user space chose.
//!
//! C header: [`include/linux/nospec.h`](srctree/include/linux/nospec.h)

use super::bindings;

/// `index`, if it is below `len`; and below it also where a processor goes on before it knows that, and
/// would read what the element says: 0 then.
#[inline]
pub fn bounded(index: usize, len: usize) -> Option<usize> {
    // SAFETY: The function computes.
    (index < len).then(|| unsafe { bindings::array_index_nospec(index, len) })
}
