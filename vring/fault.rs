// SPDX-License-Identifier: GPL-2.0

//! Why a queue can't go on.

#![forbid(unsafe_code)]

use crate::{
    memtable::{
        Miss,
        Refused, //
    },
    sys::compat::ENOBUFS, //
};
use kernel::prelude::*;

/// Why a queue can't go on: its ring or a buffer is malformed or out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kernel's error code for it.
    pub error: Error,
    /// What was found, for the person who debugs the driver.
    pub why: &'static str,
    /// The address that nothing is known of, if that is all that is wrong.
    pub miss: Option<Miss>,
    /// The address of the ring that a map does not allow to be used so, if that is.
    pub denied: Option<Miss>,
}

impl Fault {
    /// Makes a fault.
    pub const fn new(error: Error, why: &'static str) -> Self {
        Self {
            error,
            why,
            miss: None,
            denied: None,
        }
    }

    /// As [`Self::refused`], of the ring itself.
    pub(super) fn refused_ring(refused: Refused, why: &'static str) -> Self {
        Self {
            denied: match refused {
                Refused::Denied(miss) => Some(miss),
                _ => None,
            },
            ..Self::refused(refused, why)
        }
    }

    pub(super) fn refused(refused: Refused, why: &'static str) -> Self {
        match refused {
            Refused::Unmapped(miss) => Self {
                miss: Some(miss),
                ..Self::new(EFAULT, why)
            },
            Refused::Denied(_) => Self::new(EPERM, "a map does not allow the access"),
            Refused::TooMany => Self::new(ENOBUFS, "a chain has too many pieces"),
        }
    }
}

/// Gives an error its reason.
pub trait Because<T> {
    /// The same result, with the fault that the error is.
    fn because(self, why: &'static str) -> Result<T, Fault>;
}

impl<T> Because<T> for Result<T> {
    #[inline(always)]
    fn because(self, why: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(error, why))
    }
}

impl<T> Because<T> for Result<T, Refused> {
    #[inline(always)]
    fn because(self, why: &'static str) -> Result<T, Fault> {
        self.map_err(|refused| Fault::refused(refused, why))
    }
}
