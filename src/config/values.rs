//! Values as people type them: durations and sizes always have a unit, so that `5` is never guessed at.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use relay_bridge::contract::ids::InvalidId;
use relay_bridge::contract::{ClientId, QueueName};
use serde::Deserialize;

use crate::api::DurationText;
use crate::api::duration::InvalidDuration;

const SIZE_UNITS: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];
/// Longer spans are a slip of the pen: 10 years.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Reads `250ms`, `20s`, `5m`, `6h`, `14d`.
///
/// # Errors
/// A sentence with the fix: no unit, an unknown unit, a fraction, or more than 10 years.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("`{text}` has no unit: write `{text}s` for seconds"));
    }
    let DurationText(duration) = text.parse().map_err(|error: InvalidDuration| error.to_string())?;
    if duration > DURATION_MAX {
        return Err(format!("`{text}` is more than 10 years"));
    }
    Ok(duration)
}

/// Reads `512B`, `256KiB`, `1MiB`, `1MB`.
///
/// # Errors
/// A sentence with the fix: no unit, an unknown unit, a fraction, or more than 2^64 bytes.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    if unit.is_empty() && !number.is_empty() {
        return Err(format!("`{text}` has no unit: write `{text}B` for bytes"));
    }
    let factor = SIZE_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let bytes = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.ok_or_else(|| format!("`{text}` is not a size such as 512B, 256KiB or 1MiB"))
}

/// A duration the way it is typed: the largest unit that needs no fraction.
pub(crate) fn show_duration(duration: Duration) -> String {
    DurationText(duration).to_string()
}

/// A size for people, rounded: `17.2 KiB`.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        #[expect(clippy::cast_precision_loss, reason = "rounded to one decimal anyway")]
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / f64::from(1_u32 << shift)),
        None => format!("{bytes} B"),
    }
}

/// A queue and its weight among the queues of one worker, typed `NAME` or `NAME=WEIGHT`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct WeightedQueue {
    /// The queue.
    pub(crate) name: QueueName,
    /// Its share, 1 if it was not given.
    pub(crate) weight: NonZeroU32,
}

impl FromStr for WeightedQueue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, weight) = text.split_once('=').unwrap_or((text, "1"));
        let weight = weight.parse().ok().filter(|weight: &NonZeroU32| weight.get() <= 1_000);
        Ok(Self {
            name: name.parse().map_err(|error: InvalidId| error.to_string())?,
            weight: weight.ok_or_else(|| format!("the weight in `{text}` must be 1 to 1000"))?,
        })
    }
}

impl TryFrom<String> for WeightedQueue {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A client and its share in percent, typed `CLIENT=PERCENT`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ClientShare {
    /// The client.
    pub(crate) client: ClientId,
    /// Its share, 1 to 100.
    pub(crate) percent: u8,
}

impl FromStr for ClientShare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (client, percent) = text.split_once('=').ok_or_else(|| format!("`{text}` has no share"))?;
        let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
        Ok(Self {
            client: client.parse().map_err(|error: InvalidId| error.to_string())?,
            percent: percent.ok_or_else(|| format!("the share in `{text}` must be 1 to 100, in percent"))?,
        })
    }
}

impl TryFrom<String> for ClientShare {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

fn split(text: &str) -> (&str, &str) {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_unit_and_is_shown_as_it_was_typed() {
        for text in ["250ms", "20s", "90s", "5m", "6h", "14d", "0s"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
        assert_eq!(duration("5").unwrap_err(), "`5` has no unit: write `5s` for seconds");
        for text in ["", "s", "-1s", "1w", "1e9s", "1.5m", "99999d", "5 s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_needs_a_unit_and_never_overflows() {
        assert_eq!(size("256KiB"), Ok(262_144));
        assert_eq!(size("0B"), Ok(0));
        for text in ["", "5", "1.5MiB", "99999999999GiB", "5kb"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(show_size(17_613), "17.2 KiB");
        assert_eq!(show_size(512), "512 B");
    }

    #[test]
    fn a_clients_share_is_a_percentage() {
        let share: ClientShare = "shop=60".parse().unwrap();
        assert_eq!((share.client.as_str(), share.percent), ("shop", 60));
        for text in ["shop", "shop=0", "shop=101", "shop=", "=5", "Shop=5", "shop=5%"] {
            assert!(text.parse::<ClientShare>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_queue_has_weight_one_unless_it_says_otherwise() {
        let queue: WeightedQueue = "fast=5".parse().unwrap();
        assert_eq!((queue.name.as_str(), queue.weight.get()), ("fast", 5));
        assert_eq!("slow".parse::<WeightedQueue>().unwrap().weight.get(), 1);
        for text in ["fast=0", "fast=", "fast=1001", "=3", "Fast"] {
            assert!(text.parse::<WeightedQueue>().is_err(), "{text}");
        }
    }
}
