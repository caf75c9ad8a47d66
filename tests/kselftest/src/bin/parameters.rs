// SPDX-License-Identifier: GPL-2.0

//! The module's parameters, and those of C's `vhost`: what a VMM reads in sysfs is what it gets.

use std::fs::metadata;
use std::fs::read_to_string;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::ptr::null;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use kselftest::ktap::Test;
use kselftest::sys::*;
use kselftest::*;

const NULL: *const u64 = null();

/// Those that the C driver has in `vhost`, with the values that they have if nobody says otherwise.
const COMMON: [(&str, &str); 3] = [
    ("max_mem_regions", "64"),
    ("max_iotlb_entries", "2048"),
    ("fork_from_owner_default", "Y"),
];

/// The module that has those of the driver that is tested.
fn common() -> &'static str {
    match on_c() {
        true => "vhost",
        false => "vhost_net",
    }
}

fn file(module: &str, name: &str) -> PathBuf {
    format!("/sys/module/{module}/parameters/{name}").into()
}

fn value(module: &str, name: &str) -> Res<String> {
    Ok(read_to_string(file(module, name))?.trim_end().into())
}

/// Loads C's `vhost` beside the driver in Rust.
fn load_vhost(parameters: &str) -> Res {
    if metadata("/sys/module/vhost_iotlb").is_err() {
        sys::load(&beside("vhost_iotlb.ko"), "")?;
    }
    sys::load(&beside("vhost.ko"), parameters)
}

/// Loads the driver with values for the common parameters, without C's `vhost` unless it is part of the driver.
fn load_driver(parameters: &str) -> Res {
    without("vhost_net")?;
    without("vhost")?;
    if !on_c() {
        return sys::load(&beside("vhost_net.ko"), parameters);
    }
    load_vhost(parameters)?;
    sys::load(&beside("vhost_net.ko"), "")
}

/// What SET_MEM_TABLE says to so many regions.
fn set_table(f: &std::fs::File, regions: u32) -> i32 {
    static MEMORY: [u8; 8192] = [0; 8192];
    let region = Region {
        gpa: 0x1000,
        size: 0x1000,
        hva: MEMORY.as_ptr() as u64 & !4095,
        flags: 0,
    };
    let regions = vec![region; regions as usize];
    sys::ioctl(
        f,
        SET_MEM_TABLE,
        mem_table(regions.len() as u32, 0, &regions).as_ptr(),
    )
}

fn takes(limit: u32, fork: u8) -> Res {
    let f = sys::open()?;
    let value = 0xffu8;
    check_eq!(sys::ioctl(&f, GET_FORK_FROM_OWNER, &value), 0);
    // SAFETY: a local variable; read again because the kernel wrote it.
    let value = unsafe { std::ptr::read_volatile(&value) };
    check_eq!(value, fork, "where the worker is to be");
    check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
    check_eq!(set_table(&f, limit), 0, "{limit} regions");
    check_eq!(set_table(&f, limit + 1), libc::E2BIG, "one more");
    Ok(())
}

/// All can be read by everybody and written by nobody.
fn shown() -> Res {
    load_driver("")?;
    let mut own = vec![("vhost_net", "experimental_zcopytx", "0")];
    if !on_c() {
        own.push(("vhost_net", "worker_per_virtqueue", "N"));
    }
    let common = COMMON.map(|(name, value)| (common(), name, value));
    for (module, name, want) in common.into_iter().chain(own) {
        check_eq!(value(module, name)?, want, "{name}");
        let mode = metadata(file(module, name))?.permissions().mode();
        check_eq!(mode & 0o7777, 0o444, "mode of {name}");
    }
    takes(64, 1)
}

