//! Makes pulls. Each is a task of its own until its short time is over, because jobs under way to a caller that
//! unsubscribed are lost, and so that no pull waits for another: a lane whose server hangs holds up no other lane. Jobs
//! are looked at as they come and offered at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};

use crate::leases::deliver;
use crate::leases::pulling::Pulls;
use crate::line::lines::Lines;
use crate::line::queue_state::QueueState;
use crate::line::turns::{Wanted, Why};
use crate::stored::names;
use crate::wire::api::taken;
use relay_bridge::error::BrokerError;
use relay_bridge::leasing::Delivery;
use relay_bridge::policy::QueuePolicy;

/// How long a pull waits for jobs that a hint told of: a consumer learns of a message a little later than the
/// subscribers of the hint, and a timer fires up to 250 ms late.
const HINTED_WAIT: Duration = Duration::from_millis(300);
/// How long a standing pull waits for a job that is likely to come.
const STANDS_FOR: Duration = Duration::from_millis(250);
/// How long any other pull waits. Not zero: where a lane has as many jobs leased as it may, the server never answers a
/// pull that does not wait, and keeps it (measured on 2.15.1).
const PULL_WAIT: Duration = Duration::from_millis(5);
/// By how much a pull waits longer for each one before that brought nothing although the lane has jobs, up to 1.28 s. A
/// server that looks at the first job of a long line may need longer than a pull waits, gives up, and begins anew with
/// the next one: 25 ms for 40,000 jobs of a client on 2.15.1.
const WAIT_FACTOR: u32 = 4;
/// How much longer than a pull waits its places are held for it. Jobs that come later are offered all the same.
const HELD_LONGER: Duration = Duration::from_millis(250);
/// For how long the first jobs of a pull wait for the others, of which the last comes right behind.
const TOGETHER: Duration = Duration::from_millis(2);
/// How many messages are looked up at once.
const AT_ONCE: usize = 64;
/// How long a job may be looked at before it is left to come again when its lease ends: longer than any of its requests may
/// take together, so that none that hangs keeps a place.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(20);
/// How long the server may take to answer a pull.
const PULL_WITHIN: Duration = Duration::from_secs(5);

/// How long a pull waits. Its jobs are leased from the moment at which it was asked for, so it waits for a quarter of a
/// lease at most.
fn patience(wanted: &Wanted, lease: Duration) -> Duration {
    let (least, most) = match wanted.why {
        Why::Hinted => (HINTED_WAIT, lease / 4),
        Why::Standing => (STANDS_FOR, lease / 4),
        Why::Maybe => (PULL_WAIT * WAIT_FACTOR.pow(wanted.misses), lease / 4),
    };
    least.min(most).max(PULL_WAIT)
}

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With everything that was asked for, or everything there was.
    Answered,
    /// The server did not say so in time.
    Silent,
    /// The consumer is gone.
    Gone,
}

/// The places that a pull holds for jobs that have not come yet.
struct Held<'a> {
    lines: &'a Lines,
    line: &'a Arc<QueueState>,
    wanted: &'a Wanted,
    /// How many. None for a standing pull: a job that only may come takes no other lane's place.
    left: u32,
    got: u32,
    /// How many more jobs the lane had behind the one that came last.
    behind: u64,
    /// Whether the places were given back.
    is_over: bool,
    /// Whether somebody may wait for the pull's end.
    is_awaited: bool,
}

impl Held<'_> {
    /// Notes that a message came, and that the lane has so many more.
    fn came(&mut self, behind: u64) {
        (self.got, self.behind) = (self.got + 1, behind);
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => self.lines.places().hold(&self.line.queue, 1),
        }
    }

    /// Gives back the places: nobody waits for more jobs of this pull.
    fn end(&mut self) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        if self.wanted.why == Why::Standing {
            self.line.has_standing_pull.store(false, Ordering::Release);
        }
        self.lines.places().release(&self.line.queue, std::mem::take(&mut self.left));
        {
            let mut turns = self.line.turns();
            turns.pulled(self.wanted, self.got, Instant::now());
            if self.behind > 0 {
                let limited = self.wanted.lane.policy(&self.line.policy()).max_running < u32::MAX;
                turns.behind(self.wanted, self.behind, self.line.rounds.is_alone(), limited);
            }
        }
        // Others may have the places: a call that waits pulls for them, its queues in its order. Or a pull may stand.
        self.line.woken.notify_one();
    }

    /// As [`Self::end`], and nobody is to wait for jobs that may still come.
    fn give_up(&mut self) {
        self.end();
        if std::mem::take(&mut self.is_awaited) {
            self.line.pulls.send_modify(|pulls| *pulls -= 1);
        }
    }
}

