//! Requests: messages that await one answer each. The requests of many callers are sent together, so that they cost
//! this process and the server few system calls.
//!
//! A message that its own task sends goes out alone, in a system call of its own, because the runtime next runs the
//! task that was woken last: the connection's. So while other requests are in flight, callers hand their messages to
//! one task. It first lets every task run that is ready to, and then sends the messages that came together. It has no
//! timer, and a message with no others to go with is sent at once. Answers come to one subscription, told apart by the
//! last token of their subject.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::wire::connection::Connection;
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::support::lock;

/// How long the server may take to answer.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often the requests are checked for one that took longer.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Messages that wait to be sent together; more wait with their callers.
const GATHERED_MAX: usize = 8_192;
/// The most that are sent together.
const SENT_TOGETHER: usize = 256;

/// A message that awaits one answer.
pub(crate) struct Question {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    /// For errors.
    pub(crate) operation: &'static str,
    /// Given back with the answer, or when none came in time.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

type Answer = Result<Message, BrokerError>;
type Asked = (Question, oneshot::Sender<Answer>);

/// Sends questions and gives out their answers. Clones share one task, which ends with the last of them or with the
/// connection.
#[derive(Clone)]
pub(crate) struct Requests {
    asking: Arc<Asking>,
    gathered: mpsc::Sender<Asked>,
}

impl Requests {
    /// # Errors
    /// `Unavailable` if the connection is closed.
    pub(crate) async fn start(connection: &Connection) -> Result<Self, BrokerError> {
        let client = connection.client().clone();
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await.map_err(|error| {
            let why = "the connection to NATS is closed";
            BrokerError::new(BrokerErrorKind::Unavailable, "open", why).with_source(error)
        })?;
        let asking = Arc::new(Asking { client, inbox, open: Mutex::default() });
        let (gathered, questions) = mpsc::channel(GATHERED_MAX);
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let task = Task { asking: Arc::clone(&asking), connection: connection.clone(), questions, answers, look };
        connection.spawn(task.run(connection.closing().clone()));
        Ok(Self { asking, gathered })
    }

