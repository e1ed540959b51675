//! Rust source as rules see it: without comments and strings, and as the paths that it names.

/// `text` with comments and the contents of strings and characters blanked; lines and columns stay.
pub(crate) fn without_comments_and_strings(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => find(&chars, at, |c, _| c[0] == '\n'),
            '/' if chars.get(at + 1) == Some(&'*') => block_comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' if !is_word(before(&chars, at)) || before(&chars, at) == 'b' => raw_string_end(&chars, at),
            '\'' => char_end(&chars, at),
            _ => at,
        };
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn before(chars: &[char], at: usize) -> char {
    at.checked_sub(1).map_or(' ', |at| chars[at])
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn find(chars: &[char], from: usize, is_end: impl Fn(&[char], usize) -> bool) -> usize {
    (from..chars.len()).find(|at| is_end(&chars[*at..], *at)).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// The end of `r"…"` or `r#"…"#`; `from` itself if that is not one.
fn raw_string_end(chars: &[char], from: usize) -> usize {
    let hashes = chars[from + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(from + 1 + hashes) != Some(&'"') {
        return from;
    }
    let closes = |c: &[char], at: usize| {
        at > from + 1 + hashes && c[0] == '"' && c.len() > hashes && c[1..=hashes].iter().all(|c| *c == '#')
    };
    (find(chars, from, closes) + 1 + hashes).min(chars.len())
}

/// The end of a character; `from` itself if it is a lifetime.
fn char_end(chars: &[char], from: usize) -> usize {
    match (chars.get(from + 1), chars.get(from + 2)) {
        (Some('\\'), _) => (find(chars, from + 3, |c, _| c[0] == '\'') + 1).min(chars.len()),
        (Some(_), Some('\'')) => from + 3,
        _ => from,
    }
}

/// A path that code names, as absolute as the file alone can tell: `relay_bridge::leasing::Receipt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

/// Every path in `code`, which has no comments and strings, with `use` trees written out. `crate`, `self` and `super`
/// at the start are resolved by the file's place in its package.
pub(crate) fn paths(file: &str, code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (token, line) = tokens[at];
        if token == "use" {
            at = use_tree(&tokens, at + 1, &[], &mut found);
        } else if token.starts_with(is_word) {
            let mut path = vec![token.to_owned()];
            while let (Some(("::", _)), Some((next, _))) = (tokens.get(at + 1), tokens.get(at + 2))
                && next.starts_with(is_word)
            {
                path.push((*next).to_owned());
                at += 2;
            }
            if path.len() > 1 {
                found.push(Named { path, line });
            }
            at += 1;
        } else {
            at += 1;
        }
    }
    let module = module(file);
    found.iter_mut().for_each(|named| named.path = resolved(&named.path, &module));
    found
}

/// The words and signs of `code`, each with its line.
pub(crate) fn tokens(code: &str) -> Vec<(&str, usize)> {
    let mut tokens = Vec::new();
    for (line, text) in code.lines().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                c => c.len_utf8(),
            };
            tokens.push((&rest[..length], line + 1));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// Writes out the tree at `at` and answers where it ends.
fn use_tree(tokens: &[(&str, usize)], mut at: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |(_, line)| *line);
    while let Some((token, _)) = tokens.get(at) {
        match *token {
            "::" => at += 1,
            "as" => at += 2,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|(token, _)| *token != "}") {
                    at = use_tree(tokens, at, &path, found);
                    at += usize::from(tokens.get(at).is_some_and(|(token, _)| *token == ","));
                }
                return at + 1;
            }
            word if word.starts_with(is_word) || word == "*" => {
                path.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
    }
    if path.len() > prefix.len() {
        found.push(Named { path, line });
        return at;
    }
    // Nothing was read: step over it, or it would be read for ever.
    at + 1
}

/// The module that a file is: `bridge/remote/src/link.rs` is `relay_remote::link`.
pub(crate) fn module(file: &str) -> Vec<String> {
    let (package, rest) = match file.split_once("src/") {
        Some(("", rest)) => ("relay".to_owned(), rest),
        Some((folder, rest)) => match folder.trim_end_matches('/').rsplit_once('/') {
            Some(("bridge", adapter)) => (format!("relay_{adapter}"), rest),
            None if !folder.is_empty() => (format!("relay_{}", folder.trim_end_matches('/')), rest),
            _ => return Vec::new(),
        },
        None => return Vec::new(),
    };
    let parts = rest.trim_end_matches(".rs").split('/').filter(|part| !matches!(*part, "lib" | "main" | "mod"));
    std::iter::once(package).chain(parts.map(str::to_owned)).collect()
}

fn resolved(path: &[String], module: &[String]) -> Vec<String> {
    if module.is_empty() {
        return path.to_vec();
    }
    let ups = path.iter().take_while(|part| *part == "super").count();
    let (base, rest) = match path.first().map(String::as_str) {
        Some("crate") => (&module[..1], &path[1..]),
        Some("self") => (module, &path[1..]),
        Some("super") => (&module[..module.len().saturating_sub(ups).max(1)], &path[ups..]),
        _ => (&module[..0], path),
    };
    base.iter().chain(rest).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(file: &str, code: &str) -> Vec<String> {
        paths(file, &without_comments_and_strings(code)).into_iter().map(|named| named.path.join("::")).collect()
    }

    #[test]
    fn comments_and_strings_are_no_code_and_lines_stay() {
        let text = "a // b\n/* c /* d */ e */ f \"g\\\" h\" r#\"i\" j\"# 'k' '\\'' <'l> b\"m\"\n";
        let code = without_comments_and_strings(text);
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "f", "<'l>", "b"]);
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn use_trees_are_written_out_and_inline_paths_are_seen() {
        let code = "use a::{b, c::{self, d as e}, f::*};\nfn x() { g::h::i() }";
        assert_eq!(named("tests/x.rs", code), ["a::b", "a::c::self", "a::c::d", "a::f::*", "g::h::i"]);
    }

    #[test]
    fn relative_paths_are_resolved_by_the_files_place() {
        let code = "use crate::a;\nuse super::b;\nuse super::super::c;\nuse self::d;\nuse e::f;";
        let expected = ["relay_remote::a", "relay_remote::b", "relay_remote::c", "relay_remote::link::d", "e::f"];
        assert_eq!(named("bridge/remote/src/link.rs", code), expected);
    }
}
