//! A client's work at the command line, from outside: the built binary against a server of its own.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use crate::cli_support::{Running, code, json_lines, nobody, relay, run, run_with, stderr, stdout};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::tempdir;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn submit(dev: &Running, key: &str) -> String {
    let output = run_with(["submit", "--wait", "--json", "--key", key, "--server", &dev.url()], key.as_bytes());
    json_lines(&output)[0]["job_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_client_that_came_back_finds_jobs_and_results_by_the_keys_that_it_makes() {
    let dev = Running::dev(&[], "cat");
    for key in ["night-1", "day-1", "night-2"] {
        let args = ["submit", "--wait", "--key", key, "--meta", "order=7", "--server", &dev.url()];
        assert_eq!(code(&run_with(args, key.as_bytes())), 0);
    }
    let keys = |command: &[&str], prefix: &str| {
        let more = ["--json", "--key-prefix", prefix, "--server", &dev.url()];
        let found = run(command.iter().chain(&more));
        assert_eq!(code(&found), 0, "{found:?}");
        let of = |line: &Value| (line["key"].as_str().unwrap().to_owned(), line["meta"]["order"].clone());
        json_lines(&found).iter().map(of).collect::<Vec<_>>()
    };
    let [one, two] = ["night-1", "night-2"].map(|key| (key.to_owned(), Value::from("7")));
    assert_eq!(keys(&["results"], "night-"), [one.clone(), two.clone()]);
    assert_eq!(keys(&["jobs", "list"], "night-"), [two, one]);
    assert_eq!((keys(&["results"], "week"), keys(&["jobs", "list"], "week")), (vec![], vec![]));
    let table = run(["results", "--key-prefix", "day-", "--server", &dev.url()]);
    assert!(stdout(&table).contains(" default key day-1 attempt 1 "), "{table:?}");
    dev.stop();
}

/// A server that is not relay: it gives each of `answers` to one connection, one after the other, and is gone.
fn another(answers: &'static [&'static str]) -> (String, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let serve = move || {
        for answer in answers {
            let (mut peer, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                peer.read_exact(&mut byte).unwrap();
                head.extend_from_slice(&byte);
            }
            peer.write_all(answer.as_bytes()).unwrap();
        }
    };
    (server, thread::spawn(serve))
}

#[test]
fn something_else_at_the_address_is_told_with_where_it_leads_and_how_to_name_relay() {
    for (answer, told) in [
        (
            &["HTTP/1.1 301 Moved\r\nlocation: https://relay.example/v1/whoami\r\ncontent-length: 0\r\n\r\n"][..],
            "status 301, it leads to https://relay.example/v1/whoami",
        ),
        (&["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"], "status 404, without a problem"),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>"], "can't be read"),
    ] {
        let (server, serving) = another(answer);
        let output = run(["whoami", "--server", &server]);
        serving.join().unwrap();
        let said = stderr(&output);
        assert_eq!(code(&output), 1, "{said}");
        assert!(said.contains(told) && said.contains("\nhint: ") && said.contains("--server"), "{said}");
    }
}

#[test]
fn a_result_that_is_not_waited_for_says_nothing_of_a_wait_however_long_its_server_takes() {
    let (server, serving) = another(&[
        "HTTP/1.1 503 Busy\r\nretry-after: 2\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
    ]);
    let output = run(["result", "0193a4b0-0000-7000-8000-000000000000", "--server", &server]);
    serving.join().unwrap();
    let said = stderr(&output);
    assert!(code(&output) == 1 && said.contains("status 404") && !said.contains("Waiting"), "{said}");
}

