//! Reading a request: NATS headers become those of HTTP, so that the same code reads both; what begins with `Nats-` is
//! NATS's own and goes no further.

use std::time::Duration;

use async_nats::Message;
use http::{HeaderMap, HeaderName, HeaderValue};
use relay_bridge::contract::{IdempotencyKey, JobId};

use super::Limits;
use crate::api::header;
use crate::ingress::headers::{check_size, duration, single};
use crate::ingress::refusal::Refusal;

/// The longest text of a job id, with what a shell leaves around it, in bytes.
const ID_BYTES_MAX: usize = 64;
/// The header by which JetStream knows a message again; a submission takes it as its key.
const MSG_ID: &str = "nats-msg-id";

/// The headers of a request as HTTP has them, in lower case.
///
/// # Errors
/// `headers-too-large`; `malformed-request` for a block of headers that is none, and for a name or value that HTTP has no
/// room for.
pub(super) fn headers(of: &Message, limits: &Limits) -> Result<HeaderMap, Refusal> {
    // Only what a server itself says has a status; without one, the description is that there was no reading the headers.
    if of.status.is_some() || of.description.is_some() {
        let detail =
            "the headers can't be read: NATS/1.0, then lines of `Name: value` in UTF-8, without other line breaks";
        return Err(Refusal::malformed(detail));
    }
    let Some(from) = &of.headers else { return Ok(HeaderMap::new()) };
    let lines =
        || from.iter().flat_map(|(name, values)| values.iter().map(move |value| (name.as_ref(), value.as_str())));
    let bytes = lines().map(|(name, value): (&str, &str)| name.len() + value.len()).sum();
    check_size((lines().count(), limits.headers), (bytes, limits.header_bytes))?;
    let mut headers = HeaderMap::with_capacity(from.len());
    for (name, value) in lines() {
        let is_key = name.eq_ignore_ascii_case(MSG_ID);
        if !is_key && name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-")) {
            continue;
        }
        let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            Refusal::malformed(format!("the header name `{shown}` can't be read: correct or remove it"))
        })?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| Refusal::malformed(format!("header {name} has control characters: encode it")))?;
        headers.append(name, value);
    }
    if let Some(id) = headers.remove(MSG_ID) {
        take_as_key(&mut headers, id)?;
    }
    Ok(headers)
}

/// `Nats-Msg-Id` is the key, unless there is one. Two different ones are a slip.
fn take_as_key(headers: &mut HeaderMap, id: HeaderValue) -> Result<(), Refusal> {
    let Some(key) = single(headers, header::IDEMPOTENCY_KEY)? else {
        headers.insert(header::IDEMPOTENCY_KEY, id);
        return Ok(());
    };
    let same = IdempotencyKey::from_header(key)? == IdempotencyKey::from_header(id.to_str().unwrap_or_default())?;
    if same {
        return Ok(());
    }
    Err(Refusal::malformed("headers Idempotency-Key and Nats-Msg-Id name different keys: send one of them"))
}

/// The job that a body names. Space around it, as a shell leaves it, is no part of it.
///
/// # Errors
/// `malformed-request`
pub(super) fn job_id(body: &[u8]) -> Result<JobId, Refusal> {
    let text = body.get(..body.len().min(ID_BYTES_MAX)).and_then(|body| std::str::from_utf8(body).ok());
    let text = text.filter(|_| body.len() <= ID_BYTES_MAX).map(str::trim).unwrap_or_default();
    if text.is_empty() {
        return Err(Refusal::malformed("the body must be a job id and nothing else: `job_id` of the receipt"));
    }
    Ok(text.parse()?)
}

/// A number from 1 to `max` in header `name`; `default` if it is not there.
///
/// # Errors
/// `malformed-request`
pub(super) fn number(headers: &HeaderMap, name: &str, default: u32, max: u32) -> Result<u32, Refusal> {
    let Some(text) = single(headers, name)? else { return Ok(default) };
    let number = text.trim().parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| Refusal::malformed(format!("header {name} must be a number from 1 to {max}")))
}

