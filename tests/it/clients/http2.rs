//! A scripted server over HTTP/2, with TLS: one connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderName, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::http::{Message, Reply, Requested, attend};
use super::script::Script;

/// The ends that requests of a connection bring to it.
#[derive(Clone, Default)]
struct Ends {
    /// It says that it goes away.
    leaves: Arc<Notify>,
    lost: CancellationToken,
}

/// Serves a connection to the address `at` until its peer, or the script, ends it.
pub(super) async fn serve(script: Arc<Script>, at: usize, tls: TlsAcceptor, stream: TcpStream) {
    let Ok(stream) = tls.accept(stream).await else { return };
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let (ends, mut tasks) = (Ends::default(), JoinSet::new());
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let (script, ends) = (Arc::clone(&script), ends.clone());
                tasks.spawn(async move { answer(&script, at, request, respond, ends).await });
            }
            () = ends.leaves.notified() => connection.graceful_shutdown(),
            () = ends.lost.cancelled() => return,
        }
    }
}

/// `None` at the end of the connection.
async fn answer(
    script: &Script,
    at: usize,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    ends: Ends,
) -> Option<()> {
    let (head, mut body) = request.into_parts();
    let mut bytes = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.ok()?;
        bytes += chunk.len();
        body.flow_control().release_capacity(chunk.len()).ok()?;
    }
    let header =
        |(name, value): (&HeaderName, &HeaderValue)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned());
    let requested = Requested {
        method: head.method.to_string(),
        target: head.uri.path_and_query().unwrap().to_string(),
        headers: head.headers.iter().map(header).collect(),
        bytes,
    };
    let (step, reply) = attend(script, at, &requested).await;
    let Message { status, headers, body } = match reply {
        Reply::Message(message) => message,
        Reply::Lost => {
            script.end();
            ends.lost.cancel();
            return None;
        }
        Reply::Untaken => {
            script.end();
            respond.send_reset(Reason::REFUSED_STREAM);
            return Some(());
        }
        // The stream stays as long as the connection does.
        Reply::Never => return std::future::pending().await,
        Reply::Raw(_) => panic!("raw answers are for HTTP/1.1 and TCP"),
    };
    let mut response = Response::builder().status(u16::try_from(status).unwrap());
    for (name, value) in headers {
        response = response.header(name, value);
    }
    script.end();
    let mut stream = respond.send_response(response.body(()).unwrap(), false).ok()?;
    if let Some(every) = step.bytes_every_ms {
        for byte in body {
            tokio::time::sleep(Duration::from_millis(every)).await;
            stream.send_data(Bytes::copy_from_slice(&[byte]), false).ok()?;
        }
        stream.send_data(Bytes::new(), true).ok()?;
    } else {
        stream.send_data(body.into(), true).ok()?;
    }
    if step.leaves {
        ends.leaves.notify_one();
    }
    Some(())
}
