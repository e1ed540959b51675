//! Writing the end of a run, and waking the calls of this process that wait for it.

use relay_bridge::contract::envelope::encode_result;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::Table;
use crate::adapter::results::finish::{Ended, Ending, Endings};
use crate::adapter::results::waiting::Wakes;
use crate::adapter::stored::record::OUTLIVES;
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{ClientId, JobId, JobResult, Timestamp};
use relay_bridge::error::BrokerError;

const OPERATION: &str = "record";
/// Results up to this many bytes of envelope are in the record itself.
const INLINE_MAX: usize = 1_024;

/// Writes ends of runs.
pub(crate) struct Ends {
    pub(crate) endings: Endings,
    pub(crate) settings: Settings,
    pub(crate) table: Table,
    pub(crate) waiting_clients: Wakes<ClientId>,
    pub(crate) waiting_jobs: Wakes<JobId>,
}

impl Ends {
    /// Ends the run of `result`, which could begin at `due_at`, unless it has ended.
    ///
    /// # Errors
    /// As [`Leasing::record`](relay_bridge::leasing::Leasing::record).
    pub(crate) async fn end(&self, result: JobResult, due_at: Timestamp) -> Result<Ended, BrokerError> {
        // Key and meta are the record's, and are read from it: a second copy could make the result too large for the record.
        let bare = JobResult { key: None, meta: BTreeMap::new(), ..result.clone() };
        let envelope = encode_result(&bare, self.settings.wire_version);
        let by = uuid::Uuid::new_v4().simple().to_string()[..16].to_owned();
        let fits = envelope.len() <= INLINE_MAX;
        let result = Arc::new(result);
        let mut ending = Ending { result: result.clone(), due_at, inline: None, by };
        let apart = names::result(result.job_id, result.run_id, &ending.by);
        if fits {
            ending.inline = Some(envelope);
        } else {
            // It is written before the record that names it. If another result wins, it is removed; if this process
            // dies, it goes by its TTL.
            let until = ending.kept_until(self.settings.clock.now()) + OUTLIVES;
            let item = Item::at(&apart).binary("result", envelope).kept_until(until);
            self.table.put(item, OPERATION).await?;
        }
        let ended = self.endings.of(&result.client).add(ending).await;
        // The waiting calls of this process look, whichever process ended the run.
        self.waiting_jobs.wake(&result.job_id);
        match &ended {
            Ok(Ended::Now) => self.waiting_clients.wake(&result.client),
            // No record names this item, and the next call writes an item of its own. Nor may bytes be left that the
            // client had removed.
            Ok(Ended::Refused(_)) if !fits => {
                if let Err(error) = self.table.remove(&apart, OPERATION).await {
                    tracing::warn!(job_id = %result.job_id, %error, "a result that was refused is left until its TTL");
                }
            }
            _ => {}
        }
        ended
    }
}
