//! How many in which time: `100/s`, `6000/min`, `5000/h`, `100000/d`.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The spans that a rate may be given for, in seconds.
const SPANS: [(&str, u32); 4] = [("s", 1), ("min", 60), ("h", 3_600), ("d", 86_400)];

/// A number of things, at least 1, in a span of time. Printed as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    count: NonZeroU32,
    /// One of [`SPANS`].
    seconds: u32,
}

/// The text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no rate: write a whole number and its time, such as 100/s, 6000/min, 5000/h or 100000/d")]
pub struct InvalidRate(String);

impl Rate {
    /// How many there may be in [`span`](Self::span).
    #[must_use]
    pub fn count(self) -> NonZeroU32 {
        self.count
    }

    /// A second, a minute, an hour or a day.
    #[must_use]
    pub fn span(self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let read = || {
            let (count, span) = text.split_once('/')?;
            let (_, seconds) = SPANS.into_iter().find(|(name, _)| *name == span)?;
            // `parse` would take a sign.
            let count = count.parse().ok().filter(|_| count.bytes().all(|byte| byte.is_ascii_digit()))?;
            Some(Self { count, seconds })
        };
        read().ok_or_else(|| InvalidRate(text.chars().take(40).flat_map(char::escape_default).collect()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = SPANS.into_iter().find(|(_, seconds)| *seconds == self.seconds).map_or("s", |(name, _)| name);
        f.pad(&format!("{}/{name}", self.count))
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_printed_as_it_is_read() {
        for (text, count, seconds) in [("1/s", 1, 1), ("6000/min", 6_000, 60), ("5/h", 5, 3_600), ("7/d", 7, 86_400)] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.count().get(), rate.span().as_secs(), rate.to_string().as_str()), (count, seconds, text));
        }
    }

    #[test]
    fn a_number_without_its_time_and_other_nonsense_are_refused() {
        for text in ["", "100", "/s", "0/s", "+1/s", "-1/s", "1.5/s", "1 /s", "1/y", "1/s/s", "4294967296/s", "1/S"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
