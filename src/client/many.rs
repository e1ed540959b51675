//! A stream of jobs in, a stream of answers out, in the order in which they come.

use std::num::NonZeroUsize;

use futures_util::{Stream, StreamExt as _};

use super::calls::Client;
use super::job::{NewJob, Sent};

impl Client {
    /// Submits every job of `jobs`, with at most `in_flight` unanswered at a time; `jobs` is not asked for more than that. Each is
    /// submitted as by [`submit`](Client::submit), and one that fails ends nothing but itself. Answers come in any order, each
    /// with the place of its job. Over TCP those that wait leave together in one write. Dropping the stream gives the unanswered ones up;
    /// they may have taken effect.
    pub fn submit_many<S: Stream<Item = NewJob>>(
        &self,
        jobs: S,
        in_flight: NonZeroUsize,
    ) -> impl Stream<Item = Sent> + use<S> {
        let client = self.clone();
        let submissions = jobs.enumerate().map(move |(index, job)| {
            let client = client.clone();
            async move {
                let job = job.with_key().into_owned();
                Sent { index, answer: client.submit(&job).await, key: job.key }
            }
        });
        submissions.buffer_unordered(in_flight.get())
    }
}
