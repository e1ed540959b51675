//! `max_running`, the bound on how many of a client's jobs run at once. An item of the table has the leases that the
//! client holds: one conditional update takes a slot, and another gives it back, even if other processes change the
//! item meanwhile. Clients without such a bound pay nothing for it.

use relay_bridge::support::lock;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::{Table, Written};
use crate::names;
use crate::settings::Settings;
use relay_bridge::contract::{ClientId, QueueName, Timestamp};
use relay_bridge::error::BrokerError;

const OPERATION: &str = "lease";
/// How often a slot is tried while other processes change the item between two updates; then the client counts as at
/// its bound.
const TRIES: u32 = 5;
/// The most ended leases that one update removes: an expression holds 4 KiB.
const REMOVED_MAX: usize = 20;

/// The most leases whose slots are noted as owed at once; further ones are not noted.
const OWED_MAX: usize = 10_000;

/// Leases that this process has begun to extend and whose slots it has not kept since, each with the end of the lease.
/// The record is written first: without this note, the next heartbeat would not see that a slot was not written.
#[derive(Default)]
pub(crate) struct Owed(Mutex<HashMap<[u8; 16], Timestamp>>);

impl Owed {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], Timestamp>> {
        lock(&self.0)
    }

    /// Notes that a lease is about to be extended until `end`; returns whether its slot was owed already.
    pub(crate) fn begin(&self, lease: [u8; 16], end: Timestamp, now: Timestamp) -> bool {
        let mut owed = self.lock();
        if owed.len() >= OWED_MAX {
            owed.retain(|_, end| *end > now);
        }
        let room = owed.len() < OWED_MAX;
        let was_owed = owed.contains_key(&lease);
        if room || was_owed {
            owed.insert(lease, end);
        }
        was_owed
    }

    /// Notes that the lease's slot is kept for as long as it should be, or that the lease is over.
    pub(crate) fn is_paid(&self, lease: &[u8; 16]) {
        self.lock().remove(lease);
    }
}

/// The leases in an item, each with its end.
fn leases(item: &Item) -> HashMap<String, Timestamp> {
    let lease = |(lease, end): (&String, &AttributeValue)| {
        Some((lease.clone(), Timestamp::from_millis(end.as_n().ok()?.parse().ok()?)))
    };
    let held = item.0.get("held").and_then(|held| held.as_m().ok());
    held.map(|held| held.iter().filter_map(lease).collect()).unwrap_or_default()
}

fn name(lease: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*lease).simple().to_string()
}

/// Until when a slot is kept if its lease began at `started` and is held until `end`: a whole number of times `lease`
/// after `started`, so that only one heartbeat in each `lease` writes the slot. It is less than `lease` after `end`.
pub(crate) fn kept_until(started: Timestamp, end: Timestamp, lease: Duration) -> Timestamp {
    let leases = end.since(started).as_millis().div_ceil(lease.as_millis().max(1));
    started + lease.saturating_mul(u32::try_from(leases).unwrap_or(u32::MAX))
}

/// The slots of clients with a bound on running jobs.
pub(crate) struct Slots {
    pub(crate) settings: Settings,
    pub(crate) table: Table,
}

