// SPDX-License-Identifier: GPL-2.0

//! Makes the scripts that show a difference as short as can be.

use kselftest::Res;

use crate::compare::compare;
use crate::driver::Drivers;
use crate::script::Script;

/// Runs scripts with both drivers. Returns what was seen of each.
pub fn both(drivers: &mut Drivers, scripts: &[Script]) -> Res<Vec<[String; 2]>> {
    drivers.load(0)?;
    let c = drivers.run(scripts)?;
    drivers.load(1)?;
    let rust = drivers.run(scripts)?;
    Ok(c.into_iter().zip(rust).map(|(c, rust)| [c, rust]).collect())
}

/// What is tried next: the script without some of its parts, `size` actions each, and, when that is
/// one, with fewer features and shorter chains.
fn candidates(script: &Script, size: usize) -> Vec<Script> {
    let mut all: Vec<Script> = (0..script.len())
        .step_by(size)
        .map(|at| {
            let mut s = script.clone();
            s.drain(at..(at + size).min(s.len()));
            s
        })
        .collect();
    if size > 1 {
        return all;
    }
    for (i, action) in script.iter().enumerate() {
        let mut with = |args: Vec<u64>| {
            let mut s = script.clone();
            s[i].args = args;
            all.push(s);
        };
        match (action.verb, &action.args[..]) {
            ("features", &[bits]) => {
                (0..64)
                    .filter(|b| bits >> b & 1 != 0)
                    .for_each(|b| with(vec![bits & !(1 << b)]));
            }
            ("tx" | "rx", args) if args.len() > 3 => with(args[..args.len() - 1].to_vec()),
            ("many" | "in", &[.., count]) if count > 1 => {
                let mut args = action.args.clone();
                *args.last_mut().unwrap() = count / 2;
                with(args);
            }
            _ => {}
        }
    }
    all
}

/// A script that is being shortened.
struct Work {
    script: Script,
    /// The kind of the difference that it shows.
    kind: String,
    /// How many actions are left out at a time; 0 when there is nothing more to try.
    size: usize,
}

/// Shortens scripts, each with the kind of difference that it shows, all of them together: changing the
/// driver takes longer than a script.
pub fn shrink(drivers: &mut Drivers, scripts: Vec<(Script, String)>) -> Res<Vec<Script>> {
    let mut work: Vec<Work> = scripts
        .into_iter()
        .map(|(script, kind)| Work {
            size: (script.len() / 2).max(1),
            script,
            kind,
        })
        .collect();
    while work.iter().any(|w| w.size > 0) {
        let mut tried = vec![];
        let mut owner = vec![];
        for (i, w) in work.iter().enumerate().filter(|(_, w)| w.size > 0) {
            let new = candidates(&w.script, w.size);
            owner.extend(new.iter().map(|_| i));
            tried.extend(new);
        }
        let seen = both(drivers, &tried)?;
        let mut better: Vec<Option<Script>> = vec![None; work.len()];
        for ((candidate, i), [c, rust]) in tried.into_iter().zip(owner).zip(&seen) {
            let shows = compare(c, rust).is_some_and(|d| d.kind() == work[i].kind);
            if better[i].is_none() && shows {
                better[i] = Some(candidate);
            }
        }
        for (w, better) in work.iter_mut().zip(better) {
            match better {
                Some(script) => {
                    w.size = w.size.min(script.len().max(1));
                    w.script = script;
                }
                None => w.size /= 2,
            }
        }
    }
    Ok(work.into_iter().map(|w| w.script).collect())
}
