//! The layers of what holds for a process, put on top of each other: defaults, file, variables, flags. Each value has its type
//! already and knows where it comes from; the `config` crate merges them, and serde makes [`Settings`] of the whole.

use std::collections::{BTreeMap, BTreeSet};

use ::config::{Config, ConfigError, Map, Source, Value as Untyped, ValueKind};

use super::file::File;
use super::kind::{Kind, Value};
use super::settings::{self, Settings};
use super::values::show_duration;

/// Where jobs are kept: one of them.
pub(super) const PLACES: [&str; 4] = ["store.data", "store.memory", "nats.servers", "sqs.enabled"];

/// Settings of which one holds, with the reason. The highest layer that names one of them takes the others out of those below.
pub(super) const ALTERNATIVES: [(&[&str], &str); 8] = [
    (&PLACES, "jobs are kept in one place"),
    (&["access.keys", "access.no_auth"], "every caller is asked for a key, or none is"),
    (&["access.clients", "access.no_auth"], "every caller is asked who it is, or none is"),
    (&["nats.creds", "nats.nkey", "nats.user", "nats.token_file"], "relay has one identity on NATS"),
    (&["listen.nats", "nats.no_listen"], "clients are served over NATS, or they are not"),
    (&["worker.connect", "nats.servers"], WORKS_IN_ONE_PLACE),
    (&["worker.connect", "sqs.enabled"], WORKS_IN_ONE_PLACE),
    (&["worker.command", "worker.http"], "one of them does a worker's jobs"),
];
const WORKS_IN_ONE_PLACE: &str = "a worker takes its jobs from a server, or from the broker itself";

/// One layer: values by key, each with its origin.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer(BTreeMap<&'static str, (Value, String)>);

impl Layer {
    /// The settings of a file; the origin of each is its place there.
    pub(crate) fn of_file(file: &File) -> Self {
        let placed =
            |(key, (value, line)): (&&'static str, &(Value, usize))| (*key, (value.clone(), file.place(*line)));
        Self(file.values.iter().map(placed).collect())
    }

    /// Adds a value.
    pub(crate) fn set(&mut self, key: &'static str, value: Value, origin: String) {
        self.0.insert(key, (value, origin));
    }

    fn names(&self) -> Names {
        self.0.iter().filter(|(_, (value, _))| *value != Value::Flag(false)).map(|(key, _)| *key).collect()
    }

    /// Takes out what means nothing below a layer that names `named`, out of layers that together name `below`.
    fn take_out(&mut self, named: &Names, below: &Names, clients_on_nats: bool) {
        let mut out: BTreeSet<&str> = BTreeSet::new();
        for (group, _) in ALTERNATIVES.iter().filter(|(group, _)| group.iter().any(|key| named.contains(key))) {
            out.extend(group.iter().filter(|key| !named.contains(*key)));
        }
        // Lines about a broker that was named below, and is not the one, say nothing any more.
        let replaced = |place| below.contains(place) && out.contains(place);
        let (nats, sqs) = (replaced("nats.servers"), replaced("sqs.enabled"));
        let (to_nats, to_sqs) = (named.contains("nats.servers"), named.contains("sqs.enabled"));
        self.0.retain(|key, _| {
            let about_nats = key.starts_with("nats.") || key.starts_with("listen.nats_waits");
            let of_nats = nats && !clients_on_nats && about_nats;
            let about_streams = key.starts_with("streams.") && !(to_sqs && *key == "streams.provision");
            let of_streams = (nats || sqs) && !to_nats && about_streams;
            let of_sqs = sqs && key.starts_with("sqs.");
            let of_server = (to_nats || to_sqs)
                && ["worker.key_file", "worker.ca", "worker.certificate", "worker.certificate_key"].contains(key);
            !(out.contains(key) || of_nats || of_streams || of_sqs || of_server)
        });
    }
}

/// Keys of settings that a layer names: a flag that is `false` is not named.
type Names = BTreeSet<&'static str>;

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Untyped>, ConfigError> {
        Ok(self.0.iter().map(|(key, (value, origin))| ((*key).to_owned(), merged(value, Some(origin)))).collect())
    }
}

/// A value as `config` keeps it: of the type that it has, so that nothing is made to fit.
fn merged(value: &Value, origin: Option<&String>) -> Untyped {
    let kind = match value {
        Value::Text(text) => ValueKind::String(text.clone()),
        Value::Duration(span) => ValueKind::String(show_duration(*span)),
        Value::Number(number) => ValueKind::U64(*number),
        Value::Factor(factor) => ValueKind::Float(*factor),
        Value::Flag(flag) => ValueKind::Boolean(*flag),
        Value::List(texts) => ValueKind::Array(texts.iter().map(|text| Untyped::new(origin, text.clone())).collect()),
    };
    Untyped::new(origin, kind)
}

/// The values that hold, by key.
#[derive(Clone, Debug)]
pub(crate) struct Merged(Config);

/// A value that holds, and where it comes from; `None` for a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) value: String,
    pub(crate) origin: Option<String>,
}

