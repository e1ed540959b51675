//! The served calls are the described calls, and the description is served too.

use std::io::Read as _;
use std::path::Path;

use relay::api::{Problem, Slug};
use relay::auth::Authenticator;
use relay::auth::keys::{KeyFile, Role};
use relay_bridge::clock::Clock;
use serde_json::Value;

use super::support::{Relay, Setup};

#[tokio::test(flavor = "multi_thread")]
async fn the_document_that_is_served_is_the_one_that_is_committed() {
    let relay = Relay::start().await;
    let reply = relay.get("/openapi.json").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    if std::env::var_os("RELAY_BLESS").is_some() {
        std::fs::write(&path, &reply.body).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(reply.text() == committed, "docs/openapi.json is another one: RELAY_BLESS=1 writes it anew");
    let document = reply.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reference_of_the_document_leads_somewhere_and_every_call_says_what_can_go_wrong() {
    let document = Relay::start().await.get("/openapi.json").await.json();
    let mut left = vec![&document];
    let mut references = 0;
    while let Some(value) = left.pop() {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    references += 1;
                    assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
                }
                left.extend(fields.values());
            }
            Value::Array(items) => left.extend(items),
            _ => {}
        }
    }
    assert!(references > 100, "{references}");
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, call) in item.as_object().unwrap() {
            for status in ["400", "401", "403", "429", "500", "503"] {
                assert!(call["responses"][status].is_object(), "{method} {path}: {status}");
            }
            let submits = ["submit_job", "submit_batch", "rerun_job"].contains(&call["operationId"].as_str().unwrap());
            let reference = call["responses"]["429"]["$ref"].as_str().unwrap();
            let quotas = document.pointer(&reference[1..]).unwrap()["description"].as_str().unwrap();
            assert!(!submits || quotas.contains("`quota-exceeded`"), "{method} {path}: {quotas}");
            assert!(call["summary"].is_string() && call["operationId"].is_string(), "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_whole_and_asks_for_nothing_from_elsewhere() {
    let relay = Relay::start().await;
    let page = relay.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    let html = page.text();
    for from_elsewhere in ["<script", "<link", "<img", "<iframe", " src=", "@import", "url(", "http://"] {
        assert!(!html.contains(from_elsewhere), "{from_elsewhere}");
    }
    let targets: Vec<_> = html.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    for target in targets {
        let leads = match target.strip_prefix('#') {
            Some(id) => html.contains(&format!(" id=\"{id}\"")),
            None => relay.get(&format!("/{target}")).await.status == 200,
        };
        assert!(leads, "{target} leads nowhere");
    }
    let document = relay.get("/openapi.json").await.json();
    for path in document["paths"].as_object().unwrap().keys() {
        assert!(html.contains(&format!("</b> {path}</h3>")), "{path}");
    }
    for slug in Slug::ALL {
        assert!(html.contains(&format!("<code>{slug}</code>")), "{slug}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_of_every_problem_is_a_page_that_the_server_has_for_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let file = KeyFile::new(folder.path().join("keys.toml"));
    let clock = Clock::system();
    file.create(Role::Client, "acme".parse().unwrap(), None, clock.now()).unwrap();
    let authenticator = Authenticator::keys(file.path().to_owned(), clock).unwrap();
    let relay = Setup { authenticator, ..Setup::default() }.start().await;
    let refused = relay.get("/v1/whoami").await;
    refused.is_problem(401, "unauthenticated");
    let page = relay.get(&refused.field("type")).await;
    assert!(page.text().contains(&refused.field("title")), "{}", page.text());
    for slug in Slug::ALL {
        let page = relay.get(&Problem::new(*slug, "").page).await;
        let kind = (page.header("content-type"), page.header("x-content-type-options"));
        assert_eq!((page.status, kind), (200, ("text/markdown; charset=utf-8", "nosniff")), "{slug}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/problems/{slug}.md"));
        assert_eq!(page.text(), std::fs::read_to_string(path).unwrap());
        assert!(page.text().contains(&format!("`{slug}`, HTTP status {}", slug.status())), "{slug}");
    }
    for path in ["/problems/no-such-slug", "/problems/overloaded.md", "/problems/", "/problems"] {
        relay.get(path).await.is_problem(404, "not-found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_lists_are_compressed_for_who_takes_that_and_nothing_else_is() {
    let relay = Relay::start().await;
    let gzip = [("accept-encoding", "gzip, br")];
    let batch = "{\"text\":\"x\"}\n".repeat(60);
    assert_eq!(relay.ask("POST /v1/queues/mail/batch", &[], batch).await.status, 200);
    let body = "{\"key\":\"k\",\"text\":\"x\"}";
    relay.ask("POST /v1/queues/mail/batch", &[], body).await;
    let id = relay.get("/v1/queues/mail/jobs?key=k").await.field("job_id");
    relay.work("application/json", format!("[{}1]", "1,".repeat(5_000))).await;
    let plain = relay.get("/v1/jobs").await;
    assert_eq!((plain.header("content-encoding"), plain.json()["jobs"].as_array().unwrap().len()), ("", 61));
    let mut peer = relay.connect().await;
    peer.send("GET /v1/jobs", &gzip, "").await;
    let head = peer.reply().await;
    assert_eq!((head.header("content-encoding"), head.header("vary")), ("gzip", "accept-encoding"));
    let mut packed = Vec::new();
    loop {
        let chunk = peer.chunk().await;
        if chunk.is_empty() {
            break;
        }
        packed.extend(chunk);
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == plain.body && packed.len() < unpacked.len() / 3);
    for path in ["/v1/whoami".to_owned(), format!("/v1/jobs/{id}/result")] {
        assert_eq!(relay.ask(&format!("GET {path}"), &gzip, "").await.header("content-encoding"), "", "{path}");
    }
    let stream = relay.stream("/v1/results", &gzip).await;
    assert_eq!(stream.head.header("content-encoding"), "");
}
