//! Finds a command's program as the system will look for it, so that a mistake shows before the first job.
//!
//! It may be right now and wrong at the first job, or the other way round: this is a help for people, and each start
//! says for itself whether it worked.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::ExecConfig;

/// Where the system looks for programs if the environment has no `PATH`.
const PATH_WITHOUT_ANY: &str = "/bin:/usr/bin";
/// How much of a script the system reads to find its interpreter, in bytes.
const FIRST_LINE_MAX: u64 = 256;

/// Why no job could be started as things are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CannotStart {
    /// The directory to run in is not there, no directory, or closed to this user.
    #[error("the directory `{}` that the command shall run in can't be used: {error}", directory.display())]
    Directory {
        /// As it was configured; `.` if it is the worker's own.
        directory: PathBuf,
        /// The trouble with the directory.
        error: io::Error,
    },
    /// No directory of `PATH` has a program of this name.
    #[error("no program `{}` in PATH, which is {path}", program.display())]
    NotInPath {
        /// The name.
        program: PathBuf,
        /// The `PATH` that was searched.
        path: String,
        /// Where the directory it runs in has one.
        here: bool,
    },
    /// There is no file at this path.
    #[error("no program at `{}`, looked for in {}", program.display(), directory.display())]
    NotThere {
        /// As it was configured.
        program: PathBuf,
        /// The directory that the path starts from.
        directory: PathBuf,
    },
    /// There is something else than a program, or one that this user may not run.
    #[error("`{}` can't be run: {why}", program.display())]
    NotExecutable {
        /// Where it was found.
        program: PathBuf,
        /// The trouble with the file.
        why: &'static str,
    },
    /// The program is a script, and the interpreter that its first line names is not there.
    #[error("the script `{}` is for `{}`, which is not there", program.display(), interpreter.display())]
    NoInterpreter {
        /// Where the script was found.
        program: PathBuf,
        /// The interpreter that the script's first line names.
        interpreter: PathBuf,
    },
    /// The program is empty, or a text that names no interpreter: the system runs neither.
    #[error("`{}` can't be run: it is no binary, and does not begin with `#!` and an interpreter", program.display())]
    NotAScript {
        /// As it was configured, or where it was found in `PATH`.
        program: PathBuf,
    },
}

impl CannotStart {
    /// The remedy that a person can try.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Directory { .. } => "create it, or start where the command can run".to_owned(),
            Self::NotInPath { program, here: true, .. } => {
                format!("a name without a slash is searched in PATH only: write ./{}", program.display())
            }
            Self::NotInPath { .. } => "install it on this host, or name it by its path".to_owned(),
            Self::NotThere { program, .. } if program.is_absolute() => "is it spelled right?".to_owned(),
            Self::NotThere { .. } => "start where that path leads to it, or give an absolute one".to_owned(),
            Self::NotExecutable { program, .. } => {
                format!("name a program file; chmod +x {} makes one of a script", program.display())
            }
            Self::NoInterpreter { .. } => "install it on this host, or mend the first line of the script".to_owned(),
            Self::NotAScript { program } => name_a_shell(program),
        }
    }
}

/// The remedy where a program is neither a binary nor a script that names its interpreter.
pub(super) fn name_a_shell(program: &Path) -> String {
    format!("begin it with #!/bin/sh, or write: -- sh {}", program.display())
}

/// The program of the command, as a start would find it.
pub(super) fn find(config: &ExecConfig) -> Result<PathBuf, CannotStart> {
    let directory = directory(config.directory.as_deref())?;
    let name = config.command.first().map(PathBuf::from).unwrap_or_default();
    let by_path = name.as_os_str().as_bytes().contains(&b'/');
    let program = if by_path {
        let path = directory.join(&name);
        if !path.exists() {
            return Err(CannotStart::NotThere { program: name, directory });
        }
        path
    } else {
        search(&name, &directory, &search_path(config))?
    };
    runnable(&program).map_err(|why| CannotStart::NotExecutable { program: program.clone(), why })?;
    match kind(&program) {
        Kind::Script(interpreter) if interpreter.is_absolute() && !interpreter.exists() => {
            Err(CannotStart::NoInterpreter { program, interpreter })
        }
        Kind::Text => Err(CannotStart::NotAScript { program: if by_path { name } else { program } }),
        Kind::Script(_) | Kind::Other => Ok(program),
    }
}

/// The directory that the command runs in.
fn directory(configured: Option<&Path>) -> Result<PathBuf, CannotStart> {
    let cannot = |error| CannotStart::Directory { directory: configured.unwrap_or(Path::new(".")).into(), error };
    let own = std::env::current_dir().map_err(cannot)?;
    let Some(configured) = configured else { return Ok(own) };
    let directory = own.join(configured);
    if !std::fs::metadata(&directory).map_err(cannot)?.is_dir() {
        return Err(cannot(Errno::ENOTDIR.into()));
    }
    may_execute(&directory).map_err(|error| cannot(error.into()))?;
    Ok(directory)
}

/// The `PATH` of the command.
fn search_path(config: &ExecConfig) -> OsString {
    let set = config.environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, path)| path.clone());
    set.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| PATH_WITHOUT_ANY.into())
}

