//! The time until which certificates and lists of revoked ones are good: what rustls judges by, and does not tell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use relay_bridge::contract::Timestamp;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tracing::warn;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

/// How long before its end a file is warned of.
const WARN_BEFORE_SECS: i64 = 7 * DAY_SECS;
const DAY_SECS: i64 = 24 * 3_600;

/// The first end of what is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Its content: `certificate` (the server's own), `authority` or `crl`.
    pub kind: &'static str,
    /// The file.
    pub file: PathBuf,
    /// When the first of its certificates expires, or the first of its lists should have been replaced: seconds since 1970.
    pub at: i64,
    /// When the last of its certificates begins to be good; `None` for lists.
    pub(super) from: Option<i64>,
}

impl Expiry {
    pub(super) fn of_certificates(
        kind: &'static str,
        file: &Path,
        certificates: &[CertificateDer<'_>],
    ) -> Option<Self> {
        let from = certificates.iter().filter_map(begin).max();
        ends(certificates).min().map(|at| Self { kind, file: file.to_owned(), at, from })
    }

    /// A list that does not say when the next one is due has no end.
    pub(super) fn of_lists(file: &Path, lists: &[CertificateRevocationListDer<'_>]) -> Option<Self> {
        let due = |list: &CertificateRevocationListDer<'_>| {
            let (_, list) = CertificateRevocationList::from_der(list.as_ref()).ok()?;
            list.next_update().map(|at| at.timestamp())
        };
        let at = lists.iter().filter_map(due).min()?;
        Some(Self { kind: "crl", file: file.to_owned(), at, from: None })
    }

    /// Warns of it if its end is near or was, or if it is not good yet.
    pub(super) fn warn(&self) {
        let (file, left) = (self.file.display(), self.at - now());
        let days = left.div_euclid(DAY_SECS);
        let days_ago = left.unsigned_abs() / DAY_SECS.unsigned_abs();
        match (self.kind, left) {
            ("crl", ..0) => warn!(
                %file, days_ago,
                "a list of revoked certificates was due to be replaced, and its authority's clients are refused: replace it"
            ),
            ("authority", ..0) => {
                warn!(%file, days_ago, "a certificate of an authority has expired, and vouches for nobody: replace it");
            }
            (_, ..0) => {
                warn!(%file, days_ago, "the server's certificate has expired, and clients refuse it: replace it");
            }
            ("crl", ..WARN_BEFORE_SECS) => warn!(
                %file, days,
                "a list of revoked certificates is due to be replaced, and refuses its authority's clients from then on"
            ),
            ("authority", ..WARN_BEFORE_SECS) => {
                warn!(%file, days, "a certificate of an authority expires, and vouches for nobody from then on: replace it");
            }
            (_, ..WARN_BEFORE_SECS) => {
                warn!(%file, days, "the server's certificate expires, and clients refuse it from then on");
            }
            _ => {}
        }
        if let ("certificate", Some(from)) = (self.kind, self.from.filter(|from| *from > now())) {
            let from = Timestamp::from_millis(from.saturating_mul(1_000));
            warn!(
                %file, %from,
                "the server's certificate is not good yet, and clients refuse it until then: replace it, or set the clock"
            );
        }
    }
}

/// When each of `certificates` that can be read expires, in seconds since 1970.
fn ends(certificates: &[CertificateDer<'_>]) -> impl Iterator<Item = i64> {
    certificates.iter().filter_map(end)
}

/// When a certificate expires, in seconds since 1970; `None` if it can't be read.
pub(super) fn end(der: &CertificateDer<'_>) -> Option<i64> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.validity().not_after.timestamp())
}

/// How long the first of `certificates` is good for, and a second. One that has expired is none whose end could be waited for: a
/// peer may show some that its chain does not need. `None` if no end is to come.
pub(super) fn left(certificates: &[CertificateDer<'_>]) -> Option<Duration> {
    let now = now();
    let left = ends(certificates).filter(|end| *end >= now).min()?.saturating_sub(now).saturating_add(1);
    Some(Duration::from_secs(u64::try_from(left).unwrap_or_default()))
}

/// When a certificate begins to be good, in seconds since 1970.
fn begin(der: &CertificateDer<'_>) -> Option<i64> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.validity().not_before.timestamp())
}

fn now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}
