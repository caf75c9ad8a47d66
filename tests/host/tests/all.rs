// SPDX-License-Identifier: GPL-2.0

//! All tests as one program: linking one for each file takes longer than running them.

mod ahead;
mod behind;
mod deferred;
mod features;
mod hostile;
mod iotlb;
mod list;
mod log;
mod memtable;
mod messages;
mod ordering;
mod packed;
mod packed_ahead;
mod packed_hostile;
mod packed_ordering;
mod ring;
mod room;
mod usermem;
mod virtio_queue;
