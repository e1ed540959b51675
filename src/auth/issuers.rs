//! The keys of issuers that are asked over https. One task asks, so that an issuer is asked once however many wait for it, and at
//! most once a minute whatever tokens name. Keys that can't be fetched again are used for a day.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use relay_bridge::clock::Clock;
use relay_bridge::support::lock;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use super::fetch::{Fetcher, may_be_asked};
use super::identity::{Issuer, KeySource};
use super::jwks::KeySet;

/// How often an issuer is asked at most, whoever wants it.
const ASK_AT_MOST_EVERY: Duration = Duration::from_secs(60);
/// The age at which keys are asked for again: so long a key that an issuer has taken back is believed.
const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// The age from which keys are not used any more.
const STALE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// How often the ages are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a request waits for an issuer that is being asked, and how many may.
const WAIT_MAX: Duration = Duration::from_secs(6);
const WAITING_MAX: usize = 100;

/// Issuers whose keys are at an address.
#[derive(Debug)]
pub(super) struct Issuers {
    clock: Clock,
    fetcher: Mutex<Fetcher>,
    remotes: Mutex<HashMap<String, Remote>>,
    wanted: Notify,
    /// Changes whenever an issuer was asked.
    asked: watch::Sender<u64>,
    waiting: Semaphore,
}

#[derive(Debug)]
struct Remote {
    url: String,
    ca: Option<PathBuf>,
    set: Option<Arc<KeySet>>,
    /// When `set` came; monotonic.
    fetched: Duration,
    /// When it was asked last; monotonic.
    asked: Option<Duration>,
    is_wanted: bool,
    is_asked_now: bool,
    /// How often it was asked.
    answers: u64,
}

/// The outcome of asking an issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Its keys are as new as they can be.
    Answered,
    /// It was asked within the last minute: its keys are what they were.
    Recently,
    /// Too many wait for it, or it takes too long.
    Busy,
}

