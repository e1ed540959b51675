//! The job that a foreign message becomes: its client, queue, key and headers.

use std::collections::BTreeMap;
use std::time::Duration;

use relay_bridge::contract::job::HOPS;
use relay_bridge::contract::trace;
use relay_bridge::contract::{Failure, Submission};

use super::Message;
use super::template::Template;
use crate::api::header;
use crate::bridge::hops::one_more;

/// All headers that reach the handler together: names and values, in bytes, as for every submission.
const META_BYTES_MAX: usize = 2 * 1024;
/// The longest content type or content encoding, in bytes, as for every submission.
const CONTENT_HEADER_BYTES_MAX: usize = 255;

/// How messages become jobs.
#[derive(Clone, Debug)]
pub struct JobMapping {
    /// Whose jobs they are.
    pub client: Template,
    /// In which queue.
    pub queue: Template,
    /// Under which key: the same key is the same job. `None`: the message's place, or where there are no places its id.
    pub key: Option<Template>,
    /// The content type of messages that don't say it.
    pub content_type: String,
    /// Headers that reach the handler, as `relay-meta-` and their name in lower case.
    pub meta: Vec<String>,
}

impl JobMapping {
    /// The submission that `message` is.
    ///
    /// # Errors
    /// Why it can't be one, for good: `missing`, `invalid-name`, `invalid-key`, `invalid-header`, `headers-too-large`,
    /// `too-many-hops`.
    pub fn submission(&self, message: &Message) -> Result<Submission, Failure> {
        if message.headers_malformed {
            return Err(Failure::new("invalid-header", "the message has headers that can't be read"));
        }
        let name = |error: relay_bridge::contract::ids::InvalidId| Failure::new("invalid-name", error.to_string());
        let key = match (&self.key, message.place.as_ref().or(message.id.as_ref())) {
            (Some(template), _) => template.fill(message)?,
            (None, Some(own)) => own.clone(),
            (None, None) => return Err(Failure::new("missing", "the message has neither a place nor an id")),
        };
        Ok(Submission {
            client: self.client.fill(message)?.parse().map_err(name)?,
            queue: self.queue.fill(message)?.parse().map_err(name)?,
            key: Some(key.parse().map_err(|error| Failure::new("invalid-key", format!("{error}")))?),
            content_type: content(message, "content-type")?.unwrap_or_else(|| self.content_type.clone()),
            content_encoding: content(message, "content-encoding")?,
            headers: self.passed(message)?,
            payload: message.body.clone(),
            delay: Duration::ZERO,
            expires_in: None,
        })
    }

    /// Whether every message becomes a job of the same client in the same queue.
    pub(super) fn is_fixed(&self) -> bool {
        self.client.fixed().is_some() && self.queue.fixed().is_some()
    }

    fn passed(&self, message: &Message) -> Result<BTreeMap<String, String>, Failure> {
        let header = |name| message.headers.get(name).map(String::as_str);
        let mut passed: BTreeMap<_, _> = trace::kept(header(trace::TRACEPARENT), header(trace::TRACESTATE)).collect();
        let mut bytes = 0;
        for name in self.meta.iter().map(|name| name.to_ascii_lowercase()) {
            let Some(value) = message.headers.get(&name) else { continue };
            if !is_text(value) {
                return Err(Failure::new("invalid-header", format!("header {name} has other than visible ASCII")));
            }
            bytes += name.len() + value.len();
            passed.insert(format!("{}{name}", header::META_PREFIX), value.clone());
        }
        if bytes > META_BYTES_MAX {
            let detail = format!("the headers for the handler have {bytes} bytes, {META_BYTES_MAX} are taken");
            return Err(Failure::new("headers-too-large", detail));
        }
        passed.extend(header(HOPS).map(|hops| (HOPS.to_owned(), hops.to_owned())));
        one_more(passed)
    }
}