#[test]
fn jobs_are_listed_newest_first_by_queue_and_state_and_found_by_key() {
    let dev = Running::dev(&["--queue", "mail", "--queue", "sms"], "grep -q good");
    let ids: Vec<_> = ["good-1", "bad-1", "good-2"]
        .iter()
        .map(|key| {
            let args = ["submit", "--wait", "--json", "--queue", "mail", "--key", key, "--server", &dev.url()];
            json_lines(&run_with(args.iter().chain(&["--meta", "order=7"]), key.as_bytes()))[0]["job_id"].clone()
        })
        .collect();
    let list = |more: &[&str]| {
        let output = run(["jobs", "list", "--json", "--server", &dev.url()].iter().chain(more));
        assert_eq!(code(&output), 0, "{output:?}");
        json_lines(&output).iter().map(|job| job["job_id"].clone()).collect::<Vec<_>>()
    };
    let [good1, bad, good2] = [&ids[0], &ids[1], &ids[2]].map(Value::clone);
    assert_eq!(list(&[]), [good2.clone(), bad.clone(), good1.clone()]);
    assert_eq!(list(&["--limit", "1"]), std::slice::from_ref(&good2));
    assert_eq!(list(&["--all", "--state", "succeeded"]), [good2, good1.clone()]);
    assert_eq!(list(&["--queue", "sms"]), Vec::<Value>::new());

    let shown = run(["jobs", "show", "--queue", "mail", "--key", "good-1", "--server", &dev.url()]);
    assert!(stdout(&shown).contains(good1.as_str().unwrap()), "{shown:?}");
    assert!(stdout(&shown).contains("order=7"), "{shown:?}");
    let table = run(["jobs", "list", "--server", &dev.url()]);
    assert_eq!(stdout(&table).lines().count(), 4, "a header and a line for each: {table:?}");
    assert!(stdout(&table).lines().nth(1).unwrap().ends_with("good-2"), "the client's own key: {table:?}");
    let wrong = run(["jobs", "list", "--state", "lost", "--server", &dev.url()]);
    assert_eq!(code(&wrong), 2, "{wrong:?}");
    dev.stop();
}

#[test]
fn a_queue_that_is_not_there_is_told_to_a_client_who_asks_for_its_jobs_or_results() {
    let dev = Running::dev(&["--queue", "mail"], "cat");
    for command in [&["jobs", "list"][..], &["jobs", "list", "--json"], &["results"], &["results", "--json"]] {
        let empty = run(command.iter().chain(&["--queue", "mail", "--server", &dev.url()]));
        assert_eq!(code(&empty), 0, "{empty:?}");
        let refused = run(command.iter().chain(&["--queue", "mial", "--server", &dev.url()]));
        assert_eq!((code(&refused), stdout(&refused)), (1, ""), "{refused:?}");
        assert!(stderr(&refused).contains("there is no queue mial"), "{refused:?}");
    }
    let mut follower = relay(["results", "--follow", "--queue", "mial", "--server", &dev.url()]).spawn().unwrap();
    let warned = BufReader::new(follower.stderr.take().unwrap()).lines().next().unwrap().unwrap();
    assert!(warned.contains("there is no queue mial"), "{warned}");
    follower.kill().unwrap();
    follower.wait().unwrap();
    dev.stop();
}

#[test]
fn a_finished_job_is_run_again_once_however_often_it_is_asked_and_then_erased() {
    let dev = Running::dev(&[], "cat");
    let id = submit(&dev, "k");
    for _ in 0..2 {
        let again = run(["jobs", "rerun", &id, "--from", "1", "--json", "--server", &dev.url()]);
        assert_eq!(json_lines(&again)[0]["generation"], 2, "{again:?}");
    }
    assert_eq!(stdout(&run(["result", &id, "--wait", "--server", &dev.url()])), "k");
    let shown = run(["jobs", "show", &id, "--server", &dev.url()]);
    assert!(stdout(&shown).contains("generation    2"), "{shown:?}");

    assert_eq!(code(&run(["jobs", "erase", &id, "--server", &dev.url()])), 0);
    let gone = run(["result", &id, "--server", &dev.url()]);
    assert_eq!(code(&gone), 1);
    assert!(stderr(&gone).contains("result-expired"), "{gone:?}");
    dev.stop();
}

