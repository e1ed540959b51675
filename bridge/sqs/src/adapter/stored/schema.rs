//! The layout of the table, its creation and the facts that it keeps about itself; and the wanted attributes of the
//! queues.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::describe_table::DescribeTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, IndexStatus, KeySchemaElement, KeyType, Projection,
    ProjectionType, ScalarAttributeType, TableDescription, TableStatus, Tag, TimeToLiveSpecification, TimeToLiveStatus,
};
use aws_sdk_sqs::types::QueueAttributeName as Name;
use tokio::sync::OnceCell;

use crate::adapter::aws::connect::{Effect, failed};
use crate::adapter::aws::item::Item;
use crate::adapter::aws::table::{Table, Written, malformed, no_values};
use crate::names;
use relay_bridge::contract::LogId;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

const OPERATION: &str = "provision";
/// The index of open records, by the time of the sweep's next look, and of dead letters.
pub(crate) const BY_TIME: &str = "by_time";
/// The index of a client's jobs.
pub(crate) const BY_CLIENT: &str = "by_client";
/// The version of the table's layout. A greater minor version only adds to it, and this build reads such a table.
const MAJOR: u32 = 1;
const MINOR: u32 = 0;
/// How long a new table may take to become active.
const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
/// How long SQS keeps a message, in seconds. It is the longest that SQS allows, because a job may wait for days.
const RETENTION: &str = "1209600";
/// The smallest `MaximumMessageSize` in bytes: a message has a payload of up to 16 KiB, with the names about it.
const MESSAGE_MIN: u32 = 262_144;
/// The tag that tells relay's resources from others.
const TAG: (&str, &str) = ("application", "relay");

/// The facts about the table itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// Identifies the log of results. It is made with the table.
    pub(crate) log: LogId,
}

/// Whether the table exists and takes calls.
pub(crate) async fn table_exists(table: &Table) -> Result<bool, BrokerError> {
    let call = table.client().describe_table().table_name(table.name());
    match call.send().await {
        Ok(output) => {
            let found = output.table.as_ref();
            Ok(found.is_some_and(is_in_use))
        }
        Err(error) if matches!(error.as_service_error(), Some(DescribeTableError::ResourceNotFoundException(_))) => {
            Ok(false)
        }
        Err(error) => Err(failed(OPERATION, Effect::None, error)),
    }
}

/// Whether the table and its indexes take calls. They do while AWS changes them.
fn is_in_use(table: &TableDescription) -> bool {
    let indexes = table.global_secondary_indexes.as_deref().unwrap_or_default();
    matches!(table.table_status, Some(TableStatus::Active | TableStatus::Updating))
        && indexes.iter().all(|index| matches!(index.index_status, Some(IndexStatus::Active | IndexStatus::Updating)))
}

/// Creates the table with its indexes and its TTL unless it exists, waits until it takes calls, and writes the facts
/// about it.
pub(crate) async fn create_table(table: &Table) -> Result<(), BrokerError> {
    let wrong = |error| malformed(OPERATION, error);
    let mut call = table.client().create_table().table_name(table.name()).billing_mode(BillingMode::PayPerRequest);
    for name in ["pk", "sk", "ix", "ix_at", "cl", "cl_at"] {
        let defined = AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S);
        call = call.attribute_definitions(defined.build().map_err(wrong)?);
    }
    let key = |partition: &str, place: &str| {
        let part = |name, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
        Ok::<_, BrokerError>(vec![
            part(partition, KeyType::Hash).map_err(wrong)?,
            part(place, KeyType::Range).map_err(wrong)?,
        ])
    };
    let index = |name: &str, partition: &str, place: &str, projection: Projection| {
        let index = GlobalSecondaryIndex::builder().index_name(name).set_key_schema(Some(key(partition, place)?));
        index.projection(projection).build().map_err(wrong)
    };
    let keys_only = Projection::builder().projection_type(ProjectionType::KeysOnly).build();
    // Open records are counted by client.
    let with_client =
        Projection::builder().projection_type(ProjectionType::Include).non_key_attributes("client").build();
    let tag = Tag::builder().key(TAG.0).value(TAG.1).build().map_err(wrong)?;
    let created = call
        .set_key_schema(Some(key("pk", "sk")?))
        .global_secondary_indexes(index(BY_TIME, "ix", "ix_at", with_client)?)
        .global_secondary_indexes(index(BY_CLIENT, "cl", "cl_at", keys_only)?)
        .tags(tag)
        .send()
        .await;
    match created {
        Ok(_) => {}
        // Another process was faster.
        Err(error) if matches!(error.as_service_error(), Some(CreateTableError::ResourceInUseException(_))) => {}
        Err(error) => return Err(failed(OPERATION, Effect::Write, error)),
    }
    let until = tokio::time::Instant::now() + ACTIVE_WITHIN;
    while !table_exists(table).await? {
        if tokio::time::Instant::now() >= until {
            let why = format!("table `{}` is not active after {} s: look at it", table.name(), ACTIVE_WITHIN.as_secs());
            return Err(BrokerError::new(BrokerErrorKind::Unavailable, OPERATION, why));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    expire_items(table).await?;
    write_meta(table).await
}

/// Makes AWS remove items that are past their keeping.
async fn expire_items(table: &Table) -> Result<(), BrokerError> {
    let client = table.client();
    let found = client.describe_time_to_live().table_name(table.name()).send().await;
    let found = found.map_err(|error| failed(OPERATION, Effect::None, error))?;
    let status = found.time_to_live_description.and_then(|found| found.time_to_live_status);
    if matches!(status, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)) {
        return Ok(());
    }
    let wanted = TimeToLiveSpecification::builder().attribute_name("expires").enabled(true).build();
    let wanted = wanted.map_err(|error| malformed(OPERATION, error))?;
    let call = client.update_time_to_live().table_name(table.name()).time_to_live_specification(wanted);
    call.send().await.map_err(|error| failed(OPERATION, Effect::Write, error))?;
    Ok(())
}

