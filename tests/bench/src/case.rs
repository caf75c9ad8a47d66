// SPDX-License-Identifier: GPL-2.0

//! The cases: what is sent, through what, in which form.

use kselftest::feature::*;

/// What every case has, unless it says otherwise: what a Linux guest and QEMU agree on.
const USUAL: u64 = VERSION_1 | MRG_RXBUF | EVENT_IDX;

/// Which way packets go.
#[derive(Clone, Copy, PartialEq)]
pub enum Flow {
    /// From the guest to the tap, in batches.
    Tx,
    /// From the tap to the guest, in batches that wait in the tap.
    Rx,
    /// Both at once.
    Both,
    /// From the tap to the guest, one after so many microseconds, each with a call.
    Paced(u64),
    /// A packet from the guest to the tap; when it is there, the answer from the tap to the guest.
    RoundTrip,
}

/// How a packet lies in guest memory.
#[derive(Clone, Copy, PartialEq)]
pub enum Layout {
    /// One buffer: header and packet.
    Single,
    /// Four buffers, the header in the first.
    Four,
    /// An indirect table of two buffers, header and packet.
    Indirect,
    /// The headers, then what a Linux guest's socket gives: buffers of 32 KiB.
    Large,
    /// Several chains of one buffer of 1536 bytes each. Only to receive.
    Merged,
}

/// What the device's IOTLB knows of the buffers when they are made available.
#[derive(Clone, Copy, PartialEq)]
pub enum Known {
    /// All of them, or there is none.
    All,
    /// Nothing: they were mapped a moment ago, for this packet.
    Nothing,
    /// Nothing any more: the same memory is used by as many addresses as this, in turn, which are more pages than it holds.
    Cycling(u64),
}

#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub flow: Flow,
    /// Length of a packet, from its Ethernet header.
    pub len: usize,
    pub layout: Layout,
    /// Packets that are made available together.
    pub batch: usize,
    /// Packets to measure under icount; the wall clock takes more.
    pub packets: usize,
    /// Devices that are at work at once, each with its own tap.
    pub devices: usize,
    /// Memory regions; the buffers are spread over all of them.
    pub regions: u64,
    /// The size of the rings.
    pub ring: u16,
    pub features: u64,
    /// The backend is a packet socket, not the tap.
    pub raw: bool,
    pub known: Known,
    /// What somebody reads the fdinfo of a thousand times a second.
    pub watched: Option<Watched>,
    /// Each queue has a worker of its own, where the driver can do that.
    pub two_workers: bool,
    /// The worker's instructions, Rust / C, that the project wants at most.
    pub goal: f64,
    /// The same of the time from kick to call.
    pub clock_goal: f64,
}

/// Whose fdinfo is read.
#[derive(Clone, Copy)]
pub enum Watched {
    /// The device's.
    Device,
    /// The tap's, for comparison.
    Other,
}

