// SPDX-License-Identifier: GPL-2.0

//! A queue behind an IOTLB that looks ahead, and owners who answer what it asks: well, late, wrongly, twice, in
//! parts, never.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use std::collections::VecDeque;
use vhost_net_host_tests::{
    cases::ahead::{case, check},
    config,
    mem::{Access, Mem},
    memtable::{self, Ahead, Iotlb, Iova, Miss, Segments, MAX_AHEAD},
    messages::Misses,
    ring::Vring,
    uapi,
    usermem::UserAddr,
    vring::{Endian, Fault, RingAddrs, Wanted},
    Tell,
};

proptest! {
    #![proptest_config(config(6000))]

    #[test]
    fn finds_what_is_missing(case in case()) {
        check(&case)?;
    }
}

const PAGE: u64 = 4096;
const PAGES: u64 = 512;
const USER: u64 = 0x5000_0000;
const NUM: u64 = 64;
const DESC: u64 = 0;
const AVAIL: u64 = PAGE;
const USED: u64 = 2 * PAGE;
const TABLES: u64 = 4 * PAGE;
const BUFFERS: u64 = 16 * PAGE;

/// Where a page of the driver's addresses is.
fn user(page: u64) -> u64 {
    USER + page * 37 % PAGES * PAGE
}

/// A device with one queue to transmit, behind an IOMMU with an owner.
struct Device {
    mem: Mem,
    ring: Vring<Mem>,
    iotlb: Iotlb,
    misses: Misses<2>,
    ahead: Ahead,
    /// An answer has woken it.
    woken: bool,
    turns: usize,
    /// So often an answer had it look on.
    looks: usize,
    taken: usize,
    offered: u16,
}

impl Device {
    fn new(limit: usize) -> Self {
        let mem = Mem::new();
        mem.add(USER, PAGES * PAGE, Access::ReadWrite);
        let mut ring = Vring::new(mem.clone()).unwrap();
        ring.set_num(NUM as u32).unwrap();
        ring.set_behind_iotlb(true);
        ring.set_addrs(RingAddrs {
            desc: UserAddr::new(DESC),
            avail: UserAddr::new(AVAIL),
            used: UserAddr::new(USED),
        });
        let mut device = Device {
            mem,
            ring,
            iotlb: Iotlb::new(limit),
            misses: Misses::new().unwrap(),
            ahead: Ahead::new().unwrap(),
            woken: false,
            turns: 0,
            looks: 0,
            taken: 0,
            offered: 0,
        };
        device.map(USED / PAGE, 1);
        let started = device.ring.start(Endian::Little, Some(&device.iotlb));
        started.unwrap();
        let _ = device.iotlb.invalidate(Iova::new(0), u64::MAX);
        device
    }

    fn map(&mut self, page: u64, count: u64) {
        for page in page..(page + count).min(PAGES) {
            self.update(page * PAGE, PAGE, user(page));
        }
    }

    /// An update, as the device follows it.
    fn update(&mut self, addr: u64, size: u64, user: u64) {
        let (iova, user) = (Iova::new(addr), UserAddr::new(user));
        self.iotlb.tell(iova, size, user, 3).unwrap();
        let mut answered = false;
        self.misses.answer(iova, size, |_| answered = true);
        self.woken |= answered && !self.waits_for_more();
    }

    /// As the device's.
    fn waits_for_more(&mut self) -> bool {
        if !self.ahead.hides_any() {
            return false;
        }
        self.looks += 1;
        self.ahead.begin(self.iotlb.limit());
        let _ = self.ring.find(&self.iotlb);
        let (ahead, iotlb) = (&mut self.ahead, &self.iotlb);
        self.ring.look_ahead(iotlb, Wanted::default(), ahead);
        self.misses
            .wait_for(1, &self.ahead, uapi::IOTLB_MSG_V2, false);
        self.ahead.needs_any()
    }

