//! Tokens of issuers: JSON Web Tokens (RFC 7519), read before anything in them is believed, and judged once their signature is
//! known to be right.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use relay_bridge::contract::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::identity::Issuer;

/// The longest token, in bytes.
pub(super) const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far the clocks of issuers may be off.
pub(super) const SKEW: Duration = Duration::from_secs(60);
/// The longest subject and key id, in bytes.
const TEXT_BYTES_MAX: usize = 2_048;
/// Fields of a header that point to keys, or change what the rest means. A token must not say whose key it is checked with.
const REFUSED_FIELDS: [&str; 5] = ["jku", "jwk", "x5u", "crit", "b64"];

/// A token as its text says, of which nothing is proven.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    /// The text that is signed.
    pub(super) message: &'a str,
    pub(super) signature: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    /// Chooses which of the configured issuers is asked, and says nothing else.
    pub(super) issuer: String,
    claims: Claims,
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<Audience>,
    exp: Option<f64>,
    iat: Option<f64>,
    nbf: Option<f64>,
}

/// One, or several of which one has to be relay's.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// The part of a token that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stated {
    pub(super) subject: String,
    /// From when on relay does not take it any more: its expiry, and the skew of clocks.
    pub(super) until: Timestamp,
}

/// A header, whose fields can't be there twice.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

/// Whether a text in `Authorization: Bearer` is a token, and no key.
pub(super) fn is_token(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

impl<'a> Unverified<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// The fault, in words that the caller is told.
    pub(super) fn read(text: &'a str) -> Result<Self, String> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(format!("the token has more than {TOKEN_BYTES_MAX} bytes"));
        }
        let no_token = || "the token can't be read: it has three parts in base64url".to_owned();
        let (message, signature) = text.rsplit_once('.').ok_or_else(no_token)?;
        let (header, claims) = message.split_once('.').ok_or_else(no_token)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| no_token());
        let (header, claims) = (decode(header)?, decode(claims)?);
        let fields: Map<String, Value> = serde_json::from_slice(&header).map_err(|_| no_token())?;
        if let Some(field) = REFUSED_FIELDS.iter().find(|field| fields.contains_key(**field)) {
            return Err(format!("the token has `{field}` in its header, which relay does not take"));
        }
        let Header { alg, kid } = serde_json::from_slice(&header).map_err(|_| no_token())?;
        let algorithm = match alg.as_str() {
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            "ES384" => Algorithm::ES384,
            _ => return Err("the token is signed by none of RS256, ES256 and ES384".to_owned()),
        };
        if kid.as_ref().is_some_and(|kid| kid.len() > TEXT_BYTES_MAX) {
            return Err("the token's key id is too long".to_owned());
        }
        let claims: Claims = serde_json::from_slice(&claims)
            .map_err(|_| "the token's claims can't be read: `iss`, `sub`, `aud`, `exp`, `iat`".to_owned())?;
        let issuer = claims.iss.clone().ok_or_else(|| "the token has no `iss`".to_owned())?;
        Ok(Self { message, signature, algorithm, key_id: kid, issuer, claims })
    }

    /// Whether `issuer` signs in this way at all.
    pub(super) fn is_signed_as(&self, issuer: &Issuer) -> Result<(), String> {
        match issuer.algorithms.contains(&self.algorithm) {
            true => Ok(()),
            false => Err(format!("the token is signed by {:?}, which its issuer does not use here", self.algorithm)),
        }
    }

    /// Its content, once its signature by `issuer` is known to be right.
    ///
    /// # Errors
    /// Why it is not taken, in words that the caller is told.
    pub(super) fn judge(&self, issuer: &Issuer, now: Timestamp) -> Result<Stated, String> {
        let Claims { sub, aud, exp, iat, nbf, .. } = &self.claims;
        let is_ours = match aud {
            Some(Audience::One(audience)) => *audience == issuer.audience,
            Some(Audience::Several(several)) => several.contains(&issuer.audience),
            None => false,
        };
        if !is_ours {
            return Err("the token is for another audience: ask its issuer for one whose `aud` is relay's".to_owned());
        }
        let (exp, iat) = (time("exp", *exp)?, time("iat", *iat)?);
        let subject = sub.as_ref().filter(|sub| !sub.is_empty() && sub.len() <= TEXT_BYTES_MAX);
        let subject = subject.ok_or_else(|| "the token has no `sub`".to_owned())?;
        let until = exp + SKEW;
        if until <= now {
            return Err(format!("the token expired at {exp}: ask its issuer for a new one"));
        }
        if iat > now + SKEW {
            return Err(format!("the token was issued at {iat}, which is in the future; relay's clock says {now}"));
        }
        if let Some(nbf) = nbf.map(|nbf| time("nbf", Some(nbf))).transpose()?
            && nbf > now + SKEW
        {
            return Err(format!("the token is not valid before {nbf}; relay's clock says {now}"));
        }
        let lifetime = exp.as_millis().saturating_sub(iat.as_millis());
        if exp <= iat || u128::from(lifetime.unsigned_abs()) > issuer.lifetime_max.as_millis() {
            let most = issuer.lifetime_max.as_secs();
            return Err(format!(
                "the token lives longer than the {most} s that relay allows its issuer, or not at all"
            ));
        }
        Ok(Stated { subject: subject.clone(), until })
    }
}

/// A `NumericDate`: seconds since 1970, with or without a fraction.
fn time(claim: &str, seconds: Option<f64>) -> Result<Timestamp, String> {
    /// The last second of the year 9999.
    const LAST: f64 = 253_402_300_799.0;
    let seconds = seconds.ok_or_else(|| format!("the token has no `{claim}`"))?;
    if !(0.0..=LAST).contains(&seconds) {
        return Err(format!("the token's `{claim}` is no time"));
    }
    let millis = Duration::from_secs_f64(seconds).as_millis();
    Ok(Timestamp::from_millis(millis.try_into().unwrap_or_default()))
}