impl Pulls {
    /// One pull, whose places are held. Its jobs are offered to the calls that wait.
    pub(crate) async fn pull(self: Arc<Self>, line: Arc<QueueState>, policy: Arc<QueuePolicy>, wanted: Wanted) {
        let asked_at = Instant::now();
        let is_awaited = wanted.why != Why::Standing;
        let left = if is_awaited { wanted.count } else { 0 };
        let wait = patience(&wanted, policy.lease);
        let mut held = Held {
            lines: &self.lines,
            line: &line,
            wanted: &wanted,
            left,
            got: 0,
            behind: 0,
            is_over: false,
            is_awaited,
        };
        let end = match self.ask(&line, &wanted, wait).await {
            Ok(answers) => self.take_in(answers, &policy, asked_at, wait, &mut held).await,
            Err(error) => {
                tracing::debug!(queue = %line.queue, consumer = %wanted.lane, %error, "a pull was not sent");
                let _ = line.turns().silent(&wanted.lane, Instant::now());
                line.rounds.soon();
                End::Silent
            }
        };
        if end == End::Gone
            && let Err(error) = self.lines.restore_consumer(&line, &policy, &wanted.lane).await
        {
            tracing::warn!(queue = %line.queue, consumer = %wanted.lane, %error, "a consumer that is gone was not made again");
        }
        if wanted.why == Why::Standing && held.got == 0 && asked_at.elapsed() < wait {
            // It is not made again before the lane's next job.
            line.expects_nothing();
        }
        held.give_up();
    }

    async fn ask(&self, line: &QueueState, wanted: &Wanted, wait: Duration) -> Result<Subscriber, BrokerError> {
        let inbox = self.api.client().new_inbox();
        let mut answers = self.api.subscribe(inbox.clone(), "lease").await?;
        // With the last message that is asked for it ends by itself, and nothing is to be sent between that and the job.
        taken(answers.unsubscribe_after(u64::from(wanted.count)), "lease").await?;
        let expires = u64::try_from(wait.as_nanos()).unwrap_or(0);
        // The jobs that there are, at once; if there are none, those that come within `expires`.
        let body = json!({ "batch": wanted.count, "no_wait": true, "expires": expires }).to_string();
        let subject = format!("CONSUMER.MSG.NEXT.{}.{}", names::jobs_stream(&line.queue), wanted.lane);
        self.api.send(subject, inbox, body.into(), "lease").await?;
        Ok(answers)
    }

