//! The command line from outside: the built binary, its output, its exit codes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use crate::cli_support::{Running, code, json_lines, nobody, relay, run, run_with, stderr, stdout};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tempfile::tempdir;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn help_names_every_command_and_every_exit_code() {
    let help = run(["--help"]);
    assert_eq!(code(&help), 0);
    assert_eq!(stderr(&help), "");
    for word in [
        "serve",
        "worker",
        "dev",
        "demo",
        "bench",
        "submit",
        "result",
        "results",
        "jobs",
        "whoami",
        "context",
        "keys",
        "store",
        "provision",
        "man",
        "config",
    ] {
        assert!(stdout(&help).contains(&format!("\n  {word} ")), "{word}");
        let of_command = run([word, "--help"]);
        assert_eq!(code(&of_command), 0);
        assert!(stdout(&of_command).contains("xample"), "{word} --help has no example");
    }
    for exit in ["0 ", "1 ", "2 ", "69 ", "130 "] {
        assert!(stdout(&help).contains(&format!("\n  {exit}")), "{exit}");
    }
    assert!(stdout(&help).contains("Check, measure, back up and restore a store"), "{}", stdout(&help));
    let submit = run(["submit", "--help"]);
    let told = stdout(&submit).replace('\n', " ");
    assert!(told.contains("or with --json its receipt with `error`"), "{told}");
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_to_write() {
    for (args, fix) in [
        (&["serve"][..], "--data"),
        (&["serve", "--memory", "--no-auth", "--lease", "5"], "write `5s`"),
        (&["serve", "--memory", "--no-auth", "--payload-max", "5"], "write `5B`"),
        (&["serve", "--memory", "--no-auth", "--queue", "No"], "[a-z0-9]"),
        (&["serve", "--memory", "--no-auth", "--max-attempts", "0"], "from 1 to"),
        (&["serve", "--memory", "--no-auth", "--nats", "nats://127.0.0.1:4222"], "--nats"),
        (&["serve", "--no-auth", "--nats", "http://x", "--nats-ping", "1ms"], "--nats-ping"),
        (&["serve", "--memory", "--no-auth", "--nats-user", "relay"], "--nats"),
        (&["worker"], "COMMAND"),
        (&["worker", "--queue", "a=2", "--order", "strict", "--", "cat"], "leave the weights out"),
        (&["worker", "--queue", "a,b,a", "--", "cat"], "name each once"),
        (&["result", "not-an-id"], "UUID"),
        (&["submit", "a", "b", "--key", "k"], "--key-from"),
        (&["submit", "--server", "ftp://x"], "http://"),
        (&["submit", "/no/such/file", "--server", "http://127.0.0.1:1"], "/no/such/file"),
        (&["store", "stats", "--data", "/no/such/dir"], "--data"),
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}: {output:?}");
        assert!(stderr(&output).contains(fix), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn what_is_said_about_jobs_on_nats_is_refused_where_they_are_not_kept_there() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data");
    let flags = [
        &["--provision"][..],
        &["--nats-replicas", "1"],
        &["--nats-storage", "file"],
        &["--nats-compression"],
        &["--nats-placement-cluster", "a"],
        &["--nats-placement-tag", "a"],
        &["--nats-jobs-max", "1GiB"],
        &["--nats-results-max", "1GiB"],
        &["--no-nats-listen"],
        &["--nats-cert", "a", "--nats-key", "b"],
        &["--nats-timeout", "5s"],
    ];
    for flags in flags {
        for store in [&["--memory"][..], &["--data", path(&data)]] {
            let output = run(["serve", "--no-auth"].iter().chain(store).chain(flags));
            assert_eq!(code(&output), 2, "{flags:?}: {output:?}");
            assert!(stderr(&output).contains(&format!("{} without --nats", flags[0])), "{output:?}");
            assert!(stderr(&output).contains("\nhint: leave it out"), "{output:?}");
        }
        if flags[0] != "--provision" {
            let output = run(["dev"].iter().chain(flags).chain(&["--", "cat"]));
            assert_eq!(code(&output), 2, "{flags:?}: {output:?}");
        }
    }
    assert!(!data.exists(), "what is refused leaves nothing behind");
}

#[test]
fn without_authentication_only_loopback_is_possible() {
    for args in [
        &["serve", "--memory", "--no-auth", "--listen", "0.0.0.0:0"][..],
        &["serve", "--memory", "--no-auth", "--listen", "[::]:0"],
        &["serve", "--memory", "--no-auth", "--worker-listen", "0.0.0.0:0"],
        &["dev", "--listen", "0.0.0.0:0", "--", "cat"],
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stderr(&output).contains("loopback"), "{}", stderr(&output));
        assert!(stderr(&output).contains("\nhint: "), "{}", stderr(&output));
    }
}

