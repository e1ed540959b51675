//! Files that are no PEM, or not the right one, told so that people know what to do about them.

use rustls::pki_types::pem::Error;

/// The objects that relay reads of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Certificate,
    Key,
    /// A list of revoked certificates.
    List,
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::List => "list of revoked certificates",
        }
    }

    /// The end of the line that begins one.
    fn label(self) -> &'static str {
        match self {
            Self::Certificate => "CERTIFICATE-----",
            Self::Key => "PRIVATE KEY-----",
            Self::List => "X509 CRL-----",
        }
    }
}

/// Why nothing that is wanted was found in `bytes`.
pub(super) fn missing(wanted: Wanted, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let name = wanted.name();
    if wanted == Wanted::Key && is_encrypted(&text) {
        return "its private key is encrypted, and nobody tells relay the password: `openssl pkey -in FILE -out NEW` writes one without".to_owned();
    }
    let others = [Wanted::Certificate, Wanted::Key, Wanted::List].into_iter().filter(|other| *other != wanted);
    match others.clone().find(|other| text.contains(other.label())) {
        Some(other) => format!("there is no {name} in it, but a {}: were the files swapped?", other.name()),
        None if text.contains("-----BEGIN ") => format!("there is no {name} in it"),
        None => format!("there is no {name} in it: it has to be PEM, text that begins with `-----BEGIN`"),
    }
}

/// Why `bytes` could not be read.
pub(super) fn unreadable(wanted: Wanted, bytes: &[u8], error: &Error) -> String {
    match error {
        Error::NoItemsFound => missing(wanted, bytes),
        Error::MissingSectionEnd { end_marker } => {
            let end = String::from_utf8_lossy(end_marker);
            format!("it was cut: there is no line `-----END {end}-----`")
        }
        Error::Base64Decode(_) if wanted == Wanted::Key && is_encrypted(&String::from_utf8_lossy(bytes)) => {
            missing(wanted, bytes)
        }
        Error::Base64Decode(why) => format!("a line in it is not base64 ({why}): copy the file anew"),
        error => error.to_string(),
    }
}

/// By either of the forms that keys with a password have.
fn is_encrypted(text: &str) -> bool {
    text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED")
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    fn pem(label: &str, body: &str) -> String {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    #[test]
    fn a_key_that_can_not_be_read_is_told_with_what_to_do() {
        let legacy = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA";
        for (text, told) in [
            (pem("ENCRYPTED PRIVATE KEY", "AAAA"), "is encrypted"),
            (pem("EC PRIVATE KEY", legacy), "is encrypted"),
            (pem("CERTIFICATE", "AAAA"), "but a certificate: were the files swapped?"),
            (pem("EC PARAMETERS", "AAAA"), "there is no private key in it"),
            ("\u{30}\u{82}".to_owned(), "it has to be PEM"),
            ("-----BEGIN PRIVATE KEY-----\nAAAA\n".to_owned(), "there is no line `-----END PRIVATE KEY-----`"),
            (pem("PRIVATE KEY", "A:AA"), "not base64"),
        ] {
            let error = PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap_err();
            let said = unreadable(Wanted::Key, text.as_bytes(), &error);
            assert!(said.contains(told), "{text}: {said}");
        }
    }

    #[test]
    fn a_key_in_the_place_of_a_certificate_is_told() {
        let said = missing(Wanted::Certificate, pem("PRIVATE KEY", "AAAA").as_bytes());
        assert_eq!(said, "there is no certificate in it, but a private key: were the files swapped?");
        assert!(missing(Wanted::List, pem("CERTIFICATE", "AAAA").as_bytes()).contains("but a certificate"));
    }
}
