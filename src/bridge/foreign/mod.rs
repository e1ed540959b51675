//! From foreign queues to relay: messages that know nothing of relay become jobs, and their results go back where they
//! are waited for.
//!
//! A message is settled at its queue after relay confirmed its job, under a key that the message gives. If anything
//! dies in between, the message comes again and is found to be that job. A message that can't become a job is put aside
//! with the reason.
//!
//! # Layout
//!
//! - [`template`], [`mapping`]: the job that a message becomes, as pure functions.
//! - [`intake`]: takes messages of any foreign queue, and decides.
//! - [`nats`]: a stream of NATS JetStream as such a queue; `sqs`: a queue of SQS.
//! - [`replies`]: the results, on a subject of the same NATS.

pub mod intake;
pub mod mapping;
pub mod nats;
pub mod replies;
mod sqs;

pub mod template;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use relay_bridge::contract::Failure;
use relay_bridge::contract::job::HOPS;
use relay_bridge::error::BrokerError;
use relay_bridge::result_log::Finished;

/// A message of a foreign queue, whatever it is that keeps it.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Where it was published: a subject of NATS, or the name of a queue.
    pub subject: String,
    /// Headers or attributes that are text, by their names in lower case; of several under one name the first.
    pub headers: BTreeMap<String, String>,
    /// There were headers and they can't be read.
    pub headers_malformed: bool,
    /// The id that its producer, or its queue, gave it. The same id is the same message.
    pub id: Option<String>,
    /// Its place in its stream, unlike that of any other message there ever was; `None` where there are no places.
    pub place: Option<String>,
    /// Any bytes.
    pub body: Bytes,
    /// How often it was delivered, this time included.
    pub delivered: u64,
}

/// Headers by their names in lower case. Of names that differ in case only, the first in the order of their bytes counts, so that
/// a message that comes again is read as it was before; of several counts of hops the greatest, so that no other one hides it.
fn by_lower_case(named: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let sorted: BTreeMap<_, _> = named.collect();
    let mut headers = BTreeMap::new();
    for (name, value) in sorted {
        let (name, given) = (name.to_ascii_lowercase(), value.clone());
        let first = headers.entry(name.clone()).or_insert(value);
        if name == HOPS && count_of(&given) > count_of(first) {
            *first = given;
        }
    }
    headers
}

/// The number of hops that a header says; 0 if it says none.
fn count_of(text: &str) -> u32 {
    text.trim().parse().unwrap_or(0)
}

/// A message in hand.
pub struct Incoming<R> {
    /// The message's content.
    pub message: Message,
    /// The receipt that settles the message.
    pub receipt: R,
}

/// A queue that others write to. Every call may be repeated.
#[async_trait]
pub trait ForeignQueue: Send + Sync + 'static {
    /// The receipt that settles a message.
    type Receipt: Send + Sync + 'static;

    /// Up to `max` messages as they come, for some seconds at most; an error ends it.
    fn pull(&self, max: NonZeroU32) -> BoxStream<'_, Result<Incoming<Self::Receipt>, BrokerError>>;

    /// How often a message that is not settled yet has to be held.
    fn hold_every(&self, receipt: &Self::Receipt) -> Duration;

    /// Keeps the message from others for a while longer.
    ///
    /// # Errors
    /// The connection's. A message that is not held may come again, which is harmless.
    async fn hold(&self, receipt: &Self::Receipt) -> Result<(), BrokerError>;

    /// Ends the message: it is a job now.
    ///
    /// # Errors
    /// `Unavailable`, `Ambiguous`: repeat it, or the message comes again.
    async fn taken(&self, receipt: &Self::Receipt) -> Result<(), BrokerError>;

    /// Whether somebody waits for the result where messages come from: then a message is held until it was sent there.
    fn replies(&self) -> bool {
        false
    }

    /// Sends the result of the job that the message became. The one that ends the message comes after it.
    ///
    /// # Errors
    /// `Unavailable`, `Ambiguous`: repeat it, or the message comes again.
    async fn reply(&self, _receipt: &Self::Receipt, _finished: &Finished) -> Result<(), BrokerError> {
        Ok(())
    }

    /// Has the message come again, not before `after`.
    ///
    /// # Errors
    /// The connection's; it comes again anyway.
    async fn give_back(&self, receipt: &Self::Receipt, after: Duration) -> Result<(), BrokerError>;

    /// Puts the message aside with the reason, where an operator finds both, and only then ends it.
    ///
    /// # Errors
    /// It was not put aside: it stays where it is.
    async fn put_aside(&self, incoming: &Incoming<Self::Receipt>, why: &Failure) -> Result<(), BrokerError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_names_that_differ_in_case_only_the_same_one_counts_each_time() {
        let named = [("x-tenant", "c"), ("X-TENANT", "a"), ("X-Tenant", "b"), ("y", "d")];
        for turn in 0..named.len() {
            let turned = named.iter().cycle().skip(turn).take(named.len());
            let read = by_lower_case(turned.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let expected = [("x-tenant", "a"), ("y", "d")].map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(read, expected.into());
        }
    }

    #[test]
    fn of_several_counts_of_hops_the_greatest_counts_so_that_none_hides_a_circle() {
        let named = [("RELAY-HOPS", "0"), ("Relay-Hops", "9"), ("relay-hops", "x")];
        let read = by_lower_case(named.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(read, [("relay-hops".to_owned(), "9".to_owned())].into());
    }
}
