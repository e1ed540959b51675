//! The values of one `[[bridge]]`, read by a schema, and the mistakes in what they say together.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::super::kind::{Kind, Value};
use super::super::mistake::{Mistake, meant};
use super::super::reader::Reader;

/// An entry that a table may have.
#[derive(Clone, Copy)]
pub(super) enum Entry {
    /// A value.
    May(Kind),
    /// A value that has to be there.
    Must(Kind),
    /// A table below.
    Table(Schema),
    /// Queues at the source, each with its name at the target.
    Queues,
}

/// The entries that a table may have, by their keys.
pub(super) type Schema = &'static [(&'static str, Entry)];

/// The values of one bridge by their keys, `from.nats.servers`; a table that is written is there as well, without a value.
pub(super) struct Written {
    /// How it is called in mistakes: `bridge`, and its name if it has one.
    called: String,
    line: usize,
    entries: BTreeMap<String, (Option<Value>, usize)>,
    pub(super) mistakes: Vec<Mistake>,
}

impl Written {
    /// Reads the table at `span` by `schema`. `None` if something can't be read, which the reader was told then.
    pub(super) fn read(
        reader: &mut Reader<'_>,
        name: &str,
        schema: Schema,
        span: &Range<usize>,
        table: &DeTable<'_>,
    ) -> Option<Self> {
        let line = reader.line(span);
        let called = if name.is_empty() { "bridge".to_owned() } else { format!("bridge.{name}") };
        let mut written = Self { called, line, entries: BTreeMap::new(), mistakes: Vec::new() };
        let before = reader.mistakes.len();
        written.table(reader, "", schema, span, table);
        (reader.mistakes.len() == before).then_some(written)
    }

    /// Reads a table that is called `path` below the bridge.
    fn table(&mut self, reader: &mut Reader<'_>, path: &str, schema: Schema, span: &Range<usize>, table: &DeTable<'_>) {
        let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        for (key, value) in table {
            let known = schema.iter().find(|(name, _)| *name == key.get_ref());
            let (path, full) = (below(key.get_ref()), format!("{}.{}", self.called, below(key.get_ref())));
            let line = reader.line(&key.span());
            match (known.map(|(_, entry)| entry), value.get_ref()) {
                (None, _) => {
                    let names = schema.iter().map(|(name, _)| *name);
                    let fix = match meant(key.get_ref(), names.clone()) {
                        Some(name) => format!("did you mean `{name}`?"),
                        None => format!("there are {}", names.collect::<Vec<_>>().join(", ")),
                    };
                    reader.mistake(key.span(), &full, "there is no such setting", fix);
                }
                (Some(Entry::May(kind) | Entry::Must(kind)), _) => {
                    let value = reader.value(&full, *kind, value);
                    self.entries.insert(path, (value, line));
                }
                (Some(Entry::Table(schema)), DeValue::Table(table)) => {
                    self.entries.insert(path.clone(), (None, line));
                    self.table(reader, &path, schema, &key.span(), table);
                }
                (Some(Entry::Queues), DeValue::Table(table)) => {
                    self.entries.insert(path.clone(), (None, line));
                    for (queue, target) in table {
                        let (path, full) =
                            (format!("{path}.{}", queue.get_ref()), format!("{full}.{}", queue.get_ref()));
                        let source = DeValue::String(queue.get_ref().clone());
                        reader.value(&full, Kind::Queue, &toml::Spanned::new(queue.span(), source));
                        let target = reader.value(&full, Kind::Queue, target);
                        self.entries.insert(path, (target, reader.line(&queue.span())));
                    }
                }
                (Some(_), _) => {
                    reader.mistake(key.span(), &full, "this is a table", format!("write {path} = {{ ... }}"));
                }
            }
        }
        for (name, _) in
            schema.iter().filter(|(name, entry)| matches!(entry, Entry::Must(_)) && !table.contains_key(*name))
        {
            let full = format!("{}.{}", self.called, below(name));
            reader.mistake(span.clone(), &full, "it is missing", format!("write {}", below(name)));
        }
    }

    /// A mistake in what is written. Of several keys, `a, b`, the line is that of the first that is there, or of what is around it.
    pub(super) fn wrong(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let line = key.split(", ").find_map(|key| self.place(key)).unwrap_or(self.line);
        let key = format!("{}.{key}", self.called);
        self.mistakes.push(Mistake { line, key, what: what.into(), fix: fix.into() });
    }

    fn place(&self, key: &str) -> Option<usize> {
        let found = self.entries.get(key).map(|(_, line)| *line);
        found.or_else(|| self.place(key.rsplit_once('.')?.0))
    }

    /// Whether a value or a table is written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)?.0.as_ref()
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(ToString::to_string)
    }

    /// A text that has to be there.
    pub(super) fn needed(&self, key: &str) -> String {
        self.text(key).unwrap_or_default()
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.text(key)?.parse().ok()
    }

    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        self.get(key).map(|value| value.texts().to_vec()).unwrap_or_default()
    }

    pub(super) fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(Value::is_true)
    }

    /// The keys below a table with their values.
    pub(super) fn below(&self, table: &str) -> impl Iterator<Item = (&str, &Value)> {
        let prefix = format!("{table}.");
        self.entries.iter().filter_map(move |(key, (value, _))| Some((key.strip_prefix(&prefix)?, value.as_ref()?)))
    }

    /// Every value with its line.
    pub(super) fn values(self) -> impl Iterator<Item = (String, Value, usize)> {
        let called = self.called;
        self.entries.into_iter().filter_map(move |(key, (value, line))| Some((format!("{called}.{key}"), value?, line)))
    }
}
