//! Reads a file whole, and finds every mistake in it at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use relay_bridge::contract::ClientId;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::admin_tokens::{ADMIN_TOKEN, AdminToken};
use super::authorities::{self, CLIENT_CA};
use super::bridges::{self, BRIDGES_MAX};
use super::kind::{Kind, Value};
use super::listeners::{LISTENER, Listener};
use super::mistake::{Mistake, meant};
use super::policy::{POLICY, PolicySetting};
use super::queues::{Patch, Queue, Written};
use super::reader::{Reader, Table};
use super::settings::{self, TABLES};
use crate::bridge::config::BridgeConfig;
use crate::tls::AuthorityFiles;

/// The table of what holds for every queue, and the list of queues with that of their clients.
const DEFAULTS: &str = "queue_defaults";
const QUEUE: &str = "queue";
const CLIENT: &str = "client";
/// The list of bridges.
const BRIDGE: &str = "bridge";

/// The content of a file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Settings by key, with the line of each.
    pub(crate) values: Written,
    /// Its queues, each with what holds for all of them, in the order of the file.
    pub(crate) queues: Vec<Queue>,
    /// Its bridges, in the order of the file.
    pub(crate) bridges: Vec<BridgeConfig>,
    /// Its tokens for the admin port, in the order of the file.
    pub(crate) admin_tokens: Vec<AdminToken>,
    /// Its listeners, in the order of the file.
    pub(crate) listeners: Vec<Listener>,
    /// The values of its bridges, tokens, listeners and authorities: `bridge.<name>.<key>`, each with the value and its line.
    pub(crate) bridge_values: Vec<(String, Value, usize)>,
    /// The authorities that sign clients' certificates, each with its line.
    pub(crate) authorities: Vec<(AuthorityFiles, usize)>,
}

impl File {
    /// A place in it, `relay.toml:12`.
    pub(crate) fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}

/// Reads the `text` of the file at `path`: what can be read of it, and everything that is wrong in it.
pub(crate) fn read(path: &Path, text: &str) -> (File, Vec<Mistake>) {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader::new(path, text);
    for error in errors {
        let fix = if error.message().contains("duplicate key") {
            "leave one of them out"
        } else {
            "correct the line; https://toml.io has the syntax"
        };
        reader.mistake(error.span().unwrap_or_default(), "", error.message(), fix);
    }
    let mut file = File {
        path: path.to_owned(),
        values: Written::new(),
        queues: Vec::new(),
        bridges: Vec::new(),
        admin_tokens: Vec::new(),
        listeners: Vec::new(),
        bridge_values: Vec::new(),
        authorities: Vec::new(),
    };
    let mut defaults = Patch::default();
    // Values for all queues come first: they are below those that are written for each.
    for (key, value) in document.get_ref().iter().filter(|(key, _)| key.get_ref() == DEFAULTS) {
        if let Some(table) = reader.table(DEFAULTS, key.span(), value) {
            defaults.values = reader.policy(DEFAULTS, table, false);
        }
    }
    for (key, value) in document.get_ref() {
        match key.get_ref().as_ref() {
            DEFAULTS => {}
            QUEUE => file.queues = reader.queues(key.span(), value, &defaults),
            CLIENT_CA => {
                file.authorities = authorities::read(&mut reader, key.span(), value, &mut file.bridge_values);
            }
            BRIDGE => reader.bridges(key.span(), value, &mut file),
            LISTENER => reader.listeners(key.span(), value, &mut file),
            ADMIN_TOKEN => reader.admin_tokens(key.span(), value, &mut file),
            name if TABLES.iter().any(|table| table.name == name) => {
                if let Some(table) = reader.table(name, key.span(), value) {
                    reader.settings(name, table, &mut file.values);
                }
            }
            name => reader.unknown_table(
                key.span(),
                name,
                !matches!(value.get_ref(), DeValue::Table(_) | DeValue::Array(_)),
            ),
        }
    }
    (file, reader.mistakes)
}

