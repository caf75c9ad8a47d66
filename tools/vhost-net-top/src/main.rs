// SPDX-License-Identifier: GPL-2.0

//! `vhost-net-top`: what the vhost-net devices of a host do.

mod device;
mod host;
mod rates;
mod screen;
mod show;

use std::io::IsTerminal;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use host::Host;

/// What the vhost-net devices of this host do: packets, bits, drops and workers, a row for each queue.
///
/// The numbers are those of the driver in Rust, which prints them in /proc/PID/fdinfo/FD. Root sees all devices; others
/// see those of their own processes, and of the rest the workers.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Seconds between two looks, from 0.01 to 86400
    #[arg(short, long, default_value_t = 2.0, value_name = "SECONDS")]
    interval: f64,
    /// Print tables, one below the other, and use no screen; so it is if stdout is no terminal
    #[arg(short, long)]
    batch: bool,
    /// End after so many tables or, with --json, objects; not on a screen
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// Print a JSON object, with all counters, a line a look (once, unless --count says otherwise)
    #[arg(long, conflicts_with_all = ["batch", "prometheus"])]
    json: bool,
    /// Print all counters once, as Prometheus' node exporter reads them
    #[arg(long, conflicts_with = "batch")]
    prometheus: bool,
    /// Write what --prometheus prints to a file, at once: readers see the old one or the new one
    #[arg(short, long, value_name = "FILE", requires = "prometheus")]
    output: Option<PathBuf>,
    /// Where the processes are
    #[arg(long, default_value = "/proc", hide = true)]
    proc: PathBuf,
}

fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = path.with_file_name(name);
    let done = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    done
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    if !args.interval.is_finite() || !(0.01..=86400.0).contains(&args.interval) {
        return Err("the interval must be from 0.01 to 86400 seconds".into());
    }
    let interval = Duration::from_secs_f64(args.interval);
    let ticks = procfs::ticks_per_second();
    let look = || Host::look(&args.proc);
    if args.prometheus {
        let text = show::prometheus(&look()?);
        match &args.output {
            Some(path) => {
                write_file(path, &text).map_err(|err| format!("{}: {err}", path.display()))?;
            }
            None => std::io::stdout().write_all(text.as_bytes())?,
        }
        return Ok(());
    }
    if !args.json && !args.batch && std::io::stdout().is_terminal() {
        return Ok(screen::run(&args.proc, interval, ticks)?);
    }
    let count = args.count.unwrap_or(if args.json { 1 } else { u64::MAX });
    let mut before = look()?;
    for _ in 0..count {
        std::thread::sleep(interval);
        let now = look()?;
        let rows = rates::rows(&now, Some(&before), ticks);
        let text = if args.json {
            let seconds = now.at.duration_since(before.at).as_secs_f64();
            show::json(&now, &rows, seconds) + "\n"
        } else {
            let notes = now.notes().into_iter().map(|note| note + "\n");
            show::table(&rows) + &notes.collect::<String>() + "\n"
        };
        std::io::stdout().write_all(text.as_bytes())?;
        before = now;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Who read it has enough.
        Err(err)
            if err
                .downcast_ref()
                .is_some_and(|e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("vhost-net-top: {err}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_can_not_be_written() {
        let folder = std::env::temp_dir().join(format!("vhost-net-top-{}", std::process::id()));
        let path = folder.join("metrics");
        std::fs::create_dir_all(&folder).unwrap();
        write_file(&path, "1\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        // A folder can't be replaced by a file.
        std::fs::create_dir(&path).unwrap();
        let failed = write_file(&path, "2\n");
        let names: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(text, "1\n");
        assert!(failed.is_err());
        assert_eq!(names.len(), 1, "{names:?}");
    }
}
