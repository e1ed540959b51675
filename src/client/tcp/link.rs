//! The connection that calls take: made when it is needed, at the next address of the name, and left for another one in time.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use relay_bridge::contract::ClientId;
use relay_bridge::contract::wire::client::{FromClient, Hello, ToClient};
use relay_bridge::contract::wire::{FRAME_MAX, VERSION_MAX, VERSION_MIN};
use relay_bridge::error::BrokerErrorKind as Kind;
use relay_bridge::support::without_passwords;
use relay_remote::RemoteTls;
use relay_remote::stream::{FrameReader, ReadError, write_out};
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::addresses::{Addresses, CONNECT_MAX, Connecting};
use super::super::error::ClientError;
use super::super::pool::is_loopback;
use super::super::tls::ClientTls;
use super::answers::refused;
use super::connection::Connection;

type Reads = Box<dyn AsyncRead + Send + Unpin>;
type Writes = Box<dyn AsyncWrite + Send + Unpin>;

/// The server, who comes, and the connection that is up. Dropping it ends all of its connections and their tasks.
pub(super) struct Link {
    pub(super) server: Url,
    host: String,
    port: u16,
    tls: Option<RemoteTls>,
    key: Option<String>,
    client: Option<ClientId>,
    addresses: Addresses,
    /// Held while one is made, so that all who wait share it.
    up: Mutex<Up>,
    close: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Up {
    connection: Option<Arc<Connection>>,
    /// When the last try to make one failed, and why.
    failed: Option<(Instant, ClientError)>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

impl Link {
    /// # Errors
    /// [`ClientError::Invalid`]: no such address, or a file of `tls` is not good.
    pub(super) fn new(server: &str, key: Option<String>, tls: &ClientTls) -> Result<Self, ClientError> {
        let url = Url::parse(server).ok();
        let place = url.as_ref().and_then(|url| Some((url.host_str().filter(|host| !host.is_empty())?, url.port()?)));
        let (Some((host, port)), Some(url)) = (place, &url) else {
            let server = without_passwords(server);
            let detail =
                format!("`{server}` is not a server address such as relays://relay.example:7413, with its port");
            return Err(ClientError::Invalid(detail));
        };
        let files = RemoteTls { ca: tls.ca.clone(), identity: tls.identity.clone() };
        let secured = match url.scheme() {
            "relays" => {
                files.check().map_err(ClientError::Invalid)?;
                Some(files)
            }
            _ if *tls != ClientTls::default() && !is_loopback(url) => {
                let detail =
                    format!("`{server}` is an address without TLS, and certificates are given for it: write relays://");
                return Err(ClientError::Invalid(detail));
            }
            _ => None,
        };
        let (host, server) = (host.to_owned(), url.clone());
        Ok(Self::of(server, (host, port), secured, key, None, Addresses::new(Connecting::default())))
    }

    fn of(
        server: Url,
        (host, port): (String, u16),
        tls: Option<RemoteTls>,
        key: Option<String>,
        client: Option<ClientId>,
        addresses: Addresses,
    ) -> Self {
        let (up, close) = (Mutex::default(), CancellationToken::new());
        Self { server, host, port, tls, key, client, addresses, up, close, tasks: TaskTracker::new() }
    }

    /// The same server for `client`, over connections of its own.
    pub(super) fn named(&self, client: ClientId) -> Self {
        self.with(Some(client), self.addresses.again())
    }

    /// The same server over connections of its own, which are made so.
    pub(super) fn connecting(&self, connecting: Connecting) -> Self {
        self.with(self.client.clone(), Addresses::new(connecting))
    }

    fn with(&self, client: Option<ClientId>, addresses: Addresses) -> Self {
        let Self { server, host, port, tls, key, .. } = self;
        Self::of(server.clone(), (host.clone(), *port), tls.clone(), key.clone(), client, addresses)
    }

    /// A connection that takes requests.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, ClientError> {
        let asked = Instant::now();
        let mut up = self.up.lock().await;
        if let Some(connection) = up.connection.as_ref().filter(|connection| connection.takes()) {
            return Ok(Arc::clone(connection));
        }
        if let Some((_, error)) = up.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(error.clone());
        }
        let late = || Err(self.unreachable(format!("no answer within {CONNECT_MAX:?}")));
        match Box::pin(time::timeout(CONNECT_MAX, self.dial())).await.unwrap_or_else(|_| late()) {
            Ok((connection, from, to)) => {
                let connection = Arc::new(connection);
                let (reader, writer) = (Arc::clone(&connection), Arc::clone(&connection));
                let close = self.close.clone();
                self.tasks.spawn(async move { reader.read(from, close).await });
                self.tasks.spawn(async move { writer.write(to).await });
                up.connection = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                up.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn unreachable(&self, detail: String) -> ClientError {
        ClientError::Unreachable { server: without_passwords(self.server.as_str()).into_owned(), detail }
    }

    /// Connects, says hello and waits for the welcome.
    async fn dial(&self) -> Result<(Connection, FrameReader<Reads>, Writes), ClientError> {
        let stream = self.reach().await.map_err(|error| self.unreachable(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| self.unreachable(error.to_string()))?;
        let (from, mut to): (Reads, Writes) = match &self.tls {
            None => {
                let (from, to) = stream.into_split();
                (Box::new(from), Box::new(to))
            }
            Some(tls) => {
                let secured = Box::pin(tls.connect(&format!("{}:{}", self.host, self.port), stream)).await;
                let (from, to) = tokio::io::split(secured.map_err(|(kind, why)| self.not_secured(kind, why))?);
                (Box::new(from), Box::new(to))
            }
        };
        let mut hello = BytesMut::new();
        FromClient::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            client: self.client.clone(),
            key: self.key.clone(),
            build: concat!("relay/", env!("CARGO_PKG_VERSION")).to_owned(),
            frame_max: FRAME_MAX,
        })
        .encode(&mut hello);
        write_out(&mut to, &hello).await.map_err(|error| self.unreachable(error.to_string()))?;
        let mut from = FrameReader::new(from, FRAME_MAX);
        let frame = match from.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(self.unreachable("the server closed the connection at the hello".to_owned())),
            Err(ReadError::Broken(error)) => return Err(self.broken(&error)),
            Err(ReadError::Frame(error)) => return Err(ClientError::Garbled(error.to_string())),
        };
        match ToClient::decode(&frame) {
            Ok(ToClient::Welcome(welcome)) if (VERSION_MIN..=VERSION_MAX).contains(&welcome.version) => {
                Ok((Connection::new(&welcome, self.addresses.renewed_after()), from, to))
            }
            Ok(ToClient::Error(error)) => Err(refused(*error)),
            Ok(_) => Err(ClientError::Garbled("the hello was answered by something else".to_owned())),
            Err(error) => Err(ClientError::Garbled(error.to_string())),
        }
    }

    /// The first of the addresses that takes a connection, each given a part of the time.
    async fn reach(&self) -> io::Result<TcpStream> {
        let host = self.host.trim_matches(['[', ']']);
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("`{host}` has no address"));
        for address in self.addresses.of(host, self.port).await? {
            match time::timeout(CONNECT_MAX / 3, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    fn not_secured(&self, kind: Kind, why: String) -> ClientError {
        match kind {
            Kind::Invalid | Kind::Unauthorized => ClientError::Invalid(why),
            _ => self.unreachable(why),
        }
    }

    fn broken(&self, error: &io::Error) -> ClientError {
        self.unreachable(format!("the hello was not answered: {error}"))
    }
}
