// SPDX-License-Identifier: GPL-2.0

//! A guest with a vhost-net device, and the VMM that set it up.

use std::fs::File;
use std::sync::Arc;

use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net;
use vhost::VhostBackend;
use vhost::VringConfigData;
use vm_memory::GuestMemoryMmap;

use crate::check_eq;
use crate::feature::*;
use crate::mem::Mapped;
use crate::mem::BASE;
use crate::packed;
use crate::sys;
use crate::Mem;
use crate::Peer;
use crate::Res;
use crate::Ring;
use crate::Seg;
use crate::Tap;

/// Index of the queue that carries packets to the guest.
pub const RX: usize = 0;
/// Index of the queue that carries packets from the guest.
pub const TX: usize = 1;

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Config {
    pub features: u64,
    pub rx_num: u16,
    pub tx_num: u16,
    /// Where both rings start counting.
    pub base: u16,
    /// Address and size of each memory region.
    pub regions: Vec<(u64, u64)>,
    /// The device sees the memory through a mapping of its own, [`Guest::view`].
    pub apart: bool,
    /// The packet socket at the other end carries virtio-net headers.
    pub peer_vnet: bool,
    /// The guest is big-endian, and the device a legacy one.
    pub big_endian: bool,
    /// The second word of features: with any, headers have room for what a packet in a UDP tunnel needs.
    pub tunnel: u64,
    /// The worker is a kernel thread, not one of this process.
    pub kernel_thread: bool,
    /// The tap's name; with %d in it, the kernel chooses a number.
    pub tap: &'static str,
}

/// The features of a guest whose test has these, in the format that is tested. Legacy guests have no packed rings: theirs are
/// of modern ones.
pub fn of_format(features: u64) -> u64 {
    match packed::by_default() {
        true => features | VERSION_1 | RING_PACKED,
        false => features,
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            features: of_format(VERSION_1),
            rx_num: 256,
            tx_num: 256,
            base: 0,
            regions: vec![(BASE, 64 << 20)],
            apart: false,
            peer_vnet: false,
            big_endian: false,
            tunnel: 0,
            kernel_thread: false,
            tap: "tap0",
        }
    }
}

impl Config {
    /// The default, with these features.
    pub fn with(features: u64) -> Self {
        Config {
            features: of_format(features),
            ..Default::default()
        }
    }

    /// Both rings of this size.
    pub fn num(mut self, num: u16) -> Self {
        self.rx_num = num;
        self.tx_num = num;
        self
    }

    /// Both rings start counting here.
    pub fn base(mut self, base: u16) -> Self {
        self.base = base;
        self
    }

    /// The length of the header that the guest sees.
    pub fn hdr(&self) -> usize {
        if self.tunnel != 0 {
            24
        } else if self.features & (VERSION_1 | MRG_RXBUF) != 0 {
            12
        } else {
            10
        }
    }

    /// The length of the header that the backend has to carry.
    pub fn backend_hdr(&self) -> usize {
        if self.features & VHOST_NET_HDR != 0 {
            0
        } else {
            self.hdr()
        }
    }
}

/// A guest, its device, and the other end of its wire.
pub struct Guest {
    pub cfg: Config,
    pub mem: Arc<Mem>,
    /// Where the device's first memory table says that the memory is.
    pub view: Vec<Mapped>,
    pub net: Net<Arc<GuestMemoryMmap<()>>>,
    pub rx: Ring,
    pub tx: Ring,
    pub tap: Tap,
    pub peer: Peer,
    /// The length of the header before each packet in guest memory.
    pub hdr: usize,
}

impl Guest {
    /// A running guest.
    pub fn new(cfg: Config) -> Res<Self> {
        let g = Self::stopped(cfg)?;
        g.start()?;
        Ok(g)
    }

    /// A guest whose device has everything but its backends.
    pub fn stopped(cfg: Config) -> Res<Self> {
        let g = Self::unowned(cfg)?;
        g.set_up()?;
        Ok(g)
    }

    /// A guest whose device has no owner yet.
    pub fn unowned(cfg: Config) -> Res<Self> {
        let mem = Arc::new(Mem::new(&cfg.regions)?);
        let rx = Ring::new(&mem, cfg.rx_num, &cfg)?;
        let tx = Ring::new(&mem, cfg.tx_num, &cfg)?;
        let tap = Tap::new(cfg.tap, cfg.backend_hdr())?;
        let peer = Peer::new(tap.index, cfg.peer_vnet)?;
        let net = Net::new(mem.as_vm_memory()?)?;
        let view = if cfg.apart {
            mem.map_again()?
        } else {
            mem.regions().to_vec()
        };
        let hdr = cfg.hdr();
        Ok(Guest {
            cfg,
            mem,
            view,
            net,
            rx,
            tx,
            tap,
            peer,
            hdr,
        })
    }

