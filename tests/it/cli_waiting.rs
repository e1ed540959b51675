//! The words that a person reads: of a command that has to wait, or has nothing to wait for, and of a handler that fails.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use crate::cli_support::{Running, code, json_lines, nobody, relay, run, run_with, stderr, stdout};
use tempfile::tempdir;

#[test]
fn a_result_that_does_not_come_in_time_is_said_with_the_id_and_an_exit_code_of_its_own() {
    let dev = Running::dev(&[], "read -r line; test \"$line\" = now || sleep 600; echo done");
    let late = run_with(["submit", "--wait=1s", "--key", "k", "--server", &dev.url()], b"later\n");
    assert_eq!((code(&late), stdout(&late)), (75, ""), "nothing that could be taken for a result: {late:?}");
    let listed = run(["jobs", "show", "--queue", "default", "--key", "k", "--json", "--server", &dev.url()]);
    let id = json_lines(&listed)[0]["job_id"].as_str().unwrap().to_owned();
    for part in
        [&format!("job {id} is not finished yet"), &format!("hint: the job continues: `relay result {id} --wait`")]
    {
        assert!(stderr(&late).contains(part.as_str()), "{part}: {}", stderr(&late));
    }
    let asked = run(["result", &id, "--server", &dev.url()]);
    assert_eq!((code(&asked), stdout(&asked)), (75, ""), "{asked:?}");
    let json = run_with(["submit", "--wait=1s", "--json", "--key", "k", "--server", &dev.url()], b"later\n");
    assert_eq!((code(&json), json_lines(&json)[0]["job_id"].as_str()), (75, Some(id.as_str())));
    assert!(json_lines(&json)[0].get("outcome").is_none() && json_lines(&json)[0]["error"].is_string());
    let done = run_with(["submit", "--wait=60s", "--server", &dev.url()], b"now\n");
    assert_eq!((code(&done), stdout(&done)), (0, "done\n"), "{done:?}");
}

#[test]
fn nothing_is_submitted_where_a_file_can_not_be_opened_or_a_line_is_no_job() {
    let (dev, dir) = (Running::dev(&["--keep-keyless"], "cat"), tempdir().unwrap());
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let (good, folder) = (file("good", "x"), dir.path().display().to_string());
    let lines = file("lines", "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n{\"txt\": \"c\"}\n");
    for (args, says) in [
        (vec!["submit", good.as_str(), "/nowhere/missing", &good], "cannot read /nowhere/missing"),
        (vec!["submit", &good, &folder], "is a folder"),
        (vec!["submit", "--ndjson", &lines], "lines:4: "),
    ] {
        let refused = run(args.iter().copied().chain(["--server", &dev.url()]));
        assert_eq!((code(&refused), stdout(&refused)), (2, ""), "{refused:?}");
        assert!(stderr(&refused).contains(says) && stderr(&refused).contains("Nothing was submitted"), "{refused:?}");
    }
    let listed = run(["jobs", "list", "--json", "--server", &dev.url()]);
    assert_eq!((code(&listed), json_lines(&listed).len()), (0, 0), "{listed:?}");
    dev.stop();
}

#[test]
fn a_refused_connection_fails_at_once_where_something_is_read_and_operators_learn_of_the_admin_port() {
    let (_held, server) = nobody();
    let id = "996f7316-af4b-8929-b4cd-9cbafe8c55ec";
    for args in [&["whoami"][..], &["jobs", "list"], &["jobs", "show", id], &["result", id], &["results"]] {
        let refused = run(args.iter().copied().chain(["--server", &server]));
        assert_eq!(code(&refused), 69, "{args:?}: {refused:?}");
        assert!(stderr(&refused).contains("relay dev -- COMMAND"), "{args:?}: {refused:?}");
        assert!(!stderr(&refused).contains("trying again"), "{args:?}: {refused:?}");
    }
    for args in [&["queues", "list"][..], &["queues", "show", "default"], &["dead", "list"], &["dead", "show", id]] {
        let refused = run(args.iter().copied().chain(["--admin-server", &server]));
        assert_eq!(code(&refused), 69, "{args:?}: {refused:?}");
        assert!(stderr(&refused).contains("--admin 127.0.0.1:7412"), "{args:?}: {refused:?}");
        assert!(!stderr(&refused).contains("trying again"), "{args:?}: {refused:?}");
    }
}

#[test]
fn a_command_that_waits_says_for_what_and_for_how_long() {
    let first_line = |args: &[&str]| {
        let mut command = relay(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let mut said = BufReader::new(command.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        command.kill().unwrap();
        command.wait().unwrap();
        said.read_to_string(&mut String::new()).unwrap();
        line
    };
    let (_held, server) = nobody();
    let away = first_line(&["submit", "--server", &server]);
    assert!(away.contains(&server) && away.contains("trying again, for up to 1m"), "{away}");
    let dev = Running::dev(&[], "sleep 600");
    let forever = first_line(&["submit", "--wait", "--server", &dev.url()]);
    assert_eq!(forever, "Waiting for the result of the job from stdin, as long as it takes.\n");
    let limited = first_line(&["submit", "--wait=5m", "--key", "k", "--server", &dev.url()]);
    assert_eq!(limited, "Waiting for the result of the job from stdin, for up to 5m.\n");
}

#[test]
fn a_handler_that_fails_is_told_of_at_every_attempt_and_at_the_end() {
    let handler = "read -r line; echo \"cannot open /etc/app.conf\" >&2; exit 3";
    let mut dev = relay(["dev", "--json", "--listen", "127.0.0.1:0", "--max-attempts", "2", "--", "sh", "-c", handler])
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(dev.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let server = format!("http://{}", ready["listening"]["http"].as_str().unwrap());
    assert_eq!(code(&run_with(["submit", "--key", "k-1", "--server", &server], b"x\n")), 0);
    let mut told = Vec::new();
    for line in BufReader::new(dev.stderr.take().unwrap()).lines().map(Result::unwrap) {
        if line.contains("WARN") && line.contains("job_id=") {
            told.push(line);
        }
        if told.len() == 2 {
            break;
        }
    }
    dev.kill().unwrap();
    dev.wait().unwrap();
    let why = "exit-code: the command exited with 3: cannot open /etc/app.conf";
    for part in [&format!("attempt 1 of 2 failed: {why}; again in "), "key=k-1", "client=dev"] {
        assert!(told[0].contains(part), "{part}: {told:?}");
    }
    for part in [
        "run ended: exit-code: attempt 2 of 2, the last one: the command exited with 3",
        "outcome=exhausted",
        "key=k-1",
        "client=dev",
    ] {
        assert!(told[1].contains(part), "{part}: {told:?}");
    }
}
