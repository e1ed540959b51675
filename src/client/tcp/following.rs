//! Results over TCP: pushed on a connection for as long as they are taken, or as a page.

use relay_bridge::contract::wire::client::{Follow, ToClient};
use tokio::time::{self, Instant};

use super::super::error::ClientError;
use super::super::job::{ResultEntry, ResultsFilter, WAIT_MAX};
use super::super::results::Batch;
use super::super::retry::ANSWER_MAX;
use super::connection::Unbegun;
use super::followed::Followed;
use super::{LEFT_MAX, Tcp, answers};
use crate::api::ResultsPage;

/// A follow request that is open between two batches.
pub(in super::super) struct Following {
    followed: Followed,
    /// Results that were taken and for which no new credit was given.
    taken: u32,
    /// The error behind results that were taken, for the next batch.
    failed: Option<ClientError>,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Tcp {
    async fn follow(&self, filter: &ResultsFilter, results: u32) -> Result<Followed, ClientError> {
        let follow = Follow {
            after: filter.after.clone(),
            queue: filter.queue.clone(),
            key_prefix: filter.key_prefix.clone(),
            results,
            bytes: BYTES,
        };
        for _ in 0..LEFT_MAX {
            match Followed::begin(self.0.connection().await?, follow.clone()).await {
                Ok(followed) => return Ok(followed),
                Err(Unbegun::Left) => {}
                Err(Unbegun::Failed(error)) => return Err(error),
            }
        }
        Err(self.sent_away())
    }

    /// The next results behind `filter.after`, on the follow request in `open`, which is made where there is none. After a while
    /// without any it is a batch of none.
    pub(in super::super) async fn batch(
        &self,
        filter: &ResultsFilter,
        open: &mut Option<Following>,
    ) -> Result<Batch, ClientError> {
        let mut following = match open.take() {
            Some(following) => following,
            None => {
                let followed = self.follow(filter, filter.limit).await?;
                Following { followed, taken: 0, failed: None }
            }
        };
        if let Some(error) = following.failed {
            return Err(error);
        }
        let taken = std::mem::take(&mut following.taken);
        if taken > 0 {
            following.followed.credit(taken);
        }
        let mut batch = Batch { entries: Vec::new(), next: None, reset: None };
        let is_at_end = filter.is_from_now();
        let mut next = time::timeout(WAIT_MAX, following.followed.next()).await.ok();
        while let Some(answer) = next.take() {
            match following.take(answer, &mut batch) {
                // The place of the end is kept before anything behind it is given.
                Ok(true) if is_at_end && batch.next.is_some() => break,
                Ok(true) => next = following.followed.here(),
                // The next batch is asked for on another connection.
                Ok(false) => return Ok(batch),
                Err(error) if batch.entries.is_empty() => return Err(error),
                // The results before it are kept.
                Err(error) if error.may_repeat(true) => return Ok(batch),
                Err(error) => {
                    following.failed = Some(error);
                    break;
                }
            }
        }
        *open = Some(following);
        Ok(batch)
    }

    /// A page of results as HTTP has it: what a follow request pushes until it is stopped, at the first result.
    pub(in super::super) async fn page(&self, filter: &ResultsFilter) -> Result<ResultsPage, ClientError> {
        let mut followed = self.follow(filter, filter.limit).await?;
        let until = Instant::now() + filter.wait.min(WAIT_MAX);
        let (mut entries, mut reset, mut next, mut is_stopped) = (Vec::new(), None, filter.after.clone(), false);
        // Something comes at once: a result, or the place where there is none.
        let mut patience = Instant::now() + ANSWER_MAX.max(filter.wait);
        loop {
            let answer = match time::timeout_at(patience, followed.next()).await {
                Ok(answer) => answer,
                Err(_) if is_stopped || entries.is_empty() && next == filter.after => {
                    return Err(ClientError::Interrupted(format!("no results came in {ANSWER_MAX:?}")));
                }
                Err(_) => Ok(ToClient::Pong(0)),
            };
            match answer {
                Ok(ToClient::Result { result, .. }) => {
                    next = Some(result.cursor.clone());
                    entries.push(answers::view_with_payload(*result));
                }
                Ok(ToClient::Position { cursor, .. }) => next = Some(cursor),
                Ok(ToClient::Reset { reason, .. }) => {
                    // A result or a place follows.
                    reset = Some(reason);
                    continue;
                }
                Ok(ToClient::Followed { cursor, .. }) => {
                    let next = cursor.or(next).ok_or_else(|| {
                        ClientError::Garbled("the results have neither an entry nor a place".to_owned())
                    })?;
                    return Ok(ResultsPage { reset, entries, next });
                }
                // The wait is over.
                Ok(ToClient::Pong(_)) => {}
                answer => return answers::other("follow", answer),
            }
            let is_over = !entries.is_empty() || Instant::now() >= until;
            if is_over && !is_stopped {
                is_stopped = true;
                followed.stop();
                patience = Instant::now() + ANSWER_MAX;
            } else if !is_stopped {
                patience = until;
            }
        }
    }
}

impl Following {
    /// Adds a message to `batch`. Whether more may come.
    fn take(&mut self, answer: super::connection::Answer, batch: &mut Batch) -> Result<bool, ClientError> {
        match answer {
            Ok(ToClient::Result { result, .. }) => {
                batch.next = Some(result.cursor.clone());
                let (view, payload) = answers::view(*result);
                self.taken += 1;
                batch.entries.push(ResultEntry { view, payload, reset: batch.reset.take() });
            }
            Ok(ToClient::Position { cursor, .. }) => batch.next = Some(cursor),
            Ok(ToClient::Reset { reason, .. }) => batch.reset = Some(reason),
            Ok(ToClient::Followed { cursor, .. }) => {
                batch.next = cursor.or(batch.next.take());
                return Ok(false);
            }
            answer => return answers::other("follow", answer),
        }
        Ok(true)
    }
}

/// Bytes of payloads that may be pushed and not taken. A larger payload comes alone.
const BYTES: u64 = 4 * 1024 * 1024;
