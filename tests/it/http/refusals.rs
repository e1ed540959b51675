//! Every refusal is a problem document that says what to do; and nothing was done.

use relay_bridge::contract::JobId;

use super::support::{Relay, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_can_not_be_read_is_refused_by_name() {
    let relay = Relay::start().await;
    let long_key = "k".repeat(256);
    let long_meta = "m".repeat(2_048);
    let long_type = format!("text/{}", "x".repeat(255));
    for (header, value) in [
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "\"\""),
        ("Idempotency-Key", "\"open"),
        ("Idempotency-Key", "a b"),
        ("Idempotency-Key", long_key.as_str()),
        ("Idempotency-Key", "schlüssel"),
        ("Prefer", "wait"),
        ("Prefer", "wait=20s"),
        ("Prefer", "wait=-1"),
        ("Prefer", "wait=ever"),
        ("Relay-Delay", "10"),
        ("Relay-Delay", "8d"),
        ("Relay-Delay", "soon"),
        ("Relay-Expires-In", "0s"),
        ("Relay-Expires-In", "1.5h"),
        ("Relay-Dealy", "10s"),
        ("Relay-Meta-", "x"),
        ("Relay-Meta-A", long_meta.as_str()),
        ("Relay-Meta-A", "\u{fc}"),
        ("Relay-Client", "No Client"),
        ("Content-Type", long_type.as_str()),
    ] {
        let reply = relay.submit(&[(header, value)], "x").await;
        reply.is_problem(400, "malformed-request");
        let named = reply.field("detail").to_lowercase().replace(' ', "-");
        let meta = header.to_lowercase().starts_with("relay-meta");
        assert!(named.contains(&header.to_lowercase()) || meta && named.contains("relay-meta"), "{header}: {named}");
    }
    let twice = relay.submit(&[("Idempotency-Key", "a"), ("Idempotency-Key", "b")], "x").await;
    twice.is_problem(400, "malformed-request");
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 0, "nothing was done");
    let longest = relay.submit(&[("Idempotency-Key", &long_key[1..]), ("Relay-Meta-A", &long_meta[1..])], "x").await;
    assert_eq!(longest.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_or_query_that_can_not_be_read_is_refused_by_name() {
    let relay = Relay::start().await;
    let id = JobId::mint().to_string();
    let upper = id.to_uppercase();
    let bare = id.replace('-', "");
    for call in [
        "POST /v1/queues/UPPER/jobs",
        "POST /v1/queues/-x/jobs",
        "POST /v1/queues/%00/jobs",
        "POST /v1/queues/%ff/jobs",
        "POST /v1/queues/a%2Fb/jobs",
        &format!("POST /v1/queues/{}/jobs", "q".repeat(64)),
        "POST /v1/queues/mail/jobs?wait=20s",
        "GET /v1/jobs/x",
        &format!("GET /v1/jobs/{upper}"),
        &format!("GET /v1/jobs/{bare}"),
        &format!("GET /v1/jobs/{id}/result?wait=20"),
        &format!("GET /v1/jobs/{id}/result?wiat=20s"),
        &format!("GET /v1/jobs/{id}/result?wait=1s&wait=2s"),
        &format!("POST /v1/jobs/{id}/rerun"),
        "GET /v1/queues/mail/jobs",
        "GET /v1/queues/mail/jobs?key=",
        "GET /v1/jobs?limit=0",
        "GET /v1/jobs?limit=501",
        "GET /v1/jobs?state=running",
        "GET /v1/jobs?after=x",
        "GET /v1/results?after=x",
        "GET /v1/results?limit=101",
        "GET /v1/results?queue=UPPER",
    ] {
        let reply = relay.ask(call, &[], "").await;
        assert_eq!(reply.status, 400, "{call}: {}", reply.text());
        reply.is_problem(400, "malformed-request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_parameters_says_that_it_has_none() {
    let relay = Relay::start().await;
    let reply = relay.ask("POST /v1/queues/mail/jobs?wait=20s", &[], "").await;
    reply.is_problem(400, "malformed-request");
    assert_eq!(reply.field("detail"), "this call has no parameter `wait`: it has none; leave it out");
    let reply = relay.ask("GET /v1/queues/mail/jobs?wait=20s", &[], "").await;
    assert_eq!(reply.field("detail"), "this call has no parameter `wait`: it has key");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_can_not_be_read_are_told_so_and_not_to_be_sent_again() {
    let relay = Relay::start().await;
    for body in ["zz\r\nhi\r\n0\r\n\r\n", "2\r\nhiXX0\r\n\r\n"] {
        let reply = relay.submit(&[("transfer-encoding", "chunked")], body).await;
        reply.is_problem(400, "malformed-request");
        assert_eq!(reply.field("retry"), "no", "{}", reply.text());
        let detail = reply.field("detail");
        assert!(detail.contains("chunk") && !detail.contains("send it again"), "{detail}");
    }
    assert_eq!(relay.get("/v1/jobs").await.json()["jobs"].as_array().unwrap().len(), 0, "nothing was done");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_so() {
    let relay = Relay::start().await;
    for call in [
        "GET /",
        "GET /v1/jobs/",
        "GET /v2/jobs",
        "GET /healthz",
        "GET /livez",
        "GET /metrics",
        "POST /v1/queues/nowhere/jobs",
        "GET /v1/queues/mail/jobs?key=none",
        &format!("GET /v1/jobs/{}", JobId::mint()),
        &format!("GET /v1/jobs/{}/result?wait=50s", JobId::mint()),
        &format!("DELETE /v1/jobs/{}", JobId::mint()),
    ] {
        relay.ask(call, &[], "").await.is_problem(404, "not-found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_says_which_methods_it_has() {
    let relay = Relay::start().await;
    for (path, allow) in [
        ("/v1/queues/mail/jobs", "GET,HEAD,OPTIONS,POST"),
        ("/v1/queues/mail/batch", "OPTIONS,POST"),
        ("/v1/jobs/x", "DELETE,GET,HEAD,OPTIONS"),
        ("/v1/whoami", "GET,HEAD,OPTIONS"),
    ] {
        let refused = relay.ask(&format!("PUT {path}"), &[], "").await;
        refused.is_problem(405, "method-not-allowed");
        let asked = relay.ask(&format!("OPTIONS {path}"), &[], "").await;
        assert_eq!((asked.status, &*asked.text()), (204, ""));
        for reply in [refused, asked] {
            let mut methods: Vec<_> = reply.header("allow").split(',').collect();
            methods.sort_unstable();
            assert_eq!(methods.join(","), allow, "{path}");
        }
    }
    assert_eq!(relay.ask("OPTIONS *", &[], "").await.status, 204);
    relay.ask("OPTIONS /v1/nowhere", &[], "").await.is_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_to_head_is_the_head_of_the_answer_to_get() {
    let relay = Relay::start().await;
    let id = relay.submit(&[("Idempotency-Key", "k")], "x").await.field("job_id");
    relay.work("text/plain", "an answer").await;
    for (path, status) in [(format!("/v1/jobs/{id}/result"), 200), ("/v1/jobs/none".to_owned(), 400)] {
        let get = relay.get(&path).await;
        let mut peer = relay.connect().await;
        peer.write(format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").as_bytes()).await;
        let head = peer.closed().await.to_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")) && head.ends_with("\r\n\r\n"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", get.body.len())), "{head}");
        let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
        let head = client.head(format!("http://{}{path}", relay.address)).send().await.unwrap();
        assert_eq!(head.status().as_u16(), status);
        assert_eq!(head.headers()["content-length"], get.body.len().to_string());
        assert_eq!(head.bytes().await.unwrap().len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_above_the_limit_is_refused_before_it_is_read() {
    let relay = Relay::start().await;
    // Nothing of the body is sent: an answer that waited for it would not come.
    let reply = relay.submit(&[("content-length", "1001")], "").await;
    reply.is_problem(413, "payload-too-large");
    assert_eq!((reply.field("limit"), reply.field("actual")), ("1000".into(), "1001".into()));
    let reply = relay.submit(&[("content-length", "9223372036854775807")], "").await;
    reply.is_problem(413, "payload-too-large");
    assert_eq!(relay.submit(&[], [0; 1000]).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_its_whole_body_first_still_gets_the_answer() {
    let relay = Relay::start().await;
    let mut peer = relay.connect().await;
    // More than the sockets hold between them, so that closing without reading would lose the answer in a reset.
    for _ in 0..3 {
        peer.send("POST /v1/queues/mail/jobs", &[], vec![0; 900_000]).await;
        peer.reply().await.is_problem(413, "payload-too-large");
    }
    peer.send("POST /v1/queues/nowhere/jobs", &[], vec![0; 900_000]).await;
    peer.reply().await.is_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_cut_off_at_the_limit() {
    let relay = Relay::start().await;
    let chunk = format!("320\r\n{}\r\n", "x".repeat(800));
    // It never ends by itself.
    let reply = relay.submit(&[("transfer-encoding", "chunked")], chunk.repeat(2)).await;
    reply.is_problem(413, "payload-too-large");
    assert_eq!(reply.field("limit"), "1000");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_and_too_large_headers_are_refused() {
    let relay = Relay::start().await;
    let large = "x".repeat(17_000);
    let reply = relay.ask("GET /v1/whoami", &[("x-large", &large)], "").await;
    reply.is_problem(431, "headers-too-large");
    assert_eq!(reply.field("limit"), "16384");
    relay.get(&format!("/v1/jobs?queue={large}")).await.is_problem(431, "headers-too-large");
    relay.ask("GET /v1/whoami", &vec![("x-many", "1"); 70], "").await.is_problem(431, "headers-too-large");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_not_even_read_is_refused_with_a_problem_too() {
    let relay = Relay::start().await;
    let reply = relay.ask("GET /v1/whoami", &vec![("x-many", "1"); 101], "").await;
    reply.is_problem(431, "headers-too-large");
    assert_eq!(reply.header("connection"), "close");
    // Far more than is read, so that closing without reading would lose the answer in a reset.
    let endless = "x".repeat(900_000);
    relay.ask("GET /v1/whoami", &[("x-large", &endless)], "").await.is_problem(431, "headers-too-large");
    relay.get(&format!("/{endless}")).await.is_problem(431, "headers-too-large");
    for garbage in
        ["GET\r\n\r\n", "GET / HTTP/1.1\r\nno colon\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}\r\n\r\n"]
    {
        let mut peer = relay.connect().await;
        // Behind a request that was answered, too.
        peer.send("GET /v1/whoami", &[], "").await;
        assert_eq!(peer.reply().await.status, 200);
        peer.write(garbage.as_bytes()).await;
        peer.reply().await.is_problem(400, "malformed-request");
        assert_eq!(peer.closed().await, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_the_headers_count_holds_below_and_above_the_default() {
    for limit in [50, 150] {
        let mut setup = Setup::default();
        setup.limits.headers = limit;
        let relay = setup.start().await;
        // The test's own requests have a few headers more.
        let some = vec![("x-many", "1"); limit - 10];
        assert_eq!(relay.ask("GET /v1/whoami", &some, "").await.status, 200);
        let many = vec![("x-many", "1"); limit + 1];
        relay.ask("GET /v1/whoami", &many, "").await.is_problem(431, "headers-too-large");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http_end_the_connection() {
    let relay = Relay::start().await;
    for garbage in
        ["\0\0\0\0\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\0", "{\"json\": 1}\r\n\r\n"]
    {
        let mut peer = relay.connect().await;
        peer.write(garbage.as_bytes()).await;
        peer.half_close().await;
        let answer = peer.closed().await;
        assert!(!answer.contains(" 200 ") && !answer.contains(" 202 "), "{answer}");
    }
    assert_eq!(relay.get("/v1/whoami").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_requests_have_usual_answers() {
    let relay = Relay::start().await;
    for (call, status) in [
        ("OPTIONS /v1/whoami", 204),
        ("CONNECT localhost:80", 404),
        ("TRACE /v1/whoami", 405),
        ("BREW /v1/whoami", 405),
        ("GET http://localhost/v1/whoami", 200),
        ("GET /v1/queues/mail/jobs?key=%ff", 400),
        ("GET /v1/whoami?", 200),
        ("GET /v1/whoami?x", 400),
        ("GET //v1/whoami", 404),
    ] {
        let reply = relay.ask(call, &[], "").await;
        assert_eq!(reply.status, status, "{call}: {}", reply.text());
    }
}

/// Valid requests with a few bytes changed, from a fixed seed. Their outcome, whichever it is, is no bug of relay's.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_requests_never_end_in_an_internal_error() {
    let mut setup = Setup::default();
    // So that whatever is not a whole request ends soon, and one that is whole is read before, on a busy machine too.
    let short = std::time::Duration::from_secs(1);
    (setup.limits.first_request, setup.limits.idle) = (short, short);
    (setup.limits.body_timeout, setup.limits.wait_max) = (short, short);
    let relay = setup.start().await;
    let requests = [
        "POST /v1/queues/mail/jobs HTTP/1.1\r\nhost: localhost\r\nidempotency-key: \"k\"\r\nprefer: wait=0\r\nrelay-delay: 5m\r\n\
         relay-meta-a: b\r\ncontent-length: 5\r\n\r\nhello",
        "POST /v1/queues/mail/jobs HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "GET /v1/jobs?queue=mail&state=queued&limit=2 HTTP/1.1\r\nhost: localhost\r\nrelay-client: dev\r\n\r\n",
        "GET /v1/results?after=AZr0Pw&limit=5&queue=mail HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "POST /v1/jobs/019ab0d2-7c3e-7000-8000-000000000000/rerun?from=1 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ];
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    let mut answered = 0;
    for _ in 0..4 {
        let damaged = requests.iter().cycle().take(250).map(|request| {
            let mut bytes = request.as_bytes().to_vec();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(3) {
                    0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                    1 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, b"\r\n:;,=%\"\0-9"[random(11)]),
                }
            }
            bytes
        });
        let asked = damaged.map(|bytes| async {
            let mut peer = relay.connect().await;
            peer.write(&bytes).await;
            (bytes, peer.closed().await)
        });
        for (bytes, answer) in futures_util::future::join_all(asked).await {
            assert!(!answer.starts_with("HTTP/1.1 5"), "{:?} -> {answer}", String::from_utf8_lossy(&bytes));
            answered += u32::from(answer.starts_with("HTTP/1.1 "));
        }
    }
    assert!(answered > 500, "{answered} of 1000 were requests at all");
    assert_eq!(relay.get("/v1/whoami").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_above_its_quota_is_told_so_but_not_for_a_retry() {
    let mut setup = Setup::default();
    setup.policy.client_defaults.max_queued = 1;
    let relay = setup.start().await;
    let key = [("Idempotency-Key", "k")];
    assert_eq!(relay.submit(&key, "x").await.status, 202);
    let reply = relay.submit(&[], "y").await;
    reply.is_problem(429, "quota-exceeded");
    assert_eq!((reply.field("limit"), reply.field("retry")), ("1".into(), "safe".into()));
    let retry = relay.submit(&key, "x").await;
    assert_eq!((retry.status, retry.field("replayed")), (202, "true".into()));
}
