// SPDX-License-Identifier: GPL-2.0

//! How much a turn of a queue may move, so that the other queue has its turn.

#![forbid(unsafe_code)]

/// A turn ends after so many packets: one queue can't starve the other with small ones.
const PACKET_WEIGHT: u32 = 256;
/// Behind an IOMMU, whether somebody waits for the IOTLB is looked at after so many.
const LAP: u32 = 8;
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

/// What a turn may move, and what it has moved of that.
pub struct Budget {
    /// How many packets may still be moved now, and how many more then.
    packets: u32,
    later: u32,
    bytes: u64,
    descriptors: u32,
}

impl Budget {
    /// All of it. In `laps`, it is spent when one of these is over.
    pub fn new(laps: bool) -> Self {
        let packets = if laps { LAP } else { PACKET_WEIGHT };
        Self {
            packets,
            later: PACKET_WEIGHT - packets,
            bytes: 0,
            descriptors: 0,
        }
    }

    /// Begins the next lap, if this one is over. Returns whether there is anything left.
    pub fn has_more(&mut self) -> bool {
        if self.packets == 0 {
            self.packets = self.later.min(LAP);
            self.later -= self.packets;
        }
        !self.is_spent()
    }

    /// Whether it is spent: the other queue must have its turn, or whoever waits for the IOTLB.
    #[inline(always)]
    pub fn is_spent(&self) -> bool {
        self.packets == 0 || self.bytes >= BYTE_WEIGHT || self.descriptors >= DESCRIPTOR_WEIGHT
    }

    /// Whether `len` bytes more would not spend it.
    #[inline(always)]
    pub fn has_bytes(&self, len: usize) -> bool {
        self.bytes + (len as u64) < BYTE_WEIGHT
    }

    /// Whether something was moved, or tried to.
    pub fn is_begun(&self) -> bool {
        self.packets + self.later < PACKET_WEIGHT
    }

    /// Adds a packet of so many bytes, or an attempt to move one.
    #[inline(always)]
    pub fn spend(&mut self, bytes: usize, descriptors: u32) {
        // It was not spent before, and is far from overflow: a packet has no more than
        // `MAX_SEGMENTS` buffers of less than 4 GiB, and less than 2^17 descriptors.
        self.packets = self.packets.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_add(bytes as u64);
        self.spend_descriptors(descriptors);
    }

    /// Adds descriptors that were read, but not for a packet.
    #[inline(always)]
    pub fn spend_descriptors(&mut self, descriptors: u32) {
        self.descriptors = self.descriptors.wrapping_add(descriptors);
    }
}
