// SPDX-License-Identifier: GPL-2.0

//! The feature bits that a device offers and its driver accepts.
//!
//! Bit numbers are those of the virtio specification (sections 5.1.3 and 6) and of
//! `include/uapi/linux/vhost.h`.

#![forbid(unsafe_code)]

/// The number of 64-bit words in a [`Features`].
pub const WORDS: usize = 2;

/// A set of feature bits, 0 to 127.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features([u64; WORDS]);

impl Features {
    /// `VIRTIO_NET_F_MRG_RXBUF`: a received packet may span several buffers.
    pub const MRG_RXBUF: u32 = 15;
    /// `VIRTIO_F_NOTIFY_ON_EMPTY`: call the driver when the ring has run empty, suppressed or not.
    pub const NOTIFY_ON_EMPTY: u32 = 24;
    /// `VHOST_F_LOG_ALL`: log every write to guest memory.
    pub const LOG_ALL: u32 = 26;
    /// `VIRTIO_F_ANY_LAYOUT`: no assumption about where a header ends within a chain.
    pub const ANY_LAYOUT: u32 = 27;
    /// `VHOST_NET_F_VIRTIO_NET_HDR`: the device makes and strips the packet header itself. It has
    /// the number of `ANY_LAYOUT`, which the driver never sees from vhost.
    pub const VIRTIO_NET_HDR: u32 = 27;
    /// `VIRTIO_RING_F_INDIRECT_DESC`: a descriptor may name a table of descriptors.
    pub const INDIRECT_DESC: u32 = 28;
    /// `VIRTIO_RING_F_EVENT_IDX`: notifications are suppressed by index, not by flag.
    pub const EVENT_IDX: u32 = 29;
    /// `VIRTIO_F_VERSION_1`: a modern device, little-endian.
    pub const VERSION_1: u32 = 32;
    /// `VIRTIO_F_ACCESS_PLATFORM`: the driver's addresses are those of an IOMMU.
    pub const ACCESS_PLATFORM: u32 = 33;
    /// `VIRTIO_F_RING_PACKED`: rings have the packed format (virtio 1.3, section 2.8).
    pub const RING_PACKED: u32 = 34;
    /// `VIRTIO_F_IN_ORDER`: buffers are used in the order that they were made available.
    pub const IN_ORDER: u32 = 35;
    /// `VIRTIO_F_RING_RESET`: one queue may be reset by itself. All of that is the VMM's to do.
    pub const RING_RESET: u32 = 40;
    /// `VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO`: the driver takes large packets in UDP tunnels, and
    /// headers that describe them.
    pub const GUEST_UDP_TUNNEL_GSO: u32 = 65;
    /// `VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO`: the device takes such packets.
    pub const HOST_UDP_TUNNEL_GSO: u32 = 67;

    /// The set of the given bits.
    pub const fn of(bits: &[u32]) -> Self {
        let mut words = [0; WORDS];
        let mut i = 0;
        while i < bits.len() {
            words[(bits[i] / 64) as usize] |= 1 << (bits[i] % 64);
            i += 1;
        }
        Self(words)
    }

    /// The set that the words name, the lowest bits in the first.
    pub const fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    /// The set as words, the lowest bits in the first.
    pub const fn words(self) -> [u64; WORDS] {
        self.0
    }

    /// Whether `bit` is in the set.
    #[inline(always)]
    pub fn has(&self, bit: u32) -> bool {
        self.0
            .get((bit / 64) as usize)
            .is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }

    /// Whether every bit of `self` is in `other` too.
    pub fn is_subset_of(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(other.0)
            .all(|(ours, theirs)| ours & !theirs == 0)
    }
}
