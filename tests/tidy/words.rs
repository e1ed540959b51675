//! Sentences of comments and documents begin with their subject: a reader who is told "What is kept of a job" has to wait for the end to learn
//! of what is spoken.

use crate::files::{Finding, TextFile, all};

/// The most lines of comments, or of documents, that may be built around a headless what or who, in thousandths of all.
const SHARE_MAX: usize = 10;

/// Words that begin such a clause, and those that follow it in the middle of a line.
const HEADS: [&str; 4] = ["what", "who", "whoever", "whatever"];
const AFTER: [&str; 9] = ["is", "was", "has", "it", "they", "nobody", "comes", "goes", "waits"];

/// The text of a line that people read: a comment of code, or a line of a document without its list mark.
fn prose<'a>(file: &TextFile, line: &'a str) -> Option<&'a str> {
    let line = line.trim_start();
    if file.path.ends_with(".md") {
        return (!line.is_empty()).then(|| line.trim_start_matches(['-', '*', ' ']));
    }
    let text = line.strip_prefix("//")?;
    Some(text.strip_prefix(['/', '!']).unwrap_or(text).trim_start())
}

fn is_headless(text: &str) -> bool {
    let word = |text: &str| text.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or("").to_ascii_lowercase();
    if HEADS.contains(&word(text).as_str()) {
        return true;
    }
    let clauses = [". ", "; ", ": ", ", "]
        .iter()
        .flat_map(|end| text.match_indices(end))
        .map(|(at, end)| &text[at + end.len()..]);
    clauses.into_iter().any(|clause| {
        let mut words = clause.split(' ');
        let (head, next) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        matches!(head, "what" | "who" | "whoever") && AFTER.contains(&word(next).as_str())
    })
}

/// The headless lines, and how many lines of prose there are.
fn headless(files: &[TextFile]) -> (Vec<Finding>, usize) {
    let (mut findings, mut lines) = (Vec::new(), 0);
    for file in files {
        for (number, line) in file.text.lines().enumerate() {
            let Some(text) = prose(file, line) else { continue };
            lines += 1;
            if is_headless(text) {
                findings.push(file.finding(number + 1, text));
            }
        }
    }
    (findings, lines)
}

#[expect(clippy::print_stdout, reason = "the share is told also where it is small enough: `--nocapture` shows it")]
fn judge(files: &[TextFile]) {
    let (findings, lines) = headless(files);
    let share = findings.len() * 1_000 / lines.max(1);
    let shown: Vec<_> = findings.iter().take(20).map(ToString::to_string).collect();
    assert!(
        share <= SHARE_MAX,
        "{} of {lines} lines are built around a headless what or who, {SHARE_MAX} of 1,000 may be: begin with the subject\n{}",
        findings.len(),
        shown.join("\n")
    );
    println!("{} of {lines} lines are built around a headless what or who", findings.len());
}

#[test]
fn sentences_of_comments_begin_with_their_subject() {
    judge(&all(&[".rs"]));
}

#[test]
fn sentences_of_documents_begin_with_their_subject() {
    judge(&all(&[".md"]));
}

#[test]
fn a_headless_sentence_is_found_and_a_question_in_code_is_not() {
    let text = "//! Doc.\n/// What is kept of a job.\n// It is kept; who waits for it is told.\nlet what = 1; // that is what counts\n";
    let (findings, lines) = headless(&[TextFile::new("src/a.rs", text)]);
    assert_eq!((findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), lines), (vec![2, 3], 3));
}

#[test]
fn a_headless_sentence_of_a_document_is_found() {
    let text = "# A title\n\n- What is kept of a job.\nA job is kept.\n";
    let (findings, lines) = headless(&[TextFile::new("docs/a.md", text)]);
    assert_eq!((findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), lines), (vec![3], 3));
}