#[test]
fn a_reader_of_results_that_was_stopped_reads_on_with_nothing_missing_and_nothing_twice() {
    let dir = tempdir().unwrap();
    let [place, data] = ["place", "data"].map(|name| dir.path().join(name));
    let mut dev = Running::dev(&["--data", path(&data)], "cat");
    let mut seen = Vec::new();
    let follow = |dev: &Running| {
        let args = ["results", "--follow", "--json", "--resume", path(&place), "--server", &dev.url()];
        let mut child = relay(args).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    };
    let job = |line: Option<std::io::Result<String>>| {
        serde_json::from_str::<Value>(&line.unwrap().unwrap()).unwrap()["job_id"].as_str().unwrap().to_owned()
    };
    let mut expected = Vec::new();
    for round in 0..3 {
        // Two while nobody reads, two while somebody does.
        expected.extend((0..2).map(|n| submit(&dev, &format!("{round}-away-{n}"))));
        let (mut child, mut lines) = follow(&dev);
        seen.extend((0..2).map(|_| job(lines.next())));
        for n in 0..2 {
            expected.push(submit(&dev, &format!("{round}-there-{n}")));
            seen.push(job(lines.next()));
        }
        if round == 1 {
            // The server goes away and comes back: the reader stays, and goes on.
            let address = dev.url();
            dev.stop();
            let listen = &address["http://".len()..];
            let args = ["dev", "--json", "--listen", listen, "--data", path(&data), "--", "cat"];
            dev = Running::start(args);
            expected.push(submit(&dev, "after-the-restart"));
            seen.push(job(lines.next()));
        }
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(lines.next().is_none());
    }
    assert_eq!(seen, expected);
    let rest = run(["results", "--json", "--resume", path(&place), "--server", &dev.url()]);
    assert_eq!((code(&rest), stdout(&rest)), (0, ""));
    let all = run(["results", "--server", &dev.url()]);
    assert_eq!(stdout(&all).lines().count(), expected.len());
    let cursor = stdout(&all).lines().nth(9).unwrap().rsplit(' ').next().unwrap();
    let behind = run(["results", "--json", "--after", cursor, "--server", &dev.url()]);
    assert_eq!(json_lines(&behind).len(), expected.len() - 10);
    let now = run(["results", "--after", "now", "--server", &dev.url()]);
    assert_eq!((code(&now), stdout(&now)), (0, ""));
    let garbage = run(["results", "--after", "garbage", "--server", &dev.url()]);
    assert_eq!(code(&garbage), 1, "{garbage:?}");
    dev.stop();
}

#[test]
fn lines_are_jobs_with_their_own_keys_and_a_bad_line_says_where_it_is() {
    let dev = Running::dev(&[], "cat");
    let lines = concat!(
        "{\"key\": \"a\", \"payload\": {\"n\": 1}}\n",
        "\n",
        "{\"text\": \"two\", \"meta\": {\"who\": \"me\"}}\n",
        "{\"payload_base64\": \"AP8=\"}\n",
        "{\"text\": \"x\", \"payload\": 1}\n",
    );
    let submit = || {
        let args = ["submit", "--ndjson", "--wait", "--json", "--key", "import-7", "--server", &dev.url()];
        run_with(args, lines.as_bytes())
    };
    let first = submit();
    assert_eq!(code(&first), 2, "{first:?}");
    assert!(stderr(&first).contains("-:5: it needs exactly one of"), "{first:?}");
    let first = json_lines(&first);
    let types: Vec<_> = first[..3].iter().map(|line| line["content_type"].clone()).collect();
    assert_eq!(types.len(), 3);
    let payload = |id: &Value| run(["result", id.as_str().unwrap(), "--server", &dev.url()]).stdout;
    assert_eq!(payload(&first[0]["job_id"]), b"{\"n\": 1}");
    assert_eq!(payload(&first[1]["job_id"]), b"two");
    assert_eq!(payload(&first[2]["job_id"]), [0, 255]);
    let again = json_lines(&submit());
    for (first, again) in first.iter().zip(&again).take(3) {
        assert_eq!((&first["job_id"], &again["replayed"]), (&again["job_id"], &true.into()));
    }
    let by_key = run(["jobs", "show", "--queue", "default", "--key", "import-7/1", "--json", "--server", &dev.url()]);
    assert_eq!(json_lines(&by_key)[0]["meta"]["who"], "me");
    dev.stop();
}

