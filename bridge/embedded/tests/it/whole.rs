//! The suite itself: no promise that was written is left out of the list that adapters run.

use std::collections::BTreeSet;
use std::path::PathBuf;

use relay_conformance::{COLUMNS, Column, Fixture as _, PROMISES, document};

use crate::fixture::Fixture;

#[test]
fn every_promise_that_is_written_is_run() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../conformance/src");
    let mut written = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            if let Some((name, _)) = line.strip_prefix("pub async fn ").and_then(|rest| rest.split_once('(')) {
                written.insert((module.clone(), name.to_owned()));
            }
        }
    }
    let run: BTreeSet<_> = PROMISES.iter().map(|(module, name)| ((*module).to_owned(), (*name).to_owned())).collect();
    assert_eq!(run, written);
    assert_eq!(run.len(), PROMISES.len(), "each is listed once");
}

#[test]
fn the_table_in_the_docs_is_what_the_suite_runs() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/conformance.md");
    if std::env::var_os("RELAY_BLESS").is_some() {
        std::fs::write(&path, document()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == document(), "docs/conformance.md is old: write it with RELAY_BLESS=1 and this test");
    for column in COLUMNS {
        let groups = column.groups.unwrap_or_default();
        assert!(groups.iter().all(|group| PROMISES.iter().any(|(known, _)| known == group)), "{groups:?}");
    }
}

#[tokio::test]
async fn the_embedded_broker_is_as_the_table_says() {
    for (name, fixture) in [("embedded_memory", Fixture::memory().await), ("embedded_disk", Fixture::disk().await)] {
        assert_eq!(fixture.broker().capabilities, Column::of(name).capabilities, "{name}");
    }
}
