//! The names that an authority may give, and the one name of a certificate that counts.

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use crate::auth::presented::CertificateName;

/// A name, or all names below one: `spiffe://a.example/*` or `*.a.example`, in which `*` stands for one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// This URI.
    Uri(String),
    /// URIs that begin so, and go on.
    UrisBelow(String),
    /// This DNS name.
    Dns(String),
    /// DNS names of one label more.
    DnsBelow(String),
}

/// Why a text is no pattern of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no pattern of names: write \"spiffe://a.example/*\", \"*.a.example\", or a name without `*`")]
pub struct InvalidPattern;

impl NamePattern {
    /// Whether `name` is one of them.
    #[must_use]
    pub fn matches(&self, name: &CertificateName) -> bool {
        match (&self.kind, name) {
            (Kind::Uri(uri), CertificateName::Uri(name)) => uri == name,
            (Kind::UrisBelow(start), CertificateName::Uri(name)) => {
                name.strip_prefix(start).is_some_and(|rest| !rest.is_empty())
            }
            (Kind::Dns(dns), CertificateName::Dns(name)) => dns == name,
            (Kind::DnsBelow(parent), CertificateName::Dns(name)) => {
                name.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent)
            }
            _ => false,
        }
    }
}

impl FromStr for NamePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let kind = match text.split_once("://") {
            Some((scheme, rest)) => {
                let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
                if scheme.is_empty() || place.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(InvalidPattern);
                }
                match text.strip_suffix('*') {
                    // Of one place: `spiffe://a.example*` would also be `spiffe://a.example.b.example/`.
                    Some(start) if start.ends_with('/') && !path.is_empty() => Kind::UrisBelow(start.to_owned()),
                    Some(_) => return Err(InvalidPattern),
                    None => Kind::Uri(text.to_owned()),
                }
            }
            None => match text.strip_prefix("*.") {
                Some(parent) => Kind::DnsBelow(dns(parent)?),
                None => Kind::Dns(dns(text)?),
            },
        };
        let whole = match &kind {
            Kind::UrisBelow(start) | Kind::Uri(start) => !start.contains('*'),
            Kind::Dns(_) | Kind::DnsBelow(_) => true,
        };
        if whole { Ok(Self { text: text.to_owned(), kind }) } else { Err(InvalidPattern) }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn dns(name: &str) -> Result<String, InvalidPattern> {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(InvalidPattern);
    }
    Ok(name.to_ascii_lowercase())
}

/// The one name of `certificate`: its only URI, or its only DNS name where it has no URI. Its subject is never looked at.
///
/// # Errors
/// Why it has none, in words for its holder.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<CertificateName, String> {
    let read = EndEntityCert::try_from(certificate).map_err(|error| format!("it can't be read: {error}"))?;
    let mut uris = read.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => return Ok(CertificateName::Uri(uri.to_owned())),
        (Some(_), Some(_)) => return Err("it has several URIs as names, and has to have one".to_owned()),
        (None, _) => {}
    }
    let mut names = read.valid_dns_names();
    match (names.next(), names.next()) {
        (Some(name), None) => match dns(name) {
            Ok(name) => Ok(CertificateName::Dns(name)),
            Err(_) => Err(format!("its name {name} is a pattern, and has to be that of one holder")),
        },
        (Some(_), Some(_)) => Err("it has several DNS names and no URI: it has to have one name".to_owned()),
        (None, _) => {
            Err("it has neither a URI nor a DNS name as subject alternative name; its subject does not count"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_holds_for_names_of_its_own_place_and_kind_alone() {
        let uri = |text: &str| CertificateName::Uri(text.to_owned());
        let dns = |text: &str| CertificateName::Dns(text.to_owned());
        for (pattern, good, bad) in [
            (
                "spiffe://a.example/*",
                vec![uri("spiffe://a.example/batch"), uri("spiffe://a.example/x/y")],
                vec![
                    uri("spiffe://a.example/"),
                    uri("spiffe://a.example"),
                    uri("spiffe://a.example.b.example/batch"),
                    uri("https://a.example/batch"),
                    dns("a.example"),
                ],
            ),
            ("spiffe://a.example/b", vec![uri("spiffe://a.example/b")], vec![uri("spiffe://a.example/bc")]),
            (
                "*.A.example",
                vec![dns("w.a.example")],
                vec![dns("a.example"), dns("x.w.a.example"), dns("wa.example"), uri("w.a.example")],
            ),
            ("w.a.example", vec![dns("w.a.example")], vec![dns("v.a.example"), dns("w.a.example.b")]),
        ] {
            let pattern: NamePattern = pattern.parse().unwrap();
            for name in good {
                assert!(pattern.matches(&name), "{pattern} {name}");
            }
            for name in bad {
                assert!(!pattern.matches(&name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn a_pattern_that_would_hold_for_more_than_one_place_is_refused() {
        for text in [
            "",
            "*",
            "*.",
            "**",
            "spiffe://*",
            "spiffe://a.example*",
            "spiffe://*/a",
            "spiffe://*.a/*",
            "://a/*",
            "a..b",
            "w.*.example",
            "*a.example",
            "spiffe://a/*/b",
            "a b",
            "spiffe://a/b c",
            "*.*.a",
        ] {
            assert!(text.parse::<NamePattern>().is_err(), "{text}");
        }
    }
}
