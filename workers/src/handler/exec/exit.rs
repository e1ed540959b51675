//! The meaning of a command's end for the attempt: the table in [`exec`](super).

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::errno::Errno;
use relay_bridge::contract::Failure;
use relay_bridge::contract::result::DETAIL_BYTES_MAX;

use super::ExecConfig;
use super::process::{End, Ran};
use super::program::name_a_shell;
use crate::handler::{Attempt, Output};

/// `EX_USAGE`, `EX_DATAERR`, `EX_NOINPUT` of sysexits.h: the input is wrong, and will be wrong again.
const REJECTED: [i32; 3] = [64, 65, 66];
/// The codes with which shells exit when a command can't be run or is not found (POSIX, 2.8.2).
const NOT_RUN: [i32; 2] = [126, 127];

/// The attempt that a command's end makes.
pub(super) fn attempt(ran: Ran, config: &ExecConfig, stdout_max: usize) -> Attempt {
    let Ran { end, stdout, stderr } = ran;
    let detail = |what: String| {
        let tail = stderr.text(DETAIL_BYTES_MAX.saturating_sub(what.len() + 2));
        if tail.is_empty() { what } else { format!("{what}: {tail}") }
    };
    match end {
        End::Exited(status) => match (status.code(), status.signal()) {
            (Some(0), _) => Attempt::Done(Output::new(config.content_type.clone(), stdout)),
            (Some(code), _) if REJECTED.contains(&code) => Attempt::reject("exit-code", detail(exited(status))),
            (Some(code), _) if NOT_RUN.contains(&code) => Attempt::retry("spawn-failed", detail(exited(status))),
            (Some(_), _) => Attempt::retry("exit-code", detail(exited(status))),
            (None, Some(signal)) => {
                Attempt::retry("signal", detail(format!("the command was killed by signal {signal}")))
            }
            (None, None) => Attempt::retry("exit-code", detail(exited(status))),
        },
        End::NotStarted(error) => not_started(&error, config),
        End::Unknown(error) => Attempt::retry("exit-code", detail(format!("the command was lost: {error}"))),
        End::TooMuchOutput => Attempt::reject(
            "result-too-large",
            detail(format!("the command wrote more than {stdout_max} bytes to stdout and was killed")),
        ),
        End::TimedOut => Attempt::retry(
            "timeout",
            detail(format!("the command ran longer than {:?} and was stopped", config.timeout.unwrap_or_default())),
        ),
        End::Cancelled => Attempt::retry("cancelled", detail("the command was stopped".to_owned())),
    }
}

/// Only one reason is the job's own: arguments and environment, which hold its metadata, are too long together. Any other
/// is this host's, and the next job would meet it as well.
fn not_started(error: &io::Error, config: &ExecConfig) -> Attempt {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let mut detail = format!("the command did not start: {error}");
    if let (Some(Errno::ENOEXEC), Some(program)) = (errno, config.command.first()) {
        detail.push_str(&format!("; if it is a script, {}", name_a_shell(program.as_ref())));
    }
    let failure = Failure::new("spawn-failed", detail);
    if errno == Some(Errno::E2BIG) {
        return Attempt::Retry { failure, after: None };
    }
    Attempt::NotStarted { failure }
}

fn exited(status: ExitStatus) -> String {
    format!("the command exited with {}", status.code().unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_fails_is_this_hosts_fault_unless_the_job_is_too_large_for_one() {
        let config = ExecConfig { command: vec!["./h".into()], ..ExecConfig::default() };
        let of = |errno: Errno| not_started(&io::Error::from(errno), &config);
        for errno in [
            Errno::EAGAIN,
            Errno::ENOMEM,
            Errno::EMFILE,
            Errno::ENFILE,
            Errno::ENOENT,
            Errno::EACCES,
            Errno::ENOTDIR,
            Errno::ENOEXEC,
            Errno::ETXTBSY,
            Errno::EIO,
        ] {
            assert!(matches!(of(errno), Attempt::NotStarted { .. }), "{errno}");
        }
        assert!(matches!(of(Errno::E2BIG), Attempt::Retry { after: None, .. }));
        let Attempt::NotStarted { failure } = of(Errno::ENOEXEC) else { panic!() };
        assert!(failure.detail.ends_with("begin it with #!/bin/sh, or write: -- sh ./h"), "{}", failure.detail);
    }
}
