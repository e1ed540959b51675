//! One scenario: a server that follows its script, the calls, and then what has reached the server.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use relay::client::ClientTls;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::calls::{Library, Place, address};
use super::scenario::{Protocol, Reached, Scenario};
use super::script::{Script, Seen};
use super::{http1, http2, tcp};
use crate::tls_support::Files;

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
    let (listeners, port) = listen(scenario.server.addresses).await;
    let (files, mut tls) = (Files::new(), ClientTls::default());
    let (scheme, speaks) = match protocol {
        Protocol::Http => ("http", Speaks::Http1),
        Protocol::H2 => {
            tls.ca = Some(files.write("server.pem", files.server.pem()));
            ("https", Speaks::Http2(acceptor(&files)))
        }
        Protocol::Tcp => ("relay", Speaks::Tcp),
    };
    let mut serving = JoinSet::new();
    for (at, listener) in listeners.into_iter().enumerate() {
        serving.spawn(accept(listener, at, speaks.clone(), Arc::clone(&script)));
    }
    let calling = async {
        let place = Place { server: format!("{scheme}://localhost:{port}"), tls };
        let mut library = Library::new(place, &scenario.client, &script);
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

/// Listens on one port at each of so many addresses.
async fn listen(addresses: usize) -> (Vec<TcpListener>, u16) {
    loop {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut listeners = vec![first];
        for number in 1..addresses {
            // Somebody else may have the port there: then another one.
            listeners.extend(TcpListener::bind((Ipv4Addr::from(address(number)), port)).await.ok());
        }
        if listeners.len() == addresses {
            return (listeners, port);
        }
    }
}

fn acceptor(files: &Files) -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_file(&files.files.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&files.files.key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// The protocol of a server.
#[derive(Clone)]
enum Speaks {
    Http1,
    Http2(TlsAcceptor),
    Tcp,
}

impl Speaks {
    async fn serve(self, script: Arc<Script>, at: usize, stream: TcpStream) {
        match self {
            Self::Http1 => http1::serve(script, at, stream).await,
            Self::Http2(tls) => http2::serve(script, at, tls, stream).await,
            Self::Tcp => tcp::serve(script, at, stream).await,
        }
    }
}

async fn accept(listener: TcpListener, at: usize, speaks: Speaks, script: Arc<Script>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.unwrap();
                script.state().connections += 1;
                script.seen.send_modify(|seen| seen.open += 1);
                let (script, speaks) = (Arc::clone(&script), speaks.clone());
                connections.spawn(async move {
                    speaks.serve(Arc::clone(&script), at, stream).await;
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
    let keys: BTreeSet<_> = state.asked.iter().filter_map(|asked| asked.key.as_ref()).collect();
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
    let at: Vec<_> = state.asked.iter().map(|asked| asked.address).collect();
    if wanted.addresses.as_ref().is_some_and(|wanted| *wanted != at) {
        return Err(format!("requests at the addresses {at:?}"));
    }
    let used: Vec<_> = at.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    if wanted.addresses_used.as_ref().is_some_and(|wanted| *wanted != used) {
        return Err(format!("requests at the addresses {used:?} alone"));
    }
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
