// SPDX-License-Identifier: GPL-2.0

//! The other end of the wire: a tap interface and packet sockets on it.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Error;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use crate::deadline;
use crate::sys::readable;
use crate::Res;

const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETPERSIST: u64 = 0x4004_54cb;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETSNDBUF: u64 = 0x4004_54d4;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;
const TUNSETQUEUE: u64 = 0x4004_54d9;
const TUNSETVNETBE: u64 = 0x4004_54de;

const SIOCBRADDBR: u64 = 0x89a0;
const SIOCBRADDIF: u64 = 0x89a2;

const IFF_TUN: i16 = 0x0001;
const IFF_TAP: i16 = 0x0002;
const IFF_BACKPRESSURE: i16 = 0x0080;
const IFF_MULTI_QUEUE: i16 = 0x0100;
const IFF_ATTACH_QUEUE: u32 = 0x0200;
const IFF_DETACH_QUEUE: u32 = 0x0400;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;

pub const TUN_F_CSUM: u32 = 1;
pub const TUN_F_TSO4: u32 = 2;
pub const TUN_F_UDP_TUNNEL_GSO: u32 = 0x80;
pub const TUN_F_UDP_TUNNEL_GSO_CSUM: u32 = 0x100;

/// Length of an Ethernet header.
pub const ETH: usize = 14;

#[repr(C)]
#[derive(Default)]
struct Ifreq {
    name: [u8; 16],
    value: [u32; 6],
}

impl Ifreq {
    fn new(name: &str) -> Self {
        let mut r = Ifreq::default();
        r.name[..name.len()].copy_from_slice(name.as_bytes());
        r
    }

    fn name(&self) -> String {
        let name = self.name.split(|&b| b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }
}

fn ioctl(fd: &impl AsRawFd, request: u64, arg: usize) -> Res {
    // SAFETY: the kernel checks the pointer, if it is one, and the structure is the caller's.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, arg) } {
        -1 => Err(Error::last_os_error().into()),
        _ => Ok(()),
    }
}

fn if_ioctl(request: u64, req: &mut Ifreq) -> Res {
    // SAFETY: creates a descriptor.
    let s = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if s < 0 {
        return Err(Error::last_os_error().into());
    }
    // SAFETY: the descriptor is new.
    let s = unsafe { File::from_raw_fd(s) };
    ioctl(&s, request, req as *mut Ifreq as usize)
}

/// Joins interfaces to one Ethernet.
pub fn bridge(name: &str, ports: &[&Tap]) -> Res {
    if_ioctl(SIOCBRADDBR, &mut Ifreq::new(name))?;
    for port in ports {
        bridge_join(name, port)?;
    }
    // Or it would join groups of its own, and tell each port. (A kernel that can't do that does not mind.)
    ip(&format!("link set dev {name} type bridge mcast_snooping 0"))?;
    let mut r = Ifreq::new(name);
    r.value[0] = libc::IFF_UP as u32;
    if_ioctl(libc::SIOCSIFFLAGS, &mut r)
}

/// Joins one more interface to a bridge.
pub fn bridge_join(name: &str, port: &Tap) -> Res {
    let mut r = Ifreq::new(name);
    r.value[0] = port.index as u32;
    if_ioctl(SIOCBRADDIF, &mut r)
}

/// Runs `ip` with these words.
pub fn ip(words: &str) -> Res {
    run("ip", words)
}

/// Runs `tc`, whose words these are.
pub fn tc(words: &str) -> Res {
    run("tc", words)
}

/// Has a bridge send what is for an address to one port only.
pub fn bridge_to(port: &Tap, address: [u8; 6]) -> Res {
    let [a, b, c, d, e, f] = address;
    let address = format!("{a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x}");
    run(
        "bridge",
        &format!("fdb add {address} dev {} master static", port.name),
    )
}

/// Runs `ip` once for several lines of words.
pub fn ip_lines(lines: &[&str]) -> Res {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(lines.join("\n").as_bytes())?;
    drop(input);
    let out = child.wait_with_output()?;
    let why = String::from_utf8_lossy(&out.stderr);
    crate::check!(out.status.success(), "ip {lines:?}: {why}");
    Ok(())
}

fn run(program: &str, words: &str) -> Res {
    let out = Command::new(program).args(words.split(' ')).output()?;
    let why = String::from_utf8_lossy(&out.stderr);
    crate::check!(out.status.success(), "{program} {words}: {why}");
    Ok(())
}

/// The number of an interface.
pub fn index(name: &str) -> Res<i32> {
    let mut r = Ifreq::new(name);
    if_ioctl(libc::SIOCGIFINDEX, &mut r)?;
    Ok(r.value[0] as i32)
}

/// A tap interface that is up.
pub struct Tap {
    pub fd: File,
    pub name: String,
    pub index: i32,
}

