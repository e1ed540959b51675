//! The server versions that are new enough: relay needs message schedules and per-message expiry, which came with 2.12.

use std::fmt;

/// The oldest server that relay works with.
pub(crate) const OLDEST: Version = Version { major: 2, minor: 12, patch: 0 };
/// The oldest server whose permissions hold: before it, a `Nats-Trace-Dest` header had a publisher's traces stored on any
/// subject, so also in the place of another client's job (CVE-2026-33249, <https://nvd.nist.gov/vuln/detail/CVE-2026-33249>).
const PERMISSIONS_HOLD: Version = Version { major: 2, minor: 12, patch: 6 };

/// A server's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Judges what a server says of itself.
    ///
    /// # Errors
    /// The problem, to be read after the server's name, and what to do.
    pub(crate) fn accept(text: &str) -> Result<(), String> {
        match Self::read(text) {
            Some(found) if found >= OLDEST => Ok(()),
            Some(_) => Err(format!("has version {text}; relay needs {OLDEST} or newer: upgrade the server")),
            None => Err(format!("says its version is `{text}`; relay needs nats-server {OLDEST} or newer")),
        }
    }

    /// A warning for the operator of a server that relay works with.
    pub(crate) fn warning(text: &str) -> Option<String> {
        let found = Self::read(text).filter(|found| *found < PERMISSIONS_HOLD)?;
        Some(format!(
            "has version {found}, in which permissions do not keep clients from each other's jobs (CVE-2026-33249): upgrade \
             it to {PERMISSIONS_HOLD} or newer"
        ))
    }

    /// Reads a version such as `2.15.1` or `2.12.0-RC.1`.
    fn read(text: &str) -> Option<Self> {
        let text = text.trim_start_matches('v');
        let mut numbers = text.split(['.', '-', '+']).map(|number| number.parse().ok());
        Some(Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next().flatten().unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
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

    #[test]
    fn a_server_whose_permissions_do_not_hold_is_warned_of() {
        for text in ["2.12.0", "2.12.5", "2.12.5-RC.1", "2.12.5+x"] {
            assert!(Version::warning(text).unwrap().contains("2.12.6"), "{text}");
        }
        for text in ["2.12.6", "2.12.11", "2.14.0-RC.1", "2.15.1", "3.0.0"] {
            assert_eq!(Version::warning(text), None, "{text}");
        }
    }
}
