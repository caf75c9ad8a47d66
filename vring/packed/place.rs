// SPDX-License-Identifier: GPL-2.0

//! Places in a packed ring.

#![forbid(unsafe_code)]

/// The bit of a place that is the wrap counter.
const WRAP: u16 = 1 << 15;

/// A place in a packed ring: the index of a descriptor, and in bit 15 the wrap counter of who goes
/// around (virtio 1.3, section 2.8.1). So it is in the event areas, and in the halves of a base
/// (`VHOST_SET_VRING_BASE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u16);

impl Place {
    /// Where both sides start.
    pub(super) const START: Self = Self(WRAP);

    /// The place that these bits are. It may be outside the ring.
    #[inline(always)]
    pub(super) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    #[inline(always)]
    pub(super) const fn bits(self) -> u16 {
        self.0
    }

    /// The index of the descriptor.
    #[inline(always)]
    pub(super) const fn index(self) -> u16 {
        self.0 & !WRAP
    }

    /// The wrap counter.
    #[inline(always)]
    pub(super) const fn wrap(self) -> bool {
        self.0 & WRAP != 0
    }

    /// How many descriptors it is from here to `other`, in a ring of `num`. None if one of the two is
    /// outside the ring, or if they are further apart than it is long.
    pub(super) fn distance(self, other: Self, num: u16) -> Option<u16> {
        if self.index() >= num || other.index() >= num {
            return None;
        }
        let around = 2 * u32::from(num);
        // Where it is on two times around, after which it repeats.
        let at = |place: Self| u32::from(place.index()) + if place.wrap() { 0 } else { num.into() };
        let steps = (at(other) + around - at(self)) % around;
        u16::try_from(steps).ok().filter(|&steps| steps <= num)
    }

    /// The place `descs` further on, at most once around the ring of `num` descriptors that this
    /// is in.
    #[inline(always)]
    pub(super) const fn after(self, descs: u16, num: u16) -> Self {
        // Nothing overflows: the index is below `num`, and neither is more than 2^15.
        let index = self.index().wrapping_add(descs);
        let wrap = self.0 & WRAP;
        if index >= num {
            Self(index.wrapping_sub(num) | (wrap ^ WRAP))
        } else {
            Self(index | wrap)
        }
    }
}