impl Merged {
    /// Puts layers on top of each other, the lowest first.
    ///
    /// # Errors
    /// Never, unless a value does not have the type of its kind.
    pub(crate) fn of(mut layers: Vec<Layer>) -> Result<Self, ConfigError> {
        let clients_on_nats = layers.iter().any(|layer| layer.names().contains("listen.nats"));
        for at in (1..layers.len()).rev() {
            let (lower, above) = layers.split_at_mut(at);
            let (named, below) = (above[0].names(), lower.iter().flat_map(Layer::names).collect());
            lower.iter_mut().for_each(|layer| layer.take_out(&named, &below, clients_on_nats));
        }
        let mut config = Config::builder();
        for setting in settings::all() {
            let default = match setting.default.map(|text| setting.kind.parse(text)) {
                Some(Ok(value)) => merged(&value, None),
                None if setting.kind.is_list() => merged(&Value::List(Vec::new()), None),
                _ => Untyped::new(None, ValueKind::Nil),
            };
            config = config.set_default(setting.key, default)?;
        }
        layers.into_iter().fold(config, |config, layer| config.add_source(layer)).build().map(Self)
    }

    /// The whole as what commands are given.
    ///
    /// # Errors
    /// As [`Merged::of`].
    pub(crate) fn settings(&self) -> Result<Settings, ConfigError> {
        self.0.clone().try_deserialize()
    }

    fn value(&self, key: &str) -> Option<&Untyped> {
        let (table, name) = key.split_once('.')?;
        let ValueKind::Table(tables) = &self.0.cache.kind else { return None };
        let ValueKind::Table(table) = &tables.get(table)?.kind else { return None };
        table.get(name)
    }

    /// The value of a setting, if there is one.
    pub(crate) fn get(&self, key: &str) -> Option<Held> {
        let value = self.value(key)?;
        let text = match &value.kind {
            ValueKind::Nil => return None,
            ValueKind::Array(texts) if texts.is_empty() => return None,
            ValueKind::Array(texts) => texts.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            _ => value.to_string(),
        };
        let unit =
            if settings::of(key).is_some_and(|setting| matches!(setting.kind, Kind::Size(_))) { "B" } else { "" };
        Some(Held { value: format!("{text}{unit}"), origin: value.origin().map(ToOwned::to_owned) })
    }

    /// Where a setting comes from that somebody gave; `None` for defaults and for what is `false`.
    pub(crate) fn origin(&self, key: &str) -> Option<String> {
        let value = self.value(key).filter(|value| !matches!(value.kind, ValueKind::Boolean(false)))?;
        value.origin().map(ToOwned::to_owned)
    }

    /// Whether somebody gave it.
    pub(crate) fn is(&self, key: &str) -> bool {
        self.origin(key).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(values: &[(&'static str, &str)], origin: &str) -> Layer {
        let mut layer = Layer::default();
        for (key, text) in values {
            layer.set(key, settings::of(key).unwrap().kind.parse(text).unwrap(), origin.to_owned());
        }
        layer
    }

    #[test]
    fn each_setting_reaches_its_field_with_the_type_of_its_kind_and_keeps_its_origin() {
        for setting in settings::all() {
            let text = match setting.kind {
                Kind::Address => "127.0.0.1:7",
                Kind::Duration(_) => "90s",
                Kind::Size(_) => "3MiB",
                Kind::Flag => "true",
                Kind::Count(..) => "5",
                Kind::Choice(words) => words[1].0,
                Kind::ClientShares => "some=50",
                Kind::AddressRanges => "10.0.1.0/28",
                _ => "some",
            };
            let merged = Merged::of(vec![layer(&[(setting.key, text)], "somewhere:7")]).unwrap();
            merged.settings().unwrap_or_else(|error| panic!("{}: {error}", setting.key));
            let held = merged.get(setting.key).unwrap();
            assert_eq!(held.origin.as_deref(), Some("somewhere:7"), "{}", setting.key);
            assert_eq!(
                held.value,
                if matches!(setting.kind, Kind::Size(_)) { "3145728B" } else { text },
                "{}",
                setting.key
            );
            assert!(merged.is(setting.key), "{}", setting.key);
        }
    }

    #[test]
    fn a_flag_that_is_false_is_not_given_and_a_text_that_reads_so_is() {
        let merged = Merged::of(vec![layer(&[("store.memory", "false"), ("store.data", "false")], "x")]).unwrap();
        assert_eq!((merged.is("store.memory"), merged.is("store.data")), (false, true));
    }

    #[test]
    fn a_layer_that_names_one_of_several_alternatives_takes_the_others_out_of_those_below() {
        let file = [
            ("nats.servers", "a"),
            ("nats.user", "me"),
            ("streams.replicas", "3"),
            ("access.no_auth", "true"),
            ("listen.idle", "9s"),
            ("worker.key_file", "k"),
        ];
        for (above, left) in [
            (&[("store.memory", "true")][..], &["access.no_auth", "listen.idle", "worker.key_file"][..]),
            (&[("sqs.enabled", "true")], &["access.no_auth", "listen.idle"]),
            (&[("nats.servers", "b")], &["nats.user", "streams.replicas", "access.no_auth", "listen.idle"]),
            (
                &[("nats.creds", "c"), ("access.keys", "k")],
                &["nats.servers", "streams.replicas", "listen.idle", "worker.key_file"],
            ),
            (
                &[("store.memory", "false"), ("nats.nkey", "n")],
                &["nats.servers", "streams.replicas", "access.no_auth", "listen.idle", "worker.key_file"],
            ),
        ] {
            let merged = Merged::of(vec![layer(&file, "file"), layer(above, "above")]).unwrap();
            let of_file = file.iter().map(|(key, _)| *key);
            let held: Vec<_> = of_file.filter(|key| merged.origin(key).as_deref() == Some("file")).collect();
            assert_eq!(held, left, "below {above:?}");
        }
    }
}
