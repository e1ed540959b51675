//! Certificates and clients that change while requests come.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;
use tokio::task::{JoinSet, spawn_blocking};

use crate::admin::send;
use crate::cli_support::Running;
use crate::tls_support::{Authority, Files, ask, connect};

/// Swaps of a run; RELAY_SWAPS says another number.
const SWAPS: usize = 300;
/// Requests on a connection before the next one.
const KEPT: usize = 10;

fn block(name: &str) -> String {
    format!("[[client]]\nname = \"{name}\"\nany = [[{{ mtls = \"spiffe://a.example/{name}\" }}]]\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_certificates_and_clients_are_swapped_hundreds_of_times() {
    let swaps = std::env::var("RELAY_SWAPS").ok().map_or(SWAPS, |swaps| swaps.parse().unwrap());
    let (files, a) = (Files::new(), Authority::new("a"));
    let authority = files.write("ca.pem", a.pem());
    let clients = files.write("clients.toml", &block("batch"));
    let config = format!(
        "[store]\nmemory = true\n[access]\nclients = {clients:?}\n[listen]\nhttp = \"127.0.0.1:0\"\nclient_auth = \"required\"\n\
         tls_cert = {:?}\ntls_key = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"\n[[client_ca]]\nfile = {authority:?}\n\
         names = [\"spiffe://a.example/*\"]\n",
        files.files.certificate, files.files.key
    );
    let config = files.write("relay.toml", &config);
    // Nobody reads its log meanwhile.
    let relay = Running::start(["serve", "--json", "--log", "error", "--config", config.to_str().unwrap()]);
    let listening = &relay.ready["listening"];
    let [http, admin] = ["http", "admin"].map(|which| listening[which].as_str().unwrap().to_owned());
    let (address, identity) = (http.parse().unwrap(), a.signs(&["spiffe://a.example/batch"], 7));
    let client = files.client(&["http/1.1"], Some(&identity));
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for _ in 0..2 {
        let (client, over, answered) = (Arc::clone(&client), Arc::clone(&over), Arc::clone(&answered));
        load.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let mut stream = connect(address, &client).await.unwrap();
                for _ in 0..KEPT {
                    let answer = ask(&mut stream, "/v1/whoami").await.unwrap();
                    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"batch\""), "{answer}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let swapping = spawn_blocking(move || {
        for swap in 0..swaps {
            files.renew();
            // Whole, as whoever swaps a file does it: a half of one may be a good file that says something else.
            let next = files.write("next.toml", &[block("batch"), block(&format!("c-{swap}"))].concat());
            fs::rename(next, &clients).unwrap();
            let (status, text) = send(&admin, "POST", "/v1/reload", "", "");
            assert_eq!(status, 200, "{text}");
            assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
        }
    });
    swapping.await.unwrap();
    over.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    let answered = answered.load(Ordering::Relaxed);
    println!("{swaps} swaps, {answered} requests answered, none failed");
    assert!(answered >= 2, "requests came meanwhile");
    relay.stop();
}
