//! The NATS JetStream broker, 2.12 or newer. A job's record and its place in line are one message; every change of it is
//! one write under a condition on its whole address.
//!
//! # Layout
//!
//! - [`names`]: streams, consumers, subjects. `record`: a record as a message. `api`: JetStream calls as relay needs them.
//!
//! # What repairs a crash
//!
//! `docs/decisions/0010-nats-layout.md` has the table: crash point, what repairs it, which test shows it.

// Until every part of the adapter is there, some of what they share is not used yet.
#![allow(dead_code)]

mod api;
pub mod names;
mod record;

use std::sync::Arc;

use api::Api;
use async_nats::Client;
use async_nats::jetstream::Context;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::contract::envelope::WireVersion;
use crate::error::BrokerError;

/// What holds for all of an adapter's work.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The envelope version that is written.
    pub wire_version: WireVersion,
    /// The clock of deadlines and retention. Leases and waits run on the machine's monotonic clock.
    pub clock: Clock,
}

/// A connected adapter. Clones share it.
#[derive(Clone)]
pub struct Nats(Arc<Inner>);

/// What all parts of the adapter share.
struct Inner {
    api: Api,
    settings: Settings,
    /// Every task that the adapter spawned, for [`Nats::close`].
    tasks: TaskTracker,
    /// Cancelled when the adapter is being closed.
    closing: CancellationToken,
}

impl Nats {
    /// An adapter on a connection. `context` carries the JetStream domain and prefix.
    ///
    /// # Errors
    /// None yet; `Unavailable` once it looks at the server.
    pub async fn open(client: Client, context: Context, settings: Settings) -> Result<Self, BrokerError> {
        let api = Api::new(client, context);
        Ok(Self(Arc::new(Inner { api, settings, tasks: TaskTracker::new(), closing: CancellationToken::new() })))
    }

    /// Ends all waits and joins every task. Leases that nobody took are handed back first.
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn api(&self) -> &Api {
        &self.0.api
    }

    fn clock(&self) -> &Clock {
        &self.0.settings.clock
    }

    fn wire(&self) -> WireVersion {
        self.0.settings.wire_version
    }
}
