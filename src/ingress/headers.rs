//! The values in the headers of a request. The names and the rules are the same for every protocol that has headers; a
//! header that can't be read is refused by name.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use relay_bridge::contract::job::{DEFAULT_CONTENT_TYPE, DELAY_MAX, META_BYTES_MAX};
use relay_bridge::contract::trace;
use relay_bridge::contract::wire::client::Submit;
use relay_bridge::contract::{ClientId, IdempotencyKey, QueueName, Submission, TraceParent};

use super::refusal::Refusal;
use crate::api::{DurationText, Problem, Slug, header};
use relay_bridge::rules::record::fits_header;

/// The longest content type or content encoding, in bytes.
const CONTENT_HEADER_BYTES_MAX: usize = 255;
/// Relay's own request headers; any other `Relay-*` is a slip that would go unnoticed.
const RELAY_HEADERS: [&str; 4] = [header::DELAY, header::EXPIRES_IN, header::CLIENT, header::REQUEST_ID];

/// The one value of a header, named in lower case, or `None`.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    // Requests have few headers: comparing is cheaper than hashing the name.
    let mut values = headers.iter().filter(|(found, _)| found.as_str() == name).map(|(_, value)| value);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::malformed(format!("header {name} is there more than once: send one")));
    }
    let text = value.to_str().map_err(|_| {
        Refusal::malformed(format!(
            "header {name} is no header's: visible ASCII, with spaces and tabs within; encode it"
        ))
    })?;
    Ok(Some(text))
}

/// The values in the headers of a submission.
pub(super) struct JobHeaders {
    key: Option<IdempotencyKey>,
    delay: Duration,
    expires_in: Option<Duration>,
    content_type: String,
    content_encoding: Option<String>,
    /// Allow-listed, in lower case.
    passed: BTreeMap<String, String>,
}

impl JobHeaders {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let key = single(headers, header::IDEMPOTENCY_KEY)?.map(IdempotencyKey::from_header).transpose()?;
        let delay = duration(headers, header::DELAY)?.unwrap_or_default();
        check_delay(delay, "header relay-delay")?;
        let expires_in = duration(headers, header::EXPIRES_IN)?;
        check_expires_in(expires_in, "header relay-expires-in")?;
        let content_type = content(headers, "content-type")?.unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned());
        let content_encoding = content(headers, "content-encoding")?;
        Ok(Self { key, delay, expires_in, content_type, content_encoding, passed: passed(headers)? })
    }

    /// The same values where they come as fields of a message.
    ///
    /// # Errors
    /// `malformed-request`, which names the field.
    pub(super) fn of_fields(submit: &Submit) -> Result<Self, Refusal> {
        let key = submit.key.as_deref().map(IdempotencyKey::from_header).transpose()?;
        let delay = submit.delay.unwrap_or_default();
        check_delay(delay, "field `delay_ms`")?;
        check_expires_in(submit.expires_in, "field `expires_in_ms`")?;
        let given =
            |text: &Option<String>| text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let content_type = given(&submit.content_type).unwrap_or_else(|| DEFAULT_CONTENT_TYPE.to_owned());
        check_content_type(&content_type, "field `content_type`")?;
        let content_encoding = given(&submit.content_encoding);
        if let Some(encoding) = &content_encoding {
            check_content_encoding(encoding)?;
        }
        let mut passed = meta(&submit.meta, "field `meta`")?;
        if submit.traceparent.is_some() {
            passed.extend(trace::kept(submit.traceparent.as_deref(), submit.tracestate.as_deref()));
        }
        Ok(Self { key, delay, expires_in: submit.expires_in, content_type, content_encoding, passed })
    }

    /// The content type, or what stands for none.
    pub(super) fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The values in a batch's headers for all of its entries: the key that theirs are made of, and the trace context.
    ///
    /// # Errors
    /// A header that belongs into an entry, or is meant for a single job, is refused by name.
    pub(super) fn read_batch(
        headers: &HeaderMap,
    ) -> Result<(Option<IdempotencyKey>, BTreeMap<String, String>), Refusal> {
        let all = Self::read(headers)?;
        if all.content_encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            let detail = "a batch with a Content-Encoding can't be read: send it uncompressed";
            return Err(Refusal::new(Slug::UnsupportedMediaType, detail));
        }
        let meta = all.passed.keys().any(|name| name.starts_with(header::META_PREFIX));
        if meta || headers.contains_key(header::DELAY) || headers.contains_key(header::EXPIRES_IN) {
            let detail = "Relay-Delay, Relay-Expires-In and Relay-Meta-* are for a single job: give each entry of the \
                          batch its own `delay`, `expires_in` and `meta`";
            return Err(Refusal::malformed(detail));
        }
        Ok((all.key, all.passed))
    }

    /// The submission of `client` to `queue`, with these headers and this payload.
    pub(super) fn submission(self, client: ClientId, queue: QueueName, payload: Bytes) -> Submission {
        Submission {
            client,
            queue,
            key: self.key,
            content_type: self.content_type,
            content_encoding: self.content_encoding,
            headers: self.passed,
            payload,
            delay: self.delay,
            expires_in: self.expires_in,
        }
    }
}