impl Reader<'_> {
    fn settings(&mut self, table: &str, values: &Table<'_>, into: &mut Written) {
        for (key, value) in values {
            let full = format!("{table}.{}", key.get_ref());
            match settings::of(&full) {
                Some(setting) => {
                    if let Some(value) = self.value(&full, setting.kind, value) {
                        into.insert(setting.key, (value, self.line(&key.span())));
                    }
                }
                None => {
                    let own = settings::all().filter_map(|setting| setting.key.split_once('.'));
                    let own: Vec<_> = own.filter(|(of, _)| *of == table).map(|(_, name)| name).collect();
                    let elsewhere =
                        settings::all().find(|setting| setting.key.ends_with(&format!(".{}", key.get_ref())));
                    let fix = match (meant(key.get_ref(), own.iter().copied()), elsewhere) {
                        (Some(name), _) => format!("did you mean `{name}`?"),
                        (None, Some(setting)) => format!("did you mean `{}`?", setting.key),
                        (None, None) => format!("[{table}] has {}", own.join(", ")),
                    };
                    self.mistake(key.span(), &full, "there is no such setting", fix);
                }
            }
        }
    }

    /// `is_value`: what has this name is no table, so that a setting without its table may be meant.
    fn unknown_table(&mut self, span: Range<usize>, name: &str, is_value: bool) {
        let lists = [QUEUE, DEFAULTS, BRIDGE, ADMIN_TOKEN, CLIENT_CA, LISTENER];
        let tables = TABLES.iter().map(|table| table.name).chain(lists);
        let setting = settings::all().find(|setting| setting.key.ends_with(&format!(".{name}")));
        let fix = match (meant(name, tables.clone()), setting) {
            (Some(table), _) if !is_value => format!("did you mean `{table}`?"),
            (_, Some(setting)) => format!("`{}` is below its table: did you mean that?", setting.key),
            (Some(table), None) => format!("did you mean `{table}`?"),
            (None, None) => format!("there are {}", tables.collect::<Vec<_>>().join(", ")),
        };
        self.mistake(span, name, "there is no such table or setting", fix);
    }

    /// The policy's part of `table`, called `name`. Keys that a queue has beside it are left out.
    fn policy(&mut self, name: &str, table: &Table<'_>, of_client: bool) -> Written {
        let mut written = Written::new();
        let beside: &[&str] = match (name == DEFAULTS, of_client) {
            (true, _) => &[],
            (false, true) => &["name"],
            (false, false) => &["name", CLIENT],
        };
        for (key, value) in table.iter().filter(|(key, _)| !beside.contains(&key.get_ref().as_ref())) {
            let full = format!("{name}.{}", key.get_ref());
            let known = |setting: &&PolicySetting| setting.is_per_client() || !of_client;
            let Some(setting) = POLICY.iter().filter(known).find(|setting| setting.key == key.get_ref()) else {
                let names = POLICY.iter().filter(known).map(|setting| setting.key).chain(beside.iter().copied());
                let fix = match meant(key.get_ref(), names.clone()) {
                    _ if key.get_ref() == "paused" => {
                        "a pause is not configuration: pause and resume the queue".to_owned()
                    }
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("there are {}", names.collect::<Vec<_>>().join(", ")),
                };
                self.mistake(key.span(), &full, "there is no such setting", fix);
                continue;
            };
            if let Some(value) = self.value(&full, setting.kind, value) {
                written.insert(setting.key, (value, self.line(&key.span())));
            }
        }
        written
    }

    fn queues(&mut self, span: Range<usize>, value: &Spanned<DeValue<'_>>, defaults: &Patch) -> Vec<Queue> {
        let mut queues: Vec<Queue> = Vec::new();
        for (table, span) in self.entries(QUEUE, span, value) {
            let Some(name) = self.name(QUEUE, Kind::Queue, span.clone(), table) else { continue };
            let line = self.line(&span);
            let full = format!("{QUEUE}.{name}");
            let mut patch = defaults.clone();
            patch.values.extend(self.policy(&full, table, false));
            if let Some((key, clients)) = table.iter().find(|(key, _)| key.get_ref() == CLIENT) {
                patch.clients = self.clients(&full, key.span(), clients);
            }
            let Ok(name) = name.parse() else { continue };
            if let Some(first) = queues.iter().find(|queue| queue.name == name) {
                let what = format!("this queue is on line {} already", first.line);
                self.mistake(span, &full, what, "make one of both, or give one of them another name");
                continue;
            }
            queues.push(Queue { name, line, patch });
        }
        queues
    }

    fn clients(
        &mut self,
        queue: &str,
        span: Range<usize>,
        value: &Spanned<DeValue<'_>>,
    ) -> BTreeMap<ClientId, Written> {
        let mut clients: BTreeMap<ClientId, Written> = BTreeMap::new();
        for (table, span) in self.entries(&format!("{QUEUE}.{CLIENT}"), span, value) {
            let Some(name) = self.name(&format!("{queue}.{CLIENT}"), Kind::Client, span.clone(), table) else {
                continue;
            };
            let full = format!("{queue}.{CLIENT}.{name}");
            let written = self.policy(&full, table, true);
            let Ok(name) = name.parse() else { continue };
            if clients.insert(name, written).is_some() {
                self.mistake(span, &full, "this client is there twice in one queue", "make one of both");
            }
        }
        clients
    }

    fn bridges(&mut self, span: Range<usize>, value: &Spanned<DeValue<'_>>, into: &mut File) {
        let mut lines: Vec<usize> = Vec::new();
        for (table, span) in self.entries(BRIDGE, span, value) {
            let Some((bridge, values)) = bridges::read(self, &span, table) else { continue };
            let full = format!("{BRIDGE}.{}", bridge.name);
            if let Some(first) = into.bridges.iter().position(|known| known.name == bridge.name) {
                let what = format!("this bridge is on line {} already", lines[first]);
                self.mistake(span, &full, what, "give one another name");
            } else if into.bridges.len() == BRIDGES_MAX {
                let what = format!("there are more than {BRIDGES_MAX}: each has connections of its own");
                self.mistake(span, &full, what, "run them in several processes, with a file each");
            } else {
                lines.push(self.line(&span));
                into.bridge_values.extend(values);
                into.bridges.push(bridge);
            }
        }
    }
}