async fn write_meta(table: &Table) -> Result<(), BrokerError> {
    let item = Item::at(&names::meta())
        .number("major", MAJOR)
        .number("minor", MINOR)
        .binary("log", uuid::Uuid::new_v4().as_bytes().as_slice());
    match table.put_if(item, "attribute_not_exists(#pk)", no_values(), OPERATION).await? {
        Written::Done(_) | Written::Refused(_) => Ok(()),
    }
}

/// Reads the facts about the table.
///
/// # Errors
/// `StateConflict` if it was not provisioned, or is of a version that this build does not read.
pub(crate) async fn read_meta(table: &Table, operation: &'static str) -> Result<Meta, BrokerError> {
    let conflict = |why: String| BrokerError::new(BrokerErrorKind::StateConflict, operation, why);
    let unready = || conflict(format!("table `{}` is not relay's yet: `relay provision` makes it so", table.name()));
    let item = table.get(&names::meta(), operation).await?.ok_or_else(unready)?;
    let (major, minor) = (item.need_number::<u32>("major")?, item.need_number::<u32>("minor")?);
    if major != MAJOR {
        let table = table.name();
        return Err(conflict(format!(
            "table `{table}` has layout {major}.{minor}; this relay reads {MAJOR}.x: upgrade it"
        )));
    }
    let log = item.need_binary("log")?;
    let log = <[u8; 16]>::try_from(log.as_ref()).map_err(|_| unready())?;
    Ok(Meta { log: LogId(log) })
}

/// The attributes with which every queue of SQS is created.
pub(crate) fn plain_attributes(fifo: bool) -> HashMap<Name, String> {
    let mut wanted = HashMap::from([
        (Name::MessageRetentionPeriod, RETENTION.to_owned()),
        (Name::SqsManagedSseEnabled, "true".to_owned()),
    ]);
    if fifo {
        wanted.insert(Name::FifoQueue, "true".to_owned());
    }
    wanted
}

/// The wanted attributes of a queue of SQS in which jobs are in line.
pub(crate) fn queue_attributes(fifo: bool) -> HashMap<Name, String> {
    let mut wanted = plain_attributes(fifo);
    if fifo {
        wanted.extend([
            // Each job is a group of its own, so that none waits for another, and so is its deduplication.
            (Name::DeduplicationScope, "messageGroup".to_owned()),
            (Name::FifoThroughputLimit, "perMessageGroupId".to_owned()),
        ]);
    }
    wanted
}

/// The attributes of a queue of SQS that differ from the wanted ones and can be changed, with the wanted values. A
/// queue with a KMS key of its own keeps it.
pub(crate) fn queue_differences(found: &HashMap<Name, String>, fifo: bool) -> HashMap<Name, String> {
    let mut wanted = queue_attributes(fifo);
    wanted.remove(&Name::FifoQueue);
    wanted.remove(&Name::SqsManagedSseEnabled);
    wanted.retain(|name, value| found.get(name) != Some(value));
    if found.get(&Name::RedrivePolicy).is_some_and(|policy| !policy.is_empty()) {
        // A redrive policy would take jobs out of line that wait for their clients' slots. An empty one is none.
        wanted.insert(Name::RedrivePolicy, String::new());
    }
    let size = found.get(&Name::MaximumMessageSize).and_then(|size| size.parse::<u32>().ok());
    if size.is_some_and(|size| size < MESSAGE_MIN) {
        wanted.insert(Name::MaximumMessageSize, MESSAGE_MIN.to_string());
    }
    wanted
}

/// The tags of everything that relay creates.
pub(crate) fn queue_tags() -> HashMap<String, String> {
    HashMap::from([(TAG.0.to_owned(), TAG.1.to_owned())])
}

/// The facts about the table, read once.
pub(crate) struct TableMeta {
    table: Table,
    known: OnceCell<Meta>,
}

impl TableMeta {
    pub(crate) fn new(table: Table) -> Self {
        Self { table, known: OnceCell::new() }
    }

    pub(crate) async fn get(&self, operation: &'static str) -> Result<Meta, BrokerError> {
        self.known.get_or_try_init(|| read_meta(&self.table, operation)).await.copied()
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::GlobalSecondaryIndexDescription;

    use super::*;

    #[test]
    fn a_table_that_aws_is_changing_is_there() {
        let table = |status| TableDescription::builder().table_status(status);
        let index = |status| GlobalSecondaryIndexDescription::builder().index_status(status).build();
        for status in [TableStatus::Active, TableStatus::Updating] {
            assert!(is_in_use(&table(status.clone()).build()), "{status}");
            let with_index = |of| table(status.clone()).global_secondary_indexes(index(of)).build();
            assert!(is_in_use(&with_index(IndexStatus::Active)) && is_in_use(&with_index(IndexStatus::Updating)));
            assert!(!is_in_use(&with_index(IndexStatus::Creating)), "an index that is not filled yet");
        }
        for status in [TableStatus::Creating, TableStatus::Deleting, TableStatus::Archived] {
            assert!(!is_in_use(&table(status.clone()).build()), "{status}");
        }
    }

    #[test]
    fn a_queue_differs_in_what_can_be_changed_only() {
        assert!(queue_differences(&queue_attributes(true), true).is_empty());
        let bare = queue_differences(&HashMap::new(), false);
        assert_eq!(bare, HashMap::from([(Name::MessageRetentionPeriod, RETENTION.to_owned())]));
    }
}
