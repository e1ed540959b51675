//! The metadata of a KEDA trigger, and the name of its metric: read as a whole or refused with the key that is wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use relay_bridge::contract::QueueName;
use sha2::{Digest as _, Sha256};

use super::looks::Looked;
use super::wanted::{Targets, Work, wanted};

/// How far ahead a job may be due that is counted, unless a trigger says otherwise: about as long as a worker takes to start.
pub(super) const LEAD: Duration = Duration::from_secs(30);
/// The longest times that a trigger may name, in seconds: a day, and a week for a job.
const TIME_MAX: f64 = 86_400.0;
const SERVICE_MAX: f64 = 7.0 * TIME_MAX;
const SLOTS_MAX: u32 = 100_000;

/// The keys that relay reads.
const OWN: [&str; 5] = ["queue", "slotsPerWorker", "leadSeconds", "targetDrainSeconds", "serviceSeconds"];
/// The keys of KEDA itself, which sends all of a trigger's metadata:
/// <https://keda.sh/docs/2.21/scalers/external-push/>
const KEDAS: [&str; 7] =
    ["scalerAddress", "enableTLS", "unsafeSsl", "tlsCertFile", "caCert", "tlsClientCert", "tlsClientKey"];
/// The end of a key whose value KEDA read from the workers' environment.
const FROM_ENV: &str = "FromEnv";
/// The longest name of a metric: KEDA puts `s0-` or `s10-` in front, and Kubernetes takes 63 bytes.
const NAME_MAX: usize = 63 - "s10-".len();
/// The characters of a queue's name that are left where it is cut.
const NAME_KEPT: usize = 40;

/// A trigger's question.
#[derive(Clone, Debug, PartialEq)]
pub struct Trigger {
    /// The queue whose workers are scaled.
    pub queue: QueueName,
    /// The aims of the scaling.
    pub targets: Targets,
    /// How far ahead a job may be due that is counted.
    pub lead: Duration,
    /// How long one attempt takes, in seconds, for as long as none was measured.
    pub service: Option<f64>,
}

/// Why metadata is refused: the key, its value, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidTrigger(String);

impl fmt::Display for InvalidTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; known keys are {}, and those of KEDA", self.0, OWN.join(", "))
    }
}

impl std::error::Error for InvalidTrigger {}

impl Trigger {
    /// A trigger of `queue` that says nothing else.
    #[must_use]
    pub fn of(queue: QueueName) -> Self {
        Self { queue, targets: Targets::default(), lead: LEAD, service: None }
    }

    /// Reads a trigger's metadata, as KEDA sends it.
    ///
    /// # Errors
    /// The first key that is unknown, missing or has a value out of its range.
    pub fn read<'a>(metadata: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, InvalidTrigger> {
        let mut own = BTreeMap::new();
        for (key, value) in metadata {
            let plain = key.strip_suffix(FROM_ENV).unwrap_or(key);
            if OWN.contains(&plain) {
                // A value that is written counts instead of one of the environment.
                if plain == key || !own.contains_key(plain) {
                    own.insert(plain, value);
                }
            } else if !KEDAS.contains(&plain) {
                return Err(InvalidTrigger(format!("`{}` is no key of a trigger", shown(key))));
            }
        }
        let Some(queue) = own.get("queue") else {
            return Err(InvalidTrigger("`queue` is missing: name the queue whose workers are scaled".to_owned()));
        };
        let queue = queue.parse().map_err(|error| wrong("queue", queue, &format!("{error}")))?;
        let seconds = |key: &str, usual: Option<f64>, least_is_taken: bool, most: f64| match own.get(key) {
            None => Ok(usual),
            Some(text) => {
                let above = if least_is_taken { "at least 0" } else { "greater than 0" };
                let is = |value: &f64| if least_is_taken { *value >= 0.0 } else { *value > 0.0 };
                let value = text.trim().parse::<f64>().ok().filter(|value| value.is_finite() && is(value));
                let fits = value.filter(|value| *value <= most);
                fits.map(Some).ok_or_else(|| wrong(key, text, &format!("seconds are {above} and at most {most}")))
            }
        };
        let usual = Targets::default();
        let drain = seconds("targetDrainSeconds", Some(usual.drain), false, TIME_MAX)?.unwrap_or(usual.drain);
        let lead = seconds("leadSeconds", None, true, TIME_MAX)?.map_or(LEAD, Duration::from_secs_f64);
        let service = seconds("serviceSeconds", None, false, SERVICE_MAX)?;
        let slots_per_worker = match own.get("slotsPerWorker") {
            None => usual.slots_per_worker,
            Some(text) => {
                let slots = text.trim().parse::<NonZeroU32>().ok().filter(|slots| slots.get() <= SLOTS_MAX);
                slots.ok_or_else(|| wrong("slotsPerWorker", text, "slots are a whole number from 1 to 100000"))?
            }
        };
        Ok(Self { queue, targets: Targets { slots_per_worker, drain }, lead, service })
    }

    /// The slots that the queue needs.
    #[must_use]
    pub fn wanted(&self, looked: &Looked) -> f64 {
        let work = Work { waiting: looked.load.startable, leased: looked.load.leased };
        let mut pace = looked.pace;
        pace.service = pace.service.or(self.service);
        wanted(work, pace, &self.targets)
    }

    /// The name of its metric: `relay-<queue>` in `[a-z0-9-]`. A name that this would change, or that is too long, is cut and
    /// ends with a part of a hash of it, so that no two queues have the same.
    #[must_use]
    pub fn metric(&self) -> String {
        let queue = self.queue.as_str();
        let name = format!("relay-{queue}");
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.len() <= NAME_MAX && queue.bytes().all(is_plain) {
            return name;
        }
        let plain = queue.bytes().map(|byte| byte.to_ascii_lowercase());
        let plain = plain.map(|byte| if is_plain(byte) { char::from(byte) } else { '-' });
        let kept: String = plain.take(NAME_KEPT).collect();
        let hash = Sha256::digest(queue.as_bytes());
        let hash: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("relay-{kept}-{hash}")
    }
}

