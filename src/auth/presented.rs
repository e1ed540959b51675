//! The things that a caller shows at a door, over HTTP or TCP: each may be a factor of who the caller is. The door finds them
//! and says nothing about their worth; [`Authenticator`](super::Authenticator) judges.

use std::fmt;
use std::net::IpAddr;

/// The things that one request, or a worker's hello, came with. The default is nothing at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Presented<'a> {
    /// The header `Authorization` as it is; of a worker, its key behind `Bearer `.
    pub authorization: Option<&'a str>,
    /// The header `Relay-Client`, which only a development relay looks at.
    pub named: Option<&'a str>,
    /// The certificate of the connection, which a CA of this listener signed.
    pub certificate: Option<&'a Certificate>,
    /// The VPC endpoint that the connection came through, as a trusted balancer says: `vpce-` and hexadecimal digits.
    pub endpoint: Option<&'a str>,
    /// The address of the peer: the one that a trusted balancer says, else that of the socket.
    pub address: Option<IpAddr>,
}

/// A client certificate that was verified in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The name that identifies its holder, if its CA may give the name; else the reason why it names nobody.
    pub name: Result<CertificateName, String>,
    /// The first 16 hexadecimal digits of the SHA-256 of the certificate, for logs.
    pub fingerprint: String,
}

/// The one name of a certificate that counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// Its only URI, such as `spiffe://a.example/batch`.
    Uri(String),
    /// Its only DNS name, where it has no URI.
    Dns(String),
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => f.write_str(uri),
            Self::Dns(name) => write!(f, "dns:{name}"),
        }
    }
}
