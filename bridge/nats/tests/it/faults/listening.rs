//! Somebody who subscribes to results and does not read them.

use std::time::Duration;

use futures_util::StreamExt as _;
use relay_bridge::leasing::Recorded;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Lookup, Start};
use relay_conformance::testing::NatsServer;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::support::{PATIENCE, SLOTS, Stage, jobs};

/// More in all than the sockets between server and subscriber take.
const RESULTS: usize = 300;
const RESULT_BYTES: usize = 100_000;

/// A subscriber that reads nothing once its subscription is in place.
async fn hanging(server: &NatsServer) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(TcpStream::connect(server.address()).await.unwrap());
    let said = "CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB relay.reply.acme.> 1\r\nPING\r\n";
    stream.write_all(said.as_bytes()).await.unwrap();
    let mut line = String::new();
    while line.trim() != "PONG" {
        line.clear();
        assert_ne!(stream.read_line(&mut line).await.unwrap(), 0, "the server hung up");
    }
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_does_not_read_holds_up_nobody_and_catches_up_by_cursor() {
    let limits = "max_pending: 8MB\nwrite_deadline: \"1s\"";
    let server = NatsServer::builder().config(limits).start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    let start = Start::After(stage.read("acme", Start::Now).await.1);
    let hanging = hanging(&server).await;
    let reader = async_nats::connect(server.url()).await.unwrap();
    let mut heard = reader.subscribe("relay.reply.acme.>").await.unwrap();
    // Once it is answered the subscription is in place.
    reader.request("relay.nobody", "".into()).await.unwrap_err();

    let submitted = stage.submit_many("acme", "job", RESULTS).await;
    let record = async {
        let mut recorded = 0;
        while recorded < RESULTS {
            for delivery in stage.lease(SLOTS, PATIENCE).await {
                assert_eq!(stage.succeed(&delivery, vec![b'x'; RESULT_BYTES]).await, Recorded::First);
                recorded += 1;
            }
        }
    };
    let listen = async {
        for number in 0..RESULTS {
            let message = tokio::time::timeout(PATIENCE, heard.next()).await;
            assert!(message.is_ok_and(|message| message.is_some()), "{number} of {RESULTS} were heard");
        }
    };
    let acme = "acme".parse().unwrap();
    let wait = stage.broker.results.wait(&acme, *submitted.last().unwrap(), PATIENCE);
    let ((), (), waited) = tokio::join!(record, listen, wait);
    assert!(matches!(waited.unwrap(), Lookup::Finished(_)));

    // The server gave up on the one that does not read. The other heard everything, and may have been slow for a moment on a
    // busy machine, which counts as well.
    let given_up = async {
        while server.monitor("/varz").await.is_none_or(|seen| seen["slow_consumers"].as_u64().unwrap_or(0) == 0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, given_up).await.expect("one slow consumer");
    drop(hanging);
    let (mut missed, _) = stage.read("acme", start).await;
    missed.sort_by_key(|entry| entry.result.job_id);
    let mut submitted = submitted;
    submitted.sort();
    assert_eq!(jobs(&missed), submitted);
}
