//! Random numbers, for waits.

/// A random number from 0 to 1.
pub(crate) fn random() -> f64 {
    let bytes = *uuid::Uuid::new_v4().as_bytes();
    f64::from(u16::from_be_bytes([bytes[0], bytes[1]])) / f64::from(u16::MAX)
}
