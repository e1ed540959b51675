//! The Rust library as a scenario sees it: what it is asked for, and what it reports.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use relay::client::{
    Client, ClientError, ClientTls, Connecting, NewJob, Patience, Resolver, Results, ResultsFilter, Submitted,
};
use relay_bridge::contract::JobId;

use super::scenario::{Call, Expect, Name, Settings};
use super::script::{Script, cursor};

/// The library, set as the scenario wants.
pub(super) struct Library {
    client: Client,
    place: Place,
    settings: Settings,
    script: Arc<Script>,
    /// The job of the call before.
    job: JobId,
    /// Results that were taken.
    pub(super) taken: usize,
}

impl Library {
    pub(super) fn new(place: Place, settings: &Settings, script: &Arc<Script>) -> Self {
        let (settings, script) = (settings.clone(), Arc::clone(script));
        Self { client: client(&place, &settings, &script), place, settings, script, job: JobId::mint(), taken: 0 }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// The report where it is another one than was expected.
    pub(super) async fn call(&mut self, call: &Call) -> Result<(), String> {
        if let Some(token) = &call.token {
            self.settings.token = Some(token.clone());
            self.client = client(&self.place, &self.settings, &self.script);
        }
        tokio::time::sleep(Duration::from_millis(call.pause_ms)).await;
        if let Some(addresses) = &call.resolves_to {
            self.script.state().resolves_to.clone_from(addresses);
        }
        let answered = self.script.seen.subscribe();
        let mut answered = answered;
        let given_up = async {
            match (call.given_up_after, call.given_up_after_ms) {
                (Some(count), _) => drop(answered.wait_for(|seen| seen.answered >= count).await.unwrap()),
                (_, Some(millis)) => tokio::time::sleep(Duration::from_millis(millis)).await,
                _ => std::future::pending().await,
            }
        };
        let report = tokio::select! {
            report = self.report(call) => report,
            () = given_up => Ok(Expect::Nothing {}),
        };
        match report {
            Ok(report) if report == call.expect => Ok(()),
            Ok(report) => Err(format!("{report:?} instead of {:?}", call.expect)),
            Err(error) => match (&call.expect, is(&error)) {
                (Expect::Error { kind, slug }, (found, told)) if kind == found && *slug == told => Ok(()),
                _ => Err(format!("{error:?} instead of {:?}", call.expect)),
            },
        }
    }

    async fn report(&mut self, call: &Call) -> Result<Expect, ClientError> {
        let (client, within) = (self.client.clone(), Duration::from_millis(call.within_ms));
        let job = NewJob { key: call.key.as_ref().map(|key| key.parse().unwrap()), ..mail(call.bytes) };
        match call.call {
            Name::Submit => self.submitted(client.submit(&job).await?),
            Name::Run => self.submitted(client.run(&job, within).await?),
            Name::SubmitMany => {
                let jobs = stream::iter(0..call.count).map(|_| mail(call.bytes));
                let in_flight = NonZeroUsize::new(call.in_flight).unwrap();
                let mut sent = std::pin::pin!(client.submit_many(jobs, in_flight));
                let mut seen = std::collections::BTreeSet::new();
                while let Some(one) = sent.next().await {
                    seen.insert(one.answer?.job_id());
                }
                Ok(Expect::Done { count: seen.len() })
            }
            Name::Wait => Ok(match client.wait(self.job, within).await? {
                Some(result) => Expect::Result { outcome: result.outcome.to_string() },
                None => Expect::Open {},
            }),
            Name::Status => state(client.status(self.job).await?),
            Name::Cancel => state(client.cancel(self.job).await?),
            Name::Rerun => self.submitted(Submitted::Accepted(Box::new(client.rerun(self.job, 1).await?))),
            Name::Whoami => client.whoami().await.map(|_| Expect::Whoami {}),
            Name::Page => {
                let page = client.page(&ResultsFilter::after(call.after.clone())).await?;
                self.taken += page.entries.len();
                Ok(Expect::Results { count: page.entries.len(), reset: page.reset.is_some() })
            }
            Name::Results => self.results(call, client.results(ResultsFilter::after(call.after.clone()))).await,
        }
    }

    fn submitted(&mut self, submitted: Submitted) -> Result<Expect, ClientError> {
        self.job = submitted.job_id();
        Ok(match submitted {
            Submitted::Accepted(receipt) => Expect::Receipt { replayed: receipt.replayed },
            Submitted::Finished(result) => Expect::Result { outcome: result.outcome.to_string() },
        })
    }

    async fn results(&mut self, call: &Call, mut results: Results) -> Result<Expect, ClientError> {
        let (mut count, mut reset) = (0, false);
        let mut place = None;
        for taken in 0..call.take + call.then_take {
            if taken == call.take {
                // The server can push no more, or has given the connection up.
                let stalled = |seen: &super::script::Seen| seen.is_spent || seen.open == 0;
                self.script.seen.subscribe().wait_for(stalled).await.unwrap();
            }
            let entry = results.next().await.expect("the stream has no end")?;
            reset |= entry.reset.is_some();
            let next = place.map_or_else(|| entry.view.cursor.clone(), cursor);
            assert_eq!(entry.view.cursor, next, "each comes once, in order");
            place = Some(next.strip_prefix("s.").unwrap().parse::<u32>().unwrap() + 1);
            count += 1;
            self.taken += 1;
        }
        if call.then_take == 0 {
            let stalled = |seen: &super::script::Seen| seen.is_spent || seen.open == 0;
            self.script.seen.subscribe().wait_for(stalled).await.unwrap();
        }
        Ok(Expect::Results { count, reset })
    }
}

/// The server's address, and whom to trust there.
pub(super) struct Place {
    pub(super) server: String,
    pub(super) tls: ClientTls,
}

/// The addresses that the script gives the server's name: 127.0.0.1 is number 0.
struct Scripted(Arc<Script>);

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scripted").finish_non_exhaustive()
    }
}

