//! API keys, hashed at rest: the file `keys.toml` holds the id and the SHA-256 of the secret. The secret is 256 random bits, so one
//! hash is enough: there is nothing to guess.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use relay_bridge::contract::{ClientId, QueueName, Timestamp};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

#[cfg(feature = "cli")]
pub(crate) use super::key::id_in;
pub use super::key::{InvalidKey, Key};
use super::rights::Rights;
use crate::private_file::PrivateFile;

/// The largest `keys.toml`, in bytes; some 4,000 keys.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The purpose of a key. No key is for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Submits jobs and reads their results.
    Client,
    /// Leases jobs and settles them.
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Client => "client",
            Self::Worker => "worker",
        })
    }
}

/// The SHA-256 of a secret's text, 64 hexadecimal digits in the file: `printf %s SECRET | sha256sum`.
#[derive(Clone)]
pub struct SecretDigest([u8; 32]);

impl SecretDigest {
    pub(super) fn of(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest that no secret has, as far as anybody can tell.
    #[must_use]
    pub fn of_nobody() -> Self {
        Self([0; 32])
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Serialize for SecretDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for SecretDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        let digits = text.as_bytes().chunks(2).zip(&mut bytes);
        let read = text.len() == 64
            && digits.fold(true, |good, (pair, byte)| {
                let value = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
                *byte = value.unwrap_or(0);
                good && value.is_some() && !pair.contains(&b'+')
            });
        read.then_some(Self(bytes)).ok_or_else(|| serde::de::Error::custom("must be 64 hexadecimal digits"))
    }
}

/// One key in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// Names the key.
    pub id: String,
    /// The hash of its secret.
    pub sha256: SecretDigest,
    /// The purpose of the key.
    pub role: Role,
    /// The client that it authenticates, or the worker's name; both have the form of a client's name. Several keys may
    /// have one name, so that a key can be replaced without a gap.
    pub name: ClientId,
    /// The queues that it may use; `None` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<Vec<QueueName>>,
    /// The calls that a client may make with it; all if the file does not say. A worker's key has no such list.
    #[serde(default, skip_serializing_if = "Rights::is_all")]
    pub rights: Rights,
    /// When it was created.
    pub created: Timestamp,
    /// From when on it is not taken any more; `None`: until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

impl KeyEntry {
    /// Whether whoever was let in by `other` would be let in by this as well, with all that `other` grants: the secret,
    /// the role and the name are the same, and neither a queue nor a right is taken away.
    #[must_use]
    pub fn grants_all_of(&self, other: &Self) -> bool {
        let queues = match (&self.queues, &other.queues) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(now), Some(before)) => before.iter().all(|queue| now.contains(queue)),
        };
        let rights = other.rights.iter().all(|right| self.rights.has(right));
        self.sha256.matches(&other.sha256) && self.role == other.role && self.name == other.name && queues && rights
    }

    /// Whether the key is not taken any more.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// The problem with the file: which one, the line where there is one, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeysError(String);

impl From<String> for KeysError {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// The file `keys.toml`. Every change replaces it as a whole, under a lock, and leaves it to its user and group; a new file has mode
/// 0600. A link is followed, and stays.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    key: Vec<KeyEntry>,
}

