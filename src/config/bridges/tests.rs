//! Files with bridges, and what is said of their mistakes.

use std::path::Path;

use super::*;
use crate::config::file;
use crate::config::mistake::Mistakes;

const EDGE: &str = r#"
[[bridge]]
name = "edge"
slots = 200
client = "outer"
queues = { orders = "orders-eu" }
from.relay = { address = "127.0.0.1:7411", key_file = "edge.key" }
to.nats = { servers = ["nats://inner:4222"] }
"#;

const SHOP: &str = r#"
[[bridge]]
name = "shop"
reply = "orders.results"
from.nats = { servers = ["nats://shop:4222"] }
from.stream = { name = "ORDERS", consumer = "relay", subjects = ["orders.>"], put_aside = "refused" }

[bridge.job]
client = "shop"
queue = "orders"
key = "{header.Order-Id}"
meta = ["X-Tenant"]
"#;

fn parse(text: &str) -> Result<Vec<BridgeConfig>, String> {
    let (file, all) = file::read(Path::new("etc/relay.toml"), text);
    if all.is_empty() { Ok(file.bridges) } else { Err(Mistakes { file: file.path, all }.to_string()) }
}

#[test]
fn bridges_of_both_kinds_are_read() {
    let bridges = parse(&format!("{EDGE}{SHOP}")).unwrap();
    let [edge, shop] = &bridges[..] else { panic!("{bridges:?}") };
    let Origin::Relay { source: RelaySource::Tcp { address, key: Some(Secret::File(key)), .. }, queues, client } =
        &edge.from
    else {
        panic!("{:?}", edge.from);
    };
    assert_eq!((edge.name.as_str(), edge.slots.get(), address.as_str()), ("edge", 200, "127.0.0.1:7411"));
    assert_eq!(key, Path::new("etc/edge.key"), "paths are seen from the file's folder");
    assert_eq!(queues.iter().next().unwrap().1.as_str(), "orders-eu");
    assert_eq!(client.as_ref().unwrap().as_str(), "outer");
    let Origin::Stream(stream) = &shop.from else { panic!("{:?}", shop.from) };
    let ForeignStream { source, job, reply, .. } = &**stream;
    assert_eq!((shop.slots, source.put_aside.as_deref()), (SLOTS, Some("refused")));
    assert_eq!(job.key.as_ref().unwrap().to_string(), "{header.Order-Id}");
    assert_eq!(reply.as_ref().unwrap().2, "orders.results");
    assert!(shop.to.is_none(), "it goes where the process is told otherwise");
}

