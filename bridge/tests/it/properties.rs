//! Properties of every form the contract is written in: printed values are read back, written ones are decoded, and no
//! bytes at all can panic a reader.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use relay_bridge::contract::envelope::{
    WireVersion, decode_dead_letter, decode_job, decode_result, encode_dead_letter, encode_job, encode_result,
};
use relay_bridge::contract::extra::Extra;
use relay_bridge::contract::result::Claim;
use relay_bridge::contract::{
    ClientId, Cursor, Failure, Fingerprint, IdempotencyKey, Job, JobId, JobResult, LogId, Outcome, QueueName, RunId,
    Timestamp, WorkerId,
};
use relay_bridge::dead_letters::DeadLetter;
use relay_bridge::policy::{QueuePolicy, RetryPolicy};

use crate::samples;

const KEY: &str = "[!-~]{1,255}";

fn version() -> impl Strategy<Value = WireVersion> {
    prop_oneof![Just(WireVersion::V1), Just(WireVersion::V2)]
}

fn client() -> impl Strategy<Value = ClientId> {
    "[a-z0-9][a-z0-9-]{0,62}".prop_map(|text| text.parse().unwrap())
}

fn queue() -> impl Strategy<Value = QueueName> {
    "[a-z0-9][a-z0-9_-]{0,62}".prop_map(|text| text.parse().unwrap())
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp::from_millis)
}

fn payload() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..600).prop_map(Bytes::from)
}

fn headers() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map(any::<String>(), any::<String>(), 0..20)
}

prop_compose! {
    fn job()(
        ids in any::<([u8; 16], [u8; 16], [u8; 32])>(),
        numbers in any::<(u32, u64, u64, bool)>(),
        client in client(), queue in queue(), key in proptest::option::of(KEY),
        content_type in any::<String>(), content_encoding in any::<Option<String>>(),
        headers in headers(), payload in payload(), times in [time(), time(), time()],
    ) -> Job {
        Job {
            id: JobId::from_bytes(ids.0),
            run_id: RunId::from_bytes(ids.1),
            generation: numbers.0,
            client, queue,
            key: key.map(|key| key.parse().unwrap()),
            fingerprint: Fingerprint::from_bytes(ids.2),
            content_type, content_encoding, headers, payload,
            accepted_at: times[0], due_at: times[1], expires_at: times[2],
            ttl_ms: numbers.1, keep_ms: numbers.2, keep_record: numbers.3,
            extra: Extra::default(),
        }
    }
}

prop_compose! {
    fn result()(
        job in job(), outcome in proptest::sample::select(&Outcome::ALL[..]), attempt in any::<u32>(),
        failure in proptest::option::of((any::<String>(), any::<String>())),
        started_at in proptest::option::of(time()), finished_at in time(), content_type in any::<String>(),
        traceparent in proptest::option::of(any::<String>()), claimed in proptest::option::of(any::<[u8; 16]>()),
    ) -> JobResult {
        JobResult {
            job_id: job.id, run_id: job.run_id, generation: job.generation, client: job.client, queue: job.queue,
            key: job.key, meta: job.headers, claimed: claimed.map(Claim::from_bytes), outcome, attempt, content_type, payload: job.payload,
            failure: failure.map(|(reason, detail)| Failure::new(reason, detail)),
            accepted_at: job.accepted_at, started_at, finished_at, keep_ms: job.keep_ms, traceparent, hops: attempt, extra: Extra::default(),
        }
    }
}

