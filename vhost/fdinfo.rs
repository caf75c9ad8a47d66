// SPDX-License-Identifier: GPL-2.0

//! What `fdinfo` says of a device.

#![forbid(unsafe_code)]

use super::device::{
    Device,
    Driver, //
};
use kernel::{
    seq_file::SeqFile,
    seq_print, //
};

impl<D: Driver> Device<D> {
    /// Prints the features and what each queue did, a key and a value a line. Locks no queue.
    pub fn show_fdinfo(&self, m: &SeqFile) {
        let [first, _] = &self.shown;
        let [low, high] = first.facts().features.words();
        seq_print!(m, "vhost-features:\t{low:#x}\n");
        seq_print!(m, "vhost-features-64:\t{high:#x}\n");
        for (shown, name) in self.shown.iter().zip(D::QUEUE_NAMES) {
            shown.print(name, m);
        }
    }
}
