//! A client looks its jobs and results up, ends them, runs them again, and sees nobody else's.

use std::time::Duration;

use relay::auth::Authenticator;
use relay::auth::keys::{KeyFile, Role};
use relay_bridge::clock::Clock;
use relay_bridge::contract::JobId;

use super::support::{Relay, Reply, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_found_by_id_and_by_key() {
    let relay = Relay::start().await;
    let receipt = relay.submit(&[("Idempotency-Key", "a/b+c")], "x").await;
    let id = receipt.field("job_id");
    let by_id = relay.get(&format!("/v1/jobs/{id}")).await;
    let by_key = relay.get("/v1/queues/mail/jobs?key=a%2Fb%2Bc").await;
    assert_eq!((by_id.status, by_id.json()), (200, by_key.json()));
    assert_eq!(by_id.field("job_id"), id);
    relay.get("/v1/queues/other/jobs?key=a%2Fb%2Bc").await.is_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_waited_for_and_read_as_often_as_wanted() {
    let relay = Relay::start().await;
    let id = relay.submit(&[("Idempotency-Key", "k")], "x").await.field("job_id");
    let path = format!("/v1/jobs/{id}/result");
    let open = relay.get(&path).await;
    assert_eq!((open.status, open.field("state")), (202, "queued".into()));
    let waiting = format!("{path}?wait=50s");
    let (waited, _) = tokio::join!(relay.get(&waiting), relay.work("text/x-answer", vec![0xff, 0x00]));
    let again = relay.get(&path).await;
    for reply in [&waited, &again] {
        assert_eq!((reply.status, &reply.body[..]), (200, &[0xff, 0x00][..]));
        assert_eq!((reply.header("content-type"), reply.header("relay-outcome")), ("text/x-answer", "succeeded"));
        assert_eq!(reply.header("relay-cursor"), waited.header("relay-cursor"));
    }
    let view = relay.get(&format!("/v1/jobs/{id}")).await;
    assert_eq!((view.field("state"), view.field("outcome")), ("succeeded".into(), "succeeded".into()));
    assert!(!view.field("finished_at").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_is_idempotent_and_answers_with_the_outcome_that_stands() {
    let relay = Relay::start().await;
    let id = relay.submit(&[], "x").await.field("job_id");
    for _ in 0..2 {
        let reply = relay.ask(&format!("POST /v1/jobs/{id}/cancel"), &[], "").await;
        assert_eq!((reply.status, reply.field("outcome")), (200, "cancelled".into()));
    }
    let result = relay.get(&format!("/v1/jobs/{id}/result")).await;
    assert_eq!((result.status, result.header("relay-outcome")), (200, "cancelled"));
    let done = relay.submit(&[], "y").await.field("job_id");
    relay.work("text/plain", "z").await;
    let reply = relay.ask(&format!("POST /v1/jobs/{done}/cancel"), &[], "").await;
    assert_eq!((reply.status, reply.field("outcome")), (200, "succeeded".into()));
    let nobody = format!("POST /v1/jobs/{}/cancel", JobId::mint());
    relay.ask(&nobody, &[], "").await.is_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rerun_starts_the_next_generation_once() {
    let relay = Relay::start().await;
    let id = relay.submit(&[("Idempotency-Key", "k")], "x").await.field("job_id");
    let rerun = |from: &str| {
        let line = format!("POST /v1/jobs/{id}/rerun?from={from}");
        let relay = &relay;
        async move { relay.ask(&line, &[], "").await }
    };
    rerun("1").await.is_problem(409, "state-conflict");
    relay.work("text/plain", "one").await;
    let first = rerun("1").await;
    assert_eq!((first.status, first.field("generation"), first.field("replayed")), (202, "2".into(), "false".into()));
    let again = rerun("1").await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));
    assert_eq!(again.field("run_id"), first.field("run_id"));
    rerun("7").await.is_problem(409, "state-conflict");
    for from in ["", "0", "-1", "x"] {
        rerun(from).await.is_problem(400, "malformed-request");
    }
    let open = relay.get(&format!("/v1/jobs/{id}/result")).await;
    assert_eq!((open.status, open.field("generation")), (202, "2".into()));
    relay.work("text/plain", "two").await;
    assert_eq!(relay.get(&format!("/v1/jobs/{id}/result")).await.text(), "two");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_job_keeps_its_outcome_and_its_key_and_is_410_to_who_waits_for_it() {
    let relay = Relay::start().await;
    let key = [("Idempotency-Key", "k")];
    let id = relay.submit(&key, "secret").await.field("job_id");
    let erase = format!("DELETE /v1/jobs/{id}");
    relay.ask(&erase, &[], "").await.is_problem(409, "state-conflict");
    relay.work("text/plain", "answer").await;
    for _ in 0..2 {
        assert_eq!(relay.ask(&erase, &[], "").await.status, 204);
    }
    let gone = relay.get(&format!("/v1/jobs/{id}/result")).await;
    gone.is_problem(410, "result-expired");
    assert_eq!((gone.field("outcome"), gone.field("job_id")), ("succeeded".into(), id.clone()));
    assert!(!gone.field("finished_at").is_empty());
    let retry = relay.submit(&[key[0], ("Prefer", "wait=0")], "secret").await;
    assert_eq!((retry.status, retry.field("state")), (202, "succeeded".into()), "a retry never looks like a failure");
    let waited = relay.submit(&[key[0], ("Prefer", "wait=5")], "secret").await;
    waited.is_problem(410, "result-expired");
    assert_eq!((waited.field("outcome"), waited.field("job_id")), ("succeeded".into(), id));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_newest_first_a_page_at_a_time() {
    let relay = Relay::start().await;
    let mut ids = Vec::new();
    for key in ["a", "b", "c"] {
        ids.insert(0, relay.submit(&[("Idempotency-Key", key)], key).await.field("job_id"));
    }
    relay.work("text/plain", "done").await;
    let listed = |reply: &Reply| -> Vec<String> {
        let page: relay::api::JobsPage = serde_json::from_slice(&reply.body).unwrap();
        page.jobs.iter().map(|job| job.receipt.job_id.to_string()).collect()
    };
    assert_eq!(listed(&relay.get("/v1/jobs").await), ids);
    let first = relay.get("/v1/jobs?limit=2").await;
    assert_eq!(listed(&first), ids[..2]);
    let rest = relay.get(&format!("/v1/jobs?limit=2&after={}", first.field("next"))).await;
    assert_eq!((listed(&rest), rest.field("next")), (ids[2..].to_vec(), String::new()));
    assert_eq!(listed(&relay.get("/v1/jobs?state=succeeded&queue=mail").await), ids[2..]);
    assert_eq!(listed(&relay.get("/v1/jobs?queue=other").await), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_read_in_order_and_on_from_a_cursor() {
    let relay = Relay::start().await;
    let payloads = ["one".to_owned(), "two".to_owned(), "3".repeat(20_000)];
    for payload in &payloads {
        relay.submit(&[("Idempotency-Key", &payload[..1])], "x").await;
        relay.work("text/plain", payload.clone()).await;
    }
    let page = relay.get("/v1/results").await.json();
    let entries = page["entries"].as_array().unwrap();
    assert_eq!((entries.len(), &page["reset"]), (3, &serde_json::Value::Null));
    assert_eq!(entries[0]["payload_base64"], "b25l");
    assert_eq!(entries[2]["payload_base64"], serde_json::Value::Null, "a large one is linked");
    assert_eq!(entries[2]["size"], 20_000);
    let large = relay.get(entries[2]["link"].as_str().unwrap()).await;
    assert_eq!(large.text(), payloads[2]);
    assert_eq!(page["next"], entries[2]["cursor"]);

    let on = relay.get(&format!("/v1/results?after={}&limit=1", entries[0]["cursor"].as_str().unwrap())).await.json();
    assert_eq!(on["entries"].as_array().unwrap()[..], entries[1..2]);
    let none = relay.get(&format!("/v1/results?after={}&queue=other", entries[0]["cursor"].as_str().unwrap())).await;
    assert_eq!(
        (none.json()["entries"].as_array().unwrap().len(), none.field("next")),
        (0, page["next"].as_str().unwrap().into())
    );

    // Taken before the job is there, so that the wait is for the job's result.
    let now = relay.get("/v1/results?after=now").await.field("next");
    relay.submit(&[("Idempotency-Key", "4")], "x").await;
    let waiting = format!("/v1/results?after={now}&wait=50s");
    let (waited, _) = tokio::join!(relay.get(&waiting), relay.work("text/plain", "four"));
    assert_eq!(waited.json()["entries"][0]["payload_base64"], "Zm91cg==");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_clients_job_looks_like_one_that_is_not_there() {
    let relay = Relay::start().await;
    let mine = [("Relay-Client", "mine"), ("Idempotency-Key", "k")];
    let other = [("Relay-Client", "other")];
    let id = relay.submit(&mine, "x").await.field("job_id");
    relay.work("text/plain", "secret").await;
    let cursor = relay.ask("GET /v1/results", &mine, "").await.field("next");
    let absent = JobId::mint().to_string();
    for call in [
        "GET /v1/jobs/ID",
        "GET /v1/jobs/ID/result",
        "GET /v1/jobs/ID/result?wait=1s",
        "POST /v1/jobs/ID/cancel",
        "POST /v1/jobs/ID/rerun?from=1",
        "DELETE /v1/jobs/ID",
        "GET /v1/jobs?after=ID",
    ] {
        let found = relay.ask(&call.replace("ID", &id), &other, "").await;
        let absent = relay.ask(&call.replace("ID", &absent), &other, "").await;
        let (mut seen, mut expected) = (found.json(), absent.json());
        seen["instance"].take();
        expected["instance"].take();
        assert_eq!((found.status, seen), (absent.status, expected), "{call}");
    }
    assert_eq!(relay.ask("GET /v1/jobs", &other, "").await.json()["jobs"].as_array().unwrap().len(), 0);
    assert_eq!(relay.ask("GET /v1/results", &other, "").await.json()["entries"].as_array().unwrap().len(), 0);
    let stolen = relay.ask(&format!("GET /v1/results?after={cursor}"), &other, "").await;
    let garbage = relay.ask("GET /v1/results?after=AAAA", &other, "").await;
    assert_eq!(stolen.is_problem(400, "malformed-request").field("detail"), garbage.field("detail"));
    let kept = relay.ask(&format!("GET /v1/jobs/{id}/result"), &mine, "").await;
    assert_eq!((kept.status, &*kept.text()), (200, "secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_known_by_its_key_and_held_to_its_role_and_queues() {
    let directory = tempfile::tempdir().unwrap();
    let file = KeyFile::new(directory.path().join("keys.toml"));
    let clock = Clock::system();
    let bearer = |role, queues| {
        let key = file.create(role, "acme".parse().unwrap(), queues, clock.now()).unwrap();
        format!("Bearer {key}")
    };
    let client = bearer(Role::Client, Some(vec!["mail".parse().unwrap()]));
    let worker = bearer(Role::Worker, None);
    let authenticator = Authenticator::keys(file.path().to_owned(), clock.clone()).unwrap();
    let relay = Setup { authenticator, ..Setup::default() }.start().await;

    let key = ("Authorization", client.as_str());
    assert_eq!(relay.submit(&[key, ("Relay-Client", "other")], "x").await.field("client"), "acme");
    let whoami = relay.ask("GET /v1/whoami", &[key], "").await;
    let whoami: relay::api::Whoami = serde_json::from_slice(&whoami.body).unwrap();
    assert_eq!((whoami.client.as_str(), &*whoami.authenticated_by, &*whoami.durability), ("acme", "api-key", "none"));
    assert!(client.contains(&whoami.key_id.unwrap()));
    assert_eq!(whoami.limits.wait_max.0, Duration::from_secs(55));
    let [mail] = &whoami.queue_limits[..] else { panic!("one queue for this key") };
    assert_eq!((mail.queue.as_str(), mail.payload_max, mail.retention.0.as_secs()), ("mail", 1_000, 86_400));
    assert_eq!((mail.max_queued, mail.queued, mail.left), (1_000_000, Some(1), Some(999_999)));

    relay.ask("POST /v1/queues/other/jobs", &[key], "x").await.is_problem(403, "forbidden");
    relay.ask("POST /v1/queues/nowhere/jobs", &[key], "x").await.is_problem(403, "forbidden");
    relay.submit(&[("Authorization", &worker)], "x").await.is_problem(403, "forbidden");
    for headers in [&[][..], &[("Authorization", "Bearer a.b")], &[("Authorization", &client[..client.len() - 1])]] {
        let refused = relay.submit(headers, "x").await;
        refused.is_problem(401, "unauthenticated");
        assert_eq!(refused.header("www-authenticate"), "Bearer");
    }
}
