// SPDX-License-Identifier: GPL-2.0

//! The differential test: the same random scripts with the C driver and with this one. Every fifth is run with
//! packed rings by this one, which the C driver does not have (machine/packed.rs).
//!
//! In the VM, with the C driver loaded, and both drivers' modules in FOLDER as c.ko and rust.ko:
//!
//!     vhost-net-diff run FOLDER COUNT SEED    COUNT scripts; those that differ are shortened and shown
//!     vhost-net-diff some FOLDER SEED N...    the scripts of these numbers only
//!     vhost-net-diff endian FOLDER COUNT SEED the first COUNT scripts of a big-endian guest
//!     vhost-net-diff replay FOLDER FILE       the script in FILE, and what was seen of each driver
//!
//! Anywhere:
//!
//!     vhost-net-diff show SEED NUMBER         a script
//!     vhost-net-diff verbs                    what a script may say
//!
//! A script that differs is also written to FOLDER/NUMBER.script. Ends with `N passed, N failed`.
//!
//! Seen red, with three bugs in the Rust driver: a used length that is one too long (in 34 of the first 60
//! scripts of seed 1, `kick: queue / queue`), wake-ups of the poll entries that are lost (10 of 60,
//! `backend: queue / nothing`), and `EINVAL` for `ENOBUFS` where there is no such queue (5 of 60,
//! `num: = / =`). And with bugs of packed rings only, in the first 80 of their scripts: a chain of several
//! descriptors that is used by another id (54), a used length that is one too long (42), a used descriptor that is not
//! where the chain before it ends (33); of 60, a kick that is asked for at another place (24), and a call that is not made
//! where the place that was asked for is the last that was passed (1, `in: call / nothing`).

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use kselftest::bail;
use kselftest::check;
use kselftest::Res;

mod compare;
mod driver;
mod gen;
mod machine;
mod script;
mod shrink;

use compare::compare;
use driver::Drivers;
use driver::DRIVERS;
use script::Script;

/// How many kinds of differences are shown.
const SHOWN: usize = 20;
/// What is counted of scripts with packed rings.
const DEVICES: &str = "devices with packed rings";
/// So many scripts with packed rings are too few to say that nothing of a kind was among them.
const FEW: usize = 100;

fn run(folder: &Path, seed: u64, which: &[u64]) -> Res<bool> {
    let mut drivers = Drivers::new(folder.into())?;
    let count = which.len();
    println!("# seed {seed}, scripts {count}");
    let scripts: Vec<Script> = which.iter().map(|&n| gen::script(seed, n)).collect();
    let mut first = vec![];
    for (driver, name) in DRIVERS.iter().enumerate() {
        drivers.load(driver)?;
        let start = Instant::now();
        first.push(drivers.run(&scripts)?);
        let rate = count as f64 / start.elapsed().as_secs_f64();
        println!("# {name}: {rate:.0} scripts a second");
    }
    coverage("the C driver", first[0].iter());
    let packed: Vec<usize> = (0..count).filter(|&i| gen::is_packed(which[i])).collect();
    if !packed.is_empty() {
        println!(
            "report: {} scripts with split rings in both, {} with packed ones here",
            count - packed.len(),
            packed.len()
        );
        let seen = packed.iter().map(|&i| &first[1][i]);
        let counts = coverage("this one with packed rings", seen);
        // Or all of them were the same twice, or looked at what can't be told. A few may be all without.
        for what in [DEVICES, "kicks wanted", "kicks not wanted"] {
            let some = packed.len() < FEW || counts.contains_key(what);
            check!(some, "none of the packed rings' scripts has {what}");
        }
    }
    let mut kinds: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, (c, rust)) in first[0].iter().zip(&first[1]).enumerate() {
        if let Some(d) = compare(c, rust) {
            kinds.entry(d.kind()).or_default().push(i);
        }
    }
    let failed: usize = kinds.values().map(Vec::len).sum();
    let mut shown: Vec<_> = kinds.into_iter().collect();
    shown.sort_by_key(|(_, numbers)| std::cmp::Reverse(numbers.len()));
    for (kind, numbers) in &shown {
        let (count, first) = (numbers.len(), which[numbers[0]]);
        println!("not ok {count} scripts: {kind}, such as {first}");
    }
    // A script that hangs takes too long to be tried many times.
    for (kind, numbers) in shown.iter().filter(|(kind, _)| kind.contains("hung")) {
        let file = folder.join(format!("{}.script", which[numbers[0]]));
        println!("# {kind}: {}", file.display());
        std::fs::write(&file, script::print(&scripts[numbers[0]]))?;
    }
    shown.retain(|(kind, _)| !kind.contains("hung"));
    shown.truncate(SHOWN);
    let long = shown
        .iter()
        .map(|(kind, n)| (scripts[n[0]].clone(), kind.clone()));
    let short = shrink::shrink(&mut drivers, long.collect())?;
    let seen = shrink::both(&mut drivers, &short)?;
    for (((kind, numbers), script), [c, rust]) in shown.iter().zip(&short).zip(&seen) {
        let file = folder.join(format!("{}.script", which[numbers[0]]));
        let number = which[numbers[0]];
        println!("\n# {kind}: script {number} of seed {seed}, shortened");
        match compare(c, rust) {
            Some(_) => show(c, rust),
            None => {
                println!("# It does not differ when it is run again. It did here:");
                if let Some(d) = compare(&first[0][numbers[0]], &first[1][numbers[0]]) {
                    println!("     {}\nC    {}\nRust {}", d.action, d.c, d.rust);
                }
            }
        }
        println!(
            "# To run it again: tests/diff/run replay {}",
            file.display()
        );
        std::fs::write(&file, script::print(script))?;
    }
    println!("{} passed, {failed} failed", count - failed);
    Ok(failed == 0)
}

