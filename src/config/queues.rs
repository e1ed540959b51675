//! The queues of a file: the policy of each, as changes to the broker's. A value that is not written stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use relay_bridge::contract::{ClientId, QueueName};
use relay_bridge::policy::{ClientPolicy, QueuePolicy};

use super::kind::{NO_RATE, Value};

/// A queue of a file.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Its name.
    pub name: QueueName,
    /// Where it begins, from 1.
    pub line: usize,
    /// The values that are written for it, or for all queues.
    pub patch: Patch,
}

/// Values by key, with the line of each.
pub type Written = BTreeMap<&'static str, (Value, usize)>;

/// The values of a policy that are written in a file.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    /// For the queue, and for clients that are not named.
    pub values: Written,
    /// For single clients.
    pub clients: BTreeMap<ClientId, Written>,
}

impl Patch {
    /// `base` with what is written over it.
    #[must_use]
    pub fn over(&self, base: QueuePolicy) -> QueuePolicy {
        let mut policy = base;
        for (key, (value, _)) in &self.values {
            set(&mut policy, key, value);
        }
        for (client, written) in &self.clients {
            let defaults = policy.client_defaults.clone();
            let of_client = policy.clients.entry(client.clone()).or_insert(defaults);
            for (key, (value, _)) in written {
                set_share(of_client, key, value);
            }
        }
        policy
    }

    /// The line of a key; that of `otherwise` if it is not written.
    #[must_use]
    pub fn line(&self, key: &str, otherwise: usize) -> usize {
        self.values.get(key).map_or(otherwise, |(_, line)| *line)
    }
}

fn set(policy: &mut QueuePolicy, key: &str, value: &Value) {
    match (key, value) {
        ("max_attempts", Value::Number(number)) => policy.max_attempts = narrow(*number),
        ("retry_base", Value::Duration(span)) => policy.retry.base = *span,
        ("retry_factor", Value::Factor(factor)) => policy.retry.factor = *factor,
        ("retry_cap", Value::Duration(span)) => policy.retry.cap = *span,
        ("keep_keyless", Value::Flag(flag)) => policy.keep_keyless = *flag,
        ("fair", Value::Flag(flag)) => policy.fair = *flag,
        ("payload_max", Value::Number(bytes)) => policy.payload_max = *bytes,
        ("result_max", Value::Number(bytes)) => policy.result_max = *bytes,
        // Their kinds have refused what can't be parsed.
        ("content_types", Value::List(texts)) => policy.content_types = parsed(texts),
        ("allowed_clients", Value::List(texts)) => policy.allowed_clients = parsed(texts),
        (_, Value::Duration(span)) => {
            if let Some(field) = span_of(policy, key) {
                *field = *span;
            }
        }
        _ => set_share(&mut policy.client_defaults, key, value),
    }
}

fn span_of<'a>(policy: &'a mut QueuePolicy, key: &str) -> Option<&'a mut Duration> {
    match key {
        "lease" => Some(&mut policy.lease),
        "lease_max" => Some(&mut policy.lease_max),
        "job_ttl" => Some(&mut policy.job_ttl),
        "retention" => Some(&mut policy.retention),
        "dead_retention" => Some(&mut policy.dead_retention),
        _ => None,
    }
}

fn set_share(client: &mut ClientPolicy, key: &str, value: &Value) {
    match (key, value) {
        ("weight", Value::Number(number)) => client.weight = narrow(*number),
        ("max_queued", Value::Number(number)) => client.max_queued = *number,
        ("max_running", Value::Number(number)) => client.max_running = narrow(*number),
        ("rate", Value::Text(text)) => client.rate = text.parse().ok().filter(|_| text != NO_RATE),
        ("burst", Value::Number(number)) => client.burst = narrow(*number),
        _ => {}
    }
}

fn parsed<T: FromStr + Ord>(texts: &[String]) -> BTreeSet<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Its kind has refused what does not fit.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;
    use crate::config::kind::Kind;
    use crate::config::settings::POLICY;

    #[test]
    fn every_key_changes_the_policy_and_its_default_is_the_one_of_new_queues() {
        for setting in POLICY {
            let read = |text: &str| {
                let text = format!("key = {text}");
                let table = DeTable::parse(&text).unwrap();
                let value = setting.kind.read(table.get_ref()["key"].get_ref()).unwrap();
                let values = Written::from([(setting.key, (value, 1))]);
                Patch { values, clients: BTreeMap::new() }.over(QueuePolicy::default())
            };
            let quoted = |text: &str| match setting.kind {
                Kind::Duration(_) | Kind::Size | Kind::Rate => format!("\"{text}\""),
                _ => text.to_owned(),
            };
            assert_eq!(read(&quoted(setting.default)), QueuePolicy::default(), "{}", setting.key);
            let other = match setting.default {
                "false" => "true",
                "true" => "false",
                "none" => "7/h",
                "[\"*\"]" => "[\"shop\"]",
                "[\"*/*\"]" => "[\"text/*\"]",
                text if text.ends_with(|c: char| c.is_ascii_digit()) => "7",
                text if text.ends_with("iB") => "7KiB",
                _ => "7h",
            };
            assert_ne!(read(&quoted(other)), QueuePolicy::default(), "{}", setting.key);
        }
    }
}
