// SPDX-License-Identifier: GPL-2.0

//! Received packets that fill several buffers, and those that may not.

use kselftest::feature::*;
use kselftest::guest::same;
use kselftest::ktap::Test;
use kselftest::*;

const MRG: u64 = VERSION_1 | MRG_RXBUF;

/// Takes one packet off the ring. `place` says where each chain's memory is.
///
/// All its buffers must be there as soon as the first is, and all but the last must be full.
fn take(g: &mut Guest, place: &[Vec<Seg>]) -> Res<(Vec<u8>, u16)> {
    let u = g.rx.wait()?;
    let there = g.rx.device_idx().wrapping_sub(g.rx.used_idx) + 1;
    let mut data = contents(g, &place[u.id as usize], u.len)?;
    // A header that itself lies in several buffers is complete only after some of them.
    let mut buffers = 1;
    let mut full = u.len == room(&place[u.id as usize]);
    while data.len() < 12 || buffers < num_buffers(&data) {
        check!(full, "a buffer that is not the last is not full");
        let Some(u) = g.rx.pop() else {
            bail!(
                "{buffers} buffers used of a packet of {:?}",
                data.get(10..12)
            );
        };
        full = u.len == room(&place[u.id as usize]);
        data.extend(contents(g, &place[u.id as usize], u.len)?);
        buffers += 1;
    }
    check!(
        there >= buffers,
        "a packet of {buffers} buffers, {there} of them visible at first"
    );
    Ok((data, buffers))
}

fn num_buffers(data: &[u8]) -> u16 {
    u16::from_le_bytes([data[10], data[11]])
}

fn room(segs: &[Seg]) -> u32 {
    segs.iter().map(|s| s.len).sum()
}

/// The first `len` bytes of a chain; what lies behind must be untouched.
fn contents(g: &Guest, segs: &[Seg], len: u32) -> Res<Vec<u8>> {
    let mut v = vec![];
    for s in segs {
        v.extend(g.mem.read(s.gpa, s.len as usize));
    }
    check!(
        len as usize <= v.len(),
        "used length {len} of a buffer of {}",
        v.len()
    );
    check!(
        v[len as usize..].iter().all(|&b| b == 0xa5),
        "bytes written behind the used length"
    );
    v.truncate(len as usize);
    Ok(v)
}

/// A guest with its ring full of chains; each chain has buffers of the given sizes.
struct Filled {
    g: Guest,
    sizes: Vec<usize>,
    place: Vec<Vec<Seg>>,
    spare: Vec<Vec<Seg>>,
}

impl Filled {
    fn new(cfg: Config, sizes: &[usize]) -> Res<Self> {
        let g = Guest::new(cfg)?;
        let n = usize::from(g.rx.num);
        let spare = (0..n / sizes.len())
            .map(|_| sizes.iter().map(|&s| g.buffer(s)).collect())
            .collect();
        let mut f = Filled {
            g,
            sizes: sizes.to_vec(),
            place: vec![vec![]; n],
            spare,
        };
        f.fill();
        Ok(f)
    }

    fn fill(&mut self) {
        while let Some(segs) = self.spare.pop() {
            for s in &segs {
                self.g.mem.fill(s.gpa, s.len as usize, 0xa5);
            }
            let head = self.g.rx.add(&segs);
            self.place[usize::from(head)] = segs;
        }
        self.g.rx.submit();
    }

    fn take(&mut self) -> Res<(Vec<u8>, u16)> {
        let before = self.g.rx.free();
        let r = take(&mut self.g, &self.place)?;
        // What was taken is known by its chains' disappearance from the ring; give as many back.
        let taken = (self.g.rx.free() - before) / self.sizes.len();
        check_eq!(taken, usize::from(r.1), "buffers taken and num_buffers");
        Ok(r)
    }

    /// One packet through the ring.
    fn one(&mut self, p: &[u8]) -> Res {
        let held: Vec<u16> = self.held();
        self.g.peer.send(p)?;
        let (data, buffers) = self.take()?;
        let per: usize = self.sizes.iter().sum();
        let want = (12 + p.len()).div_ceil(per);
        let what = format!("{} bytes into buffers of {:?}", p.len(), self.sizes);
        check_eq!(usize::from(buffers), want, "num_buffers, {what}");
        check_eq!(data[..10], [0; 10], "virtio-net header, {what}");
        same(&data[12..], p, &what)?;
        let now = self.held();
        for head in held {
            if !now.contains(&head) {
                self.spare
                    .push(std::mem::take(&mut self.place[usize::from(head)]));
            }
        }
        Ok(())
    }

