//! Reading and writing one MessagePack map with named fields, on top of the `rmp` crate.
//!
//! The reader borrows: payloads come out as slices of the buffer they arrived in. It never recurses deeper than
//! [`DEPTH_MAX`] and never reserves memory for a length it only read.

use bytes::Bytes;
use rmp::Marker;
use rmp::decode::{self, RmpRead as _};
use rmp::encode;

use super::EnvelopeError;

/// How deep a value that this build does not know may nest.
pub(in crate::contract) const DEPTH_MAX: u32 = 32;

/// Writes a map, whose fields it counts.
pub(in crate::contract) struct Writer {
    bytes: Vec<u8>,
    fields: u16,
}

/// The marker of a map whose number of fields takes two bytes, whatever it is.
const MAP16: u8 = 0xde;

// Writing to a `Vec` can't fail, so the results of `rmp::encode` say nothing here.
#[expect(clippy::let_underscore_must_use, reason = "writing to a Vec is infallible")]
impl Writer {
    pub(in crate::contract) fn map(capacity: usize) -> Self {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(&[MAP16, 0, 0]);
        Self { bytes, fields: 0 }
    }

    fn name(&mut self, name: &str) -> &mut Vec<u8> {
        self.fields += 1;
        let _ = encode::write_str(&mut self.bytes, name);
        &mut self.bytes
    }

    pub(in crate::contract) fn text(&mut self, name: &str, value: &str) {
        let _ = encode::write_str(self.name(name), value);
    }

    pub(in crate::contract) fn binary(&mut self, name: &str, value: &[u8]) {
        let _ = encode::write_bin(self.name(name), value);
    }

    pub(in crate::contract) fn unsigned(&mut self, name: &str, value: u64) {
        let _ = encode::write_uint(self.name(name), value);
    }

    pub(in crate::contract) fn signed(&mut self, name: &str, value: i64) {
        let _ = encode::write_sint(self.name(name), value);
    }

    pub(in crate::contract) fn boolean(&mut self, name: &str, value: bool) {
        let _ = encode::write_bool(self.name(name), value);
    }

    pub(in crate::contract) fn text_map<'a>(
        &mut self,
        name: &str,
        entries: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
    ) {
        let to = self.name(name);
        let _ = encode::write_map_len(to, u32::try_from(entries.len()).unwrap_or(u32::MAX));
        for (name, value) in entries {
            let _ = encode::write_str(to, name);
            let _ = encode::write_str(to, value);
        }
    }

    /// A value that is MessagePack already.
    pub(in crate::contract) fn raw(&mut self, name: &str, value: &[u8]) {
        self.name(name).extend_from_slice(value);
    }

    pub(in crate::contract) fn finish(mut self) -> Vec<u8> {
        if let Some(count) = self.bytes.get_mut(1..3) {
            count.copy_from_slice(&self.fields.to_be_bytes());
        }
        self.bytes
    }
}

