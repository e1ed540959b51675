//! A client that wants to learn of others: by cursors, by request ids, and by ids of jobs that it can derive.

use std::net::SocketAddr;

use relay_bridge::contract::{Cursor, JobId};
use serde_json::Value;

use crate::support::{Attacked, ask_for, json};

/// Submits a job and cancels it, so that it has a result. Answers its id.
fn finish_one(address: SocketAddr, key: &str) -> JobId {
    let (status, _, body) = ask_for(address, "POST /v1/queues/default/jobs", key, "payload");
    assert_eq!(status, 202);
    let id: JobId = json(&body)["job_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(ask_for(address, &format!("POST /v1/jobs/{id}/cancel"), key, "").0, 200);
    id
}

fn cursor(text: &Value) -> Cursor {
    text.as_str().unwrap().parse().unwrap()
}

#[test]
fn a_cursor_counts_the_results_of_its_own_client_and_of_nobody_else() {
    let (attacked, keys) = Attacked::start(&["me", "other"], &["--queue", "default"]);
    let address = attacked.address();
    let now = |key: &str| cursor(&json(&ask_for(address, "GET /v1/results?after=now", key, "").2)["next"]).sequence;
    let before = now(&keys[0]);
    for _ in 0..10 {
        finish_one(address, &keys[1]);
    }
    assert_eq!((before, now(&keys[0])), (0, 0), "the end of a log moves with others' results");
    finish_one(address, &keys[0]);
    let page = json(&ask_for(address, "GET /v1/results", &keys[0], "").2);
    assert_eq!(cursor(&page["entries"][0]["cursor"]).sequence, 1, "{page}");
    assert_eq!(now(&keys[1]), 10);
    attacked.server.stop();
}

#[test]
fn request_ids_tell_nothing_of_other_requests() {
    let (attacked, keys) = Attacked::start(&["me"], &["--queue", "default"]);
    let ids: Vec<String> = (0..32)
        .map(|_| {
            let (status, _, body) = ask_for(attacked.address(), "GET /v1/nothing", &keys[0], "");
            assert_eq!(status, 404);
            json(&body)["instance"].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
        })
        .collect();
    assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())), "{ids:?}");
    for (at, id) in ids.iter().enumerate() {
        // Of 32 bits at random, two of 32 are alike once in some ten million runs.
        let alike = |other: &&String| id[..8] == other[..8] || id[24..] == other[24..];
        assert_eq!(ids[at + 1..].iter().find(alike), None, "{id}");
    }
    attacked.server.stop();
}

#[test]
fn another_clients_job_is_refused_in_the_words_for_one_that_is_not_there() {
    let (attacked, keys) = Attacked::start(&["me", "other"], &["--queue", "default"]);
    let address = attacked.address();
    let theirs = finish_one(address, &keys[1]);
    let nobodys = JobId::derive(&"me".parse().unwrap(), &"default".parse().unwrap(), &"none".parse().unwrap());
    for (method, path) in [
        ("GET", ""),
        ("GET", "/result"),
        ("GET", "/events"),
        ("POST", "/cancel"),
        ("POST", "/rerun?from=1"),
        ("DELETE", ""),
    ] {
        let refusal = |id: JobId| {
            let (status, head, body) = ask_for(address, &format!("{method} /v1/jobs/{id}{path}"), &keys[0], "");
            let mut problem = json(&body);
            problem.as_object_mut().unwrap().remove("instance");
            let names = head.lines().skip(1).map(|line| line.split(':').next().unwrap().to_owned());
            (status, names.collect::<Vec<_>>(), problem.to_string().replace(&id.to_string(), "ID"))
        };
        assert_eq!(refusal(theirs), refusal(nobodys), "{method} {path}");
        assert_eq!(refusal(theirs).0, 404);
    }
    attacked.server.stop();
}
