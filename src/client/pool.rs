//! Connections over HTTP. The pool is made anew before servers close connections for their age, so that clients spread again over the
//! addresses of the name; requests in flight end on the old one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use relay_bridge::support::lock;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::addresses::{Addresses, CONNECT_MAX, Connecting};
use super::error::{ClientError, chain};
use super::tls::ClientTls;

/// How often the system, or HTTP/2, probes a connection in use: a network load balancer forgets a silent one after 350 s.
const PROBE: Duration = Duration::from_secs(60);
/// How long a connection that is not in use stays.
const IDLE_MAX: Duration = Duration::from_secs(90);

/// The connections to one server.
pub(super) struct Pool {
    made: Mutex<Made>,
    server: Url,
    tls: ClientTls,
    addresses: Arc<Addresses>,
}

struct Made {
    http: reqwest::Client,
    until: Instant,
}

impl Pool {
    /// # Errors
    /// [`ClientError::Invalid`]: TLS can't be set up.
    pub(super) fn new(server: Url, tls: ClientTls, connecting: Connecting) -> Result<Self, ClientError> {
        let addresses = Arc::new(Addresses::new(connecting));
        let until = Instant::now() + addresses.renewed_after();
        let made = Made { http: build(&server, &tls, &addresses)?, until };
        Ok(Self { made: Mutex::new(made), server, tls, addresses })
    }

    /// Other connections to the same server.
    ///
    /// # Errors
    /// [`ClientError::Invalid`]: a file of TLS is not good any more.
    pub(super) fn connecting(&self, connecting: Connecting) -> Result<Self, ClientError> {
        Self::new(self.server.clone(), self.tls.clone(), connecting)
    }

    /// The connections to use now.
    pub(super) fn now(&self) -> reqwest::Client {
        let mut made = lock(&self.made);
        if Instant::now() >= made.until {
            made.until = Instant::now() + self.addresses.renewed_after();
            // While somebody replaces the files, they may not be good: the old connections go on until the next time.
            match build(&self.server, &self.tls, &self.addresses) {
                Ok(http) => made.http = http,
                Err(error) => tracing::warn!(%error, "connections are not renewed"),
            }
        }
        made.http.clone()
    }
}

fn build(server: &Url, tls: &ClientTls, addresses: &Arc<Addresses>) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .dns_resolver(Arc::new(InTurn(Arc::clone(addresses))))
        .pool_idle_timeout(IDLE_MAX)
        .tcp_keepalive(PROBE)
        .http2_keep_alive_interval(PROBE)
        .user_agent(concat!("relay/", env!("CARGO_PKG_VERSION")));
    // A proxy from the environment is for the outside; this machine is reached without it.
    if is_loopback(server) {
        builder = builder.no_proxy();
    }
    // Without TLS no roots are needed: a machine that has none can still reach its own relay.
    if server.scheme() == "http" {
        if *tls != ClientTls::default() && !is_loopback(server) {
            let detail =
                format!("`{server}` is an address without TLS, and certificates are given for it: write https://");
            return Err(ClientError::Invalid(detail));
        }
        builder = builder.tls_certs_only(std::iter::empty());
    } else {
        builder = tls.build(builder)?;
    }
    builder.build().map_err(|error| ClientError::Invalid(chain(&error)))
}

/// Whether it is an address of this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

struct InTurn(Arc<Addresses>);

impl Resolve for InTurn {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = Arc::clone(&self.0);
        Box::pin(async move {
            let found = addresses.of(name.as_str(), 0).await?;
            // With zero the port is that of the URL.
            Ok(Box::new(found.into_iter().map(|found| SocketAddr::new(found.ip(), 0))) as Addrs)
        })
    }
}
