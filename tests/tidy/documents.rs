//! Documents lead where they say: links resolve, tests that are named exist, decision records are complete.

use std::collections::{BTreeMap, BTreeSet};

use crate::files::{Finding, TextFile, all, assert_none, one, places};

/// What a record says, in this order.
const RECORD_HEADINGS: [&str; 3] = ["## Context", "## Decision", "## Consequences"];
/// A record that is longer is a design document.
const RECORD_LINES_MAX: usize = 80;
/// What a newcomer reads in one go.
const ARCHITECTURE_LINES_MAX: usize = 300;

/// A link of a document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link<'a> {
    pub(crate) text: &'a str,
    pub(crate) target: &'a str,
    pub(crate) line: usize,
}

/// Every `[text](target)` outside of fenced code.
pub(crate) fn links(text: &str) -> Vec<Link<'_>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(middle) = text[from..].find("](").map(|at| from + at) {
        let (before, after) = (&text[..middle], &text[middle + 2..]);
        from = middle + 2;
        let (Some(open), Some(close)) = (before.rfind('['), after.find(')')) else { continue };
        let target = &after[..close];
        if in_fence(before) || target.contains(char::is_whitespace) {
            continue;
        }
        found.push(Link { text: &before[open + 1..], target, line: before.lines().count().max(1) });
    }
    found
}

fn in_fence(before: &str) -> bool {
    before.lines().filter(|line| line.trim_start().starts_with("```")).count() % 2 == 1
}

/// The path of `target` seen from `document`, with `.` and `..` resolved.
pub(crate) fn target_path(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Links that lead nowhere. `files` are the repository's text files; `exists` says whether a file or folder is there.
fn broken_links(documents: &[TextFile], files: &[TextFile], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let by_path: BTreeMap<&str, &TextFile> = files.iter().map(|file| (file.path.as_str(), file)).collect();
    let mut findings = Vec::new();
    for document in documents {
        for link in links(&document.text) {
            if link.target.contains("://") || link.target.starts_with("mailto:") {
                continue;
            }
            let (file, fragment) = link.target.split_once('#').unwrap_or((link.target, ""));
            let path = if file.is_empty() { document.path.clone() } else { target_path(&document.path, file) };
            let mut wrong = |what: String| findings.push(document.finding(link.line, what));
            if !exists(&path) {
                wrong(format!("`{}` is not there", link.target));
                continue;
            }
            let Some(found) = by_path.get(path.as_str()) else { continue };
            let headings = || found.text.lines().filter(|line| line.starts_with('#'));
            if path.ends_with(".md")
                && !fragment.is_empty()
                && !headings().any(|line| anchor(line.trim_start_matches('#')) == fragment)
            {
                wrong(format!("{path} has no heading for `#{fragment}`"));
            }
            // A link whose text is `a_name` and that leads to a source file names a function in it.
            let name = link.text.strip_prefix('`').and_then(|text| text.strip_suffix('`'));
            if let Some(name) = name.filter(|name| path.ends_with(".rs") && is_function_name(name))
                && !found.text.contains(&format!("fn {name}("))
            {
                wrong(format!("{path} has no test `{name}`"));
            }
        }
    }
    findings
}

pub(crate) fn is_function_name(name: &str) -> bool {
    name.contains('_') && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Decision records are numbered without gaps, say what they are about, and are short.
fn bad_records(records: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, record) in records.iter().enumerate() {
        let name = record.path.rsplit('/').next().unwrap();
        let number = format!("{:04}", at + 1);
        if !name.starts_with(&format!("{number}-")) {
            findings.push(record.finding(1, format!("the next record is {number}: numbers have no gaps")));
        }
        let title = format!("# {}: ", &name[..name.len().min(4)]);
        if !record.text.starts_with(&title) {
            findings.push(record.finding(1, format!("its first line is not `{title}…`")));
        }
        let headings: Vec<_> = record.text.lines().filter(|line| RECORD_HEADINGS.contains(line)).collect();
        if headings != RECORD_HEADINGS {
            findings.push(record.finding(1, format!("its headings are not {RECORD_HEADINGS:?}")));
        }
        if record.text.lines().count() > RECORD_LINES_MAX {
            findings.push(record.finding(RECORD_LINES_MAX + 1, "a record is shorter: 30 to 60 lines"));
        }
    }
    findings
}

fn documents() -> Vec<TextFile> {
    all(&[".md"])
}

fn records() -> Vec<TextFile> {
    documents().into_iter().filter(|file| file.path.starts_with("docs/decisions/")).collect()
}

#[test]
fn every_link_leads_somewhere_and_every_named_test_exists() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = all(&[".md", ".rs"]);
    assert_none(&broken_links(&documents(), &files, |path| root.join(path).exists()));
}

#[test]
fn decision_records_are_complete() {
    assert_none(&bad_records(&records()));
}

#[test]
fn every_decision_record_is_linked_from_the_architecture() {
    let architecture = one("ARCHITECTURE.md");
    let linked: BTreeSet<_> = links(&architecture.text).iter().map(|link| link.target.to_owned()).collect();
    for record in records() {
        assert!(linked.contains(&record.path), "{} is not in ARCHITECTURE.md", record.path);
    }
}

#[test]
fn the_architecture_is_read_in_one_go() {
    let lines = one("ARCHITECTURE.md").text.lines().count();
    assert!(lines <= ARCHITECTURE_LINES_MAX, "ARCHITECTURE.md: {lines} lines, at most {ARCHITECTURE_LINES_MAX}");
}

#[test]
fn a_broken_link_is_found() {
    let text = "# A title\n[a](gone.md) [b](../src/x.rs)\n[`a_test_name`](../src/x.rs) [c](#a-title)\n\
                [d](#nothing) [e](https://example.com/x) [`not_there`](../src/x.rs)\n```\n[f](gone.md)\n```\n[g](y.md#none)\n";
    let documents = [TextFile::new("docs/x.md", text), TextFile::new("docs/y.md", "# Y\n")];
    let mut files = documents.to_vec();
    files.push(TextFile::new("src/x.rs", "fn a_test_name() {}\n"));
    let exists = |path: &str| files.iter().any(|file| file.path == path);
    let found = broken_links(&documents, &files, exists);
    assert_eq!(places(&found), [("docs/x.md", 2), ("docs/x.md", 4), ("docs/x.md", 4), ("docs/x.md", 8)]);
}

#[test]
fn anchors_are_those_of_github() {
    assert_eq!(anchor(" What it is, and why: `relay`"), "what-it-is-and-why-relay");
}

#[test]
fn a_bad_record_is_found() {
    let good = "# 0001: X\n\n## Context\n\n## Decision\n\n## Consequences\n";
    let gap = good.replace("0001", "0003");
    let records = [
        TextFile::new("docs/decisions/0001-x.md", good),
        TextFile::new("docs/decisions/0003-y.md", &gap),
        TextFile::new("docs/decisions/0003-z.md", "# Z\n"),
    ];
    let found = bad_records(&records);
    let expected = ["docs/decisions/0003-y.md", "docs/decisions/0003-z.md", "docs/decisions/0003-z.md"];
    assert_eq!(places(&found).iter().map(|(path, _)| *path).collect::<Vec<_>>(), expected);
}
