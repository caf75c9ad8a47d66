// SPDX-License-Identifier: GPL-2.0

//! What a device finds when it looks ahead in a packed ring of any content, behind an IOTLB that knows some of it.

use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{
    cases::packed::{case, raw, Desc},
    config,
    mem::{self, number_of, Event, Mem},
    memtable::{Access, Ahead, Iotlb, Iova, Miss, MAX_AHEAD, READ_WRITE},
    packed::{
        Layout, CUT, DESC, DEVICE, DRIVER, F_AVAIL, F_INDIRECT, F_NEXT, F_USED, F_WRITE, GUEST,
        TABLES, TABLES_SIZE, TABLES_USER, USERS,
    },
    ring::Vring,
    usermem::UserAddr,
    vring::{Endian, Wanted},
    Tell,
};

/// Part of the driver's memory: its address, its size, and where it is.
type Region = (u64, u64, u64);

/// All that the driver may name, by pages, and the tables in two parts.
fn regions() -> Vec<Region> {
    let mut cuts: Vec<_> = (GUEST.start..=GUEST.end).step_by(0x1000).collect();
    cuts.push(CUT);
    cuts.sort_unstable();
    let mut all: Vec<Region> = (cuts.windows(2))
        .map(|cut| {
            let (first, user) = if cut[0] < CUT {
                (GUEST.start, USERS[0])
            } else {
                (CUT, USERS[1])
            };
            (cut[0], cut[1] - cut[0], user + cut[0] - first)
        })
        .collect();
    let half = 0x208;
    all.push((TABLES, half, TABLES_USER));
    all.push((TABLES + half, TABLES_SIZE - half, TABLES_USER + half));
    all
}

/// The ring itself, which lies where the driver has it.
fn ring_parts(layout: &Layout) -> [Region; 3] {
    let desc = (DESC, 16 * u64::from(layout.num), DESC);
    [desc, (DRIVER, 4, DRIVER), (DEVICE, 4, DEVICE)]
}

/// A ring behind an IOTLB that knows it and these regions, and has found it.
fn ring(layout: &Layout, mem: &Mem, known: &[Region], base: u32) -> (Vring<Mem>, Iotlb) {
    let mut iotlb = Iotlb::new(1024);
    for &(addr, size, user) in known.iter().chain(&ring_parts(layout)) {
        let (addr, user) = (Iova::new(addr), UserAddr::new(user));
        iotlb.tell(addr, size, user, READ_WRITE).unwrap();
    }
    let mut ring = layout.ring_behind(mem);
    ring.set_vring_base(base).unwrap();
    ring.start(Endian::Little, Some(&iotlb)).unwrap();
    ring.find(&iotlb).unwrap();
    (ring, iotlb)
}

/// What is missing, by a look at each region.
struct Model<'a> {
    layout: &'a Layout,
    mem: &'a Mem,
    known: &'a [Region],
    list: Vec<(Miss, bool)>,
    beyond: bool,
    /// Of what is needed next, not all can be looked at.
    hides: bool,
    steps: usize,
}

impl Model<'_> {
    /// Whether any of the range is missing.
    fn range(&mut self, addr: u64, len: u64, access: Access) -> bool {
        let end = (u128::from(addr) + u128::from(len)).min(1 << 64);
        let (mut at, mut any) = (u128::from(addr), false);
        while at < end && self.list.len() <= MAX_AHEAD {
            self.steps += 1;
            let has = |&&(start, size, _): &&Region| (start..start + size).contains(&(at as u64));
            if let Some(&(start, size, _)) = self.known.iter().find(has) {
                at = u128::from(start + size);
                continue;
            }
            any = true;
            let addr = at as u64;
            let same = |(old, _): &(Miss, bool)| {
                old.addr.get() / 4096 == addr / 4096 && old.access == access
            };
            if !self.list.iter().any(same) {
                let addr = Iova::new(addr);
                self.list.push((Miss { addr, access }, !self.beyond));
            }
            at = (at / 4096 + 1) * 4096;
        }
        any
    }

    fn buffer(&mut self, desc: &Desc) -> u64 {
        let write = desc.flags & F_WRITE != 0;
        let access = if write { Access::Write } else { Access::Read };
        self.range(desc.addr, desc.len.into(), access);
        desc.len.into()
    }

    /// The byte at an address of the driver's that is known.
    fn byte(&self, addr: u64) -> u8 {
        let has = |&&(start, size, _): &&Region| (start..start + size).contains(&addr);
        let &(start, _, user) = self.known.iter().find(has).unwrap();
        self.mem.get(user + (addr - start), 1).unwrap()[0]
    }

    fn desc(&self, addr: u64) -> Desc {
        let raw: Vec<_> = (addr..addr + 16).map(|addr| self.byte(addr)).collect();
        let part = |at: usize, len: usize| number_of(&raw[at..at + len], Endian::Little);
        Desc {
            addr: part(0, 8),
            len: part(8, 4) as u32,
            id: part(12, 2) as u16,
            flags: part(14, 2) as u16,
        }
    }

    /// The bytes of a table's buffers; none if the look ends there.
    fn table(&mut self, desc: &Desc) -> Option<u64> {
        let len = u64::from(desc.len);
        if len == 0 || len % 16 != 0 || len > 0x10_0000 {
            return None;
        }
        if self.range(desc.addr, len, Access::Read) {
            self.hides |= !self.beyond;
            self.beyond = true;
            return Some(0);
        }
        if self.list.len() > MAX_AHEAD {
            return None;
        }
        let mut bytes = 0;
        for at in (desc.addr..desc.addr + len).step_by(16) {
            self.steps += 1;
            let inner = self.desc(at);
            bytes += self.buffer(&inner);
        }
        Some(bytes)
    }

    /// The chain at this number, as its bytes and its descriptors.
    fn chain(&mut self, number: u64) -> Option<(u64, u64)> {
        let num = u64::from(self.layout.num);
        let mut bytes = 0;
        for count in 1..=num {
            self.steps += 1;
            let number = number + count - 1;
            let desc = self.desc(DESC + 16 * (number % num));
            let turn = if self.layout.place(number) & 0x8000 != 0 {
                F_AVAIL
            } else {
                F_USED
            };
            if desc.flags & (F_AVAIL | F_USED) != turn {
                return None;
            }
            match (desc.flags & F_INDIRECT != 0, desc.flags & F_NEXT != 0) {
                (true, false) if count == 1 => return Some((self.table(&desc)?, 1)),
                (true, _) => return None,
                (false, more) => {
                    bytes += self.buffer(&desc);
                    if !more {
                        return Some((bytes, count));
                    }
                }
            }
        }
        None
    }

    fn chains(&mut self, mut number: u64, mut left: u64, wanted: Wanted) {
        let (mut bytes, mut chains) = (0, 0);
        while left > 0 {
            let Some((more, descs)) = self.chain(number).filter(|&(_, descs)| descs <= left) else {
                return;
            };
            (number, left) = (number + descs, left - descs);
            (bytes, chains) = (bytes + more, chains + 1);
            self.beyond |= chains >= wanted.chains || bytes >= wanted.bytes;
        }
    }
}

