//! Asking the server for its streams and changing them. Changes are made to the configuration as the server sent it, so
//! that fields which this build does not know survive.

use async_nats::jetstream::stream::{Config, Info};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::api::Api;
use crate::error::{BrokerError, BrokerErrorKind};

/// The most streams that are listed; a deployment has one a queue and three.
const LISTED_MAX: usize = 10_000;

/// A stream that is there.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// What the server says of it.
    pub(super) info: Info,
    /// Its configuration, with the fields that [`Config`] lacks.
    raw: Map<String, Value>,
}

impl Stream {
    fn read(mut value: Value, operation: &'static str) -> Result<Self, BrokerError> {
        let raw = match value.get_mut("config") {
            Some(Value::Object(config)) => config.clone(),
            _ => Map::new(),
        };
        let info = serde_json::from_value(value).map_err(|error| unreadable(operation, error))?;
        Ok(Self { info, raw })
    }

    /// `next` written over the configuration as it came: what differs between what was read and `next` is changed.
    fn changed(&self, next: &Config, operation: &'static str) -> Result<Map<String, Value>, BrokerError> {
        let fields = |config: &Config| match serde_json::to_value(config) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => Ok(Map::new()),
            Err(error) => Err(unreadable(operation, error)),
        };
        let (before, after) = (fields(&self.info.config)?, fields(next)?);
        let mut raw = self.raw.clone();
        for (name, value) in &after {
            if before.get(name) != Some(value) {
                raw.insert(name.clone(), value.clone());
            }
        }
        // What a type leaves out where it is the default.
        before.keys().filter(|name| !after.contains_key(*name)).for_each(|name| drop(raw.remove(name)));
        Ok(raw)
    }
}

/// The stream `name`, asked of its leader, or `None` if there is none.
pub(super) async fn find(api: &Api, name: &str, operation: &'static str) -> Result<Option<Stream>, BrokerError> {
    match api.call(format!("STREAM.INFO.{name}"), &Value::Null, operation).await {
        Ok(value) => Stream::read(value, operation).map(Some),
        Err(error) if error.kind() == BrokerErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The stream `name`, which must be there.
pub(super) async fn get(api: &Api, name: &str, operation: &'static str) -> Result<Stream, BrokerError> {
    find(api, name, operation).await?.ok_or_else(|| {
        let why = format!("there is no stream `{name}`: run `relay provision`");
        BrokerError::new(BrokerErrorKind::NotFound, operation, why)
    })
}

/// Creates the stream, or finds the one of this name that another created at the same time, whatever its configuration.
pub(super) async fn create(api: &Api, config: &Config, operation: &'static str) -> Result<Created, BrokerError> {
    let refusal = match api.call(format!("STREAM.CREATE.{}", config.name), config, operation).await {
        Ok(value) => return Stream::read(value, operation).map(|_| Created::New),
        Err(error) if error.kind() == BrokerErrorKind::Invalid => error,
        Err(error) => return Err(error),
    };
    find(api, &config.name, operation).await?.map(|known| Created::Known(Box::new(known))).ok_or(refusal)
}

/// What became of a [`create`].
#[derive(Debug)]
pub(super) enum Created {
    /// It is as it was asked for.
    New,
    /// It was there.
    Known(Box<Stream>),
}

/// Changes `stream` to `next`.
pub(super) async fn update(
    api: &Api,
    stream: &Stream,
    next: &Config,
    operation: &'static str,
) -> Result<Stream, BrokerError> {
    let fields = stream.changed(next, operation)?;
    Stream::read(api.call(format!("STREAM.UPDATE.{}", next.name), &fields, operation).await?, operation)
}

/// Every stream with a subject that `subject` covers, in the order of names.
pub(super) async fn list(api: &Api, subject: &str, operation: &'static str) -> Result<Vec<Stream>, BrokerError> {
    #[derive(Deserialize)]
    struct Listed {
        total: usize,
        #[serde(default)]
        streams: Option<Vec<Value>>,
    }
    let mut streams = Vec::new();
    loop {
        let page = serde_json::json!({ "offset": streams.len(), "subject": subject });
        let page: Listed = api.call("STREAM.LIST".to_owned(), &page, operation).await?;
        let found = page.streams.unwrap_or_default();
        let is_last = found.is_empty();
        for value in found {
            streams.push(Stream::read(value, operation)?);
        }
        if is_last || streams.len() >= page.total.min(LISTED_MAX) {
            streams.sort_by(|a, b| a.info.config.name.cmp(&b.info.config.name));
            return Ok(streams);
        }
    }
}

fn unreadable(operation: &'static str, error: serde_json::Error) -> BrokerError {
    let why = "the server answered what this build can't read: is it a newer one?";
    BrokerError::new(BrokerErrorKind::Corrupt, operation, why).with_source(error)
}
