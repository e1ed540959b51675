//! Access to the admin port. With tokens, only callers that send one may ask, and each what its rights say. Without any, every
//! caller that reaches this machine's loopback addresses may ask, except web pages of others in a browser there.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use http::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};
use relay_bridge::support::lock;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Admin;
use crate::api::{Problem, Slug};
use crate::auth::operators::AdminRight;

/// Below this a token can be guessed.
const TOKEN_CHARS_MIN: usize = 16;

/// A token that callers of the admin port send as `Authorization: Bearer TOKEN`. Only its hash is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

/// The text can't be a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token has at least {TOKEN_CHARS_MIN} visible ASCII characters, such as those of `openssl rand -hex 32`")]
pub struct InvalidToken;

impl Token {
    /// Reads a token; white space around it is not part of it.
    ///
    /// # Errors
    /// If it is short enough to be guessed, or can't be sent in a header.
    pub fn new(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        if text.len() < TOKEN_CHARS_MIN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidToken);
        }
        Ok(Self(Sha256::digest(text).into()))
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    fn is(&self, sent: &[u8; 32]) -> bool {
        self.0.ct_eq(sent).into()
    }
}

/// The holder of a token.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Its name, for the audit.
    pub name: String,
    /// The calls that it may make.
    pub rights: Vec<AdminRight>,
    /// The text that it sends.
    pub token: Token,
}

/// The tokens of the admin port, which can be replaced while it is open.
#[derive(Debug)]
pub struct Tokens(Mutex<Arc<[Holder]>>);

impl Tokens {
    /// The tokens of these holders. With none of them nobody is let in.
    #[must_use]
    pub fn new(holders: Vec<Holder>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(holders.into())))
    }

    /// Lets in these from now on, and no others.
    pub fn replace(&self, holders: Vec<Holder>) {
        *lock(&self.0) = holders.into();
    }

    /// The holder of a token. Every token is compared, so that the time tells nothing of which one it is.
    fn holder(&self, text: &str) -> Option<Holder> {
        let holders = Arc::clone(&lock(&self.0));
        let sent = Sha256::digest(text.trim()).into();
        let found =
            holders.iter().fold(None, |found, holder| if holder.token.is(&sent) { Some(holder) } else { found });
        found.cloned()
    }
}

/// A caller that was let in.
#[derive(Clone, Debug)]
pub(super) struct Operator {
    /// The name of its token; `None` where nobody needs one.
    pub(super) name: Option<String>,
    rights: Vec<AdminRight>,
}

impl Operator {
    /// Whether the caller may make a call.
    ///
    /// # Errors
    /// `forbidden`, with the right that is missing.
    pub(super) fn may(&self, method: &Method, path: &str) -> Result<(), Box<Problem>> {
        let right = right(method, path);
        // A scraper of metrics is told the same there.
        let scrapes = right == AdminRight::Read && is_scale(path) && self.rights.contains(&AdminRight::Metrics);
        if scrapes || self.rights.contains(&right) {
            return Ok(());
        }
        let detail = format!(
            "this token does not have the right `{right}`, which this call needs; nothing was done: use a token that has it"
        );
        Err(Box::new(Problem::new(Slug::Forbidden, detail)))
    }
}

/// Whether a path is that of a queue's figure for scalers.
fn is_scale(path: &str) -> bool {
    let queue = path.strip_prefix("/v1/queues/").and_then(|rest| rest.strip_suffix("/scale"));
    queue.is_some_and(|queue| !queue.contains('/'))
}

/// The right that a call needs.
fn right(method: &Method, path: &str) -> AdminRight {
    match *method {
        Method::GET | Method::HEAD if path == "/metrics" => AdminRight::Metrics,
        Method::GET | Method::HEAD => AdminRight::Read,
        _ => AdminRight::Operate,
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The caller of a request, if anything may be answered to it.
///
/// # Errors
/// `unauthenticated` or `forbidden`.
pub(super) fn check(admin: &Admin, parts: &Parts) -> Result<Operator, Box<Problem>> {
    match &admin.tokens {
        Some(tokens) => check_token(tokens, parts),
        None => check_local(parts).map(|()| Operator { name: None, rights: AdminRight::ALL.to_vec() }),
    }
}

fn check_token(tokens: &Tokens, parts: &Parts) -> Result<Operator, Box<Problem>> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    let bearer = header.and_then(|header| header.split_once(' '));
    let refused = |why| Err(Box::new(Problem::new(Slug::Unauthenticated, why)));
    match bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) {
        Some((_, text)) => match tokens.holder(text) {
            Some(Holder { name, rights, .. }) => Ok(Operator { name: Some(name), rights }),
            None => refused("this is no token of the admin port: check --admin-token-file, or [[admin_token]]"),
        },
        None => refused("no credentials: send `Authorization: Bearer <admin token>`"),
    }
}

