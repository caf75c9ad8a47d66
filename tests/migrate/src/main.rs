// SPDX-License-Identifier: GPL-2.0

//! The traffic of the migration test.
//!
//! ```text
//! traffic receive                           in the guest
//! traffic send GUEST DATAGRAMS MEGABYTES    in the VM: so many datagrams, and megabytes by TCP, a second
//! ```
//!
//! What a device writes by itself into the guest's memory shows only as long as the guest's processor does not write there.
//! So the receiver leaves what arrives in the kernel, in the pages into which the device put it, until it is asked
//! (`Receiver::answer`). Then it compares every byte with what was sent, which it knows.

use std::collections::HashSet;
use std::io::BufRead;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Result;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

const CONTROL_PORT: u16 = 7000;
const DATAGRAM_PORT: u16 = 7100;
const STREAM_PORT: u16 = 7200;

/// How many sockets there are of each kind.
const SOCKETS: u16 = 4;

/// The size of a datagram, which begins with its number. A frame is then as large as a frame may be.
const DATAGRAM: usize = 1472;
const NUMBER: usize = size_of::<u64>();

/// Datagrams that are sent without a pause.
const BURST: u64 = 32;

/// Bytes that the guest itself writes over and over. QEMU takes half a second to send them.
const RESTLESS: usize = 16 << 20;

/// What the sender sleeps at a time.
const TICK: Duration = Duration::from_millis(10);

/// How long a stream may stand still.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that a stream sends without a pause.
const CHUNK: usize = 32 << 10;

/// What is sent: pieces of one block of noise.
struct Noise(Vec<u8>);

impl Noise {
    /// A prime: what the device wrote to a page before differs from what it writes next.
    const SIZE: u64 = 1_000_003;

    fn new() -> Self {
        let mut state = 1u64;
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(Self::SIZE as usize)
        .collect();
        bytes.extend_from_within(..CHUNK);
        Self(bytes)
    }

    /// The data of datagram `number` after its number.
    fn datagram(&self, number: u64) -> &[u8] {
        self.at(number * 7919, DATAGRAM - NUMBER)
    }

    /// At most a chunk of the data of a stream.
    fn stream(&self, index: usize, position: u64, len: usize) -> &[u8] {
        self.at(position + index as u64 * Self::SIZE / 8, len)
    }

    fn at(&self, position: u64, len: usize) -> &[u8] {
        &self.0[(position % Self::SIZE) as usize..][..len]
    }
}

/// The place of the first byte in which two slices differ.
fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    // At once where they don't, which is quicker.
    (a != b).then(|| a.iter().zip(b).take_while(|(a, b)| a == b).count())
}

/// What a socket that does not block has now; nothing if that is nothing.
fn now<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// A stream's receiving end.
struct Stream {
    listener: TcpListener,
    connection: Option<TcpStream>,
    position: u64,
}

/// The guest's end.
struct Receiver {
    noise: Noise,
    datagrams: Vec<UdpSocket>,
    /// The number of the newest datagram of each socket, and all the numbers there were.
    newest: Vec<u64>,
    seen: HashSet<u64>,
    streams: Vec<Stream>,
    /// What was wrong since the last answer: how often, and the first of it.
    mistakes: u64,
    first: String,
}

impl Receiver {
    fn new() -> Result<Self> {
        let mut datagrams = Vec::new();
        let mut streams = Vec::new();
        for index in 0..SOCKETS {
            let socket = UdpSocket::bind(("0.0.0.0", DATAGRAM_PORT + index))?;
            socket.set_nonblocking(true)?;
            datagrams.push(socket);
            let listener = TcpListener::bind(("0.0.0.0", STREAM_PORT + index))?;
            listener.set_nonblocking(true)?;
            streams.push(Stream {
                listener,
                connection: None,
                position: 0,
            });
        }
        Ok(Self {
            noise: Noise::new(),
            datagrams,
            newest: vec![0; usize::from(SOCKETS)],
            seen: HashSet::new(),
            streams,
            mistakes: 0,
            first: String::new(),
        })
    }

    fn mistake(&mut self, what: String) {
        self.mistakes += 1;
        if self.mistakes <= 20 {
            eprintln!("wrong: {what}"); // on the guest's console
        }
        if self.first.is_empty() {
            self.first = what;
        }
    }

    /// Reads all the datagrams that are there; how many they were, and how many had a number from `from` to `to`.
    fn read_datagrams(&mut self, from: u64, to: u64) -> Result<(u64, u64)> {
        let (mut all, mut between) = (0, 0);
        let mut got = [0; 2 * DATAGRAM];
        for index in 0..self.datagrams.len() {
            while let Some(len) = now(self.datagrams[index].recv(&mut got))? {
                all += 1;
                let (number, data) = got[..len].split_at(NUMBER.min(len));
                let number = number.try_into().map_or(u64::MAX, u64::from_le_bytes);
                if len != DATAGRAM || number % u64::from(SOCKETS) != index as u64 {
                    self.mistake(format!("socket {index}: datagram {number}, {len} bytes"));
                    continue;
                }
                if let Some(at) = difference(data, self.noise.datagram(number)) {
                    self.mistake(format!("datagram {number}: byte {}", NUMBER + at));
                } else if !self.seen.insert(number) {
                    self.mistake(format!("datagram {number}, which came again"));
                } else if number < self.newest[index] {
                    let newest = self.newest[index];
                    self.mistake(format!("datagram {number}, which came after {newest}"));
                } else {
                    self.newest[index] = number;
                    between += u64::from((from..to).contains(&number));
                }
            }
        }
        Ok((all, between))
    }

