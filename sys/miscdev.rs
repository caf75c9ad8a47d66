// SPDX-License-Identifier: GPL-2.0

//! Misc devices with a minor number of their own, and with `poll`.
//!
//! As `kernel::miscdevice`, which has neither.
//!
//! C header: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h)

use super::{
    uaccess::CurrentMm,
    THIS_MODULE, //
};
use core::marker::PhantomData;
use kernel::{
    bindings,
    error::to_result,
    ffi::{
        c_int,
        c_long,
        c_uint,
        c_ulong, //
    },
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    seq_file::SeqFile,
    sync::{
        poll::PollTable,
        Arc,
        ArcBorrow, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// What an open file of the device does. Where a call is a process's, `mm` is its memory.
#[vtable]
pub trait MiscDevice: Send + Sync + Sized + 'static {
    /// The name of the device node.
    const NAME: &'static CStr;
    /// Its minor number.
    const MINOR: u32;

    /// Makes what is behind a file that is being opened.
    fn open() -> Result<Arc<Self>>;

    /// The last reference to the file is gone.
    fn release(this: Arc<Self>);

    /// `arg` is a user address or a number, as `cmd` says. A 32-bit caller's address is as good.
    fn ioctl(this: ArcBorrow<'_, Self>, mm: CurrentMm<'_>, cmd: u32, arg: usize) -> Result<isize>;

    /// Reads from the file, which waits unless `nonblock`.
    fn read(this: ArcBorrow<'_, Self>, to: &mut IovIterDest<'_>, nonblock: bool) -> Result<usize>;

    /// Writes to the file. A thread of the kernel's that does gets [`EFAULT`].
    fn write(
        this: ArcBorrow<'_, Self>,
        mm: CurrentMm<'_>,
        from: &mut IovIterSource<'_>,
    ) -> Result<usize>;

    /// The events (`EPOLLIN`, …) that the file is ready for.
    fn poll(this: ArcBorrow<'_, Self>, file: &File, table: PollTable<'_>) -> u32;

    /// Prints what `/proc/PID/fdinfo/FD` says of the file.
    fn show_fdinfo(this: ArcBorrow<'_, Self>, m: &SeqFile);
}

/// A device node that exists as long as this.
///
/// # Invariants
///
/// `inner` is a registered `struct miscdevice`.
#[pin_data(PinnedDrop)]
pub struct Registration<T: MiscDevice> {
    #[pin]
    inner: Opaque<bindings::miscdevice>,
    _device: PhantomData<T>,
}

// SAFETY: Any thread may remove the node.
unsafe impl<T: MiscDevice> Send for Registration<T> {}
// SAFETY: There are no methods on `&self`.
unsafe impl<T: MiscDevice> Sync for Registration<T> {}

impl<T: MiscDevice> Registration<T> {
    /// Registers the device.
    ///
    /// Fails with [`EBUSY`] if its minor number is taken, and with [`ENOMEM`].
    pub fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let mut misc: bindings::miscdevice = pin_init::zeroed();
                misc.minor = T::MINOR as c_int;
                misc.name = T::NAME.as_char_ptr();
                misc.fops = &VTable::<T>::FOPS;
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(misc) };
                // SAFETY: The slot is initialised, pinned, and unregistered before it is freed.
                // INVARIANT: Registered, if this succeeds.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
            _device: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T: MiscDevice> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant it is registered.
        unsafe { bindings::misc_deregister(self.inner.get()) }
    }
}

/// The file operations of a `T`.
///
/// The private data of its files is an `Arc<T>`, from a successful `open` until `release`.
struct VTable<T: MiscDevice>(PhantomData<T>);

impl<T: MiscDevice> VTable<T> {
    const FOPS: bindings::file_operations = bindings::file_operations {
        owner: THIS_MODULE,
        open: Some(Self::open),
        release: Some(Self::release),
        unlocked_ioctl: Some(Self::ioctl),
        #[cfg(CONFIG_COMPAT)]
        compat_ioctl: bindings::compat_ptr_ioctl,
        read_iter: Some(Self::read_iter),
        write_iter: Some(Self::write_iter),
        poll: Some(Self::poll),
        llseek: Some(bindings::noop_llseek),
        show_fdinfo: Some(Self::show_fdinfo),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` is an open file of the device, which stays open for `'a`.
    unsafe fn device<'a>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
        // SAFETY: By the safety requirement the private data is an `Arc<T>`, which lives as long
        // as the file is open.
        unsafe { <Arc<T> as ForeignOwnable>::borrow((*file).private_data) }
    }

    /// # Safety
    ///
    /// `file` is a file of the device that is being opened.
    unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        match T::open() {
            Ok(device) => {
                // SAFETY: The private data of a file belongs to its device.
                unsafe { (*file).private_data = device.into_foreign() };
                0
            }
            Err(err) => err.to_errno(),
        }
    }

    /// # Safety
    ///
    /// `file` is an open file of the device, which nobody uses any more.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: By the safety requirement the private data is an `Arc<T>`, and no borrow of it
        // is left.
        T::release(unsafe { <Arc<T> as ForeignOwnable>::from_foreign((*file).private_data) });
        0
    }

    /// # Safety
    ///
    /// `file` is an open file of the device.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: By the safety requirement.
        let device = unsafe { Self::device(file) };
        let task = current!();
        let mm = CurrentMm::of(task).ok_or(EFAULT);
        match mm.and_then(|mm| T::ioctl(device, mm, cmd, arg)) {
            Ok(value) => value as c_long,
            Err(err) => err.to_errno() as c_long,
        }
    }

    /// # Safety
    ///
    /// `kiocb` is a request to an open file of the device, and `iter` is its destination, which
    /// nobody else uses.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the safety requirements.
        let (device, nonblock, to) = unsafe {
            let file = (*kiocb).ki_filp;
            (
                Self::device(file),
                (*file).f_flags & bindings::O_NONBLOCK != 0,
                IovIterDest::from_raw(iter),
            )
        };
        match T::read(device, to, nonblock) {
            Ok(len) => len as isize,
            Err(err) => err.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// `kiocb` is a request to an open file of the device, and `iter` is its source, which nobody
    /// else uses.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        iter: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: By the safety requirements.
        let (device, from) = unsafe {
            (
                Self::device((*kiocb).ki_filp),
                IovIterSource::from_raw(iter),
            )
        };
        let task = current!();
        let mm = CurrentMm::of(task).ok_or(EFAULT);
        match mm.and_then(|mm| T::write(device, mm, from)) {
            Ok(len) => len as isize,
            Err(err) => err.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// `file` is an open file of the device, and `table` is null or valid.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: By the safety requirements. This thread is in no `fdget_pos` region of the file,
        // and those of others guard no position, for a file like this has none.
        unsafe {
            T::poll(
                Self::device(file),
                File::from_raw_file(file),
                PollTable::from_raw(table),
            )
        }
    }

    /// # Safety
    ///
    /// `m` is valid and only ours, and `file` is an open file of the device.
    unsafe extern "C" fn show_fdinfo(m: *mut bindings::seq_file, file: *mut bindings::file) {
        // SAFETY: By the safety requirements.
        unsafe { T::show_fdinfo(Self::device(file), SeqFile::from_raw(m)) }
    }
}
