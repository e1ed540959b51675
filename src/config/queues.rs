//! The queues of a file: the policy of each, as changes to the broker's. A value that is not written stays as it is.

use std::collections::BTreeMap;

use relay_bridge::contract::{ClientId, QueueName};
use relay_bridge::policy::QueuePolicy;

use super::kind::Value;
use super::policy::row;

/// A queue of a file.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    /// Its name.
    pub(crate) name: QueueName,
    /// Where it begins, from 1.
    pub(crate) line: usize,
    /// The values that are written for it, or for all queues.
    pub(crate) patch: Patch,
}

/// Values by key, with the line of each.
pub(crate) type Written = BTreeMap<&'static str, (Value, usize)>;

/// The values of a policy that are written in a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patch {
    /// For the queue, and for clients that are not named.
    pub(crate) values: Written,
    /// For single clients.
    pub(crate) clients: BTreeMap<ClientId, Written>,
}

impl Patch {
    /// `base` with what is written over it.
    #[must_use]
    pub(crate) fn over(&self, base: QueuePolicy) -> QueuePolicy {
        let mut policy = base;
        for (setting, value) in rows(&self.values) {
            setting.set(&mut policy, value);
        }
        for (client, written) in &self.clients {
            let defaults = policy.client_defaults.clone();
            let of_client = policy.clients.entry(client.clone()).or_insert(defaults);
            for (setting, value) in rows(written) {
                setting.set_for_client(of_client, value);
            }
        }
        policy
    }

    /// The line of a key; that of `otherwise` if it is not written.
    #[must_use]
    pub(crate) fn line(&self, key: &str, otherwise: usize) -> usize {
        self.values.get(key).map_or(otherwise, |(_, line)| *line)
    }
}

fn rows(written: &Written) -> impl Iterator<Item = (&'static super::policy::PolicySetting, &Value)> {
    written.iter().filter_map(|(key, (value, _))| Some((row(key)?, value)))
}
