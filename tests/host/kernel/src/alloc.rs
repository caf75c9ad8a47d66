// SPDX-License-Identifier: GPL-2.0

//! `kernel::alloc`.

use crate::error::{code::EINVAL, Error};
use core::{
    cell::Cell,
    fmt,
    ops::{Deref, DerefMut},
};

thread_local! {
    /// How many allocations more succeed.
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// From now on only so many allocations of this thread succeed.
pub fn allow(count: u64) {
    LEFT.set(count);
}

/// Out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocError;

/// Allocation flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(());

pub mod flags {
    pub use super::Flags;

    pub const GFP_KERNEL: Flags = Flags(());
    pub const GFP_KERNEL_ACCOUNT: Flags = Flags(());
    pub const GFP_ATOMIC: Flags = Flags(());
}

/// The vector was full; gives the value back.
pub struct PushError<T>(pub T);

impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Not enough capacity")
    }
}

impl<T> From<PushError<T>> for Error {
    fn from(_: PushError<T>) -> Self {
        EINVAL
    }
}

/// There is no element of that number.
#[derive(Debug)]
pub struct RemoveError;

impl From<RemoveError> for Error {
    fn from(_: RemoveError) -> Self {
        EINVAL
    }
}

/// The value can't be inserted; gives it back.
pub enum InsertError<T> {
    IndexOutOfBounds(T),
    OutOfCapacity(T),
}

impl<T> From<InsertError<T>> for Error {
    fn from(_: InsertError<T>) -> Self {
        EINVAL
    }
}

/// A vector that says when it can't grow.
///
/// It counts its capacity itself: [`std::vec::Vec`] may have more than it was asked for, which would
/// hide a push beyond it.
pub struct KVec<T> {
    items: Vec<T>,
    capacity: usize,
}

/// The same: where the memory comes from makes no difference here.
pub type KVVec<T> = KVec<T>;

/// The largest allocation, as in the kernel.
const MAX_BYTES: usize = isize::MAX as usize;

impl<T> KVec<T> {
    pub const fn new() -> Self {
        Self {
            items: Vec::new(),
            capacity: 0,
        }
    }

    pub fn with_capacity(capacity: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut vec = Self::new();
        vec.reserve(capacity, flags)?;
        Ok(vec)
    }

    pub fn reserve(&mut self, additional: usize, _flags: Flags) -> Result<(), AllocError> {
        let capacity = self.items.len().checked_add(additional).ok_or(AllocError)?;
        match capacity.checked_mul(size_of::<T>()) {
            Some(bytes) if bytes <= MAX_BYTES => {}
            _ => return Err(AllocError),
        }
        if capacity > self.capacity {
            LEFT.set(LEFT.get().checked_sub(1).ok_or(AllocError)?);
        }
        self.items
            .try_reserve_exact(additional)
            .map_err(|_| AllocError)?;
        self.capacity = self.capacity.max(capacity);
        Ok(())
    }

    pub fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
        if self.items.len() == self.capacity {
            self.reserve(self.capacity.max(4), flags)?;
        }
        self.items.push(value);
        Ok(())
    }

    pub fn push_within_capacity(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.items.len() == self.capacity {
            return Err(PushError(value));
        }
        self.items.push(value);
        Ok(())
    }

    pub fn insert_within_capacity(&mut self, index: usize, value: T) -> Result<(), InsertError<T>> {
        if index > self.items.len() {
            return Err(InsertError::IndexOutOfBounds(value));
        }
        if self.items.len() == self.capacity {
            return Err(InsertError::OutOfCapacity(value));
        }
        self.items.insert(index, value);
        Ok(())
    }

    pub fn remove(&mut self, index: usize) -> Result<T, RemoveError> {
        if index >= self.items.len() {
            return Err(RemoveError);
        }
        Ok(self.items.remove(index))
    }

    pub fn pop(&mut self) -> Option<T> {
        self.items.pop()
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn clear(&mut self) {
        self.items.clear();
    }

    pub fn truncate(&mut self, len: usize) {
        self.items.truncate(len);
    }

    pub fn as_slice(&self) -> &[T] {
        &self.items
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.items
    }

    pub fn retain(&mut self, f: impl FnMut(&mut T) -> bool) {
        self.items.retain_mut(f);
    }
}

impl<T: Clone> KVec<T> {
    pub fn from_elem(value: T, n: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut vec = Self::with_capacity(n, flags)?;
        vec.items.resize(n, value);
        Ok(vec)
    }

    pub fn resize(&mut self, len: usize, value: T, flags: Flags) -> Result<(), AllocError> {
        self.reserve(len.saturating_sub(self.items.len()), flags)?;
        self.items.resize(len, value);
        Ok(())
    }

    pub fn extend_from_slice(&mut self, other: &[T], flags: Flags) -> Result<(), AllocError> {
        self.reserve(other.len(), flags)?;
        self.items.extend_from_slice(other);
        Ok(())
    }
}

impl<T> Default for KVec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for KVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.items.fmt(f)
    }
}

impl<T> Deref for KVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> DerefMut for KVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items
    }
}

impl<'a, T> IntoIterator for &'a KVec<T> {
    type Item = &'a T;
    type IntoIter = core::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl<T> IntoIterator for KVec<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}