impl Tap {
    /// A tap with a virtio-net header of `hdr` bytes before each packet, or without one (0).
    pub fn new(name: &str, hdr: usize) -> Res<Self> {
        let tap = Self::attach(name, hdr)?;
        tap.up(2048)?;
        Ok(tap)
    }

    fn up(&self, queue: u32) -> Res {
        let mut r = Ifreq::new(&self.name);
        r.value[0] = queue;
        if_ioctl(libc::SIOCSIFTXQLEN, &mut r)?;
        let mut r = Ifreq::new(&self.name);
        r.value[0] = 65521;
        if_ioctl(libc::SIOCSIFMTU, &mut r)?;
        let mut r = Ifreq::new(&self.name);
        r.value[0] = libc::IFF_UP as u32;
        if_ioctl(libc::SIOCSIFFLAGS, &mut r)
    }

    /// As [`Self::new`], an interface whose packets have no Ethernet header.
    pub fn tun(name: &str, hdr: usize) -> Res<Self> {
        let tun = Self::open_kind("/dev/net/tun", name, hdr, IFF_TUN)?;
        tun.up(2048)?;
        Ok(tun)
    }

    /// Attaches to a tap interface, made if it does not exist. It may be attached to only once.
    pub fn attach(name: &str, hdr: usize) -> Res<Self> {
        Self::open("/dev/net/tun", name, hdr, 0)
    }

    /// One more queue of a tap, which is made if it does not exist, and up.
    pub fn one_queue(name: &str, hdr: usize) -> Res<Self> {
        let tap = Self::open("/dev/net/tun", name, hdr, IFF_MULTI_QUEUE)?;
        tap.up(2048)?;
        Ok(tap)
    }

    /// The tap that belongs to a macvtap or ipvtap interface.
    pub fn of_link(name: &str, hdr: usize) -> Res<Self> {
        // An own mount of sysfs is the one that knows the interfaces of this namespace.
        let sys = std::env::temp_dir().join(format!("sys-{}", std::process::id()));
        std::fs::create_dir_all(&sys)?;
        let path = |p: &Path| std::ffi::CString::new(p.as_os_str().as_encoded_bytes()).unwrap();
        let at = path(&sys);
        // SAFETY: strings that end; unmounted before the function returns.
        let r =
            unsafe { libc::mount(c"sysfs".as_ptr(), at.as_ptr(), c"sysfs".as_ptr(), 0, 0 as _) };
        crate::check!(r == 0, "mount: {}", Error::last_os_error());
        let file = format!("class/net/{name}/tap{}/dev", index(name)?);
        let device = std::fs::read_to_string(sys.join(file));
        // SAFETY: as above.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
        std::fs::remove_dir(&sys)?;
        let device = device?;
        let (major, minor) = device.trim().split_once(':').unwrap_or_default();
        let device = libc::makedev(major.parse()?, minor.parse()?);
        let node = sys.with_extension("tap");
        // SAFETY: a string that ends.
        let r = unsafe { libc::mknod(path(&node).as_ptr(), libc::S_IFCHR | 0o600, device) };
        crate::check!(r == 0, "mknod: {}", Error::last_os_error());
        let tap = Self::open(&node.to_string_lossy(), name, hdr, 0);
        std::fs::remove_file(&node)?;
        tap
    }

    fn open(node: &str, name: &str, hdr: usize, flags: i16) -> Res<Self> {
        Self::open_kind(node, name, hdr, IFF_TAP | flags)
    }

    fn open_kind(node: &str, name: &str, hdr: usize, flags: i16) -> Res<Self> {
        let fd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags_nonblock()
            .open(node)?;
        let mut r = Ifreq::new(name);
        let vnet = if hdr != 0 { IFF_VNET_HDR } else { 0 };
        r.value[0] = (IFF_NO_PI | vnet | flags) as u32;
        ioctl(&fd, TUNSETIFF, &mut r as *mut Ifreq as usize)?;
        if hdr != 0 {
            ioctl(&fd, TUNSETVNETHDRSZ, &(hdr as i32) as *const i32 as usize)?;
        }
        // With %d in the name, the kernel has chosen one.
        let name = r.name();
        Ok(Tap {
            fd,
            index: index(&name)?,
            name,
        })
    }

    /// How many bytes of packets may be on their way through the network stack.
    pub fn sndbuf(&self, bytes: i32) -> Res {
        ioctl(&self.fd, TUNSETSNDBUF, &raw const bytes as usize)
    }