#[test]
fn results_of_several_jobs_end_their_lines_and_that_of_one_is_what_the_handler_left() {
    let dev = Running::dev(&[], "cat");
    let submit = |more: &[&str], input: &str| {
        let output = run_with(["submit", "--wait", "--server", &dev.url()].iter().chain(more), input.as_bytes());
        assert_eq!(code(&output), 0, "{output:?}");
        stdout(&output).to_owned()
    };
    let lines = "{\"text\": \"one\"}\n{\"text\": \"two\\n\"}\n{\"text\": \"three\"}\n";
    assert_eq!(submit(&["--ndjson"], lines), "one\ntwo\nthree\n");
    let as_json = submit(&["--ndjson", "--json"], lines);
    assert!(as_json.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()) && as_json.lines().count() == 3);
    assert_eq!(submit(&[], "one"), "one");
    let dir = tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    fs::write(&a, "first").unwrap();
    fs::write(&b, "second").unwrap();
    assert_eq!(submit(&[path(&a), path(&b)], ""), "first\nsecond\n");
    dev.stop();
}

#[test]
fn whoami_says_who_one_is_and_what_is_left() {
    let dev = Running::dev(&["--queue", "mail"], "cat");
    let told = run(["whoami", "--client", "shop", "--server", &dev.url()]);
    assert_eq!(code(&told), 0, "{told:?}");
    for part in [
        "client            shop",
        "authenticated by  development",
        "queues            all",
        "mail",
        "1000000",
        "256.0 KiB",
    ] {
        assert!(stdout(&told).contains(part), "{part} is not in\n{}", stdout(&told));
    }
    let json = run(["whoami", "--json", "--server", &dev.url()]);
    assert_eq!((&json_lines(&json)[0]["client"], stdout(&json).lines().count()), (&"dev".into(), 1));
    dev.stop();
}

