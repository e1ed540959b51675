//! A future that waits beside the work of a task: it is polled when it was woken itself, and not at each of the task's
//! turns. A connection has a turn or more for each request, and what it waits for beside them nearly never happens.

use relay_bridge::support::lock;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

/// See the module.
pub(crate) struct SidePoll<F> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
    waker: Waker,
    /// The task as it was at the last turn. A task nearly always has the same waker, and to compare it costs nothing.
    task: Waker,
}

struct Woken {
    flag: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.flag.store(true, Ordering::Release);
        let task = lock(&self.task).clone();
        task.wake();
    }
}

impl<F: Future> SidePoll<F> {
    pub(crate) fn new(future: F) -> Self {
        let task = Waker::noop().clone();
        let woken = Arc::new(Woken { flag: AtomicBool::new(true), task: Mutex::new(task.clone()) });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&woken)), woken, task }
    }
}

impl<F: Future> Future for SidePoll<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Before the flag is read: whoever sets it later finds this waker.
        if !self.task.will_wake(context.waker()) {
            self.task.clone_from(context.waker());
            lock(&self.woken.task).clone_from(context.waker());
        }
        if !self.woken.flag.load(Ordering::Acquire) || !self.woken.flag.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        let waker = self.waker.clone();
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn it_is_polled_at_first_and_when_it_was_woken() {
        let polls = Arc::new(AtomicU32::new(0));
        let (end, mut ended) = oneshot::channel::<()>();
        let counted = Arc::clone(&polls);
        let mut aside = SidePoll::new(std::future::poll_fn(move |context| {
            counted.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut ended).poll(context)
        }));
        let mut poll = || Pin::new(&mut aside).poll(&mut Context::from_waker(Waker::noop()));
        for _ in 0..3 {
            assert!(poll().is_pending());
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        end.send(()).unwrap();
        assert!(poll().is_ready());
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn whoever_polls_it_last_is_woken_and_as_often_as_it_has_something_new() {
        let (tell, mut told) = tokio::sync::mpsc::channel::<u32>(1);
        let mut heard = Vec::new();
        let mut aside = SidePoll::new(std::future::poll_fn(|context| {
            loop {
                match std::task::ready!(told.poll_recv(context)) {
                    Some(word) => heard.push(word),
                    None => return Poll::Ready(()),
                }
            }
        }));
        // Another task's waker first, which is then forgotten.
        assert!(Pin::new(&mut aside).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let talk = async move {
            for word in 0..100 {
                tell.send(word).await.unwrap();
            }
        };
        tokio::join!(aside, talk);
        assert_eq!(heard, Vec::from_iter(0..100));
    }
}
