//! Reads a list of factors, and judges whether it says enough about a caller.

use toml::de::{DeTable, DeValue};

use super::Factor;
use super::read::{Reader, Value};
use crate::auth::presented::CertificateName;

/// The forms of a factor.
const FACTORS: &str = "write \"key\", { key = \"<key id>\" }, { mtls = \"spiffe://...\" } or \"dns:...\", { jwt = { issuer = \
                       \"https://...\", subject = \"...\" } }, { vpce = [\"vpce-...\"] }, or \"nats\" alone";

/// The factors of one list.
pub(super) fn list(reader: &mut Reader<'_>, value: &Value<'_>, is_client: bool) -> Option<Vec<Factor>> {
    let Some(array) = value.get_ref().as_array().filter(|array| !array.is_empty()) else {
        reader.mistake(value.span(), "each entry of `any` is a list of factors, all of which have to hold", FACTORS);
        return None;
    };
    let factors: Vec<_> = array.iter().filter_map(|value| factor(reader, value)).collect();
    if factors.len() < array.len() {
        return None;
    }
    let count = |is: fn(&Factor) -> bool| factors.iter().filter(|factor| is(factor)).count();
    let keys = count(|factor| matches!(factor, Factor::Key(_)));
    let tokens = count(|factor| matches!(factor, Factor::Token { .. }));
    let certificates = count(|factor| matches!(factor, Factor::Certificate(_)));
    let endpoints = count(|factor| matches!(factor, Factor::Endpoints(_)));
    let nats = count(|factor| matches!(factor, Factor::Nats));
    let mistake = match (keys, tokens, certificates, endpoints, nats) {
        (0, 0, 0, _, 0) => Some((
            "a VPC endpoint alone proves nothing: whoever reaches the listener past the balancer can name it",
            "add \"key\", a certificate or a token to the list",
        )),
        (1.., 1.., ..) => Some((
            "a request can't bring a key and a token: both travel as `Authorization: Bearer`",
            "leave one of them out, or make two lists",
        )),
        (.., 1..) if factors.len() > 1 => {
            Some(("nothing but NATS itself is known of a request over NATS", "write [\"nats\"] as a list of its own"))
        }
        (.., 1..) if !is_client => Some(("no worker comes over NATS", "leave the list out")),
        (2.., ..) | (_, 2.., ..) | (_, _, 2.., ..) | (_, _, _, 2.., _) => {
            Some(("a list has each kind of factor once", "make two lists, or put all endpoints into one `vpce`"))
        }
        _ => None,
    };
    match mistake {
        Some((what, fix)) => {
            reader.mistake(value.span(), what, fix);
            None
        }
        None => Some(factors),
    }
}

fn factor(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Factor> {
    match value.get_ref() {
        DeValue::String(text) if text == "key" => Some(Factor::Key(None)),
        DeValue::String(text) if text == "nats" => Some(Factor::Nats),
        DeValue::Table(table) if table.len() == 1 => of_table(reader, value, table),
        _ => {
            reader.mistake(value.span(), "this is no factor", FACTORS);
            None
        }
    }
}

fn of_table(reader: &mut Reader<'_>, value: &Value<'_>, table: &DeTable<'_>) -> Option<Factor> {
    let (key, inner) = table.iter().next()?;
    match key.get_ref().as_ref() {
        "key" => reader.text(inner, FACTORS).map(|id| Factor::Key(Some(id))),
        "mtls" => {
            let text: String = reader.text(inner, FACTORS)?;
            let name = match text.strip_prefix("dns:") {
                Some(name) if is_dns_name(name) => Some(CertificateName::Dns(name.to_owned())),
                None if is_spiffe(&text) => Some(CertificateName::Uri(text.clone())),
                _ => None,
            };
            if name.is_none() {
                let fix =
                    "write \"spiffe://a.example/batch\", or \"dns:batch.a.example\" in lower case and without `*`";
                reader.mistake(inner.span(), format!("`{text}` is no name of a certificate"), fix);
            }
            name.map(Factor::Certificate)
        }
        "jwt" => {
            let Some(claims) = inner.get_ref().as_table() else {
                reader.mistake(inner.span(), "`jwt` has an issuer and a subject", FACTORS);
                return None;
            };
            reader.only("jwt", claims, &["issuer", "subject"]);
            let issuer = reader.required(("jwt", inner.span()), claims, "issuer", FACTORS);
            let subject = reader.required(("jwt", inner.span()), claims, "subject", FACTORS);
            Some(Factor::Token { issuer: issuer?, subject: subject? })
        }
        "vpce" => {
            let ids: Vec<String> = reader.texts(inner, FACTORS)?;
            if let Some(wrong) = ids.iter().find(|id| !is_endpoint(id)) {
                let fix = "write `vpce-` and the 8 to 32 hexadecimal digits in lower case";
                reader.mistake(inner.span(), format!("`{wrong}` is no VPC endpoint"), fix);
                return None;
            }
            Some(Factor::Endpoints(ids))
        }
        _ => {
            reader.mistake(value.span(), format!("`{}` is no factor", key.get_ref()), FACTORS);
            None
        }
    }
}

fn is_endpoint(id: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    id.strip_prefix("vpce-").is_some_and(|id| (8..=32).contains(&id.len()) && id.bytes().all(digit))
}

/// A trust domain, and a path below it: <https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/>.
fn is_spiffe(text: &str) -> bool {
    let domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let path = |byte: u8| byte.is_ascii_alphanumeric() || b".-_/".contains(&byte);
    let parts = text.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
    parts.is_some_and(|(trust, rest)| {
        !trust.is_empty() && !rest.is_empty() && trust.bytes().all(domain) && rest.bytes().all(path)
    })
}

fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.split('.').count() > 1 && text.split('.').all(label)
}