    fn put(&self, addr: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let at = addr + i as u64;
            self.mem.put(user(at / PAGE) + at % PAGE, &[*byte]);
        }
    }

    /// The driver makes a chain available: buffers, in an indirect table or not.
    fn offer(&mut self, buffers: &[(u64, u32)], first: u64, table: Option<u64>) {
        let at =
            |i: u64| table.unwrap_or(DESC) + 16 * (i + if table.is_some() { 0 } else { first });
        for (i, &(addr, len)) in buffers.iter().enumerate() {
            let i = i as u64;
            let more = i + 1 < buffers.len() as u64;
            let next = if table.is_some() {
                i + 1
            } else {
                first + i + 1
            };
            self.put(at(i), &desc(addr, len, u16::from(more), next));
        }
        if let Some(table) = table {
            let len = 16 * buffers.len() as u32;
            self.put(DESC + 16 * first, &desc(table, len, 4, 0));
        }
        let slot = u64::from(self.offered) % NUM;
        self.put(AVAIL + 4 + 2 * slot, &(first as u16).to_le_bytes());
        self.offered += 1;
        self.put(AVAIL + 2, &self.offered.to_le_bytes());
    }

    /// What the worker does. Returns whether it has nothing left to do.
    fn turn(&mut self, kicked: bool) -> bool {
        self.turns += 1;
        let Err(fault) = self.try_turn() else {
            return true;
        };
        let miss = fault.miss().unwrap_or_else(|| panic!("{fault:?}"));
        self.ahead.begin(self.iotlb.limit());
        self.ahead.push(miss);
        let (ahead, iotlb) = (&mut self.ahead, &self.iotlb);
        self.ring.look_ahead(iotlb, Wanted::default(), ahead);
        self.misses
            .wait_for(1, &self.ahead, uapi::IOTLB_MSG_V2, kicked);
        false
    }

    fn try_turn(&mut self) -> Result<(), Fault> {
        self.ring.find(&self.iotlb)?;
        let mut out = Segments::new().unwrap();
        loop {
            out.clear();
            let mut take = self.ring.take();
            if take
                .next_chain(self.iotlb.maps(), &mut out, None)?
                .is_none()
            {
                break;
            }
            take.complete();
            self.taken += 1;
        }
        self.ring.publish()
    }

    fn read(&mut self) -> Option<u64> {
        self.misses.read().map(|(message, _)| message.iotlb.iova)
    }
}

fn desc(addr: u64, len: u32, flags: u16, next: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&(next as u16).to_le_bytes());
    bytes
}

/// A packet in 17 pages: all of them are told before the first answer, and the queue runs once more, when the last one
/// is there, also for an owner who answers each message before it reads the next.
#[test]
fn seventeen_pages() {
    for one_at_a_time in [false, true] {
        let mut device = Device::new(2048);
        device.map(0, 4);
        device.offer(&[(BUFFERS + 100, 12), (BUFFERS + 112, 16 * 4096)], 0, None);
        assert!(!device.turn(true));
        let mut told = vec![];
        while let Some(iova) = device.read() {
            told.push(iova);
            assert!(!device.woken);
            if one_at_a_time {
                device.map(iova / PAGE, 1);
            }
        }
        let rest = (1..17).map(|i| BUFFERS + i * PAGE);
        let want: Vec<_> = [BUFFERS + 100].into_iter().chain(rest).collect();
        assert_eq!(told, want);
        for iova in told.iter().filter(|_| !one_at_a_time) {
            assert!(!device.woken);
            device.map(iova / PAGE, 1);
        }
        assert!(device.woken);
        assert!(device.turn(false));
        assert_eq!((device.taken, device.turns, device.looks), (1, 2, 0));
    }
}

/// What a table names is told as soon as the table is there, of the chain that comes next: it takes the queue one turn less.
/// That of the others is told together, when the queue comes to them.
#[test]
fn tables_and_what_they_name() {
    let mut device = Device::new(2048);
    device.map(0, 4);
    let buffers = |i: u64| [BUFFERS + 10 * i * PAGE, BUFFERS + (10 * i + 1) * PAGE];
    for i in 0..3 {
        let [first, second] = buffers(i);
        let table = TABLES + i * PAGE;
        device.offer(&[(first, 12), (second, 4096)], i, Some(table));
    }
    let tables: Vec<_> = (0..3).map(|i| TABLES + i * PAGE).collect();
    let serve = |device: &mut Device| {
        let mut told = vec![];
        while let Some(iova) = device.read() {
            told.push(iova);
            device.map(iova / PAGE, 1);
        }
        told.sort();
        told
    };
    assert!(!device.turn(true));
    assert_eq!(serve(&mut device), [&tables[..], &buffers(0)].concat());
    assert!(std::mem::take(&mut device.woken));
    assert!(!device.turn(false));
    assert_eq!(device.taken, 1);
    assert_eq!(serve(&mut device), [buffers(1), buffers(2)].concat());
    assert!(device.woken);
    assert!(device.turn(false));
    assert_eq!((device.taken, device.turns, device.looks), (3, 3, 1));
}