impl Slots {
    /// Takes a slot of the client's for a lease, if fewer than `bound` are taken. Slots of leases that ended are free.
    pub(crate) async fn take_slot(
        &self,
        queue: &QueueName,
        client: &ClientId,
        lease: &[u8; 16],
        time: Duration,
        bound: u32,
    ) -> Result<bool, BrokerError> {
        let key = names::slots(queue, client);
        let name = name(lease);
        let bound = usize::try_from(bound).unwrap_or(usize::MAX);
        let (mut ended, mut takes): (Vec<(String, Timestamp)>, _) = (Vec::new(), true);
        for _ in 0..TRIES {
            let now = self.settings.clock.now();
            let mut change = "SET #version = #version + :one".to_owned();
            let mut conditions = Vec::with_capacity(ended.len() + 1);
            let mut values = Item::default().number(":one", 1);
            if takes {
                change.push_str(&format!(", #held.#{name} = :end"));
                conditions.push("size(#held) < :most".to_owned());
                values = values.time(":end", now + time).number(":most", bound.saturating_add(ended.len()));
            }
            for (at, (name, end)) in ended.iter().enumerate() {
                change.push_str(&format!("{} #held.#{name}", if at == 0 { " REMOVE" } else { "," }));
                conditions.push(format!("#held.#{name} = :end{at}"));
                values = values.time(&format!(":end{at}"), *end);
            }
            let item = match self.table.update(&key, &change, &conditions.join(" AND "), values, OPERATION).await? {
                Written::Done(_) if takes => return Ok(true),
                Written::Done(item) | Written::Refused(Some(item)) => item,
                Written::Refused(None) if self.first_slot(queue, client, &name, now + time).await? => return Ok(true),
                Written::Refused(None) => continue,
            };
            let held = leases(&item);
            if held.contains_key(&name) {
                // The SDK repeated a write whose answer was lost, and found its own slot.
                return Ok(true);
            }
            let (taken, skew) = (held.len(), self.settings.skew);
            ended = held.into_iter().filter(|(_, end)| *end + skew <= now).collect();
            if taken - ended.len() >= bound {
                return Ok(false);
            }
            ended.truncate(REMOVED_MAX);
            takes = taken - ended.len() < bound;
        }
        Ok(false)
    }

    /// Makes the client's item with one lease, unless the item exists; returns whether the lease has its slot.
    async fn first_slot(
        &self,
        queue: &QueueName,
        client: &ClientId,
        name: &str,
        end: Timestamp,
    ) -> Result<bool, BrokerError> {
        let held = HashMap::from([(name.to_owned(), AttributeValue::N(end.as_millis().to_string()))]);
        let item = Item::at(&names::slots(queue, client)).number("version", 1).with("held", AttributeValue::M(held));
        let written = self.table.put_if(item, "attribute_not_exists(#pk)", Item::default(), OPERATION).await?;
        Ok(match written {
            Written::Done(_) => true,
            Written::Refused(item) => item.is_some_and(|item| leases(&item).contains_key(name)),
        })
    }

    /// Keeps a lease's slot until `end`, even if another process considered it free.
    pub(crate) async fn keep_slot(
        &self,
        queue: &QueueName,
        client: &ClientId,
        lease: &[u8; 16],
        end: Timestamp,
    ) -> Result<(), BrokerError> {
        let (key, name) = (names::slots(queue, client), name(lease));
        let change = format!("SET #held.#{name} = :end, #version = #version + :one");
        let values = Item::default().time(":end", end).number(":one", 1);
        if let Written::Refused(_) =
            self.table.update(&key, &change, "attribute_exists(#held)", values, OPERATION).await?
        {
            self.first_slot(queue, client, &name, end).await?;
        }
        Ok(())
    }

    /// Gives a lease's slot back.
    pub(crate) async fn free_slot(
        &self,
        queue: &QueueName,
        client: &ClientId,
        lease: &[u8; 16],
    ) -> Result<(), BrokerError> {
        let (key, name) = (names::slots(queue, client), name(lease));
        let change = format!("REMOVE #held.#{name} SET #version = #version + :one");
        let condition = format!("attribute_exists(#held.#{name})");
        self.table.update(&key, &change, &condition, Item::default().number(":one", 1), OPERATION).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_kept_as_long_as_its_lease_and_less_than_one_lease_more() {
        let (started, lease) = (Timestamp::from_millis(1_700_000_000_000), Duration::from_millis(30_000));
        let mut ends = std::collections::BTreeSet::new();
        for heartbeat in 0..90_u64 {
            let end = started + Duration::from_millis(heartbeat * 1_000) + lease;
            let kept = kept_until(started, end, lease);
            assert!(kept >= end && kept < end + lease, "{heartbeat}: {kept}");
            ends.insert(kept);
        }
        assert_eq!(ends.len(), 4, "each of them is written once");
    }
}
