// SPDX-License-Identifier: GPL-2.0

//! How much a turn of a queue may move, so that the other queue has its turn.

#![forbid(unsafe_code)]

/// A turn ends after so many packets: one queue can't starve the other with small ones.
const PACKET_WEIGHT: u32 = 256;
/// A turn ends after so many bytes.
const BYTE_WEIGHT: u64 = 0x80000;
/// A turn ends after so many descriptors: they need not have bytes.
const DESCRIPTOR_WEIGHT: u32 = 0x1_0000;
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

/// What a turn has moved.
#[derive(Default)]
pub struct Budget {
    packets: u32,
    bytes: u64,
    descriptors: u32,
}

impl Budget {
    /// Whether it is spent: the other queue must have its turn.
    #[inline(always)]
    pub fn is_spent(&self) -> bool {
        self.packets >= PACKET_WEIGHT
            || self.bytes >= BYTE_WEIGHT
            || self.descriptors >= DESCRIPTOR_WEIGHT
    }

    /// Whether `len` bytes more would not spend it.
    #[inline(always)]
    pub fn has_bytes(&self, len: usize) -> bool {
        self.bytes + (len as u64) < BYTE_WEIGHT
    }

    /// Whether something was moved, or tried to.
    pub fn is_begun(&self) -> bool {
        self.packets > 0
    }

    /// Adds a packet of so many bytes, or an attempt to move one.
    #[inline(always)]
    pub fn spend(&mut self, bytes: usize, descriptors: u32) {
        // Far from overflow: it was not spent before, and a packet has no more than
        // `MAX_SEGMENTS` buffers of less than 4 GiB, and less than 2^17 descriptors.
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes as u64);
        self.spend_descriptors(descriptors);
    }

    /// Adds descriptors that were read, but not for a packet.
    #[inline(always)]
    pub fn spend_descriptors(&mut self, descriptors: u32) {
        self.descriptors = self.descriptors.wrapping_add(descriptors);
    }
}
