// SPDX-License-Identifier: GPL-2.0

//! Runs the tests of one area, each in a process of its own, and prints KTAP.
//!
//! A test that hangs is killed and a test that crashes is reported; neither stops the others, and
//! no file descriptor, thread or namespace outlives its test. After each test the module must be
//! unused again.

use std::io::Read;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use std::time::Instant;

/// Why a test failed.
#[derive(Debug)]
pub struct Fail(pub String);

/// What a test returns.
pub type Res<T = ()> = Result<T, Fail>;

impl Fail {
    /// A failure noticed at a line of a test.
    pub fn at(file: &str, line: u32, why: String) -> Self {
        let file = file.rsplit('/').next().unwrap_or(file);
        Fail(format!("{why} ({file}:{line})"))
    }
}

impl<E: std::error::Error> From<E> for Fail {
    #[track_caller]
    fn from(e: E) -> Self {
        let at = std::panic::Location::caller();
        Fail::at(at.file(), at.line(), format!("{e} [{e:?}]"))
    }
}

/// A test: its name and what it does.
pub type Test = (&'static str, fn() -> Res);

/// After how long a test counts as hung. The debug kernel looks at each access and each lock, which makes a test that
/// moves many packets take up to ten times as long.
fn limit() -> Duration {
    Duration::from_secs(if crate::sys::on_debug_kernel() {
        400
    } else {
        100
    })
}

/// Runs the tests and ends the process. A first argument, if any, selects the tests whose name
/// contains it.
pub fn run(tests: &[Test]) -> ! {
    std::process::exit(!all(tests) as i32)
}

/// As [`run`], and with PENDING=1 also `pending`: tests of what is right, which the driver does not do yet. So the default
/// run stays green; whoever mends the driver moves the test's line.
pub fn run_and(tests: &[Test], pending: &[Test]) -> ! {
    let more = match std::env::var("PENDING").as_deref() {
        Ok("1") => pending,
        _ => &[],
    };
    run(&[tests, more].concat())
}

/// As [`run`], and once more those that `packed` names, with packed rings: as NAME_packed.
pub fn run_formats(tests: &[Test], packed: &[&str]) -> ! {
    std::process::exit(!all_formats(tests, packed) as i32)
}

/// As [`run`], for a program that has more to do: did all tests pass?
pub fn all(tests: &[Test]) -> bool {
    all_formats(tests, &[])
}

/// As [`run_formats`], for a program that has more to do.
pub fn all_formats(tests: &[Test], packed: &[&str]) -> bool {
    let why_not = if crate::sys::on_c() {
        Some("which the C driver has not")
    } else if crate::sys::on_debug_kernel() && std::env::var("PACKED").as_deref() != Ok("1") {
        // It takes long there, where the area packed goes through the same code.
        Some("unless PACKED=1 says so")
    } else {
        None
    };
    let packed = match why_not {
        Some(why) if !packed.is_empty() => {
            println!("# not with packed rings, {why}: {packed:?}");
            &[]
        }
        _ => packed,
    };
    let split = tests.iter().map(|t| (t.0.to_string(), t.1, false));
    let named = |name: &&str| {
        let test = tests.iter().find(|t| t.0 == *name);
        let test = test.unwrap_or_else(|| panic!("there is no test {name}"));
        (format!("{name}_packed"), test.1, true)
    };
    let all: Vec<_> = split.chain(packed.iter().map(named)).collect();
    let only = std::env::args().nth(1).unwrap_or_default();
    let tests: Vec<_> = all.iter().filter(|t| t.0.contains(&only)).collect();
    println!("KTAP version 1");
    println!("1..{}", tests.len());
    let mut failed = 0;
    for (n, (name, test, packed)) in tests.iter().enumerate() {
        let start = Instant::now();
        crate::packed::set_default(*packed);
        let mut result = one(*test);
        if result.is_ok() {
            result = unused();
        }
        println!("# {name}: {} ms", start.elapsed().as_millis());
        match result {
            Ok(()) => println!("ok {} {name}", n + 1),
            Err(Fail(why)) => {
                failed += 1;
                println!("not ok {} {name} # {}", n + 1, why.replace('\n', " "));
            }
        }
        let _ = std::io::stdout().flush();
    }
    failed == 0 && !tests.is_empty()
}

/// Runs one test in a child process.
fn one(test: fn() -> Res) -> Res {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let _ = std::io::stdout().flush();
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    crate::check!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    // SAFETY: both descriptors are open and owned by nobody else.
    let (mut r, mut w) = unsafe {
        (
            std::fs::File::from_raw_fd(fds[0]),
            std::fs::File::from_raw_fd(fds[1]),
        )
    };
    if pid == 0 {
        // SAFETY: plain system calls on this process.
        unsafe {
            libc::setpgid(0, 0);
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        std::panic::set_hook(Box::new(|_| ()));
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            crate::sys::own_network()?;
            test()
        }));
        let text = match result {
            Ok(Ok(())) => "ok".to_string(),
            Ok(Err(Fail(why))) => format!("failed: {why}"),
            Err(p) => {
                let why = p.downcast_ref::<String>().cloned();
                let why = why.or(p.downcast_ref::<&str>().map(|s| s.to_string()));
                format!("failed: panic: {}", why.unwrap_or_default())
            }
        };
        let _ = w.write_all(text.as_bytes());
        // SAFETY: ends the process without running the parent's exit handlers.
        unsafe { libc::_exit(0) }
    }
    drop(w);
    let text = read_until(&mut r, Instant::now() + limit());
    // SAFETY: kills the test's process group, in which only it and its children are.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    match text.as_str() {
        "ok" => Ok(()),
        "" if libc::WIFSIGNALED(status) => Err(Fail(format!(
            "the test died of signal {}",
            libc::WTERMSIG(status)
        ))),
        "" => Err(Fail("the test ended without a word".into())),
        why => Err(Fail(why.trim_start_matches("failed: ").to_string())),
    }
}

fn read_until(r: &mut std::fs::File, deadline: Instant) -> String {
    let mut buf = [0; 4096];
    match crate::sys::readable(r, deadline) {
        true => {
            let n = r.read(&mut buf).unwrap_or(0);
            String::from_utf8_lossy(&buf[..n]).into_owned()
        }
        false => format!("hung for {} s", limit().as_secs()),
    }
}

/// Nobody may hold the module when a test is over.
fn unused() -> Res {
    let deadline = crate::deadline();
    while let Some(n) = crate::sys::module_users() {
        if n == 0 {
            break;
        }
        if Instant::now() > deadline {
            return Err(Fail(format!(
                "the module still has {n} users after the test"
            )));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
