// SPDX-License-Identifier: GPL-2.0

//! Parameters of this module, and those of another.
//!
//! [`module_params`] makes them as C's `module_param()` does, so that they show in
//! `/sys/module/<module>/parameters`. Those of `module!` do not.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use super::THIS_MODULE;
use core::{
    cell::UnsafeCell,
    ptr::{
        addr_of,
        NonNull, //
    },
};
use kernel::{
    bindings,
    prelude::*,
    str::as_char_ptr_in_const_context, //
};

/// A type that a parameter can have.
///
/// # Safety
///
/// `OPS` read and write a value of this type.
pub unsafe trait Param: Copy + Sync + 'static {
    /// The kernel's operations for it. No other type has the same.
    const OPS: *const bindings::kernel_param_ops;
}

// SAFETY: A `u16` is C's `unsigned short`.
unsafe impl Param for u16 {
    const OPS: *const bindings::kernel_param_ops = addr_of!(bindings::param_ops_ushort);
}

// SAFETY: An `i32` is C's `int`.
unsafe impl Param for i32 {
    const OPS: *const bindings::kernel_param_ops = addr_of!(bindings::param_ops_int);
}

// SAFETY: A `bool` is C's.
unsafe impl Param for bool {
    const OPS: *const bindings::kernel_param_ops = addr_of!(bindings::param_ops_bool);
}

/// The value of a parameter of this module, which never changes once the module runs.
#[repr(transparent)]
pub struct Value<T>(UnsafeCell<T>);

// SAFETY: It is only written while the module is loaded, before any of its code runs: its file in
// sysfs can only be read.
unsafe impl<T: Param> Sync for Value<T> {}

impl<T: Param> Value<T> {
    /// The value that it has if nobody says otherwise.
    pub const fn new(default: T) -> Self {
        Self(UnsafeCell::new(default))
    }

    /// The value.
    #[inline]
    pub fn get(&self) -> T {
        // SAFETY: The pointer is that of a valid value, which nobody writes any more.
        unsafe { self.0.get().read() }
    }
}

/// What tells the kernel of a parameter, in the section `__param`.
#[repr(transparent)]
pub struct KernelParam(bindings::kernel_param);

// SAFETY: Nobody but the kernel looks at it, and it does not change.
unsafe impl Sync for KernelParam {}

impl KernelParam {
    /// A parameter that everybody can read and nobody write, once the module is loaded.
    pub const fn new<T: Param>(name: &'static CStr, value: &'static Value<T>) -> Self {
        Self(bindings::kernel_param {
            name: as_char_ptr_in_const_context(name),
            mod_: THIS_MODULE,
            ops: T::OPS,
            perm: 0o444,
            level: -1,
            flags: 0,
            __bindgen_anon_1: bindings::kernel_param__bindgen_ty_1 {
                arg: value.0.get().cast(),
            },
        })
    }
}

/// The bytes of a string, for the section `.modinfo`.
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let mut index = 0;
    while index < N {
        bytes[index] = text.as_bytes()[index];
        index += 1;
    }
    bytes
}

/// Text that the module's file has about it, as C's `MODULE_INFO()`.
macro_rules! module_info {
    ($module:literal; $($text:tt)*) => {
        const _: () = {
            // A driver that is built in has its name before all.
            const TEXT: &str = if cfg!(MODULE) {
                concat!($($text)*, "\0")
            } else {
                concat!($module, ".", $($text)*, "\0")
            };

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static INFO: [u8; TEXT.len()] = $crate::sys::moduleparam::bytes(TEXT);
        };
    };
}
pub(crate) use module_info;

