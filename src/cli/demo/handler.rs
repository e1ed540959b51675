//! The command that the demo's workers run on each file, and the handlers' own record of it: a line per start, written
//! by the handler itself before it does anything else.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use relay_bridge::contract::JobId;
use relay_workers::handler::exec::{Exec, ExecConfig};

use super::super::exit::CliError;

/// Writes `job attempt worker` to the log in one appending write, takes its time, becomes the command.
const SCRIPT: &str = r#"
printf '%s %s %s\n' "$RELAY_JOB_ID" "$RELAY_ATTEMPT" "$2" >> "$1" || exit 75
sleep "$3"
shift 3
exec "$@"
"#;

/// The command that runs on each file.
#[derive(Clone, Debug)]
pub(super) struct Command {
    /// Program and arguments.
    pub(super) words: Vec<OsString>,
    /// Whether its answer is known here: the SHA-256 of its input.
    pub(super) is_sha256: bool,
}

impl Command {
    /// The given command, whose program has to be there, or the first checksum tool that this machine has.
    pub(super) fn choose(given: Vec<OsString>) -> Result<Self, CliError> {
        let candidates: [&[&str]; 3] = [&["sha256sum"], &["shasum", "-a", "256"], &["wc", "-c"]];
        let words = if given.is_empty() {
            let found = candidates.iter().find(|words| is_in_path(words[0]));
            let found = found.ok_or_else(|| {
                CliError::usage("this machine has no sha256sum, shasum or wc")
                    .hint("name a command: relay demo -- COMMAND")
            })?;
            found.iter().map(OsString::from).collect()
        } else {
            let exec = Exec::new(ExecConfig { command: given.clone(), ..ExecConfig::default() })
                .map_err(|error| CliError::usage(error.to_string()))?;
            exec.check().map_err(|error| CliError::usage(error.to_string()).hint(error.hint()))?;
            given
        };
        let is_sha256 = words == ["sha256sum"] || words == ["shasum", "-a", "256"];
        Ok(Self { words, is_sha256 })
    }

    /// The command line of a worker called `worker`: the record, a pause, then the command.
    pub(super) fn recorded(&self, log: &Path, worker: &str, pause: Duration) -> Vec<OsString> {
        let pause = format!("{}.{:03}", pause.as_secs(), pause.subsec_millis());
        let before = [OsStr::new("sh"), OsStr::new("-c"), OsStr::new(SCRIPT), OsStr::new("relay-demo")];
        let arguments = [log.as_os_str(), OsStr::new(worker), OsStr::new(&pause)];
        before.into_iter().chain(arguments).map(OsStr::to_owned).chain(self.words.iter().cloned()).collect()
    }

    /// The command as a line.
    pub(super) fn line(&self) -> String {
        self.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// The handlers' record.
#[derive(Clone, Debug)]
pub(super) struct StartLog(PathBuf);

/// One start of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The job.
    pub(super) job: JobId,
    /// Which attempt relay said it was.
    pub(super) attempt: u32,
    /// Which worker started it.
    pub(super) worker: String,
}

impl StartLog {
    /// The record in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self(dir.join("handler-starts.log"))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Every start so far, in order.
    ///
    /// # Errors
    /// If the file can't be read, or has a line that no handler of the demo wrote.
    pub(super) fn read(&self) -> Result<Vec<Start>, CliError> {
        let text = match std::fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(CliError::failed(format!("cannot read {}: {error}", self.0.display()))),
        };
        text.lines().map(|line| parse(line).ok_or_else(|| CliError::failed(format!("handler log: `{line}`")))).collect()
    }
}

/// Starts per job.
pub(super) fn by_job(starts: &[Start]) -> BTreeMap<JobId, Vec<&Start>> {
    let mut jobs: BTreeMap<JobId, Vec<&Start>> = BTreeMap::new();
    for start in starts {
        jobs.entry(start.job).or_default().push(start);
    }
    jobs
}

fn parse(line: &str) -> Option<Start> {
    let mut words = line.split(' ');
    let (job, attempt, worker) = (words.next()?, words.next()?, words.next()?);
    Some(Start { job: job.parse().ok()?, attempt: attempt.parse().ok()?, worker: worker.to_owned() })
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
