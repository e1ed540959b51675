//! The way to a server over its API: the caller as relay sees it, bodies of one and of many packets, and a job.

use std::fmt::Display;
use std::time::{Duration, Instant};

use bytes::Bytes;
use relay_bridge::clock::Clock;
use relay_bridge::contract::{Outcome, QueueName};

use super::step::Failure;
use crate::api::{ECHO_BYTES_MAX, Slug, Whoami};
use crate::cli::remote::of_tls;
use crate::cli::values::show_size;
use crate::client::{Client, ClientError, NewJob, Submitted};

/// Round trips that are measured.
const TRIPS: usize = 20;
/// How far clocks may be apart: stored times of two hosts meet with an allowance of 5 s, tokens with one of 60 s.
const SKEW_MAX: Duration = Duration::from_secs(2);
/// How long a job may take.
const JOB_MAX: Duration = Duration::from_secs(30);

/// Asks who the caller is.
///
/// # Errors
/// The server is no relay, lets the caller not in, or has another time.
pub(super) async fn caller(client: &Client) -> Result<(Whoami, String), Failure> {
    let clock = Clock::system();
    let (before, begun) = (clock.now(), Instant::now());
    let who = client.whoami().await.map_err(|error| failed(&error))?;
    let half = i128::try_from(begun.elapsed().as_millis() / 2).unwrap_or(0);
    let ahead = i128::from(who.server_time.as_millis()) - i128::from(before.as_millis()) - half;
    let queues =
        who.queues.as_ref().map_or_else(|| "all queues".to_owned(), |queues| format!("{} queues", queues.len()));
    let endpoint = match &who.vpc_endpoint_id {
        Some(id) => format!("through {id}"),
        None => "through no VPC endpoint that relay sees".to_owned(),
    };
    let (version, by) = (&who.version, &who.authenticated_by);
    let detail = format!("relay {version} takes this caller for `{}` ({by}), {endpoint}, {queues}", who.client);
    // The answer may have taken all of the time one way.
    if ahead.unsigned_abs() > SKEW_MAX.as_millis() + half.unsigned_abs() {
        let way = if ahead > 0 { "behind" } else { "ahead of" };
        return Err(Failure::new(
            format!("{detail}; this machine's clock is {:.1} s {way} relay's", ahead.unsigned_abs() as f64 / 1_000.0),
            "set this machine's clock (NTP): tokens and deadlines are judged by relay's",
        ));
    }
    Ok((who, format!("{detail}, clocks {} ms apart", ahead.unsigned_abs())))
}

/// Sends a body that takes several packets there and back.
///
/// # Errors
/// It does not come back.
pub(super) async fn packets(client: &Client) -> Result<((), String), Failure> {
    let body = Bytes::from((0..ECHO_BYTES_MAX).map(|at| at.to_le_bytes()[0]).collect::<Vec<_>>());
    match client.echo(body.clone()).await {
        Ok(back) if back == body => Ok(((), format!("a body of {} came back", show_size(ECHO_BYTES_MAX)))),
        Ok(back) => Err(Failure::new(
            format!("of {} bytes others came back: {}", body.len(), back.len()),
            "something between here and relay changes bodies: let the connection pass through unchanged",
        )),
        Err(ClientError::Unsupported { .. }) => {
            let detail =
                "this is a step of addresses for HTTP: relay's TCP protocol has no call that sends a body back";
            Ok(((), detail.to_owned()))
        }
        Err(ClientError::Interrupted(detail)) => Err(Failure::new(
            format!("a body of {} does not come back, and small ones do: {detail}", show_size(ECHO_BYTES_MAX)),
            "large packets are lost on the way: let ICMP type 3 code 4 through (security groups, firewalls), or lower the \
             interface's MTU",
        )),
        Err(error) => Err(failed(&error)),
    }
}

/// Measures round trips.
///
/// # Errors
/// One of them fails.
pub(super) async fn round_trip(client: &Client) -> Result<((), String), Failure> {
    let mut took = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let begun = Instant::now();
        match client.echo(Bytes::from_static(b"relay doctor")).await {
            // A question that costs about as little.
            Err(ClientError::Unsupported { .. }) => client.whoami().await.map(drop),
            echoed => echoed.map(drop),
        }
        .map_err(|error| failed(&error))?;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let ms = |at: usize| took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1_000.0);
    Ok(((), format!("{TRIPS} times there and back: p50 {:.1} ms, longest {:.1} ms", ms(TRIPS / 2), ms(TRIPS - 1))))
}

