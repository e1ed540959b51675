//! A client's results as a stream that goes on over any number of connections. Reading consumes nothing at the server.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use relay_bridge::result_log::Reset;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::calls::Client;
use super::error::ClientError;
use super::job::{ResultEntry, ResultsFilter, WAIT_MAX};
use super::retry::Early;
use super::tcp::Following;

/// Results that came together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) entries: Vec<ResultEntry>,
    /// Where to go on; `None` is where it began.
    pub(super) next: Option<String>,
    /// Reading could not go on, of which no entry tells.
    pub(super) reset: Option<Reset>,
}

/// The state that a transport keeps between two batches of one reader.
pub(super) type Place = Arc<Mutex<Kept>>;

/// The follow request over TCP, nothing over HTTP.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) following: Option<Following>,
}

type Fetching = Pin<Box<dyn Future<Output = Result<Batch, ClientError>> + Send>>;

/// All results behind a cursor and those that come, oldest first, each once for as long as this lives. Made by
/// [`Client::results`]. It has no end; after an error it may be polled again, and goes on where it was.
///
/// No more than some hundred results, and some MiB of their payloads, are held before they are taken.
pub struct Results {
    client: Client,
    filter: ResultsFilter,
    place: Place,
    fetching: Option<Fetching>,
    ready: VecDeque<ResultEntry>,
    committed: Option<String>,
    /// Where it began; a place may not be known yet.
    from: Option<String>,
    /// Told with the next result.
    reset: Option<Reset>,
    /// Whether a result was given, or a place was committed: from then on the beginning is known.
    is_begun: bool,
    /// When the last batch was asked for.
    asked: Instant,
    early: Early,
}

impl fmt::Debug for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Results")
            .field("filter", &self.filter)
            .field("committed", &self.committed)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// The results that `filter` wants, now and from now on; its `limit` and its `wait` are not looked at. Nothing is asked before the
    /// stream is polled.
    #[must_use]
    pub fn results(&self, filter: ResultsFilter) -> Results {
        let from = filter.after.clone();
        let committed = from.clone().filter(|_| !filter.is_from_now());
        let filter = ResultsFilter { limit: ResultsFilter::default().limit, ..filter };
        let (place, ready) = (Place::default(), VecDeque::new());
        Results {
            client: self.clone(),
            filter,
            place,
            fetching: None,
            ready,
            committed,
            from,
            reset: None,
            is_begun: false,
            asked: Instant::now(),
            early: Early::default(),
        }
    }
}

impl Results {
    /// All results up to `cursor`, that of a result that was taken, are dealt with.
    pub fn commit(&mut self, cursor: impl Into<String>) {
        self.committed = Some(cursor.into());
        self.is_begun = true;
    }

    /// The cursor to keep: another stream that begins behind it misses nothing. `None` is the oldest result that is kept; a stream
    /// that began at `now` knows better once it was polled.
    #[must_use]
    pub fn committed(&self) -> Option<&str> {
        self.committed.as_deref()
    }

    /// Goes back: whatever was taken and not committed comes again.
    pub fn rewind(&mut self) {
        self.fetching = None;
        self.ready.clear();
        self.place = Place::default();
        // Relay tells it again: nothing behind it is committed.
        self.reset = None;
        self.filter.after = self.committed.clone().or_else(|| self.from.clone());
    }

    fn fetch(&mut self) -> Fetching {
        let (client, filter, place) = (self.client.clone(), self.filter.clone(), Arc::clone(&self.place));
        let pause = self.early.pause();
        self.asked = Instant::now() + pause;
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            client.batch(&filter, &place).await
        })
    }
}

impl Stream for Results {
    type Item = Result<ResultEntry, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                self.is_begun = true;
                return Poll::Ready(Some(Ok(entry)));
            }
            let fetching = self.fetching.take();
            let mut fetching = fetching.unwrap_or_else(|| self.fetch());
            let Poll::Ready(fetched) = fetching.as_mut().poll(context) else {
                self.fetching = Some(fetching);
                return Poll::Pending;
            };
            match fetched {
                Ok(Batch { mut entries, next, reset }) => {
                    if let Some(first) = entries.first_mut() {
                        first.reset = first.reset.or(self.reset.take());
                    }
                    self.reset = reset.or(self.reset);
                    let is_still =
                        entries.is_empty() && next.as_ref().is_none_or(|next| self.filter.after.as_ref() == Some(next));
                    self.early = self.early.answered(is_still && self.asked.elapsed() < WAIT_MAX / 2);
                    // A reset is not passed over: one that begins behind it would not be told.
                    if !self.is_begun && entries.is_empty() && self.reset.is_none() {
                        self.committed = next.clone().or_else(|| self.committed.take());
                    }
                    self.filter.after = next.or_else(|| self.filter.after.take());
                    self.ready.extend(entries);
                }
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}