    /// Makes this process the owner, and tells the device all but its backends.
    pub fn set_up(&self) -> Res {
        let (net, cfg) = (&self.net, &self.cfg);
        if cfg.kernel_thread {
            check_eq!(sys::ioctl(net, sys::SET_FORK_FROM_OWNER, &0u8), 0);
        }
        net.set_owner()?;
        if cfg.tunnel != 0 {
            let features = [2, cfg.features, cfg.tunnel];
            check_eq!(sys::ioctl(net, sys::SET_FEATURES_ARRAY, &features), 0);
        } else {
            net.set_features(cfg.features)?;
        }
        for index in [RX, TX].into_iter().filter(|_| cfg.big_endian) {
            let state = sys::State {
                index: index as u32,
                num: sys::BIG_ENDIAN,
            };
            check_eq!(sys::ioctl(net, sys::SET_VRING_ENDIAN, &state), 0);
        }
        // The crate knows no table of more.
        if self.view.len() <= usize::from(u8::MAX) {
            net.set_mem_table(&Mem::table(&self.view))?;
        } else {
            let region = |r: &Mapped| sys::Region {
                gpa: r.gpa,
                size: r.size,
                hva: r.hva,
                flags: 0,
            };
            let regions: Vec<_> = self.view.iter().map(region).collect();
            let table = sys::mem_table(regions.len() as u32, 0, &regions);
            check_eq!(sys::ioctl(net, sys::SET_MEM_TABLE, table.as_ptr()), 0);
        }
        self.set_vring(RX)?;
        self.set_vring(TX)
    }

    /// Tells the device all of a ring. With a device IOTLB, guest addresses are what is translated.
    pub fn set_vring(&self, index: usize) -> Res {
        let ring = if index == RX { &self.rx } else { &self.tx };
        self.net.set_vring_num(index, ring.num)?;
        if self.cfg.features & RING_PACKED != 0 {
            self.set_base(index, ring.base())?;
        } else {
            self.net.set_vring_base(index, ring.avail_idx)?;
        }
        self.set_place(index)
    }

    /// Tells the device where a ring is, and its eventfds.
    pub fn set_place(&self, index: usize) -> Res {
        let ring = if index == RX { &self.rx } else { &self.tx };
        let iotlb = self.cfg.features & ACCESS_PLATFORM != 0;
        let packed = self.cfg.features & RING_PACKED != 0;
        // The crate knows neither the IOTLB nor rings whose size is not a power of two.
        if iotlb || packed {
            let at = |gpa| {
                if iotlb {
                    gpa
                } else {
                    self.mem.hva(gpa).0 as u64
                }
            };
            let addr = sys::Addr {
                index: index as u32,
                desc: at(ring.desc),
                used: at(ring.used),
                avail: at(ring.avail),
                ..Default::default()
            };
            check_eq!(sys::ioctl(&self.net, sys::SET_VRING_ADDR, &addr), 0);
            return self.set_events(index);
        }
        let addr = VringConfigData {
            queue_max_size: ring.num,
            queue_size: ring.num,
            flags: 0,
            desc_table_addr: ring.desc,
            used_ring_addr: ring.used,
            avail_ring_addr: ring.avail,
            log_addr: None,
        };
        self.net.set_vring_addr(index, &addr)?;
        self.set_events(index)
    }

    /// Sets both halves of a base.
    pub fn set_base(&self, index: usize, num: u32) -> Res {
        let index = index as u32;
        let state = sys::State { index, num };
        check_eq!(sys::ioctl(&self.net, sys::SET_VRING_BASE, &state), 0);
        Ok(())
    }

    fn set_events(&self, index: usize) -> Res {
        let ring = if index == RX { &self.rx } else { &self.tx };
        self.net.set_vring_kick(index, &ring.kick)?;
        self.net.set_vring_call(index, &ring.call)?;
        self.net.set_vring_err(index, &ring.err)?;
        Ok(())
    }

    /// Gives both queues the tap.
    pub fn start(&self) -> Res {
        self.backend(Some(&self.tap.fd))
    }

    /// Takes the backend from both queues. Nothing runs when this returns.
    pub fn stop(&self) -> Res {
        self.backend(None)
    }

    /// Gives both queues this backend, in the order of QEMU. So no ioctl comes after that which
    /// starts to transmit: a turn ends early for one that waits for it.
    pub fn backend(&self, fd: Option<&File>) -> Res {
        self.net.set_backend(RX, fd)?;
        self.net.set_backend(TX, fd)?;
        Ok(())
    }

