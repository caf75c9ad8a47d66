// SPDX-License-Identifier: GPL-2.0

//! Indirect tables (virtio 1.3, section 2.7.5.3): descriptors outside the ring.
//!
//! Each descriptor of a table is read once.

#![forbid(unsafe_code)]

use super::desc::{
    Desc,
    RawDesc, //
};
use crate::{
    memtable::{
        Access,
        Ahead,
        Maps, //
    },
    usermem::UserMemory,
    vring::{
        chain::{
            Parts,
            MAX_INDIRECT, //
        },
        endian::Endian,
        fault::{
            Because,
            Fault,
            Why, //
        },
        lookup::Lookup,
        table::TableReader, //
    }, //
};
use kernel::prelude::*;

/// The size of a descriptor in bytes.
const DESC_SIZE: usize = size_of::<RawDesc>();

/// Adds the buffers of the indirect table that `desc` names.
///
/// The table is read from its start in order, wherever its descriptors say the next one is. Fails
/// as `Take::next_chain` does of a chain.
pub(super) fn follow(
    mem: impl UserMemory,
    endian: Endian,
    desc: Desc,
    parts: &mut Parts<'_>,
    lookup: &mut Lookup,
) -> Result<(), Fault> {
    if desc.len % DESC_SIZE as u32 != 0 {
        return Err(Fault::new(EINVAL, Why::PartOfDescriptor));
    }
    let Lookup { hint, table } = lookup;
    table.clear();
    parts
        .maps
        .translate(desc.addr, desc.len, Access::Read, hint, table)
        .because(Why::Table)?;
    let count = desc.len / DESC_SIZE as u32;
    if count > MAX_INDIRECT {
        return Err(Fault::new(E2BIG, Why::TableLength));
    }

    let mut reader = TableReader::new(table);
    for _ in 0..count {
        let words = reader.next(mem).because(Why::TableRead)?;
        let desc = Desc::new(RawDesc::from_words(words), endian);
        if desc.has(Desc::F_INDIRECT) {
            return Err(Fault::new(EINVAL, Why::Nested));
        }
        parts.add(desc.addr, desc.len, desc.access(), hint)?;
        if !desc.has(Desc::F_NEXT) {
            return Ok(());
        }
    }
    Err(Fault::new(EINVAL, Why::TableEnd))
}

/// Adds to `ahead` what is missing in `maps` of the indirect table that `desc` names, and of its
/// buffers, if all of the table is there. Returns how many bytes these have; none if the look ends
/// here.
pub(super) fn look_ahead(
    mem: impl UserMemory,
    endian: Endian,
    desc: Desc,
    maps: &Maps,
    lookup: &mut Lookup,
    ahead: &mut Ahead,
) -> Option<u64> {
    let count = desc.len / DESC_SIZE as u32;
    if desc.len % DESC_SIZE as u32 != 0 || count > MAX_INDIRECT {
        return None;
    }
    let Lookup { hint, table } = lookup;
    if ahead.look(maps, desc.addr, u64::from(desc.len), Access::Read, hint) {
        // What is behind it can't be known, nor what is needed behind that.
        ahead.hide();
        ahead.go_beyond();
        return Some(0);
    }
    table.clear();
    let found = maps.translate(desc.addr, desc.len, Access::Read, hint, table);
    found.ok()?;

    let mut reader = TableReader::new(table);
    let mut bytes = 0;
    for _ in 0..count {
        ahead.step()?;
        let desc = Desc::new(RawDesc::from_words(reader.next(mem).ok()?), endian);
        if desc.has(Desc::F_INDIRECT) {
            return None;
        }
        let len = u64::from(desc.len);
        ahead.look(maps, desc.addr, len, desc.access(), hint);
        bytes += len;
        if !desc.has(Desc::F_NEXT) {
            return Some(bytes);
        }
    }
    None
}
