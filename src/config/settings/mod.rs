//! Every setting of a process. One field declares one setting: its docs are the help of its flag and its row in the
//! reference, its type is what commands are given, and behind the type stand its flag, its variable, its kind and its default.

use serde::Deserialize;

use super::admin_tokens::AdminToken;
use super::kind::Kind;
use super::listeners::Listener;

mod brokers;
mod operating;
mod serving;

pub(crate) use brokers::{Nats, Sqs, Storage, Streams};
pub(crate) use operating::{Audit, AuditLevel};
pub(crate) use serving::{
    Access, Admin, AskedCertificate, Bounds, HealthProxy, Listen, Log, LogFormat, Order, PROXY_HEADER, ProxyHeader,
    Scaler, ScalerTls, Store, Telemetry, TlsEnd, TlsOf, Worker,
};

/// A setting, as its field declares it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Its key: table and name, `listen.http`.
    pub(crate) key: &'static str,
    /// The flag of the same meaning, without the dashes; empty for what is typed behind `--`.
    pub(crate) flag: &'static str,
    /// The variable of the same meaning; empty if there is none.
    pub(crate) variable: &'static str,
    /// The name of the flag's value in help.
    pub(crate) value_name: &'static str,
    /// The kind of its value.
    pub(crate) kind: Kind,
    /// The value that holds if nobody gives another one, as text.
    pub(crate) default: Option<&'static str>,
    /// The value that a flag without one stands for, as text.
    pub(crate) alone: Option<&'static str>,
    /// The part of the help that its flag is in, if it is not that of its table.
    heading: Option<&'static str>,
    /// The lines of its docs.
    help: &'static [&'static str],
}

impl Setting {
    /// The table that it is in.
    pub(crate) fn table(&self) -> &'static Table {
        let name = self.key.split_once('.').map_or(self.key, |(table, _)| table);
        TABLES.iter().find(|table| table.name == name).unwrap_or(&TABLES[0])
    }

    /// The part of the help that its flag is in.
    pub(crate) fn heading(&self) -> Option<&'static str> {
        self.heading.or(self.table().heading)
    }

    /// Its meaning.
    pub(crate) fn help(&self) -> String {
        joined(self.help)
    }

    /// The same with this value if nobody gives another one.
    const fn or(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    /// The same with this value where the flag has none.
    const fn alone(self, value: &'static str) -> Self {
        Self { alone: Some(value), ..self }
    }

    /// The same in another part of the help.
    const fn under(self, heading: &'static str) -> Self {
        Self { heading: Some(heading), ..self }
    }
}

/// A setting with a value.
const fn value(flag: &'static str, variable: &'static str, value_name: &'static str, kind: Kind) -> Setting {
    Setting { key: "", flag, variable, value_name, kind, default: None, alone: None, heading: None, help: &[] }
}

/// A setting that is on or off, and off unless somebody says so.
const fn switch(flag: &'static str, variable: &'static str) -> Setting {
    value(flag, variable, "", Kind::Flag).or("false")
}

/// A table of settings.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its name in a file.
    pub(crate) name: &'static str,
    /// The part of the help that flags of its settings are in.
    heading: Option<&'static str>,
    /// The lines of its docs.
    about: &'static [&'static str],
    /// Its settings, in the order of the reference.
    pub(crate) settings: &'static [Setting],
}

impl Table {
    /// Its subject.
    pub(crate) fn about(&self) -> String {
        joined(self.about)
    }
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// Declares a table: a struct that commands are given, and a `TABLE` with a [`Setting`] for each of its fields.
macro_rules! table {
    ($(#[doc = $about:literal])* $name:literal, $heading:expr, $type:ident {
        $($(#[doc = $help:literal])* $field:ident: $of:ty = $setting:expr;)*
    }) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, Deserialize)]
        pub(crate) struct $type {
            $($(#[doc = $help])* pub(crate) $field: $of,)*
        }

        impl $type {
            pub(super) const TABLE: Table = Table {
                name: $name,
                heading: $heading,
                about: &[$($about),*],
                settings: &[$(Setting {
                    key: concat!($name, ".", stringify!($field)),
                    help: &[$($help),*],
                    ..$setting
                }),*],
            };
        }
    };
}
use table;

/// Every table, in the order of the reference.
pub(crate) const TABLES: &[Table] = &[
    Listen::TABLE,
    Bounds::TABLE,
    Store::TABLE,
    Access::TABLE,
    Admin::TABLE,
    Scaler::TABLE,
    Audit::TABLE,
    Nats::TABLE,
    Sqs::TABLE,
    Streams::TABLE,
    Worker::TABLE,
    Telemetry::TABLE,
    Log::TABLE,
];

/// Every setting of a process, in the order of the reference.
pub(crate) fn all() -> impl Iterator<Item = &'static Setting> {
    TABLES.iter().flat_map(|table| table.settings)
}

/// The setting of a key.
pub(crate) fn of(key: &str) -> Option<&'static Setting> {
    all().find(|setting| setting.key == key)
}

/// The settings of a process, which `serve`, `worker`, `bridge`, `dev` and `provision` are given. Each reads the tables that
/// are its own; in the others there are the defaults.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Settings {
    pub(crate) listen: Listen,
    pub(crate) limits: Bounds,
    pub(crate) store: Store,
    pub(crate) access: Access,
    pub(crate) admin: Admin,
    /// The tokens of the admin port that are in the file.
    #[serde(skip)]
    pub(crate) admin_tokens: Vec<AdminToken>,
    /// All listeners of a server, with those of the file.
    #[serde(skip)]
    pub(crate) listeners: Vec<Listener>,
    pub(crate) audit: Audit,
    pub(crate) scaler: Scaler,
    pub(crate) nats: Nats,
    pub(crate) sqs: Sqs,
    pub(crate) streams: Streams,
    pub(crate) worker: Worker,
    pub(crate) telemetry: Telemetry,
    pub(crate) log: Log,
}

/// The command of a worker, which is typed behind `--`.
pub(crate) const COMMAND: &str = "worker.command";

/// The scheme of a server's worker address where it speaks TLS.
pub(crate) const TLS_SCHEME: &str = "tls://";

/// Variables that hold a secret: a file is no place for them, and neither is a command line.
pub(crate) const SECRETS: &[&str] =
    &["RELAY_ADMIN_TOKEN", "RELAY_NATS_PASSWORD", "RELAY_NATS_TOKEN", "RELAY_WORKER_KEY"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_the_name_of_its_flag() {
        for setting in all().filter(|setting| setting.key != COMMAND) {
            let ours = match setting.table().name {
                // OpenTelemetry's, which every program reads.
                "telemetry" => "OTEL_EXPORTER",
                // Handlers are given `RELAY_QUEUE` and the like, and may start relay in turn.
                "worker" => "RELAY_WORKER",
                _ => "RELAY",
            };
            let expected = format!("{ours}_{}", setting.flag.to_uppercase().replace('-', "_"));
            assert_eq!(setting.variable, expected, "{}", setting.key);
        }
    }

    #[test]
    fn a_default_is_of_its_kind() {
        for setting in all() {
            for text in setting.default.into_iter().chain(setting.alone) {
                assert!(setting.kind.parse(text).is_ok(), "{}: {text}", setting.key);
            }
            assert!(!setting.help().is_empty(), "{} is not explained", setting.key);
        }
    }
}
