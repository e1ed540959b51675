//! Polling a future that often wakes itself: it is polled again at once, instead of going through the runtime's queue.
//!
//! hyper's connection wakes its own task twice for each request with a body: when the handler asks for the body, and when
//! it gets it. A task that is woken while it runs goes to the end of the queue, and another thread is woken to look for
//! it there, which costs a system call, and the thread's time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// The most polls of one turn of the task: others are to have theirs.
const POLLS_MAX: u32 = 4;

/// Not being polled: a wake is the task's.
const RESTING: u8 = 0;
/// Being polled.
const POLLED: u8 = 1;
/// Woken since it is being polled.
const WOKEN: u8 = 2;

/// See the module. One for one future.
pub(crate) struct Repoll {
    state: Arc<State>,
    waker: Waker,
}

#[derive(Default)]
struct State {
    phase: AtomicU8,
    task: AtomicWaker,
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Woken already, or now, it is polled again without the task's help.
        if self.phase.compare_exchange(POLLED, WOKEN, Ordering::AcqRel, Ordering::Acquire) == Err(RESTING) {
            self.task.wake();
        }
    }
}

impl Repoll {
    pub(crate) fn new() -> Self {
        let state = Arc::new(State::default());
        Self { waker: Waker::from(Arc::clone(&state)), state }
    }

    /// Polls `future`, and again while it was woken meanwhile.
    pub(crate) fn poll<F: Future>(&self, mut future: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
        let State { phase, task } = &*self.state;
        task.register(context.waker());
        for _ in 0..POLLS_MAX {
            phase.store(POLLED, Ordering::Release);
            let polled = future.as_mut().poll(&mut Context::from_waker(&self.waker));
            let rests = phase.compare_exchange(POLLED, RESTING, Ordering::AcqRel, Ordering::Acquire).is_ok();
            if rests || polled.is_ready() {
                return polled;
            }
        }
        phase.store(RESTING, Ordering::Release);
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often a future that wakes itself in its first `wakes` polls is polled in one turn, and its task woken.
    fn turn(wakes: u32) -> (u32, u32) {
        let (counted, mut polls) = (Arc::new(Counted::default()), 0);
        let future = pin!(poll_fn(|context| {
            polls += 1;
            if polls <= wakes {
                context.waker().wake_by_ref();
                context.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        }));
        assert!(Repoll::new().poll(future, &mut Context::from_waker(&Waker::from(Arc::clone(&counted)))).is_pending());
        (polls, counted.0.load(Ordering::Relaxed))
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_again_without_its_task() {
        assert_eq!(turn(0), (1, 0));
        assert_eq!(turn(1), (2, 0));
        assert_eq!(turn(3), (4, 0));
    }

    #[test]
    fn one_that_wakes_itself_for_ever_goes_to_the_end_of_the_queue() {
        assert_eq!(turn(u32::MAX), (4, 1));
    }

    #[test]
    fn a_wake_from_elsewhere_while_it_rests_is_the_tasks() {
        let (counted, again) = (Arc::new(Counted::default()), Repoll::new());
        let mut waker = None;
        let task = Waker::from(Arc::clone(&counted));
        for woken in 1..=2 {
            let future = pin!(poll_fn(|context| {
                waker = Some(context.waker().clone());
                Poll::<()>::Pending
            }));
            assert!(again.poll(future, &mut Context::from_waker(&task)).is_pending());
            waker.take().unwrap().wake();
            assert_eq!(counted.0.load(Ordering::Relaxed), woken);
        }
    }

    #[test]
    fn what_is_ready_is_given_out_at_once() {
        let future = pin!(poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::Ready(7)
        }));
        assert_eq!(Repoll::new().poll(future, &mut Context::from_waker(Waker::noop())), Poll::Ready(7));
    }
}