    /// Packets that are sent, and of which more are said to follow, may wait until there are so many.
    pub fn coalesce(&self, frames: u32) -> Res {
        const SIOCETHTOOL: u64 = 0x8946;
        const ETHTOOL_SCOALESCE: u32 = 0xf;
        // `struct ethtool_coalesce`.
        let mut coalesce = [0u32; 23];
        (coalesce[0], coalesce[2]) = (ETHTOOL_SCOALESCE, frames);
        let mut r = Ifreq::new(&self.name);
        let at = coalesce.as_mut_ptr() as u64;
        (r.value[0], r.value[1]) = (at as u32, (at >> 32) as u32);
        if_ioctl(SIOCETHTOOL, &mut r)
    }

    /// The fields of headers are big-endian.
    pub fn big_endian(&self) -> Res {
        let yes = 1i32;
        ioctl(&self.fd, TUNSETVNETBE, &raw const yes as usize)
    }

    /// Whether this queue of several takes part.
    pub fn take_part(&self, yes: bool) -> Res {
        let mut r = Ifreq::new(&self.name);
        r.value[0] = if yes {
            IFF_ATTACH_QUEUE
        } else {
            IFF_DETACH_QUEUE
        };
        ioctl(&self.fd, TUNSETQUEUE, &raw mut r as usize)
    }

    /// What the guest can do itself.
    pub fn offload(&self, flags: u32) -> Res {
        ioctl(&self.fd, TUNSETOFFLOAD, flags as usize)
    }

    /// Whether the interface stays when nobody is attached.
    pub fn persist(&self, on: bool) -> Res {
        ioctl(&self.fd, TUNSETPERSIST, on as usize)
    }
}

/// A tap whose queue is full: a packet sent to it waits in the interface, and holds on to all that it is made of, until
/// somebody reads.
pub struct Plug {
    pub tap: Tap,
    hdr: usize,
    buf: Vec<u8>,
}

impl Plug {
    /// The packets that fill it. As many can wait, and half of them have to be read before any goes on.
    const LEN: u32 = 200;
    const FIRST: u32 = 0xffff_0000;

    /// A full tap with a virtio-net header of `hdr` bytes before each packet, or without one (0).
    pub fn new(name: &str, hdr: usize) -> Res<Self> {
        let tap = Tap::open("/dev/net/tun", name, hdr, IFF_BACKPRESSURE)?;
        tap.up(Self::LEN)?;
        let buf = vec![0; 1 << 17];
        let plug = Plug { tap, hdr, buf };
        plug.fill()?;
        Ok(plug)
    }

    /// Fills it again, when it was read empty.
    pub fn fill(&self) -> Res {
        let sender = Peer::sender(self.tap.index, false)?;
        (0..Self::LEN).try_for_each(|i| sender.send(&frame(Self::FIRST + i, 60)))
    }

    /// The next packet that waited, if there is one. It makes room for what waits.
    pub fn try_recv(&mut self) -> Option<Vec<u8>> {
        loop {
            let n = (&self.tap.fd).read(&mut self.buf).ok()?;
            let packet = &self.buf[..n];
            if seq(&packet[self.hdr..]) < Self::FIRST {
                return Some(packet.to_vec());
            }
        }
    }

    /// The next packet that waited, waited for.
    pub fn recv(&mut self) -> Res<Vec<u8>> {
        let deadline = deadline();
        loop {
            if let Some(p) = self.try_recv() {
                return Ok(p);
            }
            crate::check!(readable(&self.tap.fd, deadline), "no packet came");
        }
    }
}

trait Nonblock {
    fn custom_flags_nonblock(&mut self) -> &mut Self;
}

impl Nonblock for OpenOptions {
    fn custom_flags_nonblock(&mut self) -> &mut Self {
        use std::os::unix::fs::OpenOptionsExt;
        self.custom_flags(libc::O_NONBLOCK)
    }
}

/// A raw packet socket on an interface: sends to the tap's reader, receives what it writes.
pub struct Peer {
    pub fd: File,
    buf: Vec<u8>,
}

fn setsockopt(fd: &impl AsRawFd, level: i32, name: i32, value: i32) -> Res {
    // SAFETY: `value` is four bytes long.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            &value as *const i32 as *const _,
            4,
        )
    };
    match r {
        0 => Ok(()),
        _ => Err(Error::last_os_error().into()),
    }
}

impl Peer {
    /// A socket on the interface that sees everything that comes in, with a virtio-net header of
    /// 10 bytes before each packet if `vnet`.
    pub fn new(index: i32, vnet: bool) -> Res<Self> {
        Self::bound(index, vnet, libc::ETH_P_ALL as u16)
    }

    /// A socket that only sends: nobody makes copies of packets for it.
    pub fn sender(index: i32, vnet: bool) -> Res<Self> {
        Self::bound(index, vnet, 0)
    }

