//! One scenario: a server that follows its script, the calls, and then what has reached the server.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::calls::Library;
use super::scenario::{Protocol, Reached, Scenario};
use super::script::{Script, Seen};
use super::{http, tcp};

/// Ends a scenario that hangs.
const HANGS: Duration = Duration::from_secs(60);
/// No message is longer where it is cut at every byte.
const CUTS_MAX: usize = 4_096;
const AT_ONCE: usize = 16;

/// Runs a scenario, once or with each cut.
///
/// # Errors
/// The first thing that was otherwise than the scenario says.
pub(super) async fn scenario(scenario: &Scenario, protocol: Protocol) -> Result<(), String> {
    if scenario.server.cut.is_none() {
        return once(scenario, protocol, 0).await.map(drop);
    }
    let runs = stream::iter(0..CUTS_MAX).map(|at| async move {
        once(scenario, protocol, at).await.map_err(|why| format!("cut after {at} bytes: {why}"))
    });
    let mut runs = std::pin::pin!(runs.buffered(AT_ONCE));
    while let Some(ran) = runs.next().await {
        if ran? {
            return Ok(());
        }
    }
    Err(format!("its message is longer than {CUTS_MAX} bytes"))
}

/// Whether the message that is cut ended before its cut.
async fn once(scenario: &Scenario, protocol: Protocol, cut_at: usize) -> Result<bool, String> {
    let script = Arc::new(Script::new(scenario.server.clone(), cut_at));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(accept(listener, protocol, Arc::clone(&script)));
    let calling = async {
        let scheme = if protocol == Protocol::Http { "http" } else { "relay" };
        let mut library = Library::new(format!("{scheme}://{address}"), &scenario.client, &script);
        for (number, call) in scenario.calls.iter().enumerate() {
            library.call(call).await.map_err(|why| format!("call {number}: {why}"))?;
        }
        reached(&scenario.reached, &script, library.taken)?;
        // Nothing of the library is left.
        drop(library);
        script.seen.subscribe().wait_for(|seen| seen.open == 0).await.unwrap();
        Ok(false)
    };
    let calling = within(calling, &script);
    tokio::select! {
        // It says how it goes where the message is cut.
        ended = calling => if script.state().is_whole { Ok(true) } else { ended },
        panicked = serving.join_next() => panic!("the server ended: {panicked:?}"),
    }
}

async fn within<T>(calling: impl Future<Output = Result<T, String>>, script: &Script) -> Result<T, String> {
    let ended = tokio::time::timeout(HANGS, calling).await;
    ended.unwrap_or_else(|_| Err(format!("it hangs: {:?}", *script.seen.borrow())))
}

async fn accept(listener: TcpListener, protocol: Protocol, script: Arc<Script>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                script.state().connections += 1;
                script.seen.send_modify(|seen| seen.open += 1);
                let script = Arc::clone(&script);
                connections.spawn(async move {
                    match protocol {
                        Protocol::Http => http::serve(Arc::clone(&script), stream).await,
                        Protocol::Tcp => tcp::serve(Arc::clone(&script), stream).await,
                    }
                    script.seen.send_modify(|seen| seen.open -= 1);
                });
            }
            Some(ended) = connections.join_next() => ended.unwrap(),
        }
    }
}

fn reached(wanted: &Reached, script: &Script, taken: usize) -> Result<(), String> {
    let state = script.state();
    let Seen { pushed, .. } = *script.seen.borrow();
    let keys: std::collections::BTreeSet<_> = state.asked.iter().filter_map(|asked| asked.key.as_ref()).collect();
    let is = |what: &str, wanted: Option<usize>, found: usize| match wanted {
        Some(wanted) if wanted != found => Err(format!("{what}: {found} instead of {wanted}")),
        _ => Ok(()),
    };
    let most = |what: &str, most: Option<usize>, found: usize| match most {
        Some(most) if found > most => Err(format!("{what}: {found}, more than {most}")),
        _ => Ok(()),
    };
    let least = |what: &str, least: Option<usize>, found: usize| match least {
        Some(least) if found < least => Err(format!("{what}: {found}, less than {least}")),
        _ => Ok(()),
    };
    is("requests", wanted.requests, state.asked.len())?;
    most("requests", wanted.requests_most, state.asked.len())?;
    is("keys", wanted.keys, keys.len())?;
    is("connections", wanted.connections, state.connections)?;
    least("connections", wanted.connections_least, state.connections)?;
    most("unanswered", wanted.unanswered_most, state.unanswered_most)?;
    least("unanswered", wanted.unanswered_least, state.unanswered_most)?;
    most("results ahead", wanted.ahead_most, pushed - taken)?;
    let bytes: Vec<_> = state.asked.iter().map(|asked| asked.bytes).collect();
    if wanted.bytes.as_ref().is_some_and(|wanted| *wanted != bytes) {
        return Err(format!("payloads of {bytes:?} bytes"));
    }
    if wanted.tokens.as_ref().is_some_and(|wanted| *wanted != state.tokens) {
        return Err(format!("tokens {:?}", state.tokens));
    }
    for (pair, least) in state.asked.windows(2).zip(&wanted.gaps_ms_least) {
        let gap = pair[1].at.duration_since(pair[0].at).as_millis();
        if gap < u128::from(*least) {
            return Err(format!("a request came after {gap} ms, before {least} ms"));
        }
    }
    Ok(())
}
