//! The reverse of an examination: on this way nobody is to be answered, as past a load balancer whose header relay requires.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::network;
use super::step::{Failure, Report};
use crate::cli::exit::CliError;

/// Steps in their order.
pub(super) const STEPS: [&str; 2] = ["name", "refused"];

/// How long an address may take to connect.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an address may be silent until that is no answer: longer than relay waits for a header, 5 s.
const SILENCE: Duration = Duration::from_secs(8);
/// A request that HTTP answers, and TLS answers with an alert or a line.
const REQUEST: &[u8] = b"GET /v1/whoami HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n";

/// Tries every address, one after the other. Whether there was one.
///
/// # Errors
/// If stdout can't be written.
pub(super) async fn examine(report: &mut Report, server: &Url) -> Result<bool, CliError> {
    let (host, port) = (server.host_str().unwrap_or_default(), server.port_or_known_default().unwrap_or(443));
    let Some(addresses) = report.end("name", network::resolve(host, port, None).await)? else { return Ok(false) };
    report.end("refused", all(&addresses).await)?;
    Ok(true)
}

/// How each address turned this caller away.
async fn all(addresses: &[SocketAddr]) -> Result<((), String), Failure> {
    let mut found = Vec::new();
    for address in addresses {
        found.push(one(*address).await?);
    }
    Ok(((), found.join("; ")))
}

/// How one did.
///
/// # Errors
/// It answers, or nothing listens there, which proves nothing.
async fn one(address: SocketAddr) -> Result<String, Failure> {
    let mut stream = match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Err(_) => return Ok(format!("{address} takes no connection from here: packets are dropped")),
        Ok(Err(error)) if error.kind() == ErrorKind::TimedOut => {
            return Ok(format!("{address} takes no connection from here: packets are dropped"));
        }
        Ok(Err(error)) => {
            return Err(Failure::new(
                format!("{address} can't be tried: {error}"),
                "nothing listens there, which proves nothing: look at the port, and whether relay runs",
            ));
        }
    };
    let asked = async {
        stream.write_all(REQUEST).await?;
        stream.read(&mut [0; 256]).await
    };
    match timeout(SILENCE, asked).await {
        Ok(Ok(bytes)) if bytes > 0 => Err(Failure::new(
            format!("{address} answers somebody who comes without a header"),
            "others than the balancer are let in, who could write a header themselves: set proxy = \"required\" \
             for this listener, and let only the balancer's addresses reach it",
        )),
        Ok(Ok(_)) => Ok(format!("{address} closes the connection and says nothing")),
        // It went away while the request was written, or after it.
        Ok(Err(_)) => Ok(format!("{address} breaks the connection and says nothing")),
        Err(_) => Ok(format!("{address} says nothing")),
    }
}
