//! The time until which certificates and lists of revoked ones are good: what rustls judges by, and does not tell.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tracing::warn;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

/// How long before its end a file is warned of.
const WARN_BEFORE_SECS: i64 = 7 * 24 * 3_600;

/// The first end of what is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Its content: `certificate` (the server's own), `authority` or `crl`.
    pub kind: &'static str,
    /// The file.
    pub file: PathBuf,
    /// When the first of its certificates expires, or the first of its lists should have been replaced: seconds since 1970.
    pub at: i64,
}

impl Expiry {
    pub(super) fn of_certificates(
        kind: &'static str,
        file: &Path,
        certificates: &[CertificateDer<'_>],
    ) -> Option<Self> {
        ends(certificates).min().map(|at| Self { kind, file: file.to_owned(), at })
    }

    /// A list that does not say when the next one is due has no end.
    pub(super) fn of_lists(file: &Path, lists: &[CertificateRevocationListDer<'_>]) -> Option<Self> {
        let due = |list: &CertificateRevocationListDer<'_>| {
            let (_, list) = CertificateRevocationList::from_der(list.as_ref()).ok()?;
            list.next_update().map(|at| at.timestamp())
        };
        let at = lists.iter().filter_map(due).min()?;
        Some(Self { kind: "crl", file: file.to_owned(), at })
    }

    /// Warns of it if its end is near or was.
    pub(super) fn warn(&self) {
        let left = self.at - now();
        if left < WARN_BEFORE_SECS {
            let (file, days) = (self.file.display(), left.div_euclid(24 * 3_600));
            let what = match self.kind {
                "crl" => {
                    "a list of revoked certificates is due to be replaced, and refuses its authority's clients from then on"
                }
                "authority" => "a certificate of an authority expires, and vouches for nobody from then on: replace it",
                _ => "the server's certificate expires, and clients refuse it from then on",
            };
            warn!(%file, days, "{what}");
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

fn now() -> i64 {
    i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX)
}
