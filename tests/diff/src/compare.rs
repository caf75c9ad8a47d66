// SPDX-License-Identifier: GPL-2.0

//! Compares what was seen of the two drivers. The differences that are accepted are named here, each
//! as narrow as it can be; docs/differences.md has the reasons.

use crate::machine::EVENTFDS;
use crate::machine::KICKS;
use crate::machine::LOG_BY_IOTLB;
use crate::machine::LOG_IN_ANY_FORMAT;
use crate::machine::MISS;
use crate::machine::PACKED;
use crate::machine::PERHAPS;
use crate::machine::RX_PAGES;

/// The first difference that is not accepted: the line of the action, and both lines.
pub struct Difference {
    pub action: String,
    pub c: String,
    pub rust: String,
}

impl Difference {
    /// What kind of difference it is: the verb, and how the lines start.
    pub fn kind(&self) -> String {
        let verb = self.action.split(' ').next().unwrap_or_default();
        let start = |line: &str| {
            // The next action is none of this one's.
            let seen = Some(line).filter(|line| line.starts_with([' ', 'h', 'd']));
            let word = seen.and_then(|line| line.split_whitespace().next());
            word.unwrap_or("nothing").to_string()
        };
        format!("{verb}: {} / {}", start(&self.c), start(&self.rust))
    }
}

/// What only the C driver may do: it writes the first byte of a packet that is too long for its buffer
/// there all the same, and leaves part of a long header as it was.
fn only_c_may(line: &str) -> bool {
    line.starts_with("  first byte of ")
        || line == "  header not written"
        || line.ends_with(PERHAPS)
        || line.starts_with(MISS)
}

/// This driver tells all misses that it comes upon when it looks ahead, the C driver one at a time.
/// The C driver does not signal the log for packets that it received by way of the IOTLB.
fn only_rust_may(line: &str) -> bool {
    line == PACKED
        || line.strip_prefix("  ").is_some_and(|rest| {
            rest.starts_with(LOG_BY_IOTLB)
                || rest.starts_with(LOG_IN_ANY_FORMAT)
                || rest.ends_with(PERHAPS)
                || line.starts_with(MISS)
        })
}

/// For one action an eventfd may be signalled more often or less, but not never.
fn counts(c: &str, rust: &str) -> bool {
    let name = |line: &str| -> Option<String> {
        let (name, count) = line.strip_prefix("  ")?.rsplit_once(' ')?;
        let is_count = EVENTFDS.contains(&name) && count.parse::<u64>().is_ok_and(|n| n > 0);
        is_count.then(|| name.to_string())
    };
    name(c).is_some_and(|c| name(rust) == Some(c))
}

/// Whether a packed ring asks for a kick may not be known from what stands in it.
fn perhaps_kicks(c: &str, rust: &str) -> bool {
    let queue = rust
        .strip_suffix("perhaps")
        .filter(|q| q.starts_with(KICKS));
    queue.is_some_and(|queue| c.starts_with(queue))
}

/// By way of the IOTLB the C driver marks the whole of each buffer that it received into, not only what
/// it wrote.
fn c_marks_more(c: &str, rust: &str) -> bool {
    let pages = |line: &str| -> Option<Vec<u64>> {
        let pages = line.strip_prefix("  dirty by IOTLB")?.split_whitespace();
        pages
            .map(|page| u64::from_str_radix(page.trim_start_matches("0x"), 16).ok())
            .collect()
    };
    match (pages(c), pages(rust)) {
        (Some(c), Some(rust)) => {
            rust.iter().all(|page| c.contains(page))
                && c.iter()
                    .all(|page| rust.contains(page) || RX_PAGES.contains(page))
        }
        _ => false,
    }
}

/// Compares two texts of the same script. One that did not come to its end differs from any.
pub fn compare(c: &str, rust: &str) -> Option<Difference> {
    let (mut theirs, mut ours) = (c.lines(), rust.lines());
    let (mut a, mut b) = (theirs.next(), ours.next());
    let mut action = "";
    loop {
        if a == b {
            let Some(line) = a.filter(|&line| line != "bye") else {
                break;
            };
            if !line.starts_with(' ') {
                action = line;
            }
            (a, b) = (theirs.next(), ours.next());
        } else if a.is_some_and(only_c_may) {
            a = theirs.next();
        } else if a
            .zip(b)
            .is_some_and(|(a, b)| counts(a, b) || c_marks_more(a, b) || perhaps_kicks(a, b))
        {
            (a, b) = (theirs.next(), ours.next());
        } else if b.is_some_and(only_rust_may) {
            b = ours.next();
        } else {
            break;
        }
    }
    (a != Some("bye") || b != Some("bye")).then(|| Difference {
        action: action.into(),
        c: a.unwrap_or_default().into(),
        rust: b.unwrap_or_default().into(),
    })
}