    /// Sends a message and waits for its answer. The caller has seen that the connection is up.
    ///
    /// # Errors
    /// `Unavailable` if it was not sent within 5 s, or nothing listens to its subject; `TooLarge`; `Ambiguous` if there was no
    /// answer within 5 s, or the connection was closed meanwhile.
    pub(crate) async fn ask(&self, question: Question) -> Answer {
        let operation = question.operation;
        let closed = || BrokerError::new(BrokerErrorKind::Unavailable, operation, "the adapter is closed");
        let (sender, mut answer) = oneshot::channel();
        if self.asking.is_idle() {
            // Boxed, as below: the future of everybody who asks would be the larger by it.
            let sending = Box::pin(self.asking.send(question, sender, Instant::now()));
            tokio::select! {
                biased;
                () = sending => {}
                // It is given up also while it can't be sent.
                given_up = &mut answer => return given_up.unwrap_or_else(|_| Err(closed())),
            }
        } else if let Err(TrySendError::Full(asked)) = self.gathered.try_send((question, sender)) {
            Box::pin(self.gathered.send(asked)).await.map_err(|_| closed())?;
        }
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

/// The state that the task and its callers share.
struct Asking {
    client: Client,
    inbox: String,
    open: Mutex<Open>,
}

/// Questions that were sent and are not answered yet, by the last tokens of their answers' subjects.
#[derive(Default)]
struct Open {
    questions: HashMap<u64, Sent>,
    next: u64,
    /// Whether the task is over, so that nobody gives out answers any more.
    is_over: bool,
}

struct Sent {
    answer: oneshot::Sender<Answer>,
    operation: &'static str,
    since: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Asking {
    fn open(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }

    fn is_idle(&self) -> bool {
        self.open().questions.is_empty()
    }

    async fn send(&self, question: Question, answer: oneshot::Sender<Answer>, since: Instant) {
        let Question { subject, headers, payload, operation, permit } = question;
        let token = {
            let mut open = self.open();
            if open.is_over {
                // The caller hears of it by the loss of `answer`.
                return;
            }
            let token = open.next;
            open.next += 1;
            open.questions.insert(token, Sent { answer, operation, since, _permit: permit });
            token
        };
        let reply = format!("{}.{token}", self.inbox);
        if let Err(unsent) = self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await {
            self.end(token, Err(not_sent(unsent, operation)));
        }
    }

    fn end(&self, token: u64, answer: Answer) {
        let sent = self.open().questions.remove(&token);
        if let Some(sent) = sent {
            sent.answer.send(answer).ok();
        }
    }

    /// Gives an answer to its caller, and likewise the answers that came with it.
    fn take(&self, first: Message, more: &mut Subscriber) {
        let mut open = self.open();
        let mut next = Some(first);
        while let Some(message) = next {
            let token = message.subject.get(self.inbox.len() + 1..).and_then(|token| token.parse::<u64>().ok());
            // One that came too late has nobody left to take it.
            if let Some(sent) = token.and_then(|token| open.questions.remove(&token)) {
                let nobody = message.status == Some(StatusCode::NO_RESPONDERS);
                sent.answer.send(if nobody { Err(unheard(sent.operation)) } else { Ok(message) }).ok();
            }
            next = more.next().now_or_never().flatten();
        }
    }

    /// Ends those that have waited for too long.
    fn give_up(&self, connection: &Connection) {
        for (_, sent) in self.open().questions.extract_if(|_, sent| sent.since.elapsed() >= ANSWER_WITHIN) {
            sent.answer.send(Err(connection.unanswered(sent.operation))).ok();
        }
    }

    /// Ends all, and takes no more.
    fn close(&self) {
        let mut open = self.open();
        open.is_over = true;
        for (_, sent) in open.questions.drain() {
            let why = "the connection to NATS was closed before the answer came";
            sent.answer.send(Err(BrokerError::new(BrokerErrorKind::Ambiguous, sent.operation, why))).ok();
        }
    }
}

/// Sends what was gathered, and gives out the answers.
struct Task {
    asking: Arc<Asking>,
    connection: Connection,
    questions: mpsc::Receiver<Asked>,
    answers: Subscriber,
    look: Interval,
}

impl Task {
    async fn run(mut self, closing: CancellationToken) {
        let mut together = Vec::with_capacity(SENT_TOGETHER);
        // At the end, all callers that wait for an answer, or for their message to be sent, are told.
        closing.run_until_cancelled(async { while self.turn(&mut together).await.is_some() {} }).await;
        self.asking.close();
    }

    /// Until something was sent, answered or given up; `None` when there is nobody left to ask, or to answer.
    async fn turn(&mut self, together: &mut Vec<Asked>) -> Option<()> {
        tokio::select! {
            answer = self.answers.next() => self.asking.take(answer?, &mut self.answers),
            received = self.questions.recv_many(together, SENT_TOGETHER) => match received {
                0 => return None,
                _ => self.send(together).await?,
            },
            _ = self.look.tick() => self.asking.give_up(&self.connection),
        }
        Some(())
    }

    async fn send(&mut self, together: &mut Vec<Asked>) -> Option<()> {
        yield_now().await;
        while together.len() < SENT_TOGETHER
            && let Ok(asked) = self.questions.try_recv()
        {
            together.push(asked);
        }
        let since = Instant::now();
        let mut together = together.drain(..);
        while let Some((question, answer)) = together.next() {
            // Looked at last: a message that the client queues while NATS is away would be sent when it is back.
            if let Err(away) = self.connection.up(question.operation) {
                answer.send(Err(away)).ok();
                continue;
            }
            // Its caller went away.
            if answer.is_closed() {
                continue;
            }
            let asking = Arc::clone(&self.asking);
            let mut sending = pin!(asking.send(question, answer, since));
            loop {
                tokio::select! {
                    biased;
                    () = &mut sending => break,
                    answer = self.answers.next() => self.asking.take(answer?, &mut self.answers),
                    // A server that hangs takes nothing more: the messages behind this one must not wait for it.
                    _ = self.look.tick() => {
                        self.asking.give_up(&self.connection);
                        if since.elapsed() >= ANSWER_WITHIN {
                            let waiting = std::iter::from_fn(|| self.questions.try_recv().ok());
                            together.by_ref().chain(waiting).for_each(refuse);
                        }
                    }
                }
            }
        }
        Some(())
    }
}

/// Tells a caller that its message was not sent.
fn refuse((question, answer): Asked) {
    let why = "NATS takes no more messages at present; nothing was done: try again";
    answer.send(Err(BrokerError::new(BrokerErrorKind::Unavailable, question.operation, why))).ok();
}

fn unheard(operation: &'static str) -> BrokerError {
    let why = "nothing in NATS serves this subject: is JetStream up and provisioned?";
    BrokerError::new(BrokerErrorKind::Unavailable, operation, why)
}

fn not_sent(error: PublishError, operation: &'static str) -> BrokerError {
    let (kind, what) = match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            (BrokerErrorKind::TooLarge { actual: 0, limit: 0 }, "it is larger than the server's `max_payload`")
        }
        _ => (BrokerErrorKind::Unavailable, "the connection to NATS is closed"),
    };
    BrokerError::new(kind, operation, what).with_source(error)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::config::NatsConfig;
    use crate::wire::connection::Wait;
    use relay_conformance::testing::NatsServer;

    const SUBJECT: &str = "tests.questions";

    struct Stage {
        server: NatsServer,
        connection: Connection,
        requests: Requests,
        /// The messages that are sent. Nobody answers them unless the test does.
        heard: Subscriber,
    }

    impl Stage {
        async fn new() -> Self {
            let server = NatsServer::start().await;
            let config = NatsConfig::new([server.url()]);
            let connection = Connection::open(config, Wait::AtMost(Duration::from_secs(30))).await.unwrap();
            let requests = Requests::start(&connection).await.unwrap();
            let heard = connection.client().subscribe(SUBJECT).await.unwrap();
            Self { server, connection, requests, heard }
        }
    }

    fn question(subject: &str, payload: String, permit: Option<OwnedSemaphorePermit>) -> Question {
        let (subject, headers, operation) = (subject.to_owned(), HeaderMap::new(), "test");
        Question { subject, headers, payload: payload.into(), operation, permit }
    }

    #[tokio::test]
    async fn each_of_many_questions_at_once_gets_its_own_answer() {
        let Stage { server: _server, connection, requests, mut heard } = Stage::new().await;
        const MANY: usize = 2_000;
        let answering = async {
            // In another order than they came.
            let mut asked = Vec::new();
            while asked.len() < MANY {
                asked.push(heard.next().await.unwrap());
                if asked.len() % 100 == 0 {
                    for message in asked.iter().rev().take(100) {
                        let reply = message.reply.clone().unwrap();
                        connection.client().publish(reply, message.payload.clone()).await.unwrap();
                    }
                }
            }
        };
        let asking = join_all((0..MANY).map(|number| requests.ask(question(SUBJECT, number.to_string(), None))));
        let (answers, ()) = tokio::join!(asking, answering);
        for (number, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.unwrap().payload, number.to_string());
        }
        assert!(requests.asking.is_idle());
    }