    /// The heads that the device has.
    fn held(&self) -> Vec<u16> {
        self.g.rx.held()
    }
}

const LENGTHS: &[usize] = &[
    14, 60, 87, 88, 89, 116, 117, 188, 1000, 1514, 4000, 9000, 20000,
];

fn over(cfg: Config, sizes: &[usize]) -> Res {
    let mut f = Filled::new(cfg, sizes)?;
    let room = sizes.iter().sum::<usize>() * (usize::from(f.g.rx.num) / sizes.len());
    for (i, &len) in LENGTHS.iter().enumerate() {
        if len + 12 <= room {
            f.one(&frame(i as u32, len))?;
            f.fill();
        }
    }
    check!(f.g.rx.err.read().is_err(), "an error was signalled");
    Ok(())
}

fn several() -> Res {
    for size in [64, 100, 128, 1000, 1526, 2048, 4096] {
        over(Config::with(MRG), &[size])?;
    }
    Ok(())
}

fn several_legacy() -> Res {
    for size in [100, 1526] {
        over(Config::with(MRG_RXBUF), &[size])?;
    }
    Ok(())
}

fn several_event_idx() -> Res {
    for size in [100, 1526] {
        over(Config::with(MRG | EVENT_IDX).base(65400), &[size])?;
    }
    Ok(())
}

fn several_vhost_hdr() -> Res {
    for size in [100, 1526] {
        over(Config::with(MRG | VHOST_NET_HDR), &[size])?;
    }
    Ok(())
}

/// The header alone takes more than one buffer.
fn tiny() -> Res {
    for features in [MRG, MRG | VHOST_NET_HDR] {
        for size in [1, 2, 5, 9, 10, 11, 12, 13] {
            over(Config::with(features).num(512), &[size])?;
        }
    }
    Ok(())
}

/// Each buffer a chain of several descriptors.
fn chains() -> Res {
    for sizes in [&[12, 88][..], &[1, 99], &[30, 30, 30, 10], &[5, 7, 2, 86]] {
        over(Config::with(MRG), sizes)?;
    }
    Ok(())
}

/// The largest packet, over some hundred buffers.
fn largest() -> Res {
    let mut f = Filled::new(Config::with(MRG).num(1024), &[128])?;
    for i in 0..3 {
        f.one(&frame(i, 65535))?;
        f.fill();
    }
    Ok(())
}

/// A stream of packets that need 1, 2 and more buffers.
fn stream() -> Res {
    let mut f = Filled::new(Config::with(MRG | EVENT_IDX).base(65000), &[256])?;
    let len = |i: u32| 60 + (i as usize * 97) % 1500;
    let (mut sent, mut got) = (0, 0);
    while got < 2000 {
        while sent < 2000 && sent - got < 30 {
            f.g.peer.send(&frame(sent, len(sent)))?;
            sent += 1;
        }
        let held = f.held();
        let (data, buffers) = f.take()?;
        check_eq!(
            usize::from(buffers),
            (12 + len(got)).div_ceil(256),
            "num_buffers of packet {got}"
        );
        same(&data[12..], &frame(got, len(got)), &format!("packet {got}"))?;
        got += 1;
        let now = f.held();
        for head in held {
            if !now.contains(&head) {
                f.spare
                    .push(std::mem::take(&mut f.place[usize::from(head)]));
            }
        }
        f.fill();
    }
    Ok(())
}