/// What the driver is loaded with is shown, and counts.
fn loaded_with() -> Res {
    let test = || -> Res {
        load_driver("max_mem_regions=3 fork_from_owner_default=N max_iotlb_entries=9")?;
        let values = COMMON.map(|(name, _)| value(common(), name).unwrap_or_default());
        check_eq!(values, ["3", "9", "N"]);
        takes(3, 0)?;
        // The last one counts; the number may have a base.
        load_driver("max_mem_regions=7 max_mem_regions=0x10 max_iotlb_entries=-5")?;
        let values = COMMON.map(|(name, _)| value(common(), name).unwrap_or_default());
        check_eq!(values, ["16", "-5", "Y"]);
        let f = sys::open()?;
        check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
        check_eq!(set_table(&f, 1), libc::EINVAL, "no mappings at all");
        drop(f);
        for wrong in [
            "max_mem_regions=65536",
            "max_mem_regions=x",
            "fork_from_owner_default=2",
        ] {
            // By the kernel, that is, and not because the last one can't be unloaded.
            let refused = load_driver(wrong).is_err_and(|Fail(why)| {
                why.contains("Invalid argument") || why.contains("out of range")
            });
            check!(refused, "{wrong} is not refused");
        }
        Ok(())
    };
    let result = test();
    load_driver("")?;
    result
}

/// With C's `vhost` beside it its parameters count, as a VMM reads them, also for devices that are open.
fn beside_vhost() -> Res {
    let test = || -> Res {
        load_driver("max_mem_regions=3")?;
        takes(3, 1)?;
        let f = sys::open()?;
        check_eq!(sys::ioctl(&f, SET_OWNER, NULL), 0);
        load_vhost("max_mem_regions=509 fork_from_owner_default=N")?;
        check_eq!(value("vhost", "max_mem_regions")?, "509");
        check_eq!(value("vhost_net", "max_mem_regions")?, "3");
        check_eq!(
            set_table(&f, 509),
            0,
            "509 regions, of a device that was open"
        );
        check_eq!(set_table(&f, 510), libc::E2BIG, "510 regions");
        takes(509, 0)?;
        without("vhost")?;
        check_eq!(set_table(&f, 4), libc::E2BIG, "4 regions, without vhost");
        load_vhost("max_iotlb_entries=0")?;
        check_eq!(set_table(&f, 1), libc::EINVAL, "no mappings at all");
        without("vhost")?;
        takes(3, 1)
    };
    let result = test();
    load_driver("")?;
    result
}

/// `vhost` comes and goes while others ask for its parameters, and asking does not keep it.
fn vhost_comes_and_goes() -> Res {
    load_driver("max_mem_regions=3")?;
    let over = AtomicBool::new(false);
    let result = std::thread::scope(|scope| -> Res {
        let askers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| -> Res<[u32; 2]> {
                    let f = sys::open()?;
                    let owned = sys::ioctl(&f, SET_OWNER, NULL);
                    // The device belongs to the process: the second asker has one too.
                    check_eq!(owned, 0);
                    let mut seen = [0; 2];
                    while !over.load(Relaxed) {
                        match set_table(&f, 5) {
                            0 => seen[1] += 1,
                            libc::E2BIG => seen[0] += 1,
                            errno => bail!("errno {errno}"),
                        }
                    }
                    Ok(seen)
                })
            })
            .collect();
        let rounds = || -> Res {
            for _ in 0..amount(10) {
                load_vhost("max_mem_regions=5")?;
                std::thread::sleep(std::time::Duration::from_millis(2));
                unload("vhost")?;
            }
            Ok(())
        };
        let result = rounds();
        over.store(true, Relaxed);
        for asker in askers {
            let [without, with] = asker.join().map_err(|_| Fail("an asker died".into()))??;
            check!(
                without > 0 && with > 0,
                "asked {without} times without vhost, {with} with"
            );
        }
        result
    });
    load_driver("")?;
    result
}

fn main() {
    const TESTS: &[Test] = &[("shown", shown), ("loaded_with", loaded_with)];
    const RUST: &[Test] = &[
        ("shown", shown),
        ("loaded_with", loaded_with),
        ("beside_vhost", beside_vhost),
        ("vhost_comes_and_goes", vhost_comes_and_goes),
    ];
    ktap::run(if on_c() { TESTS } else { RUST })
}