fn wrong(key: &str, value: &str, right: &str) -> InvalidTrigger {
    InvalidTrigger(format!("`{key}` is `{}`: {right}", shown(value)))
}

/// A text of others in an answer: short, and of one line.
fn shown(text: &str) -> String {
    let shown: String = text.chars().take(64).collect();
    shown.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Trigger, String> {
        Trigger::read(pairs.iter().copied()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_queue_is_enough_and_keys_of_keda_are_known() {
        let plain = read(&[("queue", "mail")]).unwrap();
        assert_eq!((plain.targets, plain.lead, plain.service), (Targets::default(), LEAD, None));
        assert_eq!((plain.targets.slots_per_worker.get(), plain.targets.drain), (8, 60.0));
        let keda =
            [("scalerAddress", "relay:7414"), ("enableTLS", "true"), ("unsafeSsl", "false"), ("caCertFromEnv", "x")];
        let all = [
            ("queueFromEnv", "other"),
            ("queue", "mail"),
            ("slotsPerWorker", "4"),
            ("leadSeconds", "0"),
            ("targetDrainSeconds", "2.5"),
            ("serviceSecondsFromEnv", "10"),
        ];
        let full = read(&[&keda[..], &all].concat()).unwrap();
        assert_eq!(full.queue.as_str(), "mail");
        assert_eq!((full.targets.slots_per_worker.get(), full.targets.drain), (4, 2.5));
        assert_eq!((full.lead, full.service), (Duration::ZERO, Some(10.0)));
    }

    #[test]
    fn what_is_wrong_is_told_by_key_and_value_with_the_keys_there_are() {
        for (pairs, said) in [
            (&[][..], "`queue` is missing"),
            (&[("queue", "no such name!")], "`queue` is `no such name!`"),
            (&[("queue", "mail"), ("queueLength", "5")], "`queueLength` is no key"),
            (&[("queue", "mail"), ("slotsPerWorker", "many")], "`slotsPerWorker` is `many`"),
            (&[("queue", "mail"), ("slotsPerWorker", "0")], "`slotsPerWorker` is `0`"),
            (&[("queue", "mail"), ("slotsPerWorker", "-1")], "`slotsPerWorker` is `-1`"),
            (&[("queue", "mail"), ("slotsPerWorker", "1.5")], "`slotsPerWorker` is `1.5`"),
            (&[("queue", "mail"), ("targetDrainSeconds", "0")], "`targetDrainSeconds` is `0`"),
            (&[("queue", "mail"), ("targetDrainSeconds", "NaN")], "`targetDrainSeconds` is `NaN`"),
            (&[("queue", "mail"), ("targetDrainSeconds", "inf")], "`targetDrainSeconds` is `inf`"),
            (&[("queue", "mail"), ("leadSeconds", "-1")], "`leadSeconds` is `-1`"),
            (&[("queue", "mail"), ("leadSeconds", "1e300")], "`leadSeconds` is `1e300`"),
            (&[("queue", "mail"), ("serviceSeconds", "0")], "`serviceSeconds` is `0`"),
        ] {
            let error = read(pairs).unwrap_err();
            assert!(error.starts_with(said) && error.contains("known keys are queue, slotsPerWorker,"), "{error}");
        }
        assert!(read(&[(&"x".repeat(100_000), "")]).unwrap_err().len() < 300);
    }

    #[test]
    fn metrics_of_all_queues_have_names_of_their_own_that_kubernetes_takes() {
        let name = |queue: &str| Trigger::of(queue.parse().unwrap()).metric();
        assert_eq!(name("mail-2"), "relay-mail-2");
        let (low, long) = (name("mail_2"), name(&"a".repeat(63)));
        assert!(low.starts_with("relay-mail-2-") && low.len() == "relay-mail-2-".len() + 8, "{low}");
        assert!(long.starts_with(&format!("relay-{}-", "a".repeat(40))), "{long}");
        assert_ne!(name("mail_2"), name("mail-2"));
        for name in [low, long, name(&"b".repeat(53)), name(&"b".repeat(54))] {
            assert!(format!("s10-{name}").len() <= 63, "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
        }
    }
}