/// However much a driver has made available, a look at it ends: here at a ring full of tables, of which nothing is missing.
#[test]
fn a_look_ends() {
    let mut device = Device::new(2048);
    device.map(0, PAGES);
    let buffers = vec![(BUFFERS, 1); 500];
    for i in 0..NUM {
        device.offer(&buffers, i, Some(TABLES));
    }
    device.ring.find(&device.iotlb).unwrap();
    device.ahead.begin(device.iotlb.limit());
    device.ahead.push(Miss {
        addr: Iova::new(PAGES * PAGE),
        access: memtable::Access::Read,
    });
    device.mem.reads();
    let (ahead, iotlb) = (&mut device.ahead, &device.iotlb);
    device.ring.look_ahead(iotlb, Wanted::default(), ahead);
    assert_eq!(device.ahead.iter().count(), 1);
    let (reads, _) = device.mem.reads();
    assert!((100..1200).contains(&reads), "{reads} reads");
    // And at a buffer of 4 GiB, of which all is.
    let mut device = Device::new(2048);
    device.map(0, 4);
    device.offer(&[(BUFFERS, u32::MAX)], 0, None);
    device.turn(true);
    assert_eq!(device.ahead.iter().count(), MAX_AHEAD);
}

/// A look says whether anything is missing, or could not be looked at; what is beyond gets a small part of the room.
#[test]
fn what_a_look_says() {
    let page = |page: u64| Iova::new(page * PAGE);
    let mut iotlb = Iotlb::new(1024);
    // Pages 0 to 599 in maps of their own, but for 300.
    for i in (0..600).filter(|&i| i != 300) {
        iotlb.tell(page(i), PAGE, UserAddr::new(0), 3).unwrap();
    }
    let mut hint = memtable::Hint::new().unwrap();
    let mut ahead = Ahead::new().unwrap();
    let mut look = |ahead: &mut Ahead, first: u64, count: u64| {
        let (access, len) = (memtable::Access::Read, count * PAGE);
        ahead.look(iotlb.maps(), page(first), len, access, &mut hint)
    };
    ahead.begin(1024);
    assert!(!look(&mut ahead, 300, 0));
    assert!(!look(&mut ahead, 0, 300));
    assert!(!ahead.needs_any());
    ahead.begin(1024);
    assert!(look(&mut ahead, 299, 3));
    assert!(look(&mut ahead, 300, 1));
    assert_eq!(ahead.iter().count(), 1);
    // So many maps it looks at, and no more, of which one is missing.
    ahead.begin(1024);
    assert!(!look(&mut ahead, 301, 299) && !ahead.hides_any());
    assert!(look(&mut ahead, 301, 299));
    assert!(ahead.hides_any());
    assert!(look(&mut ahead, 0, 1));
    assert_eq!((ahead.iter().count(), ahead.step()), (0, None));
    // Where there is no more room, it says so of what it did not see.
    for (maps, room) in [(1024, 64), (512, 64), (504, 63), (80, 10), (8, 1)] {
        ahead.begin(maps);
        ahead.go_beyond();
        for i in 0..room {
            assert!(!look(&mut ahead, 0, 1), "{i} of {room}");
            assert_eq!(ahead.step(), Some(()));
            assert!(look(&mut ahead, 1000 + i, 1));
        }
        assert!(look(&mut ahead, 2000, 1));
        assert_eq!((ahead.iter().count() as u64, ahead.step()), (room, None));
        assert!(!ahead.needs_any() && !ahead.hides_any());
    }
    // As many as there is room for are needed next, and one more.
    ahead.begin(1024);
    assert!(look(&mut ahead, 1000, MAX_AHEAD as u64 - 1) && !ahead.hides_any());
    assert!(look(&mut ahead, 2000, 2) && ahead.hides_any());
    ahead.begin(1024);
    assert!(!ahead.hides_any());
}

/// A head that is no descriptor's ends the look, whatever is there.
#[test]
fn a_head_out_of_range() {
    for (head, told) in [(NUM - 1, 1), (NUM, 0)] {
        let mut device = Device::new(2048);
        device.map(0, 4);
        device.offer(&[(BUFFERS, 1)], head, None);
        device.ring.find(&device.iotlb).unwrap();
        device.ahead.begin(2048);
        let (ahead, iotlb) = (&mut device.ahead, &device.iotlb);
        device.ring.look_ahead(iotlb, Wanted::default(), ahead);
        assert_eq!(device.ahead.iter().count(), told);
    }
}