#[test]
fn a_mistake_is_named_with_its_file_line_and_key() {
    for (from, to, expected) in [
        (
            "slots = 200",
            "slot = 200",
            "relay.toml:4: bridge.edge.slot: there is no such setting\n      did you mean `slots`?",
        ),
        ("slots = 200", "slots = 0", "relay.toml:4: bridge.edge.slots: "),
        ("\"orders-eu\"", "\"Orders\"", "relay.toml:6: bridge.edge.queues.orders: "),
        (
            "from.relay = { address = \"127.0.0.1:7411\", key_file = \"edge.key\" }",
            "from = {}",
            "relay.toml:7: bridge.edge.from: it comes",
        ),
        ("queues = { orders = \"orders-eu\" }", "", "relay.toml:2: bridge.edge.queues: there"),
        ("nats://inner:4222", "ws://inner", "relay.toml:8: bridge.edge.to.nats.servers"),
        ("client = \"outer\"", "reply = \"x\"", "relay.toml:5: bridge.edge.job, reply"),
    ] {
        assert!(EDGE.contains(from));
        let error = parse(&EDGE.replace(from, to)).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    for (from, to, expected) in [
        ("{header.Order-Id}", "{body}", "relay.toml:11: bridge.shop.job.key: `{body}`: a place is one of"),
        ("client = \"shop\"", "client = \"{subject.2}\"", "bridge.shop.reply: results are those of one client"),
        ("queue = \"orders\"", "queue = \"Orders\"", "bridge.shop.job.queue: queue"),
        ("name = \"ORDERS\"", "name = \"OR DERS\"", "bridge.shop.from.stream.name: `OR DERS`"),
    ] {
        assert!(SHOP.contains(from));
        let error = parse(&SHOP.replace(from, to)).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_relay_on_sqs_has_the_usual_names_unless_others_are_written() {
    let on_sqs = |table: &str| {
        let relay = "from.relay = { address = \"127.0.0.1:7411\", key_file = \"edge.key\" }";
        parse(&EDGE.replace(relay, &format!("from.relay_sqs = {table}")))
    };
    for (table, expected) in [("{}", "relay"), ("{ table = \"jobs\" }", "jobs")] {
        let bridges = on_sqs(table).unwrap();
        let Origin::Relay { source: RelaySource::Sqs(sqs), .. } = &bridges[0].from else { panic!("{bridges:?}") };
        assert_eq!((sqs.table.as_str(), sqs.queue_prefix.as_str()), (expected, "relay-"));
    }
    let to = EDGE.replace("to.nats = { servers = [\"nats://inner:4222\"] }", "to.relay_sqs = { table = \"jobs\" }");
    let Some(Destination::Sqs(to)) = &parse(&to).unwrap()[0].to else { panic!("it goes to SQS") };
    assert_eq!(to.table, "jobs");
    let error = on_sqs("{ table = \"a b\" }").unwrap_err();
    assert!(error.contains("bridge.edge.from.relay_sqs.table"), "{error}");
}

#[test]
fn a_queue_of_sqs_is_read_like_a_stream() {
    const ORDERS: &str = r#"
[[bridge]]
name = "aws"
from.sqs = { queue = "https://sqs.eu-central-1.amazonaws.com/1/orders", put_aside = "https://sqs/1/refused", region = "eu-central-1" }
job = { client = "shop", queue = "orders" }
"#;
    let bridges = parse(ORDERS).unwrap();
    let Origin::Sqs(queue) = &bridges[0].from else { panic!("{bridges:?}") };
    assert!(queue.url.ends_with("/orders") && queue.put_aside.ends_with("/refused") && queue.reply.is_none());
    for (from, to, expected) in [
        ("job = {", "reply = \"x\"\njob = {", "bridge.aws.reply: `x` is no queue of SQS"),
        ("job = { client = \"shop\", queue = \"orders\" }", "", "bridge.aws.job: it is not said"),
        ("region = \"eu-central-1\"", "region = \"eu central\"", "bridge.aws.from.sqs.region"),
        (", put_aside = \"https://sqs/1/refused\"", "", "bridge.aws.from.sqs.put_aside: it is missing"),
    ] {
        let error = parse(&ORDERS.replace(from, to)).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn every_mistake_of_a_bridge_is_named_with_its_own_line() {
    let unread = SHOP
        .replace("reply = ", "answer = ")
        .replace("consumer = \"relay\"", "consumer = 7, colour = \"red\"")
        .replace("meta = [\"X-Tenant\"]", "meta = \"X-Tenant\"");
    let error = parse(&unread).unwrap_err();
    for part in [
        "toml:4: bridge.shop.answer: there is no such setting",
        "toml:6: bridge.shop.from.stream.consumer: ",
        "toml:6: bridge.shop.from.stream.colour: ",
        "toml:12: bridge.shop.job.meta: ",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(error.contains("has 4 mistakes"), "{error}");
    let contradicting = SHOP
        .replace("servers = [\"nats://shop:4222\"]", "servers = [\"ws://shop\"]")
        .replace("\"ORDERS\"", "\"OR DERS\"")
        .replace("from.nats", "queues = {}\nfrom.nats");
    let error = parse(&contradicting).unwrap_err();
    for part in [
        "toml:5: bridge.shop.queues, client",
        "toml:6: bridge.shop.from.nats.servers",
        "toml:7: bridge.shop.from.stream.name",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let reply = SHOP.lines().find_map(|line| line.strip_prefix("reply = ")).unwrap();
    let error = parse(&SHOP.replace("put_aside = \"refused\"", &format!("put_aside = {reply}"))).unwrap_err();
    assert!(error.contains("is the subject of `put_aside` as well"), "{error}");
}

#[test]
fn mistakes_of_all_bridges_are_named_at_once() {
    let relay = "from.relay = { address = \"127.0.0.1:7411\", key_file = \"edge.key\" }";
    let same = EDGE.replace(relay, "from.nats = { servers = [\"nats://inner:4222\"] }");
    let same = same.replace("orders-eu", "orders").replace("\"edge\"", "\"same\"");
    let twice = SHOP.replace("name = \"shop\"", "name = \"edge\"");
    let error = parse(&format!("{EDGE}{same}{twice}{}", SHOP.replace("key = ", "kee = "))).unwrap_err();
    for part in [
        "bridge.same.queues: orders is the same queue",
        "bridge.edge: this bridge is on line 2 already",
        "bridge.shop.job.kee: there is no such setting",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(error.contains("has 3 mistakes"), "{error}");
}