/// Reads one value after the other out of a shared buffer.
pub(in crate::contract) struct Reader<'a> {
    whole: &'a Bytes,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(in crate::contract) fn new(whole: &'a Bytes) -> Self {
        Self { whole, rest: whole }
    }

    pub(in crate::contract) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(in crate::contract) fn map_len(&mut self) -> Result<u32, EnvelopeError> {
        decode::read_map_len(&mut self.rest).map_err(|_| EnvelopeError::malformed("expected a map"))
    }

    pub(in crate::contract) fn array_len(&mut self) -> Result<u32, EnvelopeError> {
        decode::read_array_len(&mut self.rest).map_err(|_| EnvelopeError::malformed("expected an array"))
    }

    pub(in crate::contract) fn text(&mut self) -> Result<&'a str, EnvelopeError> {
        let length = decode::read_str_len(&mut self.rest).map_err(|_| EnvelopeError::malformed("expected text"))?;
        std::str::from_utf8(self.take(length)?).map_err(|_| EnvelopeError::malformed("text is not UTF-8"))
    }

    pub(in crate::contract) fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, EnvelopeError>,
    ) -> Result<Option<T>, EnvelopeError> {
        if self.rest.first() == Some(&Marker::Null.to_u8()) {
            self.take(1)?;
            return Ok(None);
        }
        read(self).map(Some)
    }

    pub(in crate::contract) fn binary(&mut self) -> Result<&'a [u8], EnvelopeError> {
        let length = decode::read_bin_len(&mut self.rest).map_err(|_| EnvelopeError::malformed("expected bytes"))?;
        self.take(length)
    }

    /// Bytes as a slice of the whole buffer: nothing is copied, and the slice keeps the buffer alive.
    pub(in crate::contract) fn shared_binary(&mut self) -> Result<Bytes, EnvelopeError> {
        let bytes = self.binary()?;
        Ok(self.whole.slice_ref(bytes))
    }

    /// How many bytes come here, and those of them that the buffer has.
    pub(in crate::contract) fn binary_begun(&mut self) -> Result<(u32, Bytes), EnvelopeError> {
        let length = decode::read_bin_len(&mut self.rest).map_err(|_| EnvelopeError::malformed("expected bytes"))?;
        let there = usize::try_from(length).unwrap_or(usize::MAX).min(self.rest.len());
        let (begun, rest) = self.rest.split_at(there);
        self.rest = rest;
        Ok((length, self.whole.slice_ref(begun)))
    }

    pub(in crate::contract) fn unsigned(&mut self) -> Result<u64, EnvelopeError> {
        decode::read_int(&mut self.rest).map_err(|_| EnvelopeError::malformed("expected an unsigned integer"))
    }

    pub(in crate::contract) fn signed(&mut self) -> Result<i64, EnvelopeError> {
        decode::read_int(&mut self.rest).map_err(|_| EnvelopeError::malformed("expected an integer"))
    }

    pub(in crate::contract) fn boolean(&mut self) -> Result<bool, EnvelopeError> {
        decode::read_bool(&mut self.rest).map_err(|_| EnvelopeError::malformed("expected true or false"))
    }

    /// Whether the next value is text rather than bytes.
    pub(in crate::contract) fn next_is_text(&self) -> bool {
        self.rest.first().is_some_and(|byte| {
            matches!(Marker::from_u8(*byte), Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32)
        })
    }

    /// One value of any kind, as the bytes it is written in.
    pub(in crate::contract) fn raw(&mut self) -> Result<Bytes, EnvelopeError> {
        let start = self.rest;
        self.skip(DEPTH_MAX)?;
        let raw = &start[..start.len() - self.rest.len()];
        Ok(self.whole.slice_ref(raw))
    }

    fn take(&mut self, length: u32) -> Result<&'a [u8], EnvelopeError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(EnvelopeError::malformed("ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn length(&mut self, bytes: u32) -> Result<u32, EnvelopeError> {
        Ok(self.take(bytes)?.iter().fold(0, |length, byte| length << 8 | u32::from(*byte)))
    }

    fn skip(&mut self, depth: u32) -> Result<(), EnvelopeError> {
        let depth = depth.checked_sub(1).ok_or(EnvelopeError::malformed("nests too deep"))?;
        let marker = Marker::from_u8(self.rest.read_u8().map_err(|_| EnvelopeError::malformed("ends too early"))?);
        let (data, items) = match marker {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => (0, 0),
            Marker::U8 | Marker::I8 => (1, 0),
            Marker::U16 | Marker::I16 => (2, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
            Marker::FixStr(length) => (u32::from(length), 0),
            Marker::Str8 | Marker::Bin8 => (self.length(1)?, 0),
            Marker::Str16 | Marker::Bin16 => (self.length(2)?, 0),
            Marker::Str32 | Marker::Bin32 => (self.length(4)?, 0),
            Marker::FixExt1 => (2, 0),
            Marker::FixExt2 => (3, 0),
            Marker::FixExt4 => (5, 0),
            Marker::FixExt8 => (9, 0),
            Marker::FixExt16 => (17, 0),
            Marker::Ext8 => (self.length(1)?.saturating_add(1), 0),
            Marker::Ext16 => (self.length(2)?.saturating_add(1), 0),
            Marker::Ext32 => (self.length(4)?.saturating_add(1), 0),
            Marker::FixArray(items) => (0, u64::from(items)),
            Marker::Array16 => (0, u64::from(self.length(2)?)),
            Marker::Array32 => (0, u64::from(self.length(4)?)),
            Marker::FixMap(pairs) => (0, 2 * u64::from(pairs)),
            Marker::Map16 => (0, 2 * u64::from(self.length(2)?)),
            Marker::Map32 => (0, 2 * u64::from(self.length(4)?)),
            Marker::Reserved => return Err(EnvelopeError::malformed("has a reserved marker")),
        };
        self.take(data)?;
        // Each item takes a byte at least, so a false count ends with the buffer.
        (0..items).try_for_each(|_| self.skip(depth))
    }
}