/// A header's duration, `10s`, or `None`.
pub(super) fn duration(headers: &HeaderMap, name: &str) -> Result<Option<Duration>, Refusal> {
    let Some(text) = single(headers, name)? else { return Ok(None) };
    let duration: DurationText = text.parse().map_err(|error| Refusal::malformed(format!("header {name}: {error}")))?;
    Ok(Some(duration.0))
}

fn content(headers: &HeaderMap, name: &str) -> Result<Option<String>, Refusal> {
    let text = single(headers, name)?.map(str::trim).filter(|text| !text.is_empty());
    if let Some(text) = text.filter(|text| text.len() > CONTENT_HEADER_BYTES_MAX) {
        return Err(content_too_long(&format!("header {name}"), text));
    }
    Ok(text.map(ToOwned::to_owned))
}

fn content_too_long(what: &str, text: &str) -> Refusal {
    let problem = Problem::new(Slug::MalformedRequest, format!("{what} is too long: shorten it"));
    problem.with_limit(CONTENT_HEADER_BYTES_MAX as u64, text.len() as u64).into()
}

/// Refuses a delay that is too long; `what` names where it stands.
pub(super) fn check_delay(delay: Duration, what: &str) -> Result<(), Refusal> {
    if delay <= DELAY_MAX {
        return Ok(());
    }
    let problem = Problem::new(Slug::MalformedRequest, format!("{what}: at most 7d: submit it later"));
    Err(problem.with_limit(DELAY_MAX.as_secs(), delay.as_secs()).into())
}

/// Refuses an expiry at once; `what` names where it stands.
pub(super) fn check_expires_in(expires_in: Option<Duration>, what: &str) -> Result<(), Refusal> {
    if expires_in.is_some_and(|expires_in| expires_in.is_zero()) {
        return Err(Refusal::malformed(format!("{what}: a job that expires at once can't run: give it time")));
    }
    Ok(())
}

/// Refuses a content type that a header could not carry.
pub(super) fn check_content_type(text: &str, what: &str) -> Result<(), Refusal> {
    if text.len() > CONTENT_HEADER_BYTES_MAX {
        return Err(content_too_long(what, text));
    }
    if text.trim().is_empty() || !fits_header(text) {
        return Err(Refusal::malformed(format!("{what} is not a content type such as application/json: correct it")));
    }
    Ok(())
}

fn check_content_encoding(text: &str) -> Result<(), Refusal> {
    if text.len() > CONTENT_HEADER_BYTES_MAX {
        return Err(content_too_long("field `content_encoding`", text));
    }
    if !fits_header(text) {
        return Err(Refusal::malformed("field `content_encoding` is not an encoding such as gzip: correct it"));
    }
    Ok(())
}

