//! The jobs of `relay submit`: one job a file, or one a line, read on a thread of its own and never far ahead.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use relay_bridge::contract::IdempotencyKey;
use relay_bridge::contract::job::DEFAULT_CONTENT_TYPE;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::exit::CliError;
use super::submit::{KeyFrom, SubmitArgs, hex};
use super::{output, values};
use crate::api::BatchEntry;
use crate::client::NewJob;

/// The most that is read of one file, of stdin, or of one line, in bytes: far more than a queue takes by default.
const READ_MAX: u64 = 64 * 1024 * 1024;

/// A job and the name it goes by on the terminal, or why there is none.
pub(super) type Input = (String, Result<NewJob, CliError>);

/// Jobs in their order.
pub(super) struct Inputs {
    /// How many there are, where that is known before they are read.
    pub(super) count: Option<usize>,
    /// The jobs; read no faster than they are taken.
    pub(super) jobs: mpsc::Receiver<Input>,
}

/// Begins to read the inputs that the arguments name. All of them are looked at before the first job is given out; the
/// content of stdin, and of pipes that have names, is not known before.
///
/// # Errors
/// A usage error: one key for several jobs, a pattern that nothing matches, a file that can't be opened, or a line that is no
/// job.
pub(super) async fn open(args: &SubmitArgs) -> Result<Inputs, CliError> {
    let mut files = Vec::new();
    for file in &args.files {
        files.extend(matching(file)?);
    }
    if files.is_empty() {
        files.push("-".into());
    }
    if args.key.is_some() && !args.ndjson && files.len() > 1 {
        return Err(CliError::usage("--key names one job, but there are several files")
            .hint("use --key-from name or --key-from content"));
    }
    let count = (!args.ndjson).then_some(files.len());
    let (sender, jobs) = mpsc::channel(1);
    let maker = Maker {
        plain: NewJob {
            content_type: args.content_type.clone(),
            delay: args.delay,
            expires_in: args.expires_in,
            meta: args.meta.iter().cloned().collect(),
            ..NewJob::new(args.queue.clone(), bytes::Bytes::new())
        },
        key: args.key.clone(),
        key_from: args.key_from,
    };
    let ndjson = args.ndjson;
    let checked = tokio::task::spawn_blocking(move || {
        let wrong = files.iter().find_map(|file| maker.check(file, ndjson).err());
        (maker, files, wrong)
    });
    let (maker, files, wrong) =
        checked.await.map_err(|error| CliError::failed(format!("the files could not be read: {error}")))?;
    if let Some(wrong) = wrong {
        output::note("Nothing was submitted.");
        return Err(wrong);
    }
    // A thread of its own: a terminal or a pipe may take its time. It ends when nobody takes its jobs any more.
    tokio::task::spawn_blocking(move || {
        let mut lines = 0;
        for file in files {
            let sent = if ndjson {
                maker.lines(&file, &mut lines, &sender)
            } else {
                sender.blocking_send((file.display().to_string(), maker.file(&file))).map_err(drop)
            };
            if sent.is_err() {
                break;
            }
        }
    });
    Ok(Inputs { count, jobs })
}

/// The files that a pattern stands for, in the order of their names; anything else stands for itself.
fn matching(file: &Path) -> Result<Vec<PathBuf>, CliError> {
    let Some(pattern) = file.to_str().filter(|text| text.contains(['*', '?', '[']) && !file.exists()) else {
        return Ok(vec![file.to_owned()]);
    };
    let bad = |error: &dyn std::fmt::Display| CliError::usage(format!("cannot read the pattern {pattern}: {error}"));
    let found = glob::glob(pattern).map_err(|error| bad(&error))?;
    let mut files = found.collect::<Result<Vec<_>, _>>().map_err(|error| bad(&error))?;
    files.retain(|file| file.is_file());
    if files.is_empty() {
        return Err(CliError::usage(format!("no file matches {pattern}")));
    }
    Ok(files)
}

/// Makes jobs out of bytes.
struct Maker {
    /// The values that the arguments give to every job.
    plain: NewJob,
    key: Option<String>,
    key_from: Option<KeyFrom>,
}

