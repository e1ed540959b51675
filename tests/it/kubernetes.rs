//! Kubernetes as a worker tells it whether it is at work, and as it does not listen.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use relay::kubernetes::Account;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::cli_support::{code, run, stderr};

/// The account of the pod `mail-7`.
fn account(api: &str) -> (Account, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let claims = json!({ "kubernetes.io": { "namespace": "jobs", "pod": { "name": "mail-7", "uid": "1" } } });
    let token = format!("x.{}.y", URL_SAFE_NO_PAD.encode(claims.to_string()));
    std::fs::write(folder.path().join("token"), token).unwrap();
    (Account::at(api, folder.path()), folder)
}

/// An API server that gives every call this answer. The task ends with the question that it was asked.
async fn api(answer: &'static str) -> (String, JoinSet<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let mut asked = JoinSet::new();
    asked.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut text = String::new();
        while !text.contains("\r\n\r\n") || !text.ends_with('}') {
            let mut bytes = [0; 4 * 1024];
            let read = stream.read(&mut bytes).await.unwrap();
            assert_ne!(read, 0, "{text}");
            text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        text
    });
    (address, asked)
}

const DONE: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";

#[tokio::test]
async fn the_pod_of_the_token_has_the_annotations_changed_and_nothing_else() {
    for (busy, keeps_node, expected) in [
        (true, false, json!({ "controller.kubernetes.io/pod-deletion-cost": "100" })),
        (false, false, json!({ "controller.kubernetes.io/pod-deletion-cost": "0" })),
        (
            true,
            true,
            json!({ "controller.kubernetes.io/pod-deletion-cost": "100", "karpenter.sh/do-not-disrupt": "true" }),
        ),
        (
            false,
            true,
            json!({ "controller.kubernetes.io/pod-deletion-cost": "0", "karpenter.sh/do-not-disrupt": null }),
        ),
    ] {
        let (address, mut asked) = api(DONE).await;
        let (account, _folder) = account(&address);
        account.tell(busy, keeps_node).await.unwrap();
        let asked = asked.join_next().await.unwrap().unwrap();
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("PATCH /api/v1/namespaces/jobs/pods/mail-7 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/merge-patch+json"), "{head}");
        assert!(head.contains("authorization: Bearer x."), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body, json!({ "metadata": { "annotations": expected } }));
    }
}

#[tokio::test]
async fn a_refusal_is_told_in_the_servers_own_words() {
    const REFUSED: &str = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: 43\r\n\r\n\
                           {\"message\":\"pods \\\"mail-7\\\" is forbidden\"}   ";
    let (address, _asked) = api(REFUSED).await;
    let (account, _folder) = account(&address);
    let error = account.tell(true, false).await.unwrap_err();
    assert!(error.contains("403") && error.contains("is forbidden"), "{error}");
}

#[tokio::test]
async fn a_server_that_hangs_or_is_not_there_and_an_account_without_a_token_are_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (hanging, _folder) = account(&format!("http://{}", listener.local_addr().unwrap()));
    assert!(hanging.tell(true, false).await.unwrap_err().contains("timed out"));
    drop(listener);
    assert!(hanging.tell(true, false).await.is_err());
    let empty = tempfile::tempdir().unwrap();
    let error = Account::at("http://127.0.0.1:1", empty.path()).tell(true, false).await.unwrap_err();
    assert!(error.contains("token"), "{error}");
}

#[test]
fn a_worker_that_is_in_no_pod_is_told_so() {
    let refused = run(["worker", "--kubernetes", "--", "cat"]);
    assert_eq!(code(&refused), 2);
    assert!(stderr(&refused).contains("runs in no pod"), "{}", stderr(&refused));
    let alone = run(["worker", "--do-not-disrupt", "--", "cat"]);
    assert_eq!(code(&alone), 2);
    assert!(stderr(&alone).contains("--kubernetes"), "{}", stderr(&alone));
}
