//! The table of DynamoDB: consistent reads, writes under a condition, and queries of one partition.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{
    AttributeValue, KeysAndAttributes, ReturnValue, ReturnValuesOnConditionCheckFailure, Select,
};

use crate::adapter::aws::connect::{Effect, failed};
use crate::adapter::aws::item::{Item, names_in};
use crate::names::Key;
use relay_bridge::contract::Timestamp;
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// The most items of one batch of reads.
const BATCH_MAX: usize = 100;
/// How often items that a batch left out are asked for, and the wait before the second time; later waits are longer.
const LEFT_OUT_TRIES: u32 = 8;
const LEFT_OUT_WAIT: Duration = Duration::from_millis(50);

/// One table of DynamoDB.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    client: Client,
    name: String,
}

/// The outcome of a write under a condition.
#[derive(Clone, Debug)]
pub(crate) enum Written {
    /// The write was done. After an update: the item as it is now, or in the version that was asked for.
    Done(Item),
    /// The condition did not hold; the item as it is, if there is one.
    Refused(Option<Item>),
}

/// A query for items of one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query<'a> {
    /// The index, or the table itself.
    pub(crate) index: Option<&'static str>,
    /// The name of the partition's attribute and its value.
    pub(crate) partition: (&'static str, &'a str),
    /// The name of the place's attribute, and the first and the last place wanted.
    pub(crate) places: Option<(&'static str, &'a str, &'a str)>,
    /// From the last place to the first.
    pub(crate) backwards: bool,
    /// The most items that are looked at.
    pub(crate) limit: Option<i32>,
    /// Go on after this key.
    pub(crate) after: Option<Item>,
    /// Only items of this client.
    pub(crate) client: Option<&'a str>,
}

/// The items that a query found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) items: Vec<Item>,
    /// The key after which to go on, if there may be more.
    pub(crate) next: Option<Item>,
}

