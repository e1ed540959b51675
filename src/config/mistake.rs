//! Mistakes in a file: their place, and what to write instead.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mistake {
    /// The line, from 1; the place of the value, or of what holds it.
    pub(crate) line: usize,
    /// The key, such as `listen.http` or `queue.orders.lease`.
    pub(crate) key: String,
    /// The mistake, with the value.
    pub(crate) what: String,
    /// The way to correct it.
    pub(crate) fix: String,
}

/// Everything that is wrong in a file, by line. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistakes {
    /// The file.
    pub(crate) file: PathBuf,
    /// The mistakes in it.
    pub(crate) all: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.all.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "{} has {count} {noun}", self.file.display())?;
        for Mistake { line, key, what, fix } in &self.all {
            let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
            write!(f, "\n  {}:{line}: {key}{what}\n      {fix}", self.file.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// The one of `known` that was probably meant: a slip of the pen away, or the same words in another spelling.
#[must_use]
pub(crate) fn meant<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let text = plain(text);
    let slips = text.chars().count() / 3;
    let scored = known.into_iter().map(|known| (distance(&text, &plain(known)), known));
    scored
        .filter(|(distance, _)| *distance <= slips.clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// How many letters have to be put in, left out, replaced or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().take(100).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let swapped = if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    rows[i - 2][j - 2] + 1
                } else {
                    usize::MAX
                };
                replaced.min(swapped).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1)
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_a_slip_away() {
        let known = ["lease", "lease_max", "retention", "dead_retention", "max_attempts"];
        for (text, expected) in [
            ("retentoin", Some("retention")),
            ("retenton", Some("retention")),
            ("max-attempts", Some("max_attempts")),
            ("Lease", Some("lease")),
            ("leese", Some("lease")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(meant(text, known), expected, "{text}");
        }
    }
}
