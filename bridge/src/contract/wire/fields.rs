//! One MessagePack map by name: written field by field, read into a short list that is asked by name, so that fields may
//! come in any order and unknown ones do no harm.

use std::collections::BTreeMap;

use bytes::buf::Writer;
use bytes::{BufMut as _, Bytes, BytesMut};
use rmp::encode;

use super::problem::Problem;
use crate::contract::Timestamp;
use crate::contract::envelope::EnvelopeError;
use crate::contract::envelope::msgpack::Reader;

/// The most fields a map may have, known and unknown.
const FIELDS_MAX: u32 = 64;
const NIL: u8 = 0xc0;

/// Writes one map of at most 15 fields at the end of a buffer.
pub(super) struct MapWriter<'a> {
    to: Writer<&'a mut BytesMut>,
    fields: u8,
}

// Writing to memory can't fail, so the results of `rmp::encode` say nothing here.
#[expect(clippy::let_underscore_must_use, reason = "writing to memory is infallible")]
impl<'a> MapWriter<'a> {
    pub(super) fn write(to: &'a mut BytesMut, fields: impl FnOnce(&mut MapWriter<'_>)) {
        let start = to.len();
        to.put_u8(0x80);
        let mut map = MapWriter { to: to.writer(), fields: 0 };
        fields(&mut map);
        debug_assert!(map.fields < 16, "a longer map needs a longer head");
        map.to.get_mut()[start] = 0x80 | map.fields;
    }

    fn name(&mut self, name: &str) {
        self.fields += 1;
        let _ = encode::write_str(&mut self.to, name);
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        let _ = encode::write_str(&mut self.to, value);
    }

    pub(super) fn unsigned(&mut self, name: &str, value: u64) {
        self.name(name);
        let _ = encode::write_uint(&mut self.to, value);
    }

    pub(super) fn signed(&mut self, name: &str, value: i64) {
        self.name(name);
        let _ = encode::write_sint(&mut self.to, value);
    }

    pub(super) fn float(&mut self, name: &str, value: f32) {
        self.name(name);
        let _ = encode::write_f32(&mut self.to, value);
    }

    pub(super) fn boolean(&mut self, name: &str, value: bool) {
        self.name(name);
        let _ = encode::write_bool(&mut self.to, value);
    }

    pub(super) fn binary(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        let _ = encode::write_bin(&mut self.to, value);
    }

    /// A value that is MessagePack already.
    pub(super) fn raw(&mut self, name: &str, value: &[u8]) {
        self.name(name);
        self.to.get_mut().extend_from_slice(value);
    }

    pub(super) fn map(&mut self, name: &str, fields: impl FnOnce(&mut MapWriter<'_>)) {
        self.name(name);
        MapWriter::write(self.to.get_mut(), fields);
    }

    /// A map of any number of texts.
    pub(super) fn named_texts<'t>(&mut self, name: &str, items: impl ExactSizeIterator<Item = (&'t str, &'t str)>) {
        self.name(name);
        let _ = encode::write_map_len(&mut self.to, u32::try_from(items.len()).unwrap_or(u32::MAX));
        for (name, value) in items {
            let _ = encode::write_str(&mut self.to, name);
            let _ = encode::write_str(&mut self.to, value);
        }
    }

    /// A map of more fields than 15.
    pub(super) fn long_map(&mut self, name: &str, fields: impl FnOnce(&mut MapWriter<'_>)) {
        self.name(name);
        let to: &mut BytesMut = self.to.get_mut();
        let start = to.len();
        to.extend_from_slice(&[0xde, 0, 0]);
        let mut map = MapWriter { to: to.writer(), fields: 0 };
        fields(&mut map);
        map.to.get_mut()[start + 2] = map.fields;
    }

    pub(super) fn texts<'t>(&mut self, name: &str, items: impl ExactSizeIterator<Item = &'t str>) {
        self.name(name);
        let _ = encode::write_array_len(&mut self.to, u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            let _ = encode::write_str(&mut self.to, item);
        }
    }

    pub(super) fn maps<T>(&mut self, name: &str, items: &[T], each: impl Fn(&mut MapWriter<'_>, &T)) {
        self.name(name);
        let _ = encode::write_array_len(&mut self.to, u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            MapWriter::write(self.to.get_mut(), |map| each(map, item));
        }
    }
}

/// The fields of one map, each value still as it was written.
pub(super) struct Fields<'a>(Vec<(&'a str, Bytes)>);

impl<'a> Fields<'a> {
    /// Reads one map that takes all of `bytes`.
    pub(super) fn read(bytes: &'a Bytes) -> Result<Self, Problem> {
        let not_a_map = |error| Problem::new("message", error);
        let mut from = Reader::new(bytes);
        let count = from.map_len().map_err(not_a_map)?;
        if count > FIELDS_MAX {
            return Err(Problem::of("message", "has more than 64 fields"));
        }
        let mut fields: Vec<(&str, Bytes)> = Vec::new();
        for _ in 0..count {
            let name = from.text().map_err(not_a_map)?;
            if fields.iter().any(|(other, _)| *other == name) {
                return Err(Problem::of("message", "has a field twice"));
            }
            let value = from.raw().map_err(not_a_map)?;
            fields.push((name, value));
        }
        if !from.is_at_end() {
            return Err(Problem::of("message", "has bytes after its end"));
        }
        Ok(Self(fields))
    }