/// The arguments of every `relay serve` in a text, whose lines may go on after `\`, or be a list as in a compose file.
fn servers_of(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ").replace("\n      - serve\n", "\nrelay serve\n").replace("\n      - ", " ");
    let command = |line: &str| {
        let (_, arguments) = line.split_once("relay serve ")?;
        let arguments = arguments.split(['#', '`']).next()?;
        Some(arguments.split_whitespace().map(str::to_owned).collect())
    };
    text.lines().filter_map(command).collect()
}

#[test]
fn a_server_of_the_pages_that_others_can_reach_is_refused_for_nothing_but_its_missing_files() {
    let (root, empty) = (Path::new(env!("CARGO_MANIFEST_DIR")), tempdir().unwrap());
    let page = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let help = stdout(&run(["serve", "--help"])).to_owned();
    let mut tried = 0;
    for (name, text) in [
        ("README.md", page("README.md")),
        ("docs/identity.md", page("docs/identity.md")),
        ("docs/security.md", page("docs/security.md")),
        ("deploy/image/README.md", page("deploy/image/README.md")),
        ("deploy/compose.yaml", page("deploy/compose.yaml")),
        ("relay serve --help", help),
    ] {
        for server in servers_of(&text).into_iter().filter(|words| words.iter().any(|word| word.contains("0.0.0.0"))) {
            let refused = relay([&["serve".to_owned()][..], &server].concat()).current_dir(&empty).output().unwrap();
            assert_eq!(code(&refused), 2, "{name}: {server:?}: {}", stderr(&refused));
            assert!(stderr(&refused).contains("can't read the key file"), "{name}: {server:?}: {}", stderr(&refused));
            tried += 1;
        }
    }
    assert_eq!(tried, 3, "one of the image, one of the compose file, one of the help");
}

#[test]
fn only_a_key_file_that_is_not_there_is_to_be_made() {
    let dir = tempdir().unwrap();
    let keys = dir.path().join("keys.toml");
    let refused = || run(["serve", "--memory", "--listen", "127.0.0.1:0", "--keys", path(&keys)]);
    assert!(stderr(&refused()).contains("makes the first key"), "{}", stderr(&refused()));
    fs::write(&keys, "nonsense").unwrap();
    let told = refused();
    assert_eq!(code(&told), 2, "{}", stderr(&told));
    assert!(stderr(&told).contains("keys.toml:1: ") && !stderr(&told).contains("hint:"), "{}", stderr(&told));
}

#[test]
fn a_server_that_is_not_there_is_exit_code_69() {
    let (_held, server) = nobody();
    for args in [
        &["submit", "--retry-for", "0s", "--server", &server][..],
        &["submit", "--retry-for", "200ms", "--key", "k", "--server", &server],
    ] {
        let output = run(args);
        assert_eq!(code(&output), 69, "{args:?}: {output:?}");
        assert!(stderr(&output).contains("\nhint: "), "{}", stderr(&output));
    }
}