/// The first program of this name that can be run; else the first one that can't, to say why.
fn search(name: &Path, directory: &Path, path: &OsStr) -> Result<PathBuf, CannotStart> {
    let candidates = || {
        let places = std::env::split_paths(path).map(|place| directory.join(place).join(name));
        // Of an empty name there is none: its path would be the directory itself.
        places.filter(|candidate| !name.as_os_str().is_empty() && candidate.exists())
    };
    let found = candidates().find(|candidate| runnable(candidate).is_ok()).or_else(|| candidates().next());
    found.ok_or_else(|| CannotStart::NotInPath {
        program: name.to_owned(),
        path: path.to_string_lossy().into_owned(),
        here: runnable(&directory.join(name)).is_ok(),
    })
}

fn runnable(program: &Path) -> Result<(), &'static str> {
    if !program.is_file() {
        return Err("it is no file");
    }
    may_execute(program).map_err(|_| "this user may not execute it")
}

/// By the rights that a start has, on a file system that lets programs run.
fn may_execute(path: &Path) -> Result<(), Errno> {
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

/// A program, by how it begins.
enum Kind {
    /// Its first line names this interpreter.
    Script(PathBuf),
    /// Nothing, or a text without a first line of that kind.
    Text,
    /// Binary, or one that may be run and not read.
    Other,
}

fn kind(program: &Path) -> Kind {
    let mut start = Vec::new();
    let read = File::open(program).and_then(|file| file.take(FIRST_LINE_MAX).read_to_end(&mut start));
    let is_text = start.iter().all(|byte| !byte.is_ascii_control() || byte.is_ascii_whitespace());
    if read.is_err() || !is_text && !start.starts_with(b"#!") {
        return Kind::Other;
    }
    let line = start.strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next());
    let word = line.and_then(|line| line.trim_ascii_start().split(u8::is_ascii_whitespace).next());
    match word.filter(|word| !word.is_empty()) {
        Some(word) => Kind::Script(PathBuf::from(OsStr::from_bytes(word))),
        None => Kind::Text,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn of(command: &str, directory: Option<&str>, path: Option<&str>) -> Result<PathBuf, CannotStart> {
        find(&ExecConfig {
            command: vec![command.into()],
            directory: directory.map(PathBuf::from),
            environment: path.map(|path| ("PATH".into(), path.into())).into_iter().collect(),
            ..ExecConfig::default()
        })
    }

    #[test]
    fn a_name_is_searched_in_the_path_of_the_command_and_a_path_from_its_directory() {
        assert_eq!(of("sh", None, Some("/nowhere:/bin")).unwrap(), Path::new("/bin/sh"));
        assert_eq!(of("bin/sh", Some("/"), None).unwrap(), Path::new("/bin/sh"));
        assert_eq!(of("./sh", Some("/bin"), None).unwrap(), Path::new("/bin/./sh"));
        assert_eq!(of("/bin/sh", None, None).unwrap(), Path::new("/bin/sh"));
    }

    #[test]
    fn what_is_wrong_is_named_with_where_it_was_looked_for() {
        for (command, directory, path, says, hint) in [
            ("no-such", None, Some("/nowhere:/bin"), "no program `no-such` in PATH, which is /nowhere:/bin", "install"),
            ("sh", Some("/bin"), Some("/nowhere"), "no program `sh` in PATH", "write ./sh"),
            ("", None, None, "no program ``", "install"),
            ("./no-such", Some("/usr"), None, "no program at `./no-such`, looked for in /usr", "absolute"),
            ("/usr/no-such", None, None, "no program at `/usr/no-such`", "spelled"),
            ("/usr", None, None, "`/usr` can't be run: it is no file", "chmod +x"),
            ("/etc/passwd", None, None, "`/etc/passwd` can't be run: this user may not execute it", "chmod +x"),
            ("sh", Some("/no/such"), None, "the directory `/no/such`", "create it"),
            ("sh", Some("/etc/passwd"), None, "the directory `/etc/passwd`", "create it"),
        ] {
            let error = of(command, directory, path).unwrap_err();
            assert!(error.to_string().contains(says), "{command} in {directory:?}: {error}");
            assert!(error.hint().contains(hint), "{command} in {directory:?}: {}", error.hint());
        }
    }

    #[test]
    fn a_text_that_names_no_interpreter_is_refused_with_what_to_write_and_a_binary_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().to_str().unwrap();
        let program = |name: &str, content: &[u8]| {
            let file = dir.path().join(name);
            std::fs::write(&file, content).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        for (name, content) in [("bare", &b"echo hello\n"[..]), ("empty", b""), ("nameless", b"#! \necho hello\n")] {
            program(name, content);
            let error = of(&format!("./{name}"), Some(here), None).unwrap_err();
            assert!(matches!(error, CannotStart::NotAScript { .. }), "{name}: {error}");
            assert_eq!(error.hint(), format!("begin it with #!/bin/sh, or write: -- sh ./{name}"));
            let error = of(name, None, Some(here)).unwrap_err();
            assert!(error.hint().ends_with(&format!("-- sh {here}/{name}")), "{}", error.hint());
        }
        for (name, content) in [("script", &b"#!/bin/sh\necho hello\n"[..]), ("binary", b"\x7fELF\x02\x01\x01\0")] {
            program(name, content);
            assert!(of(&format!("./{name}"), Some(here), None).is_ok(), "{name}");
        }
    }
}
