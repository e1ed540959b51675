//! What holds for every source file: its size, its first lines, and what is not left behind in it.

use crate::code::without_comments_and_strings;
use crate::files::{Finding, TextFile, all, assert_none, places};

/// A file is a thing that one reads in one go; aim at 80 to 350.
const LINES_MAX: usize = 700;

/// What is not left behind in code, and what to do instead.
const LEFT_BEHIND: [(&str, &str); 6] = [
    ("todo!", "finish it, or leave it out"),
    ("unimplemented!", "finish it, or leave it out"),
    ("dbg!", "log it, or leave it out"),
    ("#[ignore", "a test that does not run promises nothing: make it fast, or make it a benchmark"),
    ("unbounded_channel", "everything that waits is bounded"),
    ("#![allow(missing_docs", "document it"),
];

/// What is not left behind in comments either.
const NOTES: [&str; 3] = ["FIXME", "XXX", "TODO"];

fn too_long(files: &[TextFile]) -> Vec<Finding> {
    let long = files.iter().filter(|file| file.text.lines().count() > LINES_MAX);
    long.map(|file| file.finding(LINES_MAX + 1, format!("more than {LINES_MAX} lines: split it"))).collect()
}

fn undocumented(files: &[TextFile]) -> Vec<Finding> {
    let begins_with_a_doc = |file: &&TextFile| {
        let first = file.text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        !first.is_some_and(|line| line.starts_with("//! ") && line.len() > 10)
    };
    files
        .iter()
        .filter(begins_with_a_doc)
        .map(|file| file.finding(1, "no `//!` at its start says what it is"))
        .collect()
}

fn left_behind(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        for (line, text) in without_comments_and_strings(&file.text).lines().enumerate() {
            let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            let left = LEFT_BEHIND.iter().filter(|(word, _)| compact.contains(word));
            findings.extend(left.map(|(word, instead)| file.finding(line + 1, format!("`{word}`: {instead}"))));
        }
    }
    findings
}

fn notes_to_self(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        for (line, text) in file.text.lines().enumerate() {
            let Some((_, comment)) = text.split_once("//") else { continue };
            let mut words = comment.split(|c: char| !c.is_ascii_alphanumeric());
            if let Some(word) = words.find(|word| NOTES.contains(word)) {
                findings.push(file.finding(line + 1, format!("`{word}`: do it, or open an issue")));
            }
        }
    }
    findings
}

#[test]
fn no_file_is_too_long_to_read() {
    assert_none(&too_long(&all(&[".rs"])));
}

#[test]
fn every_file_says_what_it_is() {
    assert_none(&undocumented(&all(&[".rs"])));
}

#[test]
fn nothing_is_left_behind_in_code() {
    assert_none(&left_behind(&all(&[".rs"])));
}

#[test]
fn no_comment_is_a_note_to_self() {
    assert_none(&notes_to_self(&all(&[".rs"])));
}

#[test]
fn a_long_file_is_found() {
    let long = TextFile::new("long.rs", &"x\n".repeat(LINES_MAX + 1));
    let fits = TextFile::new("fits.rs", &"x\n".repeat(LINES_MAX));
    assert_eq!(places(&too_long(&[long, fits])), [("long.rs", LINES_MAX + 1)]);
}

#[test]
fn a_file_without_a_module_doc_is_found() {
    let bare = TextFile::new("bare.rs", "// A comment.\nfn x() {}\n");
    let item = TextFile::new("item.rs", "/// Of the function.\nfn x() {}\n");
    let empty = TextFile::new("empty.rs", "");
    let good = TextFile::new("good.rs", "#![cfg(unix)]\n\n//! What it is for.\n");
    assert_eq!(places(&undocumented(&[bare, item, empty, good])), [("bare.rs", 1), ("item.rs", 1), ("empty.rs", 1)]);
}

#[test]
fn what_is_left_behind_is_found_in_code_only() {
    let text =
        "fn a() { todo!() }\n// todo!()\nconst B: &str = \"dbg!\";\n#[ignore = \"slow\"]\n#![allow( missing_docs )]\n";
    assert_eq!(places(&left_behind(&[TextFile::new("a.rs", text)])), [("a.rs", 1), ("a.rs", 4), ("a.rs", 5)]);
}

#[test]
fn a_note_to_self_is_found_as_a_whole_word() {
    let [fix, mark, _] = NOTES;
    let text = format!("// {fix}: later\nlet x = 1; // {mark}\n// {fix}UP\nconst {fix}: u8 = 1;\n");
    assert_eq!(places(&notes_to_self(&[TextFile::new("a.rs", &text)])), [("a.rs", 1), ("a.rs", 2)]);
}
