//! A log line as one flat JSON object: `timestamp`, `level`, `target`, `message`, then the fields of the event and of the
//! spans around it, such as `request_id`. A collector finds a field under the same name wherever it was said.

use std::fmt;

use relay_bridge::clock::Clock;
use relay_bridge::support::without_passwords;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Fields of these names are the line's own: an event that has one of them keeps it as `field.NAME`.
const OWN: [&str; 4] = ["timestamp", "level", "target", "message"];

/// Writes flat lines. Spans' fields must be kept as [`JsonFields`] writes them.
pub(super) struct Flat;

impl<S, N> FormatEvent<S, N> for Flat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        // The innermost span, and the event last, have the last word.
        for span in context.event_scope().into_iter().flat_map(tracing_subscriber::registry::Scope::from_root) {
            let extensions = span.extensions();
            let text = extensions.get::<FormattedFields<JsonFields>>().map(|fields| fields.fields.as_str());
            if let Some(Ok(Value::Object(of_span))) = text.map(serde_json::from_str) {
                of_span.into_iter().for_each(|(name, value)| fields.set(&name, value));
            }
        }
        event.record(&mut fields);
        let text = |value: &str| Value::from(value).to_string();
        write!(
            writer,
            "{{\"timestamp\":\"{}\",\"level\":\"{}\",\"target\":{},\"message\":{}",
            Clock::system().now(),
            event.metadata().level(),
            text(event.metadata().target()),
            text(&fields.message)
        )?;
        for (name, value) in &fields.others {
            write!(writer, ",{}:{value}", text(name))?;
        }
        writeln!(writer, "}}")
    }
}

/// The line that says how many are not there.
pub(super) fn lost(lines: u64) -> String {
    let (now, target, message) = (Clock::system().now(), module_path!(), super::lost(lines));
    format!(
        "{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"target\":\"{target}\",\"message\":\"{message}\",\"lines\":{lines}}}\n"
    )
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, name: &str, value: Value) {
        let name = if OWN.contains(&name) { format!("field.{name}") } else { name.to_owned() };
        self.others.insert(name, value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = without_passwords(&format!("{value:?}")).into_owned();
        if field.name() == "message" { self.message = text } else { self.set(field.name(), text.into()) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), without_passwords(value).into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Lines;
    use super::*;

    #[test]
    fn a_line_is_one_flat_object_with_the_fields_of_its_spans() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields::new())
            .event_format(Flat)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let outer = tracing::info_span!("request", request_id = "r-1", path = "/v1/\"jobs\"");
            let _entered = outer.enter();
            tracing::warn!(attempt = 3, late = true, level = "x", error = %"no\nlight", job_id = "j", to = "nats://u:hush@a", "it {} well", "went");
        });
        let text = lines.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "timestamp": line["timestamp"], "level": "WARN", "target": module_path!(), "message": "it went well",
            "request_id": "r-1", "path": "/v1/\"jobs\"", "attempt": 3, "late": true, "field.level": "x",
            "error": "no\nlight", "job_id": "j", "to": "nats://u:***@a",
        });
        assert_eq!(line, expected);
        assert!(text.starts_with("{\"timestamp\":\"20"), "{text}");
    }
}
