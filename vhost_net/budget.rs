// SPDX-License-Identifier: GPL-2.0

//! How much a turn of a queue may move, so that the other queue has its turn.

#![forbid(unsafe_code)]

use crate::sys::counter::Waiters;

/// A turn ends after so much work: one queue can't starve the other with small packets, or with
/// descriptors that have no bytes. A descriptor is 1.
const WORK: u32 = 0x1_0000;
/// What a packet is beside its descriptors. There are up to 256 in a turn.
const PACKET: u32 = WORK / 256;
/// A turn ends after so many bytes.
const BYTES: u64 = 0x80000;
/// The driver gets its buffers back after so many.
pub const BATCH: usize = 64;

/// Why a queue moves no more packets now.
#[derive(Clone, Copy)]
pub enum Pause {
    /// What was moved is to be given to the guest and to the backend, or the turn is over.
    Enough,
    /// The guest has not made enough buffers available.
    NoBuffer,
    /// The backend has no packet, or takes none now.
    NotReady,
    /// There was no memory for a packet.
    NoMemory,
}

/// What a turn has moved of what it may.
pub struct Budget<'a> {
    work: u32,
    bytes: u64,
    waiters: &'a Waiters,
}

impl<'a> Budget<'a> {
    /// Nothing yet. It is spent after the packet that `waiters` come in: those who want to lock
    /// what the turn has locked.
    pub fn new(waiters: &'a Waiters) -> Self {
        Self {
            work: 0,
            bytes: 0,
            waiters,
        }
    }

    /// Whether it is spent: the other queue must have its turn.
    #[inline(always)]
    pub fn is_spent(&self) -> bool {
        self.work >= WORK || self.bytes >= BYTES
    }

    /// Whether `len` bytes more would not spend it.
    #[inline(always)]
    pub fn has_bytes(&self, len: usize) -> bool {
        self.bytes + (len as u64) < BYTES
    }

    /// Whether something was moved, or tried to.
    pub fn is_begun(&self) -> bool {
        self.work > 0
    }

    /// Adds a packet of so many bytes, or an attempt to move one.
    #[inline(always)]
    pub fn spend(&mut self, bytes: usize, descriptors: u32) {
        // Far from overflow: it was not spent before, and a packet has no more than `MAX_SEGMENTS`
        // buffers of less than 4 GiB, and less than 2^17 descriptors.
        self.bytes = self.bytes.wrapping_add(bytes as u64);
        self.spend_descriptors(descriptors.wrapping_add(PACKET));
        if self.waiters.any() {
            self.spend_all();
        }
    }

    #[cold]
    fn spend_all(&mut self) {
        self.work = WORK;
    }

    /// Adds descriptors that were read, but not for a packet.
    #[inline(always)]
    pub fn spend_descriptors(&mut self, descriptors: u32) {
        self.work = self.work.wrapping_add(descriptors);
    }
}
