//! Derived values that every replica, protocol and language must compute alike: `docs/vectors/`.
//! `RELAY_BLESS=1` computes their right-hand sides anew.

use std::path::PathBuf;

use relay_bridge::contract::{ClientId, Fingerprint, IdempotencyKey, JobId, QueueName};
use serde_json::Value;

fn vectors(name: &str, compute: impl Fn(&mut Value)) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/vectors").join(name);
    let mut vectors: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    if std::env::var_os("RELAY_BLESS").is_some() {
        vectors.iter_mut().for_each(compute);
        std::fs::write(&path, serde_json::to_string_pretty(&vectors).unwrap() + "\n").unwrap();
    }
    assert!(vectors.len() >= 5);
    vectors
}

fn text<'a>(vector: &'a Value, field: &str) -> &'a str {
    vector[field].as_str().unwrap()
}

fn derive(vector: &Value) -> String {
    let client: ClientId = text(vector, "client").parse().unwrap();
    let queue: QueueName = text(vector, "queue").parse().unwrap();
    let key: IdempotencyKey = text(vector, "key").parse().unwrap();
    JobId::derive(&client, &queue, &key).to_string()
}

#[test]
fn job_ids_are_derived_as_the_vectors_say() {
    let vectors = vectors("job-id.json", |vector| vector["job_id"] = derive(vector).into());
    for vector in &vectors {
        assert_eq!(derive(vector), text(vector, "job_id"), "{vector}");
        // UUIDv8, RFC 9562: version nibble 8, variant bits 10.
        assert_eq!(&text(vector, "job_id")[14..15], "8");
        assert!("89ab".contains(&text(vector, "job_id")[19..20]));
    }
    let distinct: std::collections::BTreeSet<_> = vectors.iter().map(|vector| text(vector, "job_id")).collect();
    assert_eq!(distinct.len(), vectors.len(), "no two of them are the same job");
}

fn fingerprint(vector: &Value) -> String {
    let hex = text(vector, "payload_hex");
    let payload: Vec<u8> =
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    let print = Fingerprint::of(text(vector, "content_type"), vector["content_encoding"].as_str(), &payload);
    format!("{print:?}")
}

#[test]
fn fingerprints_are_computed_as_the_vectors_say() {
    for vector in vectors("fingerprint.json", |vector| vector["fingerprint"] = fingerprint(vector).into()) {
        assert_eq!(fingerprint(&vector), text(&vector, "fingerprint"), "{vector}");
    }
}

#[test]
fn a_fingerprint_in_which_identity_was_an_encoding_goes_on_matching() {
    let mut hasher = blake3::Hasher::new_derive_key("relay fingerprint v1");
    for part in ["text/plain", "identity", "a"] {
        hasher.update(&u32::try_from(part.len()).unwrap().to_be_bytes()).update(part.as_bytes());
    }
    let earlier = Fingerprint::from_bytes(*hasher.finalize().as_bytes());
    assert_ne!(earlier, Fingerprint::of("text/plain", Some("identity"), b"a"));
    for encoding in [Some("identity"), Some("Identity"), Some(""), None] {
        assert!(earlier.is_of("text/plain", encoding, b"a"), "{encoding:?}");
        assert!(!earlier.is_of("text/plain", encoding, b"b"), "{encoding:?}");
    }
    assert!(!earlier.is_of("text/plain", Some("gzip"), b"a"));
}

#[test]
fn a_fingerprint_ignores_spelling_and_parameters_of_the_content_type_and_nothing_else() {
    let plain = Fingerprint::of("text/plain", None, b"a");
    assert_eq!(plain, Fingerprint::of(" Text/PLAIN ; charset=utf-8", Some(""), b"a"));
    assert_eq!(plain, Fingerprint::of("text/plain", Some(" Identity "), b"a"));
    assert_ne!(plain, Fingerprint::of("text/html", None, b"a"));
    assert_ne!(plain, Fingerprint::of("text/plain", Some("gzip"), b"a"));
    assert_ne!(plain, Fingerprint::of("text/plain", None, b"b"));
    // Bytes may not wander from one part to the next.
    assert_ne!(Fingerprint::of("a", Some("b"), b"c"), Fingerprint::of("a", Some("bc"), b""));
    assert_ne!(Fingerprint::of("ab", None, b"c"), Fingerprint::of("a", Some("b"), b"c"));
}