    /// What a VMM does after an error: stops, resets both rings, and starts them again at `base`.
    pub fn restart(&mut self, base: u16) -> Res {
        self.stop()?;
        self.rx.reset(base);
        self.tx.reset(base);
        self.set_vring(RX)?;
        self.set_vring(TX)?;
        self.start()
    }

    /// Copies a packet, an empty header before it, into fresh memory.
    pub fn place(&self, packet: &[u8]) -> u64 {
        let at = self.mem.alloc(self.hdr + packet.len(), 16);
        self.mem.fill(at, self.hdr, 0);
        self.mem.write(at + self.hdr as u64, packet);
        at
    }

    /// Sends packets, each in one buffer, and waits until the device has used them and the other end
    /// has received them.
    pub fn send_all(&mut self, packets: &[Vec<u8>]) -> Res {
        let mark: Vec<_> = packets
            .iter()
            .map(|p| Seg::r(self.place(p), self.hdr + p.len()))
            .collect();
        for s in mark {
            self.tx.add(&[s]);
        }
        self.tx.submit();
        for (i, p) in packets.iter().enumerate() {
            let u = self.tx.wait()?;
            crate::check_eq!(u.len, 0, "used length of a sent packet");
            let got = self.peer.recv()?;
            same(&got, p, &format!("packet {i}"))?;
        }
        Ok(())
    }

    /// A buffer of `len` bytes for the device to write, filled with 0xa5.
    pub fn buffer(&self, len: usize) -> Seg {
        let at = self.mem.alloc(len, 16);
        self.mem.fill(at, len, 0xa5);
        Seg::w(at, len)
    }

    /// Receives packets, each into one buffer of its own, and checks all of each.
    pub fn receive_all(&mut self, packets: &[Vec<u8>]) -> Res {
        let slack = 32;
        let mut at = vec![];
        for p in packets {
            let b = self.buffer(self.hdr + p.len() + slack);
            at.push((self.rx.add(&[b]), b));
        }
        self.rx.submit();
        for p in packets {
            self.peer.send(p)?;
        }
        for ((head, b), p) in at.into_iter().zip(packets) {
            let u = self.rx.wait()?;
            crate::check_eq!(u.id, u32::from(head), "head of a received packet");
            crate::check_eq!(
                u.len as usize,
                self.hdr + p.len(),
                "used length of a received packet"
            );
            let got = self.mem.read(b.gpa, b.len as usize);
            self.check_rx_hdr(&got, 1)?;
            same(&got[self.hdr..self.hdr + p.len()], p, "received packet")?;
            crate::check!(
                got[self.hdr + p.len()..].iter().all(|&x| x == 0xa5),
                "bytes written behind the packet"
            );
        }
        Ok(())
    }

    /// Receives a packet into mergeable buffers of `size` bytes that lie behind each other.
    pub fn receive_in_pieces(&mut self, p: &[u8], size: usize) -> Res {
        let len = self.hdr + p.len();
        let count = len.div_ceil(size);
        let b = self.buffer(size * count);
        for i in 0..count {
            self.rx.add(&[Seg::w(b.gpa + (i * size) as u64, size)]);
        }
        self.rx.submit();
        self.peer.send(p)?;
        for _ in 0..count {
            self.rx.wait()?;
        }
        let got = self.mem.read(b.gpa, len);
        self.check_rx_hdr(&got, count as u16)?;
        same(&got[self.hdr..], p, &format!("packet in buffers of {size}"))
    }

    /// The header of a packet without offloads, in `buffers` buffers.
    pub fn check_rx_hdr(&self, got: &[u8], buffers: u16) -> Res {
        crate::check_eq!(got[..10], [0; 10], "virtio-net header");
        if self.hdr >= 12 {
            let field = [got[10], got[11]];
            let count = match self.cfg.big_endian {
                true => u16::from_be_bytes(field),
                false => u16::from_le_bytes(field),
            };
            check_eq!(count, buffers, "num_buffers");
            let rest = &got[12..self.hdr];
            crate::check!(rest.iter().all(|&b| b == 0), "header behind: {rest:?}");
        }
        Ok(())
    }
}

/// Fails, saying where, unless both are the same bytes.
#[track_caller]
pub fn same(got: &[u8], want: &[u8], what: &str) -> Res {
    if got == want {
        return Ok(());
    }
    let at = std::panic::Location::caller();
    let first = got.iter().zip(want).position(|(a, b)| a != b);
    let first = first.unwrap_or(got.len().min(want.len()));
    Err(crate::Fail::at(
        at.file(),
        at.line(),
        format!(
            "{what}: {} bytes, want {}, first difference at {first}",
            got.len(),
            want.len()
        ),
    ))
}
