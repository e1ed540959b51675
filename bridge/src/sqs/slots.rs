//! Clients with a bound on what runs: an item with the leases that they hold. Only they pay for it.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;

use super::Sqs;
use super::finish::random;
use super::item::Item;
use super::names;
use super::table::Written;
use crate::contract::{ClientId, QueueName, Timestamp};
use crate::error::{BrokerError, BrokerErrorKind};

const OPERATION: &str = "lease";
/// How often the item is tried that others change at the same time.
const TRIES: u32 = 30;

/// The leases in an item, each with its end.
type Leases = HashMap<String, Timestamp>;

fn read(item: Option<&Item>) -> (Leases, u64) {
    let held = item.and_then(|item| item.0.get("held")).and_then(|held| held.as_m().ok());
    let lease = |(lease, end): (&String, &AttributeValue)| {
        Some((lease.clone(), Timestamp::from_millis(end.as_n().ok()?.parse().ok()?)))
    };
    let leases = held.map(|held| held.iter().filter_map(lease).collect()).unwrap_or_default();
    (leases, item.and_then(|item| item.get_number("version")).unwrap_or(0))
}

fn name(lease: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*lease).simple().to_string()
}

impl Sqs {
    /// Takes a slot of the client's for a lease, if fewer than `bound` are taken. Slots of leases that ended are free.
    pub(super) async fn take_slot(
        &self,
        queue: &QueueName,
        client: &ClientId,
        lease: &[u8; 16],
        time: Duration,
        bound: u32,
    ) -> Result<bool, BrokerError> {
        let skew = self.0.settings.skew;
        self.change_slots(queue, client, |leases, now| {
            leases.retain(|_, end| *end + skew > now);
            if leases.contains_key(&name(lease)) {
                return None;
            }
            if leases.len() >= usize::try_from(bound).unwrap_or(usize::MAX) {
                return Some(false);
            }
            leases.insert(name(lease), now + time);
            Some(true)
        })
        .await
    }

    /// Keeps a lease's slot until `end`.
    pub(super) async fn keep_slot(
        &self,
        queue: &QueueName,
        client: &ClientId,
        lease: &[u8; 16],
        end: Timestamp,
    ) -> Result<(), BrokerError> {
        self.change_slots(queue, client, |leases, _| {
            leases.insert(name(lease), end);
            Some(true)
        })
        .await
        .map(drop)
    }

    /// Gives a lease's slot back.
    pub(super) async fn free_slot(
        &self,
        queue: &QueueName,
        client: &ClientId,
        lease: &[u8; 16],
    ) -> Result<(), BrokerError> {
        self.change_slots(queue, client, |leases, _| leases.remove(&name(lease)).map(|_| true)).await.map(drop)
    }

    /// Changes the client's leases: `Some(true)` writes what was changed, `Some(false)` and `None` leave it.
    async fn change_slots(
        &self,
        queue: &QueueName,
        client: &ClientId,
        change: impl Fn(&mut Leases, Timestamp) -> Option<bool>,
    ) -> Result<bool, BrokerError> {
        let key = names::slots(queue, client);
        for tried in 0..TRIES {
            let item = self.table().get(&key, OPERATION).await?;
            let (mut leases, version) = read(item.as_ref());
            match change(&mut leases, self.clock().now()) {
                Some(true) => {}
                Some(false) => return Ok(false),
                None => return Ok(true),
            }
            let held = leases.into_iter().map(|(lease, end)| (lease, AttributeValue::N(end.as_millis().to_string())));
            let item = Item::at(&key).number("version", version + 1).with("held", AttributeValue::M(held.collect()));
            let (condition, values) = match version {
                0 => ("attribute_not_exists(#version)", Item::default()),
                _ => ("#version = :version", Item::default().number(":version", version)),
            };
            if let Written::Done(_) = self.table().put_if(item, condition, values, OPERATION).await? {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(5 * u64::from(tried + 1)).mul_f64(random())).await;
        }
        let why = format!("others keep changing what `{client}` runs in `{queue}`");
        Err(BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, why))
    }
}