/// The names of `Relay-Meta-*` headers, and their values, where they come without headers: in lower case, behind the
/// prefix.
pub(super) fn meta(pairs: &BTreeMap<String, String>, what: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let mut passed = BTreeMap::new();
    let mut bytes = 0;
    for (name, value) in pairs {
        let shown: String = name.chars().take(40).flat_map(char::escape_default).collect();
        let full = HeaderName::try_from(format!("{}{name}", header::META_PREFIX)).ok().filter(|_| !name.is_empty());
        let full = full.ok_or_else(|| {
            Refusal::malformed(format!("{what}: `{shown}` is no name that a header could have: use a-z, 0-9 and -"))
        })?;
        if !fits_header(value) {
            return Err(Refusal::malformed(format!(
                "{what}: the value of `{shown}` is no header's: visible ASCII, with spaces and tabs within; encode it"
            )));
        }
        bytes += name.len() + value.len();
        if passed.insert(full.as_str().to_owned(), value.clone()).is_some() {
            return Err(Refusal::malformed(format!("{what}: `{shown}` is there more than once: send one")));
        }
    }
    check_meta_bytes(bytes)?;
    Ok(passed)
}

fn check_meta_bytes(bytes: usize) -> Result<(), Refusal> {
    if bytes <= META_BYTES_MAX {
        return Ok(());
    }
    let detail = "the Relay-Meta-* headers are too large together: send the data in the body";
    Err(Problem::new(Slug::MalformedRequest, detail).with_limit(META_BYTES_MAX as u64, bytes as u64).into())
}

/// Refuses a head that is larger than relay takes: the number of headers and their bytes, each beside its limit.
pub(super) fn check_size(headers: (usize, usize), bytes: (usize, usize)) -> Result<(), Refusal> {
    for ((actual, limit), unit) in [(headers, "headers"), (bytes, "bytes of headers")] {
        if actual > limit {
            let detail = format!("the request has {actual} {unit}, {limit} are taken: send fewer");
            return Err(Problem::new(Slug::HeadersTooLarge, detail).with_limit(limit as u64, actual as u64).into());
        }
    }
    Ok(())
}

/// The headers that reach the handler: meta, and trace context where it is valid (W3C: else it is dropped).
fn passed(headers: &HeaderMap) -> Result<BTreeMap<String, String>, Refusal> {
    let mut passed = BTreeMap::new();
    let mut bytes = 0;
    for name in headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("relay-")) {
        let Some(short) = name.strip_prefix(header::META_PREFIX) else {
            if RELAY_HEADERS.contains(&name) {
                continue;
            }
            return Err(no_header(name));
        };
        let Some(value) = single(headers, name)? else { continue };
        if short.is_empty() {
            return Err(Refusal::malformed("header relay-meta- has no name after its prefix: give it one"));
        }
        bytes += short.len() + value.len();
        passed.insert(name.to_owned(), value.to_owned());
    }
    check_meta_bytes(bytes)?;
    // A parent that is there twice says nothing.
    let parent = single(headers, header::TRACEPARENT).ok().flatten();
    if parent.is_some() {
        let states = headers.get_all(header::TRACESTATE).iter().filter_map(|state| state.to_str().ok());
        passed.extend(trace::kept(parent, states));
    }
    Ok(passed)
}

/// Refuses headers of relay's own that a call does not have: `of_call` are those of the call, in lower case. Meta has no effect, and a slip
/// in it neither.
///
/// # Errors
/// `malformed-request`, which names the header.
pub(super) fn check_relay_headers(headers: &HeaderMap, of_call: &[&str]) -> Result<(), Refusal> {
    let own = headers.keys().map(HeaderName::as_str).filter(|name| name.starts_with("relay-"));
    let mut unknown = own.filter(|name| {
        !of_call.contains(name)
            && ![header::CLIENT, header::REQUEST_ID].contains(name)
            && !name.starts_with(header::META_PREFIX)
    });
    unknown.next().map_or(Ok(()), |name| Err(no_header(name)))
}

fn no_header(name: &str) -> Refusal {
    Refusal::malformed(format!("this call has no header {name}: correct or remove it"))
}

/// The trace that a request says it is part of, as log lines name it.
pub(super) fn trace_id(headers: &HeaderMap) -> Option<String> {
    let parent = headers.get(header::TRACEPARENT)?.to_str().ok()?;
    parent.parse::<TraceParent>().ok().map(|parent| parent.trace())
}
