//! Results that are pushed: in order, once, and no more of them than there is credit for.

use std::time::Duration;

use relay_bridge::contract::wire::client::answer::Body;
use relay_bridge::contract::wire::client::{Follow, FromClient, Request, ToClient};

use super::support::{Door, Wire, mail};

fn follow(results: u32, after: Option<String>) -> Request {
    Request::Follow(Follow { after, results, bytes: 1 << 20, ..Follow::default() })
}

/// The place at which a follow request begins that has nothing to tell yet.
async fn position(client: &mut Wire, id: u64) -> String {
    match client.next().await.unwrap() {
        ToClient::Position { id: of, cursor } if of == id => cursor,
        other => panic!("no position: {other:?}"),
    }
}

/// Whether nothing was pushed: the answer to another request comes first.
async fn is_quiet(client: &mut Wire) {
    match client.answer(1_000, Request::Whoami).await {
        ToClient::Whoami { id: 1_000, .. } => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_pushed_as_they_come_and_a_cursor_goes_on_where_it_stood() {
    let (relay, door) = Door::start().await;
    let (mut client, mut reader) = (door.client().await, door.client().await);
    reader.ask(1, follow(10, None)).await;
    position(&mut reader, 1).await;
    let first = client.submit(1, mail("a")).await;
    relay.work("text/plain", "A").await;
    let pushed = reader.result(1).await;
    assert_eq!((pushed.job, &pushed.payload), (first.job, &Body::Here("A".into())));
    client.submit(2, mail("b")).await;
    relay.work("text/plain", "B").await;
    let last = reader.result(1).await;
    assert_eq!(last.payload, Body::Here("B".into()));
    reader.send(&FromClient::Stop { id: 1 }).await;
    let followed = reader.next().await.unwrap();
    let ended = ToClient::Followed { id: 1, cursor: Some(last.cursor.clone()), reason: "stopped".to_owned() };
    assert_eq!(followed, ended);

    reader.ask(1, follow(10, Some(pushed.cursor))).await;
    assert_eq!(reader.result(1).await, last, "the id is free again, and nothing comes twice");
    let over_http = relay.get(&format!("/v1/results?after={}", last.cursor)).await;
    assert!(over_http.json()["entries"].as_array().unwrap().is_empty(), "cursors are those of HTTP");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_pushed_than_there_is_credit_for_and_other_requests_go_on() {
    let (relay, door) = Door::start().await;
    let mut client = door.client().await;
    client.ask(1, follow(1, None)).await;
    position(&mut client, 1).await;
    let mut other = door.client().await;
    for n in 0..3 {
        other.submit(n, mail("x")).await;
        relay.work("text/plain", "yy").await;
    }
    client.result(1).await;
    is_quiet(&mut client).await;
    client.send(&FromClient::Credit { id: 1, results: 1, bytes: 0 }).await;
    client.result(1).await;
    is_quiet(&mut client).await;
    client.send(&FromClient::Credit { id: 2, results: 9, bytes: 9 }).await;
    is_quiet(&mut client).await;
    client.send(&FromClient::Credit { id: 1, results: u32::MAX, bytes: u64::MAX }).await;
    client.result(1).await;
    client.send(&FromClient::Credit { id: 1, results: u32::MAX, bytes: u64::MAX }).await;
    is_quiet(&mut client).await;

    client.ask(3, Request::Follow(Follow { results: 9, bytes: 1, ..Follow::default() })).await;
    client.result(3).await;
    is_quiet(&mut client).await;
    client.ask(4, Request::Follow(Follow::default())).await;
    is_quiet(&mut client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_request_that_can_not_be_is_refused_in_the_words_of_http() {
    let (relay, door) = Door::start().await;
    let mut client = door.client().await;
    let job = relay.submit(&[("Relay-Client", "other")], "x").await.field("job_id");
    relay.work("text/plain", "y").await;
    let others = relay.ask(&format!("GET /v1/jobs/{job}/result"), &[("Relay-Client", "other")], "").await;
    for after in ["x", "", "NOW", others.header("relay-cursor"), "\u{0}", &"c".repeat(5_000)] {
        let problem = client.problem(1, follow(1, Some(after.to_owned()))).await;
        assert_eq!(problem.slug, "malformed-request", "{after}");
        assert!(
            problem.detail.starts_with("field `after` is not a cursor of this client's results"),
            "{}",
            problem.detail
        );
    }
    let prefix = Follow { key_prefix: Some("a b".to_owned()), results: 1, bytes: 1, ..Follow::default() };
    assert_eq!(client.problem(2, Request::Follow(prefix)).await.slug, "malformed-request");
    client.ask(3, follow(1, Some("now".to_owned()))).await;
    position(&mut client, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_results_that_are_asked_for_are_pushed_and_the_others_are_passed_over() {
    let (relay, door) = Door::start().await;
    let mut client = door.client().await;
    let queue = Some("other".parse().unwrap());
    client.ask(1, Request::Follow(Follow { queue, results: 9, bytes: 9, ..Follow::default() })).await;
    let begun = position(&mut client, 1).await;
    door.client().await.submit(1, mail("x")).await;
    relay.work("text/plain", "y").await;
    let moved = position(&mut client, 1).await;
    assert_ne!(moved, begun, "a reader that comes back need not pass it again");
    is_quiet(&mut client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_is_told_where_it_was_when_the_server_goes() {
    let (_relay, mut door) = Door::start().await;
    let mut client = door.client().await;
    client.ask(1, follow(1, None)).await;
    let begun = position(&mut client, 1).await;
    door.shutdown.cancel();
    let mut told = [client.next().await.unwrap(), client.next().await.unwrap()];
    told.sort_by_key(|message| matches!(message, ToClient::Followed { .. }));
    let [away, followed] = told;
    assert_eq!(away, ToClient::GoAway { reason: "draining".to_owned(), within: Duration::from_secs(30) });
    assert_eq!(followed, ToClient::Followed { id: 1, cursor: Some(begun), reason: "going-away".to_owned() });
    assert!(client.next().await.is_none(), "the connection ends");
    door.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_are_answered_when_the_server_stops_and_its_connections_end() {
    let (_relay, mut door) = Door::start().await;
    let mut client = door.client().await;
    let job = client.submit(1, mail("x")).await.job;
    client.ask(2, Request::Wait { job, wait: Duration::from_secs(50) }).await;
    // Its wait began before this answer.
    client.answer(3, Request::Whoami).await;
    door.shutdown.cancel();
    // The word to go and the answer come in any order, each once, and nothing behind them.
    let mut told = [client.next().await.unwrap(), client.next().await.unwrap()];
    told.sort_by_key(|message| matches!(message, ToClient::Job { .. }));
    let [ToClient::GoAway { .. }, ToClient::Job { id: 2, document }] = &told else { panic!("{told:?}") };
    assert!(document.contains("\"state\":\"queued\""), "{document}");
    assert!(client.next().await.is_none());
    door.drained().await;
}
