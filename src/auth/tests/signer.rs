//! An issuer of the test's own: keys, tokens, and the files that name both.

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use relay_bridge::contract::Timestamp;
use serde_json::{Value, json};

use super::super::Files;
use super::*;

pub(super) const ISSUER: &str = "https://issuer.example";

/// A key that signs.
pub(super) struct Signer {
    pub(super) id: String,
    pub(super) algorithm: Algorithm,
    pub(super) key: EncodingKey,
}

impl Signer {
    pub(super) fn new(id: &str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::RS256 => {
                let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048);
                EncodingKey::from_rsa_pem(pair.unwrap().serialize_pem().as_bytes()).unwrap()
            }
            Algorithm::ES384 => {
                let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
                EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
            }
            _ => {
                let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
                EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
            }
        };
        Self { id: id.to_owned(), algorithm, key }
    }

    /// The public key, as a set has it.
    pub(super) fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.clone());
        serde_json::to_value(jwk).unwrap()
    }

    /// A token with these claims.
    pub(super) fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.clone());
        encode(&header, claims, &self.key).unwrap()
    }
}

/// The claims of a good token for half an hour.
pub(super) fn claims(now: Timestamp, subject: &str) -> Value {
    let now = now.as_millis() / 1_000;
    json!({ "iss": ISSUER, "aud": "relay", "sub": subject, "iat": now, "nbf": now, "exp": now + 1_800 })
}

pub(super) fn set(keys: &[&Signer]) -> String {
    json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string()
}

/// The lines of an issuer whose keys are in `jwks.json`.
pub(super) const ISSUER_OF_FILE: &str = "[[issuer]]\nurl = \"https://issuer.example\"\naudience = \"relay\"\nalgorithms = \
                                         [\"RS256\", \"ES256\", \"ES384\"]\nfile = \"jwks.json\"\n";

impl Bench {
    /// Writes a file beside the keys.
    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).unwrap();
    }

    /// An authenticator of the keys and `clients.toml`.
    pub(super) fn open(&self) -> Result<Authenticator, Mistakes> {
        let clients = Some(self.directory.path().join("clients.toml"));
        let keys = self.file.path().exists().then(|| self.file.path().to_owned());
        Authenticator::open(Files { keys, clients }, self.clock.clone())
    }

    /// The same with `text` in `clients.toml`.
    pub(super) fn with_clients(&self, text: &str) -> Authenticator {
        self.write("clients.toml", text);
        self.open().unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }
}

/// Judges what needs nobody else.
pub(super) fn show(to: &Authenticator, presented: Presented<'_>) -> Result<Caller, Refused> {
    to.authenticate(presented).now_or_never().expect("nobody else has to be asked")
}
