//! Mistakes in the files that say who may call: each with its place, and what to write instead.

use std::fmt;
use std::path::PathBuf;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file that it is in.
    pub file: PathBuf,
    /// The line, from 1: the place of the value, or of what holds it. 0 for the file as a whole.
    pub line: usize,
    /// The mistake, with the value.
    pub what: String,
    /// The way to correct it.
    pub fix: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, fix } = self;
        match line {
            0 => write!(f, "{}: {what}\n      {fix}", file.display()),
            line => write!(f, "{}:{line}: {what}\n      {fix}", file.display()),
        }
    }
}

/// Everything that is wrong in the files, by file and line. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "{} {noun} in the files that say who may call", self.0.len())?;
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}
