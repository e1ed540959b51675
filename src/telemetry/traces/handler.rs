//! A handler with a span around each attempt. It ends with the attempt, whose run may go on for hours.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use relay_bridge::contract::Job;
use relay_workers::{Attempt, Context, Handler};

use super::Traces;
use super::span::Open;

/// The decorator.
pub(super) struct Traced {
    pub(super) inner: Arc<dyn Handler>,
    pub(super) traces: Traces,
}

#[async_trait]
impl Handler for Traced {
    async fn handle(&self, job: &Job, context: &Context) -> Attempt {
        // The handler's calls are part of this attempt, so it is given the attempt's context for the job's.
        let (open, job) = Open::attempt(&self.traces.0.tracer, job, context.attempt);
        let attempt = self.inner.handle(&job, context).await;
        open.attempted(&attempt);
        attempt
    }

    fn grace(&self) -> Duration {
        self.inner.grace()
    }
}
