//! Many submissions in one body: taken apart, and each enqueued for itself. An entry is decoded when its turn comes, so
//! that a batch holds little more than its own bytes.

use std::collections::BTreeMap;
use std::fmt;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use relay_bridge::broker::Broker;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{ClientId, IdempotencyKey, QueueName, Submission};
use relay_bridge::policy::QueuePolicy;
use serde::de::{Deserializer as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::rates::Rates;
use super::refusal::Refusal;
use super::{headers, jobs};
use crate::api::batch::BATCH_ENTRIES_MAX;
use crate::api::{BatchAnswer, BatchEntry, BatchItem, Problem, Receipt, Slug};

/// Entries of one batch that are on their way to the broker at a time.
const CONCURRENT: usize = 256;

/// Where a batch goes, and what its entries have in common.
pub(super) struct Batch<'a> {
    pub(super) broker: &'a Broker,
    pub(super) clock: &'a Clock,
    pub(super) policy: &'a QueuePolicy,
    pub(super) rates: &'a Rates,
    /// The largest payload of an entry, in bytes.
    pub(super) payload_max: u64,
    pub(super) client: &'a ClientId,
    pub(super) queue: &'a QueueName,
    /// The key that the keys of entries without one are made of.
    pub(super) key: Option<IdempotencyKey>,
    /// The trace context.
    pub(super) headers: BTreeMap<String, String>,
}

impl Batch<'_> {
    /// Enqueues every entry of `body`.
    ///
    /// # Errors
    /// `malformed-request` if the body can't be taken apart, `payload-too-large` if there are too many entries: nothing
    /// was done. The problem with an entry is in its answer.
    pub(super) async fn enqueue(&self, body: &[u8]) -> Result<BatchAnswer, Refusal> {
        let texts = split(body)?;
        if let Some(last) = texts.len().checked_sub(1) {
            // The last one is the longest: either all of them fit or nothing is done.
            self.entry_key(last)?;
        }
        let mut entries = Vec::with_capacity(texts.len());
        let mut running = FuturesOrdered::new();
        for (at, text) in texts.into_iter().enumerate() {
            if running.len() >= CONCURRENT {
                entries.extend(running.next().await);
            }
            running.push_back(self.entry(at, text));
        }
        while let Some(entry) = running.next().await {
            entries.push(entry);
        }
        let refused = entries.iter().filter(|entry| matches!(entry, BatchItem::Problem(_))).count();
        Ok(BatchAnswer { accepted: entries.len() - refused, refused, entries })
    }

    async fn entry(&self, at: usize, text: &str) -> BatchItem {
        match self.accept(at, text).await {
            Ok(receipt) => BatchItem::Receipt(Box::new(receipt)),
            Err(Refusal(mut problem)) => {
                problem.detail = format!("entry {at}: {}", problem.detail);
                BatchItem::Problem(problem)
            }
        }
    }

    async fn accept(&self, at: usize, text: &str) -> Result<Receipt, Refusal> {
        let submission = self.submission(at, text)?;
        jobs::admit((self.policy, self.rates), self.client, self.queue, &submission.content_type)?;
        let job = submission.accept(self.policy, self.clock.now());
        let (status, replayed) = jobs::enqueue(self.broker, job).await?;
        Ok(Receipt::new(&status, replayed))
    }

    fn submission(&self, at: usize, text: &str) -> Result<Submission, Refusal> {
        if !text.starts_with('{') {
            // An array would be taken for fields in their order.
            let detail = r#"it is no JSON object such as {"text": "hello"}: correct it"#;
            return Err(Refusal::malformed(detail));
        }
        let mut entry: BatchEntry = serde_json::from_str(text)
            .map_err(|error| Refusal::malformed(format!("it can't be read: {}: correct it", in_entry(&error))))?;
        let key = match &entry.key {
            Some(key) => Some(IdempotencyKey::from_header(key)?),
            None => self.entry_key(at)?,
        };
        let delay = entry.delay.map(|delay| delay.0).unwrap_or_default();
        headers::check_delay(delay, "field `delay`")?;
        let expires_in = entry.expires_in.map(|expires_in| expires_in.0);
        headers::check_expires_in(expires_in, "field `expires_in`")?;
        if let Some(content_type) = &entry.content_type {
            headers::check_content_type(content_type, "field `content_type`")?;
        }
        let mut passed = headers::meta(&entry.meta, "field `meta`")?;
        passed.extend(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let (payload, content_type) = entry.take_payload().map_err(Refusal::malformed)?;
        let actual = payload.len() as u64;
        if actual > self.payload_max {
            return Err(jobs::too_large(self.payload_max, actual));
        }
        Ok(Submission {
            client: self.client.clone(),
            queue: self.queue.clone(),
            key,
            content_type: entry.content_type.unwrap_or_else(|| content_type.to_owned()),
            content_encoding: None,
            headers: passed,
            payload,
            delay,
            expires_in,
        })
    }

    fn entry_key(&self, at: usize) -> Result<Option<IdempotencyKey>, Refusal> {
        let key = self.key.as_ref().map(|key| format!("{key}/{at}").parse());
        key.transpose().map_err(|error| {
            let why = format!("{error}: shorten Idempotency-Key, to which each entry's number is added");
            Refusal::malformed(why)
        })
    }
}

