//! Hashing several values one after another, so that no two lists of values have one hash.

/// Feeds `part` after its length, so that no two lists of parts hash alike. Parts are below 4 GiB.
pub(super) fn update_length_prefixed(hasher: &mut blake3::Hasher, part: &[u8]) {
    let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
    hasher.update(&length.to_be_bytes());
    hasher.update(part);
}
