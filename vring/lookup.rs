// SPDX-License-Identifier: GPL-2.0

//! What a ring keeps from packet to packet to translate the driver's addresses.

#![forbid(unsafe_code)]

use crate::memtable::{
    Hint,
    Segments, //
};
use kernel::prelude::*;

/// Guesses at the maps, and room for one translation beside that of the packet.
pub struct Lookup {
    pub(super) hint: Hint,
    /// The user memory of the indirect table that is being read, or of an area of the ring.
    pub(super) table: Segments,
}

impl Lookup {
    /// Knows nothing yet. Fails with [`ENOMEM`].
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            hint: Hint::new()?,
            // Nearly always it is one piece.
            table: Segments::with_room(4)?,
        })
    }
}
