//! Access to the admin port. With a token, only callers that send it may ask. Without one, every caller that reaches
//! this machine's loopback addresses may ask, except web pages of others in a browser there.

use std::fmt;
use std::net::IpAddr;

use http::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Admin;
use crate::api::{Problem, Slug};

/// Below this a token can be guessed.
const TOKEN_CHARS_MIN: usize = 16;

/// The token that callers of the admin port send as `Authorization: Bearer TOKEN`. Only its hash is kept.
#[derive(Clone)]
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

    fn is(&self, text: &str) -> bool {
        self.0.ct_eq(&<[u8; 32]>::from(Sha256::digest(text.trim()))).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Whether the request may be answered.
///
/// # Errors
/// `unauthenticated` or `forbidden`.
pub(super) fn check(admin: &Admin, parts: &Parts) -> Result<(), Box<Problem>> {
    match &admin.token {
        Some(token) => check_token(token, parts),
        None => check_local(parts),
    }
}

fn check_token(token: &Token, parts: &Parts) -> Result<(), Box<Problem>> {
    let header = parts.headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    let bearer = header.and_then(|header| header.split_once(' '));
    let refused = |why| Err(Box::new(Problem::new(Slug::Unauthenticated, why)));
    match bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) {
        Some((_, text)) if token.is(text) => Ok(()),
        Some(_) => refused("this is not the admin port's token: check --admin-token-file"),
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
    let Some(host) = host.filter(is_local) else {
        return refused("the request's host is neither localhost nor a loopback address");
    };
    let origins = parts.headers.get_all(ORIGIN).iter();
    let own = format!("http://{host}");
    if origins.map(HeaderValue::as_bytes).any(|origin| !origin.eq_ignore_ascii_case(own.as_bytes())) {
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
        assert!(check_token(&token, &parts(&[("authorization", "Bearer 0123456789abcdef")])).is_ok());
        for header in ["Bearer 0123456789abcde", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert!(check_token(&token, &parts(&[("authorization", header)])).is_err(), "{header}");
        }
        assert!(check_token(&token, &parts(&[])).is_err());
        assert!(Token::new("0123456789abcde").is_err() && Token::new("0123456789 abcdef").is_err());
        assert!(!format!("{token:?}").contains('0'));
    }
}
