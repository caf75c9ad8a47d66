// SPDX-License-Identifier: GPL-2.0

//! Why a queue can't go on.

#![forbid(unsafe_code)]

use crate::{
    memtable::{
        Access,
        Iova,
        Miss,
        Refused, //
    },
    sys::compat::ENOBUFS, //
};
use kernel::{
    prelude::*,
    static_assert, //
};

/// What was found in a ring or a buffer, for the person who debugs the driver. What each means,
/// [`Why::text`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Why {
    Descriptors,
    Buffer,
    DirtyBuffers,
    Mixed,
    PartOfDescriptor,
    Table,
    TableLength,
    TableRead,
    Nested,
    TableEnd,
    Ring,
    RingPieces,
    DescriptorRead,
    UsedIndexRead,
    EntryRead,
    Head,
    Next,
    Loop,
    UsedWrite,
    UsedIndexWrite,
    AvailIndexRead,
    AvailIndex,
    AvailFlagsRead,
    UsedEventRead,
    AvailEventWrite,
    UsedFlagsWrite,
    Twice,
    Completed,
    Writable,
    NotWritable,
    Denied,
    Pieces,
    Base,
    Alignment,
    Part,
    TableInChain,
    UsedDescriptorWrite,
    DriverEventRead,
    DeviceEventWrite,
    NoRoom,
}

impl Why {
    /// In words.
    pub fn text(self) -> &'static CStr {
        match self {
            Self::Descriptors => c"a packet has too many descriptors",
            Self::Buffer => c"a buffer is not in memory",
            Self::DirtyBuffers => c"a chain has too many buffers to log",
            Self::Mixed => c"a readable buffer follows a writable one",
            Self::PartOfDescriptor => c"an indirect table has part of a descriptor",
            Self::Table => c"an indirect table is not in memory",
            Self::TableLength => c"an indirect table is too long",
            Self::TableRead => c"an indirect table can't be read",
            Self::Nested => c"an indirect table is nested",
            Self::TableEnd => c"an indirect table goes on past its end",
            Self::Ring => c"the ring is not in memory",
            Self::RingPieces => c"no memory to keep where the ring is",
            Self::DescriptorRead => c"a descriptor can't be read",
            Self::UsedIndexRead => c"the used ring's index can't be read",
            Self::EntryRead => c"an entry of the available ring can't be read",
            Self::Head => c"the head of a chain is out of range",
            Self::Next => c"a descriptor index is out of range",
            Self::Loop => c"a chain of descriptors loops",
            Self::UsedWrite => c"the used ring can't be written",
            Self::UsedIndexWrite => c"the used ring's index can't be written",
            Self::AvailIndexRead => c"the available index can't be read",
            Self::AvailIndex => c"the available index jumped",
            Self::AvailFlagsRead => c"the available ring's flags can't be read",
            Self::UsedEventRead => c"the used event index can't be read",
            Self::AvailEventWrite => c"the available event index can't be written",
            Self::UsedFlagsWrite => c"the used ring's flags can't be written",
            Self::Twice => c"a chain is available twice",
            Self::Completed => c"too many chains are completed",
            Self::Writable => c"a buffer to transmit is writable",
            Self::NotWritable => c"a buffer to receive is not writable",
            Self::Denied => c"a map does not allow the access",
            Self::Pieces => c"a chain has too many pieces",
            Self::Base => c"the ring's base is past its end",
            Self::Alignment => c"the descriptors are at no multiple of 16",
            Self::Part => c"a chain has a descriptor that is not available",
            Self::TableInChain => c"an indirect table is part of a chain",
            Self::UsedDescriptorWrite => c"a used descriptor can't be written",
            Self::DriverEventRead => c"the driver's event area can't be read",
            Self::DeviceEventWrite => c"the device's event area can't be written",
            Self::NoRoom => c"no memory for the pieces of a chain, or of the log",
        }
    }
}

/// What is known of the address that a fault names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing: no map holds it.
    Nothing,
    /// The map of it does not allow the ring to be used so.
    Denied,
}

/// Why a queue can't go on: its ring or a buffer is malformed or out of reach.
///
/// It is returned, or could be, for each packet, so it fits into two registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kernel's error code for it.
    pub error: Error,
    /// What was found.
    pub why: Why,
    /// What is known of `addr`, which is to be accessed so; if it is about an address.
    about: Option<(Known, Access)>,
    addr: Iova,
}

static_assert!(size_of::<Fault>() <= 16);

impl Fault {
    /// Makes a fault.
    pub const fn new(error: Error, why: Why) -> Self {
        Self {
            error,
            why,
            about: None,
            addr: Iova::new(0),
        }
    }

    fn about(self, known: Known, at: Miss) -> Self {
        Self {
            about: Some((known, at.access)),
            addr: at.addr,
            ..self
        }
    }

    /// As [`Self::refused`], of the ring itself.
    pub(super) fn refused_ring(refused: Refused, why: Why) -> Self {
        let fault = Self::refused(refused, why);
        match refused {
            Refused::Denied(at) => fault.about(Known::Denied, at),
            _ => fault,
        }
    }

    pub(super) fn refused(refused: Refused, why: Why) -> Self {
        match refused {
            Refused::Unmapped(at) => Self::new(EFAULT, why).about(Known::Nothing, at),
            Refused::Denied(_) => Self::new(EPERM, Why::Denied),
            Refused::TooMany => Self::new(ENOBUFS, Why::Pieces),
            Refused::NoMemory => Self::new(ENOMEM, Why::NoRoom),
        }
    }

    fn at(&self, known: Known) -> Option<Miss> {
        let (_, access) = self.about.filter(|&(what, _)| what == known)?;
        let addr = self.addr;
        Some(Miss { addr, access })
    }

    /// The address that nothing is known of, if that is all that is wrong.
    pub fn miss(&self) -> Option<Miss> {
        self.at(Known::Nothing)
    }

    /// The address of the ring that a map does not allow to be used so, if that is.
    pub fn denied(&self) -> Option<Miss> {
        self.at(Known::Denied)
    }
}

/// Gives an error its reason.
pub trait Because<T> {
    /// The same result, with the fault that the error is.
    fn because(self, why: Why) -> Result<T, Fault>;
}

impl<T> Because<T> for Result<T> {
    #[inline(always)]
    fn because(self, why: Why) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(error, why))
    }
}

impl<T> Because<T> for Result<T, Refused> {
    #[inline(always)]
    fn because(self, why: Why) -> Result<T, Fault> {
        self.map_err(|refused| Fault::refused(refused, why))
    }
}
