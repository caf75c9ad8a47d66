// SPDX-License-Identifier: GPL-2.0

//! A script: what a VMM, its guest and the other end of the wire do, an action a line.
//!
//! An action is a verb and numbers. Q is a queue, 0 to receive and 1 to transmit.

use std::fmt;

/// An action.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    pub verb: &'static str,
    pub args: Vec<u64>,
}

pub type Script = Vec<Action>;

/// Every verb and what it does.
pub const VERBS: &[(&str, &str)] = &[
    ("packed", "from here on rings are packed where the driver has such, and what the format changes is not looked at"),
    ("owner", "VHOST_SET_OWNER"),
    ("reset-owner", "VHOST_RESET_OWNER"),
    ("get-features", "VHOST_GET_FEATURES"),
    ("features", "BITS: VHOST_SET_FEATURES"),
    ("get-features-array", "COUNT: VHOST_GET_FEATURES_ARRAY with room for COUNT words"),
    ("features-array", "WORD...: VHOST_SET_FEATURES_ARRAY"),
    ("get-backend-features", "VHOST_GET_BACKEND_FEATURES"),
    ("backend-features", "BITS: VHOST_SET_BACKEND_FEATURES"),
    ("fork", "BYTE: VHOST_SET_FORK_FROM_OWNER"),
    ("get-fork", "VHOST_GET_FORK_FROM_OWNER"),
    ("mem", "LAYOUT GPA: VHOST_SET_MEM_TABLE, the arena at GPA (machine.rs has the layouts)"),
    ("num", "Q N: VHOST_SET_VRING_NUM"),
    ("base", "Q N RESET: VHOST_SET_VRING_BASE; with RESET the guest starts its ring again at N"),
    ("get-base", "Q: VHOST_GET_VRING_BASE"),
    ("addr", "Q PLACE LOG: VHOST_SET_VRING_ADDR; PLACE is a number of machine.rs; LOG 0 none, 1 where it is, 2 elsewhere"),
    ("kick-fd", "Q FD: VHOST_SET_VRING_KICK; FD 0 none, 1 its own, 2 a spare one, 3 no eventfd, 4 closed"),
    ("call-fd", "Q FD: VHOST_SET_VRING_CALL"),
    ("err-fd", "Q FD: VHOST_SET_VRING_ERR"),
    ("log-fd", "FD: VHOST_SET_LOG_FD"),
    ("log-base", "PLACE: VHOST_SET_LOG_BASE; 0 aligned, 1 odd, 2 unmapped, 3 the kernel's"),
    ("endian", "Q N: VHOST_SET_VRING_ENDIAN"),
    ("get-endian", "Q: VHOST_GET_VRING_ENDIAN"),
    ("busyloop", "Q N: VHOST_SET_VRING_BUSYLOOP_TIMEOUT"),
    ("get-busyloop", "Q: VHOST_GET_VRING_BUSYLOOP_TIMEOUT"),
    ("worker", "KIND Q N: worker number N; KIND 0 VHOST_NEW_WORKER, 1 VHOST_FREE_WORKER, 2 VHOST_ATTACH_VRING_WORKER, 3 VHOST_GET_VRING_WORKER"),
    ("backend", "Q B: VHOST_NET_SET_BACKEND; B 0 none, 1 tap with headers, 2 without, 3 packet socket, 4 with headers, 5 eventfd, 6 UDP socket, 7 closed"),
    ("fault", "N: ioctl number N of machine.rs with an argument that is not mapped"),
    ("message", "VERSION BYTES TYPE IOVA SIZE ADDRESS PERM: an IOTLB message, BYTES of it; ADDRESS is in the arena"),
    ("read", "BYTES: reads a message"),
    ("tx", "HEADER TABLE LEN...: a chain to transmit of segments of these lengths; HEADER 0 empty, 1 checksum, 2 TCP segmentation; TABLE 0 none, 1 all in an indirect table, 2 all but the first, 3 all but the last, 4 as 1 and writable"),
    ("rx", "TABLE LEN...: a chain to receive into"),
    ("many", "Q COUNT LEN: COUNT chains of one segment"),
    ("bad", "Q KIND: a chain that is malformed (machine.rs has the kinds)"),
    ("mend", "Q: makes it a good one"),
    ("jump", "Q N: shows an available index that is N too far; 0 shows the right one again"),
    ("kick", "Q: signals the eventfd that the device waits for"),
    ("avail-flags", "Q N: the available ring's flags"),
    ("used-event", "Q N: asks for a call when N more are used"),
    ("guest-endian", "N: the guest's byte order, 0 little and 1 big"),
    ("in", "B KIND LEN COUNT: packets come in at the far end of backend B; KIND 0 plain, 1 checksum, 2 TCP segmentation"),
    ("steal", "B: reads a packet from the tap in the device's place"),
    ("header", "BYTES: TUNSETVNETHDRSZ of the tap with headers"),
    ("sndbuf", "BYTES: TUNSETSNDBUF of both taps; 0 is no limit"),
    ("link", "B UP: the tap's interface goes up or down"),
];

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verb)?;
        for &n in &self.args {
            match n {
                0..0x10000 => write!(f, " {n}")?,
                _ => write!(f, " {n:#x}")?,
            }
        }
        Ok(())
    }
}

/// The text of a script.
pub fn print(script: &[Action]) -> String {
    script.iter().map(|a| format!("{a}\n")).collect()
}

/// Reads a script. Empty lines, and what follows a `#`, say nothing.
pub fn parse(text: &str) -> Result<Script, String> {
    let mut script = vec![];
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(word) = words.next() else { continue };
        let wrong = |what: &str| format!("line {}: {what}", number + 1);
        let verb = VERBS.iter().find(|v| v.0 == word);
        let verb = verb.ok_or_else(|| wrong(&format!("no verb {word}")))?.0;
        let args: Result<Vec<u64>, _> = words
            .map(|w| match w.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16),
                None => w.parse(),
            })
            .collect();
        let args = args.map_err(|e| wrong(&e.to_string()))?;
        script.push(Action { verb, args });
    }
    Ok(script)
}

/// An action of a verb that is in [`VERBS`].
pub fn action(verb: &str, args: &[u64]) -> Action {
    let verb = VERBS.iter().find(|v| v.0 == verb);
    Action {
        verb: verb.unwrap_or_else(|| panic!("no such verb")).0,
        args: args.to_vec(),
    }
}
