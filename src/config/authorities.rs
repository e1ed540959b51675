//! `[[client_ca]]` tables: the authorities that sign clients' certificates.

use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::kind::{Kind, Value};
use super::mistake::meant;
use super::reader::{Reader, Table};
use crate::tls::{AUTHORITIES_MAX, AuthorityFiles, NamePattern};

/// The list of authorities.
pub(super) const CLIENT_CA: &str = "client_ca";

const FILE: &str = "client_ca.file";
const NAMES: &str = "client_ca.names";
const KEYS: [(&str, Kind); 3] = [("file", Kind::Path), ("names", Kind::List), ("crl", Kind::Path)];

/// Reads the authorities, as far as they can be read, each with its line. Their values are added to `values`.
pub(super) fn read(
    reader: &mut Reader<'_>,
    span: Range<usize>,
    value: &Spanned<DeValue<'_>>,
    values: &mut Vec<(String, Value, usize)>,
) -> Vec<(AuthorityFiles, usize)> {
    let mut authorities = Vec::new();
    let entries = reader.entries(CLIENT_CA, span.clone(), value);
    if entries.len() > AUTHORITIES_MAX {
        let what = format!("there are more than {AUTHORITIES_MAX}: each may be asked about a certificate");
        reader.mistake(span, CLIENT_CA, what, "let one authority sign for several clients");
        return authorities;
    }
    for (table, span) in entries {
        if let Some(authority) = authority(reader, &span, table, values) {
            authorities.push((authority, reader.line(&span)));
        }
    }
    authorities
}

fn authority(
    reader: &mut Reader<'_>,
    span: &Range<usize>,
    table: &Table<'_>,
    values: &mut Vec<(String, Value, usize)>,
) -> Option<AuthorityFiles> {
    let (mut file, mut names, mut crl) = (None, None, None);
    for (key, value) in table {
        let full = format!("{CLIENT_CA}.{}", key.get_ref());
        let Some((known, kind)) = KEYS.iter().find(|(known, _)| known == key.get_ref()) else {
            let known = KEYS.iter().map(|(known, _)| *known);
            let fix = match meant(key.get_ref(), known.clone()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("there are {}", known.collect::<Vec<_>>().join(", ")),
            };
            reader.mistake(key.span(), &full, "there is no such setting", fix);
            continue;
        };
        let read = reader.value(&full, *kind, value);
        values.extend(read.clone().map(|read| (full, read, reader.line(&key.span()))));
        match (*known, read) {
            ("file", Some(value)) => file = Some(PathBuf::from(value.to_string())),
            ("crl", Some(value)) => crl = Some(PathBuf::from(value.to_string())),
            ("names", Some(Value::List(texts))) => names = Some(patterns(reader, value.span(), &texts)),
            // Its mistake is noted, and it is not missing.
            ("file", None) => file = Some(PathBuf::new()),
            ("names", None) => names = Some(Vec::new()),
            _ => {}
        }
    }
    if file.is_none() {
        reader.mistake(span.clone(), FILE, "it is missing", "write file = \"clients.pem\", with its certificate");
    }
    if names.is_none() {
        let fix = "write names = [\"spiffe://a.example/*\"], with those that it may give";
        reader.mistake(span.clone(), NAMES, "it is missing, and without it no certificate would count", fix);
    }
    Some(AuthorityFiles { file: file?, names: names?, crl })
}

fn patterns(reader: &mut Reader<'_>, span: Range<usize>, texts: &[String]) -> Vec<NamePattern> {
    let mut patterns = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(pattern) => patterns.push(pattern),
            Err(_) => {
                let fix = "write \"spiffe://a.example/*\", \"*.a.example\", or a name without `*`";
                reader.mistake(span.clone(), NAMES, format!("{text:?} is no pattern of names"), fix);
            }
        }
    }
    patterns
}