#[test]
fn a_worker_waits_for_a_server_that_is_not_up_yet() {
    let (held, server) = nobody();
    let address = &server["http://".len()..];
    let mut worker = relay(["worker", "--json", "--connect", address, "--", "cat"]).spawn().unwrap();
    let mut said = BufReader::new(worker.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for it") && line.contains(address), "{line}");

    drop(held);
    let args = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--worker-listen", address];
    let server = Running::start(args);
    line.clear();
    BufReader::new(worker.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("connected"), "{line}");
    kill(Pid::from_raw(worker.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!((worker.wait().unwrap().code(), rest.matches("waiting for it").count()), (Some(0), 0), "{rest}");
    server.stop();
}

#[test]
fn a_worker_of_a_server_ends_where_one_of_its_queues_is_not_there_or_not_granted() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let key = run(["keys", "new", "gpu-1", "--role", "worker", "--queue", "mail", "--file", path(&file)]);
    let server = ["serve", "--memory", "--listen", "127.0.0.1:0", "--json", "--worker-listen", "127.0.0.1:0"];
    let queues = ["--queue", "mail", "--queue", "other"];
    for (access, key, queue, told) in [
        (&["--no-auth"][..], "", "mial", "queue mial: "),
        (&["--keys", path(&file)], stdout(&key).trim(), "other", "queue other: "),
    ] {
        let server = Running::start(server.iter().chain(&queues).chain(access));
        let workers = server.workers();
        let key = if key.is_empty() { vec![] } else { vec!["--key", key] };
        let worker = |queue| {
            let args = ["worker", "--json", "--connect", &workers, "--queue", "mail", "--queue", queue];
            relay(args.iter().chain(&key).chain(&["--", "cat"])).output().unwrap()
        };
        let refused = worker(queue);
        let said = stderr(&refused);
        assert_eq!((code(&refused), stdout(&refused)), (2, ""), "{said}");
        assert!(said.contains(told) && said.contains("\nhint: "), "{said}");
        server.stop();
    }
}

#[test]
fn a_worker_address_that_is_none_is_wrong_usage_at_once() {
    // Waiting finds none of them.
    for address in ["no-port", "http://127.0.0.1:7411", "relays://127.0.0.1:7411"] {
        let refused = run(["worker", "--connect", address, "--", "cat"]);
        assert_eq!(code(&refused), 2, "{refused:?}");
        assert!(stderr(&refused).contains("HOST:PORT"), "{}", stderr(&refused));
    }
}

#[test]
fn a_log_filter_that_would_silence_everything_is_refused() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("relay.toml");
    fs::write(&file, "[log]\nfilter = \"debgu\"\n").unwrap();
    for args in [&["config", "check", path(&file)][..], &["keys", "list", "--log", "debgu"]] {
        let refused = run(args);
        assert_eq!(code(&refused), 2, "{args:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains("`debgu` is no level"), "{args:?}: {}", stderr(&refused));
    }
}

#[test]
fn a_job_comes_back_byte_by_byte() {
    let dev = Running::dev(&[], "cat");
    let every_byte: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let output = run_with(["submit", "--wait", "--server", &dev.url()], &every_byte);
    assert_eq!((code(&output), output.stdout == every_byte), (0, true), "{}", stderr(&output));
    assert!(!stderr(&output).contains('\x1b'), "colour where there is no terminal");
    dev.stop();
}

#[test]
fn a_local_service_can_be_the_handler() {
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jobs", service.local_addr().unwrap());
    let dev = Running::start(["dev", "--listen", "127.0.0.1:0", "--json", "--http", &url]);
    let submitted = run_with(["submit", "--server", &dev.url()], b"hello");
    let (mut connection, _) = service.accept().unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"hello") {
        let mut some = [0; 1024];
        let read = connection.read(&mut some).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&request));
        request.extend_from_slice(&some[..read]);
    }
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    connection.write_all(answer.as_bytes()).unwrap();
    let result = run(["result", stdout(&submitted).trim_end(), "--wait", "--server", &dev.url()]);
    assert_eq!((code(&result), stdout(&result)), (0, "hi"), "{}", stderr(&result));
    dev.stop();
}

#[test]
fn submitting_again_under_a_key_is_the_same_job_and_the_handler_runs_once() {
    let dir = tempdir().unwrap();
    let log = dir.path().join("starts");
    let dev = Running::dev(&[], &format!("echo start >> {}; cat", log.display()));
    let submit = |body: &str, more: &[&str]| {
        let url = dev.url();
        let args = ["submit", "--key", "order-1", "--server", &url].into_iter().chain(more.iter().copied());
        run_with(args.collect::<Vec<_>>(), body.as_bytes())
    };
    let first = submit("one", &["--wait"]);
    assert_eq!((code(&first), stdout(&first)), (0, "one"), "{}", stderr(&first));

    let again = submit("one", &["--json"]);
    let receipt = &json_lines(&again)[0];
    assert_eq!((code(&again), &receipt["replayed"], &receipt["state"]), (0, &true.into(), &"succeeded".into()));
    let again = submit("one", &["--wait", "--json"]);
    assert_eq!(json_lines(&again)[0]["replayed"], true);

    let conflict = submit("two", &[]);
    assert_eq!(code(&conflict), 1);
    assert!(stderr(&conflict).contains("idempotency-conflict"), "{}", stderr(&conflict));
    assert_eq!(fs::read_to_string(&log).unwrap(), "start\n");
    dev.stop();
}