#[test]
fn lines_are_submitted_as_they_come() {
    let dev = Running::dev(&[], "cat");
    let mut child = relay(["submit", "--ndjson", "--wait", "--json", "--server", &dev.url()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut output = output.lines();
    for n in 0..3 {
        writeln!(input, "{{\"payload\": {n}}}").unwrap();
        // Its result is there while stdin stays open.
        let line: Value = serde_json::from_str(&output.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["outcome"], "succeeded");
    }
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    dev.stop();
}

#[test]
fn a_submission_whose_answer_was_lost_tells_the_key_that_makes_it_the_same_job() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    let taken = thread::spawn(move || {
        // Its request is taken, and nothing is answered.
        let mut lines = BufReader::new(server.accept().unwrap().0).lines().map(Result::unwrap);
        let key = lines.find_map(|line| Some(line.to_lowercase().strip_prefix("idempotency-key: ")?.to_owned()));
        key.unwrap()
    });
    let output = run_with(["submit", "--server", &url, "--retry-for", "0s"], b"hello");
    assert_eq!(code(&output), 69, "{}", stderr(&output));
    let key = taken.join().unwrap();
    let told = format!("under the key `{}`, submitting again is the same job", key.trim_matches('"'));
    assert!(stderr(&output).contains(&told), "{}", stderr(&output));
}

#[test]
fn a_pattern_stands_for_the_files_that_match_it() {
    let dir = tempdir().unwrap();
    for name in ["a.csv", "b.csv", "c.txt"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let dev = Running::dev(&[], "cat");
    let pattern = format!("{}/*.csv", dir.path().display());
    let output = run(["submit", "--wait", &pattern, "--server", &dev.url()]);
    assert_eq!((code(&output), stdout(&output)), (0, "a.csv\nb.csv\n"), "{output:?}");
    let nothing = run(["submit", &format!("{}/*.pdf", dir.path().display()), "--server", &dev.url()]);
    assert_eq!(code(&nothing), 2);
    assert!(stderr(&nothing).contains("no file matches"), "{nothing:?}");
    dev.stop();
}

#[test]
fn a_context_keeps_address_and_key_and_never_gives_the_key_to_another_server() {
    let dir = tempdir().unwrap();
    let (file, keys) = (dir.path().join("config").join("contexts.toml"), dir.path().join("keys.toml"));
    let key = run(["keys", "new", "orders", "--file", path(&keys)]);
    let key_file = dir.path().join("orders.key");
    fs::write(&key_file, stdout(&key)).unwrap();
    let serve = ["serve", "--memory", "--json", "--listen", "127.0.0.1:0", "--keys", path(&keys)];
    let [server, other] = [Running::start(serve), Running::start(serve)];
    let run = |args: &[&str]| relay(args).env("RELAY_CONTEXTS", &file).output().unwrap();

    let added = run(&["context", "add", "prod", "--server", &server.url(), "--api-key-file", path(&key_file)]);
    assert_eq!(code(&added), 0, "{added:?}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(code(&run(&["context", "add", "dev", "--server", &other.url(), "--client", "me"])), 0);
    let listed = run(&["context", "list", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["current"], &listed[1]["current"]), (&false.into(), &true.into()), "the first one stays");
    assert_eq!(listed[1]["key_id"], stdout(&key).split('_').nth(1).unwrap());
    assert!(!stdout(&run(&["context", "list"])).contains(stdout(&key).trim_end()), "a key is not shown");

    assert_eq!(code(&run(&["jobs", "list"])), 0, "the current context's server and key");
    assert_eq!(code(&run(&["jobs", "list", "--context", "dev"])), 2, "no key, so it is refused");
    let elsewhere = run(&["jobs", "list", "--server", &other.url()]);
    assert!(stderr(&elsewhere).contains("unauthenticated"), "the key is not for that server: {elsewhere:?}");
    assert_eq!(code(&run(&["context", "use", "nobody"])), 2);
    assert_eq!(code(&run(&["context", "use", "dev"])), 0);
    assert_eq!(code(&run(&["jobs", "list"])), 2);
    assert_eq!(code(&run(&["context", "remove", "dev"])), 0);
    assert_eq!(code(&run(&["jobs", "list", "--context", "dev"])), 2);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let open = run(&["jobs", "list"]);
    assert_eq!(code(&open), 2);
    assert!(stderr(&open).contains("chmod 600"), "{open:?}");
    server.stop();
    other.stop();
}

#[test]
fn a_rotated_key_works_beside_its_successor() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let old = run(["keys", "new", "orders", "--file", path(&file)]);
    let old = stdout(&old).trim_end().to_owned();
    let new = run(["keys", "rotate", &old, "--keep", "1h", "--file", path(&file)]);
    assert_eq!(code(&new), 0, "{new:?}");
    assert!(!stderr(&new).contains(&old), "the secret is not echoed: {new:?}");
    let new = stdout(&new).trim_end().to_owned();
    let server = Running::start(["serve", "--memory", "--json", "--listen", "127.0.0.1:0", "--keys", path(&file)]);
    for key in [&old, &new] {
        assert_eq!(code(&run(["jobs", "list", "--server", &server.url(), "--api-key", key])), 0);
    }
    let ended = run(["keys", "rotate", &new, "--keep", "0s", "--json", "--file", path(&file)]);
    let newest = json_lines(&ended)[0]["key"].as_str().unwrap().to_owned();
    // The newest key is looked for in the file at once; with it the end of the one before is known.
    assert_eq!(code(&run(["jobs", "list", "--server", &server.url(), "--api-key", &newest])), 0);
    assert_eq!(code(&run(["jobs", "list", "--server", &server.url(), "--api-key", &new])), 2);
    let listed = run(["keys", "list", "--json", "--file", path(&file)]);
    assert_eq!(json_lines(&listed)[0].as_array().unwrap().len(), 3);
    let expired = run(["keys", "rotate", &new, "--file", path(&file)]);
    assert_eq!(code(&expired), 1, "{expired:?}");
    assert!(stderr(&expired).contains("expired at") && !stderr(&expired).contains("no key"), "{}", stderr(&expired));
    server.stop();
}

#[test]
fn a_key_that_is_replaced_again_is_told_with_the_time_at_which_it_ends() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let key = run(["keys", "new", "orders", "--file", path(&file)]);
    let key = stdout(&key).trim_end().to_owned();
    let rotated = |keep: &str| {
        let rotated = run(["keys", "rotate", &key, "--keep", keep, "--json", "--file", path(&file)]);
        json_lines(&rotated)[0]["expires"].as_str().unwrap().to_owned()
    };
    let first = rotated("1h");
    assert_eq!(rotated("2d"), first, "it is not kept longer");
    let told = run(["keys", "rotate", &key, "--keep", "2d", "--file", path(&file)]);
    assert!(stderr(&told).contains(&format!("is valid until {first}")), "{}", stderr(&told));
    let listed = run(["keys", "list", "--json", "--file", path(&file)]);
    assert_eq!(json_lines(&listed)[0][0]["expires"], first.as_str());
}

#[test]
fn a_key_file_that_is_not_there_is_told_and_not_made() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("kyes.toml");
    for action in ["rotate", "revoke"] {
        let refused = run(["keys", action, "2826d9aeeade", "--file", path(&file)]);
        assert_eq!(code(&refused), 2, "{}", stderr(&refused));
        assert!(stderr(&refused).contains("kyes.toml: can't read the key file"), "{}", stderr(&refused));
        assert!(!file.exists(), "{action}");
    }
}

