// SPDX-License-Identifier: GPL-2.0

//! Indirect tables (virtio 1.3, section 2.8.7): descriptors outside the ring.
//!
//! All descriptors of a table are its chain's, in their order: flags but the one that says who may
//! access a buffer, and ids, mean nothing in them. Each is read once.

#![forbid(unsafe_code)]

use super::desc::Desc;
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
        fault::{
            Because,
            Fault,
            Why, //
        },
        lookup::Lookup,
        memory::DESC_SIZE,
        table::TableReader, //
    }, //
};
use kernel::prelude::*;

/// The size of a descriptor in bytes.
const SIZE: u32 = DESC_SIZE as u32;

/// Reads the next descriptor of a table.
#[inline(always)]
fn next(reader: &mut TableReader<'_>, mem: impl UserMemory) -> Result<Desc> {
    let [addr, word] = reader.next(mem)?;
    Ok(Desc::new(u64::from_le(addr), u64::from_le(word)))
}

/// Adds the buffers of the indirect table that `desc` names. Fails as `Take::next_chain` does of a
/// chain.
pub(super) fn follow(
    mem: impl UserMemory,
    desc: Desc,
    parts: &mut Parts<'_>,
    lookup: &mut Lookup,
) -> Result<(), Fault> {
    if desc.len == 0 {
        return Err(Fault::new(EINVAL, Why::TableEnd));
    }
    if desc.len % SIZE != 0 {
        return Err(Fault::new(EINVAL, Why::PartOfDescriptor));
    }
    let Lookup { hint, table } = lookup;
    table.clear();
    parts
        .maps
        .translate(desc.addr, desc.len, Access::Read, hint, table)
        .because(Why::Table)?;
    let count = desc.len / SIZE;
    if count > MAX_INDIRECT {
        return Err(Fault::new(E2BIG, Why::TableLength));
    }

    let mut reader = TableReader::new(table);
    for _ in 0..count {
        let desc = next(&mut reader, mem).because(Why::TableRead)?;
        parts.add(desc.addr, desc.len, desc.access(), hint)?;
    }
    Ok(())
}

/// Adds to `ahead` what is missing in `maps` of the indirect table that `desc` names, and of its
/// buffers, if all of the table is there. Returns how many bytes these have; none if the look ends
/// here.
pub(super) fn look_ahead(
    mem: impl UserMemory,
    desc: Desc,
    maps: &Maps,
    lookup: &mut Lookup,
    ahead: &mut Ahead,
) -> Option<u64> {
    let count = desc.len / SIZE;
    if desc.len % SIZE != 0 || count == 0 || count > MAX_INDIRECT {
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
        let desc = next(&mut reader, mem).ok()?;
        let len = u64::from(desc.len);
        ahead.look(maps, desc.addr, len, desc.access(), hint);
        bytes += len;
    }
    Some(bytes)
}
