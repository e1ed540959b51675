//! The limits of a server, as its settings say them and as the process can keep them.

use std::sync::Arc;

use crate::auth::Authenticator;
use crate::config::settings::{Bounds, Listen};
use crate::ingress::clients::ClientShares;
use crate::ingress::http::Limits;

/// The files that a process has open beside its connections: its store, its broker's connections, its log.
const OTHER_FILES: usize = 256;
/// The least connections of clients for which a server starts.
const CLIENTS_MIN: usize = 64;

/// How many connections there may be where `files` may be open: of clients, at most `clients`, and of the other listeners, whose
/// caps are halved until clients have their least.
///
/// # Errors
/// How many files would be needed.
pub(super) fn within(files: usize, clients: usize, mut others: Vec<usize>) -> Result<(usize, Vec<usize>), usize> {
    let least = CLIENTS_MIN.min(clients);
    loop {
        let left = files.saturating_sub(OTHER_FILES + others.iter().sum::<usize>());
        if left >= least {
            return Ok((clients.min(left), others));
        }
        if others.iter().all(|cap| *cap == 1) {
            return Err(OTHER_FILES + others.len() + least);
        }
        for cap in &mut others {
            *cap = (*cap / 2).max(1);
        }
    }
}

/// The limits on clients' requests over HTTP.
pub(super) fn of(listen: &Listen, bounds: &Bounds, authenticator: &Arc<Authenticator>) -> Limits {
    let usual = Limits::default();
    let number = |of: u32| usize::try_from(of).unwrap_or(usize::MAX);
    let bytes = |of: u64| usize::try_from(of).unwrap_or(usize::MAX);
    let followers = number(listen.followers);
    // Over HTTP/1.1 each has a connection, and must not take the others' places.
    let connections = bounds.connections.map(number);
    let connections = connections.unwrap_or((usual.connections - usual.followers).saturating_add(followers));
    let named = bounds.client_shares.iter().map(|share| (share.client.clone(), share.percent)).collect();
    let known = Arc::clone(authenticator);
    Limits {
        body_bytes: bytes(bounds.body_bytes),
        answer_bytes: bytes(bounds.answer_bytes),
        body_rate: bounds.body_rate,
        requests: number(bounds.requests),
        connections,
        unproven: number(bounds.unproven_connections),
        per_source: bounds.source_connections.map(number),
        shares: ClientShares::new(bounds.client_share, named, move || known.is_one_client()),
        followers,
        follow_for: listen.follow_for.0,
        ping_every: listen.ping_every.0,
        idle: listen.idle.0,
        ..usual
    }
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
