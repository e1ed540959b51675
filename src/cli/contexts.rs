//! Contexts: several relays under names, each with its address and key, in one file that only its owner may read.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use relay_bridge::contract::ClientId;
use serde::{Deserialize, Serialize};

use super::exit::CliError;
use crate::private_file::PrivateFile;

/// Names the file instead of `relay/contexts.toml` in the user's folder for configuration.
pub(crate) const FILE_VARIABLE: &str = "RELAY_CONTEXTS";
/// The largest file, in bytes; some thousand contexts.
const FILE_BYTES_MAX: u64 = 256 * 1024;
/// The longest name of a context, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// One relay, as a client reaches it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Its address.
    pub(crate) server: String,
    /// The API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api_key: Option<String>,
    /// The client's name, for a relay without authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client: Option<ClientId>,
    /// The address of its admin port, for operators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<String>,
    /// The token that the admin port asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin_token: Option<String>,
    /// The file of the authorities that may sign the server's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    /// The file of the certificate that is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<PathBuf>,
    /// The file of its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_key: Option<PathBuf>,
}

/// The content of the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one that is used where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// All of them, by name.
    #[serde(default)]
    pub(crate) context: BTreeMap<String, Context>,
}

impl Contexts {
    /// Reads the file; nothing if there is none.
    ///
    /// # Errors
    /// If others may read it, or it is not what relay writes: both say what to do.
    pub(crate) fn read() -> Result<Self, CliError> {
        match path() {
            Some(path) => read(&path),
            None => Ok(Self::default()),
        }
    }

    /// The context of this name; without one the current one, if there is any.
    ///
    /// # Errors
    /// If it is named and not there.
    pub(crate) fn pick(&self, name: Option<&str>) -> Result<Option<&Context>, CliError> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        self.context.get(name).map(Some).ok_or_else(|| unknown(name))
    }
}

/// Changes the file: what `edit` leaves is written, unless it fails.
///
/// # Errors
/// As [`Contexts::read`], what `edit` says, and if the file can't be written.
pub(crate) fn change<T>(edit: impl FnOnce(&mut Contexts) -> Result<T, CliError>) -> Result<T, CliError> {
    let path = path().ok_or_else(|| {
        CliError::usage("there is no folder for contexts: HOME is not set")
            .hint(format!("name a file in {FILE_VARIABLE}"))
    })?;
    let failed = |error: &io::Error| CliError::usage(format!("cannot write {}: {error}", path.display()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| failed(&error))?;
    }
    let locked = PrivateFile::lock(&path).map_err(|error| failed(&error))?;
    let mut contexts = read(&path)?;
    let made = edit(&mut contexts)?;
    let text = toml::to_string(&contexts).map_err(|error| CliError::failed(format!("cannot encode: {error}")))?;
    locked.replace(&text).map_err(|error| failed(&error))?;
    Ok(made)
}

/// Whether `text` can be a context's name: it stands on command lines and in a file.
///
/// # Errors
/// The form that the name must have.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(good);
    fits.then(|| text.to_owned())
        .ok_or_else(|| format!("a context's name has 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`"))
}

/// The refusal of a name that no context has.
pub(crate) fn unknown(name: &str) -> CliError {
    CliError::usage(format!("there is no context {name}")).hint("`relay context list` shows those that are there")
}

fn path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(FILE_VARIABLE).or_else(|| {
        let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
        Some(folder.join("relay").join("contexts.toml"))
    })
}

fn read(path: &Path) -> Result<Contexts, CliError> {
    let shown = path.display();
    let unreadable = |error: &io::Error| CliError::usage(format!("cannot read {shown}: {error}"));
    let meta = match std::fs::metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Contexts::default());
        }
        meta => meta.map_err(|error| unreadable(&error))?,
    };
    if meta.mode() & 0o077 != 0 {
        return Err(CliError::usage(format!("{shown} has keys in it, and others than its owner may read it"))
            .hint(format!("chmod 600 {shown}")));
    }
    if meta.len() > FILE_BYTES_MAX {
        return Err(CliError::usage(format!("{shown} is larger than {FILE_BYTES_MAX} bytes: remove contexts from it")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error))?;
    toml::from_str(&text).map_err(|error| {
        let line =
            error.span().map_or(1, |span| 1 + text.as_bytes()[..span.start].iter().filter(|b| **b == b'\n').count());
        CliError::usage(format!("{shown}:{line}: {}", error.message())).hint("correct the line, or remove the file")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_found_by_name_and_else_the_current_one_is_meant() {
        let of = |server: &str| Context { server: server.to_owned(), ..Context::default() };
        let mut contexts = Contexts::default();
        assert!(contexts.pick(None).unwrap().is_none());
        contexts.context = [("a".to_owned(), of("http://a")), ("b".to_owned(), of("http://b"))].into();
        contexts.current = Some("b".to_owned());
        assert_eq!(contexts.pick(None).unwrap(), Some(&of("http://b")));
        assert_eq!(contexts.pick(Some("a")).unwrap(), Some(&of("http://a")));
        assert!(contexts.pick(Some("c")).is_err());
        assert!(name("prod-eu.1").is_ok() && name("").is_err() && name("a b").is_err());
    }
}
