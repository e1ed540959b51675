//! A key is held to its queues and its rights in every call: what it does not grant can't be told from what is not there.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::cli_support::{code, run, stderr, stdout};
use crate::support::{Attacked, new_key};
use crate::talk::{Answer, Hands, ask, stream, submit};

/// A job that nobody has.
const NOBODYS: &str = "01a23425-092e-7f0a-88bd-3fb4e581b902";

/// The calls about one job, by a path in which `{id}` stands for it, and the right that each needs.
const OF_A_JOB: [(&str, &str); 7] = [
    ("GET /v1/jobs/{id}", "read"),
    ("GET /v1/jobs/{id}/result", "read"),
    ("GET /v1/jobs/{id}/result?wait=20s", "read"),
    ("GET /v1/jobs/{id}/events", "read"),
    ("POST /v1/jobs/{id}/cancel", "manage"),
    ("POST /v1/jobs/{id}/rerun?from=1", "submit"),
    ("DELETE /v1/jobs/{id}", "manage"),
];

/// The calls about many jobs or none; those with `{queue}` name one.
const OTHERS: [(&str, &str); 8] = [
    ("POST /v1/queues/{queue}/jobs", "submit"),
    ("POST /v1/queues/{queue}/batch", "submit"),
    ("GET /v1/queues/{queue}/jobs?key=keyed", "read"),
    ("GET /v1/jobs?queue={queue}", "read"),
    ("GET /v1/results?queue={queue}", "read"),
    ("GET /v1/jobs", "read"),
    ("GET /v1/results", "read"),
    ("GET /v1/whoami", ""),
];

/// A server with the queues `q1` and `q2`, a key of `shop` for all of both, and a worker.
async fn server() -> (Attacked, String, Hands) {
    let dir = tempfile::tempdir().unwrap();
    let all = new_key(dir.path(), &["shop"]);
    let worker = new_key(dir.path(), &["hands", "--role", "worker"]);
    let attacked = Attacked::start_in(dir, &["--queue", "q1", "--queue", "q2"]);
    let hands = Hands::connect(&attacked, &worker).await;
    (attacked, all, hands)
}

/// In `queue` a finished job under the key `keyed`, a finished one without a key, and one that waits.
async fn fill(attacked: &Attacked, key: &str, hands: &Hands, queue: &str) -> [String; 3] {
    let mut jobs = Vec::new();
    for named in ["keyed", ""] {
        jobs.push(submit(attacked, key, queue, named, "x").await);
        hands.work(queue, &format!("result of {queue}")).await;
    }
    jobs.push(submit(attacked, key, queue, "waits", "x").await);
    jobs.try_into().unwrap()
}

