//! A relay that also listens for clients over TCP, and a client that sends exactly the messages that it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay::ingress::front::{Bound, Front};
use relay::ingress::tcp::client::{ClientLimits, Clients};
use relay_bridge::contract::JobId;
use relay_bridge::contract::wire::client::{
    FromClient, Hello, Request, Submit, ToClient, Welcome, WireProblem, WireReceipt, WireResult,
};
use relay_bridge::contract::wire::{FRAME_MAX, WireError};
use relay_remote::stream::FrameReader;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http::support::{Relay, Setup};

/// A listener for clients beside a relay's own.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) clients: Arc<Clients>,
    pub(crate) shutdown: CancellationToken,
    serving: JoinSet<std::io::Result<()>>,
}

impl Door {
    pub(crate) async fn of(relay: &Relay) -> Self {
        Self::with(relay, ClientLimits::default(), Duration::from_secs(30)).await
    }

    pub(crate) async fn with(relay: &Relay, limits: ClientLimits, drain: Duration) -> Self {
        Self::behind(relay, Front::default(), limits, drain).await
    }

    pub(crate) async fn behind(relay: &Relay, front: Front, limits: ClientLimits, drain: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let bound = Bound { listener, front: Arc::new(front) };
        let clients = Clients::new(Arc::clone(&relay.ingress), limits);
        let mut serving = JoinSet::new();
        serving.spawn(Arc::clone(&clients).serve(vec![bound], shutdown.clone(), drain));
        Self { address, clients, shutdown, serving }
    }

    pub(crate) async fn start() -> (Relay, Self) {
        let relay = Setup::default().start().await;
        let door = Self::of(&relay).await;
        (relay, door)
    }

    pub(crate) async fn client(&self) -> Wire {
        let mut wire = Wire::connect(self.address).await;
        wire.welcomed(&hello()).await;
        wire
    }

    /// Waits for the end of a drain.
    pub(crate) async fn drained(&mut self) {
        self.serving.join_next().await.unwrap().unwrap().unwrap();
    }
}

/// The hello of a client that shows nothing.
pub(crate) fn hello() -> Hello {
    Hello { version_min: 1, version_max: 1, client: None, key: None, build: "test".to_owned(), frame_max: FRAME_MAX }
}

/// A submission to the queue `mail`.
pub(crate) fn mail(payload: impl Into<Bytes>) -> Submit {
    Submit { queue: "mail".to_owned(), payload: payload.into(), ..Submit::default() }
}

/// One connection.
pub(crate) struct Wire {
    from: FrameReader<Box<dyn AsyncRead + Send + Unpin>>,
    to: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    /// Over a connection that is there.
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (from, to) = tokio::io::split(stream);
        Self { from: FrameReader::new(Box::new(from), FRAME_MAX), to: Box::new(to) }
    }

    pub(crate) async fn welcomed(&mut self, hello: &Hello) -> Welcome {
        self.send(&FromClient::Hello(hello.clone())).await;
        match self.next().await {
            Some(ToClient::Welcome(welcome)) => *welcome,
            other => panic!("no welcome: {other:?}"),
        }
    }

    /// Whether the server lets it in; else the connection ends without a word.
    pub(crate) async fn try_welcomed(&mut self, hello: &Hello) -> bool {
        let mut bytes = BytesMut::new();
        FromClient::Hello(hello.clone()).encode(&mut bytes);
        self.to.write_all(&bytes).await.is_ok() && matches!(self.from.next().await, Ok(Some(_)))
    }

    /// Waits until the server closes the connection without a word.
    pub(crate) async fn is_over(&mut self) -> bool {
        !matches!(self.from.next().await, Ok(Some(_)))
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.to.write_all(bytes).await.unwrap();
    }

    /// Sends nothing more: the sending half is closed.
    pub(crate) async fn finish(&mut self) {
        self.to.shutdown().await.unwrap();
    }

    pub(crate) async fn send(&mut self, message: &FromClient) {
        let mut bytes = BytesMut::new();
        message.encode(&mut bytes);
        self.write(&bytes).await;
    }

    pub(crate) async fn ask(&mut self, id: u64, request: Request) {
        self.send(&FromClient::Request { id, request }).await;
    }

    /// The next message that is no ping.
    pub(crate) async fn next(&mut self) -> Option<ToClient> {
        loop {
            let frame = self.from.next().await.unwrap()?;
            match ToClient::decode(&frame).unwrap() {
                ToClient::Ping(_) => {}
                message => return Some(message),
            }
        }
    }

    pub(crate) async fn answer(&mut self, id: u64, request: Request) -> ToClient {
        self.ask(id, request).await;
        self.next().await.unwrap()
    }

    pub(crate) async fn submit(&mut self, id: u64, submit: Submit) -> WireReceipt {
        match self.answer(id, Request::Submit(Box::new(submit))).await {
            ToClient::Receipt { id: of, receipt } if of == id => *receipt,
            other => panic!("no receipt: {other:?}"),
        }
    }

    pub(crate) async fn wait(&mut self, id: u64, job: JobId, seconds: u64) -> ToClient {
        self.answer(id, Request::Wait { job, wait: Duration::from_secs(seconds) }).await
    }

    pub(crate) async fn result(&mut self, id: u64) -> WireResult {
        match self.next().await.unwrap() {
            ToClient::Result { id: of, result, .. } if of == id => *result,
            other => panic!("no result: {other:?}"),
        }
    }

    pub(crate) async fn problem(&mut self, id: u64, request: Request) -> WireProblem {
        match self.answer(id, request).await {
            ToClient::Problem { id: of, problem } if of == id => *problem,
            other => panic!("no problem: {other:?}"),
        }
    }

    /// The error after which the connection ends.
    pub(crate) async fn ended(&mut self) -> WireError {
        match self.next().await.unwrap() {
            ToClient::Error(error) => {
                assert!(self.next().await.is_none(), "the connection is closed after it");
                *error
            }
            other => panic!("no error: {other:?}"),
        }
    }
}
