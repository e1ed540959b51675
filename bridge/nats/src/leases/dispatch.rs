//! Decides which lanes are pulled, and how many jobs of each: the lanes in turns, as far as there are places.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::pulling::Pulls;
use crate::line::queue_state::QueueState;

impl Pulls {
    /// Pulls from the lanes in turns, as far as there are places. `true` if there is anything to pull.
    pub(crate) fn dispatch(self: &Arc<Self>, line: &Arc<QueueState>) -> bool {
        let policy = line.policy();
        if policy.paused {
            return false;
        }
        let pulls = {
            // Both together: two calls that look at the same time would each take the places that are left.
            let mut places = self.lines.places();
            let (now, mut turns) = (Instant::now(), line.turns());
            let (free, waiting) = places.room(&line.queue, now);
            let mut pulls = turns.plan(waiting, false, now, |lane| lane.policy(&policy).weight);
            // A worker that asks again at once may ask for less: of a backlog nothing is taken for it ahead, nor of a hint that another
            // process would have heard.
            if !line.rounds.is_alone() {
                let taken = pulls.iter().map(|wanted| wanted.count).sum();
                pulls.extend(turns.plan(free.saturating_sub(taken), true, now, |lane| lane.policy(&policy).weight));
            }
            drop(turns);
            pulls.iter().for_each(|wanted| places.hold(&line.queue, wanted.count));
            pulls
        };
        if pulls.is_empty() {
            return false;
        }
        line.pulls.send_modify(|out| *out += pulls.len());
        for wanted in pulls {
            self.tasks.spawn(Arc::clone(self).pull(Arc::clone(line), Arc::clone(&policy), wanted));
        }
        true
    }

    /// Makes a standing pull for the next job of the lane whose job came last, while somebody waits, nothing else is
    /// asked for, and this process is the only one that takes jobs. That job then needs neither a hint nor a request to
    /// get here. Of several processes, one would take a job that another one was told of.
    pub(crate) fn request_standing_pull(self: &Arc<Self>, line: &Arc<QueueState>) {
        let policy = line.policy();
        let is_of_use =
            !policy.paused && *line.pulls.borrow() == 0 && line.rounds.is_alone() && self.lines.free(line) > 0;
        if !is_of_use || line.has_standing_pull.load(Ordering::Acquire) {
            return;
        }
        let Some(lane) = line.expected() else { return };
        if line.has_standing_pull.swap(true, Ordering::AcqRel) {
            return;
        }
        let wanted = line.turns().standing_pull(&lane, Instant::now());
        match wanted {
            Some(wanted) => drop(self.tasks.spawn(Arc::clone(self).pull(Arc::clone(line), policy, wanted))),
            None => line.has_standing_pull.store(false, Ordering::Release),
        }
    }
}
