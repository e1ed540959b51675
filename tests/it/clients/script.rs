//! The state of a scripted server: the step that comes next, and whatever reached it. The protocols share it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Instant;

use bytes::Bytes;
use relay::api::{DurationText, JobView, Links, Problem, Receipt, ResultView, Slug, Whoami};
use relay_bridge::contract::{IdempotencyKey, JobId, JobState, Outcome, QueueName, RunId, Timestamp};
use relay_bridge::support::lock;
use serde_json::json;
use tokio::sync::watch;

use super::scenario::{Cut, Name, Other, Server, Step, Trouble, What};

/// A request, whatever protocol it came over.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) call: Name,
    pub(super) queue: Option<QueueName>,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) job: Option<JobId>,
    pub(super) bytes: usize,
    pub(super) at: Instant,
    /// The number of the server's address.
    pub(super) address: usize,
}

impl Asked {
    pub(super) fn new(call: Name) -> Self {
        Self { call, queue: None, key: None, job: None, bytes: 0, at: Instant::now(), address: 0 }
    }

    pub(super) fn of(call: Name, job: JobId) -> Self {
        Self { job: Some(job), ..Self::new(call) }
    }
}

/// An answer, whatever protocol it goes over.
pub(super) enum Answer {
    Receipt(Box<Receipt>),
    Result { view: Box<ResultView>, payload: Bytes },
    Job(Box<JobView>),
    Open(Box<JobView>),
    Whoami(String),
    Problem(Trouble),
    Raw(String),
    Lost,
    Never,
    Untaken,
}

#[derive(Default)]
pub(super) struct State {
    steps: usize,
    of_step: usize,
    pub(super) asked: Vec<Asked>,
    accepted: BTreeSet<JobId>,
    pub(super) hellos: usize,
    pub(super) connections: usize,
    pub(super) unanswered_most: usize,
    pub(super) tokens: Vec<String>,
    /// The addresses of the server's name.
    pub(super) resolves_to: Vec<usize>,
    /// The addresses that go away.
    leave: BTreeSet<usize>,
    is_cut: bool,
    /// Whether the message ended before the byte at which it was to be cut.
    pub(super) is_whole: bool,
}

/// Numbers that somebody waits for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) unanswered: usize,
    pub(super) answered: usize,
    pub(super) open: usize,
    pub(super) pushed: usize,
    /// The server has no credit for more, or no more.
    pub(super) is_spent: bool,
}

pub(super) struct Script {
    pub(super) server: Server,
    /// The byte at which the message is cut.
    pub(super) cut_at: usize,
    state: Mutex<State>,
    pub(super) seen: watch::Sender<Seen>,
}

impl Script {
    pub(super) fn new(server: Server, cut_at: usize) -> Self {
        let state = State { resolves_to: server.resolves_to.clone(), ..State::default() };
        Self { server, cut_at, state: Mutex::new(state), seen: watch::Sender::default() }
    }

    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn now(&self) -> Timestamp {
        let off = self.server.clock_off_s * 1_000;
        Timestamp::from_millis(relay_bridge::clock::Clock::system().now().as_millis() + off)
    }

    /// Where `message` of `length` bytes is cut, if it is the one; asked once for each.
    pub(super) fn cuts(&self, message: Cut, length: usize) -> Option<usize> {
        if self.server.cut != Some(message) {
            return None;
        }
        let mut state = self.state();
        if std::mem::replace(&mut state.is_cut, true) {
            return None;
        }
        state.is_whole = length <= self.cut_at;
        (!state.is_whole).then_some(self.cut_at)
    }

    /// Whether the next request of the connection may be cut.
    pub(super) fn may_cut_request(&self) -> bool {
        self.server.cut == Some(Cut::Request) && !self.state().is_cut
    }

    /// A request came at the address `at`: the step that answers it.
    pub(super) fn begin(&self, at: usize, asked: Asked) -> (Step, Answer) {
        let asked = Asked { address: at, ..asked };
        let mut state = self.state();
        let mut step = match self.server.steps.get(state.steps) {
            None => Step::default(),
            Some(step) => {
                state.of_step += 1;
                if state.of_step == step.times {
                    (state.steps, state.of_step) = (state.steps + 1, 0);
                }
                step.clone()
            }
        };
        if let Some(addresses) = &step.resolves_to {
            state.resolves_to.clone_from(addresses);
            if step.leaves {
                state.leave = (0..self.server.addresses).filter(|address| !addresses.contains(address)).collect();
            }
        }
        step.leaves |= state.leave.contains(&at);
        let answer = self.answer(&step, &asked, &mut state.accepted);
        state.asked.push(asked);
        // In one step: an answer that was held for this one may leave at once.
        self.seen.send_modify(|seen| {
            seen.unanswered += 1;
            state.unanswered_most = state.unanswered_most.max(seen.unanswered);
        });
        (step, answer)
    }

    pub(super) fn end(&self) {
        self.seen.send_modify(|seen| (seen.unanswered, seen.answered) = (seen.unanswered - 1, seen.answered + 1));
    }

    /// Waits as the step wants before it answers.
    pub(super) async fn hold(&self, step: &Step) {
        tokio::time::sleep(std::time::Duration::from_millis(step.after_ms)).await;
        let so_many = |seen: &Seen| seen.unanswered + seen.answered >= step.held_until;
        self.seen.subscribe().wait_for(so_many).await.unwrap();
    }

