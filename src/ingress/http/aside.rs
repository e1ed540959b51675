//! A future that waits beside the work of a task: it is polled when it was woken itself, and not at each of the task's
//! turns. A connection has a turn or more for each request, and what it waits for beside them nearly never happens.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// See the module.
pub(super) struct Aside<F> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
    waker: Waker,
}

struct Woken {
    flag: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.flag.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F: Future> Aside<F> {
    pub(super) fn new(future: F) -> Self {
        let woken = Arc::new(Woken { flag: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&woken)), woken }
    }
}

impl<F: Future> Future for Aside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Before the flag is read: whoever sets it later finds this waker.
        self.woken.task.register(context.waker());
        if !self.woken.flag.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        let waker = self.waker.clone();
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use futures_util::task::noop_waker;
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn it_is_polled_at_first_and_when_it_was_woken() {
        let polls = Arc::new(AtomicU32::new(0));
        let (end, mut ended) = oneshot::channel::<()>();
        let counted = Arc::clone(&polls);
        let mut aside = Aside::new(std::future::poll_fn(move |context| {
            counted.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut ended).poll(context)
        }));
        let waker = noop_waker();
        let mut poll = || Pin::new(&mut aside).poll(&mut Context::from_waker(&waker));
        for _ in 0..3 {
            assert!(poll().is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        end.send(()).unwrap();
        assert!(poll().is_ready());
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }
}