/// A page of another site could send requests to a loopback address, and read the answers under a name of its own that
/// leads there.
fn check_local(parts: &Parts) -> Result<(), Box<Problem>> {
    let refused = |why: &str| {
        let detail = format!(
            "{why}, and this port has no token, so only programs and pages of this machine may use it: call it at \
             http://localhost or http://127.0.0.1, or give it a token"
        );
        Err(Box::new(Problem::new(Slug::Forbidden, detail)))
    };
    let sites = parts.headers.get_all("sec-fetch-site").iter();
    if sites.map(HeaderValue::as_bytes).any(|site| site != b"none" && site != b"same-origin") {
        return refused("the request comes from another site's web page (Sec-Fetch-Site)");
    }
    let host = parts.headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    // HTTP/2 has it in the target.
    let host = host.or_else(|| parts.uri.authority().filter(|_| parts.version == Version::HTTP_2).cloned());
    let Some(host) = host.filter(is_local) else {
        return refused("the request's host is neither localhost nor a loopback address");
    };
    let origins = parts.headers.get_all(ORIGIN).iter();
    let own = [format!("http://{host}"), format!("https://{host}")];
    let is_own = |origin: &[u8]| own.iter().any(|own| origin.eq_ignore_ascii_case(own.as_bytes()));
    if origins.map(HeaderValue::as_bytes).any(|origin| !is_own(origin)) {
        return refused("the request's Origin is another one");
    }
    Ok(())
}

fn is_local(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let request =
            headers.iter().fold(Request::get("/metrics"), |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_web_page_of_another_site_may_not_ask() {
        let local = ("host", "127.0.0.1:7412");
        assert!(check_local(&parts(&[local])).is_ok());
        assert!(check_local(&parts(&[("host", "localhost:7412"), ("origin", "http://localhost:7412")])).is_ok());
        assert!(check_local(&parts(&[("host", "[::1]:7412"), ("sec-fetch-site", "same-origin")])).is_ok());
        for headers in [
            &[][..],
            &[("host", "rebound.example")],
            &[local, ("origin", "http://evil.example")],
            &[local, ("origin", "null")],
            &[local, ("sec-fetch-site", "cross-site")],
            &[local, ("sec-fetch-site", "same-site")],
        ] {
            assert!(check_local(&parts(headers)).is_err(), "{headers:?}");
        }
    }

    #[test]
    fn only_the_whole_token_lets_in() {
        let token = Token::new(" 0123456789abcdef\n").unwrap();
        let tokens = Tokens::new(vec![Holder { name: "a".to_owned(), rights: Vec::new(), token: token.clone() }]);
        assert!(check_token(&tokens, &parts(&[("authorization", "Bearer 0123456789abcdef")])).is_ok());
        for header in ["Bearer 0123456789abcde", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert!(check_token(&tokens, &parts(&[("authorization", header)])).is_err(), "{header}");
        }
        assert!(check_token(&tokens, &parts(&[])).is_err());
        assert!(Token::new("0123456789abcde").is_err() && Token::new("0123456789 abcdef").is_err());
        assert!(!format!("{token:?}").contains('0'));
        tokens.replace(Vec::new());
        let late = parts(&[("authorization", "Bearer 0123456789abcdef")]);
        assert!(check_token(&tokens, &late).is_err(), "it was taken out");
    }

    #[test]
    fn a_token_makes_the_calls_that_its_rights_say_and_no_other() {
        let calls = [
            (Method::GET, "/metrics"),
            (Method::GET, "/v1/dead"),
            (Method::POST, "/v1/queues/a/pause"),
            (Method::DELETE, "/v1/dead/a/b"),
            (Method::POST, "/v1/reload"),
            // A method that nothing has yet is no way around.
            (Method::PUT, "/metrics"),
        ];
        let may = |right| {
            let operator = Operator { name: None, rights: vec![right] };
            calls.each_ref().map(|(method, path)| operator.may(method, path).is_ok())
        };
        assert_eq!(may(AdminRight::Metrics), [true, false, false, false, false, false]);
        assert_eq!(may(AdminRight::Read), [false, true, false, false, false, false]);
        assert_eq!(may(AdminRight::Operate), [false, false, true, true, true, true]);
        let refused = Operator { name: None, rights: Vec::new() }.may(&Method::DELETE, "/v1/dead/a/b").unwrap_err();
        assert!(refused.slug == Slug::Forbidden && refused.detail.contains("`operate`"), "{}", refused.detail);
    }
}
