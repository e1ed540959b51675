//! The connection to NATS against real servers: which users are let in, how it starts, how it comes back.

mod coming_back;
mod credentials;
mod example;
mod starting;
mod tls;

use std::time::Duration;

use relay_conformance::testing::NatsServer;
use relay_nats::config::NatsConfig;
use relay_nats::connection::{Connection, Link, Wait};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

/// For connections that stand or are refused: nothing that these tests await.
const SOON: Wait = Wait::AtMost(Duration::from_secs(30));
/// For connections that can't come about: long enough for many attempts.
const IN_VAIN: Wait = Wait::AtMost(Duration::from_secs(2));

fn to(server: &NatsServer) -> NatsConfig {
    NatsConfig { request_timeout: Duration::from_secs(2), ..NatsConfig::new([server.url()]) }
}

async fn open(config: NatsConfig) -> Connection {
    Connection::open(config, SOON).await.unwrap()
}

/// Waits until the link is as `wanted` says.
async fn until(connection: &Connection, wanted: impl FnMut(&Link) -> bool) -> Link {
    connection.link().wait_for(wanted).await.unwrap().clone()
}

/// Speaks as much of the protocol as a client needs to believe that it is connected.
async fn pretend(listener: TcpListener, version: &'static str) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let info = format!("INFO {{\"server_name\":\"old\",\"version\":\"{version}\",\"max_payload\":1048576}}\r\n");
        let (read, mut write) = stream.split();
        if write.write_all(info.as_bytes()).await.is_err() {
            continue;
        }
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("PING") && write.write_all(b"PONG\r\n").await.is_err() {
                break;
            }
        }
    }
}