#[test]
fn results_are_printed_in_the_order_of_the_files() {
    let dir = tempdir().unwrap();
    let files: Vec<_> = (0..40).map(|at| dir.path().join(format!("{at:02}"))).collect();
    for (at, file) in files.iter().enumerate() {
        fs::write(file, format!("{at}\n")).unwrap();
    }
    let dev = Running::dev(&["--slots", "4"], "cat");
    let url = dev.url();
    let args = ["submit", "--wait", "--key-from", "name", "--server", &url];
    let output = run(args.into_iter().chain(files.iter().map(|file| path(file))));
    let expected: String = (0..40).map(|at| format!("{at}\n")).collect();
    assert_eq!((code(&output), stdout(&output)), (0, expected.as_str()), "{}", stderr(&output));
    dev.stop();
}

#[test]
fn a_failed_job_is_exit_code_1_with_the_end_of_its_stderr() {
    let dev = Running::dev(&[], "echo the disk is on fire >&2; exit 65");
    let submitted = run_with(["submit", "--server", &dev.url()], b"x");
    let id = stdout(&submitted).trim_end();
    let output = run(["result", id, "--wait", "--server", &dev.url()]);
    assert_eq!((code(&output), stdout(&output)), (1, ""));
    assert!(stderr(&output).contains("the disk is on fire"), "{}", stderr(&output));
    let described = run(["result", id, "--json", "--server", &dev.url()]);
    assert_eq!((code(&described), &json_lines(&described)[0]["outcome"]), (1, &"failed".into()));
    let status = run(["jobs", "show", id, "--json", "--server", &dev.url()]);
    assert_eq!((code(&status), &json_lines(&status)[0]["state"]), (0, &"failed".into()));
    dev.stop();
}

#[test]
fn a_job_that_nobody_knows_is_exit_code_1() {
    let dev = Running::dev(&[], "cat");
    let commands = [&["result"][..], &["jobs", "show"], &["jobs", "cancel"], &["jobs", "rerun"], &["jobs", "erase"]];
    for command in commands {
        let nobody = ["018f6f6e-0000-7000-8000-000000000000", "--server", &dev.url()];
        let output = run(command.iter().chain(&nobody));
        assert_eq!(code(&output), 1, "{command:?}: {output:?}");
        assert!(stderr(&output).contains("not-found"), "{}", stderr(&output));
    }
    dev.stop();
}

#[test]
fn a_cancelled_job_never_succeeds() {
    let dev = Running::dev(&[], "cat");
    let submitted = run_with(["submit", "--delay", "1h", "--server", &dev.url()], b"x");
    let id = stdout(&submitted).trim_end();
    let pending = run(["result", id, "--server", &dev.url()]);
    assert_eq!(code(&pending), 75);
    assert!(stderr(&pending).contains("--wait"), "{}", stderr(&pending));
    assert_eq!(code(&run(["jobs", "cancel", id, "--server", &dev.url()])), 0);
    let result = run(["result", id, "--json", "--server", &dev.url()]);
    assert_eq!((code(&result), &json_lines(&result)[0]["outcome"]), (1, &"cancelled".into()));
    dev.stop();
}

#[test]
fn keys_let_in_who_has_one_and_the_file_has_no_secret() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let key = |more: &[&str]| {
        let output = run(["keys", "new", "--file", path(&file)].iter().chain(more));
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stdout(&output).trim_end().to_owned()
    };
    let (client, worker) = (key(&["orders"]), key(&["gpu-1", "--role", "worker"]));
    let (id, secret) = client.trim_start_matches("rlyk_").split_once('_').unwrap();
    let secret = &secret[..43];
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(id) && !text.contains(secret));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(stdout(&run(["keys", "list", "--file", path(&file)])).contains("gpu-1"));

    let args = ["serve", "--memory", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--json", "--keys"];
    let server = Running::start(args.into_iter().chain([path(&file)]));
    let refused = run(["worker", "--connect", &server.workers(), "--key", &client, "--", "cat"]);
    assert_eq!(code(&refused), 2, "{}", stderr(&refused));
    let refused = run(["submit", "--server", &server.url()]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("hint: give a key"), "{}", stderr(&refused));

    let workers = server.workers();
    let at_work = Running::start(["worker", "--json", "--connect", &workers, "--key", &worker, "--", "cat"]);
    let answer = run_with(["submit", "--wait", "--api-key", &client, "--server", &server.url()], b"hello");
    assert_eq!((code(&answer), stdout(&answer)), (0, "hello"), "{}", stderr(&answer));
    at_work.stop();

    assert_eq!(code(&run(["keys", "revoke", id, "--file", path(&file)])), 0);
    assert_eq!(code(&run(["keys", "revoke", id, "--file", path(&file)])), 1);
    server.stop();
}

