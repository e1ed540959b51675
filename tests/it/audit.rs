//! The audit from outside: its lines, the secrets that are never in them, and calls that are not done without one.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::admin::send;
use crate::cli_support::{Running, code, run, stderr, stdout};
use crate::tls_support::{Authority, Files};

/// A server with a client's and a worker's key, whose audit goes into a file.
struct Site {
    folder: TempDir,
    client: String,
    worker: String,
}

impl Site {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let keys = folder.path().join("keys.toml");
        let new = |more: &[&str]| {
            let made = run(["keys", "new"].iter().chain(more).chain(&["--file", keys.to_str().unwrap()]));
            assert_eq!(code(&made), 0, "{}", stderr(&made));
            stdout(&made).trim().to_owned()
        };
        let (client, worker) = (new(&["orders"]), new(&["press", "--role", "worker"]));
        Self { folder, client, worker }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).to_string_lossy().into_owned()
    }

    fn serve(&self, more: &[&str]) -> Running {
        let (keys, audit) = (self.text("keys.toml"), self.text("audit.jsonl"));
        let args = ["serve", "--memory", "--keys", &keys, "--listen", "127.0.0.1:0", "--json", "--audit", &audit];
        Running::start(args.iter().chain(more).chain(&["--queue", "default"]))
    }

    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.client)
    }

    /// The lines that are written once the server has ended.
    fn lines(&self) -> Vec<Value> {
        read(&self.file("audit.jsonl"))
    }
}