impl Table {
    pub(crate) fn new(client: Client, name: &str) -> Self {
        Self { client, name: name.to_owned() }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The item as it is now.
    pub(crate) async fn get(&self, key: &Key, operation: &'static str) -> Result<Option<Item>, BrokerError> {
        let call = self.client.get_item().table_name(&self.name).set_key(Some(Item::at(key).0)).consistent_read(true);
        let output = call.send().await.map_err(|error| self.failed(operation, Effect::None, error))?;
        Ok(output.item.map(Item))
    }

    /// Whether the item exists and is not past its keeping.
    pub(crate) async fn is_kept(
        &self,
        key: &Key,
        now: Timestamp,
        operation: &'static str,
    ) -> Result<bool, BrokerError> {
        let call = self.client.get_item().table_name(&self.name).set_key(Some(Item::at(key).0)).consistent_read(true);
        let call =
            call.projection_expression("#pk, #keep").set_expression_attribute_names(Some(names_in(&["#pk, #keep"])));
        let output = call.send().await.map_err(|error| self.failed(operation, Effect::None, error))?;
        Ok(output.item.is_some_and(|item| !Item(item).is_past(now)))
    }

    /// The items as they are now, in any order; keys without an item are left out.
    ///
    /// # Errors
    /// Also `Overloaded` if AWS keeps leaving some out.
    pub(crate) async fn get_many(&self, keys: &[Key], operation: &'static str) -> Result<Vec<Item>, BrokerError> {
        self.get_parts(keys, None, operation).await
    }

    /// The same with no other attributes than those in `parts` (`#name`, with commas between), if there are any. The others cost
    /// as many read units, and don't come.
    ///
    /// # Errors
    /// As [`Self::get_many`].
    pub(crate) async fn get_parts(
        &self,
        keys: &[Key],
        parts: Option<&str>,
        operation: &'static str,
    ) -> Result<Vec<Item>, BrokerError> {
        let mut items = Vec::with_capacity(keys.len());
        for keys in keys.chunks(BATCH_MAX) {
            let mut wanted: Vec<_> = keys.iter().map(|key| Item::at(key).0).collect();
            for tried in 0..=LEFT_OUT_TRIES {
                if wanted.is_empty() {
                    break;
                }
                if tried == LEFT_OUT_TRIES {
                    let kind = BrokerErrorKind::Overloaded { retry_after: Duration::from_secs(1) };
                    return Err(BrokerError::new(kind, operation, "DynamoDB leaves out part of what is read"));
                }
                if tried > 0 {
                    tokio::time::sleep(LEFT_OUT_WAIT * tried).await;
                }
                let of_table = KeysAndAttributes::builder()
                    .set_keys(Some(wanted))
                    .consistent_read(true)
                    .set_projection_expression(parts.map(str::to_owned))
                    .set_expression_attribute_names(parts.map(|parts| names_in(&[parts])));
                let of_table = of_table.build().map_err(|error| malformed(operation, error))?;
                let call = self.client.batch_get_item().request_items(&self.name, of_table);
                let output = call.send().await.map_err(|error| self.failed(operation, Effect::None, error))?;
                let found = output.responses.into_iter().flat_map(HashMap::into_values).flatten();
                items.extend(found.map(Item));
                let left = output.unprocessed_keys.into_iter().flat_map(HashMap::into_values);
                wanted = left.flat_map(|left| left.keys).collect();
            }
        }
        Ok(items)
    }

    /// Writes a whole item, whether or not there is one already.
    pub(crate) async fn put(&self, item: Item, operation: &'static str) -> Result<(), BrokerError> {
        let call = self.client.put_item().table_name(&self.name).set_item(Some(item.0));
        call.send().await.map_err(|error| self.failed(operation, Effect::Write, error))?;
        Ok(())
    }

    /// Writes a whole item if `condition` holds. Names stand as `#name` in it, values as `:name`.
    pub(crate) async fn put_if(
        &self,
        item: Item,
        condition: &str,
        values: Item,
        operation: &'static str,
    ) -> Result<Written, BrokerError> {
        let values = Some(values.0).filter(|values| !values.is_empty());
        let call = self
            .client
            .put_item()
            .table_name(&self.name)
            .set_item(Some(item.0))
            .condition_expression(condition)
            .set_expression_attribute_names(Some(names_in(&[condition])))
            .set_expression_attribute_values(values)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match call.send().await {
            Ok(_) => Ok(Written::Done(Item::default())),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(refused)) => {
                    Ok(Written::Refused(refused.item.clone().map(Item)))
                }
                _ => Err(self.failed(operation, Effect::Write, error)),
            },
        }
    }

    /// Changes an item if `condition` holds, which may be empty; returns the item as it is now.
    pub(crate) async fn update(
        &self,
        key: &Key,
        change: &str,
        condition: &str,
        values: Item,
        operation: &'static str,
    ) -> Result<Written, BrokerError> {
        self.update_telling(ReturnValue::AllNew, key, change, condition, values, operation).await
    }

    /// As [`Self::update`]; `told` says which version of a changed item is returned.
    pub(crate) async fn update_telling(
        &self,
        told: ReturnValue,
        key: &Key,
        change: &str,
        condition: &str,
        values: Item,
        operation: &'static str,
    ) -> Result<Written, BrokerError> {
        let call = self
            .client
            .update_item()
            .table_name(&self.name)
            .set_key(Some(Item::at(key).0))
            .update_expression(change)
            .set_condition_expression(Some(condition.to_owned()).filter(|condition| !condition.is_empty()))
            .set_expression_attribute_names(Some(names_in(&[change, condition])))
            .set_expression_attribute_values(Some(values.0).filter(|values| !values.is_empty()))
            .return_values(told)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match call.send().await {
            Ok(output) => Ok(Written::Done(Item(output.attributes.unwrap_or_default()))),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                    Ok(Written::Refused(refused.item.clone().map(Item)))
                }
                _ => Err(self.failed(operation, Effect::Write, error)),
            },
        }
    }

    /// Removes an item; returns the item as it was, if it existed.
    pub(crate) async fn remove(&self, key: &Key, operation: &'static str) -> Result<Option<Item>, BrokerError> {
        let call = self.client.delete_item().table_name(&self.name).set_key(Some(Item::at(key).0));
        let call = call.return_values(ReturnValue::AllOld);
        let output = call.send().await.map_err(|error| self.failed(operation, Effect::Write, error))?;
        Ok(output.attributes.map(Item))
    }

    /// Reads items of one partition. The read is consistent on the table itself, and a little late on an index.
    pub(crate) async fn query(&self, query: Query<'_>, operation: &'static str) -> Result<Found, BrokerError> {
        let output = self.query_call(&query, false).send().await;
        let output = output.map_err(|error| self.failed(operation, Effect::None, error))?;
        let next = output.last_evaluated_key.filter(|key| !key.is_empty()).map(Item);
        Ok(Found { items: output.items.unwrap_or_default().into_iter().map(Item).collect(), next })
    }

    /// How many items of one partition there are.
    pub(crate) async fn count(&self, mut query: Query<'_>, operation: &'static str) -> Result<u64, BrokerError> {
        let mut counted = 0;
        loop {
            let output = self.query_call(&query, true).send().await;
            let output = output.map_err(|error| self.failed(operation, Effect::None, error))?;
            counted += u64::try_from(output.count).unwrap_or(0);
            query.after = output.last_evaluated_key.filter(|key| !key.is_empty()).map(Item);
            if query.after.is_none() {
                return Ok(counted);
            }
        }
    }

    fn query_call(
        &self,
        query: &Query<'_>,
        count: bool,
    ) -> aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder {
        let mut wanted = format!("#{} = :partition", query.partition.0);
        let mut values = Item::default().text(":partition", query.partition.1);
        if let Some((name, from, to)) = query.places {
            wanted.push_str(&format!(" AND #{name} BETWEEN :from AND :to"));
            values = values.text(":from", from).text(":to", to);
        }
        let filter = query.client.map(|client| {
            values = std::mem::take(&mut values).text(":client", client);
            "#client = :client".to_owned()
        });
        let names = names_in(&[&wanted, filter.as_deref().unwrap_or_default()]);
        self.client
            .query()
            .table_name(&self.name)
            .set_index_name(query.index.map(str::to_owned))
            .consistent_read(query.index.is_none())
            .key_condition_expression(wanted)
            .set_filter_expression(filter)
            .set_expression_attribute_names(Some(names))
            .set_expression_attribute_values(Some(values.0))
            .scan_index_forward(!query.backwards)
            .set_limit(query.limit)
            .set_exclusive_start_key(query.after.clone().map(|key| key.0))
            .set_select(count.then_some(Select::Count))
    }

    /// An error of a call on this table.
    pub(crate) fn failed<E>(
        &self,
        operation: &'static str,
        effect: Effect,
        error: aws_sdk_dynamodb::error::SdkError<E>,
    ) -> BrokerError
    where
        E: aws_sdk_dynamodb::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let error = failed(operation, effect, error);
        if error.kind() == BrokerErrorKind::NotFound {
            // To a caller `NotFound` means a job or a queue.
            let why = format!("there is no table `{}`: `relay provision` creates it", self.name);
            return BrokerError::new(BrokerErrorKind::StateConflict, operation, why);
        }
        error
    }
}

/// Values for an expression that takes none.
pub(crate) fn no_values() -> Item {
    Item::default()
}

/// The error for a call that the SDK refuses to build: a bug of relay.
pub(crate) fn malformed(operation: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> BrokerError {
    BrokerError::new(BrokerErrorKind::Invalid, operation, "relay built a call that the SDK refuses").with_source(error)
}

impl From<Written> for Option<Item> {
    fn from(written: Written) -> Self {
        match written {
            Written::Done(item) => Some(item),
            Written::Refused(item) => item,
        }
    }
}

/// A map of attributes as the SDK takes it.
pub(crate) type Attributes = HashMap<String, AttributeValue>;