    /// Offers the jobs that come until the pull is over.
    async fn take_in(
        self: &Arc<Self>,
        mut answers: Subscriber,
        policy: &QueuePolicy,
        asked_at: Instant,
        wait: Duration,
        held: &mut Held<'_>,
    ) -> End {
        let (line, wanted) = (held.line, held.wanted);
        let (connections, mut reconnected) = (self.api.connections(), self.api.missed());
        let mut delivering = FuturesUnordered::new();
        let mut end = None;
        // Jobs to be offered when the pull is over, and when at the latest.
        let (mut came, mut offer_at) = (Vec::new(), None);
        // When its lane may be asked again, if this pull was not answered.
        let mut ask_again = None;
        // For each message: a large batch over a slow network takes longer.
        let mut over_at = asked_at + wait + HELD_LONGER;
        let mut give_up = asked_at + wait + PULL_WITHIN;
        while end.is_none() || !delivering.is_empty() {
            tokio::select! {
                biased;
                answer = answers.next(), if end.is_none() && delivering.len() < AT_ONCE => {
                    if answer.is_some() && ask_again.take().is_some() {
                        line.turns().answered(&wanted.lane);
                        line.woken.notify_one();
                    }
                    match answer {
                        None => end = Some(End::Silent),
                        Some(Message { status: Some(status), description, .. }) => {
                            end = Some(ended(status, description.as_deref()));
                        }
                        Some(message) => {
                            self.lines.recheck_all_if_reconnected(line);
                            let pulled = deliver::read(message, self.api.context().clone());
                            held.came(pulled.as_ref().map_or(0, |pulled| pulled.behind));
                            (over_at, give_up) = (Instant::now() + HELD_LONGER, Instant::now() + PULL_WITHIN);
                            if held.got == wanted.count {
                                end = Some(End::Answered);
                            }
                            let delivery = self.deliveries.deliver(line, policy, pulled, asked_at);
                            delivering.push(timeout(LOOKED_AT_WITHIN, delivery));
                        }
                    }
                }
                Some(first) = delivering.next(), if !delivering.is_empty() => {
                    let mut all = vec![first.unwrap_or_else(|_| left_alone(line))];
                    while let Some(Some(delivery)) = delivering.next().now_or_never() {
                        all.push(delivery.unwrap_or_else(|_| left_alone(line)));
                    }
                    let nothing = all.iter().filter(|delivery| delivery.is_none()).count();
                    if nothing > 0 {
                        // It leaves room for others.
                        self.lines.places().release(&line.queue, u32::try_from(nothing).unwrap_or(u32::MAX));
                        line.more(&wanted.lane);
                    }
                    came.extend(all.into_iter().flatten());
                    offer_at.get_or_insert_with(|| Instant::now() + TOGETHER);
                }
                () = sleep_until(offer_at.unwrap_or(over_at)), if offer_at.is_some() => {
                    self.offer(line, came.drain(..), asked_at);
                    offer_at = None;
                }
                () = sleep_until(over_at), if !held.is_over && end.is_none() => {
                    ask_again = Some(line.turns().silent(&wanted.lane, Instant::now()));
                    held.give_up();
                }
                () = sleep_until(ask_again.unwrap_or(give_up)), if ask_again.is_some() => {
                    ask_again = None;
                    line.more(&wanted.lane);
                    line.woken.notify_one();
                }
                // The server that came back knows nothing of it. Jobs that are under way are taken in all the same.
                Ok(()) = reconnected.changed(), if !held.is_over && end.is_none() => {
                    if self.api.connections() != connections {
                        held.give_up();
                    }
                }
                () = sleep_until(give_up), if end.is_none() => end = Some(End::Silent),
                () = self.closing.cancelled(), if end.is_none() && held.is_over => end = Some(End::Silent),
            }
            if end.is_some() && offer_at.take().is_some() {
                self.offer(line, came.drain(..), asked_at);
            }
            // Jobs that are still looked up hold no places of others.
            if end == Some(End::Answered) && held.got > 0 {
                held.end();
            }
        }
        end.unwrap_or(End::Answered)
    }
}

/// A job that could not be looked at in time is nobody's now.
fn left_alone(line: &QueueState) -> Option<Delivery> {
    tracing::warn!(queue = %line.queue, "a job was taken and not looked at in time: it comes again when its lease ends");
    None
}

fn ended(status: StatusCode, description: Option<&str>) -> End {
    let is_deleted = description.is_some_and(|text| text.contains("Deleted"));
    if status == StatusCode::NO_RESPONDERS || is_deleted { End::Gone } else { End::Answered }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_each_miss_and_takes_a_quarter_of_a_lease_at_most() {
        let millis = |why, misses, lease| {
            let mut wanted = Wanted::of("a".parse().unwrap(), 1);
            (wanted.why, wanted.misses) = (why, misses);
            patience(&wanted, Duration::from_millis(lease)).as_millis()
        };
        assert_eq!([0, 1, 2, 3, 4].map(|misses| millis(Why::Maybe, misses, 30_000)), [5, 20, 80, 320, 1_280]);
        assert_eq!([0, 1, 2, 3, 4].map(|misses| millis(Why::Maybe, misses, 1_000)), [5, 20, 80, 250, 250]);
        assert_eq!([30_000, 1_000, 10].map(|lease| millis(Why::Hinted, 0, lease)), [300, 250, 5]);
    }
}
