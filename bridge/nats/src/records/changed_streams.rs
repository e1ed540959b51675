//! Notices that somebody changed a stream while relay uses it, so that relay can't keep its promises there: a stream with a
//! size limit, for one, drops jobs that were accepted, and nothing else would say so. What is needed is mended at a start and by
//! provisioning, never in between: two processes of different settings would change the stream to and fro.

use std::collections::HashMap;
use std::sync::Mutex;

use async_nats::jetstream::stream::Config;

use crate::stored::streams::{Mend, reconcile};
use relay_bridge::support::lock;

/// How the streams differed when they were seen last, by name; those that are as needed are left out.
#[derive(Debug, Default)]
pub(crate) struct ChangedStreams(Mutex<HashMap<String, Vec<String>>>);

impl ChangedStreams {
    /// Says once for each change that `found` is not as relay needs it, or is so again.
    pub(crate) fn saw(&self, found: &Config, wanted: &Config) {
        let (_, differences) = reconcile(found, wanted, Mend::Needed);
        let differs: Vec<_> = differences.into_iter().map(|difference| difference.what).collect();
        let (mut known, stream) = (lock(&self.0), found.name.as_str());
        let before = known.remove(stream).unwrap_or_default();
        match (before.is_empty(), differs.is_empty()) {
            (true, true) => return,
            (false, true) => return tracing::info!(stream, "a stream is as relay needs it again"),
            _ if before == differs => {}
            _ => tracing::error!(
                stream,
                differs = differs.join("; "),
                "somebody changed a stream, and relay can't keep its promises there: run `relay provision`, which changes it back"
            ),
        }
        known.insert(stream.to_owned(), differs);
    }
}