#[test]
fn a_store_is_counted_checked_and_backed_up_while_it_is_open() {
    let dir = tempdir().unwrap();
    let data = dir.path().join("data");
    let dev = Running::dev(&["--data", path(&data)], "cat");
    for at in 0..3 {
        let output = run_with(["submit", "--wait", "--key", &format!("k{at}"), "--server", &dev.url()], b"x");
        assert_eq!(code(&output), 0);
    }
    let stats = &json_lines(&run(["store", "stats", "--json", "--data", path(&data)]))[0];
    assert_eq!((&stats["jobs"], &stats["results"]), (&3.into(), &3.into()), "{stats}");
    assert_eq!(stats["queues"][0]["attempts"], 3, "{stats}");
    assert_eq!(code(&run(["store", "check", "--data", path(&data)])), 0);

    let second = run(["serve", "--no-auth", "--listen", "127.0.0.1:0", "--data", path(&data)]);
    assert_eq!(code(&second), 69, "one process per store: {}", stderr(&second));
    let restored = dir.path().join("restored");
    let copy = dir.path().join("backup.db");
    assert_eq!(code(&run(["store", "backup", "--data", path(&data), path(&copy)])), 0);
    assert_eq!(code(&run(["store", "backup", "--data", path(&data), path(&copy)])), 2, "overwrites nothing");
    dev.stop();

    // A copy is no store until it is restored, and the refusal says how.
    fs::create_dir(&restored).unwrap();
    fs::copy(&copy, restored.join("relay.db")).unwrap();
    let serve = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--data", path(&restored)];
    let refused = run(serve);
    assert_eq!(code(&refused), 2, "{}", stderr(&refused));
    let way_back = format!("relay store restore FILE --data {}", path(&restored));
    assert!(stderr(&refused).contains(&way_back), "{}", stderr(&refused));
    assert_eq!(code(&run(["store", "restore", "--data", path(&restored), path(&copy)])), 0);
    let dev = Running::dev(&["--data", path(&restored)], "cat");
    let again = run_with(["submit", "--json", "--key", "k1", "--server", &dev.url()], b"x");
    assert_eq!(json_lines(&again)[0]["replayed"], true);
    dev.stop();
}

#[test]
fn a_damaged_store_is_refused_with_what_to_do() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("relay.db"), "this is not a database, but it is long enough to look at").unwrap();
    let output = run(["serve", "--no-auth", "--listen", "127.0.0.1:0", "--data", path(dir.path())]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("damaged or not a relay store"), "{}", stderr(&output));
}

#[test]
fn a_policy_that_was_stored_stands_unless_a_flag_changes_it() {
    let dir = tempdir().unwrap();
    let data = path(dir.path()).to_owned();
    let dev = |more: &[&str]| {
        let args = ["--data", &data];
        Running::dev(&args.iter().chain(more).copied().collect::<Vec<_>>(), "cat")
    };
    dev(&["--max-attempts", "3", "--retention", "2h"]).stop();
    let again = dev(&[]);
    let submitted = run_with(["submit", "--delay", "1h", "--server", &again.url()], b"x");
    let id = stdout(&submitted).trim_end();
    let status = run(["jobs", "show", id, "--json", "--server", &again.url()]);
    assert_eq!(json_lines(&status)[0]["max_attempts"], 3);
    again.stop();

    let shorter = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--data", &data, "--retention", "1h"];
    let refused = run(shorter);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("hint: add --force"), "{}", stderr(&refused));
    dev(&["--retention", "1h", "--force"]).stop();
}

#[test]
fn a_reader_that_had_enough_is_no_error() {
    for args in [&["completions", "bash"][..], &["--help"], &["serve", "--help"]] {
        let mut child = relay(args).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), stderr(&output)), (0, ""), "{args:?}");
    }
}

