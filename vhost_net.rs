// SPDX-License-Identifier: GPL-2.0

//! The net device: packets between a guest's virtqueues and a tap or a packet socket.
//!
//! Queue 0 receives (virtio 1.3, section 5.1.2), queue 1 transmits. Each has a backend of its own,
//! which for a guest is the same one. A turn moves packets until there are no more, or until it
//! has moved so many that the other queue must have its turn.

#![forbid(unsafe_code)]

use crate::{
    features::Features,
    log::{
        DirtyList,
        DirtyLog, //
    },
    memtable::{
        Iotlb,
        Maps,
        MemTable,
        Segments,
        MAX_SEGMENTS, //
    },
    sys::{
        miscdev::MiscDevice,
        poll,
        sched::need_resched,
        socket::{
            Kind,
            Receiver,
            Socket, //
        },
        uaccess::CurrentMm,
        xdp::{
            Layout,
            XdpBatch, //
        }, //
    },
    uapi::{
        self,
        Arg, //
    },
    usermem::{
        write_at,
        Segment,
        UserMemory, //
    },
    vhost::{
        backend_poll,
        Cause,
        Device,
        Driver,
        FeaturesArg,
        Queue,
        QueuePoll,
        QueueState,
        QUEUES, //
    },
    vring::{
        Because,
        Chain,
        Endian,
        Fault, //
    },
    zcopy::ZeroCopy, //
};
use kernel::{
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    processor::cpu_relax,
    seq_file::SeqFile,
    sync::{
        poll::PollTable,
        Arc,
        ArcBorrow, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// The features that the device offers.
const FEATURES: Features = Features::of(&[
    Features::NOTIFY_ON_EMPTY,
    Features::INDIRECT_DESC,
    Features::EVENT_IDX,
    Features::LOG_ALL,
    Features::ANY_LAYOUT,
    Features::VERSION_1,
    Features::ACCESS_PLATFORM,
    Features::VIRTIO_NET_HDR,
    Features::MRG_RXBUF,
    Features::RING_RESET,
    Features::IN_ORDER,
    Features::GUEST_UDP_TUNNEL_GSO,
    Features::HOST_UDP_TUNNEL_GSO,
]);

/// The features that the device offers to its owner.
const BACKEND_FEATURES: u64 = uapi::BACKEND_F_IOTLB_MSG_V2;

/// The index of the queue that fills the guest's buffers; the other one empties them.
const RX: usize = 0;
/// The index of the other one.
const TX: usize = 1;

/// A turn ends after so many packets: one queue can't starve the other with small ones.
const PACKET_WEIGHT: u32 = 256;
/// A turn ends after so many bytes.
const BYTE_WEIGHT: u64 = 0x80000;
/// A turn ends after so many descriptors: they need not have bytes.
const DESCRIPTOR_WEIGHT: u32 = 0x1_0000;
/// The driver gets its buffers back after so many.
const BATCH: usize = 64;

/// `struct virtio_net_hdr` (virtio 1.3, section 5.1.6), as legacy drivers without mergeable
/// buffers know it.
mod header {
    /// Its size.
    pub(super) const LEN: usize = 10;
    /// The size of `struct virtio_net_hdr_mrg_rxbuf`, with the number of buffers at its end.
    pub(super) const MRG_LEN: usize = 12;
    /// The size of `struct virtio_net_hdr_v1_hash_tunnel`.
    pub(super) const TUNNEL_LEN: usize = 24;
    /// Where the number of buffers is.
    pub(super) const NUM_BUFFERS: usize = 10;

    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` is to be
    /// computed.
    pub(super) const F_NEEDS_CSUM: u8 = 1;
}

/// The net device, as a [`Driver`].
pub struct Net;

/// What the net device keeps for a queue.
pub struct NetQueue {
    backend: Option<Backend>,
    poll: QueuePoll<Net>,
    /// The size in bytes of the header that the device makes and strips itself.
    own_header: usize,
    /// The size in bytes of the header that the backend makes and takes.
    backend_header: usize,
    /// The buffers of the packet that is being moved.
    segments: Segments,
    /// What the guest's buffers of that packet are, if they are to be logged.
    dirty: DirtyList,
    /// Packets were logged, and the owner was not told yet.
    logged: bool,
    /// Packets on their way to a tap. Empty between turns.
    batch: XdpBatch,
    /// When the worker began to look for work, if it has found none since and was interrupted.
    looking_since: Option<Instant<Monotonic>>,
}

/// What a queue takes its packets from, or gives them to.
pub struct Backend {
    sock: Arc<Socket>,
    /// For queue [`RX`].
    receiver: Option<Receiver>,
    /// For queue [`TX`], if the owner of the host wants it and the socket can do it.
    zerocopy: Option<ZeroCopy<Net>>,
}

impl Backend {
    fn new(index: usize, fd: i32) -> Result<Self> {
        let sock = Arc::new(Socket::from_fd(fd)?, GFP_KERNEL)?;
        let receiver = match index {
            RX => Some(Receiver::new(sock.clone())?),
            _ => None,
        };
        Ok(Self {
            sock,
            receiver,
            zerocopy: None,
        })
    }

    /// Lets packets go without a copy, if that is to be and the socket can do it.
    ///
    /// Fails as [`ZeroCopy::new`].
    fn enable_zerocopy(&mut self, queue: &Queue<Net>) -> Result {
        let enabled = crate::parameters::experimental_zcopytx();
        if enabled && queue.index() == TX && self.sock.has_zerocopy() {
            self.zerocopy = Some(ZeroCopy::new(queue)?);
        }
        Ok(())
    }
}

impl QueueState for NetQueue {
    fn backend(&self) -> Option<&'static str> {
        self.backend
            .as_ref()
            .map(|backend| match backend.sock.kind() {
                Kind::Packet => "packet",
                Kind::Tun | Kind::Tap => "tap",
            })
    }

    type Remains = Option<Backend>;

    fn reset(&mut self) -> Option<Backend> {
        self.poll.as_mut().stop();
        self.own_header = 0;
        self.backend_header = 0;
        self.looking_since = None;
        self.backend.take()
    }
}

impl Driver for Net {
    const QUEUE_NAMES: [&'static CStr; QUEUES] = [c"rx", c"tx"];

    type Queue = NetQueue;

    fn new_queue(index: usize) -> Result<NetQueue> {
        Ok(NetQueue {
            backend: None,
            poll: backend_poll(index, if index == RX { poll::IN } else { poll::OUT })?,
            own_header: 0,
            backend_header: 0,
            segments: Segments::new()?,
            dirty: DirtyList::new()?,
            logged: false,
            batch: XdpBatch::new()?,
            looking_since: None,
        })
    }

    fn run(device: &Device<Self>, index: usize, cause: Cause) {
        let Some(mut queue) = device.queue_to_run(index) else {
            return;
        };
        if cause.kicked {
            queue.stats.kicks += 1;
        }
        turn(device, &mut queue, cause.hurried);
    }

    fn flush(device: &Device<Self>) {
        // The backend stays, for the device's state is locked.
        let hold = |queue: &mut Queue<Net>| Some(queue.state.zerocopy()?.hold());
        let Some(in_flight) = device.queue(TX).ok().and_then(|mut queue| hold(&mut queue)) else {
            return;
        };
        in_flight.wait();
        if let Ok(mut queue) = device.queue(TX) {
            if let Some(zerocopy) = queue.state.zerocopy() {
                zerocopy.go_on();
            }
        }
    }
}

impl NetQueue {
    fn zerocopy(&mut self) -> Option<&mut ZeroCopy<Net>> {
        self.backend.as_mut()?.zerocopy.as_mut()
    }
}

/// Why a queue moves no more packets now.
enum Pause {
    /// What was moved is to be given to the guest and to the backend, or the turn is over.
    Enough,
    /// The guest has not made enough buffers available.
    NoBuffer,
    /// The backend has no packet, or takes none now.
    NotReady,
}

/// What a turn has moved.
#[derive(Default)]
struct Moved {
    packets: u32,
    bytes: u64,
    descriptors: u32,
}

impl Moved {
    /// Whether the other queue must have its turn.
    #[inline(always)]
    fn is_enough(&self) -> bool {
        self.packets >= PACKET_WEIGHT
            || self.bytes >= BYTE_WEIGHT
            || self.descriptors >= DESCRIPTOR_WEIGHT
    }

    /// Adds a packet of so many bytes, or an attempt to move one.
    #[inline(always)]
    fn add(&mut self, bytes: usize, descriptors: u32) {
        // Far from overflow: it was not enough before, and a packet has no more than
        // `MAX_SEGMENTS` buffers of less than 4 GiB, and less than 2^17 descriptors.
        self.packets += 1;
        self.bytes += bytes as u64;
        self.descriptors += descriptors;
    }
}

/// What the socket is like, which is asked once a turn.
struct Target<'a> {
    sock: &'a Socket,
    /// Packets may be sent in batches, in buffers of this layout.
    batching: Option<Layout>,
    /// Packets may be sent without a copy; then none are sent in batches.
    zerocopy: bool,
}

/// Moves packets through a queue, until there are no more or the queue's turn is over.
fn turn(device: &Device<Net>, queue: &mut Queue<Net>, hurried: bool) {
    let Some(mem) = queue.mem.clone() else {
        return;
    };
    let Some(sock) = queue.state.backend.as_ref().map(|b| b.sock.clone()) else {
        return;
    };
    if !queue.is_set_up() {
        return;
    }
    let iotlb = queue.iotlb.clone();
    let iotlb = iotlb.as_ref().map(|iotlb| iotlb.lock());
    let mut maps = mem.maps();
    if let Some(iotlb) = &iotlb {
        if let Err(fault) = queue.ring.find(iotlb) {
            device.stand_still(queue, fault);
            return;
        }
        maps = iotlb.maps();
    }
    let look = Look {
        device,
        iotlb: iotlb.as_deref(),
        hurried,
    };
    let moved = move_packets(queue, maps, &sock, &look);
    // Also after a fault: what was moved before it is done.
    let finished = finish(queue, &sock);
    if let Err(fault) = moved.and(finished) {
        device.stand_still(queue, fault);
    }
}

fn move_packets(
    queue: &mut Queue<Net>,
    maps: &Maps,
    sock: &Socket,
    look: &Look<'_>,
) -> Result<(), Fault> {
    queue.state.poll.as_mut().stop();
    queue.disable_kicks()?;

    // Used in order, the ring wants back what was copied behind what was not.
    let zerocopy = queue.state.zerocopy().is_some()
        && !queue.features.has(Features::IN_ORDER)
        && sock.completes_ubufs();
    let batching = !zerocopy && sock.takes_batches();
    let target = Target {
        sock,
        batching: batching
            .then(|| Layout::new(queue.state.backend_header, sock.has_xdp()).ok())
            .flatten(),
        zerocopy,
    };
    let mut moved = Moved::default();
    while !moved.is_enough() {
        if queue.ring.unpublished() >= BATCH {
            finish(queue, sock)?;
        }
        let pause = match queue.index() {
            RX => receive(queue, maps, &mut moved)?,
            _ => transmit(queue, maps, &target, &mut moved)?,
        };
        match pause {
            Pause::Enough => continue,
            Pause::NoBuffer => {
                finish(queue, sock)?;
                let looked = match queue.index() {
                    RX => Looked::Long,
                    _ => look.for_work(queue, moved.packets > 0),
                };
                match looked {
                    Looked::Found => {}
                    Looked::Interrupted => break,
                    Looked::Long if !queue.enable_kicks()? => return Ok(()),
                    Looked::Long => {}
                }
            }
            Pause::NotReady => {
                finish(queue, sock)?;
                let looked = match queue.index() {
                    RX => look.for_work(queue, moved.packets > 0),
                    _ => Looked::Long,
                };
                match looked {
                    Looked::Found => {}
                    Looked::Interrupted => break,
                    Looked::Long => {
                        // A backend in an error state wakes nobody; the owner will give another.
                        let _ = wait(queue, sock);
                        return Ok(());
                    }
                }
            }
        }
        // A guest that makes one buffer available at a time can't keep the worker.
        moved.add(0, 0);
    }
    queue.run_again();
    Ok(())
}

/// How a look for work ended.
enum Looked {
    /// There is some for the queue.
    Found,
    /// There is other work for the worker, or somebody waits for the queue.
    Interrupted,
    /// There was none for as long as the owner wants the worker to look, or it is not to look.
    Long,
}

/// A look for work.
struct Look<'a> {
    device: &'a Device<Net>,
    iotlb: Option<&'a Iotlb>,
    /// Something waits until it is over.
    hurried: bool,
}

impl Look<'_> {
    /// Looks for work for a queue that has none, and for the other queue beside it, for as long as
    /// the owner wants that: what comes meanwhile needs no kick, and no wake-up. `moved` says that
    /// there was work in this turn.
    fn for_work(&self, queue: &mut Queue<Net>, moved: bool) -> Looked {
        let Some(timeout) = queue.busyloop_timeout() else {
            return Looked::Long;
        };
        if moved {
            queue.state.looking_since = None;
        }
        // Interruptions don't make it longer.
        let begin = *queue.state.looking_since.get_or_insert_with(Instant::now);
        let looked = match begin.elapsed() < timeout {
            true if self.hurried => Looked::Interrupted,
            true => self.until(queue, begin, timeout),
            false => Looked::Long,
        };
        if !matches!(looked, Looked::Interrupted) {
            queue.state.looking_since = None;
        }
        looked
    }

    fn until(&self, queue: &mut Queue<Net>, begin: Instant<Monotonic>, timeout: Delta) -> Looked {
        // Where both are wanted, the owner has the locks in the other order.
        let Some(mut other) = self.device.try_other_queue(queue.index()) else {
            return Looked::Long;
        };
        let same_iotlb = match (&queue.iotlb, &other.iotlb) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        let both = other.state.backend.is_some()
            && other.is_set_up()
            && same_iotlb
            && self
                .iotlb
                .is_none_or(|iotlb| other.ring.find(iotlb).is_ok());
        if both {
            // Only advice to the driver: if it can't be given, the queue's own turn will say so.
            let _ = other.disable_kicks();
        }

        let mut interrupted = false;
        while !(has_work(queue) || both && has_work(&mut other)) {
            interrupted =
                self.device.is_waited_for() || queue.worker().is_some_and(|w| w.has_work());
            if interrupted
                || need_resched()
                || current!().signal_pending()
                || begin.elapsed() >= timeout
            {
                break;
            }
            cpu_relax();
        }
        if both && (has_work(&mut other) || !matches!(other.enable_kicks(), Ok(false))) {
            other.run_again();
        }
        // Also a packet without a buffer: a socket that was emptied does not get ready for it
        // again.
        if has_packet(queue) && (queue.index() == RX || !queue.ring.is_empty()) {
            Looked::Found
        } else if interrupted {
            Looked::Interrupted
        } else {
            Looked::Long
        }
    }
}

/// Whether the backend may have a packet for the guest, or is one that takes them.
fn has_packet(queue: &mut Queue<Net>) -> bool {
    match queue.state.backend.as_mut() {
        Some(backend) => match &mut backend.receiver {
            Some(receiver) => receiver.peek_len() > 0,
            None => true,
        },
        None => false,
    }
}

/// Whether there is a packet to be moved, and a buffer that has it or takes it.
fn has_work(queue: &mut Queue<Net>) -> bool {
    // A ring that can't be read is not empty.
    has_packet(queue) && !queue.ring.is_empty()
}

/// Makes the queue run when `sock` gets ready.
///
/// Fails with [`EINVAL`] if the socket is in an error state.
fn wait(queue: &mut Queue<Net>, sock: &Socket) -> Result {
    match queue.worker() {
        Some(worker) => queue.state.poll.as_mut().start(sock, worker),
        None => Ok(()),
    }
}

/// Sends what waits to be sent, and gives the buffers that are done with to the guest.
///
/// Fails with [`EFAULT`] if the used ring can't be written.
fn finish(queue: &mut Queue<Net>, sock: &Socket) -> Result<(), Fault> {
    send_batch(&mut queue.state.batch, sock, &mut queue.stats.errors);
    if core::mem::take(&mut queue.state.logged) {
        queue.signal_log();
    }
    if let Some(zerocopy) = queue.state.zerocopy() {
        zerocopy.complete(&mut queue.ring);
    }
    queue.publish()
}

fn send_batch(batch: &mut XdpBatch, sock: &Socket, errors: &mut u64) {
    let count = batch.len();
    if sock.send_batch(batch).is_err() {
        // As on a wire that is cut: the packets are lost, the guest has its buffers back.
        *errors += count as u64;
    }
}

/// Moves packets from the guest to the backend.
fn transmit(
    queue: &mut Queue<Net>,
    maps: &Maps,
    target: &Target<'_>,
    moved: &mut Moved,
) -> Result<Pause, Fault> {
    match target.batching {
        Some(layout) => transmit_batch(queue, maps, target.sock, layout, moved),
        None => transmit_singly(queue, maps, target, moved),
    }
}

/// The length in bytes of a packet to transmit: what `segments` have, but for the first `skip`.
///
/// Fails with [`EFAULT`] if the chain is not one to transmit.
#[inline(always)]
fn packet_len(chain: &Chain, segments: &Segments, skip: usize) -> Result<usize, Fault> {
    if chain.writable > 0 {
        return Err(Fault::new(EFAULT, "a buffer to transmit is writable"));
    }
    match segments.total().checked_sub(skip) {
        None | Some(0) => Err(Fault::new(EFAULT, "a packet has no more than its header")),
        Some(len) => Ok(len),
    }
}

/// Moves packets from the guest to a tap, many at a time.
#[inline(never)]
fn transmit_batch(
    queue: &mut Queue<Net>,
    maps: &Maps,
    sock: &Socket,
    layout: Layout,
    moved: &mut Moved,
) -> Result<Pause, Fault> {
    let NetQueue {
        own_header,
        segments,
        batch,
        ..
    } = &mut queue.state;
    let (ring, stats) = (&mut queue.ring, &mut queue.stats);
    let (skip, endian) = (*own_header, ring.endian());

    while ring.unpublished() < BATCH && !moved.is_enough() {
        segments.clear();
        let mut take = ring.take();
        let Some(chain) = take.next_chain(maps, segments, None)? else {
            return Ok(Pause::NoBuffer);
        };
        let len = packet_len(&chain, segments, skip)?;
        let sent = match batch.push(layout, segments, skip) {
            Ok(header) => match complete_header(header, len, endian) {
                true => Ok(()),
                false => {
                    batch.pop();
                    Err(EINVAL)
                }
            },
            Err(ENOSPC) => {
                // Too long for a batch: by itself, behind those that came before.
                send_batch(batch, sock, &mut stats.errors);
                sock.send(segments, skip, false).map(|_| ())
            }
            Err(EINVAL) => return Err(Fault::new(EFAULT, "a packet is shorter than its header")),
            Err(EFAULT) => return Err(Fault::new(EFAULT, "a buffer to transmit can't be read")),
            Err(err) => Err(err),
        };
        match sent {
            Ok(()) => {
                stats.packets += 1;
                stats.bytes += len.saturating_sub(layout.header()) as u64;
            }
            // Given back to the ring, to be tried again.
            Err(EAGAIN | ENOMEM | ENOBUFS) => return Ok(Pause::NotReady),
            // What is wrong with it will not get better.
            Err(_) => stats.errors += 1,
        }
        moved.add(len, chain.descriptors);
        take.complete();
    }
    Ok(Pause::Enough)
}

/// Moves packets from the guest to a backend that takes them one by one.
#[inline(never)]
fn transmit_singly(
    queue: &mut Queue<Net>,
    maps: &Maps,
    target: &Target<'_>,
    moved: &mut Moved,
) -> Result<Pause, Fault> {
    let NetQueue {
        backend,
        own_header,
        backend_header,
        segments,
        ..
    } = &mut queue.state;
    let (ring, stats) = (&mut queue.ring, &mut queue.stats);
    let (skip, sock) = (*own_header, target.sock);
    let mut zerocopy = backend
        .as_mut()
        .and_then(|backend| backend.zerocopy.as_mut())
        .filter(|_| target.zerocopy);

    while ring.unpublished() < BATCH && !moved.is_enough() {
        segments.clear();
        let mut take = ring.take();
        let Some(chain) = take.next_chain(maps, segments, None)? else {
            return Ok(Pause::NoBuffer);
        };
        let len = packet_len(&chain, segments, skip)?;
        let body = skip.saturating_add(*backend_header);
        let wanted = zerocopy.as_mut().filter(|zerocopy| {
            zerocopy.wants(len, segments, body, take.num()) && sock.completes_ubufs()
        });
        let sent = match wanted {
            Some(zerocopy) => zerocopy.send(sock, take, segments, skip),
            None => {
                let more = moved.bytes + (len as u64) < BYTE_WEIGHT && !take.is_last();
                match sock.send(segments, skip, more) {
                    Ok(_) => {
                        take.complete();
                        Ok(())
                    }
                    Err(err) => Err((err, take)),
                }
            }
        };
        if let Some((err, take)) = sent.err() {
            if matches!(err, EAGAIN | ENOMEM | ENOBUFS) {
                return Ok(Pause::NotReady);
            }
            stats.errors += 1;
            take.complete();
        } else {
            stats.packets += 1;
            stats.bytes += len.saturating_sub(*backend_header) as u64;
        }
        if let Some(zerocopy) = &mut zerocopy {
            zerocopy.count();
            zerocopy.complete(ring);
        }
        moved.add(len, chain.descriptors);
    }
    Ok(Pause::Enough)
}

/// Makes sure that the header of a packet of `len` bytes covers the checksum that it asks for.
///
/// Returns false if that is outside the packet. A header that is not there asks for nothing.
#[inline(always)]
fn complete_header(header: &mut [u8], len: usize, endian: Endian) -> bool {
    let Some((fields, _)) = header.split_first_chunk_mut::<{ header::LEN }>() else {
        return true;
    };
    // The fields, in the order of the specification.
    let [flags, _gso_type, rest @ ..] = fields;
    *flags & header::F_NEEDS_CSUM == 0 || cover_checksum(rest, len, endian)
}

/// As [`complete_header`], for the `fields` behind the type of segmentation.
fn cover_checksum(fields: &mut [u8; header::LEN - 2], len: usize, endian: Endian) -> bool {
    let [h0, h1, _, _, s0, s1, o0, o1] = fields;
    let field = |low: &u8, high: &u8| usize::from(endian.u16(u16::from_ne_bytes([*low, *high])));
    let end = field(s0, s1) + field(o0, o1) + 2;
    if end <= field(h0, h1) {
        return true;
    }
    if end > len {
        return false;
    }
    let Ok(end) = u16::try_from(end) else {
        return false;
    };
    [*h0, *h1] = endian.u16(end).to_ne_bytes();
    true
}

/// Moves packets from the backend to the guest.
#[inline(never)]
fn receive(queue: &mut Queue<Net>, maps: &Maps, moved: &mut Moved) -> Result<Pause, Fault> {
    let log = queue.log();
    let mergeable = queue.features.has(Features::MRG_RXBUF);
    let counted = mergeable || queue.features.has(Features::VERSION_1);
    let most = if mergeable { MAX_SEGMENTS } else { 1 };
    let NetQueue {
        backend,
        own_header,
        backend_header,
        segments,
        dirty,
        logged,
        ..
    } = &mut queue.state;
    let (ring, stats) = (&mut queue.ring, &mut queue.stats);
    let (skip, endian) = (*own_header, ring.endian());
    let Some(receiver) = backend.as_mut().and_then(|b| b.receiver.as_mut()) else {
        return Ok(Pause::NotReady);
    };

    while ring.unpublished() < BATCH && !moved.is_enough() {
        let packet = receiver.peek_len();
        if packet == 0 {
            return Ok(Pause::NotReady);
        }
        let sock_len = packet + *backend_header;
        let len = sock_len + skip;

        segments.clear();
        dirty.clear();
        let mut take = ring.take();
        let mut room = 0;
        while room < len && usize::from(take.chains()) < most {
            let dirty = log.is_some().then_some(&mut *dirty);
            let Some(chain) = take.next_chain(maps, segments, dirty)? else {
                moved.descriptors += take.descriptors();
                return Ok(Pause::NoBuffer);
            };
            if chain.readable > 0 || chain.writable == 0 {
                return Err(Fault::new(EINVAL, "a buffer to receive is not writable"));
            }
            let before = room;
            room = segments.total();
            take.set_written((room.min(len) - before) as u32);
        }
        moved.add(len, take.descriptors());
        if room < len {
            // It will never fit.
            receiver.discard();
            stats.errors += 1;
            continue;
        }
        if receiver.receive(segments, skip, sock_len) != Ok(sock_len) {
            // Somebody else took it, or the buffers are not mapped. The guest keeps these.
            stats.errors += 1;
            continue;
        }
        if skip > 0 {
            let zeroes = [0; header::TUNNEL_LEN];
            let header = zeroes.get(..skip).unwrap_or(&zeroes);
            write_at(&CurrentMm, segments.as_slice(), 0, header)
                .because("a header can't be written")?;
        }
        if counted {
            write_count(segments.as_slice(), endian.u16(take.chains()))
                .because("the number of buffers can't be written")?;
        }
        if let Some(log) = log {
            let marked = match (&queue.iotlb, &queue.mem) {
                (Some(_), Some(mem)) => log_user(log, mem, segments.as_slice(), len),
                _ => log_packet(log, dirty, len),
            };
            match marked {
                Ok(()) => *logged = true,
                Err(_) => stats.errors += 1,
            }
        }
        take.complete();
        stats.packets += 1;
        stats.bytes += packet as u64;
    }
    Ok(Pause::Enough)
}

/// Writes the number of buffers, in the ring's byte order, into a packet's header.
#[inline(always)]
fn write_count(segments: &[Segment], count: u16) -> Result {
    match segments {
        [first, ..] if first.len() >= header::MRG_LEN => {
            let addr = first.addr().offset(header::NUM_BUFFERS as u64);
            CurrentMm.store_u16(addr, count)
        }
        _ => write_at(
            &CurrentMm,
            segments,
            header::NUM_BUFFERS,
            &count.to_ne_bytes(),
        ),
    }
}

/// As [`DirtyLog::mark_packet`].
#[cold]
fn log_packet(log: DirtyLog, dirty: &DirtyList, len: usize) -> Result {
    log.mark_packet(&CurrentMm, dirty, len)
}

/// As [`DirtyLog::mark_segments`].
#[cold]
fn log_user(log: DirtyLog, mem: &MemTable, segments: &[Segment], len: usize) -> Result {
    log.mark_segments(&CurrentMm, mem, segments, len)
}

/// Gives queue `index` the backend behind `fd`, or none if that is -1.
///
/// Fails with [`EPERM`] unless the current task shares the owner's memory, with [`ENOBUFS`] if
/// there is no such queue, with [`EFAULT`] if the queue is not set up, and with [`ENOTSOCK`] if
/// `fd` is no backend.
fn set_backend(device: &Device<Net>, index: usize, fd: i32) -> Result {
    let state = device.lock();
    state.check_owner()?;
    let mut guard = device.queue(index)?;
    let queue = &mut *guard;
    if fd == uapi::FILE_UNBIND {
        // Whatever a queue waited for, the owner is about to change it.
        device.forget_misses();
    }
    if !queue.access_ok() {
        return Err(EFAULT);
    }
    let mut new = match fd {
        uapi::FILE_UNBIND => None,
        fd => Some(Backend::new(index, fd)?),
    };
    let same = match (&new, &queue.state.backend) {
        (Some(new), Some(old)) => new.sock.is_same(&old.sock),
        (new, old) => new.is_none() && old.is_none(),
    };
    if same {
        return Ok(());
    }
    if let Some(new) = &mut new {
        new.enable_zerocopy(queue)?;
    }
    queue.state.poll.as_mut().stop();
    let sock = new.as_ref().map(|backend| backend.sock.clone());
    let mut old = core::mem::replace(&mut queue.state.backend, new);
    let started = match sock {
        Some(sock) => device.start(queue).and_then(|()| wait(queue, &sock)),
        None => Ok(()),
    };
    if let Err(err) = started {
        let new = core::mem::replace(&mut queue.state.backend, old);
        if let Some(sock) = queue.state.backend.as_ref().map(|b| b.sock.clone()) {
            // It was in use: whether it is in an error state is no news.
            let _ = wait(queue, &sock);
        }
        // That may take a while, and needs no lock of the queue.
        drop(guard);
        drop(new);
        return Err(err);
    }
    drop(guard);
    if let Some(zerocopy) = old.as_mut().and_then(|old| old.zerocopy.take()) {
        settle(device, index, zerocopy);
    }
    // The worker may still be at the old one.
    state.flush();
    drop(old);
    Ok(())
}

/// Waits until all packets of `zerocopy`, which queue `index` had, are done, and gives their
/// buffers to the guest.
fn settle(device: &Device<Net>, index: usize, mut zerocopy: ZeroCopy<Net>) {
    zerocopy.in_flight().wait();
    let Ok(mut guard) = device.queue(index) else {
        return;
    };
    let queue = &mut *guard;
    zerocopy.complete(&mut queue.ring);
    let iotlb = queue.iotlb.clone();
    let iotlb = iotlb.as_ref().map(|iotlb| iotlb.lock());
    let found = iotlb.as_ref().map_or(Ok(()), |i| queue.ring.find(i));
    if let Err(fault) = found.and_then(|()| queue.publish()) {
        // If that is because of the IOTLB: nobody waits for an answer any more.
        queue.fault(fault);
    }
}

/// Sets the features that the guest accepted.
fn set_features(device: &Device<Net>, features: Features) -> Result {
    if !features.is_subset_of(&FEATURES) {
        return Err(EOPNOTSUPP);
    }
    let any = |bits: [u32; 2]| bits.iter().any(|&bit| features.has(bit));
    let len = if any([
        Features::HOST_UDP_TUNNEL_GSO,
        Features::GUEST_UDP_TUNNEL_GSO,
    ]) {
        header::TUNNEL_LEN
    } else if any([Features::MRG_RXBUF, Features::VERSION_1]) {
        header::MRG_LEN
    } else {
        header::LEN
    };
    let own = features.has(Features::VIRTIO_NET_HDR);
    device.set_features(features, |queue| {
        queue.state.own_header = if own { len } else { 0 };
        queue.state.backend_header = if own { 0 } else { len };
    })
}

#[vtable]
impl MiscDevice for Device<Net> {
    const NAME: &'static CStr = c"vhost-net";
    const MINOR: u32 = 238;

    fn open() -> Result<Arc<Self>> {
        Device::new()
    }

    fn release(this: Arc<Self>) {
        Device::release(&this);
    }

    fn ioctl(this: ArcBorrow<'_, Self>, cmd: u32, arg: usize) -> Result<isize> {
        let arg = Arg::new(arg);
        match cmd {
            uapi::NET_SET_BACKEND => {
                let file: uapi::VringFile = arg.read()?;
                set_backend(&this, file.index as usize, file.fd)?;
            }
            uapi::GET_FEATURES => {
                let [low, ..] = FEATURES.words();
                arg.write(&low)?;
            }
            uapi::SET_FEATURES => set_features(&this, Features::from_words([arg.read()?, 0]))?,
            uapi::GET_FEATURES_ARRAY => FeaturesArg::new(arg)?.write(FEATURES)?,
            uapi::SET_FEATURES_ARRAY => set_features(&this, FeaturesArg::new(arg)?.read()?)?,
            uapi::GET_BACKEND_FEATURES => arg.write(&BACKEND_FEATURES)?,
            uapi::SET_BACKEND_FEATURES => {
                let features: u64 = arg.read()?;
                if features & !BACKEND_FEATURES != 0 {
                    return Err(EOPNOTSUPP);
                }
                this.set_backend_features(features);
            }
            uapi::SET_OWNER => {
                let mut state = this.lock();
                Device::set_owner(this, &mut state)?;
            }
            uapi::RESET_OWNER => this.reset_owner()?,
            _ => Device::ioctl(&this, cmd, arg)?,
        }
        Ok(0)
    }

    fn read(this: ArcBorrow<'_, Self>, to: &mut IovIterDest<'_>, nonblock: bool) -> Result<usize> {
        Device::read(&this, to, nonblock)
    }

    fn write(this: ArcBorrow<'_, Self>, from: &mut IovIterSource<'_>) -> Result<usize> {
        Device::write(&this, from)
    }

    fn poll(this: ArcBorrow<'_, Self>, file: &File, table: PollTable<'_>) -> u32 {
        Device::poll(&this, file, table)
    }

    fn show_fdinfo(this: ArcBorrow<'_, Self>, m: &SeqFile) {
        Device::show_fdinfo(&this, m);
    }
}
