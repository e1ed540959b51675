//! Reads an identity file whole, and finds every mistake in it at once.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use relay_bridge::contract::{ClientId, QueueName};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::mistake::Mistake;
use super::super::rights::{Right, Rights};
use super::{Factor, Identity, Issuer, KeySource, Principal, Principals, factors};
use crate::api::DurationText;

/// Clients, and workers, of a file at most.
const PRINCIPALS_MAX: usize = 4_096;
/// Issuers of a file at most: each has keys in memory.
const ISSUERS_MAX: usize = 64;
/// Lists of a client, and values of a list, at most.
const LIST_MAX: usize = 100;
/// The longest text, in bytes.
const TEXT_BYTES_MAX: usize = 2_048;
/// The longest lifetime of a token where its issuer says nothing, and the longest that an issuer may say.
const LIFETIME: Duration = Duration::from_secs(3_600);
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3_600);

pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// A file on its way to what it says.
pub(super) struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    mistakes: Vec<Mistake>,
}

/// The identity in the `text` of the file at `path`.
///
/// # Errors
/// All mistakes, by line.
pub(in super::super) fn read(path: &Path, text: &str) -> Result<Identity, Vec<Mistake>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { path, text, mistakes: Vec::new() };
    for error in errors {
        let fix = "correct the line, or leave out what is there twice; https://toml.io has the syntax";
        reader.mistake(error.span().unwrap_or_default(), error.message(), fix);
    }
    let (mut clients, mut workers, mut issuers) = (Vec::new(), Vec::new(), Vec::new());
    for (key, value) in document.get_ref() {
        match key.get_ref().as_ref() {
            "client" => clients = reader.principals("client", key.span(), value),
            "worker" => workers = reader.principals("worker", key.span(), value),
            "issuer" => issuers = reader.issuers(key.span(), value),
            name => {
                let fix = "there are [[client]], [[worker]] and [[issuer]]";
                reader.mistake(key.span(), format!("there is no table `{name}`"), fix);
            }
        }
    }
    reader.compare(&clients, &issuers);
    reader.compare(&workers, &issuers);
    if reader.mistakes.is_empty() {
        return Ok(Identity { clients: Principals::new(clients), workers: Principals::new(workers), issuers });
    }
    reader.mistakes.sort_by_key(|mistake| mistake.line);
    Err(reader.mistakes)
}

