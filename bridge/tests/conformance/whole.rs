//! The suite itself: no promise that was written is left out of the list that adapters run.

use std::collections::BTreeSet;
use std::path::PathBuf;

use relay_bridge::conformance::PROMISES;

#[test]
fn every_promise_that_is_written_is_run() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/conformance");
    let mut written = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
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
