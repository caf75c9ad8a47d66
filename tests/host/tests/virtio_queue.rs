// SPDX-License-Identifier: GPL-2.0

//! The ring next to rust-vmm's `virtio-queue`: two devices on the same bytes of the same memory.
//!
//! User addresses are guest addresses here. Each device has a used ring of its own, so that what they
//! write can be compared. The chains are those on which the two agree: an indirect table comes last
//! in its chain, and a chain has fewer than 2^32 bytes.

use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use vhost_net_host_tests::{
    config,
    features::Features,
    memtable::{self, MemTable, Region, Segments},
    ring::Vring,
    usermem::{UserAddr, UserMemory},
    vring::{Endian, RingAddrs},
};
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::{
    desc::{split::Descriptor, RawDescriptor},
    mock::MockSplitQueue,
    Queue, QueueT,
};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Guest memory, as user memory.
struct Ram<'a>(&'a GuestMemoryMmap);

impl UserMemory for &Ram<'_> {
    fn access_ok(&self, addr: UserAddr, len: u64) -> bool {
        self.0.check_range(
            GuestAddress(addr.get()),
            len as usize,
            Permissions::ReadWrite,
        )
    }

    fn read(&self, addr: UserAddr, buf: &mut [u8]) -> Result {
        self.0
            .read_slice(buf, GuestAddress(addr.get()))
            .map_err(|_| EFAULT)
    }

    fn write(&self, addr: UserAddr, buf: &[u8]) -> Result {
        self.0
            .write_slice(buf, GuestAddress(addr.get()))
            .map_err(|_| EFAULT)
    }

    fn load_u16(&self, addr: UserAddr) -> Result<u16> {
        self.0
            .read_obj(GuestAddress(addr.get()))
            .map_err(|_| EFAULT)
    }

    fn store_u16(&self, addr: UserAddr, value: u16) -> Result {
        self.0
            .write_obj(value, GuestAddress(addr.get()))
            .map_err(|_| EFAULT)
    }

    fn read_u64x2_last_first(&self, _addr: UserAddr) -> Result<[u64; 2]> {
        Err(EFAULT)
    }

    fn store_u64(&self, _addr: UserAddr, _value: u64) -> Result {
        Err(EFAULT)
    }

    fn set_bits(&self, _addr: UserAddr, _mask: u32) -> Result {
        Err(EFAULT)
    }

    fn read_barrier(&self) {}
    fn write_barrier(&self) {}
    fn full_barrier(&self) {}
}

const SIZE: u64 = 0x40_0000;
/// Where the second device's used ring is, where buffers are, and where indirect tables are.
const OTHER_USED: u64 = 0x10_0000;
const USED: u64 = 0x18_0000;
const BUFFERS: u64 = 0x20_0000;
const TABLES: u64 = 0x30_0000;

/// A chain: buffers that the device may read, and that it may write, as a place and a size; how many
/// of them are in an indirect table at its end; and the bytes that the device writes.
#[derive(Clone, Debug)]
struct Shape {
    readable: Vec<(u32, u16)>,
    writable: Vec<(u32, u16)>,
    indirect: usize,
    written: u32,
}

fn shape() -> impl Strategy<Value = Shape> {
    let buffer = || (0..0xf_0000u32, 1..0x8000u16);
    (
        vec(buffer(), 0..5),
        vec(buffer(), 0..5),
        0..8usize,
        any::<u32>(),
    )
        .prop_filter("no buffer", |(readable, writable, ..)| {
            !readable.is_empty() || !writable.is_empty()
        })
        .prop_map(|(readable, writable, indirect, written)| Shape {
            readable,
            writable,
            indirect,
            written,
        })
}

/// The two devices, and the driver's place in the ring.
struct Two<'a> {
    ram: &'a GuestMemoryMmap,
    num: u16,
    theirs: Queue,
    ours: Vring<Ram<'a>>,
    table: MemTable,
    desc: u64,
    avail: u64,
    avail_idx: u16,
}

