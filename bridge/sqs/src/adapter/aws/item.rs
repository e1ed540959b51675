//! Items of DynamoDB as values of Rust: attributes are checked when they are read, and typed when they are written.

use std::collections::HashMap;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use bytes::Bytes;

use crate::names::Key;
use relay_bridge::contract::Timestamp;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// An item, or the values of an expression, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Item(pub(crate) HashMap<String, AttributeValue>);

impl Item {
    /// An item with nothing but its key.
    pub(crate) fn at(key: &Key) -> Self {
        Self::default().text("pk", &key.pk).text("sk", &key.sk)
    }

    /// The key of an item that was read; `None` if it lacks a part of it.
    pub(crate) fn key(&self) -> Option<Key> {
        Some(Key { pk: self.get_text("pk")?.to_owned(), sk: self.get_text("sk")?.to_owned() })
    }

    pub(crate) fn text(self, name: &str, value: impl Into<String>) -> Self {
        self.with(name, AttributeValue::S(value.into()))
    }

    pub(crate) fn number(self, name: &str, value: impl std::fmt::Display) -> Self {
        self.with(name, AttributeValue::N(value.to_string()))
    }

    /// A moment, in milliseconds.
    pub(crate) fn time(self, name: &str, value: Timestamp) -> Self {
        self.number(name, value.as_millis())
    }

    pub(crate) fn binary(self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.with(name, AttributeValue::B(Blob::new(value)))
    }

    pub(crate) fn flag(self, name: &str, value: bool) -> Self {
        self.with(name, AttributeValue::Bool(value))
    }

    /// Sets until when the item is kept: `keep` in milliseconds, which every read compares, and `expires`, after which
    /// AWS removes the item in its own time.
    pub(crate) fn kept_until(self, until: Timestamp) -> Self {
        self.time("keep", until).number("expires", expires(until))
    }

    pub(crate) fn with(mut self, name: &str, value: AttributeValue) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// A text that every such item has.
    pub(crate) fn need_text(&self, name: &str) -> Result<&str, BrokerError> {
        self.get_text(name).ok_or_else(|| self.lacks(name))
    }

    pub(crate) fn get_text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(|value| value.as_s().ok()).map(String::as_str)
    }

    /// A text that is read as an id or a name.
    pub(crate) fn need_parsed<T: std::str::FromStr>(&self, name: &str) -> Result<T, BrokerError> {
        self.need_text(name)?.parse().map_err(|_| self.lacks(name))
    }

    /// The texts of a set; none if the item has no such set.
    pub(crate) fn get_texts(&self, name: &str) -> &[String] {
        self.0.get(name).and_then(|value| value.as_ss().ok()).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn get_number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.0.get(name).and_then(|value| value.as_n().ok()).and_then(|text| text.parse().ok())
    }

    pub(crate) fn need_number<T: std::str::FromStr>(&self, name: &str) -> Result<T, BrokerError> {
        self.get_number(name).ok_or_else(|| self.lacks(name))
    }

    pub(crate) fn get_time(&self, name: &str) -> Option<Timestamp> {
        self.get_number(name).map(Timestamp::from_millis)
    }

    pub(crate) fn need_time(&self, name: &str) -> Result<Timestamp, BrokerError> {
        self.need_number(name).map(Timestamp::from_millis)
    }

    pub(crate) fn get_binary(&self, name: &str) -> Option<Bytes> {
        self.0.get(name).and_then(|value| value.as_b().ok()).map(|blob| Bytes::copy_from_slice(blob.as_ref()))
    }

    pub(crate) fn need_binary(&self, name: &str) -> Result<Bytes, BrokerError> {
        self.get_binary(name).ok_or_else(|| self.lacks(name))
    }

    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.as_bool().is_ok_and(|flag| *flag))
    }

    /// Whether the item is past its keeping. AWS may not have removed it yet.
    pub(crate) fn is_past(&self, now: Timestamp) -> bool {
        self.get_time("keep").is_some_and(|keep| keep <= now)
    }

    fn lacks(&self, name: &str) -> BrokerError {
        let at = |name| self.get_text(name).unwrap_or("?");
        let why = format!("item {} {} of the table has no `{name}` that relay can read", at("pk"), at("sk"));
        BrokerError::new(BrokerErrorKind::Corrupt, "read table", why)
    }
}

/// The value of the TTL attribute: whole seconds, never before `until`.
pub(crate) fn expires(until: Timestamp) -> i64 {
    until.as_millis().div_euclid(1_000) + 1
}

impl From<HashMap<String, AttributeValue>> for Item {
    fn from(attributes: HashMap<String, AttributeValue>) -> Self {
        Self(attributes)
    }
}

/// The names that stand as `#name` in expressions, each mapped to the plain name: DynamoDB reserves many plain words.
pub(crate) fn names_in(expressions: &[&str]) -> HashMap<String, String> {
    let mut names = HashMap::new();
    for name in expressions.iter().flat_map(|text| text.split('#').skip(1)) {
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
        names.insert(format!("#{}", &name[..end]), name[..end].to_owned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_an_expression_is_found_once() {
        let names = names_in(&["#run = :run AND attribute_not_exists(#result_run)", "SET #run = :run, #due=:due"]);
        let mut found: Vec<_> = names.into_iter().collect();
        found.sort();
        let expected = [("#due", "due"), ("#result_run", "result_run"), ("#run", "run")];
        assert_eq!(found, expected.map(|(place, name)| (place.to_owned(), name.to_owned())));
    }

    #[test]
    fn an_item_is_not_removed_before_its_time() {
        for millis in [0, 1, 999, 1_000, 1_001] {
            assert!(expires(Timestamp::from_millis(millis)) * 1_000 > millis);
        }
        let item = Item::default().kept_until(Timestamp::from_millis(1_500));
        assert!(!item.is_past(Timestamp::from_millis(1_499)) && item.is_past(Timestamp::from_millis(1_500)));
    }

    #[test]
    fn an_item_that_lacks_what_it_must_have_is_told_by_its_key() {
        let item = Item::at(&Key { pk: "job#1".to_owned(), sk: "record".to_owned() });
        let error = item.need_number::<u32>("attempt").unwrap_err();
        assert_eq!(error.kind(), BrokerErrorKind::Corrupt);
        assert!(error.detail().contains("job#1") && error.detail().contains("`attempt`"), "{error}");
    }
}