/// What comes behind so many bytes is not needed next, also where the bytes are in a table.
#[test]
fn the_bytes_of_a_table_count() {
    for (bytes, needed) in [(100, false), (101, true)] {
        let mut device = Device::new(2048);
        device.map(0, 5);
        device.map(BUFFERS / PAGE, 1);
        device.offer(&[(BUFFERS, 60), (BUFFERS, 40)], 0, Some(TABLES));
        device.offer(&[(BUFFERS + PAGE, 1)], 1, None);
        device.ring.find(&device.iotlb).unwrap();
        device.ahead.begin(2048);
        let wanted = Wanted { bytes, chains: 9 };
        let (ahead, iotlb) = (&mut device.ahead, &device.iotlb);
        device.ring.look_ahead(iotlb, wanted, ahead);
        let told: Vec<_> = device.ahead.iter().map(|(_, needed)| needed).collect();
        assert_eq!(told, [needed]);
    }
}

/// In the longest table that there may be it looks at the first ones, in a longer one at nothing.
#[test]
fn the_longest_table() {
    for (count, told) in [(0x1_0000, 1), (0x1_0001, 0)] {
        let mut device = Device::new(2048);
        device.map(0, 5);
        // All of it in the same page, over and over; what its descriptors name is missing.
        device.offer(&[(1 << 32, 1)], 0, Some(TABLES));
        for i in 1..=0x1_0000 / 256 {
            device.update(TABLES + i * PAGE, PAGE, user(TABLES / PAGE));
        }
        device.put(DESC, &desc(TABLES, 16 * count, 4, 0));
        device.ring.find(&device.iotlb).unwrap();
        device.ahead.begin(2048);
        let (ahead, iotlb) = (&mut device.ahead, &device.iotlb);
        device.ring.look_ahead(iotlb, Wanted::default(), ahead);
        assert_eq!(device.ahead.iter().count(), told, "{count:#x}");
    }
}

/// What an owner does with a message.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Page,
    /// After the others.
    Late,
    Twice,
    /// With another page.
    Wrong(u64),
    /// From this address, to the end of the page or before.
    Part(u64),
    /// With more pages than one, in one map over the old ones.
    Large(u64),
    /// It is gone, and what was known of the page before, too.
    Invalidated,
    Never,
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        20 => Just(Answer::Page),
        6 => Just(Answer::Late),
        3 => Just(Answer::Twice),
        2 => (0..PAGES).prop_map(Answer::Wrong),
        3 => (1..5000u64).prop_map(Answer::Part),
        3 => (1..20u64).prop_map(Answer::Large),
        1 => Just(Answer::Invalidated),
        2 => Just(Answer::Never),
    ]
}

/// A chain: buffers, and the indirect table that they are in.
type Chain = (Vec<(u64, u32)>, Option<u64>);

/// Chains of buffers of up to `most` bytes, some of them in indirect tables.
fn chains(count: usize, most: u32, tables: bool) -> impl Strategy<Value = Vec<Chain>> {
    let buffer = (0..200 * PAGE, prop_oneof![1..2000u32, 1..most]);
    // Each has a table of its own; some are in two pages.
    let table = (0..37u64, any::<bool>()).prop_map(move |(at, any)| (any && tables).then_some(at));
    vec((vec(buffer, 1..4), table), 1..count).prop_map(|chains| {
        let chain = |(i, (buffers, table)): (usize, (Vec<(u64, u32)>, Option<u64>))| {
            let buffers = buffers.into_iter().map(|(at, len)| (BUFFERS + at, len));
            let table = table.map(|at| TABLES + 16 * (at + 40 * i as u64));
            (buffers.collect(), table)
        };
        chains.into_iter().enumerate().map(chain).collect()
    })
}

/// The pages of a chain, at most.
fn pages(chain: &Chain) -> usize {
    let buffers = chain.0.iter();
    2 + buffers.map(|b| 2 + b.1 as usize / 4096).sum::<usize>()
}

