//! Reads values out of a file, and gathers the mistakes in it.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::kind::{Kind, Unfit, Value};
use super::mistake::Mistake;

pub(super) type Table<'a> = DeTable<'a>;

/// A file on its way to what it says.
pub(super) struct Reader<'a> {
    text: &'a str,
    folder: &'a Path,
    pub(super) mistakes: Vec<Mistake>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { text, folder: path.parent().unwrap_or(Path::new("")), mistakes: Vec::new() }
    }
}

impl Reader<'_> {
    /// The line of a place, from 1.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
    }

    /// Notes a mistake at a place.
    pub(super) fn mistake(&mut self, span: Range<usize>, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let line = self.line(&span);
        self.mistakes.push(Mistake { line, key: key.to_owned(), what: what.into(), fix: fix.into() });
    }

    /// A value that has to be a table.
    pub(super) fn table<'b, 'c>(
        &mut self,
        name: &str,
        span: Range<usize>,
        value: &'b Spanned<DeValue<'c>>,
    ) -> Option<&'b Table<'c>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(table),
            _ => {
                self.mistake(span, name, "this is a table", format!("write [{name}] on a line, and its keys below"));
                None
            }
        }
    }

    /// A value of a kind; a relative path is seen from the file's folder.
    pub(super) fn value(&mut self, key: &str, kind: Kind, value: &Spanned<DeValue<'_>>) -> Option<Value> {
        match kind.read(value.get_ref()) {
            Ok(Value::Text(path)) if kind == Kind::Path => {
                Some(Value::Text(self.folder.join(path).to_string_lossy().into_owned()))
            }
            Ok(value) => Some(value),
            Err(Unfit { what, fix }) => {
                self.mistake(value.span(), key, what, fix);
                None
            }
        }
    }

    /// The tables of a list, each with its place.
    pub(super) fn entries<'b, 'c>(
        &mut self,
        name: &str,
        span: Range<usize>,
        value: &'b Spanned<DeValue<'c>>,
    ) -> Vec<(&'b Table<'c>, Range<usize>)> {
        let tables = |array: &'b DeArray<'c>| {
            let tables = array.iter().map(|entry| match entry.get_ref() {
                DeValue::Table(table) => Some((table, entry.span())),
                _ => None,
            });
            tables.collect::<Option<Vec<_>>>()
        };
        let found = match value.get_ref() {
            DeValue::Array(array) => tables(array),
            _ => None,
        };
        found.unwrap_or_else(|| {
            self.mistake(
                span,
                name,
                "this is a list of tables",
                format!("write [[{name}]] on a line, and its keys below"),
            );
            Vec::new()
        })
    }

    /// The name that a table of a list has to have.
    pub(super) fn name(&mut self, of: &str, kind: Kind, span: Range<usize>, table: &Table<'_>) -> Option<String> {
        let Some((_, value)) = table.iter().find(|(key, _)| key.get_ref() == "name") else {
            self.mistake(span, of, "it has no name", "write name = \"...\" below it");
            return None;
        };
        self.value(&format!("{of}.name"), kind, value).map(|name| name.to_string())
    }
}
