// SPDX-License-Identifier: GPL-2.0

//! What a packet costs in the C vhost-net and in the Rust one.
//!
//! ```text
//! vhost-net-bench measure FOLDER MODE ROUNDS [CASE]...   in the VM: a line of JSON a measurement
//! vhost-net-bench report RESULTS FILE...                 tables from such lines, and all of it to RESULTS
//! vhost-net-bench plot RESULTS FOLDER                 charts of RESULTS
//! vhost-net-bench cases                                  their names
//! vhost-net-bench one MODE CASE [TIMES]                  a case with the driver that is loaded, for a profiler; with more than 64
//!                                                        regions only if the module allows it
//! ```
//!
//! CASE may be `curves`, those that show how the cost grows; without any they are left out.
//!
//! The cases with `packed` in their names have packed rings. The C driver has none: it does the same on a split ring.
//!
//! FOLDER has the two drivers, `c.ko` and `rust.ko`, and MODE is `icount` or `clock`. `tests/bench/run` is
//! what calls it.

mod case;
mod plot;
mod report;
mod run;
mod sys;

use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use kselftest::bail;
use kselftest::Fail;
use kselftest::Res;
use serde::Deserialize;
use serde::Serialize;

use case::Case;
use case::CASES;
use case::CURVES;
use run::Outcome;

/// How many times the packets are moved on the wall clock, which is less exact than counting.
const CLOCK_TIMES: usize = 4;

/// One measurement.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Line {
    mode: String,
    case: String,
    driver: String,
    round: usize,
    packets: u64,
    worker_ns: u64,
    machine_ns: u64,
    span_ns: u64,
    misses: u64,
    owner_waits: u64,
    worker_waits: u64,
    /// Feature bits that the driver does not offer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["cases"] => {
            case::all().for_each(|c| println!("{}", c.name));
            println!("curves");
            Ok(())
        }
        ["measure", folder, mode, rounds, ref names @ ..] => {
            measure(Path::new(folder), mode, rounds, names)
        }
        ["one", mode, name] => one(mode, name, "1"),
        ["one", mode, name, times] => one(mode, name, times),
        ["plot", results, folder] => plot::plot(Path::new(results), Path::new(folder)),
        ["report", results, ref files @ ..] => report::report(Path::new(results), files),
        _ => Err(Fail(
            "the first lines of src/main.rs say how this is called".into(),
        )),
    };
    if let Err(Fail(why)) = result {
        eprintln!("vhost-net-bench: {why}");
        std::process::exit(1);
    }
}

fn named(name: &str) -> Res<Case> {
    Case::named(name).ok_or_else(|| Fail(format!("there is no case '{name}'")))
}

/// Runs the cases, C and Rust in turn, so often.
fn measure(folder: &Path, mode: &str, rounds: &str, names: &[&str]) -> Res {
    let mut cases = match names {
        [] => CASES.to_vec(),
        _ => vec![],
    };
    for &name in names {
        match name {
            "curves" => cases.extend(CURVES),
            _ => cases.push(named(name)?),
        }
    }
    // The VM has loaded the C driver. Of the modules that it needs one says how many regions there may be, for both.
    kselftest::sys::unload("vhost_net")?;
    kselftest::sys::unload("vhost")?;
    kselftest::sys::load(&kselftest::sys::beside("vhost.ko"), "max_mem_regions=509")?;
    for round in 1..=rounds.parse()? {
        for case in &cases {
            if (mode == "icount" && case.by_clock()) || (mode == "clock" && case.by_count()) {
                continue;
            }
            for driver in ["c", "rust"] {
                kselftest::sys::load(&folder.join(driver).with_extension("ko"), "")?;
                let line = Line {
                    mode: mode.into(),
                    case: case.name.into(),
                    driver: driver.into(),
                    round,
                    ..in_child(mode, case.name, driver)?
                };
                println!("{}", serde_json::to_string(&line)?);
                kselftest::sys::unload("vhost_net")?;
            }
        }
    }
    Ok(())
}

/// Measures in a process of its own, so that each time the device, the tap and the network are new.
fn in_child(mode: &str, name: &str, driver: &str) -> Res<Line> {
    let child = Command::new(std::env::current_exe()?)
        .args(["one", mode, name])
        .env("VHOST_MODULE", driver)
        .stderr(Stdio::inherit())
        .output()?;
    if !child.status.success() {
        return Ok(Line {
            failed: Some(format!("the measuring process ended: {}", child.status)),
            ..Default::default()
        });
    }
    Ok(serde_json::from_slice(&child.stdout)?)
}

fn one(mode: &str, name: &str, times: &str) -> Res {
    let (mode_times, pinned) = match mode {
        "icount" => (1, false),
        "clock" => (CLOCK_TIMES, true),
        _ => bail!("the mode is icount or clock, not '{mode}'"),
    };
    let line = match run::run(named(name)?, mode_times * times.parse::<usize>()?, pinned) {
        Ok(Outcome::Cost(c)) => Line {
            packets: c.packets,
            worker_ns: c.worker,
            machine_ns: c.machine,
            span_ns: c.span,
            misses: c.misses,
            owner_waits: c.owner_waits,
            worker_waits: c.worker_waits,
            ..Default::default()
        },
        Ok(Outcome::Missing(bits)) => Line {
            missing: bits,
            ..Default::default()
        },
        Err(Fail(why)) => Line {
            failed: Some(why),
            ..Default::default()
        },
    };
    println!("{}", serde_json::to_string(&line)?);
    Ok(())
}