proptest! {
    #[test]
    fn any_job_is_read_as_it_was_written_in_both_versions(job in job(), version in version()) {
        prop_assert_eq!(decode_job(&encode_job(&job, version).into()).unwrap(), job);
    }

    #[test]
    fn any_result_is_read_as_it_was_written_in_both_versions(result in result(), version in version()) {
        prop_assert_eq!(decode_result(&encode_result(&result, version).into()).unwrap(), result);
    }

    #[test]
    fn any_dead_letter_is_read_as_it_was_written_in_both_versions(
        job in job(), attempt in any::<u32>(), reason in any::<String>(), at in time(), version in version(),
    ) {
        let failure = Failure::new(reason.clone(), reason);
        let letter = DeadLetter { job, outcome: Outcome::Exhausted, attempt, failure, at, extra: Extra::default() };
        prop_assert_eq!(decode_dead_letter(&encode_dead_letter(&letter, version).into()).unwrap(), letter);
    }

    #[test]
    fn arbitrary_bytes_never_panic_a_reader(bytes in vec(any::<u8>(), 0..400)) {
        read_all(&bytes.into());
    }

    #[test]
    fn a_damaged_envelope_never_panics_and_what_is_read_of_it_is_stable(
        hits in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
        version in version(),
    ) {
        let written = [
            encode_job(&samples::full_job(), version),
            encode_result(&samples::expired(), version),
            encode_dead_letter(&samples::dead_letter(), version),
        ];
        for mut bytes in written {
            for (at, byte) in &hits {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Some(cut) = &cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            read_all(&bytes.into());
        }
    }

    #[test]
    fn names_are_read_as_they_are_printed(client in client(), queue in queue()) {
        prop_assert_eq!(client.to_string().parse::<ClientId>().unwrap(), client);
        prop_assert_eq!(queue.to_string().parse::<QueueName>().unwrap(), queue);
    }

    #[test]
    fn what_is_not_a_name_is_refused_without_a_panic(text in any::<String>()) {
        let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let shape = |more: &str| {
            (1..=63).contains(&text.len())
                && text.starts_with(lower)
                && text.chars().all(|c| lower(c) || more.contains(c))
        };
        prop_assert_eq!(text.parse::<ClientId>().is_ok(), shape("-"));
        prop_assert_eq!(text.parse::<QueueName>().is_ok(), shape("-_"));
        let visible = |max: usize| (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        prop_assert_eq!(text.parse::<IdempotencyKey>().is_ok(), visible(255));
        prop_assert_eq!(text.parse::<WorkerId>().is_ok(), visible(128));
    }

    #[test]
    fn the_quoted_and_the_bare_spelling_of_a_key_are_one_key(text in KEY) {
        let key: IdempotencyKey = text.parse().unwrap();
        let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        prop_assert_eq!(&IdempotencyKey::from_header(&quoted).unwrap(), &key);
        let padded = format!(" \t{quoted} ");
        prop_assert_eq!(&IdempotencyKey::from_header(&padded).unwrap(), &key);
        prop_assert_eq!(&IdempotencyKey::from_header(&key.to_header()).unwrap(), &key, "as relay writes it");
        if !text.starts_with('"') {
            prop_assert_eq!(IdempotencyKey::from_header(&text).unwrap(), key);
        }
    }

    #[test]
    fn any_header_value_is_a_key_or_refused(value in any::<String>()) {
        if let Ok(key) = IdempotencyKey::from_header(&value) {
            prop_assert!(key.as_str().bytes().all(|b| b.is_ascii_graphic()));
        }
    }

    #[test]
    fn ids_are_read_as_they_are_printed_and_in_no_other_spelling(bytes in any::<[u8; 16]>()) {
        let (job, run) = (JobId::from_bytes(bytes), RunId::from_bytes(bytes));
        let text = job.to_string();
        prop_assert_eq!(text.parse::<JobId>().unwrap(), job);
        prop_assert_eq!(run.to_string().parse::<RunId>().unwrap(), run);
        prop_assert!(text.replace('-', "").parse::<JobId>().is_err());
        let braced = format!("{{{text}}}");
        prop_assert!(braced.parse::<JobId>().is_err());
        let upper = text.to_uppercase();
        prop_assert_eq!(upper.parse::<JobId>().is_ok(), upper == text);
    }

    #[test]
    fn cursors_are_read_as_they_are_printed(
        client in client(), log in any::<[u8; 16]>(), sequence in any::<u64>(), at in time(),
    ) {
        let cursor = Cursor { client, log: LogId(log), sequence, at };
        let text = cursor.to_string();
        prop_assert!(text.len() <= relay_bridge::contract::cursor::CURSOR_BYTES_MAX);
        prop_assert_eq!(text.parse::<Cursor>().unwrap(), cursor);
    }

    #[test]
    fn what_is_not_a_cursor_is_refused_without_a_panic(text in any::<String>(), near in "[A-Za-z0-9_-]{0,200}") {
        prop_assert!(text.parse::<Cursor>().is_err() || text.is_ascii());
        if let Ok(cursor) = near.parse::<Cursor>() {
            prop_assert_eq!(cursor.to_string().parse::<Cursor>().unwrap(), cursor);
        }
    }

    #[test]
    fn a_run_is_greater_than_the_one_before_also_when_the_clock_steps_back(
        times in vec(0_i64..4_102_444_800_000, 2..40),
    ) {
        let mut previous = None;
        for at in times {
            let run = RunId::mint(Timestamp::from_millis(at), previous);
            prop_assert!(previous.is_none_or(|previous| run > previous));
            prop_assert_eq!(run.to_string().as_bytes()[14], b'7');
            previous = Some(run);
        }
    }

    #[test]
    fn a_run_is_greater_than_any_bytes_that_were_stored_as_one(bytes in any::<[u8; 16]>(), now in time()) {
        let previous = RunId::from_bytes(bytes);
        // The greatest id of all has no greater one.
        prop_assume!(bytes[..6] != [0xff; 6]);
        prop_assert!(RunId::mint(now, Some(previous)) > previous);
    }

    #[test]
    fn a_backoff_is_never_zero_and_never_above_its_bounds(
        base in 0_u64..100_000_000, factor in 1.0_f64..10.0, cap in 0_u64..100_000_000,
        attempt in any::<u32>(), jitter in 0.0_f64..=1.0,
    ) {
        let (first, longest) = (Duration::from_millis(base), Duration::from_millis(cap));
        let policy = RetryPolicy { base: first, factor, cap: longest, ..RetryPolicy::default() };
        let wait = policy.backoff(attempt, jitter);
        prop_assert!(wait >= Duration::from_millis(1));
        prop_assert!(wait <= Duration::from_millis(cap.max(1)));
        if attempt <= 1 {
            prop_assert!(wait <= Duration::from_millis(base.max(1)));
        }
    }

    #[test]
    fn a_backoff_survives_numbers_that_are_none(factor in any::<f64>(), jitter in any::<f64>(), attempt in any::<u32>()) {
        let policy = RetryPolicy { factor, ..RetryPolicy::default() };
        let wait = policy.backoff(attempt, jitter);
        prop_assert!(wait >= Duration::from_millis(1) && wait <= policy.cap);
    }

    #[test]
    fn a_failure_is_cut_to_its_limits(reason in "\\PC{0,100}", detail in "\\PC{0,9000}") {
        let failure = Failure::new(reason.clone(), detail.clone());
        prop_assert!(failure.reason.len() <= 64 && reason.starts_with(&failure.reason));
        prop_assert!(failure.detail.len() <= 8 * 1024 && detail.starts_with(&failure.detail));
    }

    #[test]
    fn times_are_read_as_they_are_printed(at in time()) {
        prop_assert_eq!(at.to_string().parse::<Timestamp>().unwrap(), at);
    }
}

/// Reads `bytes` as each kind; a value that could be read is written and read again without a change.
fn read_all(bytes: &Bytes) {
    for version in [WireVersion::V1, WireVersion::V2] {
        if let Ok(job) = decode_job(bytes) {
            assert_eq!(decode_job(&encode_job(&job, version).into()).unwrap(), job);
        }
        if let Ok(result) = decode_result(bytes) {
            assert_eq!(decode_result(&encode_result(&result, version).into()).unwrap(), result);
        }
        if let Ok(letter) = decode_dead_letter(bytes) {
            assert_eq!(decode_dead_letter(&encode_dead_letter(&letter, version).into()).unwrap(), letter);
        }
    }
}

#[test]
fn a_policy_is_read_as_it_was_written_and_what_is_missing_has_its_default() {
    let policy = QueuePolicy { lease: Duration::from_millis(1_500), ..QueuePolicy::default() };
    let text = serde_json::to_string(&policy).unwrap();
    assert_eq!(serde_json::from_str::<QueuePolicy>(&text).unwrap(), policy);
    assert_eq!(serde_json::from_str::<QueuePolicy>("{}").unwrap(), QueuePolicy::default());
}
