//! Files and folders of a store. They hold payloads, so that relay makes them for its user only, whatever the umask says; the
//! umask itself is left to handlers.

use std::fs::{DirBuilder, File, OpenOptions, metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The permissions of a new file: its user reads and writes it.
const FILE: u32 = 0o600;
/// The permissions of a new folder.
const FOLDER: u32 = 0o700;

/// Makes a file that must not be there: neither itself nor a link of its name, which is not followed.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(FILE).open(path)
}

/// Opens a file for writing as it is, and makes it where it is not there.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(FILE).open(path)
}

/// Makes a folder and those above it, where they are not there.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER).create(path)
}

/// Warns of files of the store at `path` that other users of the machine may read or write, and of a folder in which they may put
/// others in their place. They were made so by somebody, who may have meant it: relay changes nothing.
pub(super) fn warn_of_open(path: &Path) {
    let permissions = |path: &Path| metadata(path).map_or(0, |found| found.permissions().mode());
    let files = ["", "-wal", "-shm", ".marker"].map(|suffix| PathBuf::from(format!("{}{suffix}", path.display())));
    let open: Vec<_> = files.iter().filter(|file| permissions(file) & 0o077 != 0).map(|file| shown(file)).collect();
    if !open.is_empty() {
        let files = open.join(" ");
        tracing::warn!("other users can read payloads: {files} can be read or written by them: chmod go-rwx {files}");
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // In a sticky folder others can't touch what is not theirs.
    if permissions(folder) & 0o022 != 0 && permissions(folder) & 0o1000 == 0 {
        let folder = shown(folder);
        tracing::warn!("other users can replace the store: they can write in {folder}: chmod go-w {folder}");
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