    fn answer(&self, step: &Step, asked: &Asked, accepted: &mut BTreeSet<JobId>) -> Answer {
        if let Some(raw) = &step.raw {
            return Answer::Raw(raw.clone());
        }
        if let Some(problem) = &step.problem {
            return Answer::Problem(problem.clone());
        }
        if step.answer == What::Untaken {
            // So that its repetition is the first one.
            return Answer::Untaken;
        }
        let other = |about| step.other == Some(about);
        let queue = asked.queue.clone().unwrap_or_else(|| "mail".parse().unwrap());
        let derived = |key| JobId::derive(&"dev".parse().unwrap(), &queue, key);
        let job = asked.job.or_else(|| asked.key.as_ref().map(derived)).unwrap_or_else(JobId::mint);
        let replayed = asked.call == Name::Submit && !accepted.insert(job);
        let mut receipt = Receipt {
            job_id: if other(Other::Job) { JobId::mint() } else { job },
            run_id: RunId::mint(self.now(), None),
            generation: if asked.call == Name::Rerun { 2 } else { 1 },
            client: "dev".parse().unwrap(),
            queue: if other(Other::Queue) { "other".parse().unwrap() } else { queue },
            key: if other(Other::Key) { Some("other".parse().unwrap()) } else { asked.key.clone() },
            meta: BTreeMap::new(),
            state: JobState::Queued,
            replayed,
            accepted_at: self.now(),
            expires_at: Some(self.now() + std::time::Duration::from_secs(3_600)),
            links: Links::of(job),
        };
        match (step.answer, asked.call) {
            (What::Lost, _) => Answer::Lost,
            (What::Never, _) => Answer::Never,
            (What::Open, _) => Answer::Open(Box::new(self.view(receipt))),
            (What::Result, _) | (_, Name::Wait) => {
                let payload = Bytes::from_static(b"done");
                Answer::Result { view: Box::new(self.result(&receipt, payload.len(), 1)), payload }
            }
            (_, Name::Status) => Answer::Job(Box::new(self.view(receipt))),
            (_, Name::Cancel) => {
                receipt.state = JobState::Finished(Outcome::Cancelled);
                Answer::Job(Box::new(self.view(receipt)))
            }
            (_, Name::Whoami) => Answer::Whoami(self.whoami()),
            _ => Answer::Receipt(Box::new(receipt)),
        }
    }

    fn view(&self, receipt: Receipt) -> JobView {
        let outcome = receipt.state.outcome();
        JobView {
            outcome,
            receipt,
            attempt: 0,
            max_attempts: None,
            started_at: None,
            finished_at: outcome.map(|_| self.now()),
            next_attempt_at: None,
            content_type: None,
            size: None,
        }
    }

    fn result(&self, receipt: &Receipt, size: usize, place: u32) -> ResultView {
        ResultView {
            job_id: receipt.job_id,
            run_id: receipt.run_id,
            generation: receipt.generation,
            queue: receipt.queue.clone(),
            key: receipt.key.clone(),
            meta: BTreeMap::new(),
            outcome: Outcome::Succeeded,
            attempt: 1,
            content_type: "text/plain".to_owned(),
            size: size as u64,
            accepted_at: self.now(),
            started_at: Some(self.now()),
            finished_at: self.now(),
            failure: None,
            payload_base64: None,
            link: None,
            cursor: cursor(place),
        }
    }

    /// The result at `place`, from 1, without its payload.
    pub(super) fn kept(&self, place: u32) -> ResultView {
        let Answer::Receipt(receipt) = self.answer(&Step::default(), &Asked::new(Name::Rerun), &mut BTreeSet::new())
        else {
            unreachable!("a rerun is answered by a receipt")
        };
        self.result(&receipt, self.server.results.bytes, place)
    }

    /// The place behind those that are passed over, if any are from `first` on.
    pub(super) fn passes(&self, first: u32) -> Option<u32> {
        let passed = self.server.results.passed;
        (first <= passed).then_some(passed + 1)
    }

    /// The first place behind `after`, and whether some before it are gone.
    pub(super) fn behind(&self, after: Option<&str>) -> (u32, bool) {
        let oldest = self.server.results.oldest.max(1);
        let wanted = after.map_or(oldest, |after| after.strip_prefix("s.").unwrap().parse::<u32>().unwrap() + 1);
        (wanted.max(oldest), wanted < oldest)
    }

    fn whoami(&self) -> String {
        let share = json!({"requests": 1, "connections": 1, "streams": 1, "body_bytes": 1, "answer_bytes": 1});
        let limits = json!({
            "payload_max": 1_000, "wait_max": "55s", "delay_max": "7d", "key_bytes_max": 255, "batch_entries_max": 1,
            "batch_bytes_max": 1, "headers_max": 1, "header_bytes_max": 1, "meta_bytes_max": 1, "share": share,
        });
        let whoami = json!({
            "client": "dev", "authenticated_by": "none", "rights": [], "durability": "none", "limits": limits,
            "queue_limits": [], "server_time": self.now(), "version": "9.9.9",
        });
        serde_json::from_value::<Whoami>(whoami.clone()).expect("it can be read");
        whoami.to_string()
    }
}

pub(super) fn cursor(place: u32) -> String {
    format!("s.{place}")
}

/// The problem document; a slug that is not known here has the status that the scenario gives it.
pub(super) fn document(trouble: &Trouble) -> serde_json::Value {
    let known: Option<Slug> = trouble.slug.parse().ok();
    let mut problem = Problem::new(known.unwrap_or(Slug::Internal), "as the scenario wants");
    problem.status = trouble.status.unwrap_or(problem.status);
    problem.retry_after = trouble.retry_after_ms.map(std::time::Duration::from_millis).map(DurationText);
    let mut document = serde_json::to_value(problem).unwrap();
    document["slug"] = trouble.slug.clone().into();
    if let Some(retry) = &trouble.retry {
        document["retry"] = retry.clone().into();
    }
    document
}
