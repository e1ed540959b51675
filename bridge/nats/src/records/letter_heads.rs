//! The part of a dead letter that a list shows, in a header of its message, so that a list reads no payloads.

use async_nats::HeaderMap;
use async_nats::header::HeaderName;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use relay_bridge::contract::envelope::{EnvelopeError, WireVersion, decode_dead_letter, encode_dead_letter};
use relay_bridge::dead_letters::{DeadLetter, LetterHead};

use crate::stored::record::number;

/// The letter's envelope with an empty payload, in base64.
const HEAD: HeaderName = HeaderName::from_static("Relay-Envelope");
/// The bytes of the payload.
const SIZE: HeaderName = HeaderName::from_static("Relay-Payload-Size");
/// The longest such envelope in base64. A message has at most 64 KiB of headers, and as much is kept free for them beside a
/// payload, together with the letter's own envelopes.
const HEAD_MAX: usize = 16 * 1_024;

/// The headers that say what a list shows of `letter`: none if that is too much for them.
pub(crate) fn write(letter: &DeadLetter, version: WireVersion) -> HeaderMap {
    let LetterHead { letter, size } = LetterHead::of(letter.clone());
    let head = STANDARD_NO_PAD.encode(encode_dead_letter(&letter, version));
    let mut headers = HeaderMap::new();
    if head.len() <= HEAD_MAX {
        headers.insert(HEAD, head);
        headers.insert(SIZE, size.to_string());
    }
    headers
}

/// The part of a letter that a list shows, by the headers of its message; `None` if they don't say, as those of releases before
/// this one, or can't be read: the letter has to be read whole.
pub(crate) fn read(headers: &HeaderMap) -> Option<Result<LetterHead, EnvelopeError>> {
    let (head, size) = (headers.get(HEAD)?, number(headers, SIZE)?);
    let head = STANDARD_NO_PAD.decode(head.as_str()).ok()?;
    Some(decode_dead_letter(&head.into()).map(|letter| LetterHead { size, ..LetterHead::of(letter) }))
}

#[cfg(test)]
mod tests {
    use relay_bridge::contract::{Failure, Outcome, Submission, Timestamp};
    use relay_bridge::policy::QueuePolicy;

    use super::*;

    fn letter(detail: &str) -> DeadLetter {
        let (client, queue) = ("acme".parse().unwrap(), "work".parse().unwrap());
        let job = Submission::plain(client, queue, "text/plain", vec![7; 100_000]);
        let (job, at) = (job.accept(&QueuePolicy::default(), Timestamp::EPOCH), Timestamp::EPOCH);
        let failure = Failure::new("exit-code", detail);
        DeadLetter { job, outcome: Outcome::Failed, attempt: 1, failure, at, extra: Default::default() }
    }

    #[test]
    fn headers_say_of_a_letter_what_a_list_shows_and_hold_no_payload() {
        let letter = letter("broke");
        let headers = write(&letter, WireVersion::V2);
        assert!(headers.get(HEAD).is_some_and(|head| head.as_str().len() < 1_024));
        assert_eq!(read(&headers).unwrap().unwrap(), LetterHead::of(letter));
    }

    #[test]
    fn a_letter_that_is_too_long_for_headers_has_to_be_read_whole() {
        let long = DeadLetter { failure: Failure { detail: "x".repeat(HEAD_MAX), ..letter("").failure }, ..letter("") };
        assert!(write(&long, WireVersion::V2).is_empty() && read(&HeaderMap::new()).is_none());
    }
}
