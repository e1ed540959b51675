//! Where a server's program is: a variable that names it, else the path, else what the project's installer puts under
//! `target/tools`. A `nats-server` on the path that is older than relay takes is passed over.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The oldest `nats-server` that tests start from the path: relay refuses older ones.
const OLDEST: (u32, u32) = (2, 12);

/// `nats-server`: the one that `RELAY_NATS_SERVER` names, else one on the path. Installs it where there is none, which
/// takes some seconds and the network.
///
/// # Panics
/// If there is none and it can't be installed; the message has the command to try by hand.
pub(super) fn nats_server() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    const VARIABLE: &str = "RELAY_NATS_SERVER";
    FOUND.get_or_init(|| named(VARIABLE).or_else(on_the_path).unwrap_or_else(|| installed("nats-server", VARIABLE)))
}

/// `ministack`: the one that `RELAY_MINISTACK` names, else the installed one, in the version that the tests know.
///
/// # Panics
/// As [`nats_server`].
pub(super) fn ministack() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    const VARIABLE: &str = "RELAY_MINISTACK";
    FOUND.get_or_init(|| named(VARIABLE).unwrap_or_else(|| installed("ministack", VARIABLE)))
}

fn named(variable: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(variable).filter(|value| !value.is_empty())?);
    assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
    Some(path)
}

fn on_the_path() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&folders).map(|folder| folder.join("nats-server")).find(|path| path.is_file())?;
    let output = Command::new(&found).arg("--version").output().ok()?;
    (version(&String::from_utf8_lossy(&output.stdout))? >= OLDEST).then_some(found)
}

/// Of `nats-server: v2.15.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.split_once(" v")?;
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn installed(program: &str, variable: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let installer = root.join("tests").join("install-servers");
    // It has a lock and a stamp of its own: where everything is in place it ends at once.
    let output = Command::new(&installer).output();
    let said = match &output {
        Ok(output) if output.status.success() => return root.join("target/tools/servers/bin").join(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    panic!(
        "no {program} of the version that is needed: run {} (it needs python3 with venv and pip), or name one in \
         {variable}; it said: {said}",
        AsRef::<OsStr>::as_ref(&installer).display(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_on_the_path_is_told_from_a_new_one() {
        assert_eq!(version("nats-server: v2.9.10\n"), Some((2, 9)));
        assert!(version("nats-server: v2.15.1\n") >= Some(OLDEST));
        assert!(version("nats-server: v2.12.0-RC.1\n") >= Some(OLDEST));
        assert_eq!(version("something else"), None);
    }
}