/// A packet that needs more buffers than there are waits, takes none, and arrives when there are more.
fn waits_for_more() -> Res {
    for features in [MRG, MRG | EVENT_IDX] {
        let mut g = Guest::new(Config::with(features))?;
        let b: Vec<_> = (0..6).map(|_| g.buffer(100)).collect();
        let mut place = vec![vec![]; 256];
        for b in &b[..3] {
            place[usize::from(g.rx.add(&[*b]))] = vec![*b];
        }
        g.rx.submit();
        let p = frame(1, 500);
        g.peer.send(&p)?;
        // The device asks for a kick when it has seen that there are too few.
        let asked = sys::until(|| g.rx.wants_next());
        check!(asked, "the device never asked for a kick");
        check_eq!(
            g.rx.device_idx(),
            0,
            "used index while there are too few buffers"
        );
        for b in &b[3..] {
            place[usize::from(g.rx.add(&[*b]))] = vec![*b];
        }
        g.rx.submit();
        let (data, buffers) = take(&mut g, &place)?;
        check_eq!(buffers, 6);
        same(&data[12..], &p, "packet that waited")?;
        g.receive_all(&[frame(2, 60)])?;
    }
    Ok(())
}

/// Without mergeable buffers a packet larger than its buffer is dropped, and the next takes the buffer.
fn too_large() -> Res {
    for features in [
        VERSION_1,
        0,
        VERSION_1 | EVENT_IDX,
        VERSION_1 | VHOST_NET_HDR,
    ] {
        let mut g = Guest::new(Config::with(features))?;
        for round in 0..4 {
            let b = [g.buffer(500), g.buffer(500)];
            let heads = [g.rx.add(&[b[0]]), g.rx.add(&[b[1]])];
            g.rx.submit();
            let fits = frame(10 * round, 500 - g.hdr);
            g.peer.send(&frame(10 * round + 1, 501 - g.hdr))?;
            g.peer.send(&frame(10 * round + 2, 9000))?;
            g.peer.send(&fits)?;
            g.peer.send(&frame(10 * round + 3, 1000))?;
            g.peer.send(&frame(10 * round + 4, 60))?;
            for (i, p) in [fits, frame(10 * round + 4, 60)].iter().enumerate() {
                let u = g.rx.wait()?;
                check_eq!(u.id, u32::from(heads[i]), "head of packet {i}");
                check_eq!(u.len as usize, g.hdr + p.len(), "used length of packet {i}");
                let got = g.mem.read(b[i].gpa, u.len as usize);
                g.check_rx_hdr(&got, 1)?;
                same(&got[g.hdr..], p, "packet between those too large")?;
            }
        }
        g.stop()?;
        check!(g.rx.pop().is_none(), "a packet too large arrived");
    }
    Ok(())
}

/// A packet of many segments for a guest that takes them unsplit.
fn gso() -> Res {
    let mut f = Filled::new(
        Config {
            peer_vnet: true,
            ..Config::with(MRG)
        },
        &[4096],
    )?;
    f.g.tap.offload(net::TUN_F_CSUM | net::TUN_F_TSO4)?;
    for (payload, mss) in [(2920, 1460), (20000, 1448), (64000, 1448)] {
        let p = net::tcp_frame(payload, 9);
        let [x, y] = (mss as u16).to_le_bytes();
        f.g.peer
            .send(&[&[1, 1, 54, 0, x, y, 34, 0, 16, 0], &p[..]].concat())?;
        let (data, buffers) = f.take()?;
        check_eq!(
            usize::from(buffers),
            (12 + p.len()).div_ceil(4096),
            "num_buffers"
        );
        check_eq!(data[0] & 1, 1, "NEEDS_CSUM");
        check_eq!(data[1], 1, "GSO type");
        check_eq!(
            data[4..10],
            [x, y, 34, 0, 16, 0],
            "GSO size, checksum start and offset"
        );
        same(&data[12..], &p, "GSO packet")?;
    }
    Ok(())
}

fn main() {
    const TESTS: &[Test] = &[
        ("several", several),
        ("several_legacy", several_legacy),
        ("several_event_idx", several_event_idx),
        ("several_vhost_hdr", several_vhost_hdr),
        ("tiny", tiny),
        ("chains", chains),
        ("largest", largest),
        ("stream", stream),
        ("waits_for_more", waits_for_more),
        ("too_large", too_large),
        ("gso", gso),
    ];
    /// What the ring's format has a part in.
    const PACKED: &[&str] = &[
        "several_event_idx",
        "several_vhost_hdr",
        "chains",
        "largest",
        "stream",
        "waits_for_more",
        "too_large",
    ];
    ktap::run_formats(TESTS, PACKED)
}
