//! Durations as text: a whole number and a unit, `500ms`, `20s`, `5m`, `2h`, `7d`. A number without a unit is refused.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration that is read and printed as text. Printed with the largest unit that divides it; parts of a millisecond
/// are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DurationText(pub Duration);

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a duration: write a whole number and a unit, such as 500ms, 20s, 5m, 2h or 7d")]
pub struct InvalidDuration {
    /// The text, at most 40 characters of it.
    pub text: String,
}

/// Milliseconds of each unit, the largest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl FromStr for DurationText {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration { text: text.chars().take(40).flat_map(char::escape_default).collect() };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let (_, millis) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?;
        number.checked_mul(millis).map(Duration::from_millis).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.pad("0s");
        }
        let (unit, size) = UNITS.into_iter().find(|(_, size)| millis.is_multiple_of(*size)).unwrap_or(("ms", 1));
        f.pad(&format!("{}{unit}", millis / size))
    }
}

impl Serialize for DurationText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_printed_back() {
        for (text, millis) in [
            ("500ms", 500),
            ("20s", 20_000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("7d", 604_800_000),
            ("90s", 90_000),
            ("0s", 0),
        ] {
            let duration: DurationText = text.parse().unwrap();
            assert_eq!(duration.0, Duration::from_millis(millis), "{text}");
            assert_eq!(duration.to_string(), text);
        }
    }

    #[test]
    fn a_number_without_a_unit_and_other_nonsense_are_refused() {
        for text in ["", "20", "s", "-1s", "1.5s", "20 s", "20sec", "1h30m", "99999999999999999999s", "20S", "٢s"] {
            assert!(text.parse::<DurationText>().is_err(), "{text}");
        }
        assert!("18446744073709551615d".parse::<DurationText>().is_err(), "overflow");
    }
}
