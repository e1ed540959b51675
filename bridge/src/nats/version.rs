//! Which servers are new enough: relay needs message schedules and per-message expiry, which came with 2.12.

use std::fmt;

/// The oldest server that relay works with.
pub(super) const OLDEST: Version = Version { major: 2, minor: 12 };

/// A server's version; patches make no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Judges what a server says of itself.
    ///
    /// # Errors
    /// What is wrong, to be read after the server's name, and what to do.
    pub(super) fn accept(text: &str) -> Result<(), String> {
        match Self::read(text) {
            Some(found) if found >= OLDEST => Ok(()),
            Some(_) => Err(format!("has version {text}; relay needs {OLDEST} or newer: upgrade the server")),
            None => Err(format!("says its version is `{text}`; relay needs nats-server {OLDEST} or newer")),
        }
    }

    /// Of `2.15.1` or `2.12.0-RC.1`.
    fn read(text: &str) -> Option<Self> {
        let mut numbers = text.trim_start_matches('v').split('.').map(|number| number.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()?? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_from_2_12_on_are_accepted() {
        for text in ["2.12.0", "2.12.0-RC.1", "2.15.1", "3.0.0", "v2.14.6"] {
            assert_eq!(Version::accept(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn an_older_server_is_refused_with_its_version_and_what_to_do() {
        for text in ["2.9.10", "2.11.99", "1.4.1", "", "dev"] {
            let refused = Version::accept(text).unwrap_err();
            assert!(refused.contains(text) && refused.contains("2.12"), "{refused}");
        }
    }
}