    /// Reads all that the streams have; how much they had since they began.
    fn read_streams(&mut self) -> Result<u64> {
        let mut got = [0; CHUNK];
        for index in 0..self.streams.len() {
            let stream = &mut self.streams[index];
            if stream.connection.is_none() {
                stream.connection =
                    now(stream.listener.accept())?.map(|(connection, _)| connection);
            }
            while let Some(connection) = &mut self.streams[index].connection {
                connection.set_nonblocking(true)?;
                let Some(len @ 1..) = now(connection.read(&mut got))? else {
                    break;
                };
                let position = self.streams[index].position;
                self.streams[index].position += len as u64;
                let sent = self.noise.stream(index, position, len);
                if let Some(at) = difference(&got[..len], sent) {
                    self.mistake(format!("stream {index}: byte {}", position + at as u64));
                }
            }
        }
        Ok(self.streams.iter().map(|stream| stream.position).sum())
    }

    /// Reads all that there is and says in a line of JSON what it was. The question is the numbers of two datagrams.
    fn answer(&mut self, question: &str) -> Result<String> {
        let mut numbers = question
            .split(' ')
            .map_while(|word| word.trim().parse().ok());
        let (from, to) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let (datagrams, between) = self.read_datagrams(from, to)?;
        let bytes = self.read_streams()?;
        let mistakes = std::mem::take(&mut self.mistakes);
        let first = std::mem::take(&mut self.first);
        Ok(format!(
            r#"{{"datagrams": {datagrams}, "between": {between}, "bytes": {bytes}, "mistakes": {mistakes}, "first": "{first}"}}"#,
        ))
    }
}

/// Memory that is written all the time: with a short downtime, a migration does not end before it is told to.
fn restless() {
    let mut memory = vec![0u8; RESTLESS];
    for number in 1u64.. {
        for page in memory.chunks_mut(4096) {
            page[..NUMBER].copy_from_slice(&number.to_le_bytes());
        }
        std::hint::black_box(&memory);
        std::thread::sleep(TICK);
    }
}

fn receive() -> Result<()> {
    std::thread::spawn(restless);
    let mut receiver = Receiver::new()?;
    let (mut control, _) = TcpListener::bind(("0.0.0.0", CONTROL_PORT))?.accept()?;
    for line in BufReader::new(control.try_clone()?).lines() {
        writeln!(control, "{}", receiver.answer(&line?)?)?;
    }
    Ok(())
}

/// What the sending threads share.
struct Sender {
    noise: Noise,
    guest: String,
    datagrams: AtomicU64,
    bytes: AtomicU64,
    /// Percent of the full speed.
    speed: AtomicU64,
    stopped: AtomicBool,
}

impl Sender {
    /// Calls `burst`, `rate` times a second at full speed, until all is to stop.
    fn paced(&self, rate: f64, mut burst: impl FnMut() -> Result<()>) -> Result<()> {
        let mut due = 0.0;
        while !self.stopped.load(Relaxed) {
            // What was missed is not made up for.
            due += self.speed.load(Relaxed) as f64 / 100.0 * rate * TICK.as_secs_f64();
            if due >= 1.0 {
                burst()?;
                due = 0.0;
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    fn send_datagrams(&self, rate: f64) -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut datagram = [0; DATAGRAM];
        self.paced(rate / BURST as f64, || {
            for _ in 0..BURST {
                let number = self.datagrams.fetch_add(1, Relaxed);
                datagram[..NUMBER].copy_from_slice(&number.to_le_bytes());
                datagram[NUMBER..].copy_from_slice(self.noise.datagram(number));
                let port = DATAGRAM_PORT + (number % u64::from(SOCKETS)) as u16;
                // One that can't be sent while the guest moves is lost like others.
                let _ = socket.send_to(&datagram, (self.guest.as_str(), port));
            }
            Ok(())
        })
    }

    fn send_stream(&self, rate: f64, index: u16) -> Result<()> {
        let mut connection = TcpStream::connect((self.guest.as_str(), STREAM_PORT + index))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        let mut position = 0;
        self.paced(rate / CHUNK as f64, || {
            let chunk = self.noise.stream(usize::from(index), position, CHUNK);
            connection.write_all(chunk)?;
            position += CHUNK as u64;
            self.bytes.fetch_add(CHUNK as u64, Relaxed);
            Ok(())
        })
    }
}

/// Sends; answers each line of stdin with how many datagrams and bytes were sent. A line is a speed, `stop`, or empty.
fn send(guest: &str, datagrams: f64, bytes: f64) -> Result<()> {
    let sender = Arc::new(Sender {
        noise: Noise::new(),
        guest: guest.to_string(),
        datagrams: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        speed: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
    });
    let mut threads = Vec::new();
    for index in 0..SOCKETS {
        let sender = sender.clone();
        threads.push(std::thread::spawn(move || {
            sender.send_stream(bytes / f64::from(SOCKETS), index)
        }));
    }
    let shared = sender.clone();
    threads.push(std::thread::spawn(move || shared.send_datagrams(datagrams)));
    for line in std::io::stdin().lines() {
        let line = line?;
        if let Ok(speed) = line.parse() {
            sender.speed.store(speed, Relaxed);
        } else if line == "stop" {
            sender.stopped.store(true, Relaxed);
            for thread in threads.drain(..) {
                thread.join().expect("a thread that sends")?;
            }
        }
        let datagrams = sender.datagrams.load(Relaxed);
        println!("{datagrams} {}", sender.bytes.load(Relaxed));
    }
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["receive"] => receive(),
        ["send", guest, datagrams, megabytes] => {
            let rate = |word: &str| word.parse().expect("a number");
            send(guest, rate(datagrams), rate(megabytes) * 1e6)
        }
        _ => panic!("the first lines of src/main.rs say how this is called"),
    }
}
