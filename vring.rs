// SPDX-License-Identifier: GPL-2.0

//! The virtqueue: where a driver makes buffers available and the device gives them back used.
//!
//! A [`Vring`] is one queue, seen from the device.
//! The device [takes](Vring::take) the chains that it needs for a packet, completes or drops the
//! [`Take`], [publishes](Vring::publish) what was completed, and asks whether the driver
//! [wants a call](Vring::wants_call). A chain whose buffers are needed for longer it
//! [defers](Take::defer). The driver is hostile: every value of its memory is read
//! once and checked before use, and no ring content can make a method here panic, loop without
//! end, reach memory outside the ring and the memory table, or complete a chain twice.
//!
//! The room behind this door: what the words of a ring mean, and where the device is in it, is
//! its format's, of which there are two, [`split`] and [`packed`], each with a room of its own. Which
//! one a ring has is asked in [`ring`]; the way of a packet ([`take`]) is made for each ([`format`]).
//! What any format needs is here: how a ring's parts are
//! found in user memory, read, written and logged ([`memory`], [`area`], [`used_log`]), and
//! how the buffers of a chain are translated ([`chain`], [`lookup`], [`table`]).
//!
//! The caller serialises all access to a ring (its queue's mutex in the kernel).

#![forbid(unsafe_code)]

mod area;
mod chain;
mod endian;
mod fault;
mod format;
mod lookup;
mod memory;
mod packed;
mod ring;
mod split;
mod table;
mod take;
mod used_log;

pub use chain::{
    Chain,
    Wanted, //
};
// What the owner may ask for; nobody else in the module does.
#[allow(unused_imports)]
pub use chain::MAX_NUM;
pub use endian::Endian;
pub use fault::{
    Fault,
    Why, //
};
pub use memory::RingAddrs;
pub use packed::Packed;
pub use ring::{
    Deferred,
    RingFormat,
    Vring, //
};
pub use split::Split;
pub use take::Take;
pub use used_log::UsedLog;