    /// The value of a field; `None` if it is missing or nil.
    fn value(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value).filter(|value| value[..] != [NIL])
    }

    pub(super) fn maybe<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, EnvelopeError>,
    ) -> Result<Option<T>, Problem> {
        let value = self.value(name).map(|value| read(&mut Reader::new(value)));
        value.transpose().map_err(|error| Problem::new(name, error))
    }

    pub(super) fn need<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, EnvelopeError>,
    ) -> Result<T, Problem> {
        self.maybe(name, read)?.ok_or(Problem::of(name, "is missing"))
    }

    pub(super) fn text(&self, name: &'static str) -> Result<String, Problem> {
        self.need(name, |from| from.text().map(str::to_owned))
    }

    /// A text that may be left out.
    pub(super) fn maybe_text(&self, name: &'static str) -> Result<Option<String>, Problem> {
        self.maybe(name, |from| from.text().map(str::to_owned))
    }

    /// A duration that may be left out.
    pub(super) fn maybe_millis(&self, name: &'static str) -> Result<Option<std::time::Duration>, Problem> {
        Ok(self.maybe(name, |from| from.unsigned())?.map(std::time::Duration::from_millis))
    }

    /// A time that may be left out.
    pub(super) fn maybe_time(&self, name: &'static str) -> Result<Option<Timestamp>, Problem> {
        Ok(self.maybe(name, |from| from.signed())?.map(Timestamp::from_millis))
    }

    /// Refuses a value of more than `max` bytes as it was written.
    pub(super) fn check_bytes(&self, name: &'static str, max: usize) -> Result<(), Problem> {
        let is_larger = self.value(name).is_some_and(|value| value.len() > max);
        if is_larger { Err(Problem::of(name, "is too large")) } else { Ok(()) }
    }

    /// A map of texts, of which there are at most `max`; none if it is left out.
    pub(super) fn named_texts(&self, name: &'static str, max: u32) -> Result<BTreeMap<String, String>, Problem> {
        let Some(value) = self.value(name) else { return Ok(BTreeMap::new()) };
        let mut from = Reader::new(value);
        let wrong = |error| Problem::new(name, error);
        let count = from.map_len().map_err(wrong)?;
        if count > max {
            return Err(Problem::of(name, "has too many fields"));
        }
        let mut texts = BTreeMap::new();
        for _ in 0..count {
            let key = from.text().map_err(wrong)?.to_owned();
            if texts.insert(key, from.text().map_err(wrong)?.to_owned()).is_some() {
                return Err(Problem::of(name, "has a field twice"));
            }
        }
        Ok(texts)
    }

    /// A name or id in text.
    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, Problem> {
        self.need(name, parse)
    }

    pub(super) fn unsigned(&self, name: &'static str) -> Result<u64, Problem> {
        self.need(name, |from| from.unsigned())
    }

    pub(super) fn narrow<T: TryFrom<u64>>(&self, name: &'static str) -> Result<T, Problem> {
        T::try_from(self.unsigned(name)?).map_err(|_| Problem::of(name, "is out of range"))
    }

    pub(super) fn narrow_or<T: TryFrom<u64>>(&self, name: &'static str, default: T) -> Result<T, Problem> {
        if self.value(name).is_none() { Ok(default) } else { self.narrow(name) }
    }

    pub(super) fn millis(&self, name: &'static str) -> Result<std::time::Duration, Problem> {
        self.unsigned(name).map(std::time::Duration::from_millis)
    }

    pub(super) fn id(&self, name: &'static str) -> Result<[u8; 16], Problem> {
        let bytes = self.binary(name)?;
        bytes[..].try_into().map_err(|_| Problem::of(name, "is not 16 bytes"))
    }

    /// Bytes, as a slice of the frame.
    pub(super) fn binary(&self, name: &'static str) -> Result<Bytes, Problem> {
        self.need(name, |from| from.shared_binary())
    }

    /// A number of any kind.
    pub(super) fn float(&self, name: &'static str) -> Result<Option<f32>, Problem> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let number: f32 = rmp_serde::from_slice(value).map_err(|_| Problem::of(name, "is not a number"))?;
        Ok(Some(number))
    }

    pub(super) fn map(&self, name: &'static str) -> Result<Fields<'_>, Problem> {
        let value = self.value(name).ok_or(Problem::of(name, "is missing"))?;
        Fields::read(value).map_err(|problem| problem.within(name))
    }

    /// A value that some other format describes.
    pub(super) fn raw(&self, name: &'static str) -> Result<Bytes, Problem> {
        self.value(name).cloned().ok_or(Problem::of(name, "is missing"))
    }

    /// The items of an array, of which there are at most `max`.
    pub(super) fn items<T>(
        &self,
        name: &'static str,
        max: usize,
        read: impl Fn(&mut Reader<'_>) -> Result<T, Problem>,
    ) -> Result<Vec<T>, Problem> {
        let value = self.value(name).ok_or(Problem::of(name, "is missing"))?;
        let mut from = Reader::new(value);
        let count = from.array_len().map_err(|error| Problem::new(name, error))?;
        if usize::try_from(count).unwrap_or(usize::MAX) > max {
            return Err(Problem::of(name, &format!("has {count} items, and at most {max} may come")));
        }
        (0..count).map(|_| read(&mut from)).collect()
    }
}

/// One name or id in text.
pub(super) fn parse<T: std::str::FromStr>(from: &mut Reader<'_>) -> Result<T, EnvelopeError> {
    from.text()?.parse().map_err(|_| EnvelopeError::malformed("is not a name or id of its kind"))
}
