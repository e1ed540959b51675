//! relay's pages in a real browser.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests fail and speak as tests do")]

#[path = "../cli_support/mod.rs"]
mod cli_support;
mod dashboard;
mod docs_page;
mod support;
