// SPDX-License-Identifier: GPL-2.0

//! What a worker and its owner are called, for who looks from outside.

#![forbid(unsafe_code)]

use crate::sys::{
    counter::Counter,
    pid::Pid, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    }, //
};

/// What a worker and its owner are called.
pub struct Identity {
    owner: i32,
    /// The thread, as soon as it runs.
    thread: SetOnce<Pid>,
    /// Its number in the first namespace; 0 until it runs.
    number: Counter,
    /// 1 if the thread was killed.
    killed: Counter,
}

impl Identity {
    /// Of a worker that is being made for the process of this number. Fails with [`ENOMEM`].
    pub fn new(owner: i32) -> Result<Arc<Self>> {
        let identity = Self {
            owner,
            thread: SetOnce::new(),
            number: Counter::new(),
            killed: Counter::new(),
        };
        Ok(Arc::new(identity, GFP_KERNEL_ACCOUNT)?)
    }

    /// The current thread is the worker.
    #[cold]
    pub fn begin(&self) {
        if let Some(pid) = Pid::of_current() {
            self.thread.populate(pid);
        }
        self.number.set(u64::from(current!().pid().unsigned_abs()));
    }

    /// The thread was killed with its process.
    #[cold]
    pub fn end(&self) {
        self.killed.set(1);
    }

    /// Whether it was.
    pub fn was_killed(&self) -> bool {
        self.killed.get() != 0
    }

    /// The owner's number in the first namespace.
    pub fn owner(&self) -> i32 {
        self.owner
    }

    /// The worker's number in the first namespace; 0 until it runs.
    pub fn worker(&self) -> i32 {
        self.number.get() as i32
    }

    /// The worker's number in the namespace of the current task; 0 if it is not to be seen there,
    /// does not run yet, or was killed.
    pub fn worker_seen(&self) -> i32 {
        let thread = self.thread.as_ref().filter(|_| !self.was_killed());
        thread.map_or(0, Pid::in_my_namespace)
    }
}