/// For how long a request wants to wait for a result, at most `max`; `None` if it does not say. The header is removed: what
/// is left is what a request has that does not wait.
///
/// # Errors
/// `malformed-request`
pub(super) fn take_wait(headers: &mut HeaderMap, max: Duration) -> Result<Option<Duration>, Refusal> {
    let asked = duration(headers, header::WAIT)?;
    headers.remove(header::WAIT);
    Ok(asked.map(|asked| asked.min(max)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[(&str, &str)]) -> Result<HeaderMap, Refusal> {
        let mut from = async_nats::HeaderMap::new();
        for (name, value) in lines {
            from.append(*name, *value);
        }
        let message = Message {
            subject: "relay.submit.me.mail".into(),
            reply: None,
            payload: "".into(),
            headers: Some(from),
            status: None,
            description: None,
            length: 0,
        };
        headers(&message, &Limits::default())
    }

    #[test]
    fn headers_of_nats_are_left_behind_and_names_lose_their_case() {
        let lines =
            [("Nats-Schedule-Target", "relay.jobs.x"), ("NATS-Rollup", "all"), ("Relay-Delay", "5s"), ("X-Other", "1")];
        let headers = read(&lines).unwrap();
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["relay-delay"], "5s");
    }

    #[test]
    fn a_message_id_is_the_key_and_two_different_keys_are_refused() {
        assert_eq!(read(&[("Nats-Msg-Id", "a")]).unwrap()["idempotency-key"], "a");
        assert_eq!(read(&[("Nats-Msg-Id", "a"), ("Idempotency-Key", "\"a\"")]).unwrap()["idempotency-key"], "\"a\"");
        assert!(read(&[("Nats-Msg-Id", "a"), ("Idempotency-Key", "b")]).is_err());
        assert!(
            read(&[("relay-delay", "1s"), ("Relay-Delay", "2s")]).unwrap().get_all("relay-delay").iter().count() == 2
        );
    }

    #[test]
    fn a_wait_is_read_once_and_cut_and_what_is_no_duration_is_refused() {
        let wait = |lines: &[(&str, &str)]| take_wait(&mut read(lines).unwrap(), Duration::from_secs(55));
        for (text, seconds) in [("0s", 0), ("10s", 10), ("55s", 55), ("1h", 55), ("9000000d", 55)] {
            assert_eq!(wait(&[("relay-wait", text)]).unwrap(), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(wait(&[]).unwrap(), None);
        for text in ["", "10", "-1s", "1.5s", "soon", "99999999999999999999s"] {
            assert!(wait(&[("Relay-Wait", text)]).is_err(), "{text}");
        }
        assert!(wait(&[("Relay-Wait", "1s"), ("relay-wait", "1s")]).is_err());
        let mut headers = read(&[("Relay-Wait", "1s"), ("Relay-Delay", "1s")]).unwrap();
        take_wait(&mut headers, Duration::MAX).unwrap();
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn too_many_headers_are_refused() {
        let names: Vec<_> = (0..65).map(|n| format!("X-{n}")).collect();
        let lines: Vec<_> = names.iter().map(|name| (name.as_str(), "1")).collect();
        assert!(read(&lines).is_err());
        assert!(read(&[("X", &"a".repeat(17 * 1024))]).is_err());
    }

    #[test]
    fn a_body_that_names_a_job_may_end_in_a_line_feed() {
        let id = "0193a4b0-0000-7000-8000-000000000000";
        assert_eq!(job_id(format!("{id}\n").as_bytes()).unwrap().to_string(), id);
        for bad in [&b""[..], b"\n", b"x", &[b' '; 65], "é".repeat(40).as_bytes(), &[0xff; 10]] {
            assert!(job_id(bad).is_err(), "{bad:?}");
        }
    }
}
