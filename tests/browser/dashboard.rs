//! The dashboard: its requests and changes, and the page itself in a browser.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use crate::cli_support::{Running, code, json_lines, run_with};
use serde_json::Value;

/// Status, head and JSON of one request on a connection of its own.
fn ask(address: &str, method: &str, path: &str, headers: &str) -> (u16, String, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), serde_json::from_str(body).unwrap_or(Value::Null))
}

const CHANGE: &str = "Content-Length: 0\r\n";

fn admin(running: &Running) -> String {
    running.ready["listening"]["admin"].as_str().unwrap().to_owned()
}

/// A job that its handler rejects: its id.
fn dead(relay: &Running) -> String {
    let submitted =
        run_with(["submit", "--wait", "--json", "--key", "k", "--queue", "bad", "--server", &relay.url()], b"x");
    assert_eq!(code(&submitted), 1, "{submitted:?}");
    json_lines(&submitted)[0]["job_id"].as_str().unwrap().to_owned()
}

#[test]
fn nothing_is_changed_by_what_a_page_of_another_site_can_send() {
    let relay = Running::dev(&["--admin", "127.0.0.1:0", "--queue", "bad"], "exit 64");
    let (admin, job) = (admin(&relay), dead(&relay));
    let run = ask(&admin, "GET", "/v1/dead", "").2["letters"][0]["run_id"].as_str().unwrap().to_owned();
    for (method, path) in [
        ("POST", "/v1/queues/bad/pause".to_owned()),
        ("POST", format!("/v1/dead/{job}/{run}/redrive")),
        ("DELETE", format!("/v1/dead/{job}/{run}")),
    ] {
        for header in
            ["Origin: http://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site"]
        {
            let (status, _, refused) = ask(&admin, method, &path, &format!("{header}\r\nContent-Length: 0\r\n"));
            assert_eq!((status, &refused["slug"]), (403, &Value::from("forbidden")), "{method} {path} {header}");
        }
        assert_ne!(ask(&admin, "GET", &path, "").0, 200, "reading changes nothing");
    }
    assert_eq!(ask(&admin, "GET", "/v1/dead", "").2["letters"][0]["run_id"], Value::from(run));
}

#[test]
fn a_redriven_dead_letter_is_the_same_job_in_its_next_run() {
    let relay = Running::dev(&["--admin", "127.0.0.1:0", "--queue", "bad"], "exit 64");
    let (admin, job) = (admin(&relay), dead(&relay));
    let letters = ask(&admin, "GET", "/v1/dead?queue=bad", "").2;
    let letter = &letters["letters"][0];
    assert_eq!((&letter["job_id"], &letter["outcome"]), (&Value::from(job.clone()), &Value::from("failed")));
    let redrive = format!("/v1/dead/{job}/{}/redrive", letter["run_id"].as_str().unwrap());
    let (status, _, receipt) = ask(&admin, "POST", &redrive, CHANGE);
    assert_eq!((status, &receipt["generation"], &receipt["replayed"]), (202, &Value::from(2), &Value::from(false)));
    let (status, _, again) = ask(&admin, "POST", &redrive, CHANGE);
    assert_eq!((status, &again["generation"], &again["replayed"]), (202, &Value::from(2), &Value::from(true)));
}

#[test]
fn a_job_is_found_without_its_client_and_its_payload_shown_only_if_asked_for() {
    let relay = Running::dev(&["--admin", "127.0.0.1:0", "--queue", "bad"], "exit 64");
    let (admin, job) = (admin(&relay), dead(&relay));
    let by_id = ask(&admin, "GET", &format!("/v1/job?id={job}"), "").2;
    assert_eq!(by_id["job"]["job_id"], Value::from(job.clone()));
    assert_eq!((&by_id["job"]["key"], &by_id["dead_letter"]["preview"]), (&Value::from("k"), &Value::Null));
    let by_key = ask(&admin, "GET", "/v1/job?queue=bad&key=k&payload=true", "").2;
    assert_eq!(by_key["job"]["job_id"], Value::from(job.clone()));
    assert_eq!(by_key["dead_letter"]["preview"]["text"], Value::from("x"));
    let other = ask(&admin, "GET", &format!("/v1/job?id={job}&client=other"), "");
    assert_eq!((other.0, &other.2["slug"]), (404, &Value::from("not-found")));
    for path in ["/v1/job", "/v1/job?id=x", "/v1/jobs", "/v1/jobs?client=No", "/v1/dead?before=x"] {
        assert_eq!(ask(&admin, "GET", path, "").0, 400, "{path}");
    }
}

#[test]
fn the_pages_load_nothing_from_elsewhere_and_say_nothing_without_the_token() {
    let args = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json"];
    let mut command = crate::cli_support::relay(args);
    command.env("RELAY_ADMIN_TOKEN", "0123456789abcdef");
    let relay = Running::start_command(command);
    let admin = admin(&relay);
    for path in ["/", "/dashboard.js", "/dashboard.css"] {
        let (status, head, _) = ask(&admin, "GET", path, "");
        assert_eq!(status, 200);
        assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
        assert!(head.contains("frame-ancestors 'none'") && head.contains("nosniff"), "{head}");
    }
    for path in ["/v1/overview", "/v1/live", "/v1/jobs?client=a", "/v1/dead"] {
        assert_eq!(ask(&admin, "GET", path, "").0, 401, "{path}");
    }
    let (status, _, overview) = ask(&admin, "GET", "/v1/overview", "Authorization: Bearer 0123456789abcdef\r\n");
    assert_eq!((status, &overview["adapter"]), (200, &Value::from("embedded")));
}

#[test]
fn a_browser_shows_what_happens_and_does_what_is_pressed() {
    let (mut scenes, pictures) = crate::support::script("browser.mjs", "dashboard");
    let flags = [
        "--memory",
        "--no-auth",
        "--listen",
        "127.0.0.1:0",
        "--worker-listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--json",
    ];
    let relay =
        Running::start(["serve"].iter().chain(&flags).chain(&["--queue", "slow", "--queue", "bad", "--keep-keyless"]));
    let handler = "read -r line; echo \"$line is known to nobody: $line is known\" >&2; exit 64";
    let connect = relay.workers();
    let worker =
        ["worker", "--json", "--connect", &connect, "--queue", "bad", "--id", "clerk-1", "--", "sh", "-c", handler];
    let worker = Running::start(worker);
    let admin = format!("http://{}", admin(&relay));
    let mut scenes = scenes.args([&admin, &relay.url(), &pictures]).stdout(Stdio::piped()).spawn().unwrap();
    let mut relay = Some(relay);
    let mut said = String::new();
    for line in BufReader::new(scenes.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "stop" {
            drop(relay.take());
        }
        println!("{line}");
        said.push_str(&line);
        said.push('\n');
    }
    assert!(scenes.wait().unwrap().success(), "{said}");
    drop(worker);
    println!("pictures are in {pictures}");
}