/// The simplest case, from which the others differ.
const TX: Case = Case {
    name: "tx-60",
    flow: Flow::Tx,
    len: 60,
    layout: Layout::Single,
    batch: 64,
    packets: 6400,
    devices: 1,
    regions: 1,
    ring: 256,
    features: USUAL,
    raw: false,
    known: Known::All,
    watched: None,
    two_workers: false,
    goal: 0.85,
    clock_goal: 1.00,
};
/// Behind an IOMMU that maps each packet anew.
const COLD: Case = Case {
    name: "tx-iotlb-cold",
    features: USUAL | ACCESS_PLATFORM,
    known: Known::Nothing,
    packets: 640,
    goal: 1.00,
    clock_goal: 0.25,
    ..TX
};
const RX: Case = Case {
    name: "rx-60",
    flow: Flow::Rx,
    ..TX
};

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    TX,
    RX,
    Case { name: "tx-1500", len: 1500, packets: 3200, goal: 0.90, ..TX },
    Case { name: "rx-1500", len: 1500, packets: 3200, goal: 0.90, ..RX },
    Case { name: "tx-65000", len: 65000, layout: Layout::Large, packets: 640, goal: 0.95, ..TX },
    Case { name: "rx-65000", len: 65000, packets: 640, goal: 0.95, ..RX },
    Case { name: "tx-indirect", layout: Layout::Indirect, features: USUAL | INDIRECT, goal: 0.80, ..TX },
    Case { name: "rx-indirect", layout: Layout::Indirect, features: USUAL | INDIRECT, goal: 0.80, ..RX },
    Case { name: "tx-4-segments", layout: Layout::Four, goal: 0.80, ..TX },
    Case { name: "rx-4-segments", layout: Layout::Four, goal: 0.80, ..RX },
    Case { name: "tx-latency", batch: 1, packets: 1600, goal: 1.00, ..TX },
    Case { name: "rx-latency", batch: 1, packets: 1600, goal: 1.00, ..RX },
    Case { name: "tx-64-regions", regions: 64, goal: 0.80, ..TX },
    Case { name: "rx-64-regions", regions: 64, goal: 0.80, ..RX },
    Case { name: "tx-dirty-log", features: USUAL | LOG_ALL, goal: 0.50, ..TX },
    Case { name: "rx-dirty-log", features: USUAL | LOG_ALL, goal: 0.50, ..RX },
    Case { name: "tx-iotlb", features: USUAL | ACCESS_PLATFORM, ..TX },
    Case { name: "rx-iotlb", features: USUAL | ACCESS_PLATFORM, ..RX },
    COLD,
    Case { name: "rx-iotlb-cold", flow: Flow::Rx, ..COLD },
    Case { name: "tx-17-pages", len: 65000, batch: 1, packets: 40, ..COLD },
    Case { name: "tx-iotlb-full", known: Known::Cycling(64), packets: 6400, clock_goal: 1.00, ..COLD },
    Case { name: "tx-60-watched", watched: Some(Watched::Device), ..TX },
    Case { name: "rx-60-watched", watched: Some(Watched::Device), ..RX },
    Case { name: "tx-60-beside", watched: Some(Watched::Other), ..TX },
    Case { name: "rx-60-beside", watched: Some(Watched::Other), ..RX },
    Case { name: "tx-in-order", features: USUAL | IN_ORDER, goal: 1.00, ..TX },
    Case { name: "rx-in-order", features: USUAL | IN_ORDER, goal: 1.00, ..RX },
    Case { name: "tx-60-packed", features: USUAL | RING_PACKED, goal: 0.72, ..TX },
    Case { name: "rx-60-packed", features: USUAL | RING_PACKED, goal: 0.72, ..RX },
    Case { name: "tx-packed-in-order", features: USUAL | RING_PACKED | IN_ORDER, goal: 0.70, ..TX },
    Case { name: "rx-packed-in-order", features: USUAL | RING_PACKED | IN_ORDER, goal: 0.70, ..RX },
    Case { name: "tx-packed-indirect", layout: Layout::Indirect, features: USUAL | RING_PACKED | INDIRECT, goal: 0.80, ..TX },
    Case { name: "rx-packed-indirect", layout: Layout::Indirect, features: USUAL | RING_PACKED | INDIRECT, goal: 0.80, ..RX },
    Case { name: "tx-packed-4-segments", layout: Layout::Four, features: USUAL | RING_PACKED, goal: 0.80, ..TX },
    Case { name: "rx-packed-4-segments", layout: Layout::Four, features: USUAL | RING_PACKED, goal: 0.80, ..RX },
    Case { name: "rx-mergeable", len: 8000, layout: Layout::Merged, batch: 32, packets: 1600, goal: 1.00, ..RX },
    Case { name: "tx-raw-socket", features: USUAL | VHOST_NET_HDR, raw: true, goal: 1.00, ..TX },
    Case { name: "round-trip", flow: Flow::RoundTrip, batch: 1, packets: 1600, goal: 1.00, ..TX },
    Case { name: "both-ways", flow: Flow::Both, packets: 12800, goal: 1.00, ..TX },
    Case { name: "both-ways-2", flow: Flow::Both, packets: 12800, two_workers: true, clock_goal: 0.62, ..TX },
    Case { name: "tx-60-2", two_workers: true, ..TX },
    Case { name: "rx-60-2", two_workers: true, ..RX },
    Case { name: "tx-latency-2", two_workers: true, batch: 1, packets: 1600, goal: 1.00, ..TX },
    Case { name: "rx-latency-2", two_workers: true, batch: 1, packets: 1600, goal: 1.00, ..RX },
    Case { name: "rx-paced", flow: Flow::Paced(50), features: VERSION_1 | MRG_RXBUF, packets: 3200, ..TX },
];

