//! The writer's thread: operations that come together are committed together, with the timed work that is due
//! (`run_due_work`) and the leases that became possible.

use std::time::Duration;

use tokio::sync::mpsc;

use super::writer::{After, BATCH_MAX, Work, Writer};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// Operations that pay for a commit of their own. With fewer, after a commit of [`SHARED_FROM`] or more, the writer waits
/// once for others to join.
const ENOUGH: usize = 16;
const SHARED_FROM: usize = 8;
/// How long it waits for them: the kernel makes some 50 us of even the shortest sleep.
const NAP: Duration = Duration::from_micros(1);
/// How long to wait before trying to open a broken store again.
const REOPEN_AFTER: Duration = Duration::from_millis(500);
/// How long timed work is not tried again after it failed by itself.
const HOLD_OFF: Duration = Duration::from_millis(500);
/// How many operations have a transaction of their own after one that failed.
const APART: usize = 64;

impl Writer {
    /// Runs until every sender is gone, then closes the store.
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Work>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            let wake = self.next_wake();
            let clock = self.clock.clone();
            let most = if self.apart > 0 { 1 } else { BATCH_MAX };
            tokio::select! {
                biased;
                taken = inbox.recv_many(&mut batch, most) => if taken == 0 { break },
                () = async { match wake { Some(at) => clock.sleep_until(at).await, None => std::future::pending().await } } => {}
            }
            self.step(&mut batch, &mut inbox);
        }
        self.numbers.written().await;
        self.empty_log();
    }

    /// Runs the batch, and operations that join it. A commit costs much more than an operation, and a caller that the
    /// last one answered is probably about to come back; but while the writer waits the callers may have nothing to do,
    /// so it waits for a small batch only, and after it ran. A lone caller never waits.
    #[expect(
        clippy::disallowed_methods,
        reason = "this thread runs nothing else, and a timer wheel's tick is too coarse"
    )]
    fn run_batch(&mut self, batch: &mut Vec<Work>, inbox: &mut mpsc::Receiver<Work>, after: &mut Vec<After>) {
        let (mut ran, mut napped) = (0, false);
        loop {
            ran += batch.len();
            after.extend(batch.drain(..).filter_map(|work| work(self)));
            if napped || ran >= ENOUGH || self.last_batch < SHARED_FROM || self.apart > 0 {
                break;
            }
            std::thread::sleep(NAP);
            napped = true;
            while ran + batch.len() < BATCH_MAX
                && let Ok(work) = inbox.try_recv()
            {
                batch.push(work);
            }
        }
        self.last_batch = ran;
    }

    /// One commit: the timed work, the batch, and the leases that became possible; or, after a failure, one for each.
    fn step(&mut self, batch: &mut Vec<Work>, inbox: &mut mpsc::Receiver<Work>) {
        if self.broken && !self.reopen() {
            let away = BrokerError::new(BrokerErrorKind::Unavailable, "store", "the store can't be opened at present");
            let away = away.of_storage();
            batch.drain(..).filter_map(|work| work(self)).for_each(|after| after(Err(&away)));
            self.pending.drain(..).for_each(|pending| pending.refuse(&away));
            self.beats.drain(..).for_each(|beat| beat.refuse(&away));
            self.forget();
            return;
        }
        self.again = false;
        let apart = self.apart > 0 || self.held_off.is_some();
        if apart && self.held_off.is_none_or(|until| until <= self.clock.monotonic()) {
            let did = self.transaction(|writer, _| drop(writer.guarded(Self::run_due_work)));
            self.held_off = (!did).then(|| self.clock.monotonic() + HOLD_OFF);
        }
        let mut answered = 0;
        let did = self.transaction(|writer, after| {
            after.reserve(batch.len());
            if !apart {
                drop(writer.guarded(Self::run_due_work));
            }
            writer.run_batch(batch, inbox, after);
            answered = after.len();
            if !apart {
                writer.grant(after);
            }
        });
        if apart || !did {
            self.transaction(Self::grant);
        }
        self.apart = if did { self.apart.saturating_sub(answered) } else { APART };
        self.answer_beats();
        self.forget();
    }

    /// Runs `run` in a transaction and says what became of it. A failure is noted in `failed`, and every operation that shared
    /// the transaction is then answered with it.
    fn transaction(&mut self, run: impl FnOnce(&mut Self, &mut Vec<After>)) -> bool {
        self.state.begin_step();
        let mut after = Vec::new();
        run(self, &mut after);
        let decided = self.commit(after.len());
        let done = std::mem::take(&mut self.done);
        if decided.is_ok() {
            self.shared.tell(done);
        }
        after.into_iter().for_each(|after| after(decided.as_ref().copied()));
        self.abandoned.clear();
        decided.is_ok()
    }

    fn grant(&mut self, after: &mut Vec<After>) {
        drop(self.guarded(|writer| writer.serve_pending(after)));
    }

    fn answer_beats(&mut self) {
        for beat in std::mem::take(&mut self.beats) {
            if self.broken {
                let why = "whether the lease stands is known when the store is open again";
                beat.refuse(&BrokerError::new(BrokerErrorKind::Unavailable, "extend", why));
            } else {
                let held = self.extend(&beat.receipt);
                drop(beat.reply.send(held));
            }
        }
    }

    fn next_wake(&self) -> Option<Duration> {
        let now = self.clock.monotonic();
        if self.broken {
            return Some(now + REOPEN_AFTER);
        }
        if self.again {
            return Some(now);
        }
        let due = self.state.counters.next_due.map(|due| now + due.since(self.clock.now()));
        let lease = self.state.lease_ends.first().map(|(at, _)| *at);
        let demanded = [due, lease].into_iter().flatten().min();
        let demanded = demanded.map(|at| self.held_off.map_or(at, |until| at.max(until)));
        // Leases that a roll-back left to be handed back again.
        let abandoned = self.shared.has_abandoned().then(|| self.held_off.unwrap_or(now));
        let pending = self.pending.iter().map(|pending| pending.deadline).min();
        [demanded, abandoned, pending].into_iter().flatten().min()
    }
}