    fn bound(index: i32, vnet: bool, protocol: u16) -> Res<Self> {
        // SAFETY: creates a descriptor.
        let s = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if s < 0 {
            return Err(Error::last_os_error().into());
        }
        // SAFETY: the descriptor is new.
        let fd = unsafe { File::from_raw_fd(s) };
        setsockopt(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        const PACKET_IGNORE_OUTGOING: i32 = 23;
        setsockopt(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        if vnet {
            setsockopt(&fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        }
        // SAFETY: all zero is a valid address.
        let mut a: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        a.sll_family = libc::AF_PACKET as u16;
        a.sll_protocol = protocol.to_be();
        a.sll_ifindex = index;
        let p = &a as *const libc::sockaddr_ll as *const libc::sockaddr;
        // SAFETY: the address is of that length.
        if unsafe { libc::bind(s, p, size_of_val(&a) as u32) } != 0 {
            return Err(Error::last_os_error().into());
        }
        Ok(Peer {
            fd,
            buf: vec![0; 1 << 17],
        })
    }

    /// Sends a packet.
    pub fn send(&self, data: &[u8]) -> Res {
        let deadline = deadline();
        loop {
            // SAFETY: the bytes are valid.
            let r = unsafe { libc::send(self.fd.as_raw_fd(), data.as_ptr().cast(), data.len(), 0) };
            if r == data.len() as isize {
                return Ok(());
            }
            let e = Error::last_os_error();
            if r >= 0 || e.kind() != std::io::ErrorKind::WouldBlock || Instant::now() > deadline {
                crate::bail!("send of {} bytes: {r}, {e}", data.len());
            }
            std::thread::yield_now();
        }
    }

    /// The next packet, if there is one.
    pub fn try_recv(&mut self) -> Option<Vec<u8>> {
        // SAFETY: the buffer is of that length.
        let r = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                self.buf.as_mut_ptr().cast(),
                self.buf.len(),
                0,
            )
        };
        (r >= 0).then(|| self.buf[..r as usize].to_vec())
    }

    /// The next packet, waited for.
    pub fn recv(&mut self) -> Res<Vec<u8>> {
        let deadline = deadline();
        loop {
            if let Some(p) = self.try_recv() {
                return Ok(p);
            }
            crate::check!(readable(&self.fd, deadline), "no packet came");
        }
    }
}

/// A frame of `len` bytes whose every byte depends on its number and length.
///
/// Its type is one that no protocol takes, and its number is readable at [`seq`] if it is long enough.
pub fn frame(seq: u32, len: usize) -> Vec<u8> {
    let mut f = Vec::with_capacity(len + 32);
    f.extend([0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5]);
    f.extend(seq.to_be_bytes());
    let mut x = u64::from(seq) << 32 ^ len as u64 ^ 0x9e37_79b9_7f4a_7c15;
    while f.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        f.extend(x.to_le_bytes());
    }
    f.truncate(len);
    f
}

/// The number of a frame of 18 bytes or more.
pub fn seq(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[ETH..ETH + 4].try_into().unwrap())
}

/// An IPv4 TCP packet in an Ethernet frame, its TCP checksum that of the pseudo header only: what a
/// guest hands over when it leaves checksums and segmentation to the device.
pub fn tcp_frame(payload: usize, seed: u32) -> Vec<u8> {
    let total = 40 + payload;
    let mut f = frame(seed, ETH + total);
    f[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut f[ETH..];
    ip[..20].copy_from_slice(&[
        0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
    ]);
    ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    let sum = !fold(&ip[..20], 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip[20..40].copy_from_slice(&[
        0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    let pseudo = fold(&ip[12..20], 6 + (20 + payload as u32));
    ip[36..38].copy_from_slice(&pseudo.to_be_bytes());
    f
}

/// A packet as of [`tcp_frame`] in a UDP tunnel (VXLAN), the outer UDP checksum left out. Returned with it:
/// where the outer UDP header, the inner IP header and the inner TCP header are.
pub fn tunnel_frame(payload: usize, seed: u32) -> (Vec<u8>, [u16; 3]) {
    let inner = tcp_frame(payload, seed);
    let total = 20 + 8 + 8 + inner.len();
    let mut f = frame(seed, ETH);
    f[12..14].copy_from_slice(&[0x08, 0x00]);
    let mut ip = [
        0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0, 198, 51, 100, 1, 198, 51, 100, 2,
    ];
    ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    let sum = !fold(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    f.extend(ip);
    f.extend([0xc0, 0, 0x12, 0xb5]);
    f.extend(((total - 20) as u16).to_be_bytes());
    f.extend([0, 0]);
    f.extend([8, 0, 0, 0, 0, 0, 7, 0]);
    f.extend(&inner);
    let outer = (ETH + 20) as u16;
    let inner_ip = outer + 16 + ETH as u16;
    (f, [outer, inner_ip, inner_ip + 20])
}

/// The 16-bit one's complement sum of bytes.
fn fold(data: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for w in data.chunks(2) {
        sum += u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