/// The entries of a body: of a JSON array, if it begins as one, else one for each line that is not empty.
fn split(body: &[u8]) -> Result<Vec<&str>, Refusal> {
    let text = std::str::from_utf8(body)
        .map_err(|error| Refusal::malformed(format!("the batch is not UTF-8 at byte {}", error.valid_up_to())))?;
    if text.trim().is_empty() {
        let why = "the batch is empty: send a JSON array of objects, or one object a line";
        return Err(Refusal::malformed(why));
    }
    let (entries, count) = if text.trim_start().starts_with('[') { array(text)? } else { lines(text) };
    if count > BATCH_ENTRIES_MAX {
        let detail = format!(
            "the batch has {count} entries, {BATCH_ENTRIES_MAX} are taken; nothing was done: send it in several parts"
        );
        let problem = Problem::new(Slug::PayloadTooLarge, detail);
        return Err(problem.with_limit(BATCH_ENTRIES_MAX as u64, count as u64).into());
    }
    Ok(entries)
}

/// The first [`BATCH_ENTRIES_MAX`] entries, and how many there are.
type Split<'a> = (Vec<&'a str>, usize);

fn lines(text: &str) -> Split<'_> {
    let all = text.lines().map(str::trim).filter(|line| !line.is_empty());
    (all.clone().take(BATCH_ENTRIES_MAX).collect(), all.count())
}

fn array(text: &str) -> Result<Split<'_>, Refusal> {
    let mut json = serde_json::Deserializer::from_str(text);
    let found = json.deserialize_seq(Entries).and_then(|found| json.end().map(|()| found));
    found.map_err(|error| {
        Refusal::malformed(format!(
            "the batch can't be read: {error}; nothing was done: send a JSON array of objects, or one object a line"
        ))
    })
}

/// Takes an array apart without reading its elements, which may be as many as fit into the body.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Split<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while entries.len() < BATCH_ENTRIES_MAX {
            let Some(entry) = array.next_element::<&RawValue>()? else { break };
            entries.push(entry.get());
        }
        let mut count = entries.len();
        while count >= BATCH_ENTRIES_MAX && array.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((entries, count))
    }
}

/// The problem, and its place in the entry where that is one line.
fn in_entry(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what: String =
        text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what).chars().take(200).collect();
    match (error.line(), error.column()) {
        (1, byte @ 1..) => format!("{what} at its byte {byte}"),
        _ => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_array_if_it_begins_as_one_and_else_lines() {
        let array = br#" [ {"text": "a"}, 1 ,[2] ]"#;
        assert_eq!(split(array).unwrap(), [r#"{"text": "a"}"#, "1", "[2]"]);
        assert_eq!(split(b"{\"text\":\"a\"}\r\n\n  {}\nnot json\n").unwrap(), ["{\"text\":\"a\"}", "{}", "not json"]);
        assert!(split(b" []\n").unwrap().is_empty());
        for broken in ["", " \n\n", "[", "[1", "[1,]", "[1]]", "[{]", "[1] x"] {
            assert!(split(broken.as_bytes()).is_err(), "{broken}");
        }
        assert!(split(b"[\"\xff\"]").is_err());
    }

    #[test]
    fn more_entries_than_allowed_are_counted_and_not_kept() {
        for body in ["[1,1".to_owned() + &",1".repeat(2_000) + "]", "1\n".repeat(2_002)] {
            let Refusal(problem) = split(body.as_bytes()).unwrap_err();
            assert_eq!((problem.limit, problem.actual), (Some(1_000), Some(2_002)));
        }
        assert_eq!(split(format!("[{}1]", "1,".repeat(999)).as_bytes()).unwrap().len(), 1_000);
    }
}