/// How the cost of a packet grows. Only counted: on a clock, devices would wait for each other.
#[rustfmt::skip]
pub const CURVES: &[Case] = &[
    Case { name: "tx-10-devices", devices: 10, packets: 12800, goal: 1.00, ..TX },
    Case { name: "rx-10-devices", devices: 10, packets: 12800, goal: 1.00, ..RX },
    Case { name: "tx-100-devices", devices: 100, packets: 12800, goal: 1.00, ..TX },
    Case { name: "rx-100-devices", devices: 100, packets: 12800, goal: 1.00, ..RX },
    Case { name: "tx-8-regions", regions: 8, goal: 1.00, ..TX },
    Case { name: "rx-8-regions", regions: 8, goal: 1.00, ..RX },
    Case { name: "tx-509-regions", regions: 509, ring: 512, batch: 509, packets: 6617, goal: 1.00, ..TX },
    Case { name: "rx-509-regions", regions: 509, ring: 512, batch: 509, packets: 6617, goal: 1.00, ..RX },
    Case { name: "tx-ring-64", ring: 64, goal: 1.00, ..TX },
    Case { name: "rx-ring-64", ring: 64, goal: 1.00, ..RX },
    Case { name: "tx-ring-1024", ring: 1024, goal: 1.00, ..TX },
    Case { name: "rx-ring-1024", ring: 1024, goal: 1.00, ..RX },
    Case { name: "tx-ring-32768", ring: 32768, packets: 32768, goal: 1.00, ..TX },
    Case { name: "rx-ring-32768", ring: 32768, packets: 32768, goal: 1.00, ..RX },
];

/// All cases, those of curves last.
pub fn all() -> impl Iterator<Item = &'static Case> {
    CASES.iter().chain(CURVES)
}

impl Case {
    pub fn named(name: &str) -> Option<Case> {
        all().find(|c| c.name == name).copied()
    }

    /// Packets, or round trips, that one batch moves.
    pub fn per_batch(&self) -> usize {
        match self.flow {
            Flow::Both => 2 * self.batch,
            _ => self.batch,
        }
    }

    /// The same on a split ring: what the C driver, which has no other, is measured with.
    pub fn split(self) -> Case {
        Case {
            features: self.features & !RING_PACKED,
            ..self
        }
    }

    pub fn packed(&self) -> bool {
        self.features & RING_PACKED != 0
    }

    /// Whether it says something only with a processor for each thread.
    pub fn by_clock(&self) -> bool {
        matches!(self.flow, Flow::Paced(_)) || self.two_workers && self.flow == Flow::Both
    }

    /// Whether only its instructions say something.
    pub fn by_count(&self) -> bool {
        CURVES.iter().any(|c| c.name == self.name)
    }

    /// Whether the packets are TCP segments that the receiver of the tap's traffic is to cut.
    pub fn gso(&self) -> bool {
        self.len > 16384
    }

    pub fn sends(&self) -> bool {
        !matches!(self.flow, Flow::Rx | Flow::Paced(_))
    }

    /// Whether the packets of a batch are in the tap's queue before there are buffers for them.
    pub fn waits_in_tap(&self) -> bool {
        matches!(self.flow, Flow::Rx | Flow::Both)
    }

    pub fn receives(&self) -> bool {
        self.flow != Flow::Tx
    }
}
