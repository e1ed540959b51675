//! The settings of the audit.

use std::path::PathBuf;

use serde::Deserialize;

use super::super::kind::Kind;
use super::{Setting, Table, switch, table, value};

table! {
    /// A line for each call that changes something, and for those who were not let in: who, how relay knows, from where, what,
    /// and how it ended. No payload, no secret and no header's value is in it. See `docs/security.md`.
    "audit", Some("Audit"), Audit {
        /// Append the lines to this file, as JSON. It has mode 0600, and SIGHUP opens it anew. Without it they are lines of the log,
        /// whose target is `audit`
        file: Option<PathBuf> = value("audit", "RELAY_AUDIT", "FILE", Kind::Path);
        /// The calls that have a line
        level: AuditLevel = value("audit-level", "RELAY_AUDIT_LEVEL", "AUDIT_LEVEL", Kind::Choice(&[
            ("off", "None"),
            ("changes", "Those that change something and are not in the store anyway, sessions of workers, what operators do, \
              and refusals of access"),
            ("all", "Submissions, reads and leases as well"),
        ])).or("changes");
        /// Answer 503 `overloaded` to a call that should have a line, and can't have one because the file can't be written. Without
        /// it such lines are counted, and calls go on
        required: bool = switch("audit-required", "RELAY_AUDIT_REQUIRED");
    }
}

/// The calls that have a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AuditLevel {
    /// None.
    Off,
    /// Those that change something.
    Changes,
    /// Every one.
    All,
}
