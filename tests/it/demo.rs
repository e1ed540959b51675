//! `relay demo`: its counts agree, on the project's own sources and on other files.

use std::fs;

use crate::cli_support::{code, json_lines, run, stderr, stdout};

#[test]
fn the_demo_loses_nothing_and_runs_nothing_again() {
    let output = run(["demo", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report = &json_lines(&output)[0];
    let files = report["files"].as_u64().unwrap();
    assert!(files >= 50, "{report}");
    for count in ["accepted", "results", "succeeded", "replayed"] {
        assert_eq!(report[count], files, "{count}: {report}");
    }
    assert!(report["verified"].is_null() || report["verified"] == files, "{report}");
    for count in ["lost", "second_results", "handler_starts_in_replay"] {
        assert_eq!(report[count], 0, "{count}: {report}");
    }
    assert_eq!((&report["store"]["jobs"], &report["store"]["results"]), (&files.into(), &files.into()), "{report}");
    assert_eq!(report["server_killed"], true);
    // Another worker restarted the jobs that the killed worker had in its hands.
    let held = report["jobs_held_by_killed_worker"].as_u64().unwrap();
    assert!(held >= 1 && report["jobs_started_twice"].as_u64().unwrap() >= held, "{report}");
    assert_eq!(report["disagreements"].as_array().unwrap().len(), 0);
}

#[test]
fn the_demo_takes_other_files_and_another_command() {
    let dir = tempfile::tempdir().unwrap();
    for at in 0..12 {
        fs::write(dir.path().join(format!("{at}.txt")), "a line\n".repeat(at)).unwrap();
    }
    let args = ["demo", "--json", "--spare-server", dir.path().to_str().unwrap(), "--", "wc", "-l"];
    let output = run(args);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let report = &json_lines(&output)[0];
    assert_eq!((&report["files"], &report["command"]), (&12.into(), &"wc -l".into()));
    assert_eq!((&report["server_killed"], &report["replayed"]), (&false.into(), &12.into()));
}

#[test]
fn the_demo_refuses_what_is_too_little_to_show_anything() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("one"), "1").unwrap();
    for args in [&["demo", dir.path().to_str().unwrap()][..], &["demo", "/no/such/file"]] {
        assert_eq!(code(&run(args)), 2, "{args:?}");
    }
}

#[test]
fn the_demo_refuses_a_command_that_is_not_there_before_anything_starts() {
    let refused = run(["demo", "--", "no-such-program"]);
    assert_eq!((code(&refused), stdout(&refused)), (2, ""), "{refused:?}");
    assert!(stderr(&refused).contains("no program `no-such-program` in PATH"), "{refused:?}");
    assert!(!stderr(&refused).contains("workers"), "{refused:?}");
}