impl Issuers {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            fetcher: Mutex::new(Fetcher { allowed: may_be_asked }),
            remotes: Mutex::default(),
            wanted: Notify::new(),
            asked: watch::Sender::new(0),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }

    /// Lets keys be fetched from other addresses than usual.
    pub(super) fn allow(&self, allowed: fn(IpAddr) -> bool) {
        *lock(&self.fetcher) = Fetcher { allowed };
    }

    /// Takes on `issuers`. The keys of those that were there before, at the same address, stay.
    pub(super) fn configure(&self, issuers: &[Issuer]) {
        let mut remotes = lock(&self.remotes);
        let mut before = std::mem::take(&mut *remotes);
        for issuer in issuers {
            let KeySource::Url { url, ca } = &issuer.keys else { continue };
            let kept = before.remove(&issuer.url).filter(|old| old.url == *url && old.ca == *ca);
            let new = || Remote {
                url: url.clone(),
                ca: ca.clone(),
                set: None,
                fetched: Duration::ZERO,
                asked: None,
                is_wanted: true,
                is_asked_now: false,
                answers: 0,
            };
            remotes.insert(issuer.url.clone(), kept.unwrap_or_else(new));
        }
        self.wanted.notify_one();
    }

    /// The keys of `issuer` as they are; `None` if they were never fetched, or not for a day.
    pub(super) fn keys(&self, issuer: &str) -> Option<Arc<KeySet>> {
        let now = self.clock.monotonic();
        let remotes = lock(&self.remotes);
        let remote = remotes.get(issuer).filter(|remote| now.saturating_sub(remote.fetched) < STALE_MAX);
        remote.and_then(|remote| remote.set.clone())
    }

    /// How long ago each issuer gave its keys, in the order of their names.
    pub(super) fn ages(&self) -> Vec<(String, Duration)> {
        let now = self.clock.monotonic();
        let remotes = lock(&self.remotes);
        let known = remotes.iter().filter(|(_, remote)| remote.set.is_some());
        let mut ages: Vec<_> =
            known.map(|(issuer, remote)| (issuer.clone(), now.saturating_sub(remote.fetched))).collect();
        ages.sort_unstable();
        ages
    }

    /// How many answers there were, of all issuers.
    pub(super) fn answers(&self) -> u64 {
        *self.asked.borrow()
    }

    /// Has `issuer` asked anew, and waits for its answer.
    pub(super) async fn ask(&self, issuer: &str) -> Asked {
        let Ok(_place) = self.waiting.try_acquire() else { return Asked::Busy };
        let mut answered = self.asked.subscribe();
        let before = {
            let now = self.clock.monotonic();
            let mut remotes = lock(&self.remotes);
            let Some(remote) = remotes.get_mut(issuer) else { return Asked::Recently };
            if !remote.is_asked_now {
                if remote.asked.is_some_and(|asked| now.saturating_sub(asked) < ASK_AT_MOST_EVERY) {
                    return Asked::Recently;
                }
                remote.is_wanted = true;
                self.wanted.notify_one();
            }
            remote.answers
        };
        let is_there = || lock(&self.remotes).get(issuer).is_none_or(|remote| remote.answers > before);
        match timeout(WAIT_MAX, answered.wait_for(|_| is_there())).await {
            Ok(Ok(_)) => Asked::Answered,
            Ok(Err(_)) | Err(_) => Asked::Busy,
        }
    }

    /// Asks issuers when it is time. Never ends by itself.
    pub(super) async fn run(&self) {
        let mut asking = FuturesUnordered::new();
        loop {
            for (issuer, url, ca) in self.due() {
                let fetcher = *lock(&self.fetcher);
                asking.push(async move {
                    let found = fetcher.fetch(&url, ca.as_deref()).await;
                    (issuer, (url, ca), found)
                });
            }
            tokio::select! {
                Some((issuer, from, found)) = asking.next() => self.store(&issuer, &from, found),
                () = self.wanted.notified() => {}
                () = self.clock.sleep_until(self.clock.monotonic() + LOOK_EVERY) => {}
            }
        }
    }

    /// Those that are to be asked now; from here on they are being asked.
    fn due(&self) -> Vec<(String, String, Option<PathBuf>)> {
        let now = self.clock.monotonic();
        let mut due = Vec::new();
        for (issuer, remote) in lock(&self.remotes).iter_mut() {
            let is_old = remote.set.is_none() || now.saturating_sub(remote.fetched) >= REFRESH_EVERY;
            let is_early = remote.asked.is_some_and(|asked| now.saturating_sub(asked) < ASK_AT_MOST_EVERY);
            if (is_old || remote.is_wanted) && !is_early && !remote.is_asked_now {
                (remote.asked, remote.is_wanted, remote.is_asked_now) = (Some(now), false, true);
                due.push((issuer.clone(), remote.url.clone(), remote.ca.clone()));
            }
        }
        due
    }

    fn store(&self, issuer: &str, (url, ca): &(String, Option<PathBuf>), found: Result<KeySet, String>) {
        let now = self.clock.monotonic();
        let mut remotes = lock(&self.remotes);
        let Some(remote) = remotes.get_mut(issuer).filter(|remote| remote.url == *url && remote.ca == *ca) else {
            return;
        };
        remote.is_asked_now = false;
        remote.answers += 1;
        match found {
            Ok(set) => {
                if remote.set.is_none() {
                    info!(issuer, "the keys of an issuer were fetched");
                }
                (remote.set, remote.fetched) = (Some(Arc::new(set)), now);
            }
            Err(error) => {
                let age_s = remote.set.as_ref().map(|_| now.saturating_sub(remote.fetched).as_secs());
                warn!(
                    issuer,
                    error, age_s, "an issuer's keys can't be fetched; those that are there are used for 24 h"
                );
            }
        }
        drop(remotes);
        self.asked.send_modify(|count| *count += 1);
    }
}
