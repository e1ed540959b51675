//! Many small calls combined into few large ones. There is no timer: an entry that is alone goes at once, and entries
//! that come while the allowed calls are in flight share the next call.

use relay_bridge::support::lock;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// The most entries that wait for a call, in one place.
const PENDING_MAX: usize = 20_000;

type Answer<R> = Result<R, BrokerError>;
/// Makes one call of some entries; one answer each, in their order.
type Call<T, R> = Box<dyn Fn(Vec<T>) -> Pin<Box<dyn Future<Output = Vec<Answer<R>>> + Send>> + Send + Sync>;

/// Combines calls of one kind to one place.
pub(crate) struct Coalesce<T, R>(Arc<Shared<T, R>>);

struct Shared<T, R> {
    call: Call<T, R>,
    /// How many entries one call takes, and how much they may weigh together.
    entries_max: usize,
    weight_max: usize,
    weigh: fn(&T) -> usize,
    /// Whether two entries may not be in one call.
    clash: fn(&T, &T) -> bool,
    /// How many calls are made at once.
    at_once: usize,
    operation: &'static str,
    tasks: TaskTracker,
    state: Mutex<State<T, R>>,
}

struct State<T, R> {
    pending: VecDeque<(T, oneshot::Sender<Answer<R>>)>,
    running: usize,
}

/// The limits of one call, and how many calls are made at once.
pub(crate) struct Bounds<T> {
    /// The most entries of one call.
    pub(crate) entries: usize,
    /// The most that the entries of one call may weigh together; a single heavier entry goes alone.
    pub(crate) weight: usize,
    /// The weight of an entry.
    pub(crate) weigh: fn(&T) -> usize,
    /// Whether two entries may not be in one call.
    pub(crate) clash: fn(&T, &T) -> bool,
    /// The most calls at once.
    pub(crate) at_once: usize,
}

impl<T: Send + 'static, R: Send + 'static> Coalesce<T, R> {
    pub(crate) fn new<F>(
        operation: &'static str,
        tasks: &TaskTracker,
        bounds: Bounds<T>,
        call: impl Fn(Vec<T>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Vec<Answer<R>>> + Send + 'static,
    {
        Self(Arc::new(Shared {
            call: Box::new(move |entries| Box::pin(call(entries))),
            entries_max: bounds.entries,
            weight_max: bounds.weight,
            weigh: bounds.weigh,
            clash: bounds.clash,
            at_once: bounds.at_once,
            operation,
            tasks: tasks.clone(),
            state: Mutex::new(State { pending: VecDeque::new(), running: 0 }),
        }))
    }

    /// Sends `entry` with the next call, and waits for its answer. If the caller goes away, the entry is sent all the
    /// same.
    ///
    /// # Errors
    /// The entry's own; `Overloaded` if too many wait.
    pub(crate) async fn add(&self, entry: T) -> Answer<R> {
        let (give, given) = oneshot::channel();
        {
            let mut state = self.0.lock();
            if state.pending.len() >= PENDING_MAX {
                let kind = BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) };
                return Err(BrokerError::new(kind, self.0.operation, format!("{PENDING_MAX} calls wait already")));
            }
            state.pending.push_back((entry, give));
            if state.running < self.0.at_once {
                state.running += 1;
                self.0.tasks.spawn(drain(self.0.clone()));
            }
        }
        let lost = || BrokerError::new(BrokerErrorKind::Ambiguous, self.0.operation, "the call was given up");
        given.await.map_err(|_| lost())?
    }
}

/// Makes calls as long as something is pending.
async fn drain<T: Send + 'static, R: Send + 'static>(shared: Arc<Shared<T, R>>) {
    while let Some((entries, gives)) = shared.next() {
        let answers = (shared.call)(entries).await;
        for (give, answer) in gives.into_iter().zip(answers) {
            // A caller that has gone away needs no answer.
            drop(give.send(answer));
        }
    }
}

impl<T, R> Shared<T, R> {
    fn lock(&self) -> MutexGuard<'_, State<T, R>> {
        lock(&self.state)
    }

    /// The entries of the next call, each with the sender of its answer. `None` if no entry is pending: then this drain
    /// has ended.
    #[expect(clippy::type_complexity, reason = "entries and where their answers go, taken apart")]
    fn next(&self) -> Option<(Vec<T>, Vec<oneshot::Sender<Answer<R>>>)> {
        let mut state = self.lock();
        let (mut entries, mut gives, mut weight) = (Vec::new(), Vec::new(), 0);
        let mut left = VecDeque::new();
        while let Some((entry, give)) = state.pending.pop_front() {
            let heavier = weight + (self.weigh)(&entry);
            let fits = entries.is_empty() || heavier <= self.weight_max;
            if fits && !entries.iter().any(|other| (self.clash)(other, &entry)) {
                weight = heavier;
                entries.push(entry);
                gives.push(give);
            } else {
                left.push_back((entry, give));
            }
            if entries.len() == self.entries_max || left.len() > self.entries_max {
                break;
            }
        }
        left.append(&mut state.pending);
        state.pending = left;
        if entries.is_empty() {
            state.running -= 1;
            return None;
        }
        Some((entries, gives))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds<usize> {
        Bounds { entries: 10, weight: 100, weigh: |entry| *entry, clash: |a, b| a == b, at_once: 1 }
    }

    #[tokio::test]
    async fn what_is_pending_goes_together_and_each_entry_has_its_own_answer() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let coalesce = Coalesce::new("test", &TaskTracker::new(), bounds(), move |entries: Vec<usize>| {
            seen.lock().unwrap().push(entries.len());
            async move {
                let answer = |entry| match entry {
                    7 => Err(BrokerError::new(BrokerErrorKind::Invalid, "test", "seven")),
                    other => Ok(other * 2),
                };
                entries.into_iter().map(answer).collect()
            }
        });
        let answers = futures_util::future::join_all((0..25).map(|entry| coalesce.add(entry % 13))).await;
        for (number, answer) in answers.into_iter().enumerate() {
            match number % 13 {
                7 => assert_eq!(answer.unwrap_err().kind(), BrokerErrorKind::Invalid),
                other => assert_eq!(answer.unwrap(), other * 2),
            }
        }
        let sizes = sizes.lock().unwrap().clone();
        assert_eq!(sizes.iter().sum::<usize>(), 25);
        assert!(sizes.iter().all(|size| *size <= 10) && sizes.len() <= 5, "{sizes:?}");
    }

    #[tokio::test]
    async fn a_call_carries_no_more_than_it_may_weigh_and_no_two_that_clash() {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = calls.clone();
        let coalesce = Coalesce::new("test", &TaskTracker::new(), bounds(), move |entries: Vec<usize>| {
            seen.lock().unwrap().push(entries.clone());
            async move { entries.into_iter().map(Ok).collect() }
        });
        let entries = [60, 60, 30, 500, 30, 10];
        for answer in futures_util::future::join_all(entries.map(|entry| coalesce.add(entry))).await {
            answer.unwrap();
        }
        for call in calls.lock().unwrap().iter() {
            assert!(call.len() == 1 || call.iter().sum::<usize>() <= 100, "{call:?}");
            let mut once = call.clone();
            once.sort();
            once.dedup();
            assert_eq!(once.len(), call.len(), "{call:?}");
        }
    }
}
