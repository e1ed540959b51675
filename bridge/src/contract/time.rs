//! Wall-clock time in whole milliseconds. Leases and waits never use it: they run on monotonic clocks.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in UTC, in milliseconds since 1970-01-01T00:00:00Z.
///
/// Printed, and written in JSON, as RFC 3339 with three decimals: `2026-11-23T02:31:26.000Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);
    /// The last moment that can be printed in every time zone (the `jiff` crate's maximum in milliseconds): 9999-12-30T22:00:00Z.
    pub const MAX: Self = Self(253_402_207_200_000);

    /// The moment `millis` milliseconds after the epoch; moments outside years 1 to 9999 are moved to the nearest.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self(millis.clamp(-62_135_596_800_000, Self::MAX.0))
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// The time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at [`Timestamp::MAX`].
    fn add(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_add(millis))
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Self;

    /// Saturates at the earliest timestamp there is.
    fn sub(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_millis(self.0.saturating_sub(millis))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; TEXT_BYTES]))
    }
}

/// The length of `2026-11-23T02:31:26.000Z`.
const TEXT_BYTES: usize = 24;
const DAY_MS: i64 = 24 * 3600 * 1000;

impl Timestamp {
    /// As it is printed. Every answer holds several times, and a formatter for all calendars costs ten times as much.
    fn text(self, to: &mut [u8; TEXT_BYTES]) -> &str {
        let (days, rest) = (self.0.div_euclid(DAY_MS), self.0.rem_euclid(DAY_MS));
        // Days to a date of the Gregorian calendar, by eras of 400 years that begin on 1 March:
        // <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>
        let days = days + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let shifted = (5 * day + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year + era * 400 + i64::from(month <= 2);
        let day = day - (153 * shifted + 2) / 5 + 1;
        *to = *b"0000-00-00T00:00:00.000Z";
        let (seconds, millis) = (rest / 1_000, rest % 1_000);
        for (from, digits, number) in [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, seconds / 3_600),
            (14, 2, seconds / 60 % 60),
            (17, 2, seconds % 60),
            (20, 3, millis),
        ] {
            let mut number = number.unsigned_abs();
            for digit in to[from..from + digits].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        }
        // ASCII, and so UTF-8: nothing but digits was written.
        std::str::from_utf8(to).unwrap_or_default()
    }
}

/// The text is not an RFC 3339 moment.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time such as 2026-11-23T02:31:26.000Z")]
pub struct InvalidTimestamp(String);

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let at: jiff::Timestamp = text.parse().map_err(|_| InvalidTimestamp(text.to_owned()))?;
        Ok(Self::from_millis(at.as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text(&mut [0; TEXT_BYTES]))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_printed_with_milliseconds_in_utc_and_read_back() {
        let at = Timestamp::from_millis(1_763_865_086_007);
        assert_eq!(at.to_string(), "2025-11-23T02:31:26.007Z");
        assert_eq!(at.to_string().parse::<Timestamp>().unwrap(), at);
    }

    #[test]
    fn every_kind_of_day_is_printed_as_the_calendar_has_it() {
        let years = [1, 4, 100, 399, 400, 1582, 1600, 1900, 1969, 1970, 2000, 2024, 2026, 2100, 9999];
        let days = [(1, 1), (2, 28), (2, 29), (3, 1), (10, 31), (12, 30)];
        for (year, (month, day)) in years.into_iter().flat_map(|year| days.map(|day| (year, day))) {
            let Ok(date) = jiff::civil::Date::new(year, month, day) else { continue };
            let at = date.at(21, 59, 8, 7_000_000).to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
            assert_eq!(Timestamp::from_millis(at.as_millisecond()).to_string(), format!("{at:.3}"));
        }
        assert_eq!(Timestamp::from_millis(i64::MIN).to_string(), "0001-01-01T00:00:00.000Z");
    }

    #[test]
    fn adding_never_leaves_the_calendar() {
        assert_eq!(Timestamp::from_millis(0) + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-30T22:00:00.000Z");
    }
}
