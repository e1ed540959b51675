//! The adapter's stand-in in a build without AWS: connecting and opening a queue are refused.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use relay_bridge::broker::Broker;
use relay_bridge::contract::QueueName;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::newer_jobs::NewerJobs;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::SqsConfig;
use crate::forward::Render;
use crate::settings::Settings;

fn absent() -> BrokerError {
    let why = "this relay was built without SQS: build it with the cargo feature `sqs`";
    BrokerError::new(BrokerErrorKind::Invalid, "connect", why)
}

/// The adapter. This build has none, so this type has no values.
#[derive(Clone, Copy, Debug)]
pub enum Sqs {}

impl Sqs {
    /// Refused.
    ///
    /// # Errors
    /// `Invalid`, always.
    pub async fn connect(_: SqsConfig, _: Settings) -> Result<Self, BrokerError> {
        Err(absent())
    }

    /// Never called.
    #[must_use]
    pub fn broker(&self) -> Broker {
        match *self {}
    }

    /// Never called.
    #[must_use]
    pub fn newer_jobs(&self) -> Arc<NewerJobs> {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn check_provisioned(&self, _: &[QueueName]) -> Result<(), BrokerError> {
        match *self {}
    }

    /// Never called.
    pub async fn forward(&self, _: Render, _: CancellationToken) {
        match *self {}
    }

    /// Never called.
    pub async fn close(&self) {
        match *self {}
    }

    /// Never called.
    pub async fn close_by(&self, _: Instant) {
        match *self {}
    }
}

/// Plain queues. This build has none.
pub mod plain {
    use std::collections::BTreeMap;

    use relay_bridge::result_log::Finished;

    use super::{BrokerError, Duration, NonZeroU32, Render, SqsConfig, absent};

    /// A queue.
    #[derive(Clone, Copy, Debug)]
    pub enum PlainQueue {}

    /// A message.
    #[derive(Clone, Debug)]
    pub struct PlainMessage {
        /// The message's id in SQS.
        pub id: String,
        /// The body.
        pub body: String,
        /// Its attributes.
        pub attributes: BTreeMap<String, String>,
        /// How often it was received.
        pub receives: u64,
    }

    impl PlainQueue {
        /// Refused.
        ///
        /// # Errors
        /// `Invalid`, always.
        pub async fn open(_: &SqsConfig, _: &str, _: &str, _: Option<&str>) -> Result<Self, BrokerError> {
            Err(absent())
        }

        /// Never called.
        #[must_use]
        pub fn name(&self) -> &str {
            match *self {}
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub async fn receive(&self, _: NonZeroU32, _: Duration, _: Duration) -> Result<Vec<PlainMessage>, BrokerError> {
            match *self {}
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub async fn delete(&self, _: &PlainMessage) -> Result<(), BrokerError> {
            match *self {}
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub async fn hide(&self, _: &PlainMessage, _: Duration) -> Result<(), BrokerError> {
            match *self {}
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub async fn copy_aside(&self, _: &PlainMessage, _: &str, _: &str) -> Result<(), BrokerError> {
            match *self {}
        }

        /// Never called.
        #[must_use]
        pub fn has_replies(&self) -> bool {
            match *self {}
        }

        /// Never called.
        ///
        /// # Errors
        /// None.
        pub async fn reply(&self, _: &PlainMessage, _: &Render, _: &Finished) -> Result<(), BrokerError> {
            match *self {}
        }

        /// Never called.
        pub async fn close(&self) {
            match *self {}
        }
    }
}