fn read(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn address(running: &Running, which: &str) -> String {
    running.ready["listening"][which].as_str().unwrap().to_owned()
}

/// The fields of the lines of one action, in their order.
fn of(lines: &[Value], action: &str) -> Vec<Value> {
    lines.iter().filter(|line| line["action"] == action).cloned().collect()
}

#[test]
fn a_change_has_a_line_with_who_and_what_and_no_line_has_a_payload_a_secret_or_a_key() {
    let site = Site::new();
    let relay = site.serve(&[]);
    let http = address(&relay, "http");
    let key = "Idempotency-Key: my-private-key\r\n";
    let submitted =
        send(&http, "POST", "/v1/queues/default/jobs", &format!("{}{key}", site.bearer()), "a private payload");
    let job = serde_json::from_str::<Value>(&submitted.1).unwrap()["job_id"].as_str().unwrap().to_owned();
    assert_eq!(send(&http, "POST", &format!("/v1/jobs/{job}/cancel"), &site.bearer(), "").0, 200);
    // The first character of the id as its number: the router reads it so, too.
    let spelled = format!("/v1/jobs/%{:02x}{}", job.as_bytes()[0], &job[1..]);
    assert_eq!(send(&http, "DELETE", &spelled, &site.bearer(), "").0, 204);
    let other = "0195f1a2-0000-8000-8000-000000000000";
    assert_eq!(send(&http, "POST", &format!("/v1/jobs/{other}/cancel"), &site.bearer(), "").0, 404);
    let wrong = format!("{}x", site.client);
    assert_eq!(send(&http, "GET", "/v1/whoami", &format!("Authorization: Bearer {wrong}\r\n"), "").0, 401);
    relay.stop();

    let lines = site.lines();
    let id = site.client.split('_').nth(1).unwrap();
    let words = |line: &Value| {
        ["action", "outcome", "slug"].map(|field| line[field].as_str().unwrap_or_default().to_owned()).join(" ")
    };
    let all: Vec<_> = lines.iter().map(words).collect();
    let expected =
        ["cancel allowed ", "erase allowed ", "cancel refused not-found", "authenticate refused unauthenticated"];
    assert_eq!(all, expected, "a submission is in the store");
    for line in &lines[..3] {
        assert_eq!((&line["who"], &line["method"], &line["credential"]), (&"orders".into(), &"key".into(), &id.into()));
        assert_eq!((&line["source"], &line["door"]), (&"127.0.0.1".into(), &"http".into()));
        assert_eq!(line["request_id"].as_str().unwrap().len(), 32, "{line}");
    }
    assert_eq!((&lines[0]["job"], &lines[1]["job"]), (&job.as_str().into(), &job.as_str().into()));
    assert_eq!(lines[2]["job"], other);
    assert!(lines[3]["who"].is_null() && lines[3]["count"] == 1, "{}", lines[3]);
    let text = std::fs::read_to_string(site.file("audit.jsonl")).unwrap();
    let secret = site.client.rsplit('_').next().unwrap();
    for never in ["private", secret] {
        assert!(!text.contains(never), "{never} is in\n{text}");
    }
}

#[test]
fn a_caller_without_the_right_has_a_line_with_its_key_and_the_queue_also_where_submissions_have_none() {
    let site = Site::new();
    let made = run(["keys", "new", "post", "--queue", "mail", "--file", &site.text("keys.toml")]);
    let key = stdout(&made).trim().to_owned();
    let relay = site.serve(&["--queue", "mail"]);
    let http = address(&relay, "http");
    let bearer = format!("Authorization: Bearer {key}\r\n");
    assert_eq!(send(&http, "POST", "/v1/queues/default/jobs", &bearer, "x").0, 403);
    relay.stop();
    let lines = site.lines();
    let refused = &of(&lines, "submit")[0];
    let id = key.split('_').nth(1).unwrap();
    assert_eq!((&refused["who"], &refused["method"]), (&"post".into(), &"key".into()), "{refused}");
    assert_eq!((&refused["credential"], &refused["queue"]), (&id.into(), &"default".into()), "{refused}");
}

#[test]
fn at_the_level_all_submissions_reads_and_leases_have_lines_too_and_a_batch_has_one_with_its_counts() {
    let site = Site::new();
    let relay = site.serve(&["--audit-level", "all", "--worker-listen", "127.0.0.1:0"]);
    let http = address(&relay, "http");
    let key = "Idempotency-Key: abc\r\n";
    let headers = format!("{}{key}", site.bearer());
    let submitted = send(&http, "POST", "/v1/queues/default/jobs", &headers, "x");
    let job = serde_json::from_str::<Value>(&submitted.1).unwrap()["job_id"].clone();
    let batch = r#"[{"payload":1},{"payload":2},{"payload":3,"key":""}]"#;
    let json = format!("{}Content-Type: application/json\r\n", site.bearer());
    assert_eq!(send(&http, "POST", "/v1/queues/default/batch", &json, batch).0, 200);
    assert_eq!(send(&http, "GET", "/v1/jobs", &site.bearer(), "").0, 200);
    std::fs::write(site.file("worker.key"), &site.worker).unwrap();
    let (workers, key_file) = (relay.workers(), site.text("worker.key"));
    let args = ["worker", "--connect", &workers, "--key-file", &key_file, "--id", "one", "--slots", "1", "--json"];
    let worker = Running::start(args.iter().chain(&["--queue", "default", "--", "cat"]));
    let path = format!("/v1/jobs/{}/result?wait=30s", job.as_str().unwrap());
    assert_eq!(send(&http, "GET", &path, &site.bearer(), "").0, 200);
    worker.stop();
    relay.stop();

    let lines = site.lines();
    let submits = of(&lines, "submit");
    // SHA-256 of `abc`.
    assert_eq!((&submits[0]["job"], &submits[0]["key_hash"]), (&job, &"ba7816bf8f01cfea".into()));
    assert_eq!((&submits[1]["count"], &submits[1]["refused"]), (&2.into(), &1.into()), "{}", submits[1]);
    assert_eq!((submits.len(), of(&lines, "list").len(), of(&lines, "read").len()), (2, 1, 1));
    let leases = of(&lines, "lease");
    assert_eq!((&leases[0]["who"], &leases[0]["job"]), (&"press/one".into(), &job), "{leases:?}");
    let sessions = (of(&lines, "connect"), of(&lines, "disconnect"));
    assert_eq!((&sessions.0[0]["who"], &sessions.1[0]["who"]), (&"press/one".into(), &"press/one".into()));
}

#[test]
fn a_worker_that_is_not_let_in_has_a_line() {
    let site = Site::new();
    let relay = site.serve(&["--worker-listen", "127.0.0.1:0"]);
    std::fs::write(site.file("worker.key"), &site.client).unwrap();
    let (workers, key_file) = (relay.workers(), site.text("worker.key"));
    let refused = run(["worker", "--connect", &workers, "--key-file", &key_file, "--", "cat"]);
    assert_ne!(code(&refused), 0);
    relay.stop();
    let lines = of(&site.lines(), "authenticate");
    assert_eq!((&lines[0]["door"], &lines[0]["slug"]), (&"worker".into(), &"unauthenticated".into()));
    assert!(lines[0]["detail"].as_str().unwrap().contains("is a client's"), "{}", lines[0]);
}

#[test]
fn a_client_and_a_worker_whose_authority_has_expired_have_a_line_with_the_name_that_it_gave_them() {
    let (mut files, authority) = (Files::new(), Authority::until("a", 2025));
    files.trust(&authority, &["spiffe://a.example/*"], None);
    let identity = authority.signs(&["spiffe://a.example/x"], 7);
    let write = |name: &str, text: &str| files.write(name, text).to_string_lossy().into_owned();
    let (certificate, key) = (write("own.pem", &identity.certificate), write("own.key", &identity.key));
    let (trusted, tls) = (write("server-ca.pem", files.server.pem()), &files.files);
    let config = write(
        "relay.toml",
        &format!(
            "[listen]\nworker_tls = \"on\"\nclient_auth = \"optional\"\nworker_client_auth = \"required\"\n\
             tls_cert = {:?}\ntls_key = {:?}\n[[client_ca]]\nfile = {:?}\nnames = [\"spiffe://a.example/*\"]\n",
            tls.certificate, tls.key, tls.authorities[0].file
        ),
    );
    let site = Site::new();
    let relay = site.serve(&["--config", &config, "--worker-listen", "127.0.0.1:0"]);
    let local = |which: &str| address(&relay, which).replace("127.0.0.1", "localhost");
    let shown = ["--ca", &trusted, "--certificate", &certificate, "--certificate-key", &key];
    let http = format!("https://{}", local("http"));
    // It tries once.
    let doctor = ["doctor", "--server", &http, "--api-key", &site.client];
    assert_ne!(code(&run(doctor.iter().chain(&shown))), 0);
    let workers = format!("tls://{}", local("workers"));
    let worker = ["worker", "--connect", &workers];
    assert_ne!(code(&run(worker.iter().chain(&shown).chain(&["--", "cat"]))), 0);
    relay.stop();
    let lines = of(&site.lines(), "handshake");
    for door in ["http", "worker"] {
        let line = lines.iter().find(|line| line["door"] == door).unwrap_or_else(|| panic!("{lines:?}"));
        assert_eq!((&line["outcome"], &line["slug"]), (&"refused".into(), &"unauthenticated".into()), "{line}");
        let detail = line["detail"].as_str().unwrap();
        assert!(detail.contains("has expired, and it is for spiffe://a.example/x"), "{line}");
    }
}

#[test]
fn an_operator_is_named_by_its_token_and_one_without_the_right_is_refused() {
    let site = Site::new();
    let tokens = ["0123456789abcdef-all", "0123456789abcdef-scrape"];
    std::fs::write(site.file("all.token"), tokens[0]).unwrap();
    std::fs::write(site.file("scrape.token"), tokens[1]).unwrap();
    let config = "[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"all.token\"\n\
                  [[admin_token]]\nname = \"prometheus\"\nrights = [\"metrics\"]\ntoken_file = \"scrape.token\"\n";
    std::fs::write(site.file("relay.toml"), config).unwrap();
    let relay = site.serve(&["--config", &site.text("relay.toml")]);
    let admin = address(&relay, "admin");
    let ask = |token: &str, method: &str, path: &str| {
        send(&admin, method, path, &format!("Authorization: Bearer {token}\r\n"), "")
    };
    assert_eq!(ask(tokens[1], "GET", "/metrics").0, 200);
    assert_eq!(ask(tokens[1], "GET", "/v1/queues").0, 403);
    let purge = "/v1/dead/0195f1a2-0000-8000-8000-000000000000/1";
    let refused = ask(tokens[1], "DELETE", purge);
    assert!(refused.0 == 403 && refused.1.contains("`operate`"), "{refused:?}");
    assert_eq!(ask(tokens[0], "POST", "/v1/queues/default/pause").0, 200);
    assert!(ask(tokens[0], "GET", "/metrics").1.contains("relay_audit_dropped_total 0\n"));
    relay.stop();
    let lines = site.lines();
    let pause = &of(&lines, "pause")[0];
    assert_eq!(
        (&pause["who"], &pause["door"], &pause["queue"], &pause["outcome"]),
        (&"admin".into(), &"admin".into(), &"default".into(), &"allowed".into())
    );
    let refused = of(&lines, "authenticate");
    assert_eq!((&refused[0]["who"], &refused[0]["slug"]), (&"prometheus".into(), &"forbidden".into()));
}

#[test]
fn without_a_file_lines_are_in_the_log_under_a_target_of_their_own() {
    let site = Site::new();
    let keys = site.text("keys.toml");
    let args = ["serve", "--memory", "--keys", &keys, "--listen", "127.0.0.1:0", "--json", "--log-format", "json"];
    let mut relay = Running::start(args);
    let path = "/v1/jobs/0195f1a2-0000-8000-8000-000000000000/cancel";
    send(&address(&relay, "http"), "POST", path, &site.bearer(), "");
    let line: Value = serde_json::from_str(&relay.wait_for_line("\"target\":\"audit\"")).unwrap();
    assert_eq!(
        (&line["action"], &line["who"], &line["slug"]),
        (&"cancel".into(), &"orders".into(), &"not-found".into())
    );
    relay.stop();
}

#[test]
fn where_every_call_has_to_be_on_record_nothing_is_done_while_no_line_can_be_written() {
    let site = Site::new();
    let (keys, disk) = (site.text("keys.toml"), site.text("disk"));
    std::os::unix::fs::symlink("/dev/full", &disk).unwrap();
    let args = ["serve", "--memory", "--keys", &keys, "--listen", "127.0.0.1:0", "--json", "--queue", "default"];
    let mut relay = Running::start(args.iter().chain(&["--audit", &disk, "--audit-required"]));
    let http = address(&relay, "http");
    let submitted = send(&http, "POST", "/v1/queues/default/jobs", &site.bearer(), "x");
    let job = serde_json::from_str::<Value>(&submitted.1).unwrap()["job_id"].as_str().unwrap().to_owned();
    // The first line finds out that the disk is full.
    let path = "/v1/jobs/0195f1a2-0000-8000-8000-000000000000/cancel";
    assert_eq!(send(&http, "POST", path, &site.bearer(), "").0, 404);
    relay.wait_for_line("the audit can't be written");
    let refused = send(&http, "POST", &format!("/v1/jobs/{job}/cancel"), &site.bearer(), "");
    assert!(refused.0 == 503 && refused.1.contains("\"slug\":\"overloaded\""), "{refused:?}");
    let state = send(&http, "GET", &format!("/v1/jobs/{job}"), &site.bearer(), "");
    assert!(state.1.contains("\"state\":\"queued\""), "{state:?}");
    // The disk has room again: the line that waited is written, and calls are done.
    std::fs::remove_file(&disk).unwrap();
    relay.wait_for_line("the audit is written again");
    assert_eq!(send(&http, "POST", &format!("/v1/jobs/{job}/cancel"), &site.bearer(), "").0, 200);
    relay.stop();
    assert_eq!(of(&read(Path::new(&disk)), "cancel").len(), 2);
}

#[test]
fn a_file_that_was_moved_away_is_opened_anew_at_a_hangup() {
    let site = Site::new();
    let mut relay = site.serve(&[]);
    let http = address(&relay, "http");
    let cancel = |id: u8| {
        let path = format!("/v1/jobs/0195f1a2-0000-8000-8000-0000000000{id:02}/cancel");
        assert_eq!(send(&http, "POST", &path, &site.bearer(), "").0, 404);
    };
    cancel(1);
    std::fs::rename(site.file("audit.jsonl"), site.file("audit.1")).unwrap();
    cancel(2);
    relay.signal(Signal::SIGHUP);
    while !relay.wait_for_line("files were read again").contains("audit") {}
    cancel(3);
    relay.stop();
    assert_eq!((read(&site.file("audit.1")).len(), site.lines().len()), (2, 1));
    let mode = Command::new("stat").args(["-c", "%a", &site.text("audit.jsonl")]).output().unwrap();
    assert_eq!(stdout(&mode).trim(), "600");
}