async fn call(attacked: &Attacked, key: &str, line: &str, job: &str, queue: &str) -> Answer {
    let line = line.replace("{id}", job).replace("{queue}", queue);
    let body = if line.ends_with("/batch") { r#"{"text": "x"}"# } else { "" };
    ask(attacked, key, &line, &[], body).await
}

fn ids(answer: &Answer, list: &str) -> BTreeSet<String> {
    let entries = answer.json()[list].as_array().unwrap_or_else(|| panic!("{answer:?}")).clone();
    entries.iter().map(|entry| entry["job_id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_key_held_to_a_queue_finds_nothing_of_another_by_any_call() {
    let (attacked, all, hands) = server().await;
    let held = new_key(attacked.dir.path(), &["shop", "--queue", "q1"]);
    let own = fill(&attacked, &all, &hands, "q1").await;
    let foreign = fill(&attacked, &all, &hands, "q2").await;
    let before = ask(&attacked, &all, "GET /v1/jobs", &[], "").await.json();

    for (line, _) in OF_A_JOB {
        let nothing = call(&attacked, &held, line, NOBODYS, "").await;
        assert_eq!(nothing.status, 404, "{line}");
        for job in &foreign {
            let answer = call(&attacked, &held, line, job, "").await;
            assert_eq!(answer.said(), nothing.said(), "{line}: it is told apart from what is not there");
        }
    }
    for (line, _) in OTHERS.iter().filter(|(line, _)| line.contains("{queue}")) {
        for queue in ["q2", "nowhere"] {
            let answer = call(&attacked, &held, line, "", queue).await;
            assert_eq!((answer.status, &*answer.field("slug")), (403, "forbidden"), "{line}: {queue}");
        }
        assert!(call(&attacked, &held, line, "", "q1").await.status < 300, "{line}");
    }
    let nothing = ask(&attacked, &held, &format!("GET /v1/jobs?after={NOBODYS}"), &[], "").await;
    for job in &foreign {
        let answer = ask(&attacked, &held, &format!("GET /v1/jobs?after={job}"), &[], "").await;
        assert_eq!((answer.status, answer.said()), (400, nothing.said()), "a place in the list of others");
    }
    let listed = ids(&ask(&attacked, &held, "GET /v1/jobs?limit=500", &[], "").await, "jobs");
    assert!(own.iter().filter(|job| **job != own[1]).all(|job| listed.contains(job)), "{listed:?}");
    assert!(foreign.iter().all(|job| !listed.contains(job)), "{listed:?}");
    let results = ids(&ask(&attacked, &held, "GET /v1/results", &[], "").await, "entries");
    assert_eq!(results, own[..2].iter().cloned().collect(), "the results of its queue");

    // Nothing became of the jobs that were asked for.
    let left = |list: &Value| {
        let jobs = list["jobs"].as_array().unwrap().iter().filter(|job| job["queue"] == "q2").cloned();
        jobs.collect::<Vec<_>>()
    };
    let after = ask(&attacked, &all, "GET /v1/jobs?queue=q2", &[], "").await.json();
    assert_eq!(left(&after), left(&before));
    for job in &foreign[..2] {
        let result = call(&attacked, &all, "GET /v1/jobs/{id}/result", job, "").await;
        assert_eq!((result.status, &*result.body), (200, "result of q2"));
    }
    // And the same calls do what they are for on the jobs of its own queue.
    for job in &own {
        for line in
            ["GET /v1/jobs/{id}", "GET /v1/jobs/{id}/result", "POST /v1/jobs/{id}/cancel", "DELETE /v1/jobs/{id}"]
        {
            let answer = call(&attacked, &held, line, job, "").await;
            assert!(answer.status < 300, "{line}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_follower_held_to_a_queue_is_sent_nothing_of_another() {
    let (attacked, all, hands) = server().await;
    let held = new_key(attacked.dir.path(), &["shop", "--queue", "q1"]);
    fill(&attacked, &all, &hands, "q2").await;
    let mut follower = stream(&attacked, &held, "/v1/results").await;
    for queue in ["q2", "q1"] {
        submit(&attacked, &all, queue, "", "x").await;
    }
    // The one that waits in q2, and the new one.
    for (queue, result) in [("q2", "not this"), ("q2", "nor this"), ("q1", "but this")] {
        hands.work(queue, result).await;
    }
    let read = follower.until(&STANDARD.encode("but this")).await;
    for hidden in ["result of q2", "not this", "nor this"] {
        assert!(!read.contains(&STANDARD.encode(hidden)), "{hidden}: {read}");
    }
    assert!(!read.contains("\"queue\":\"q2\""), "{read}");
    let refused = ask(&attacked, &held, "GET /v1/results?queue=q2", &["accept: text/event-stream"], "").await;
    assert_eq!(refused.status, 403, "{refused:?}");
}

#[tokio::test]
async fn a_key_makes_the_calls_that_its_rights_say_and_no_other() {
    let (attacked, all, hands) = server().await;
    let sets = [&["submit"][..], &["read"], &["manage"], &["submit", "read"]];
    for rights in sets {
        let flags = rights.iter().flat_map(|right| ["--right", right]);
        let key = new_key(attacked.dir.path(), &["shop"].into_iter().chain(flags).collect::<Vec<_>>());
        let whoami = ask(&attacked, &key, "GET /v1/whoami", &[], "").await;
        assert_eq!(whoami.json()["rights"], Value::from(rights), "{whoami:?}");
        for (line, needs) in OF_A_JOB.into_iter().chain(OTHERS) {
            // A new one each time, since some calls change it; a stream of its events ends with its result.
            let job = submit(&attacked, &all, "q1", "", "x").await;
            hands.work("q1", "result").await;
            let answer = call(&attacked, &key, line, &job, "q1").await;
            if needs.is_empty() || rights.contains(&needs) {
                assert!(![401, 403].contains(&answer.status), "{rights:?}: {line}: {answer:?}");
            } else {
                assert_eq!((answer.status, &*answer.field("slug")), (403, "forbidden"), "{rights:?}: {line}");
                assert!(answer.field("detail").contains(&format!("`{needs}`")), "{line}: {answer:?}");
                let still = call(&attacked, &all, "GET /v1/jobs/{id}/result", &job, "").await;
                assert_eq!((still.status, &*still.body), (200, "result"), "{line}");
            }
            // The jobs that the call itself submitted.
            while ask(&attacked, &all, "GET /v1/jobs?state=queued", &[], "").await.body.contains("job_id") {
                hands.work("q1", "result").await;
            }
        }
    }
    let file = attacked.dir.path().join("keys.toml");
    let listed = run(["keys", "list", "--file", file.to_str().unwrap()]);
    assert!(stdout(&listed).contains("submit, read") && stdout(&listed).contains("submit, read, manage"), "{listed:?}");
    let worker = ["keys", "new", "gpu", "--role", "worker", "--right", "read", "--file", file.to_str().unwrap()];
    let refused = run(worker);
    assert!(code(&refused) != 0 && stderr(&refused).contains("queues"), "{refused:?}");
}

#[tokio::test]
async fn a_key_without_read_gets_receipts_only() {
    let (attacked, _, hands) = server().await;
    let key = new_key(attacked.dir.path(), &["shop", "--right", "submit"]);
    let headers = ["idempotency-key: once", "prefer: wait=20"];
    let line = "POST /v1/queues/q1/jobs";
    let first = ask(&attacked, &key, line, &headers, "x").await;
    assert_eq!((first.status, &*first.field("state")), (202, "queued"), "at once: nobody works yet");
    assert!(!first.head.contains("preference-applied"), "{first:?}");
    hands.work("q1", "the result").await;
    let again = ask(&attacked, &key, line, &headers, "x").await;
    assert_eq!((again.status, again.field("job_id")), (202, first.field("job_id")), "{again:?}");
    assert!(again.head.contains("idempotency-replayed") && !again.body.contains("the result"), "{again:?}");
    let batch = r#"{"key": "once", "text": "x"}"#;
    let batch = ask(&attacked, &key, "POST /v1/queues/q1/batch", &headers[1..], batch).await;
    assert_eq!(batch.status, 200, "{batch:?}");
    assert!(!batch.body.contains("the result") && !batch.body.contains(&STANDARD.encode("the result")), "{batch:?}");
}