impl<'a> Two<'a> {
    fn new(
        ram: &'a GuestMemoryMmap,
        num: u16,
        desc: u64,
        avail: u64,
        base: u16,
        event: bool,
    ) -> Self {
        let mut theirs = Queue::new(num).unwrap();
        theirs.set_size(num);
        theirs.set_desc_table_address(Some(desc as u32), None);
        theirs.set_avail_ring_address(Some(avail as u32), None);
        theirs.set_used_ring_address(Some(OTHER_USED as u32), None);
        theirs.set_event_idx(event);
        theirs.set_next_avail(base);
        theirs.set_next_used(base);
        theirs.set_ready(true);
        assert!(theirs.is_valid(ram));

        for used in [USED, OTHER_USED] {
            ram.write_obj(base.to_le(), GuestAddress(used + 2)).unwrap();
        }
        let mut ours = Vring::new(Ram(ram)).unwrap();
        ours.set_num(u32::from(num)).unwrap();
        let bits: &[u32] = if event { &[Features::EVENT_IDX] } else { &[] };
        ours.set_features(Features::of(bits));
        ours.set_addrs(RingAddrs {
            desc: UserAddr::new(desc),
            avail: UserAddr::new(avail),
            used: UserAddr::new(USED),
        });
        ours.set_base(base);
        assert!(ours.access_ok(ours.addrs()));
        ours.start(Endian::Little, None).unwrap();
        let region = Region {
            guest: memtable::GuestAddr::new(0),
            size: SIZE,
            user: UserAddr::new(0),
        };
        Self {
            ram,
            num,
            theirs,
            ours,
            table: MemTable::new([region].into_iter()).unwrap(),
            desc,
            avail,
            avail_idx: base,
        }
    }

    fn put_desc(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let desc = RawDescriptor::from(Descriptor::new(addr, len, flags, next));
        self.ram.write_obj(desc, GuestAddress(at)).unwrap();
    }

    /// Makes available as many of the chains as there is room for, and returns how many.
    fn add(&mut self, shapes: &[Shape]) -> usize {
        let mut free = 0;
        let mut tables = TABLES;
        for (count, shape) in shapes.iter().enumerate() {
            let buffers: Vec<_> = (shape.readable.iter().map(|buffer| (buffer, 0)))
                .chain(shape.writable.iter().map(|buffer| (buffer, WRITE)))
                .collect();
            let direct = buffers.len().saturating_sub(shape.indirect);
            let descs = direct + usize::from(shape.indirect > 0);
            if free + descs > usize::from(self.num) {
                return count;
            }
            let head = free as u16;
            for (i, ((place, len), write)) in buffers.iter().enumerate() {
                let addr = BUFFERS + u64::from(*place);
                let more = if i + 1 < buffers.len() { NEXT } else { 0 };
                let (at, next) = if i < direct {
                    let at = self.desc + 16 * free as u64;
                    free += 1;
                    (at, free as u16)
                } else {
                    (tables + 16 * (i - direct) as u64, (i - direct) as u16 + 1)
                };
                self.put_desc(at, addr, u32::from(*len), write | more, next);
            }
            if shape.indirect > 0 {
                let at = self.desc + 16 * free as u64;
                let len = 16 * (buffers.len() - direct) as u32;
                self.put_desc(at, tables, len, INDIRECT, 0);
                tables += u64::from(len);
                free += 1;
            }
            let slot = u64::from(self.avail_idx % self.num);
            self.ram
                .write_obj(head.to_le(), GuestAddress(self.avail + 4 + 2 * slot))
                .unwrap();
            self.avail_idx = self.avail_idx.wrapping_add(1);
        }
        shapes.len()
    }

    fn expose(&self) {
        self.ram
            .write_obj(self.avail_idx.to_le(), GuestAddress(self.avail + 2))
            .unwrap();
    }

    /// Both devices take all chains and use them up. Returns how many there were.
    fn serve(&mut self, written: &[u32]) -> usize {
        let mut out = Segments::new().unwrap();
        let mut count = 0;
        while let Some(chain) = self.theirs.pop_descriptor_chain(self.ram) {
            let head = chain.head_index();
            let theirs: Vec<_> = chain
                .map(|desc| (desc.addr().0, desc.len() as usize, desc.is_write_only()))
                .collect();
            out.clear();
            let mut take = self.ours.take();
            let ours = take
                .next_chain(self.table.maps(), &mut out, None)
                .unwrap()
                .unwrap();
            assert_eq!(ours.head, head);
            let ours: Vec<_> = out
                .as_slice()
                .iter()
                .enumerate()
                .map(|(i, segment)| (segment.addr().get(), segment.len(), i >= ours.readable))
                .collect();
            assert_eq!(ours, theirs);

            let len = written.get(count).copied().unwrap_or(0);
            take.set_written(len);
            take.complete();
            self.theirs.add_used(self.ram, head, len).unwrap();
            count += 1;
        }
        assert!(self
            .ours
            .take()
            .next_chain(self.table.maps(), &mut out, None)
            .unwrap()
            .is_none());
        assert!(self.ours.is_empty());
        assert_eq!(self.ours.base(), self.theirs.next_avail());
        self.ours.publish().unwrap();
        assert_eq!(self.used(USED), self.used(OTHER_USED));
        count
    }