/// Makes parameters of this module: a static [`Value`] each, with its name in `/sys/module`.
macro_rules! module_params {
    ($module:literal; $($name:ident: $type:ident = $default:expr, $description:literal;)*) => {$(
        #[doc = $description]
        #[allow(non_upper_case_globals)]
        pub(crate) static $name: $crate::sys::moduleparam::Value<$type> =
            $crate::sys::moduleparam::Value::new($default);

        const _: () = {
            use $crate::sys::moduleparam::{
                module_info,
                module_params,
                KernelParam, //
            };

            const NAME: &kernel::str::CStr = if cfg!(MODULE) {
                kernel::c_str!(stringify!($name))
            } else {
                kernel::c_str!(concat!($module, ".", stringify!($name)))
            };

            #[link_section = "__param"]
            #[used(compiler)]
            static PARAM: KernelParam = KernelParam::new(NAME, &$name);
            module_info!($module; "parmtype=", stringify!($name), ":", module_params!(@type $type));
            module_info!($module; "parm=", stringify!($name), ":", $description);
        };
    )*};
    (@type u16) => { "ushort" };
    (@type i32) => { "int" };
    (@type bool) => { "bool" };
}
pub(crate) use module_params;

/// The value of the parameter `name` of the module `module`: what the file
/// `/sys/module/<module>/parameters/<name>` says.
///
/// [`None`] if no such module is loaded, or it has no parameter of that name and type. A driver
/// that is built into the kernel is no module here. May sleep.
pub fn of_module<T: Param>(module: &CStr, name: &CStr) -> Option<T> {
    let module = ModuleRef::find(module)?;
    // SAFETY: By the type invariant the module is valid.
    let (params, count) = unsafe { ((*module.module).kp, (*module.module).num_kp) };
    (0..count as usize).find_map(|index| {
        // SAFETY: The module has so many parameters, which it keeps until its memory is freed.
        let param = unsafe { &*params.add(index) };
        // SAFETY: The name of a parameter is a string of the module's.
        let found = unsafe { CStr::from_char_ptr(param.name) };
        if found != name || param.ops != T::OPS {
            return None;
        }
        // SAFETY: The module is valid.
        unsafe { bindings::kernel_param_lock(module.module) };
        // SAFETY: By the trait's contract these operations are those of a `T`, so that is what
        // `arg` points to, in the module's memory. Who writes it has the lock.
        let value = unsafe { param.__bindgen_anon_1.arg.cast::<T>().read() };
        // SAFETY: Locked above.
        unsafe { bindings::kernel_param_unlock(module.module) };
        Some(value)
    })
}

/// Keeps a loaded module's memory.
///
/// Not the module: it may be unloaded, which waits for this in the end. So this is not to be kept.
///
/// # Invariants
///
/// `object` is a `kobject` of `module`, and owns a reference to it. Until that is given back
/// `module` is valid (`mod_kobject_put()` waits for it), with its parameters.
struct ModuleRef {
    object: NonNull<bindings::kobject>,
    module: *mut bindings::module,
}

impl ModuleRef {
    /// The module of that name, unless it is built into the kernel.
    fn find(name: &CStr) -> Option<Self> {
        #[cfg(MODULE)]
        // SAFETY: This module is valid while code of it runs. Its directory in `/sys/module` was
        // made before that.
        let kset = unsafe { (*THIS_MODULE).mkobj.kobj.kset };
        #[cfg(all(not(MODULE), CONFIG_SYSFS))]
        // SAFETY: Written once, long before any driver is initialised.
        let kset = unsafe { addr_of!(bindings::module_kset).read() };
        #[cfg(all(not(MODULE), not(CONFIG_SYSFS)))]
        let kset = core::ptr::null_mut::<bindings::kset>();
        if kset.is_null() {
            // A kernel without sysfs.
            return None;
        }
        // SAFETY: The kset of all modules is valid as long as the kernel runs, and so is the name
        // for the call.
        let object = NonNull::new(unsafe { bindings::kset_find_obj(kset, name.as_char_ptr()) })?;
        // INVARIANT: The reference is ours. What is in this kset is part of a `module_kobject`
        // (`lookup_or_create_module_kobject()` relies on it too), whose `mod` is set before it gets
        // there. A module's parameters are found and parsed before that.
        let mut this = Self {
            object,
            module: core::ptr::null_mut(),
        };
        // SAFETY: See above; the reference keeps the memory that the `module_kobject` is in.
        this.module = unsafe {
            (*kernel::container_of!(object.as_ptr(), bindings::module_kobject, kobj)).mod_
        };
        (!this.module.is_null()).then_some(this)
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to give back.
        unsafe { bindings::kobject_put(self.object.as_ptr()) }
    }
}
