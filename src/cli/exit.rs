//! Exit codes and the error that ends a command. Broken pipe is not an error: the reader had enough.

use std::fmt;
use std::io;
use std::process::ExitCode;

use relay_bridge::contract::JobId;
use relay_bridge::support::without_passwords;

/// How a command ended. `relay --help` lists the same codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Exit {
    /// It did what was asked.
    Done = 0,
    /// The job or the query failed: an outcome other than `succeeded`, a refused submission, counts that disagree.
    Failed = 1,
    /// Wrong usage or configuration: nothing was done; the same command will fail again.
    Usage = 2,
    /// The result did not come in the time that was given: the job continues, ask again. `EX_TEMPFAIL` of sysexits.h.
    Pending = 75,
    /// The server or the broker is not there or did not answer: the same command may succeed later.
    Unavailable = 69,
    /// Stopped by a signal before it was done.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command could not do what was asked, for people: one line, and a hint on a line of its own.
#[derive(Debug)]
pub(crate) struct CliError {
    exit: Exit,
    message: Option<String>,
    hint: Option<String>,
}

impl CliError {
    /// Ends the command with `exit` and `error: message`, without the passwords of URLs in it: it is also printed as JSON.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: Some(without_passwords(&message.into()).into_owned()), hint: None }
    }

    /// The result did not come in time.
    pub(crate) fn pending(job: JobId) -> Self {
        Self::new(Exit::Pending, format!("job {job} is not finished yet")).hint(format!(
            "the job continues: `relay result {job} --wait` waits for it, `relay jobs show {job}` shows its state"
        ))
    }

    /// A mistake in the arguments or the configuration.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The job or the query failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The server or the broker is away.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Exit::Unavailable, message)
    }

    /// Stopped by a signal.
    pub(crate) fn interrupted() -> Self {
        Self { exit: Exit::Interrupted, message: None, hint: None }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says where it was, before what.
    pub(crate) fn in_front(mut self, place: &str) -> Self {
        self.message = self.message.map(|message| format!("{place}: {message}"));
        self
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints the error and its hint on stderr; nothing for a broken pipe and for an interruption.
    pub(crate) fn report(&self) {
        if let Some(message) = &self.message {
            super::output::error(message);
        }
        if let Some(hint) = &self.hint {
            super::output::hint(hint);
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or("stopped"))
    }
}

/// An error while writing to stdout. The reader that closed the pipe had enough, which is success.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { exit: Exit::Done, message: None, hint: None };
        }
        Self::failed(format!("cannot write the output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_had_enough_is_success() {
        let error = CliError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((error.exit(), error.message), (Exit::Done, None));
        assert_eq!(CliError::from(io::Error::from(io::ErrorKind::StorageFull)).exit(), Exit::Failed);
    }

    #[test]
    fn the_help_names_every_exit_code() {
        for exit in [Exit::Done, Exit::Failed, Exit::Usage, Exit::Unavailable, Exit::Pending, Exit::Interrupted] {
            let line = format!("\n  {:<4} ", exit as u8);
            assert!(super::super::EXIT_CODES.contains(&line), "{exit:?} is not in the help");
        }
    }
}