impl Maker {
    /// Whether a file can be opened, and whether its lines are jobs.
    fn check(&self, file: &Path, ndjson: bool) -> Result<(), CliError> {
        let is_file = std::fs::metadata(file).is_ok_and(|meta| meta.is_file());
        if file == Path::new("-") || std::fs::metadata(file).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
            return Ok(());
        }
        if is_file && ndjson {
            let mut count = 0;
            return self.each_line(file, &mut count, |_, job| job.map(drop));
        }
        if self.key_from == Some(KeyFrom::Name) && !ndjson {
            parse_key(Some(file.display().to_string()), &file.display().to_string())?;
        }
        let opened = std::fs::File::open(file).and_then(|file| file.metadata());
        match opened.map_err(|error| unreadable(file, &error))? {
            meta if meta.is_dir() => Err(CliError::usage(format!("{} is a folder: name its files", file.display()))),
            meta if meta.len() > READ_MAX => Err(too_large(&file.display().to_string())),
            _ => Ok(()),
        }
    }

    fn file(&self, file: &Path) -> Result<NewJob, CliError> {
        let unreadable = |error| unreadable(file, &error);
        let mut payload = Vec::new();
        open_file(file).and_then(|input| input.take(READ_MAX + 1).read_to_end(&mut payload)).map_err(unreadable)?;
        if payload.len() as u64 > READ_MAX {
            return Err(too_large(&file.display().to_string()));
        }
        let key = match (&self.key, self.key_from) {
            (Some(key), _) => Some(key.clone()),
            (None, Some(KeyFrom::Name)) => Some(file.display().to_string()),
            (None, Some(KeyFrom::Content)) => Some(hex(&Sha256::digest(&payload))),
            (None, None) => None,
        };
        Ok(NewJob { key: parse_key(key, &file.display().to_string())?, payload: payload.into(), ..self.plain.clone() })
    }

    /// Sends a job for each line that is not empty. `count` goes on from file to file. `Err` if nobody takes them.
    fn lines(&self, file: &Path, count: &mut usize, to: &mpsc::Sender<Input>) -> Result<(), ()> {
        self.each_line(file, count, |name, job| to.blocking_send((name, job)).map_err(drop))
    }

    /// Gives `take` a job for each line that is not empty, as long as it takes them.
    fn each_line<E>(
        &self,
        file: &Path,
        count: &mut usize,
        mut take: impl FnMut(String, Result<NewJob, CliError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut input = match open_file(file) {
            Ok(input) => BufReader::new(input),
            Err(error) => return take(file.display().to_string(), Err(unreadable(file, &error))),
        };
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let name = format!("{}:{number}", file.display());
            match (&mut input).take(READ_MAX + 1).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) if line.len() as u64 > READ_MAX => return take(name.clone(), Err(too_large(&name))),
                Ok(_) => {}
                Err(error) => return take(name, Err(unreadable(file, &error))),
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let job = self.line(&line, *count, &name);
            *count += 1;
            take(name, job)?;
        }
        Ok(())
    }

    fn line(&self, line: &[u8], at: usize, name: &str) -> Result<NewJob, CliError> {
        let bad = |error: &dyn std::fmt::Display| CliError::usage(format!("{name}: {error}"));
        let mut entry: BatchEntry = serde_json::from_slice(line)
            .map_err(|error| bad(&error).hint(r#"a line looks like {"key": "order-4711", "payload": {"n": 1}}"#))?;
        let (payload, content_type) = entry.take_payload().map_err(|error| bad(&error))?;
        let key = match (entry.key, &self.key, self.key_from) {
            (Some(key), ..) => Some(key),
            (None, Some(key), _) => Some(format!("{key}/{at}")),
            (None, None, Some(KeyFrom::Name)) => Some(name.to_owned()),
            (None, None, Some(KeyFrom::Content)) => Some(hex(&Sha256::digest(&payload))),
            (None, None, None) => None,
        };
        let mut meta = self.plain.meta.clone();
        meta.extend(entry.meta.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)));
        // The content type of the arguments counts where it is not the default.
        let of_args = Some(&self.plain.content_type).filter(|of_args| *of_args != DEFAULT_CONTENT_TYPE).cloned();
        Ok(NewJob {
            key: parse_key(key, name)?,
            content_type: entry.content_type.or(of_args).unwrap_or_else(|| content_type.to_owned()),
            delay: entry.delay.map(|delay| delay.0).or(self.plain.delay),
            expires_in: entry.expires_in.map(|expires_in| expires_in.0).or(self.plain.expires_in),
            meta,
            ..NewJob::new(self.plain.queue.clone(), payload)
        })
    }
}

fn parse_key(key: Option<String>, name: &str) -> Result<Option<IdempotencyKey>, CliError> {
    key.map(|key| key.parse())
        .transpose()
        .map_err(|error| CliError::usage(format!("{name}: {error}")).hint("--key-from content works for everything"))
}

fn open_file(file: &Path) -> std::io::Result<Box<dyn Read>> {
    Ok(if file == Path::new("-") { Box::new(std::io::stdin().lock()) } else { Box::new(std::fs::File::open(file)?) })
}

fn unreadable(file: &Path, error: &std::io::Error) -> CliError {
    CliError::usage(format!("cannot read {}: {error}", file.display()))
}

fn too_large(name: &str) -> CliError {
    CliError::usage(format!("{name} is larger than {}", values::show_size(READ_MAX)))
        .hint("put it where the handler can fetch it and submit a link to it")
}
