//! Messages of a foreign stream, as jobs.

use super::*;

fn source() -> StreamSource {
    StreamSource {
        stream: "ORDERS".to_owned(),
        consumer: "relay".to_owned(),
        subjects: vec!["b".to_owned(), "a".to_owned()],
        put_aside: None,
        reply: None,
    }
}

#[test]
fn a_consumer_that_would_lose_messages_is_refused() {
    let good = consumer::Config {
        filter_subjects: vec!["a".to_owned(), "b".to_owned()],
        ack_policy: AckPolicy::Explicit,
        max_deliver: -1,
        ..consumer::Config::default()
    };
    assert!(check_consumer(&source(), &good).is_ok());
    for (bad, part) in [
        (consumer::Config { ack_policy: AckPolicy::None, ..good.clone() }, "acknowledgements"),
        (consumer::Config { max_deliver: 5, ..good.clone() }, "max_deliver"),
        (consumer::Config { backoff: vec![ACK_WAIT], ..good.clone() }, "backoff"),
        (consumer::Config { headers_only: true, ..good.clone() }, "bodies"),
        (consumer::Config { filter_subjects: vec!["a".to_owned()], ..good }, "the configuration says"),
    ] {
        let error = check_consumer(&source(), &bad).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn wildcards_match_words() {
    for (filter, subject, expected) in [
        ("a.b", "a.b", true),
        ("a.*", "a.b", true),
        ("a.*", "a.b.c", false),
        ("a.>", "a.b.c", true),
        ("a.>", "a", false),
        (">", "a", true),
        ("a.b", "a", false),
    ] {
        assert_eq!(matches(filter, subject), expected, "{filter} {subject}");
    }
}
