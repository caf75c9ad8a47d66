// SPDX-License-Identifier: GPL-2.0

//! The kernel's events, as tracefs shows them.

use std::collections::BTreeMap;
use std::fs::read_to_string;
use std::fs::write;
use std::path::Path;
use std::path::PathBuf;

use crate::bail;
use crate::Fail;
use crate::Res;

const TRACEFS: &str = "/sys/kernel/tracing";

/// An event.
#[derive(Clone, Debug)]
pub struct Event {
    /// The thread that passed it.
    pub thread: i32,
    /// Its name.
    pub name: String,
    /// What stands behind that.
    pub text: String,
    fields: BTreeMap<String, String>,
}

impl Event {
    /// A line of the file `trace`: a name, a dash, a thread, a processor and so on, a time, the event, the rest.
    fn parse(line: &str) -> Option<Self> {
        let (head, rest) = line.split_once(": vhost_net_")?;
        let (name, text) = rest.split_once(": ")?;
        let task = head.split(" [").next()?.trim();
        let (_, thread) = task.rsplit_once('-')?;
        let fields = text.split(' ').filter_map(|f| f.split_once('='));
        Some(Event {
            thread: thread.trim().parse().ok()?,
            name: name.to_string(),
            text: text.to_string(),
            fields: fields
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
        })
    }

    /// A field as text.
    pub fn field(&self, key: &str) -> Res<&str> {
        let field = self.fields.get(key).map(String::as_str);
        field.ok_or(Fail(format!("{}: no {key} in {:?}", self.name, self.text)))
    }

    /// A field that is a number.
    pub fn number(&self, key: &str) -> Res<u64> {
        let value = self.field(key)?;
        value
            .parse()
            .map_err(|_| Fail(format!("{}: {key} is {value:?}", self.name)))
    }
}

/// A buffer of events of its own, with all events of `vhost_net` on.
pub struct Trace(PathBuf);

impl Trace {
    /// Traces from now on.
    pub fn new() -> Res<Self> {
        if !Path::new(TRACEFS).join("events").exists() {
            let name = c"tracefs".as_ptr();
            let at = c"/sys/kernel/tracing".as_ptr();
            // SAFETY: valid strings.
            let r = unsafe { libc::mount(name, at, name, 0, std::ptr::null()) };
            if r != 0 {
                bail!("mount {TRACEFS}: {}", std::io::Error::last_os_error());
            }
        }
        let folder = format!("{TRACEFS}/instances/vhost-{}", std::process::id());
        std::fs::create_dir(&folder)?;
        let trace = Trace(folder.into());
        write(trace.0.join("trace_clock"), "mono")?;
        write(trace.0.join("buffer_size_kb"), "1024")?;
        write(trace.0.join("events/vhost_net/enable"), "1")?;
        Ok(trace)
    }

    /// The fields that an event has of its own, in their order.
    pub fn fields(&self, event: &str) -> Res<Vec<String>> {
        let format = format!("events/vhost_net/vhost_net_{event}/format");
        let text = read_to_string(self.0.join(format))?;
        let of = |line: &str| -> Option<String> {
            let field = line.trim().strip_prefix("field:")?.split(';').next()?;
            let name = field.rsplit(' ').next()?.trim_end_matches("[]");
            Some(name.to_string())
        };
        let all = text.lines().filter_map(of);
        Ok(all.filter(|name| !name.starts_with("common_")).collect())
    }

    /// Forgets what was traced.
    pub fn clear(&self) -> Res {
        Ok(write(self.0.join("trace"), "")?)
    }

    /// The events of this process's devices, in order.
    pub fn events(&self) -> Res<Vec<Event>> {
        let text = read_to_string(self.0.join("trace"))?;
        let own = std::process::id().to_string();
        let all = text.lines().filter_map(Event::parse);
        Ok(all
            .filter(|e| e.field("owner").is_ok_and(|o| o == own))
            .collect())
    }

    /// Those of a queue.
    pub fn of_queue(&self, queue: usize) -> Res<Vec<Event>> {
        let mut events = self.events()?;
        let queue = queue.to_string();
        events.retain(|e| e.field("queue").is_ok_and(|q| q == queue));
        Ok(events)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = write(self.0.join("events/vhost_net/enable"), "0");
        let _ = std::fs::remove_dir(&self.0);
    }
}
