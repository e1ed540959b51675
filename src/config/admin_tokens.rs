//! `[[admin_token]]` tables: tokens of the admin port beside that of `admin.token_file`, each with some of its rights.

use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::file::File;
use super::kind::{Kind, Value};
use super::mistake::meant;
use super::reader::{Reader, Table};
use crate::auth::operators::AdminRight;

/// The name of the list in a file.
pub(super) const ADMIN_TOKEN: &str = "admin_token";
/// The most tokens of one file: each is compared with what a caller sends.
const TOKENS_MAX: usize = 64;
const KEYS: [&str; 3] = ["name", "rights", "token_file"];

/// A token of the admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AdminToken {
    /// Its holder, as the audit names it.
    pub(crate) name: String,
    /// The calls that it may make.
    pub(crate) rights: Vec<AdminRight>,
    /// The file that it is in.
    pub(crate) token_file: PathBuf,
    /// Where it begins, from 1.
    pub(crate) line: usize,
}

impl Reader<'_> {
    pub(super) fn admin_tokens(&mut self, span: Range<usize>, value: &Spanned<DeValue<'_>>, into: &mut File) {
        for (table, span) in self.entries(ADMIN_TOKEN, span, value) {
            let Some(token) = self.admin_token(&span, table, into) else { continue };
            let full = format!("{ADMIN_TOKEN}.{}", token.name);
            if let Some(first) = into.admin_tokens.iter().find(|known| known.name == token.name) {
                let what = format!("this token is on line {} already", first.line);
                self.mistake(span, &full, what, "give one another name");
            } else if into.admin_tokens.len() == TOKENS_MAX {
                self.mistake(span, &full, format!("there are more than {TOKENS_MAX}"), "leave some of them out");
            } else {
                into.admin_tokens.push(token);
            }
        }
    }

    /// One token. `None` if something is wrong with it, which is noted then.
    fn admin_token(&mut self, span: &Range<usize>, table: &Table<'_>, into: &mut File) -> Option<AdminToken> {
        let name = self.name(ADMIN_TOKEN, Kind::Client, span.clone(), table)?;
        let called = |key: &str| format!("{ADMIN_TOKEN}.{name}.{key}");
        let (before, mut rights, mut token_file) = (self.mistakes.len(), Vec::new(), None);
        for (key, value) in table {
            let (full, line) = (called(key.get_ref()), self.line(&key.span()));
            let kind = match key.get_ref().as_ref() {
                "name" => Kind::Client,
                "rights" => Kind::List,
                "token_file" => Kind::Path,
                other => {
                    let fix = match meant(other, KEYS) {
                        Some(name) => format!("did you mean `{name}`?"),
                        None => format!("there are {}", KEYS.join(", ")),
                    };
                    self.mistake(key.span(), &full, "there is no such setting", fix);
                    continue;
                }
            };
            let Some(read) = self.value(&full, kind, value) else { continue };
            match (kind, &read) {
                (Kind::List, Value::List(words)) => {
                    for word in words {
                        match word.parse() {
                            Ok(right) => rights.push(right),
                            Err(error) => {
                                self.mistake(value.span(), &full, format!("`{word}` is no right"), format!("{error}"));
                            }
                        }
                    }
                }
                (Kind::Path, _) => token_file = Some(PathBuf::from(read.to_string())),
                _ => {}
            }
            into.bridge_values.push((full, read, line));
        }
        for (key, fix) in [
            ("rights", "write rights = [\"metrics\"], or some of metrics, read and operate"),
            ("token_file", "write token_file = \"...\", the file that the token is in"),
        ] {
            if !table.contains_key(key) {
                self.mistake(span.clone(), &called(key), "it is missing", fix);
            }
        }
        let line = self.line(span);
        let token_file = token_file.filter(|_| self.mistakes.len() == before)?;
        Some(AdminToken { name, rights, token_file, line })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file::read;

    #[test]
    fn a_token_has_a_name_rights_and_a_file_seen_from_that_of_the_settings() {
        let text = "[[admin_token]]\nname = \"prometheus\"\nrights = [\"metrics\"]\ntoken_file = \"scrape.token\"\n";
        let (file, mistakes) = read(Path::new("/etc/relay/relay.toml"), text);
        assert_eq!(mistakes, []);
        let token_file = PathBuf::from("/etc/relay/scrape.token");
        let expected =
            AdminToken { name: "prometheus".to_owned(), rights: vec![AdminRight::Metrics], token_file, line: 1 };
        assert_eq!(file.admin_tokens, [expected]);
    }

    #[test]
    fn every_mistake_in_tokens_is_found_with_its_line() {
        let text = "[[admin_token]]\nname = \"a\"\nrights = [\"purge\"]\ntoken_fil = \"t\"\n\
                    [[admin_token]]\nrights = []\n\
                    [[admin_token]]\nname = \"b\"\nrights = [\"read\"]\ntoken_file = \"t\"\n\
                    [[admin_token]]\nname = \"b\"\nrights = [\"read\"]\ntoken_file = \"t\"\n";
        let (_, mistakes) = read(Path::new("relay.toml"), text);
        let found: Vec<_> = mistakes.iter().map(|mistake| (mistake.line, mistake.key.as_str())).collect();
        let expected = [
            (3, "admin_token.a.rights"),
            (4, "admin_token.a.token_fil"),
            (1, "admin_token.a.token_file"),
            (5, "admin_token"),
            (11, "admin_token.b"),
        ];
        assert_eq!(found, expected);
    }
}
