//! Lists, reads, creates and changes streams at the server. Changes are made to the configuration as the server sent
//! it, so that fields which this build does not know survive.

use std::collections::BTreeMap;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::{Config, Info};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use crate::stored::record::Stored;
use crate::wire::api::Api;
use crate::wire::refusal::{no_stream, refused_about};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// The most streams, or consumers of one queue, that are listed.
const LISTED_MAX: usize = 20_000;

/// A stream that exists.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// The server's description of the stream.
    pub(crate) info: Info,
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

    /// The configuration as it came, with the fields of `next` that differ from what was read.
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
        // The type leaves out a field that has its default, so it is removed here as well.
        before.keys().filter(|name| !after.contains_key(*name)).for_each(|name| drop(raw.remove(name)));
        Ok(raw)
    }
}

/// The stream `name`, asked of its leader, or `None` if there is none.
pub(crate) async fn find(api: &Api, name: &str, operation: &'static str) -> Result<Option<Stream>, BrokerError> {
    let subject = format!("STREAM.INFO.{name}");
    match api.call_raw(&subject, &Value::Null, operation).await? {
        Ok(value) => Stream::read(value, operation).map(Some),
        Err(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(refused_about(&subject, &error, operation)),
    }
}

/// The stream `name`, which must be there.
pub(crate) async fn get(api: &Api, name: &str, operation: &'static str) -> Result<Stream, BrokerError> {
    find(api, name, operation).await?.ok_or_else(|| {
        no_stream(name, operation).unwrap_or_else(|| {
            let why = format!("there is no stream `{name}`: run `relay provision`");
            BrokerError::new(BrokerErrorKind::NotFound, operation, why)
        })
    })
}

/// Creates the stream, or finds the one of this name that another created at the same time, whatever its configuration.
pub(crate) async fn create(api: &Api, config: &Config, operation: &'static str) -> Result<Created, BrokerError> {
    let refusal = match api.call(format!("STREAM.CREATE.{}", config.name), config, operation).await {
        Ok(value) => return Stream::read(value, operation).map(|_| Created::New),
        Err(error) if error.kind() == BrokerErrorKind::Invalid => error,
        Err(error) => return Err(error),
    };
    find(api, &config.name, operation).await?.map(|known| Created::Known(Box::new(known))).ok_or(refusal)
}

/// The outcome of [`create`].
#[derive(Debug)]
pub(crate) enum Created {
    /// The stream was created as it was asked for.
    New,
    /// A stream of this name existed.
    Known(Box<Stream>),
}

/// Changes `stream` to `next`.
pub(crate) async fn update(
    api: &Api,
    stream: &Stream,
    next: &Config,
    operation: &'static str,
) -> Result<Stream, BrokerError> {
    let fields = stream.changed(next, operation)?;
    Stream::read(api.call(format!("STREAM.UPDATE.{}", next.name), &fields, operation).await?, operation)
}

/// Every stream with a subject that `subject` covers, in the order of names.
///
/// # Errors
/// `Unavailable` if a stream has no leader that answers: the list would not be complete.
pub(crate) async fn list(api: &Api, subject: &str, operation: &'static str) -> Result<Vec<Stream>, BrokerError> {
    let (streams, silent) = list_answering(api, subject, operation).await?;
    whole(streams, &silent, operation)
}

/// The streams of [`list`] whose leader answers, and the names of the others. It takes 4 s if there are others.
pub(crate) async fn list_answering(
    api: &Api,
    subject: &str,
    operation: &'static str,
) -> Result<(Vec<Stream>, Vec<String>), BrokerError> {
    let body = serde_json::json!({ "subject": subject });
    let (found, silent) = pages::<Value>(api, "STREAM.LIST", body, operation).await?;
    let mut streams = found.into_iter().map(|value| Stream::read(value, operation)).collect::<Result<Vec<_>, _>>()?;
    // One whose servers are all away is listed as it was made, without what is in it.
    streams.retain(|stream| !silent.contains(&stream.info.config.name));
    streams.sort_by(|a, b| a.info.config.name.cmp(&b.info.config.name));
    Ok((streams, silent))
}

/// The names of the streams with a subject that `subject` covers, whether they have a leader or not.
pub(crate) async fn list_names(api: &Api, subject: &str, operation: &'static str) -> Result<Vec<String>, BrokerError> {
    let body = serde_json::json!({ "subject": subject });
    pages(api, "STREAM.NAMES", body, operation).await.map(|(names, _)| names)
}

impl Api {
    /// The last message on `subject`, as the leader has it, for messages that mostly are not there. The server counts a
    /// read of a message that is not there as an error of its API, and operators watch that figure. So it is asked
    /// first whether there is one.
    pub(crate) async fn last_if_any(
        &self,
        stream: &str,
        subject: String,
        operation: &'static str,
    ) -> Result<Option<Stored>, BrokerError> {
        match subjects(self, stream, &subject, 0, operation).await?.0.is_empty() {
            true => Ok(None),
            false => self.last_at_leader(stream, subject, operation).await,
        }
    }
}

/// All pages of a list, and the names of the entries that did not answer: between several servers a list ends after 4 s
/// without them. The pages overlap if something is made while they are read.
pub(crate) async fn pages<T: DeserializeOwned>(
    api: &Api,
    call: &str,
    mut body: Value,
    operation: &'static str,
) -> Result<(Vec<T>, Vec<String>), BrokerError> {
    #[derive(Deserialize)]
    struct Page<T> {
        #[serde(default)]
        total: usize,
        #[serde(default)]
        limit: usize,
        #[serde(default = "none", alias = "streams", alias = "consumers")]
        listed: Option<Vec<T>>,
        #[serde(default)]
        missing: Option<Vec<String>>,
    }
    fn none<T>() -> Option<Vec<T>> {
        None
    }
    let (mut listed, mut silent, mut offset) = (Vec::new(), Vec::new(), 0);
    loop {
        body["offset"] = offset.into();
        let page: Page<T> = api.call(call.to_owned(), &body, operation).await?;
        listed.extend(page.listed.unwrap_or_default());
        silent.extend(page.missing.unwrap_or_default());
        // By the page's limit and not by the entries that came: an entry that is missing has its place as well.
        offset += page.limit;
        if page.limit == 0 || offset >= page.total.min(LISTED_MAX) {
            return Ok((listed, silent));
        }
    }
}

/// A page of the subjects that `filter` covers and that have messages, from place `offset` on, and how many there are in all:
/// 100,000 come at once.
pub(crate) async fn subjects(
    api: &Api,
    stream: &str,
    filter: &str,
    offset: usize,
    operation: &'static str,
) -> Result<(Vec<String>, usize), BrokerError> {
    #[derive(Deserialize)]
    struct Page {
        #[serde(default)]
        total: usize,
        state: State,
    }
    #[derive(Deserialize)]
    struct State {
        #[serde(default)]
        subjects: Option<BTreeMap<String, IgnoredAny>>,
    }
    let body = serde_json::json!({ "subjects_filter": filter, "offset": offset });
    let page: Page = api.call(format!("STREAM.INFO.{stream}"), &body, operation).await?;
    Ok((page.state.subjects.unwrap_or_default().into_keys().collect(), page.total))
}

/// The entries of a list, if none is missing.
///
/// # Errors
/// `Unavailable`.
pub(crate) fn whole<T>(listed: Vec<T>, silent: &[String], operation: &'static str) -> Result<Vec<T>, BrokerError> {
    let Some(first) = silent.first() else { return Ok(listed) };
    let why = format!("`{first}`, and {} more, have no leader in NATS that answers", silent.len() - 1);
    Err(BrokerError::new(BrokerErrorKind::Unavailable, operation, why))
}

fn unreadable(operation: &'static str, error: serde_json::Error) -> BrokerError {
    let why = "the server answered what this build can't read: is it a newer one?";
    BrokerError::new(BrokerErrorKind::Corrupt, operation, why).with_source(error)
}