    /// The index and the entries of a used ring.
    fn used(&self, at: u64) -> Vec<u8> {
        let mut bytes = vec![0; 2 + 8 * usize::from(self.num)];
        self.ram
            .read_slice(&mut bytes, GuestAddress(at + 2))
            .unwrap();
        bytes
    }

    /// Asks both whether to call a driver that wants it for entry `event`. Returns what each says.
    fn wants_call(&mut self, event: u16) -> [bool; 2] {
        let at = self.avail + 4 + 2 * u64::from(self.num);
        self.ram.write_obj(event.to_le(), GuestAddress(at)).unwrap();
        let theirs = self.theirs.needs_notification(self.ram).unwrap();
        [self.ours.wants_call().unwrap(), theirs]
    }
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn the_same_chains_come_out(
        shift in 0..9u32,
        base in any::<u16>(),
        event in any::<bool>(),
        rounds in vec(vec(shape(), 0..40), 1..8),
        asked in any::<u16>(),
    ) {
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), SIZE as usize)]).unwrap();
        let num = 1u16 << shift;
        let mut two = Two::new(&ram, num, 0x1000, 0x9000, base, event);
        two.expose();
        if event {
            // Ours calls the first time, whatever the driver says: as the C driver does.
            prop_assert_eq!(two.wants_call(0), [true, false]);
        }
        for shapes in &rounds {
            let count = two.add(shapes);
            two.expose();
            let written: Vec<_> = shapes.iter().map(|shape| shape.written).collect();
            prop_assert_eq!(two.serve(&written), count);
            if event {
                let asked = two.theirs.next_used().wrapping_sub(asked % 64);
                let [ours, theirs] = two.wants_call(asked);
                prop_assert_eq!(ours, theirs);
            }
        }
    }

    #[test]
    fn the_mock_driver(
        shift in 2..7u32,
        chains in vec((1..6u16, any::<bool>()), 1..12),
        descs in vec((0..0xf_0000u64, 1..0x8000u32, any::<bool>(), any::<bool>()), 1..16),
        by_hand in any::<bool>(),
    ) {
        let table = GuestAddress(0x3000_0000);
        let ram = GuestMemoryMmap::<()>::from_ranges(
            &[(GuestAddress(0), SIZE as usize), (table, 0x1_0000)]
        ).unwrap();
        let num = 1u16 << shift;
        let mut mock = MockSplitQueue::create(&ram, GuestAddress(0x1000), num);
        let count = if by_hand {
            // Descriptors with links as the mock driver wants them, as many as fit.
            let descs: Vec<_> = descs.iter().take(usize::from(num)).collect();
            let mut write = false;
            let raw: Vec<_> = descs.iter().enumerate().map(|(i, (place, len, writes, more))| {
                let more = *more && i + 1 < descs.len();
                write |= *writes;
                let flags = if write { WRITE } else { 0 } | if more { NEXT } else { 0 };
                write &= more;
                let addr = BUFFERS + place;
                RawDescriptor::from(Descriptor::new(addr, *len, flags, i as u16 + 1))
            }).collect();
            mock.add_desc_chains(&raw, 0).unwrap();
            descs.iter().enumerate().filter(|(i, desc)| !desc.3 || i + 1 == descs.len()).count()
        } else {
            // It never reuses a descriptor: each chain starts at the first. So does ours.
            for (len, indirect) in &chains {
                if mock.avail().idx().load() == num {
                    break;
                }
                let len = (*len).min(num);
                if *indirect {
                    mock.add_indirect_chain(len).unwrap();
                } else {
                    mock.add_chain(len).unwrap();
                }
            }
            chains.len().min(usize::from(num))
        };
        let (desc, avail) = (mock.desc_table_addr().0, mock.avail_addr().0);
        let mut two = Two::new(&ram, num, desc, avail, 0, false);
        let region = |guest, size| Region {
            guest: memtable::GuestAddr::new(guest),
            size,
            user: UserAddr::new(guest),
        };
        two.table =
            MemTable::new([region(table.0, 0x1_0000), region(0, SIZE)].into_iter()).unwrap();
        prop_assert_eq!(two.serve(&[1, 2, 3]), count);
    }
}