#[test]
fn a_new_key_is_not_written_into_the_key_file_itself() {
    let dir = tempdir().unwrap();
    let (file, link) = (dir.path().join("keys.toml"), dir.path().join("linked.toml"));
    std::os::unix::fs::symlink("keys.toml", &link).unwrap();
    // The file of keys would be put in the place of the key, which nobody has then.
    for keys in [&file, &dir.path().join("./keys.toml"), &link] {
        let refused = run(["keys", "new", "orders", "--file", path(keys), "--out", path(&file)]);
        assert_eq!((code(&refused), stdout(&refused)), (2, ""), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("this is the key file itself"), "{}", stderr(&refused));
        assert!(!file.exists(), "nothing is left");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempdir().unwrap();
    assert_eq!(code(&run(["man", "--dir", path(dir.path())])), 0);
    let pages: BTreeSet<_> =
        fs::read_dir(dir.path()).unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    for page in ["relay.1", "relay-serve.1", "relay-jobs-list.1", "relay-results.1", "relay-context-add.1"] {
        assert!(pages.contains(page), "{page} is not in {pages:?}");
    }
    let first = run(["man"]);
    assert!(stdout(&first).contains(".TH"), "{first:?}");
}

#[test]
fn an_example_of_a_commands_help_is_on_one_line_unless_it_is_typed_on_several() {
    let all = run(["help"]);
    let names =
        stdout(&all).lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<_> =
        names.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"serve") && names.contains(&"bridge"), "{names:?}");
    for name in names {
        let help = run(["help", name]);
        let examples = stdout(&help).lines().skip_while(|line| *line != "Examples:").skip(1);
        for line in examples.take_while(|line| !line.is_empty()) {
            assert!(line.contains(" relay ") || line.starts_with("      "), "relay help {name}: {line}");
        }
    }
}