impl Resolver for Scripted {
    fn addresses<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        assert_eq!(host, "localhost");
        let numbers = self.0.state().resolves_to.clone();
        let addresses = numbers.into_iter().map(|number| SocketAddr::from((address(number), port))).collect();
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

/// The address with that number.
pub(super) fn address(number: usize) -> [u8; 4] {
    [127, 0, 0, u8::try_from(number + 1).unwrap()]
}

fn client(place: &Place, settings: &Settings, script: &Arc<Script>) -> Client {
    let [base, cap, give_up_after] =
        [settings.backoff_ms, settings.backoff_ms.saturating_mul(20), settings.patience_ms].map(Duration::from_millis);
    let patience = Patience { base, cap, give_up_after, waits_for_connection: true };
    let mut connecting = Connecting { resolver: Arc::new(Scripted(Arc::clone(script))), ..Connecting::default() };
    if let Some(millis) = settings.renewed_after_ms {
        connecting.renewed_after = Duration::from_millis(millis);
    }
    let client = Client::with_tls(&place.server, settings.token.clone(), &place.tls).unwrap();
    client.connecting(connecting).unwrap().patient(patience)
}

fn mail(bytes: usize) -> NewJob {
    NewJob::new("mail".parse().unwrap(), vec![b'x'; bytes])
}

fn state(view: relay::api::JobView) -> Result<Expect, ClientError> {
    Ok(Expect::Job { state: view.receipt.state.as_str().to_owned() })
}

/// The word for an error in the scenarios, and its slug.
fn is(error: &ClientError) -> (&'static str, Option<String>) {
    let kind = match error {
        ClientError::Invalid(_) => "invalid",
        ClientError::Unreachable { .. } => "unreachable",
        ClientError::Interrupted(_) => "interrupted",
        ClientError::TimedOut { .. } => "timed-out",
        ClientError::Garbled(_) => "garbled",
        ClientError::Unsupported { .. } => "unsupported",
        ClientError::NotRelay { .. } => "not-relay",
        ClientError::Refused { problem, .. } => return ("refused", Some(problem.slug.to_string())),
        _ => "another",
    };
    (kind, None)
}
