// SPDX-License-Identifier: GPL-2.0

//! What `/proc/PID/fdinfo/FD` says of a device.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

use crate::bail;
use crate::check;
use crate::task::settle;
use crate::Fail;
use crate::Guest;
use crate::Res;

/// The lines of an open file, by key.
pub type Info = BTreeMap<String, String>;

/// What is said of a file that this process has open.
pub fn info(fd: &impl AsRawFd) -> Res<Info> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let mut map = Info::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(":\t") else {
            bail!("not a key, a colon, a tab and a value: {line:?}");
        };
        check!(
            !value.is_empty() && value.trim() == value,
            "the value of {line:?}"
        );
        check!(
            map.insert(key.to_string(), value.to_string()).is_none(),
            "{key} twice"
        );
    }
    Ok(map)
}

/// A number.
pub fn number(map: &Info, key: &str) -> Res<u64> {
    let value = map.get(key).ok_or(Fail(format!("no {key}")))?;
    value
        .parse()
        .map_err(|_| Fail(format!("{key} is {value:?}, no number")))
}

/// The numbers of a device as they were.
pub struct Before(Info);

impl Before {
    /// As they are now, when the worker has come to rest.
    pub fn of(g: &Guest) -> Res<Self> {
        settle(g)?;
        Ok(Before(info(&g.net)?))
    }

    /// By how much a number has grown.
    pub fn grown(&self, g: &Guest, key: &str) -> Res<u64> {
        settle(g)?;
        let (old, new) = (number(&self.0, key)?, number(&info(&g.net)?, key)?);
        new.checked_sub(old)
            .ok_or(Fail(format!("{key} was {old} and is {new}")))
    }

    /// These numbers of a queue have grown by so much, and none of the others whose key begins with one of `of`.
    #[track_caller]
    pub fn only(&self, g: &Guest, queue: &str, of: &[&str], want: &[(&str, u64)]) -> Res {
        let at = std::panic::Location::caller();
        settle(g)?;
        let new = info(&g.net)?;
        for (short, _) in want {
            number(&new, &format!("{queue}-{short}"))?;
        }
        for key in new.keys() {
            let Some(short) = key.strip_prefix(&format!("{queue}-")) else {
                continue;
            };
            if !of.iter().any(|start| short.starts_with(start)) {
                continue;
            }
            let want = want.iter().find(|w| w.0 == short).map_or(0, |w| w.1);
            let got = number(&new, key)?.wrapping_sub(number(&self.0, key)?);
            if got != want {
                let why = format!("{key} grew by {got}, want {want}");
                return Err(Fail::at(at.file(), at.line(), why));
            }
        }
        Ok(())
    }
}
