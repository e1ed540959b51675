//! The PROXY header of a load balancer in front, over real sockets.

use std::io::Write as _;
use std::time::Duration;

use relay::auth::Authenticator;
use relay::ingress::proxy::{HeaderOutcome, Proxy};
use relay_bridge::clock::Clock;

use super::support::{Peer, Relay, Setup};

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x11\0\x03abc";
const WHOAMI: &[u8] = b"GET /v1/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A header of a peer at `address`, which came through `endpoint` if there is one.
fn header(address: [u8; 4], endpoint: &str) -> Vec<u8> {
    let mut block = [&address[..], &[10, 0, 0, 2, 0x80, 0, 0, 80]].concat();
    if !endpoint.is_empty() {
        block.extend([0xEA, 0, u8::try_from(endpoint.len() + 1).unwrap(), 1]);
        block.extend(endpoint.as_bytes());
    }
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length[..], &block].concat()
}

/// A relay behind a balancer at `trusted`.
fn behind(trusted: &str) -> Setup {
    let mut setup = Setup::default();
    setup.front.proxy = Some(Proxy::new(vec![trusted.parse().unwrap()]));
    setup
}

/// The outcomes of the connections to `relay` so far, without what never came.
fn outcomes(relay: &Relay) -> Vec<(&'static str, u64)> {
    let counts = relay.ingress.proxy_headers();
    let all = HeaderOutcome::ALL.map(|outcome| (outcome.as_str(), counts.count(outcome)));
    all.into_iter().filter(|(_, count)| *count > 0).collect()
}

async fn send(relay: &Relay, bytes: &[u8]) -> Peer {
    let mut peer = relay.connect().await;
    // It may be closed before it has sent that.
    peer.try_write(bytes).await;
    peer
}

async fn endpoint(peer: &mut Peer) -> String {
    peer.reply().await.field("vpc_endpoint_id")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_names_the_endpoint_whether_the_header_comes_at_connect_or_with_the_first_request_or_in_parts() {
    let relay = behind("127.0.0.1").start().await;
    let header = header([10, 1, 1, 1], "vpce-08d2bf15fac5001c9");
    let whole = [&header, WHOAMI].concat();
    let mut peer = send(&relay, &whole).await;
    assert_eq!(endpoint(&mut peer).await, "vpce-08d2bf15fac5001c9");
    // And for every further request of that connection.
    peer.write(WHOAMI).await;
    assert_eq!(endpoint(&mut peer).await, "vpce-08d2bf15fac5001c9");
    for split in 1..header.len() + 3 {
        let mut peer = send(&relay, &whole[..split]).await;
        tokio::task::yield_now().await;
        peer.write(&whole[split..]).await;
        assert_eq!(endpoint(&mut peer).await, "vpce-08d2bf15fac5001c9", "split at {split}");
    }
    assert_eq!(outcomes(&relay), [("proxied", header.len() as u64 + 3)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancers_own_connection_and_one_without_an_endpoint_name_none() {
    let relay = behind("127.0.0.0/28").start().await;
    for header in [LOCAL.to_vec(), header([10, 1, 1, 1], "")] {
        assert_eq!(endpoint(&mut send(&relay, &[&header, WHOAMI].concat()).await).await, "");
    }
    assert_eq!(outcomes(&relay), [("proxied", 1), ("local", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_header_is_closed_unanswered_and_counted_by_what_came() {
    let relay = behind("127.0.0.1").start().await;
    let truncated = &header([10, 1, 1, 1], "vpce-08d2bf15fac5001c9")[..20];
    for (sent, outcome) in [
        (WHOAMI, "malformed"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\n\r\n", "malformed"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "malformed"),
        (&header([10, 1, 1, 1], "vpce-NOT-ONE")[..], "malformed"),
        (b"", "silent"),
        (truncated, "cut"),
    ] {
        let before = outcomes(&relay).into_iter().find(|(name, _)| *name == outcome).map_or(0, |(_, count)| count);
        let mut peer = send(&relay, sent).await;
        if outcome != "malformed" {
            peer.half_close().await;
        }
        assert_eq!(peer.closed().await, "", "{sent:02x?}");
        assert!(outcomes(&relay).contains(&(outcome, before + 1)), "{sent:02x?}: {:?}", outcomes(&relay));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_never_ends_is_dropped() {
    let mut setup = behind("127.0.0.1");
    if let Some(proxy) = &mut setup.front.proxy {
        proxy.within = Duration::from_millis(50);
    }
    let relay = setup.start().await;
    for sent in [&b""[..], &LOCAL[..17]] {
        assert_eq!(send(&relay, sent).await.closed().await, "");
    }
    assert_eq!(outcomes(&relay), [("silent", 1), ("cut", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_balancer_is_closed_unread_whatever_it_sends() {
    let relay = behind("10.0.0.1").start().await;
    for sent in [&[&header([10, 1, 1, 1], "vpce-08d2bf15fac5001c9"), WHOAMI].concat()[..], WHOAMI, b""] {
        assert_eq!(send(&relay, sent).await.closed().await, "");
    }
    assert_eq!(outcomes(&relay), [("untrusted", 3)]);
    assert_eq!(relay.ingress.connections(), (0, 0), "it never had a place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_header_is_no_header_but_a_request_that_can_not_be_read() {
    let relay = behind("127.0.0.1").start().await;
    let (first, second) = (header([10, 1, 1, 1], "vpce-0000000a"), header([10, 1, 1, 1], "vpce-0000000b"));
    let mut peer = send(&relay, &[&first, &second[..], WHOAMI].concat()).await;
    peer.reply().await.is_problem(400, "malformed-request");
    assert_eq!(outcomes(&relay), [("proxied", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_no_header_is_read() {
    let relay = Relay::start().await;
    let mut peer = send(&relay, &[&header([10, 1, 1, 1], "vpce-08d2bf15fac5001c9"), WHOAMI].concat()).await;
    peer.reply().await.is_problem(400, "malformed-request");
    assert_eq!(endpoint(&mut send(&relay, WHOAMI).await).await, "");
    assert_eq!(outcomes(&relay), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_few_connections_without_a_caller_and_an_endpoint_its_number_and_nobody_else_is_kept_out() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"").unwrap();
    let mut setup = behind("127.0.0.1");
    setup.authenticator = Authenticator::keys(file.path().to_owned(), Clock::system()).unwrap();
    (setup.limits.source_unproven, setup.limits.endpoint_connections) = (2, 3);
    let relay = setup.start().await;
    // Nobody has a key: every answer is 401, and the connection stays one without a caller.
    let open = async |last: u8, endpoint: &str| {
        let mut peer = send(&relay, &[&header([10, 1, 1, last], endpoint), WHOAMI].concat()).await;
        assert_eq!(peer.reply().await.status, 401);
        peer
    };
    let refused = async |last: u8, endpoint: &str| {
        let mut peer = send(&relay, &[&header([10, 1, 1, last], endpoint), WHOAMI].concat()).await;
        assert_eq!(peer.closed().await, "");
    };
    let _same = [open(1, "vpce-0000000a").await, open(1, "vpce-0000000a").await];
    refused(1, "vpce-0000000a").await;
    // The same address of another company is another source.
    let _other = open(1, "vpce-0000000b").await;
    let _third = open(2, "vpce-0000000a").await;
    refused(3, "vpce-0000000a").await;
    // Without an endpoint there is no bound of one.
    let _without = [open(1, "").await, open(2, "").await, open(3, "").await, open(4, "").await];
    assert_eq!(outcomes(&relay), [("proxied", 8), ("source-full", 1), ("endpoint-full", 1)]);
}
