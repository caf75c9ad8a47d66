// SPDX-License-Identifier: GPL-2.0

//! Feature words in the argument of an ioctl.

#![forbid(unsafe_code)]

use crate::{
    features::{
        self,
        Features, //
    },
    sys::{
        compat::EOPNOTSUPP,
        sched::cond_resched,
        uaccess::CurrentMm, //
    },
    uapi::Arg,
    usermem::{
        UserAddr,
        UserMemory, //
    }, //
};
use kernel::prelude::*;

/// The words of a `VHOST_GET_FEATURES_ARRAY` or `VHOST_SET_FEATURES_ARRAY` argument.
///
/// It starts with their number, and user space may have more or fewer than the kernel.
pub struct FeaturesArg<'mm> {
    mm: CurrentMm<'mm>,
    arg: Arg,
    count: u64,
}

impl<'mm> FeaturesArg<'mm> {
    /// After how many words it looks for a signal.
    const PAUSE: u64 = 4096;

    /// Reads the number of words. Fails with [`EFAULT`].
    pub fn new(mm: CurrentMm<'mm>, arg: Arg) -> Result<Self> {
        Ok(Self {
            mm,
            arg: arg.offset(size_of::<u64>()),
            count: arg.read()?,
        })
    }

    fn word(&self, index: u64) -> Arg {
        self.arg
            .offset((index as usize).wrapping_mul(size_of::<u64>()))
    }

    /// Called for each word after those that there is a meaning for. User space says how many they
    /// are, and must not be kept from ending meanwhile. Fails with [`EINTR`], but not among the
    /// first [`Self::PAUSE`].
    fn pause(index: u64) -> Result {
        cond_resched();
        if index % Self::PAUSE == 0 && current!().signal_pending() {
            return Err(EINTR);
        }
        Ok(())
    }

    /// Writes `features`, as many words as there is room for, and zeroes into the rest of the
    /// room.
    ///
    /// Fails with [`EFAULT`], and with [`EINTR`] if the room is large.
    pub fn write(&self, features: Features) -> Result {
        for (index, word) in (0..self.count).zip(features.words()) {
            self.word(index).write(&word)?;
        }
        let ours = features::WORDS as u64;
        let Some(rest) = self.count.checked_sub(ours) else {
            return Ok(());
        };
        let size = rest.saturating_mul(size_of::<u64>() as u64);
        if !self
            .mm
            .access_ok(UserAddr::new(self.word(ours).addr()), size)
        {
            return Err(EFAULT);
        }
        for index in ours..self.count {
            self.word(index).write(&0u64)?;
            Self::pause(index)?;
        }
        Ok(())
    }

    /// Reads the words. Fails with [`EFAULT`], with [`EOPNOTSUPP`] if a bit is set that
    /// [`Features`] has no place for, and with [`EINTR`] if there are many.
    pub fn read(&self) -> Result<Features> {
        let mut words = [0; features::WORDS];
        for (index, word) in (0..self.count).zip(words.iter_mut()) {
            *word = self.word(index).read()?;
        }
        for index in features::WORDS as u64..self.count {
            if self.word(index).read::<u64>()? != 0 {
                return Err(EOPNOTSUPP);
            }
            Self::pause(index)?;
        }
        Ok(Features::from_words(words))
    }
}
