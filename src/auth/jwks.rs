//! The keys of an issuer, as a JSON Web Key Set (RFC 7517) has them. Only public keys of RSA and of the curves P-256 and P-384
//! are taken; others are skipped, as the standard asks.

use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// The largest set, in bytes.
pub(super) const SET_BYTES_MAX: usize = 256 * 1024;
/// The most keys of a set.
const KEYS_MAX: usize = 64;

/// The keys of a set that can verify tokens.
#[derive(Clone, Debug)]
pub(super) struct KeySet(Vec<VerifyingKey>);

/// One of them.
#[derive(Clone)]
pub(super) struct VerifyingKey {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
    /// The SHA-256 of what the key is: the same key has the same in the next set.
    pub(super) digest: [u8; 32],
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey")
            .field("id", &self.id)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// Why no key of a set is the one of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoKey {
    /// The set has several, and the token names none.
    Unnamed,
    /// The set has none of this name.
    Unknown,
    /// The set's key is for other algorithms.
    Unfit,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

impl KeySet {
    /// The keys in `text`.
    ///
    /// # Errors
    /// If it is no set, too large, or has no key that relay can use; in words for the operator.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        if text.len() > SET_BYTES_MAX {
            return Err(format!("the set of keys has more than {SET_BYTES_MAX} bytes"));
        }
        let document: Document =
            serde_json::from_slice(text).map_err(|error| format!("this is no set of keys ({error})"))?;
        if document.keys.len() > KEYS_MAX {
            return Err(format!("the set has {} keys, and {KEYS_MAX} at most are taken", document.keys.len()));
        }
        let keys: Vec<_> = document.keys.into_iter().filter_map(VerifyingKey::read).collect();
        if keys.is_empty() {
            return Err("the set has no key for RS256, ES256 or ES384".to_owned());
        }
        Ok(Self(keys))
    }

    /// The key for a token that names `id` and was signed by `algorithm`.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<&VerifyingKey, NoKey> {
        if id.is_none() && self.0.len() > 1 {
            return Err(NoKey::Unnamed);
        }
        // A set of one may leave the name out, and so may its tokens.
        let is_alone = self.0.len() == 1;
        let is_named = |key: &&VerifyingKey| key.id.as_deref() == id || is_alone && (key.id.is_none() || id.is_none());
        let mut named = self.0.iter().filter(is_named).peekable();
        named.peek().ok_or(NoKey::Unknown)?;
        named.find(|key| key.algorithms.contains(&algorithm)).ok_or(NoKey::Unfit)
    }

    /// Whether the key of this digest is among them.
    pub(super) fn has(&self, digest: &[u8; 32]) -> bool {
        self.0.iter().any(|key| key.digest == *digest)
    }
}

impl VerifyingKey {
    /// `None` for a key that is for something else.
    fn read(value: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
            return None;
        }
        // The algorithm follows from the key's type, so that a token can't choose another one.
        let (algorithms, text): (&'static [Algorithm], String) = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) => (&[Algorithm::RS256], format!("RSA {} {}", rsa.n, rsa.e)),
            AlgorithmParameters::EllipticCurve(ec) => match ec.curve {
                EllipticCurve::P256 => (&[Algorithm::ES256], format!("P-256 {} {}", ec.x, ec.y)),
                EllipticCurve::P384 => (&[Algorithm::ES384], format!("P-384 {} {}", ec.x, ec.y)),
                _ => return None,
            },
            _ => return None,
        };
        let named = jwk.common.key_algorithm.map(|algorithm| algorithm.to_string());
        if named.is_some_and(|named| !algorithms.iter().any(|algorithm| format!("{algorithm:?}") == named)) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithms, key, digest: Sha256::digest(text.as_bytes()).into() })
    }

    /// Whether `signature`, as the token has it, is of `message` by this key.
    pub(super) fn verifies(&self, signature: &str, message: &[u8], algorithm: Algorithm) -> bool {
        jsonwebtoken::crypto::verify(signature, message, &self.key, algorithm).unwrap_or(false)
    }
}
