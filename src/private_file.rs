//! Small files that hold secrets, or what must not be lost half-way: replaced as a whole, under a lock, for the user and the group
//! that had them before; a new one has mode 0600. And a warning of those that other users can read.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
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

    /// Puts `text` in the place of what the file holds. A crash leaves one or the other. User, group, and whether the group reads
    /// the file stay as they are: a server that read it goes on doing so.
    ///
    /// # Errors
    /// If it can't be written, or would be taken from its user or group; the file is then as it was.
    pub(crate) fn replace(&self, text: &str) -> io::Result<()> {
        let before = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            found => Some(found?),
        };
        let mut draft = self.path.clone().into_os_string();
        draft.push(".new");
        // A draft that a crash left behind; the lock says that nobody else is writing it.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let written = before.map_or(Ok(()), |before| leave_to_owner(&file, &before)).and_then(|()| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, &self.path)
        });
        if let Err(error) = written {
            fs::remove_file(&draft).ok();
            return Err(error);
        }
        self.directory.sync_all()
    }
}

/// Gives `file` to the user and the group of the file `before`, which it is to replace.
fn leave_to_owner(file: &File, before: &Metadata) -> io::Result<()> {
    let (made, group_reads) = (file.metadata()?, before.mode() & 0o040);
    let (user, group) = (before.uid(), before.gid());
    if (made.uid(), made.gid()) != (user, group)
        && let Err(error) = fchown(file, Some(user), Some(group))
        // A group that may not read it loses nothing.
        && (made.uid() != user || group_reads != 0)
    {
        let why = format!(
            "it belongs to user {user} and group {group}, who could not read it any more ({error}): nothing was changed; \
             run this as that user, `sudo -u '#{user}' relay ...`, or as root"
        );
        return Err(io::Error::new(error.kind(), why));
    }
    file.set_permissions(Permissions::from_mode(0o600 | group_reads))
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

    #[test]
    fn a_file_that_is_replaced_stays_its_users_and_its_groups() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        // Only root can give a file away.
        let is_root = fs::metadata(&folder).unwrap().uid() == 0;
        if is_root {
            std::os::unix::fs::chown(&path, Some(65_534), Some(65_533)).unwrap();
        }
        for (before, after) in [(0o640, 0o640), (0o600, 0o600), (0o644, 0o640)] {
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            let owner = fs::metadata(&path).map(|found| (found.uid(), found.gid())).unwrap();
            PrivateFile::lock(&path).unwrap().replace("two").unwrap();
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.mode() & 0o777, (found.uid(), found.gid())), (after, owner));
            assert!(!is_root || owner == (65_534, 65_533));
        }
    }
}
