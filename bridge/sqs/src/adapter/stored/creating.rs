//! Creating the table and the queues of SQS in which jobs are in line, and changing such queues.

use std::collections::HashMap;

use aws_sdk_sqs::types::QueueAttributeName;

use crate::adapter::aws::connect::{Effect, failed};
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::aws::table::Table;
use crate::adapter::stored::schema;
use crate::names;
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;

const OPERATION: &str = "provision";

/// The attributes to change in the queue of SQS, with their wanted values; `None` if there is no such queue.
pub(crate) async fn differences(
    queues: &SqsQueues,
    queue: &QueueName,
) -> Result<Option<HashMap<QueueAttributeName, String>>, BrokerError> {
    let Some(url) = queues.find(queue, OPERATION).await? else { return Ok(None) };
    let call = queues.client().get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All);
    let output = call.send().await.map_err(|error| failed(OPERATION, Effect::None, error))?;
    Ok(Some(schema::queue_differences(&output.attributes.unwrap_or_default(), queues.config().fifo)))
}

/// Creates the table if it does not exist. Creates the queue of SQS as well, or changes those of its attributes that
/// are not as wanted.
pub(crate) async fn create(table: &Table, queues: &SqsQueues, queue: &QueueName) -> Result<(), BrokerError> {
    if !schema::table_exists(table).await? || schema::read_meta(table, OPERATION).await.is_err() {
        schema::create_table(table).await?;
    }
    let name = names::sqs_queue(queues.config(), queue, OPERATION)?;
    match differences(queues, queue).await? {
        None => {
            let call = queues
                .client()
                .create_queue()
                .queue_name(name)
                .set_attributes(Some(schema::queue_attributes(queues.config().fifo)))
                .set_tags(Some(schema::queue_tags()));
            call.send().await.map_err(|error| failed(OPERATION, Effect::Write, error))?;
        }
        Some(differs) if differs.is_empty() => {}
        Some(differs) => {
            let url = queues.of(queue, OPERATION).await?.url.clone();
            let call = queues.client().set_queue_attributes().queue_url(url).set_attributes(Some(differs));
            call.send().await.map_err(|error| failed(OPERATION, Effect::Write, error))?;
        }
    }
    Ok(())
}