proptest! {
    #![proptest_config(config(3000))]

    /// Whatever the owner does, no more is told than there is room for, and as soon as it answers, or the driver kicks, all
    /// chains are taken. Nothing goes on by itself: each turn has a cause.
    #[test]
    fn any_owner(
        chains in chains(12, 70000, true),
        answers in vec(answer(), 1..200),
        limit in prop_oneof![Just(2048usize), 100..200usize],
    ) {
        let mut device = Device::new(limit);
        let mut first = 0;
        for (buffers, table) in &chains {
            device.offer(buffers, first, *table);
            first += buffers.len() as u64;
        }
        let mut answers = answers.into_iter();
        let mut late = VecDeque::new();
        let mut causes = 1;
        device.turn(true);
        for round in 0.. {
            prop_assert!(round < 3000, "it hangs, with {} of {} taken", device.taken, chains.len());
            if std::mem::take(&mut device.woken) {
                causes += 1;
                device.turn(false);
            }
            if device.taken == chains.len() {
                break;
            }
            let mut told = vec![];
            while let Some(iova) = device.read() {
                told.push(iova);
            }
            prop_assert!(told.len() <= MAX_AHEAD);
            let mut unique = told.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), told.len());
            if told.is_empty() && !device.woken {
                match late.pop_front() {
                    Some(page) => device.map(page, 1),
                    None => {
                        causes += 1;
                        device.turn(true);
                    }
                }
            }
            for iova in told {
                let page = iova / PAGE;
                match answers.next().unwrap_or(Answer::Page) {
                    Answer::Page => device.map(page, 1),
                    Answer::Late => late.push_back(page),
                    Answer::Twice => {
                        device.map(page, 1);
                        device.map(page, 1);
                    }
                    Answer::Wrong(other) => device.map(other, 1),
                    Answer::Part(size) => {
                        let size = size.min(PAGE - iova % PAGE);
                        device.update(iova, size, user(page) + iova % PAGE);
                    }
                    Answer::Large(count) => device.map(page, count),
                    Answer::Invalidated => {
                        let (addr, size) = (Iova::new(page * PAGE), PAGE);
                        device.iotlb.invalidate(addr, size).unwrap();
                        device.misses.invalidate(addr, size);
                    }
                    Answer::Never => {}
                }
            }
        }
        prop_assert_eq!(device.turns, causes);
    }

    /// An owner who maps the page of each message at once: the queue runs once for the ring, and no more than twice for each
    /// chain, for an indirect table tells of its buffers when it is there; and each page is told once.
    #[test]
    fn a_good_owner(chains in chains(12, 60000, true)) {
        prop_assert!(chains.iter().all(|chain| pages(chain) < MAX_AHEAD));
        let mut device = Device::new(2048);
        let mut first = 0;
        for (buffers, table) in &chains {
            device.offer(buffers, first, *table);
            first += buffers.len() as u64;
        }
        device.turn(true);
        let mut told = vec![];
        while device.taken < chains.len() {
            // The worker is as slow as it can be: it runs when there is nothing to read.
            while let Some(iova) = device.read() {
                told.push(iova / PAGE);
                device.map(iova / PAGE, 1);
            }
            prop_assert!(std::mem::take(&mut device.woken), "nobody wakes it");
            device.turn(false);
        }
        let count = told.len();
        told.sort_unstable();
        told.dedup();
        prop_assert_eq!(told.len(), count);
        let tables = chains.iter().filter(|chain| chain.1.is_some()).count();
        prop_assert!(device.turns <= 2 + chains.len() + tables, "{} turns", device.turns);
    }

    /// An answer that wakes the queue has what it needs next: the first chain is taken then, and it is not woken before.
    #[test]
    fn woken_when_the_first_chain_is_there(
        chains in chains(6, 60000, false),
        order in any::<u64>(),
    ) {
        prop_assert!(chains.iter().all(|chain| pages(chain) < MAX_AHEAD));
        let mut device = Device::new(2048);
        device.map(0, 4);
        let mut first = 0;
        for (buffers, table) in &chains {
            device.offer(buffers, first, *table);
            first += buffers.len() as u64;
        }
        device.turn(true);
        let mut waiting: Vec<u64> = vec![];
        let mut state = order | 1;
        while device.taken < chains.len() {
            while let Some(iova) = device.read() {
                waiting.push(iova / PAGE);
            }
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            prop_assert!(!waiting.is_empty(), "it waits for nothing");
            let page = waiting.swap_remove((state >> 33) as usize % waiting.len());
            let mapped = |device: &mut Device| {
                let mut out = Segments::new().unwrap();
                let mut hint = memtable::Hint::new().unwrap();
                chains[device.taken].0.iter().all(|&(addr, len)| {
                    let maps = device.iotlb.maps();
                    let got = maps.translate(Iova::new(addr), len, memtable::Access::Read, &mut hint, &mut out);
                    got.is_ok()
                })
            };
            device.map(page, 1);
            prop_assert_eq!(device.woken, mapped(&mut device));
            if std::mem::take(&mut device.woken) {
                let before = device.taken;
                device.turn(false);
                prop_assert!(device.taken > before);
            }
        }
    }
}