impl KeyFile {
    /// The file at `path`, which need not be there yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every key, in the order of the file.
    ///
    /// # Errors
    /// If the file is not there, too large, or not what relay wrote, with file and line; and if others than its owner may
    /// write it, since they could let themselves in.
    pub fn list(&self) -> Result<Vec<KeyEntry>, KeysError> {
        let mut text = String::new();
        let file = File::open(&self.path).map_err(|error| self.failed("read", &error))?;
        // Of the open file: its name may be another one's by now.
        if file.metadata().map_err(|error| self.failed("read", &error))?.mode() & 0o022 != 0 {
            let path = self.path.display();
            let why = "others than its owner can write this file, and so make keys of their own";
            return Err(KeysError(format!("{path}: {why}: look at what is in it, then chmod go-w {path}")));
        }
        let mut file = file.take(FILE_BYTES_MAX + 1);
        file.read_to_string(&mut text).map_err(|error| self.failed("read", &error))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(KeysError(format!("{}: larger than {FILE_BYTES_MAX} bytes", self.path.display())));
        }
        self.parse(&text)
    }

    /// Adds a key with all rights and returns it: the only time that its secret is known. The file is created if there is
    /// none.
    ///
    /// # Errors
    /// As [`list`](Self::list), and if the file can't be written, or would be taken from its user or group.
    pub fn create(
        &self,
        role: Role,
        name: ClientId,
        queues: Option<Vec<QueueName>>,
        now: Timestamp,
    ) -> Result<Key, KeysError> {
        self.create_with(role, name, queues, Rights::ALL, now)
    }

    /// The same with these rights, all of them for a worker.
    ///
    /// # Errors
    /// As [`create`](Self::create), and if the rights of a worker are held down.
    pub fn create_with(
        &self,
        role: Role,
        name: ClientId,
        queues: Option<Vec<QueueName>>,
        rights: Rights,
        now: Timestamp,
    ) -> Result<Key, KeysError> {
        if role == Role::Worker && !rights.is_all() {
            return Err(KeysError("a worker's key has no rights to choose from: name its queues only".to_owned()));
        }
        let key = Key::random()?;
        self.change(|entries| {
            let (id, sha256) = (key.id().to_owned(), key.digest());
            entries.push(KeyEntry { id, sha256, role, name, queues, rights, created: now, expires: None });
        })?;
        Ok(key)
    }

    /// Makes a key that may do what the key with this `id` may, and returns it; the old one is taken until `until`, or
    /// until it would have expired anyway. `None` if there is no such key, or it has expired.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn rotate(&self, id: &str, now: Timestamp, until: Timestamp) -> Result<Option<Key>, KeysError> {
        let key = Key::random()?;
        let rotated = self.change(|entries| {
            let old = entries.iter_mut().find(|entry| entry.id == id && !entry.is_expired(now))?;
            let (id, sha256) = (key.id().to_owned(), key.digest());
            let new = KeyEntry { id, sha256, created: now, ..old.clone() };
            old.expires = Some(old.expires.map_or(until, |expires| expires.min(until)));
            entries.push(KeyEntry { expires: None, ..new });
            Some(())
        })?;
        Ok(rotated.map(|()| key))
    }

    /// Removes the key with this id; a running relay that may read the file takes it no more within a second. `false` if there is none.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn revoke(&self, id: &str) -> Result<bool, KeysError> {
        self.change(|entries| {
            let before = entries.len();
            entries.retain(|entry| entry.id != id);
            entries.len() < before
        })
    }

    fn change<T>(&self, edit: impl FnOnce(&mut Vec<KeyEntry>) -> T) -> Result<T, KeysError> {
        // The file that a server reads through the same link.
        let is_link = fs::symlink_metadata(&self.path).is_ok_and(|found| found.is_symlink());
        let real = if is_link { fs::canonicalize(&self.path) } else { Ok(self.path.clone()) };
        let real = real.map_err(|error| self.failed("follow the link to", &error))?;
        let locked = PrivateFile::lock(&real).map_err(|error| self.failed("lock the directory of", &error))?;
        let mut entries = if self.path.exists() { self.list()? } else { Vec::new() };
        let made = edit(&mut entries);
        locked.replace(&self.print(entries)?).map_err(|error| self.failed("write", &error))?;
        Ok(made)
    }

    fn print(&self, entries: Vec<KeyEntry>) -> Result<String, KeysError> {
        let body = toml::to_string(&Document { key: entries })
            .map_err(|error| KeysError(format!("{}: can't be written: {error}", self.path.display())))?;
        let text = format!(
            "# API keys of relay, written by `relay keys`. Secrets are not here, only their SHA-256.\n\n{body}"
        );
        if text.len() as u64 > FILE_BYTES_MAX {
            let path = self.path.display();
            return Err(KeysError(format!("{path}: would be larger than {FILE_BYTES_MAX} bytes: revoke keys first")));
        }
        Ok(text)
    }

    fn parse(&self, text: &str) -> Result<Vec<KeyEntry>, KeysError> {
        let path = self.path.display();
        let document: Document = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            KeysError(format!("{path}:{line}: {}: correct it, or create the key anew", error.message()))
        })?;
        let mut seen = HashSet::new();
        for entry in &document.key {
            let wrong = |what: &str| {
                let needle = format!("\"{}\"", entry.id);
                let line = text.rfind(&needle).map_or(1, |start| line_of(text, start));
                KeysError(format!("{path}:{line}: key id {needle} {what}"))
            };
            if entry.role == Role::Worker && !entry.rights.is_all() {
                return Err(wrong("is a worker's, whose key has no rights to choose from: remove the line `rights`"));
            }
            if !seen.insert(&entry.id) {
                return Err(wrong("is there twice: remove one of them"));
            }
        }
        Ok(document.key)
    }

    fn failed(&self, what: &str, error: &std::io::Error) -> KeysError {
        KeysError(format!("{}: can't {what} the key file: {error}", self.path.display()))
    }
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.as_bytes().iter().take(byte).filter(|byte| **byte == b'\n').count()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