impl Reader<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
    }

    /// Notes a mistake at a place.
    pub(super) fn mistake(&mut self, span: Range<usize>, what: impl Into<String>, fix: impl Into<String>) {
        let line = self.line(&span);
        self.at_line(line, what, fix);
    }

    fn at_line(&mut self, line: usize, what: impl Into<String>, fix: impl Into<String>) {
        self.mistakes.push(Mistake { file: self.path.to_owned(), line, what: what.into(), fix: fix.into() });
    }

    /// The tables of a list, with the place of each.
    fn tables<'b, 'c>(
        &mut self,
        name: &str,
        span: Range<usize>,
        value: &'b Value<'c>,
        max: usize,
    ) -> Vec<(&'b DeTable<'c>, Range<usize>)> {
        let entries = value.get_ref().as_array().into_iter().flatten();
        let tables: Option<Vec<_>> =
            entries.map(|entry| entry.get_ref().as_table().map(|table| (table, entry.span()))).collect();
        match tables.filter(|_| value.get_ref().is_array()) {
            Some(tables) if tables.len() <= max => tables,
            Some(_) => {
                self.mistake(span, format!("there are more than {max} of [[{name}]]"), "leave some of them out");
                Vec::new()
            }
            None => {
                let fix = format!("write [[{name}]] on a line, and its keys below");
                self.mistake(span, format!("`{name}` is a list of tables"), fix);
                Vec::new()
            }
        }
    }

    /// Names the keys of `table` that are none of `known`.
    pub(super) fn only(&mut self, of: &str, table: &DeTable<'_>, known: &[&str]) {
        for (key, _) in table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            let what = format!("{of} has no `{}`", key.get_ref());
            self.mistake(key.span(), what, format!("there are {}", known.join(", ")));
        }
    }

    /// A text that can be read as `T`.
    pub(super) fn text<T: FromStr<Err: std::fmt::Display>>(&mut self, value: &Value<'_>, fix: &str) -> Option<T> {
        let read = match value.get_ref().as_str() {
            Some(text) if text.is_empty() || text.len() > TEXT_BYTES_MAX => {
                Err(format!("this text is empty, or has more than {TEXT_BYTES_MAX} bytes"))
            }
            Some(text) => text.parse().map_err(|error| format!("`{text}`: {error}")),
            None => Err("this is a text".to_owned()),
        };
        read.map_err(|what| self.mistake(value.span(), what, fix)).ok()
    }

    /// A text of `table` that has to be there.
    pub(super) fn required<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        (of, span): (&str, Range<usize>),
        table: &DeTable<'_>,
        key: &str,
        fix: &str,
    ) -> Option<T> {
        match table.get(key) {
            Some(value) => self.text(value, fix),
            None => {
                self.mistake(span, format!("{of} has no `{key}`"), fix);
                None
            }
        }
    }

    /// The texts of a list that is not empty.
    pub(super) fn texts<T: FromStr<Err: std::fmt::Display>>(&mut self, value: &Value<'_>, fix: &str) -> Option<Vec<T>> {
        match value.get_ref().as_array() {
            Some(array) if (1..=LIST_MAX).contains(&array.len()) => {
                let texts: Vec<_> = array.iter().filter_map(|value| self.text(value, fix)).collect();
                (texts.len() == array.len()).then_some(texts)
            }
            _ => {
                self.mistake(value.span(), format!("this is a list of 1 to {LIST_MAX} texts"), fix);
                None
            }
        }
    }

    fn principals(&mut self, kind: &str, span: Range<usize>, value: &Value<'_>) -> Vec<Principal> {
        let is_client = kind == "client";
        let mut lines: HashMap<ClientId, usize> = HashMap::new();
        let mut found = Vec::new();
        for (table, span) in self.tables(kind, span, value, PRINCIPALS_MAX) {
            let known: &[&str] =
                if is_client { &["name", "any", "queues", "rights", "share"] } else { &["name", "any", "queues"] };
            self.only(kind, table, known);
            let name = self.required((kind, span.clone()), table, "name", "write name = \"orders\" below it");
            let any = match table.get("any") {
                Some(value) => self.lists(value, is_client),
                None => {
                    let fix = "write any = [[\"key\"]], or lists of other factors";
                    self.mistake(span.clone(), format!("{kind} has no `any`"), fix);
                    None
                }
            };
            let queues = table.get("queues").and_then(|value| {
                self.texts::<QueueName>(value, "write names of queues, [\"mail\"], or leave the line out for all")
            });
            let rights = table.get("rights").filter(|_| is_client).and_then(|value| self.rights(value));
            let share = table.get("share").filter(|_| is_client).and_then(|value| self.share(value));
            let (Some(name), Some(any)) = (name, any) else { continue };
            let line = self.line(&span);
            if let Some(first) = lines.insert(ClientId::clone(&name), line) {
                let fix = "make one of both: all its lists in one `any`";
                self.mistake(span, format!("{kind} {name} is on line {first} already"), fix);
                continue;
            }
            found.push(Principal { name, line, any, queues, rights: rights.unwrap_or_default(), share });
        }
        found
    }

    fn lists(&mut self, value: &Value<'_>, is_client: bool) -> Option<Vec<Vec<Factor>>> {
        let lists = value.get_ref().as_array().filter(|lists| (1..=LIST_MAX).contains(&lists.len()));
        let Some(lists) = lists else {
            let fix = "write a list of lists, [[\"key\"]] or [[\"key\", { vpce = [\"vpce-0a1b2c3d\"] }]]";
            self.mistake(value.span(), format!("`any` has 1 to {LIST_MAX} lists"), fix);
            return None;
        };
        let read: Vec<_> = lists.iter().filter_map(|list| factors::list(self, list, is_client)).collect();
        (read.len() == lists.len()).then_some(read)
    }

    fn rights(&mut self, value: &Value<'_>) -> Option<Rights> {
        const FIX: &str = "write some of \"submit\", \"read\", \"manage\", or leave the line out for all";
        let texts: Vec<String> = self.texts(value, FIX)?;
        let right = |text: &String| Right::ALL.into_iter().find(|right| right.as_str() == text);
        match texts.iter().map(right).collect::<Option<Vec<_>>>().and_then(|rights| Rights::of(&rights).ok()) {
            Some(rights) => Some(rights),
            None => {
                self.mistake(value.span(), "this names a right that is not there", FIX);
                None
            }
        }
    }

    fn share(&mut self, value: &Value<'_>) -> Option<u8> {
        let share = value.get_ref().as_integer();
        let share = share.and_then(|number| u8::from_str_radix(number.as_str(), number.radix()).ok());
        let share = share.filter(|share| (1..=100).contains(share));
        if share.is_none() {
            self.mistake(value.span(), "a share is a whole number of percent", "write a number from 1 to 100");
        }
        share
    }

    fn issuers(&mut self, span: Range<usize>, value: &Value<'_>) -> Vec<Issuer> {
        let mut found: Vec<Issuer> = Vec::new();
        for (table, span) in self.tables("issuer", span, value, ISSUERS_MAX) {
            let known = ["url", "audience", "algorithms", "file", "jwks_url", "ca", "lifetime_max"];
            self.only("issuer", table, &known);
            let at = || ("issuer", span.clone());
            let url = self.required::<String>(at(), table, "url", "write the claim `iss` of its tokens, https://...");
            let audience = self.required(at(), table, "audience", "write the claim `aud` that tokens for relay have");
            let algorithms = self.algorithms(at(), table);
            let keys = self.key_source(at(), table);
            let lifetime_max = table.get("lifetime_max").and_then(|value| self.lifetime(value));
            let (Some(url), Some(audience), Some(algorithms), Some(keys)) = (url, audience, algorithms, keys) else {
                continue;
            };
            if found.iter().any(|issuer| issuer.url == url) {
                self.mistake(span, format!("issuer {url} is there twice"), "leave one of them out");
                continue;
            }
            let lifetime_max = lifetime_max.unwrap_or(LIFETIME);
            found.push(Issuer { url, audience, algorithms, keys, lifetime_max });
        }
        found
    }

    fn algorithms(&mut self, at: (&str, Range<usize>), table: &DeTable<'_>) -> Option<Vec<Algorithm>> {
        const FIX: &str = "write those that it signs with, some of [\"RS256\", \"ES256\", \"ES384\"]";
        let Some(value) = table.get("algorithms") else {
            self.mistake(at.1, format!("{} has no `algorithms`", at.0), FIX);
            return None;
        };
        let texts: Vec<String> = self.texts(value, FIX)?;
        let algorithm = |text: &String| match text.as_str() {
            "RS256" => Some(Algorithm::RS256),
            "ES256" => Some(Algorithm::ES256),
            "ES384" => Some(Algorithm::ES384),
            _ => None,
        };
        let algorithms = texts.iter().map(algorithm).collect::<Option<Vec<_>>>();
        if algorithms.is_none() {
            self.mistake(value.span(), "this names an algorithm that relay takes from nobody", FIX);
        }
        algorithms
    }

    fn key_source(&mut self, at: (&str, Range<usize>), table: &DeTable<'_>) -> Option<KeySource> {
        const FIX: &str = "write file = \"jwks.json\", or jwks_url = \"https://...\"";
        let folder = self.path.parent().unwrap_or(Path::new("")).to_owned();
        let ca = match table.get("ca") {
            Some(value) => Some(self.text::<String>(value, "write the path of a file of PEM certificates")?),
            None => None,
        };
        match (table.get("file"), table.get("jwks_url"), ca) {
            (Some(file), None, None) => self.text::<String>(file, FIX).map(|file| KeySource::File(folder.join(file))),
            (None, Some(value), ca) => {
                let url: String = self.text(value, FIX)?;
                if !url.starts_with("https://") || reqwest::Url::parse(&url).is_err() {
                    self.mistake(value.span(), format!("`{url}` is no address of https"), FIX);
                    return None;
                }
                Some(KeySource::Url { url, ca: ca.map(|ca| folder.join(ca)) })
            }
            (Some(_), None, Some(_)) => {
                self.mistake(at.1, "a file of keys is not asked for over TLS", "leave `ca` out");
                None
            }
            _ => {
                self.mistake(at.1, format!("{} has one of `file` and `jwks_url`", at.0), FIX);
                None
            }
        }
    }

    fn lifetime(&mut self, value: &Value<'_>) -> Option<Duration> {
        let DurationText(lifetime) = self.text(value, "write a time such as \"1h\", 24h at most")?;
        if !lifetime.is_zero() && lifetime <= LIFETIME_MAX {
            return Some(lifetime);
        }
        self.mistake(value.span(), "a token of relay lives for 24h at most", "write \"24h\" or less");
        None
    }

    /// Lists that no caller could be told apart by, and issuers that are not there.
    fn compare(&mut self, all: &[Principal], issuers: &[Issuer]) {
        let mut seen: HashMap<&[Factor], &Principal> = HashMap::new();
        for principal in all {
            for list in &principal.any {
                for factor in list {
                    let Factor::Token { issuer, .. } = factor else { continue };
                    if !issuers.iter().any(|known| known.url == *issuer) {
                        let what = format!("{} names the issuer {issuer}, which is not there", principal.name);
                        self.at_line(principal.line, what, "add an [[issuer]] with this `url`, or correct the text");
                    }
                }
                let is_own = list.iter().any(|factor| matches!(factor, Factor::Key(_) | Factor::Nats));
                if let Some(other) =
                    seen.insert(list, principal).filter(|other| !is_own && other.name != principal.name)
                {
                    let what =
                        format!("{} has a list that {} has on line {} too", principal.name, other.name, other.line);
                    self.at_line(principal.line, what, "give one of them another factor: it would let in neither");
                }
            }
        }
    }
}