/// Says how often a driver did what; a generator that only makes mistakes would be seen here.
fn coverage<'a>(
    driver: &str,
    seen: impl Iterator<Item = &'a String>,
) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for line in seen.flat_map(|text| text.lines()) {
        let what = match line.trim_start() {
            l if l == machine::PACKED.trim_start() => DEVICES,
            l if l.starts_with("kicks ") && l.ends_with(": yes") => "kicks wanted",
            l if l.starts_with("kicks ") && l.ends_with(": no") => "kicks not wanted",
            l if l.starts_with("kicks ") => "kicks of which that can't be told",
            l if l.starts_with("queue 0") && l.contains('#') => "turns that received",
            l if l.starts_with("queue 1") && l.contains(':') => "turns of the other queue",
            l if l.starts_with("out ") => "packets sent",
            l if l.starts_with("call ") => "calls",
            l if l.starts_with("error ") => "errors signalled",
            l if l.starts_with("dirty ") => "logged",
            l if l.starts_with("= errno") => "actions that failed",
            l if l.starts_with("= skipped") => "actions skipped",
            l if l.starts_with("= ") => "actions",
            l if l.starts_with("hung") => "hung or died",
            _ => continue,
        };
        *counts.entry(what).or_default() += 1;
    }
    println!("# seen of {driver}: {counts:?}");
    counts
}

/// Prints what was seen of both drivers, one below the other where they differ.
fn show(c: &str, rust: &str) {
    let (c, rust): (Vec<_>, Vec<_>) = (c.lines().collect(), rust.lines().collect());
    let (mut i, mut j) = (0, 0);
    while i < c.len() || j < rust.len() {
        // What comes next in both, if anything does.
        let next = (i..c.len()).find_map(|a| {
            let b = (j..rust.len()).find(|&b| rust[b] == c[a])?;
            Some((a, b))
        });
        let (a, b) = next.unwrap_or((c.len(), rust.len()));
        c[i..a].iter().for_each(|line| println!("C    {line}"));
        rust[j..b].iter().for_each(|line| println!("Rust {line}"));
        if let Some(line) = c.get(a) {
            println!("     {line}");
        }
        (i, j) = (a + 1, b + 1);
    }
}

fn replay(folder: &Path, file: &str) -> Res<bool> {
    let script = match script::parse(&std::fs::read_to_string(file)?) {
        Ok(script) => script,
        Err(why) => bail!("{file}: {why}"),
    };
    let mut drivers = Drivers::new(folder.into())?;
    let seen = shrink::both(&mut drivers, &[script])?;
    let [c, rust] = &seen[0];
    show(c, rust);
    let same = compare(c, rust).is_none();
    println!("{} passed, {} failed", u8::from(same), u8::from(!same));
    Ok(same)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let args: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let result = match args[..] {
        ["run", folder, count, seed] => {
            let all: Vec<u64> = (0..number(count)).collect();
            run(Path::new(folder), number(seed), &all)
        }
        ["some", folder, seed, ref numbers @ ..] => {
            let some: Vec<u64> = numbers.iter().map(|n| number(n)).collect();
            run(Path::new(folder), number(seed), &some)
        }
        ["endian", folder, count, seed] => {
            let big = |&n: &u64| {
                let script = gen::script(number(seed), n);
                script.iter().any(|a| a.verb == "guest-endian")
            };
            let some: Vec<u64> = (0..).filter(big).take(number(count) as usize).collect();
            run(Path::new(folder), number(seed), &some)
        }
        ["replay", folder, file] => replay(Path::new(folder), file),
        ["show", seed, n] => {
            print!("{}", script::print(&gen::script(number(seed), number(n))));
            Ok(true)
        }
        ["verbs"] => {
            script::VERBS
                .iter()
                .for_each(|(verb, what)| println!("{verb:21} {what}"));
            Ok(true)
        }
        _ => panic!("see the head of tests/diff/src/main.rs"),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(kselftest::Fail(why)) => {
            println!("diff: {why}");
            ExitCode::FAILURE
        }
    }
}
