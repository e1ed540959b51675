//! A new file for a secret, which its user alone can read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// A new file for a secret. Unless the secret was written, it is removed again when this is dropped.
pub(super) struct SecretFile<'a> {
    path: &'a Path,
    file: File,
    written: bool,
}

impl<'a> SecretFile<'a> {
    /// Makes the file at `path`, empty.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one, or a link of that name, which is not followed; and if it can't be made.
    pub(super) fn create(path: &'a Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { path, file, written: false })
    }

    /// Whether it is the file that is at `path`, also behind links.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        match (fs::metadata(path), self.file.metadata()) {
            (Ok(there), Ok(own)) => (there.dev(), there.ino()) == (own.dev(), own.ino()),
            _ => false,
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// If it can't be written; the file is then removed.
    pub(super) fn write(mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()?;
        self.written = true;
        Ok(())
    }
}

impl Drop for SecretFile<'_> {
    fn drop(&mut self) {
        if !self.written {
            fs::remove_file(self.path).ok();
        }
    }
}
