//! TLS with clients, and their certificates, over real sockets.

use std::sync::Arc;
use std::time::Duration;

use relay::ingress::proxy::Proxy;
use relay::tls::{ClientAuth, Handshake, Secured, Tls};
use relay_bridge::clock::Clock;
use relay_bridge::contract::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::{Relay, Setup};
use crate::tls_support::{Authority, Files, Identity, ask, connect, over};

const WHOAMI: &str = "/v1/whoami";

/// A relay that speaks TLS with `files`.
async fn secured(files: &Files, clients: ClientAuth) -> (Relay, Arc<Tls>) {
    let tls = Tls::open(files.files.clone()).unwrap();
    let mut setup = Setup::default();
    setup.front.tls = Some(Secured::http(Arc::clone(&tls), clients));
    (setup.start().await, tls)
}

/// The answer to one request of a client with this certificate; empty where the connection is refused.
async fn answer(relay: &Relay, files: &Files, identity: Option<&Identity>) -> String {
    let Ok(mut stream) = connect(relay.address, &files.client(&["http/1.1"], identity)).await else {
        return String::new();
    };
    ask(&mut stream, WHOAMI).await.unwrap_or_default()
}

/// Waits until so many handshakes ended so, because a peer learns of it before it is counted.
async fn ended(tls: &Tls, expected: &[(Handshake, u64)]) {
    for (end, count) in expected {
        while tls.handshakes().count(*end) < *count {
            tokio::task::yield_now().await;
        }
        assert_eq!(tls.handshakes().count(*end), *count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_over_tls_is_answered_with_the_protocol_that_the_client_offers_or_none() {
    let files = Files::new();
    let (relay, tls) = secured(&files, ClientAuth::Off).await;
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)] {
        let mut stream = connect(relay.address, &files.client(offered, None)).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen.map(str::as_bytes), "{offered:?}");
        if chosen != Some("h2") {
            assert!(ask(&mut stream, WHOAMI).await.unwrap().starts_with("HTTP/1.1 200 "), "{offered:?}");
        }
    }
    assert!(connect(relay.address, &files.client(&["relay/1"], None)).await.is_err(), "a worker's protocol");
    ended(&tls, &[(Handshake::Done, 3), (Handshake::Failed, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_speak_tls_is_told_so_in_one_line_and_the_end_of_tls_is_told_as_such() {
    let files = Files::new();
    let (relay, tls) = secured(&files, ClientAuth::Off).await;
    let told = relay.get(WHOAMI).await;
    assert_eq!(told.status, 400);
    assert!(told.text().starts_with("this port speaks TLS"), "{}", told.text());
    ended(&tls, &[(Handshake::Plaintext, 1)]).await;

    let mut stream = connect(relay.address, &files.client(&["http/1.1"], None)).await.unwrap();
    ask(&mut stream, WHOAMI).await.unwrap();
    relay.shutdown.cancel();
    // Without `close_notify` this is an error.
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_go_on_is_dropped() {
    let files = Files::new();
    let tls = Tls::open(files.files.clone()).unwrap();
    let mut setup = Setup::default();
    setup.front.tls = Some(Secured::http(Arc::clone(&tls), ClientAuth::Off));
    setup.limits.first_request = Duration::from_millis(100);
    let relay = setup.start().await;
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        assert!(matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)), "{begun:?}");
    }
    ended(&tls, &[(Handshake::Cut, 3)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_is_sent_to_a_port_without_it_is_refused() {
    let (files, relay) = (Files::new(), Relay::start().await);
    assert!(connect(relay.address, &files.client(&[], None)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_names_its_holder_only_if_its_own_authority_may_give_the_name() {
    let (a, b, stranger) = (Authority::new("a"), Authority::new("b"), Authority::new("stranger"));
    let mut files = Files::new();
    files.trust(&a, &["spiffe://a.example/*", "*.a.example"], None);
    files.trust(&b, &["spiffe://b.example/*"], None);
    let (relay, tls) = secured(&files, ClientAuth::Optional).await;
    let (taken, refused, none) = ("HTTP/1.1 200 ", "HTTP/1.1 403 ", "");
    for (authority, names, expected) in [
        (&a, &["spiffe://a.example/batch"][..], taken),
        (&a, &["spiffe://a.example/batch", "any.example", "other.example"], taken),
        (&a, &["worker.a.example"], taken),
        (&b, &["spiffe://b.example/x"], taken),
        // The other company's authority signs this one's name.
        (&b, &["spiffe://a.example/batch"], refused),
        (&b, &["worker.a.example"], refused),
        (&a, &["spiffe://a.example/x", "spiffe://a.example/y"], refused),
        (&a, &["x.a.example", "y.a.example"], refused),
        (&a, &["*.a.example"], refused),
        // Its subject has a name that would be good.
        (&a, &[], refused),
        (&stranger, &["spiffe://a.example/batch"], none),
    ] {
        let text = answer(&relay, &files, Some(&authority.signs(names, 7))).await;
        assert!(text.starts_with(expected) && text.is_empty() == expected.is_empty(), "{names:?}: {text}");
        assert!(expected != refused || text.contains("the client certificate"), "{text}");
    }
    ended(&tls, &[(Handshake::Certificate, 1)]).await;
    assert!(answer(&relay, &files, None).await.starts_with(taken), "where it is optional");
    let (relay, _tls) = secured(&files, ClientAuth::Required).await;
    assert_eq!(answer(&relay, &files, None).await, "", "where it is required");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_and_one_whose_list_is_overdue_are_refused_and_other_authorities_are_not_concerned() {
    let (a, b, c) = (Authority::new("a"), Authority::new("b"), Authority::new("c"));
    let mut files = Files::new();
    files.trust(&a, &["spiffe://a.example/*"], Some(&a.revokes(&[7], 2096)));
    files.trust(&b, &["spiffe://b.example/*"], Some(&b.revokes(&[], 2025)));
    files.trust(&c, &["spiffe://c.example/*"], None);
    let (relay, _tls) = secured(&files, ClientAuth::Required).await;
    for (authority, name, serial, is_taken) in [
        (&a, "spiffe://a.example/x", 8, true),
        (&a, "spiffe://a.example/x", 7, false),
        (&b, "spiffe://b.example/x", 8, false),
        (&c, "spiffe://c.example/x", 7, true),
    ] {
        let text = answer(&relay, &files, Some(&authority.signs(&[name], serial))).await;
        assert_eq!(text.starts_with("HTTP/1.1 200 "), is_taken, "{name} {serial}: {text}");
        assert_eq!(text.is_empty(), !is_taken, "{name} {serial}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_all_files_or_none_and_a_connection_whose_certificate_was_revoked_is_nobodys() {
    let a = Authority::new("a");
    let mut files = Files::new();
    files.trust(&a, &["spiffe://a.example/*"], Some(&a.revokes(&[], 2096)));
    let (relay, tls) = secured(&files, ClientAuth::Required).await;
    let (bad, good) = (a.signs(&["spiffe://a.example/bad"], 7), a.signs(&["spiffe://a.example/good"], 8));
    let mut open = connect(relay.address, &files.client(&["http/1.1"], Some(&bad))).await.unwrap();
    let mut other = connect(relay.address, &files.client(&["http/1.1"], Some(&good))).await.unwrap();
    for stream in [&mut open, &mut other] {
        assert!(ask(stream, WHOAMI).await.unwrap().starts_with("HTTP/1.1 200 "));
    }
    // The list is new, and the server's certificate is broken: neither is taken.
    files.write("crl-0.pem", &a.revokes(&[7], 2096));
    files.write("tls.pem", "nothing");
    assert!(tls.reload().unwrap_err().to_string().contains("tls.pem: there is no certificate in it"));
    assert!(ask(&mut open, WHOAMI).await.unwrap().starts_with("HTTP/1.1 200 "), "the old ones stand");

    files.renew();
    tls.reload().unwrap();
    // The connection is closed, or a request that overtook that is refused.
    let last = ask(&mut open, WHOAMI).await.unwrap_or_default();
    assert!(last.is_empty() || last.starts_with("HTTP/1.1 403 "), "{last}");
    assert!(ask(&mut other, WHOAMI).await.unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(answer(&relay, &files, Some(&bad)).await, "");
    assert!(answer(&relay, &files, Some(&good)).await.starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_key_of_another_certificate_and_files_that_are_not_there_are_all_said_at_once() {
    let files = Files::new();
    let mut wrong = files.files.clone();
    wrong.key = files.write("other.key", &files.server.signs(&["localhost"], 2).key);
    let said = Tls::open(wrong.clone()).unwrap_err().to_string();
    assert!(said.contains("it is not the key of the certificate in"), "{said}");
    wrong.certificate = "/nowhere/tls.pem".into();
    wrong.authorities.push(relay::tls::AuthorityFiles { file: "/nowhere/ca.pem".into(), names: Vec::new(), crl: None });
    let said = Tls::open(wrong).unwrap_err().to_string();
    assert!(said.contains("/nowhere/tls.pem") && said.contains("/nowhere/ca.pem"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_let_in_by_the_name_of_its_certificate_and_another_name_or_none_is_not() {
    let (files, a, authenticator) = Files::of_batch();
    let mut setup = Setup { authenticator, ..Setup::default() };
    setup.front.tls = Some(Secured::http(Tls::open(files.files.clone()).unwrap(), ClientAuth::Optional));
    let relay = setup.start().await;
    let let_in = answer(&relay, &files, Some(&a.signs(&["spiffe://a.example/batch"], 1))).await;
    assert!(let_in.starts_with("HTTP/1.1 200 ") && let_in.contains("\"client\":\"batch\""), "{let_in}");
    assert!(let_in.contains("spiffe://a.example/batch"), "the factor is named: {let_in}");
    let other = answer(&relay, &files, Some(&a.signs(&["spiffe://a.example/other"], 2))).await;
    assert!(other.starts_with("HTTP/1.1 403 "), "{other}");
    let none = answer(&relay, &files, None).await;
    assert!(none.starts_with("HTTP/1.1 401 "), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_of_which_too_many_handshakes_failed_is_closed_before_the_next_one_and_others_are_not() {
    let (a, stranger) = (Authority::new("a"), Authority::new("stranger"));
    let mut files = Files::new();
    files.trust(&a, &["spiffe://a.example/*"], None);
    let tls = Tls::open(files.files.clone()).unwrap();
    let clock = Clock::manual(Timestamp::from_millis(1_763_865_086_007));
    let mut setup = Setup { clock: clock.clone(), ..Setup::default() };
    setup.front.tls = Some(Secured::http(Arc::clone(&tls), ClientAuth::Required));
    setup.front.proxy = Some(Proxy::new(vec!["127.0.0.1".parse().unwrap()]));
    let relay = setup.start().await;
    let bad = files.client(&["http/1.1"], Some(&stranger.signs(&["spiffe://a.example/x"], 1)));
    let good = files.client(&["http/1.1"], Some(&a.signs(&["spiffe://a.example/x"], 2)));
    let asked = async |config, last: u8| {
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        let header =
            [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &[10, 1, 1, last, 10, 0, 0, 2, 128, 0, 0, 80][..]].concat();
        stream.write_all(&header).await.unwrap();
        let Ok(mut stream) = over(stream, config).await else { return String::new() };
        ask(&mut stream, WHOAMI).await.unwrap_or_default()
    };
    for _ in 0..100 {
        assert_eq!(asked(&bad, 1).await, "");
    }
    ended(&tls, &[(Handshake::Certificate, 100), (Handshake::Limited, 0)]).await;
    assert_eq!(asked(&bad, 1).await, "");
    assert_eq!(asked(&good, 1).await, "", "a good one of that source, too");
    ended(&tls, &[(Handshake::Certificate, 100), (Handshake::Limited, 2)]).await;
    assert!(asked(&good, 2).await.starts_with("HTTP/1.1 200 "), "another source");
    clock.advance(Duration::from_millis(50));
    assert!(asked(&good, 1).await.starts_with("HTTP/1.1 200 "), "20 a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_resumed_where_no_certificate_is_asked_for_and_nowhere_else() {
    let a = Authority::new("a");
    let mut files = Files::new();
    files.trust(&a, &["spiffe://a.example/*"], None);
    for (clients, expected) in [
        (ClientAuth::Off, rustls::HandshakeKind::Resumed),
        (ClientAuth::Optional, rustls::HandshakeKind::Full),
        (ClientAuth::Required, rustls::HandshakeKind::Full),
    ] {
        let (relay, _tls) = secured(&files, clients).await;
        let config = files.client(&["http/1.1"], Some(&a.signs(&["spiffe://a.example/x"], 1)));
        let mut last = None;
        for _ in 0..2 {
            let mut stream = connect(relay.address, &config).await.unwrap();
            assert!(ask(&mut stream, WHOAMI).await.unwrap().starts_with("HTTP/1.1 200 "));
            last = stream.get_ref().1.handshake_kind();
        }
        assert_eq!(last, Some(expected), "{clients:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_certificate_expires_ends_then() {
    let a = Authority::new("a");
    let mut files = Files::new();
    files.trust(&a, &["spiffe://a.example/*"], None);
    let (relay, tls) = secured(&files, ClientAuth::Required).await;
    // A machine that is busy may need longer than the first one is good for.
    for seconds in [3, 9, 27] {
        let identity = a.signs_for(&["spiffe://a.example/x"], 1, Some(Duration::from_secs(seconds)));
        let Ok(mut stream) = connect(relay.address, &files.client(&["http/1.1"], Some(&identity))).await else {
            continue;
        };
        let Ok(text) = ask(&mut stream, WHOAMI).await else { continue };
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        // It is idle, and would be for two minutes.
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        let kinds: Vec<_> = tls.expiries().iter().map(|expiry| expiry.kind).collect();
        return assert_eq!(kinds, ["authority", "certificate"]);
    }
    panic!("none was good for long enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_resumed_with_a_revoked_certificate_is_a_whole_handshake_and_refused() {
    let a = Authority::new("a");
    let mut files = Files::new();
    files.trust(&a, &["spiffe://a.example/*"], Some(&a.revokes(&[], 2096)));
    let (relay, tls) = secured(&files, ClientAuth::Optional).await;
    // It keeps what it is given of its sessions.
    let client = files.client(&["http/1.1"], Some(&a.signs(&["spiffe://a.example/x"], 7)));
    let mut first = connect(relay.address, &client).await.unwrap();
    assert!(ask(&mut first, WHOAMI).await.unwrap().starts_with("HTTP/1.1 200 "));
    files.write("crl-0.pem", &a.revokes(&[7], 2096));
    tls.reload().unwrap();
    let answer = match connect(relay.address, &client).await {
        Ok(mut again) => ask(&mut again, WHOAMI).await.unwrap_or_default(),
        Err(_) => String::new(),
    };
    assert_eq!(answer, "");
    ended(&tls, &[(Handshake::Certificate, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_whose_own_certificate_has_expired_vouches_for_nobody_and_the_next_one_beside_it_does() {
    let (old, next) = (Authority::until("a", 2025), Authority::new("a"));
    let mut files = Files::new();
    files.trust(&old, &["spiffe://a.example/*"], None);
    let (relay, tls) = secured(&files, ClientAuth::Optional).await;
    let [of_old, of_next] = [&old, &next].map(|authority| authority.signs(&["spiffe://a.example/x"], 7));
    assert_eq!(answer(&relay, &files, Some(&of_old)).await, "");
    ended(&tls, &[(Handshake::Certificate, 1)]).await;
    std::fs::write(&files.files.authorities[0].file, [old.pem(), next.pem()].concat()).unwrap();
    tls.reload().unwrap();
    assert_eq!(answer(&relay, &files, Some(&of_old)).await, "");
    let taken = answer(&relay, &files, Some(&of_next)).await;
    assert!(taken.starts_with("HTTP/1.1 200 "), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_have_no_protocol_in_common_or_hang_up_are_not_held_for_failed_credentials() {
    let files = Files::new();
    let (relay, tls) = secured(&files, ClientAuth::Optional).await;
    let stranger = files.client(&["relay/1"], None);
    for _ in 0..150 {
        assert!(connect(relay.address, &stranger).await.is_err());
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(b"\x16\x03\x01").await.unwrap();
    }
    assert!(answer(&relay, &files, None).await.starts_with("HTTP/1.1 200 "));
    ended(&tls, &[(Handshake::Failed, 150), (Handshake::Limited, 0)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_say_nothing_take_no_place_from_a_handshake_that_goes_on() {
    let files = Files::new();
    let (relay, _tls) = secured(&files, ClientAuth::Off).await;
    let mut hello = Vec::new();
    let config = files.client(&["http/1.1"], None);
    let mut client = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    client.write_tls(&mut hello).unwrap();
    let mut begun = TcpStream::connect(relay.address).await.unwrap();
    begun.write_all(&hello[..5]).await.unwrap();
    // There are 256 places.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(relay.address).await.unwrap());
    }
    // Connections are taken in their order: the silent ones are all in.
    assert!(answer(&relay, &files, None).await.starts_with("HTTP/1.1 200 "));
    begun.write_all(&hello[5..]).await.unwrap();
    let mut first = [0];
    begun.read_exact(&mut first).await.unwrap();
    assert_eq!(first, [0x16], "the server's half of the handshake");
    drop(silent);
}
