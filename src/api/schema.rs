//! How the contract's ids, times and words look in a JSON Schema. Their types are the bridge's, which knows nothing of
//! OpenAPI; these stand for them in the document and nowhere else.

use std::borrow::Cow;

use relay_bridge::contract::ids::KEY_BYTES_MAX;
use relay_bridge::contract::{JobState, Outcome as Ended};
use relay_bridge::result_log::Reset as Why;
use utoipa::openapi::schema::{ObjectBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{KnownFormat, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::Slug;

macro_rules! schemas {
    ($($name:ident = $description:literal, $schema:expr;)+) => {$(
        #[doc = $description]
        pub(crate) enum $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $schema.description(Some($description)).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }
    )+};
}

schemas! {
    JobId = "A job. Under a key it is the same for every retry: UUIDv8 of client, queue and key; else UUIDv7.", uuid();
    RunId = "One life of a job, UUIDv7: greater than the job's run before. Deduplicate results on it.", uuid();
    ClientName = "A client.", text("^[a-z0-9][a-z0-9-]{0,62}$", "orders");
    QueueName = "A queue.", text("^[a-z0-9][a-z0-9_-]{0,62}$", "default");
    Key = "An idempotency key: 1 to 255 visible ASCII characters; bare and quoted it is the same key.",
        text(r"^[\x21-\x7e]+$", "order-4711").max_length(Some(KEY_BYTES_MAX));
    Time = "A moment, RFC 3339 in UTC with milliseconds.",
        text(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$", "2026-11-23T02:31:26.000Z")
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
    Span = "A duration: a whole number and a unit.", text("^[0-9]{1,9}(ms|s|m|h|d)$", "20s");
    Cursor = "A position in the caller's results, as relay gave it out, or `now`.", text("^[A-Za-z0-9_-]+$", "now");
    Outcome = "How a run ended.", words(Ended::ALL.iter().map(|outcome| outcome.as_str()));
    State = "Where a job is: it waits, a worker has it, or its run's outcome.",
        words([JobState::Queued, JobState::Leased].into_iter().chain(Ended::ALL.map(JobState::Finished)).map(JobState::as_str));
    SlugName = "What was refused, for programs: each has a page, and a released one never vanishes.",
        words(Slug::ALL.iter().map(|slug| slug.as_str()));
    Reset = "Why reading restarted at the oldest result that is kept.",
        ObjectBuilder::new().schema_type(Type::String)
            .enum_values(Some([Why::LogReplaced, Why::OlderThanRetention].map(|why| serde_json::json!(why))));
    Failure = "Why a run did not succeed.",
        ObjectBuilder::new()
            .property("reason", described("A short word for programs."))
            .property("detail", described("What happened, for people; it may hold the end of a handler's stderr."))
            .required("reason").required("detail");
    ProgressView = "How far a handler is.",
        ObjectBuilder::new()
            .property("percent", ObjectBuilder::new()
                .schema_type(SchemaType::Array(vec![Type::Number, Type::Null]))
                .minimum(Some(0)).maximum(Some(100)))
            .property("message", described("A line for people."))
            .required("message");
    Json = "Any JSON.", ObjectBuilder::new().schema_type(SchemaType::AnyValue);
    Bytes = "Any bytes, of any content type.", ObjectBuilder::new().schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)));
    Events = "Server-sent events (HTML, section 9.2), each with JSON for its data.",
        ObjectBuilder::new().schema_type(SchemaType::AnyValue);
}

fn text(pattern: &str, example: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).examples([serde_json::json!(example)])
}

fn uuid() -> ObjectBuilder {
    text("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", "019ab0d2-7c3e-7000-8000-000000000000")
        .format(Some(SchemaFormat::Custom("uuid".to_owned())))
}

fn words(words: impl IntoIterator<Item = &'static str>) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.into_iter().collect::<Vec<_>>()))
}

fn described(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}