    #[tokio::test]
    async fn a_question_that_nobody_hears_had_no_effect() {
        let Stage { server: _server, connection: _connection, requests, heard: _heard } = Stage::new().await;
        let error = requests.ask(question("tests.nobody", String::new(), None)).await.unwrap_err();
        assert_eq!(error.kind(), BrokerErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_question_without_an_answer_is_in_doubt_and_leaves_its_place() {
        let Stage { server: _server, connection: _connection, requests, heard: _heard } = Stage::new().await;
        let places = Arc::new(Semaphore::new(2));
        let asking = async |number: u32| {
            let permit = Arc::clone(&places).acquire_owned().await.unwrap();
            requests.ask(question(SUBJECT, number.to_string(), Some(permit))).await.unwrap_err().kind()
        };
        // One is sent at once, the other by the task.
        let (first, second) = tokio::join!(asking(1), asking(2));
        assert_eq!((first, second), (BrokerErrorKind::Ambiguous, BrokerErrorKind::Ambiguous));
        assert_eq!(places.available_permits(), 2);
    }

    #[tokio::test]
    async fn a_server_that_hangs_holds_up_no_caller_for_good() {
        let Stage { server, connection: _connection, requests, heard: _heard } = Stage::new().await;
        server.pause();
        // More than what the client and the sockets between hold.
        let large = "x".repeat(64 * 1024);
        let answers = join_all((0..4_000).map(|_| requests.ask(question(SUBJECT, large.clone(), None)))).await;
        let kinds: Vec<_> = answers.into_iter().map(|answer| answer.unwrap_err().kind()).collect();
        let of = |kind| kinds.iter().filter(|one| **one == kind).count();
        let (sent, not_sent) = (of(BrokerErrorKind::Ambiguous), of(BrokerErrorKind::Unavailable));
        assert!(sent > 0 && not_sent > 0 && sent + not_sent == kinds.len(), "{sent} {not_sent}");
        server.resume();
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_keeps_its_place_until_the_answer_comes() {
        let Stage { server: _server, connection, requests, mut heard } = Stage::new().await;
        let places = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&places).acquire_owned().await.unwrap();
        let message = tokio::select! {
            answer = requests.ask(question(SUBJECT, String::new(), Some(permit))) => panic!("{answer:?}"),
            message = heard.next() => message.unwrap(),
        };
        assert_eq!(places.available_permits(), 0);
        connection.client().publish(message.reply.unwrap(), Bytes::new()).await.unwrap();
        drop(places.acquire().await.unwrap());
    }

    #[tokio::test]
    async fn what_is_open_when_the_connection_is_closed_is_in_doubt_and_what_comes_later_is_refused() {
        let Stage { server: _server, connection, requests, mut heard } = Stage::new().await;
        let asking = requests.ask(question(SUBJECT, String::new(), None));
        let closing = async {
            heard.next().await.unwrap();
            connection.close().await;
        };
        let (answer, ()) = tokio::join!(asking, closing);
        assert_eq!(answer.unwrap_err().kind(), BrokerErrorKind::Ambiguous);
        let later = requests.ask(question(SUBJECT, String::new(), None)).await;
        assert_eq!(later.unwrap_err().kind(), BrokerErrorKind::Unavailable);
    }
}
