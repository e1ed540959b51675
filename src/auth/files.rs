//! The files that say who may call, read as one: keys, identities and the keys of issuers hold together, or none of them does.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use relay_bridge::contract::ClientId;

use super::credential::Credential;
use super::fetch;
use super::identity::{self, Identity, KeySource};
use super::jwks::{KeySet, SET_BYTES_MAX};
use super::keys::{KeyEntry, KeyFile, KeysError, Role};
use super::mistake::Mistake;
use crate::private_file::warn_if_open;

/// The largest identity file, in bytes.
const IDENTITY_BYTES_MAX: u64 = 1024 * 1024;

/// Where the files are. At least one of them is given.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `keys.toml`, which `relay keys` writes.
    pub keys: Option<PathBuf>,
    /// The identity file: clients, workers and issuers.
    pub clients: Option<PathBuf>,
}

/// Changes whenever the file is replaced, edited, or given other permissions. Links are followed.
pub(super) type Stamp = (u64, u64, i64, i64);

/// A key, and the handle of all that was begun with it.
#[derive(Clone, Debug)]
pub(super) struct LiveKey {
    /// The key as the file has it.
    pub(super) entry: KeyEntry,
    /// Ends when the key is revoked, expires, or is replaced by an entry that grants less.
    pub(super) credential: Credential,
}

/// The content of all files at one time.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// The keys by their ids.
    pub(super) keys: HashMap<String, LiveKey>,
    /// `None` where there is no such file.
    pub(super) identity: Option<Identity>,
    /// The keys of the issuers that have them in files.
    pub(super) sets: HashMap<String, Arc<KeySet>>,
    /// Each file that was read, as it was just before.
    pub(super) stamps: Vec<(PathBuf, Option<Stamp>)>,
}

impl Snapshot {
    /// The content of `files`, with new credentials.
    ///
    /// # Errors
    /// Everything that is wrong in any of them.
    pub(super) fn read(files: &Files) -> Result<Self, Vec<Mistake>> {
        let (mut snapshot, mut mistakes) = (Self::default(), Vec::new());
        if let Some(path) = &files.keys {
            // The stamp first: a change in between is then seen at the next look.
            snapshot.stamps.push((path.clone(), stamp(path)));
            match KeyFile::new(path).list() {
                Ok(entries) => snapshot.keys = entries.into_iter().map(live).collect(),
                Err(error) => mistakes.push(of_keys(path, &error)),
            }
        }
        if let Some(path) = &files.clients {
            snapshot.stamps.push((path.clone(), stamp(path)));
            match read_guarded(path, IDENTITY_BYTES_MAX).and_then(|text| identity::read(path, &text)) {
                Ok(identity) => {
                    mistakes.extend(snapshot.read_sets(&identity));
                    snapshot.identity = Some(identity);
                }
                Err(found) => mistakes.extend(found),
            }
        }
        if mistakes.is_empty() { Ok(snapshot) } else { Err(mistakes) }
    }

    fn read_sets(&mut self, identity: &Identity) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        for issuer in &identity.issuers {
            let whole = |file: &Path, what: String| {
                let fix = format!("correct the file of the keys of {}", issuer.url);
                vec![Mistake { file: file.to_owned(), line: 0, what, fix }]
            };
            match &issuer.keys {
                KeySource::File(file) => {
                    self.stamps.push((file.clone(), stamp(file)));
                    let text = read_guarded(file, SET_BYTES_MAX as u64);
                    let set = text.and_then(|text| KeySet::read(text.as_bytes()).map_err(|what| whole(file, what)));
                    match set {
                        Ok(set) => drop(self.sets.insert(issuer.url.clone(), Arc::new(set))),
                        Err(found) => mistakes.extend(found),
                    }
                }
                KeySource::Url { ca: Some(ca), .. } => {
                    let read = fetch::certificates(ca);
                    mistakes.extend(read.err().into_iter().flat_map(|what| whole(ca, what)));
                }
                KeySource::Url { ca: None, .. } => {}
            }
        }
        mistakes
    }

    /// Takes over the credentials of `before` whose keys may do all that they could.
    pub(super) fn keep_credentials(&mut self, before: &Self) {
        for (id, new) in &mut self.keys {
            let old = before.keys.get(id).filter(|old| !old.credential.has_ended());
            if let Some(old) = old.filter(|old| new.entry.grants_all_of(&old.entry)) {
                new.credential = old.credential.clone();
            }
        }
    }

    /// Whether a file is not what it was.
    pub(super) fn is_outdated(&self) -> bool {
        self.stamps.iter().any(|(path, found)| stamp(path) != *found)
    }

    /// How many clients there are, expired keys included.
    pub(super) fn clients(&self) -> usize {
        let of_keys = self.keys.values().filter(|key| key.entry.role == Role::Client).map(|key| &key.entry.name);
        let listed = self.identity.iter().flat_map(|identity| identity.clients.all()).map(|client| &client.name);
        of_keys.chain(listed).collect::<HashSet<&ClientId>>().len()
    }

    /// Warns of files that others than their owner may read.
    pub(super) fn warn_if_open(files: &Files) {
        if let Some(path) = &files.keys {
            warn_if_open(path, "the names of clients and the hashes of their keys");
        }
    }
}

fn live(entry: KeyEntry) -> (String, LiveKey) {
    (entry.id.clone(), LiveKey { entry, credential: Credential::standing() })
}

/// The text of a file that nobody but its owner can write, since others could let themselves in.
fn read_guarded(path: &Path, bytes_max: u64) -> Result<String, Vec<Mistake>> {
    let mistake = |what: String, fix: String| vec![Mistake { file: path.to_owned(), line: 0, what, fix }];
    let failed =
        |error: std::io::Error| mistake(format!("it can't be read: {error}"), "name a file that relay may read".into());
    let file = File::open(path).map_err(failed)?;
    // Of the open file: its name may be another one's by now.
    if file.metadata().map_err(failed)?.mode() & 0o022 != 0 {
        let fix = format!("look at what is in it, then chmod go-w {}", path.display());
        return Err(mistake("others than its owner can write this file, and so let themselves in".into(), fix));
    }
    let mut text = String::new();
    file.take(bytes_max + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > bytes_max {
        return Err(mistake(format!("it has more than {bytes_max} bytes"), "make it smaller".into()));
    }
    Ok(text)
}

/// The mistake in a file of keys, whose text begins with its place.
fn of_keys(path: &Path, error: &KeysError) -> Mistake {
    let text = error.to_string();
    let rest = text.strip_prefix(&format!("{}:", path.display())).unwrap_or(&text).trim_start();
    let placed = rest.split_once(": ").and_then(|(line, what)| Some((line.parse().ok()?, what)));
    let (line, what) = placed.unwrap_or((0, rest));
    let fix = "`relay keys` writes this file: correct it, or make the key anew".to_owned();
    Mistake { file: path.to_owned(), line, what: what.to_owned(), fix }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}
