//! Envelopes as bytes that are checked in: every later relay reads the envelopes of a released one, and this one writes
//! those in `docs/vectors/envelope.json`. `RELAY_BLESS=1` writes the files anew.

use std::path::PathBuf;

use bytes::Bytes;
use relay_bridge::contract::envelope::{
    EnvelopeError, NEWEST, WireVersion, decode_dead_letter, decode_dead_letter_head, decode_job, decode_result,
    encode_dead_letter, encode_job, encode_result,
};
use relay_bridge::dead_letters::LetterHead;
use serde_json::{Value, json};

use crate::samples;

const VERSIONS: [WireVersion; 2] = [WireVersion::V1, WireVersion::V2];

fn golden(name: &str, version: WireVersion) -> PathBuf {
    let file = format!("{name}-v{}.msgpack", version.number());
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

fn bless() -> bool {
    std::env::var_os("RELAY_BLESS").is_some()
}

/// The file's bytes are what `written` says, and are what `rewrite` (decode, encode) makes of them.
fn check(name: &str, version: WireVersion, written: &[u8], rewrite: impl Fn(&Bytes) -> Vec<u8>) {
    let path = golden(name, version);
    if bless() {
        std::fs::write(&path, written).unwrap();
    }
    let kept = Bytes::from(std::fs::read(&path).unwrap());
    assert!(kept == written, "{} is not what this build writes", path.display());
    assert!(rewrite(&kept) == kept, "{} changes when it is read and written", path.display());
}

#[test]
fn golden_jobs_are_read_and_written_byte_for_byte() {
    for version in VERSIONS {
        for (name, job) in [("job-full", samples::full_job()), ("job-bare", samples::bare_job())] {
            check(name, version, &encode_job(&job, version), |bytes| {
                let read = decode_job(bytes).unwrap();
                assert_eq!(read, job);
                encode_job(&read, version)
            });
        }
    }
}

#[test]
fn golden_results_are_read_and_written_byte_for_byte() {
    for version in VERSIONS {
        let results = [
            ("result-succeeded", samples::succeeded()),
            ("result-expired", samples::expired()),
            ("result-named", samples::named()),
        ];
        for (name, result) in results {
            check(name, version, &encode_result(&result, version), |bytes| {
                let read = decode_result(bytes).unwrap();
                assert_eq!(read, result);
                encode_result(&read, version)
            });
        }
    }
}

#[test]
fn golden_dead_letters_are_read_and_written_byte_for_byte() {
    for version in VERSIONS {
        let letter = samples::dead_letter();
        check("dead-letter", version, &encode_dead_letter(&letter, version), |bytes| {
            let read = decode_dead_letter(bytes).unwrap();
            assert_eq!(read, letter);
            encode_dead_letter(&read, version)
        });
    }
}

/// Fields that have their usual value are left out; one that is there all the same is read, as are the nulls of fields
/// that have none.
#[test]
fn a_field_with_its_usual_value_may_be_there_or_not() {
    for version in VERSIONS {
        let read = |name| Bytes::from(std::fs::read(golden(name, version)).unwrap());
        let (short, long) = (read("job-bare"), read("job-spelled-out"));
        assert_eq!(decode_job(&long).unwrap(), decode_job(&short).unwrap());
        assert_eq!((rmp_serde_fields(&long).len(), rmp_serde_fields(&short).len()), (18, 10));
        let (short, long) = (read("result-succeeded"), read("result-spelled-out"));
        assert_eq!(decode_result(&long).unwrap(), decode_result(&short).unwrap());
        assert_eq!((rmp_serde_fields(&long).len(), rmp_serde_fields(&short).len()), (17, 15));
    }
}

#[test]
fn the_documented_envelopes_are_the_golden_ones() {
    let names = ["job-full", "job-bare", "result-succeeded", "result-expired", "result-named", "dead-letter"];
    let entries: Vec<Value> = names
        .iter()
        .flat_map(|name| VERSIONS.map(|version| (name, version)))
        .map(|(name, version)| {
            let bytes = std::fs::read(golden(name, version)).unwrap();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let fields = rmp_serde_fields(&bytes);
            json!({ "name": name, "version": version.number(), "fields": fields, "hex": hex })
        })
        .collect();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/vectors/envelope.json");
    let wanted = serde_json::to_string_pretty(&entries).unwrap() + "\n";
    if bless() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let documented: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(documented == entries, "{} differs from the golden files", path.display());
}

/// The names of an envelope's fields in their order, read by another MessagePack implementation than relay's own.
fn rmp_serde_fields(bytes: &[u8]) -> Vec<String> {
    struct Names(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Names {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Names;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a map")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                    let mut names = Vec::new();
                    while let Some((name, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                        names.push(name);
                    }
                    Ok(Names(names))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    rmp_serde::from_slice::<Names>(bytes).unwrap().0
}

/// `bytes` with another version number; `v` is the first field and its number one byte.
fn with_version(bytes: &[u8], version: u8) -> Bytes {
    let at = bytes.windows(2).position(|pair| pair == [0xa1, b'v']).unwrap() + 2;
    let mut bytes = bytes.to_vec();
    bytes[at] = version;
    bytes.into()
}

#[test]
fn a_newer_version_is_an_error_of_its_own_and_version_zero_is_damage() {
    let found = NEWEST + 1;
    let newer = |bytes: &[u8]| with_version(bytes, u8::try_from(found).unwrap());
    let job = encode_job(&samples::full_job(), WireVersion::V2);
    let result = encode_result(&samples::succeeded(), WireVersion::V2);
    let letter = encode_dead_letter(&samples::dead_letter(), WireVersion::V2);
    assert_eq!(decode_job(&newer(&job)).unwrap_err(), EnvelopeError::Newer { found });
    assert_eq!(decode_result(&newer(&result)).unwrap_err(), EnvelopeError::Newer { found });
    assert_eq!(decode_dead_letter(&newer(&letter)).unwrap_err(), EnvelopeError::Newer { found });
    assert!(matches!(decode_job(&with_version(&job, 0)), Err(EnvelopeError::Malformed(_))));
}

#[test]
fn a_newer_version_is_recognised_whatever_follows_its_number() {
    // A map of 60,000 fields, of which only the version is there; and one with a number above 16 bits.
    let many: Bytes = [&[0xde, 0xea, 0x60, 0xa1, b'v', 0x07][..], &[0xc1; 40]].concat().into();
    assert_eq!(decode_job(&many).unwrap_err(), EnvelopeError::Newer { found: 7 });
    let large = Bytes::from_static(&[0x81, 0xa1, b'v', 0xce, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(decode_result(&large).unwrap_err(), EnvelopeError::Newer { found: u16::MAX });
}

#[test]
fn a_dead_letter_is_read_without_its_payload_from_the_beginning_alone() {
    let letter = samples::dead_letter();
    for version in VERSIONS {
        let bytes = encode_dead_letter(&letter, version);
        let heads = (0..=bytes.len()).map(|end| decode_dead_letter_head(&Bytes::copy_from_slice(&bytes[..end])));
        let read: Vec<_> = heads.skip_while(Result::is_err).collect();
        assert!(read.len() > letter.job.payload.len(), "none of the payload is needed");
        for head in read {
            let (read, size) = head.unwrap();
            assert_eq!(size, letter.job.payload.len() as u64);
            assert_eq!(LetterHead { size, ..LetterHead::of(read) }, LetterHead::of(letter.clone()));
        }
    }
}

#[test]
fn a_dead_letter_around_a_newer_job_is_newer_not_damaged() {
    let letter = samples::dead_letter();
    let bytes = encode_dead_letter(&letter, WireVersion::V2);
    let job = encode_job(&letter.job, WireVersion::V2);
    let at = bytes.windows(job.len()).position(|part| part == job).unwrap();
    let bytes = [&bytes[..at], &with_version(&job, 9)[..]].concat();
    assert_eq!(decode_dead_letter(&bytes.into()).unwrap_err(), EnvelopeError::Newer { found: 9 });
}

/// `bytes` (a map16) with two more fields at its end: one nested, one binary.
fn with_unknown_fields(bytes: &[u8]) -> Bytes {
    let mut more = bytes.to_vec();
    more[2] += 2;
    rmp::encode::write_str(&mut more, "later").unwrap();
    rmp::encode::write_map_len(&mut more, 1).unwrap();
    rmp::encode::write_str(&mut more, "deep").unwrap();
    rmp::encode::write_array_len(&mut more, 3).unwrap();
    rmp::encode::write_f64(&mut more, 0.5).unwrap();
    rmp::encode::write_nil(&mut more).unwrap();
    rmp::encode::write_sint(&mut more, -70_000).unwrap();
    rmp::encode::write_str(&mut more, "blob").unwrap();
    rmp::encode::write_bin(&mut more, &[0xc1, 0x00, 0xff]).unwrap();
    more.into()
}

#[test]
fn unknown_fields_survive_a_rewrite_within_and_across_versions() {
    for (from, to) in VERSIONS.into_iter().flat_map(|from| VERSIONS.map(|to| (from, to))) {
        let written = with_unknown_fields(&encode_job(&samples::full_job(), from));
        let job = decode_job(&written).unwrap();
        assert_eq!(job.extra.names().collect::<Vec<_>>(), ["later", "blob"]);
        let rewritten = encode_job(&job, to);
        assert_eq!(rewritten, with_unknown_fields(&encode_job(&samples::full_job(), to)));

        let written = with_unknown_fields(&encode_result(&samples::expired(), from));
        let rewritten = encode_result(&decode_result(&written).unwrap(), to);
        assert_eq!(rewritten, with_unknown_fields(&encode_result(&samples::expired(), to)));

        let written = with_unknown_fields(&encode_dead_letter(&samples::dead_letter(), from));
        let rewritten = encode_dead_letter(&decode_dead_letter(&written).unwrap(), to);
        assert_eq!(rewritten, with_unknown_fields(&encode_dead_letter(&samples::dead_letter(), to)));
    }
}

#[test]
fn unknown_fields_of_a_job_survive_its_next_run() {
    let job = decode_job(&with_unknown_fields(&encode_job(&samples::full_job(), WireVersion::V2))).unwrap();
    let next = job.next_run(samples::at(1_763_900_000_000));
    assert_eq!(next.extra, job.extra);
}

#[test]
fn a_payload_read_is_a_slice_of_the_envelope_not_a_copy() {
    let bytes = Bytes::from(encode_job(&samples::full_job(), WireVersion::V2));
    let job = decode_job(&bytes).unwrap();
    assert!(bytes.as_ptr_range().contains(&job.payload.as_ptr()));
}

#[test]
fn values_nested_too_deep_are_refused_not_followed() {
    let open = encode_job(&samples::bare_job(), WireVersion::V2);
    let mut reader = &open[..];
    let fields = rmp::decode::read_map_len(&mut reader).unwrap();
    let mut deep = Vec::new();
    rmp::encode::write_map_len(&mut deep, fields + 1).unwrap();
    deep.extend_from_slice(reader);
    rmp::encode::write_str(&mut deep, "deep").unwrap();
    deep.extend(std::iter::repeat_n(0x91, 100_000));
    deep.push(0xc0);
    let told = decode_job(&deep.into()).unwrap_err().to_string();
    assert_eq!(told, "damaged envelope: field `deep` nests too deep");
}

#[test]
fn a_damaged_envelope_is_told_with_the_field_that_can_not_be_read() {
    let result = encode_result(&samples::succeeded(), WireVersion::V2);
    let letter = encode_dead_letter(&samples::dead_letter(), WireVersion::V2);
    let with = |bytes: &[u8], old: &str, new: &str| {
        let at = bytes.windows(old.len()).position(|part| part == old.as_bytes()).unwrap();
        Bytes::from([&bytes[..at], new.as_bytes(), &bytes[at + old.len()..]].concat())
    };
    for (old, new, told) in [
        ("succeeded", "succeedes", "field `outcome` is not a name, an id or a word of its kind"),
        ("keep_ms", "kept_ms", "field `keep_ms` is missing"),
        ("content_type", "accepted_at_", "field `content_type` is missing"),
    ] {
        let error = decode_result(&with(&result, old, new)).unwrap_err().to_string();
        assert_eq!(error, format!("damaged envelope: {told}"));
    }
    let error = decode_dead_letter(&with(&letter, "fingerprint", "fingerprins")).unwrap_err().to_string();
    assert_eq!(error, "damaged envelope: field `fingerprint` is missing", "of the job in it");
    let error = decode_result(&Bytes::copy_from_slice(&result[..result.len() - 1])).unwrap_err().to_string();
    assert!(error.starts_with("damaged envelope: field `"), "{error}");
}