#[test]
fn a_flag_goes_before_a_variable_that_excludes_it_and_an_empty_variable_is_not_set() {
    let dir = tempdir().unwrap();
    let ([(_held, one), (_also, two)], file) = ([nobody(), nobody()], dir.path().join("contexts.toml"));
    let text = format!("current = \"here\"\n[context.here]\nserver = \"{one}\"\nadmin = \"{one}\"\n");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let ended = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = relay(args);
        command.env("RELAY_CONTEXTS", &file).current_dir(&dir).envs(variables.iter().copied());
        let ended = command.output().unwrap();
        (code(&ended), stderr(&ended).to_owned())
    };
    let empty = ["SERVER", "CONTEXT", "CLIENT", "API_KEY", "CA", "CERTIFICATE", "CERTIFICATE_KEY"];
    let empty = empty.map(|name| format!("RELAY_{name}"));
    let empty: Vec<_> = empty.iter().map(|name| (name.as_str(), "")).collect();
    for (variables, args, asked) in [
        (&[("RELAY_CONTEXT", "nowhere")][..], &["whoami", "--server", &two][..], &two),
        (&[("RELAY_SERVER", &two)], &["whoami", "--context", "here"], &one),
        (&[("RELAY_SERVER", &two), ("RELAY_CONTEXT", "here")], &["whoami"], &two),
        (&[("RELAY_CLIENT", "a")], &["whoami", "--api-key", "k"], &one),
        (&[("RELAY_API_KEY", "k")], &["whoami", "--client", "a"], &one),
        (&[("RELAY_CONTEXT", "nowhere")], &["queues", "list", "--admin-server", &two], &two),
        (&[("RELAY_ADMIN_SERVER", &two)], &["queues", "list", "--context", "here"], &one),
        (&[("RELAY_ADMIN_SERVER", &two), ("RELAY_CONTEXT", "here")], &["queues", "list"], &two),
        (&empty, &["whoami"], &one),
        (&[("RELAY_ADMIN_SERVER", ""), ("RELAY_ADMIN_TOKEN_FILE", "")], &["queues", "list"], &one),
    ] {
        let (code, said) = ended(variables, args);
        assert_eq!(code, 69, "{variables:?} {args:?}: {said}");
        assert!(said.contains(&format!("no connection to {asked}")), "{variables:?} {args:?}: {said}");
    }
    for (variables, args, expected) in [
        (
            &[("RELAY_SERVER", &*two), ("RELAY_API_KEY", "k")][..],
            &["doctor", "--broker"][..],
            "no broker is configured",
        ),
        (&[("RELAY_CONFIG", "")], &["provision"], "no broker is configured"),
        (&[("RELAY_CONFIG", "")], &["config", "check"], "<FILE>"),
        (&[("RELAY_KEYS", "")], &["keys", "list"], "keys.toml: can't read the key file"),
        (&[("RELAY_DATA", "")], &["store", "stats"], "--data <DIR>"),
        // Each of both excludes the other.
        (&[("RELAY_CLIENT", "a"), ("RELAY_API_KEY", "k")], &["whoami"], "cannot be used with"),
    ] {
        let (code, said) = ended(variables, args);
        assert_eq!(code, 2, "{variables:?} {args:?}: {said}");
        assert!(said.contains(expected), "{variables:?} {args:?}: {said}");
    }
}

#[test]
fn an_address_with_tls_for_a_port_without_it_is_told_how_to_write_it() {
    let dev = Running::dev(&[], "cat");
    let server = dev.url().replace("http://", "https://");
    for args in [["whoami", "--server", &server].as_slice(), &["queues", "list", "--admin-server", &server]] {
        let told = run(args);
        assert_eq!(code(&told), 69);
        assert!(stderr(&told).contains("write http:// in place of https://"), "{}", stderr(&told));
    }
}
