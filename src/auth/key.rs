//! A key as its owner has it: `rlyk_<key id>_<secret><checksum>`. The secret is 43 random letters and digits, 256 bits. The checksum is
//! the CRC32 of all that stands in front of it, so that a scanner for secrets finds keys and nothing else.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::keys::{KeysError, SecretDigest, hex};

/// The longest id or secret of a key, in bytes.
const PART_BYTES_MAX: usize = 128;
const ID_BYTES: usize = 6;
/// The beginning of every key, for scanners. Keys of before have the form `<key id>.<secret>`.
const PREFIX: &str = "rlyk_";
/// The letters and digits of a secret.
const SECRET_LETTERS: usize = 43;
const CHECKSUM_LETTERS: usize = 6;
const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key as its owner has it: `rlyk_<key id>_<secret><checksum>`, or `<key id>.<secret>` as releases of before made them. Printing
/// it shows the secret; `Debug` does not.
#[derive(Clone)]
pub struct Key {
    id: String,
    secret: String,
    /// Whether it has the form of before.
    is_old: bool,
}

/// The text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It has the form of none.
    #[error("not a key: it has the form `rlyk_<key id>_<secret>`")]
    Form,
    /// It has the form of one, and another checksum than its letters: something was lost or mistyped.
    #[error("the key's checksum is wrong: it was not copied as a whole, or a letter of it is another one")]
    Checksum,
}

impl Key {
    /// The public part, which names the key in lists and logs.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The hash that is stored.
    #[must_use]
    pub fn digest(&self) -> SecretDigest {
        SecretDigest::of(Sha256::digest(self.secret.as_bytes()).into())
    }

    pub(super) fn random() -> Result<Self, KeysError> {
        let no_bytes = |error| KeysError::from(format!("the system gives no random bytes: {error}"));
        let mut id = [0; ID_BYTES];
        getrandom::fill(&mut id).map_err(no_bytes)?;
        let mut secret = String::new();
        while secret.len() < SECRET_LETTERS {
            let mut bytes = [0; 64];
            getrandom::fill(&mut bytes).map_err(no_bytes)?;
            // Each letter as likely as any other: a byte that would make the first ones likelier is dropped.
            let fair = bytes.into_iter().map(|byte| usize::from(byte & 63)).filter(|at| *at < LETTERS.len());
            secret.extend(fair.take(SECRET_LETTERS - secret.len()).map(|at| char::from(LETTERS[at])));
        }
        Ok(Self { id: hex(&id), secret, is_old: false })
    }
}

/// The CRC32 of IEEE 802.3 (as in zip and PNG) over `text`, as six letters of base 62 with the highest first.
fn checksum(text: &str) -> String {
    let mut crc = u32::MAX;
    for byte in text.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
    }
    let (mut rest, mut letters) = (!crc as usize, [b'0'; CHECKSUM_LETTERS]);
    for letter in letters.iter_mut().rev() {
        *letter = LETTERS[rest % LETTERS.len()];
        rest /= LETTERS.len();
    }
    letters.into_iter().map(char::from).collect()
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let part =
            |text: &str| (1..=PART_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if let Some((id, secret)) = text.split_once('.') {
            let fits = part(id) && part(secret);
            let old = || Self { id: id.to_owned(), secret: secret.to_owned(), is_old: true };
            return fits.then(old).ok_or(InvalidKey::Form);
        }
        let (id, rest) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(InvalidKey::Form)?;
        let is_letters = rest.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !part(id) || !is_letters || rest.len() > PART_BYTES_MAX {
            return Err(InvalidKey::Form);
        }
        // A key that was cut is told as one.
        let (secret, end) = rest.split_at_checked(SECRET_LETTERS).ok_or(InvalidKey::Checksum)?;
        let checked = text.len().saturating_sub(end.len());
        if end != checksum(&text[..checked]) {
            return Err(InvalidKey::Checksum);
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), is_old: false })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, secret, is_old } = self;
        if *is_old {
            return write!(f, "{id}.{secret}");
        }
        let text = format!("{PREFIX}{id}_{secret}");
        write!(f, "{text}{}", checksum(&text))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}_…", self.id)
    }
}

/// The id in the text of a key, whatever its checksum is; `None` if the text has the form of no key.
#[cfg(feature = "cli")]
pub(crate) fn id_in(text: &str) -> Option<&str> {
    let new = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_'));
    new.or_else(|| text.split_once('.')).map(|(id, _)| id)
}