proptest! {
    #![proptest_config(config(4000))]

    /// It finds what a list finds, or the first part of that if it is too much, and touches nothing.
    #[test]
    fn finds_what_is_missing(
        case in case(),
        offered in 0..70u64,
        out in 0..9u64,
        forgotten in vec(any::<prop::sample::Index>(), 0..7),
        wanted in (0..500u64, 0..5u16),
    ) {
        let (layout, num) = (case.layout, u64::from(case.layout.num));
        let mem = layout.memory();
        for (i, desc) in case.tables.iter().enumerate() {
            mem.put(TABLES_USER + 16 * i as u64, &raw(desc));
        }
        // So many are out there, where the ring is not used in order; of the others some are available.
        let out = if layout.in_order { 0 } else { out.min(num) };
        let avail = layout.start + out;
        for (i, desc) in case.descs.iter().enumerate() {
            let number = avail + i as u64;
            let turn = if layout.place(number) & 0x8000 != 0 { F_AVAIL } else { F_USED };
            let mut desc = desc.clone();
            if (i as u64) < offered {
                desc.flags = desc.flags & !(F_AVAIL | F_USED) | turn;
            }
            mem.put(DESC + 16 * (number % num), &raw(&desc));
        }
        let mut known = regions();
        for which in forgotten {
            known.swap_remove(which.index(known.len()));
        }
        let base = u32::from(layout.place(avail)) | u32::from(layout.place(layout.start)) << 16;
        // What DPDK means by this is another one.
        prop_assume!(base != 0x8000);
        let (mut ring, iotlb) = ring(&layout, &mem, &known, base);
        mem.events();

        let wanted = Wanted { bytes: wanted.0, chains: wanted.1 };
        let mut ahead = Ahead::new().unwrap();
        ahead.begin(iotlb.limit());
        ring.look_ahead(&iotlb, wanted, &mut ahead);
        for event in mem.events() {
            let written = matches!(event, Event::Write { .. } | Event::SetBits { .. });
            prop_assert!(!written, "{:?}", event);
        }
        prop_assert_eq!(mem.violations(), vec![]);
        prop_assert_eq!(ring.vring_base(), base);

        known.extend(ring_parts(&layout));
        let mut model = Model {
            layout: &layout,
            mem: &mem,
            known: &known,
            list: vec![],
            beyond: false,
            hides: false,
            steps: 0,
        };
        model.chains(avail, num - out, wanted);
        let got: Vec<_> = ahead.iter().collect();
        prop_assert!(got.len() <= MAX_AHEAD);
        prop_assert_eq!(&got[..], &model.list[..got.len().min(model.list.len())]);
        // Half of what it may do is enough for this.
        if model.steps < 256 {
            prop_assert_eq!(got.len(), model.list.len().min(MAX_AHEAD));
            if got.len() < MAX_AHEAD {
                prop_assert_eq!(ahead.hides_any(), model.hides);
            }
        }
    }
}

/// In the longest table that there may be it looks at the first ones, in a longer one at nothing.
#[test]
fn the_longest_table() {
    let layout = Layout {
        num: 4,
        event_idx: false,
        in_order: false,
        start: 0,
    };
    let (addr, size, missing) = (0x100_0000, 0x20_0000, 0x9000_0000);
    for (count, told) in [(0x1_0000, 1), (0x1_0001, 0)] {
        let mem = layout.memory();
        let user = 0x5800_0000_0000;
        mem.add(user, size, mem::Access::ReadWrite);
        let (mut ring, iotlb) = ring(&layout, &mem, &[(addr, size, user)], 0x8000_8000);
        for (at, addr, len, flags) in [
            (DESC, addr, 16 * count, F_INDIRECT | F_AVAIL),
            (user, missing, 1, 0),
        ] {
            let desc = Desc {
                addr,
                len,
                id: 0,
                flags,
            };
            mem.put(at, &raw(&desc));
        }
        let mut ahead = Ahead::new().unwrap();
        ahead.begin(iotlb.limit());
        ring.look_ahead(&iotlb, Wanted::default(), &mut ahead);
        let got: Vec<_> = ahead.iter().map(|(miss, _)| miss.addr.get()).collect();
        assert_eq!(got, vec![missing; told]);
    }
}
