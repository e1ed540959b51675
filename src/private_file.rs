//! Small files that hold secrets, or what must not be lost half-way: replaced as a whole, under a lock, with mode 0600. And a
//! warning of those that other users can read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The right to replace one file; other processes that want it wait until this is dropped.
pub(crate) struct PrivateFile {
    path: PathBuf,
    directory: File,
}

impl PrivateFile {
    /// Waits for the right to replace the file at `path`, which need not be there yet; its directory must be.
    ///
    /// # Errors
    /// If the directory can't be opened or locked.
    pub(crate) fn lock(path: &Path) -> io::Result<Self> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // The directory is the lock: the file itself is replaced, and a lock file would be left behind.
        let directory = File::open(directory)?;
        directory.lock()?;
        Ok(Self { path: path.to_owned(), directory })
    }

    /// Puts `text` in the place of what the file holds. A crash leaves one or the other.
    ///
    /// # Errors
    /// If it can't be written; the file is then as it was.
    pub(crate) fn replace(&self, text: &str) -> io::Result<()> {
        let mut draft = self.path.clone().into_os_string();
        draft.push(".new");
        // A draft that a crash left behind; the lock says that nobody else is writing it.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        self.directory.sync_all()
    }
}

/// Warns if other users of this machine can read or write a file. `holds` says of what it is, such as `the worker's key`.
pub(crate) fn warn_if_open(path: &Path, holds: &str) {
    if fs::metadata(path).is_ok_and(|found| found.mode() & 0o077 != 0) {
        let path = path.display();
        tracing::warn!("{path} holds {holds} and can be read or written by other users: chmod go-rwx {path}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(folder.path().join("file.new"), "left by a crash").unwrap();
        for text in ["one", "two"] {
            PrivateFile::lock(&path).unwrap().replace(text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "the draft is gone");
    }
}
