//! The limits of a server, as its settings say them and as the process can keep them.

use std::collections::HashMap;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use relay_bridge::contract::ClientId;
use tracing::{info, warn};

use super::exit::CliError;
use super::memory::{self, Others};
use crate::admin::Caps;
use crate::app::NatsIngress;
use crate::auth::Authenticator;
use crate::config::listeners::{Listener, Protocol};
use crate::config::settings::{self, Bounds, Listen};
use crate::ingress::clients::ClientShares;
use crate::ingress::http::Limits;
use crate::ingress::tcp::WorkerLimits;

/// The files that a process has open beside its connections: its store, its broker's connections, its log.
const OTHER_FILES: usize = 256;
/// The least connections of clients for which a server starts.
const CLIENTS_MIN: usize = 64;

/// How many files this process may have open.
fn open_files() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(allowed, _)| allowed);
    usize::try_from(files).unwrap_or(usize::MAX)
}

/// The settings that say limits, or that there is something to be limited.
pub(super) struct Bounded<'a> {
    pub(super) listen: &'a Listen,
    pub(super) listeners: &'a [Listener],
    pub(super) bounds: &'a Bounds,
    pub(super) admin: &'a settings::Admin,
}

/// The limits of clients, of workers and of the admin port: as they were asked for, no more than there may be open files, and
/// within the memory of this process where that is asked for.
pub(super) fn of(
    Bounded { listen, listeners, bounds, admin }: &Bounded<'_>,
    nats: Option<&NatsIngress>,
    authenticator: &Arc<Authenticator>,
) -> Result<(Limits, WorkerLimits, Caps), CliError> {
    let (mut limits, mut workers) = (clients(listen, bounds, authenticator), workers(listen));
    let mut caps = Caps::default();
    let has_workers = listeners.iter().any(|one| one.protocol == Protocol::Worker);
    let of_workers = |count: u32| if has_workers { count as usize } else { 0 };
    let others = Others {
        workers: of_workers(workers.connections_max) + of_workers(workers.unknown_max),
        worker_bytes: if has_workers { workers.bytes } else { 0 },
        nats: nats.map_or(0, |nats| nats.limits.requests.saturating_add(nats.limits.waits)),
    };
    if let Some(allowed) = memory::allowed() {
        let needed = memory::needed(&limits, others);
        if bounds.fit_memory {
            limits = memory::fitted(&limits, others, allowed).ok_or_else(|| {
                CliError::usage(format!("--fit-memory: {allowed} bytes of memory are too few for a server"))
                    .hint("give it 256 MiB at least")
            })?;
        } else if needed > allowed {
            warn!(
                needed,
                allowed,
                "clients may come to hold more memory than this process is allowed: give it more, lower the limits, or \
                 start it with --fit-memory"
            );
        }
    }
    let files = open_files();
    let asked = vec![
        of_workers(workers.connections_max),
        of_workers(workers.unknown_max),
        admin.listen.map_or(0, |_| caps.admin),
        admin.health.map_or(0, |_| caps.health),
    ];
    let (connections, given) = within(files, limits.connections, asked.clone()).map_err(|needed| {
        CliError::usage(format!("{files} files may be open, and this server needs {needed} at least"))
            .hint(format!("allow more: `ulimit -n {}`", 4 * needed))
    })?;
    limits.connections = connections;
    if let ([known, unknown, admin, health], true) = (&given[..], given != asked) {
        workers.connections_max = u32::try_from(*known).unwrap_or(u32::MAX).max(1);
        workers.unknown_max = u32::try_from(*unknown).unwrap_or(u32::MAX).max(1);
        caps = Caps { admin: (*admin).max(1), health: (*health).max(1) };
    }
    let needed = memory::needed(&limits, others);
    info!(
        connections,
        files,
        memory = needed,
        "clients may have so many connections, and hold so many bytes of memory"
    );
    Ok((limits, workers, caps))
}

/// How many connections there may be where `files` may be open: of clients, at most `clients`, and of the other listeners, whose
/// caps are halved until clients have their least.
///
/// # Errors
/// How many files would be needed.
fn within(files: usize, clients: usize, mut others: Vec<usize>) -> Result<(usize, Vec<usize>), usize> {
    let least = CLIENTS_MIN.min(clients);
    loop {
        let left = files.saturating_sub(OTHER_FILES + others.iter().sum::<usize>());
        if left >= least {
            return Ok((clients.min(left), others));
        }
        if others.iter().all(|cap| *cap <= 1) {
            return Err(OTHER_FILES + others.iter().sum::<usize>() + least);
        }
        for cap in others.iter_mut().filter(|cap| **cap > 1) {
            *cap /= 2;
        }
    }
}

/// The limits on clients' requests over HTTP, as they were asked for.
fn clients(listen: &Listen, bounds: &Bounds, authenticator: &Arc<Authenticator>) -> Limits {
    let usual = Limits::default();
    let number = |of: u32| usize::try_from(of).unwrap_or(usize::MAX);
    let bytes = |of: u64| usize::try_from(of).unwrap_or(usize::MAX);
    let followers = number(listen.followers);
    // Over HTTP/1.1 each has a connection, and must not take the others' places.
    let connections = bounds.connections.map(number);
    let connections = connections.unwrap_or((usual.connections - usual.followers).saturating_add(followers));
    // A flag counts instead of a file.
    let flags: HashMap<_, _> = bounds.client_shares.iter().map(|share| (share.client.clone(), share.percent)).collect();
    let [known, alone] = [(); 2].map(|()| Arc::clone(authenticator));
    let share = move |client: &ClientId| flags.get(client).copied().or_else(|| known.share_of(client));
    Limits {
        body_bytes: bytes(bounds.body_bytes),
        answer_bytes: bytes(bounds.answer_bytes),
        body_rate: bounds.body_rate,
        requests: number(bounds.requests),
        connections,
        unproven: number(bounds.unproven_connections),
        per_source: bounds.source_connections.map(number),
        source_unproven: number(bounds.source_unproven),
        endpoint_connections: number(bounds.endpoint_connections),
        shares: ClientShares::new(bounds.client_share, share, move || alone.is_one_client()),
        followers,
        follow_for: listen.follow_for.0,
        ping_every: listen.ping_every.0,
        idle: listen.idle.0,
        max_age: listen.max_age.0,
        ..usual
    }
}

/// The limits on workers of other processes, as they were asked for.
fn workers(listen: &Listen) -> WorkerLimits {
    WorkerLimits { bytes: listen.worker_bytes, max_age: listen.max_age.0, ..WorkerLimits::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_no_more_than_there_may_be_open_files_and_a_start_with_too_few_says_how_many_are_needed() {
        assert_eq!(within(1_000_000, 20_000, vec![1_024, 256]), Ok((20_000, vec![1_024, 256])));
        assert_eq!(within(4_096, 20_000, vec![1_024, 256]), Ok((4_096 - 256 - 1_280, vec![1_024, 256])));
        assert_eq!(within(1_024, 20_000, vec![1_024, 256]), Ok((128, vec![512, 128])));
        assert_eq!(within(322, 20_000, vec![1_024, 256]), Ok((64, vec![1, 1])));
        assert_eq!(within(321, 20_000, vec![1_024, 256]), Err(322));
        assert_eq!(within(300, 10, vec![]), Ok((10, vec![])));
    }
}
