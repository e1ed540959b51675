//! The demo's submissions: real files. The project's own sources, or those that were given.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use relay_bridge::contract::IdempotencyKey;
use sha2::{Digest as _, Sha256};

use super::super::exit::CliError;
use super::super::submit::hex;

/// More files than this make the demo longer, not better.
pub(super) const FILES_MAX: usize = 300;
/// The largest file that is submitted, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// How deep directories are read.
const DEPTH_MAX: usize = 12;

/// One file, read once, so that what is submitted again is the same.
#[derive(Clone, Debug)]
pub(super) struct InputFile {
    /// The path as it is shown, and as it goes into the key.
    pub(super) name: String,
    /// Its content.
    pub(super) content: Bytes,
    /// SHA-256 of the content, computed here: what `sha256sum` must answer.
    pub(super) sha256: String,
}

impl InputFile {
    /// The idempotency key: path and content, so that two copies of one file are two jobs.
    pub(super) fn key(&self) -> Result<IdempotencyKey, CliError> {
        let mut hasher = Sha256::new();
        hasher.update(self.name.as_bytes());
        hasher.update([0]);
        hasher.update(&self.content);
        let key = format!("demo-{}", hex(&hasher.finalize()));
        key.parse().map_err(|error| CliError::failed(format!("{}: {error}", self.name)))
    }
}

/// The files to submit, in the order of their paths, and how many were left out for their size or number.
///
/// # Errors
/// A usage error if a given file can't be read, or there is nothing to submit.
pub(super) fn collect(given: &[PathBuf]) -> Result<(Vec<InputFile>, usize), CliError> {
    let sources = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (base, roots) = match given {
        [] if sources.join("Cargo.toml").is_file() => (sources.clone(), vec![sources]),
        [] => {
            return Err(CliError::usage("the sources that this binary was built from are not on this machine")
                .hint("name files or directories to submit: relay demo FILE..."));
        }
        given => (PathBuf::new(), given.to_vec()),
    };
    let mut paths = Vec::new();
    for root in &roots {
        walk(root, DEPTH_MAX, &mut paths)
            .map_err(|error| CliError::usage(format!("cannot read {}: {error}", root.display())))?;
    }
    paths.sort();
    paths.dedup();
    let (mut files, mut left_out) = (Vec::new(), 0);
    for path in paths {
        let size = fs::metadata(&path).map_or(0, |meta| meta.len());
        if files.len() == FILES_MAX || size > FILE_BYTES_MAX {
            left_out += 1;
            continue;
        }
        let content =
            fs::read(&path).map_err(|error| CliError::usage(format!("cannot read {}: {error}", path.display())))?;
        let name = path.strip_prefix(&base).unwrap_or(&path).display().to_string();
        let sha256 = hex(&Sha256::digest(&content));
        files.push(InputFile { name, content: content.into(), sha256 });
    }
    if files.len() < 4 {
        return Err(CliError::usage(format!("{} files are too few to kill something half-way", files.len()))
            .hint("name at least 4 files, or a directory"));
    }
    Ok((files, left_out))
}

/// Adds `path`, or every file below it that is not hidden and not a build product. Links are not followed.
fn walk(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_file() {
        files.push(path.to_owned());
    } else if kind.is_dir() && depth > 0 {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let skipped = name.to_string_lossy().starts_with('.') || name == "target" || name == "node_modules";
            if !skipped {
                walk(&entry.path(), depth - 1, files)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_own_sources_are_the_default_input() {
        let (files, _) = collect(&[]).unwrap();
        assert!(files.iter().any(|file| file.name == "Cargo.toml"));
        assert!(files.iter().all(|file| !file.name.contains("target/") && !file.name.starts_with('/')));
        assert!(files.len() <= FILES_MAX);
    }

    #[test]
    fn copies_of_one_file_are_two_jobs_and_the_same_file_is_one() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d"] {
            fs::write(dir.path().join(name), "same").unwrap();
        }
        let keys = |()| {
            let (files, _) = collect(&[dir.path().to_owned()]).unwrap();
            files.iter().map(|file| file.key().unwrap()).collect::<Vec<_>>()
        };
        let (first, again) = (keys(()), keys(()));
        assert_eq!(first, again);
        assert_ne!(first[0], first[1]);
    }
}
