//! The one suite that every adapter runs.