/// Says how large payloads may be.
///
/// # Errors
/// There is no queue that the caller may use.
pub(super) fn payload(who: &Whoami, queue: Option<&QueueName>) -> Result<((), String), Failure> {
    let mut limits =
        who.queue_limits.iter().filter(|limits| queue.is_none_or(|queue| limits.queue == *queue)).peekable();
    if limits.peek().is_none() {
        let what = queue.map_or_else(|| "no queue".to_owned(), |queue| format!("no queue `{queue}`"));
        let known = who.queue_limits.iter().map(|limits| limits.queue.to_string()).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_owned() } else { known };
        return Err(Failure::new(
            format!("there is {what} that this caller may use; it may use: {known}"),
            "ask the operator of relay for the queue, or for the right to use it",
        ));
    }
    let told = limits.map(|limits| format!("{} {}", limits.queue, show_size(limits.payload_max)));
    Ok(((), format!("largest payloads: {}", told.collect::<Vec<_>>().join(", "))))
}

/// Has a job done in `queue`.
///
/// # Errors
/// It is refused, does not end in time, or fails.
pub(super) async fn job(client: &Client, queue: &QueueName) -> Result<((), String), Failure> {
    let job = NewJob {
        expires_in: Some(JOB_MAX),
        meta: std::iter::once(("doctor".to_owned(), "1".to_owned())).collect(),
        ..NewJob::new(queue.clone(), Bytes::from_static(b"relay doctor"))
    };
    let begun = Instant::now();
    match client.run(&job, JOB_MAX).await.map_err(|error| failed(&error))? {
        Submitted::Finished(result) if result.outcome == Outcome::Succeeded => {
            let ms = begun.elapsed().as_secs_f64() * 1_000.0;
            Ok((
                (),
                format!(
                    "a job in `{queue}` was done after {ms:.1} ms, {} came back",
                    show_size(result.payload.len() as u64)
                ),
            ))
        }
        Submitted::Finished(result) => Err(Failure::new(
            format!("job {} in `{queue}` ended as {}: {}", result.job_id, result.outcome, short(&result.payload)),
            "the way is fine, and the handler of that queue does not take this payload (12 bytes of text): try a queue whose \
             handler takes anything",
        )),
        Submitted::Accepted(receipt) => Err(Failure::new(
            format!("job {} in `{queue}` is accepted and not done after {} s", receipt.job_id, JOB_MAX.as_secs()),
            "no worker takes jobs of that queue, or all of them are busy; it expires by itself",
        )),
    }
}

fn short(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).chars().take(200).collect()
}

/// A call's error, with the way out.
fn failed(error: &ClientError) -> Failure {
    let hint = match error {
        ClientError::Refused { problem, .. } => match problem.slug {
            Slug::Unauthenticated => "give a key that stands: --api-key, RELAY_API_KEY or a context",
            Slug::Forbidden => "relay knows this caller and does not let it do this: ask the operator",
            Slug::Draining => "this relay is about to stop: run it again",
            _ => "do what the refusal says",
        },
        ClientError::NotRelay { .. } | ClientError::Garbled(_) => {
            "another server answers at this address: look at the name, the port, and proxies between"
        }
        ClientError::Unsupported { .. } => "name the server by its address for HTTP: https://HOST:PORT",
        ClientError::Interrupted(_) | ClientError::TimedOut { .. } => {
            "the connection was made and broke: a balancer without healthy targets does that, and so does a listener with \
             `proxy = \"required\"` that is reached past its balancer, or one with TLS that is spoken to without"
        }
        ClientError::Unreachable { detail, .. } => handshake_hint(detail),
        ClientError::Invalid(_) => "correct the address or the key",
    };
    Failure::new(message(error), hint)
}

/// The way out where an address takes connections, and TLS does not come about on them.
fn handshake_hint(detail: &str) -> &'static str {
    if let Some(hint) = of_tls(detail) {
        hint
    } else if detail.to_ascii_lowercase().contains("timed out") {
        "the first packets of TLS are large, and are lost on the way: let ICMP type 3 code 4 through (security groups, firewalls), \
         or lower the interface's MTU"
    } else {
        "the connection is made and ends before TLS comes about: a balancer without a healthy target does that, and so does a \
         listener that speaks no TLS, or one with `proxy = \"required\"` that is reached past its balancer"
    }
}

fn message(error: &impl Display) -> String {
    error.to_string()
}