fn content(message: &Message, name: &str) -> Result<Option<String>, Failure> {
    let Some(text) = message.headers.get(name).map(|text| text.trim()).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text.len() > CONTENT_HEADER_BYTES_MAX || !is_text(text) {
        let detail = format!("header {name} is not visible ASCII of at most {CONTENT_HEADER_BYTES_MAX} bytes");
        return Err(Failure::new("invalid-header", detail));
    }
    Ok(Some(text.to_owned()))
}

fn is_text(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b' ' | b'\t' | b'!'..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> JobMapping {
        JobMapping {
            client: "shop-{subject.2}".parse().unwrap(),
            queue: "orders".parse().unwrap(),
            key: Some("{header.order-id}".parse().unwrap()),
            content_type: "application/json".to_owned(),
            meta: vec!["X-Tenant".to_owned()],
        }
    }

    fn message(headers: &[(&str, &str)]) -> Message {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Message { subject: "orders.eu".to_owned(), headers, body: "{}".into(), ..Message::default() }
    }

    #[test]
    fn a_message_becomes_the_submission_that_the_mapping_says() {
        let made =
            mapping().submission(&message(&[("order-id", "A-17"), ("x-tenant", "blue"), ("other", "x")])).unwrap();
        assert_eq!((made.client.as_str(), made.queue.as_str()), ("shop-eu", "orders"));
        assert_eq!(made.key.unwrap().as_str(), "A-17");
        assert_eq!((made.content_type.as_str(), made.content_encoding), ("application/json", None));
        let passed = [("relay-hops", "1"), ("relay-meta-x-tenant", "blue")];
        assert_eq!(made.headers, passed.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert_eq!(made.payload, "{}");
    }

    #[test]
    fn a_message_brings_its_trace_context_if_it_is_valid() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let passed = |parent| {
            let headers = [("order-id", "1"), ("traceparent", parent), ("tracestate", "a=1")];
            mapping().submission(&message(&headers)).unwrap().headers
        };
        let pairs = [("traceparent", parent), ("tracestate", "a=1")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let hops = ("relay-hops".to_owned(), "1".to_owned());
        assert_eq!(passed(parent), pairs.into_iter().chain([hops.clone()]).collect());
        assert_eq!(passed("00-0-0-01"), [hops].into(), "it is dropped, and the message is a job all the same");
    }

    #[test]
    fn what_the_message_says_of_its_content_goes_before_the_default() {
        let headers = [("order-id", "1"), ("content-type", "text/plain"), ("content-encoding", "gzip")];
        let made = mapping().submission(&message(&headers)).unwrap();
        assert_eq!((made.content_type.as_str(), made.content_encoding.as_deref()), ("text/plain", Some("gzip")));
    }

    #[test]
    fn without_a_key_it_is_the_place_or_else_the_id() {
        let mapping = JobMapping { key: None, ..mapping() };
        let both = Message { place: Some("S.1.2".to_owned()), id: Some("m1".to_owned()), ..message(&[]) };
        assert_eq!(mapping.submission(&both).unwrap().key.unwrap().as_str(), "S.1.2");
        let id = Message { place: None, ..both };
        assert_eq!(mapping.submission(&id).unwrap().key.unwrap().as_str(), "m1");
        assert_eq!(mapping.submission(&message(&[])).unwrap_err().reason, "missing");
    }

    #[test]
    fn what_can_never_be_a_job_says_why() {
        let long = "x".repeat(META_BYTES_MAX);
        let table = [
            (message(&[]), "missing"),
            (message(&[("order-id", "with space")]), "invalid-key"),
            (Message { subject: "orders.EU".to_owned(), ..message(&[("order-id", "1")]) }, "invalid-name"),
            (message(&[("order-id", "1"), ("x-tenant", "bl\u{fc}")]), "invalid-header"),
            (message(&[("order-id", "1"), ("content-type", "a\nb")]), "invalid-header"),
            (message(&[("order-id", "1"), ("x-tenant", &long)]), "headers-too-large"),
            (message(&[("order-id", "1"), ("relay-hops", "8")]), "too-many-hops"),
        ];
        for (message, reason) in table {
            assert_eq!(mapping().submission(&message).unwrap_err().reason, reason, "{message:?}");
        }
    }
}
