//! The way to a server on a connection on which nothing is said for a while, as a pool of clients keeps it: whether it works then, was
//! closed in order, or was cut by something between.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use relay_remote::RemoteTls;
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::step::Failure;
use super::tls;
use crate::api::DurationText;

/// How long a connection, and each answer, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const ANSWER_MAX: usize = 1024 * 1024;
/// The way out where a connection does not last.
const KEEP_IT: &str = "something on the way forgets connections that say nothing (a network load balancer after 350 s, NAT gateways \
                       too, firewalls and other balancers sooner): have clients send keepalives more often than that, or use no \
                       connection that was idle for so long; relay's own clients do both";

/// Keeps a connection to one of `addresses` idle for `idle`, between two requests with the headers `credentials`.
///
/// # Errors
/// It does not work afterwards, and was not closed in order.
pub(super) async fn examine(
    server: &Url,
    addresses: &[SocketAddr],
    files: &RemoteTls,
    credentials: &str,
    idle: Duration,
) -> Result<((), String), Failure> {
    let request = format!(
        "GET /v1/whoami HTTP/1.1\r\nhost: {}\r\nuser-agent: relay-doctor\r\n{credentials}\r\n",
        server.host_str().unwrap_or_default()
    );
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(format!("{what}: {error}"), "it worked a moment ago: run it again, and look at the steps before")
    };
    let address = addresses.first().copied().ok_or_else(|| failed("no connection", &"there is no address"))?;
    let stream = match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed("no connection", &error)),
        Err(_) => return Err(failed("no connection", &"it has no answer")),
    };
    let ended = match server.scheme() {
        "http" => of(stream, &request, idle).await,
        "https" => {
            let stream = tls::connect(server, stream, files, &[b"http/1.1"], &std::sync::Arc::default()).await;
            of(stream.map_err(|no| Failure::new(no.detail, no.hint))?, &request, idle).await
        }
        _ => {
            let detail = "this is a step of addresses for HTTP: relay's TCP protocol sends pings, and no connection is ever idle";
            return Ok(((), detail.to_owned()));
        }
    };
    let ended = ended.map_err(|error| failed("the first request has no answer", &error))?;
    told(&ended, server.scheme() == "https", idle)
}

/// The end of an idle connection.
#[derive(Debug)]
enum Ended {
    /// The second request was answered.
    Works,
    /// It was closed after this time, while nothing was said. With TLS the other end of it said so.
    Closed(Duration),
    /// It broke after this time, while nothing was said.
    Broke(Duration, io::Error),
    /// Nothing told that it had ended, and the second request had no answer.
    Gone(io::Error),
}

/// Asks, says nothing for `idle`, and asks again.
///
/// # Errors
/// The first request has no answer.
async fn of(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str, idle: Duration) -> io::Result<Ended> {
    ask(&mut stream, request).await?;
    let begun = Instant::now();
    match timeout(idle, stream.read(&mut [0; 1])).await {
        Err(_) => Ok(ask(&mut stream, request).await.map_or_else(Ended::Gone, |()| Ended::Works)),
        Ok(Ok(0)) => Ok(Ended::Closed(begun.elapsed())),
        Ok(Ok(_)) => Ok(Ended::Broke(begun.elapsed(), io::ErrorKind::InvalidData.into())),
        Ok(Err(error)) => Ok(Ended::Broke(begun.elapsed(), error)),
    }
}

fn told(ended: &Ended, is_tls: bool, idle: Duration) -> Result<((), String), Failure> {
    let text = |after: &Duration| format!("{:.1} s", after.as_secs_f64());
    let for_idle = DurationText(idle);
    match ended {
        Ended::Works => Ok(((), format!("a connection works after {for_idle} in which nothing was said"))),
        Ended::Closed(after) => {
            let by = if is_tls { "relay" } else { "relay, or something between," };
            Ok(((), format!("{by} closed a connection in order, after {} in which nothing was said", text(after))))
        }
        Ended::Broke(after, error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Failure::new(
            format!("a connection was cut by something between, after {} in which nothing was said", text(after)),
            KEEP_IT,
        )),
        Ended::Broke(after, error) => Err(Failure::new(
            format!("a connection was reset after {} in which nothing was said: {error}", text(after)),
            KEEP_IT,
        )),
        Ended::Gone(error) => {
            let how = match error.kind() {
                io::ErrorKind::TimedOut => "is silent: packets are dropped",
                io::ErrorKind::UnexpectedEof => "is cut at the next request",
                _ => "is reset at the next request",
            };
            Err(Failure::new(
                format!("a connection {how}, after {for_idle} in which nothing was said ({error})"),
                KEEP_IT,
            ))
        }
    }
}

/// Sends a request and reads its answer to the end.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> io::Result<()> {
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        loop {
            if let Some(whole) = length(&answer)
                && answer.len() >= whole
            {
                return Ok(());
            }
            if answer.len() > ANSWER_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer has no end"));
            }
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The bytes of the whole answer, once its head is there.
fn length(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(answer.get(..head)?).to_ascii_lowercase();
    let body = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    Some(head + 4 + body.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_request_tells_what_became_of_the_connection() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let idle = Duration::from_millis(10);
        let (near, mut far) = tokio::io::duplex(1024);
        far.write_all(answer).await.unwrap();
        let served = async {
            let mut asked = [0; 3];
            far.read_exact(&mut asked).await.unwrap();
            far.read_exact(&mut asked).await.unwrap();
            far.write_all(answer).await.unwrap();
        };
        let (ended, ()) = tokio::join!(of(near, "GET", idle), served);
        assert!(matches!(ended.unwrap(), Ended::Works));

        let (near, mut far) = tokio::io::duplex(1024);
        far.write_all(answer).await.unwrap();
        drop(far);
        let ended = of(near, "", Duration::from_secs(60)).await.unwrap();
        assert!(matches!(ended, Ended::Closed(_)), "{ended:?}");
        assert!(told(&ended, true, idle).unwrap().1.starts_with("relay closed a connection in order"));
    }

    #[test]
    fn a_connection_that_is_cut_is_told_from_one_that_is_reset_or_silent() {
        let idle = Duration::from_secs(350);
        for (ended, word) in [
            (Ended::Broke(idle, io::ErrorKind::UnexpectedEof.into()), "cut by something between, after 350.0 s"),
            (Ended::Broke(idle, io::ErrorKind::ConnectionReset.into()), "reset after 350.0 s"),
            (Ended::Gone(io::ErrorKind::ConnectionReset.into()), "is reset at the next request, after 350s"),
            (Ended::Gone(io::ErrorKind::UnexpectedEof.into()), "is cut at the next request"),
            (Ended::Gone(io::ErrorKind::TimedOut.into()), "packets are dropped"),
        ] {
            let failure = told(&ended, true, idle).unwrap_err();
            assert!(failure.detail.contains(word), "{failure:?}");
            assert!(failure.hint.contains("keepalives"), "{failure:?}");
        }
    }
}