#[test]
fn an_interrupted_wait_is_exit_code_130_and_the_job_goes_on() {
    let dir = tempdir().unwrap();
    let [started, goes_on] = ["started", "goes-on"].map(|name| dir.path().join(name));
    for fifo in [&started, &goes_on] {
        mkfifo(fifo, Mode::S_IRWXU).unwrap();
    }
    let dev = Running::dev(&[], &format!("echo > {}; cat {}", started.display(), goes_on.display()));
    let submit =
        relay(["submit", "--wait", "--key", "k", "--server", &dev.url()]).stdin(Stdio::null()).spawn().unwrap();
    // The handler runs, so the job was submitted, by a process that is past its start.
    fs::File::open(&started).unwrap().read_to_string(&mut String::new()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(submit.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let output = submit.wait_with_output().unwrap();
    assert_eq!((code(&output), stdout(&output)), (130, ""), "{}", stderr(&output));

    fs::write(&goes_on, "done").unwrap();
    let answer = run(["submit", "--wait", "--key", "k", "--server", &dev.url()]);
    assert_eq!((code(&answer), stdout(&answer)), (0, "done"), "{}", stderr(&answer));
    dev.stop();
}

#[test]
fn logs_are_json_where_a_collector_reads_them() {
    let dev = Running::dev(&["--log-format", "json"], "cat");
    assert_eq!(code(&run_with(["submit", "--wait", "--server", &dev.url()], b"x")), 0);
    dev.signal(Signal::SIGTERM);
    let (code, text) = dev.wait();
    assert_eq!(code, Some(0));
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["message"].as_str().unwrap().contains("no authentication")), "{text}");
}

#[test]
fn a_signal_drains_also_when_nobody_reads_the_logs_any_more() {
    for format in ["text", "json"] {
        let serve = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--log-format", format];
        let mut server = Running::start(serve);
        server.close_stderr();
        // A panic in a request's task would be answered 500, one in the task that waits for signals by nothing at all.
        let submitted = run_with(["submit", "--key", "k", "--server", &server.url()], b"x");
        assert_eq!(code(&submitted), 0, "{submitted:?}");
        server.stop();
    }
}

#[test]
fn the_first_signal_drains_and_a_later_one_forces() {
    let dir = tempdir().unwrap();
    let started = dir.path().join("started");
    mkfifo(&started, Mode::S_IRWXU).unwrap();
    let mut dev = Running::dev(&["--drain", "1h"], &format!("echo > {}; sleep 3600", started.display()));
    assert_eq!(code(&run_with(["submit", "--server", &dev.url()], b"x")), 0);
    fs::File::open(&started).unwrap().read_to_string(&mut String::new()).unwrap();
    dev.signal(Signal::SIGTERM);
    dev.wait_for_line("stopping:");
    let (code, text) = dev.force(Signal::SIGINT);
    assert_eq!(code, Some(130), "{text}");
}

#[test]
fn a_signal_that_is_sent_twice_at_a_time_drains_and_does_not_force() {
    let dir = tempdir().unwrap();
    let [started, goes_on] = ["started", "goes-on"].map(|name| dir.path().join(name));
    for fifo in [&started, &goes_on] {
        mkfifo(fifo, Mode::S_IRWXU).unwrap();
    }
    let script = format!("echo > {}; cat {}", started.display(), goes_on.display());
    let mut dev = Running::dev(&["--drain", "1h"], &script);
    assert_eq!(code(&run_with(["submit", "--server", &dev.url()], b"x")), 0);
    fs::File::open(&started).unwrap().read_to_string(&mut String::new()).unwrap();
    // Of two kinds, so that the system does not make one of them.
    dev.signal(Signal::SIGTERM);
    dev.signal(Signal::SIGINT);
    dev.wait_for_line("stopping:");
    fs::write(&goes_on, "done").unwrap();
    let (code, text) = dev.wait();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("outcome=succeeded"), "{text}");
}

#[test]
fn a_size_that_the_store_does_not_take_is_refused_at_the_start_with_both_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let serve = ["serve", "--no-auth", "--listen", "127.0.0.1:0"];
    let dev = ["dev", "--listen", "127.0.0.1:0", "--result-max", "64MiB", "--", "cat"];
    let memory = [&serve[..], &["--memory", "--payload-max", "64MiB"]].concat();
    let file = [&serve[..], &["--data", data, "--payload-max", "64MiB"]].concat();
    for (args, named) in [(&memory[..], "--payload-max"), (&file, "--payload-max"), (&dev, "--result-max")] {
        let refused = run(args);
        assert_eq!(code(&refused), 2, "{refused:?}");
        for text in [named, "67108864", "16777216"] {
            assert!(stderr(&refused).contains(text), "{text}: {refused:?}");
        }
    }
}
