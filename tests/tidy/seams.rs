//! The seams of a broker: a decorator that forgets a call must not compile.

use crate::code::{tokens, without_comments_and_strings};
use crate::files::{Finding, TextFile, assert_none, one, places};

/// The capability traits and where each of them is.
const SEAMS: [(&str, &str); 6] = [
    ("bridge/src/job_queue.rs", "JobQueue"),
    ("bridge/src/leasing.rs", "Leasing"),
    ("bridge/src/result_log.rs", "ResultLog"),
    ("bridge/src/dead_letters.rs", "DeadLetters"),
    ("bridge/src/policy.rs", "PolicyStore"),
    ("bridge/src/provision.rs", "Provision"),
];

/// The methods of the trait `name` that have a default body; or that the file has no such trait with a method in it.
fn default_bodies(file: &TextFile, name: &str) -> Vec<Finding> {
    let code = without_comments_and_strings(&file.text);
    let tokens = tokens(&code);
    let is_start = |pair: &[(&str, usize)]| pair[0].0 == "trait" && pair[1].0 == name;
    let start = tokens.windows(2).position(is_start).unwrap_or(tokens.len());
    let body = tokens[start..].iter().skip_while(|(token, _)| *token != "{");
    let (mut findings, mut methods) = (Vec::new(), 0);
    let (mut braces, mut brackets) = (0, 0);
    let mut method = None;
    let mut before = "";
    for (token, line) in body {
        match *token {
            "{" => {
                if let Some((name, line)) = method.take() {
                    let what = format!("`{name}` has a default body: whoever wraps a broker could forget it");
                    findings.push(file.finding(line, what));
                }
                braces += 1;
            }
            "}" => braces -= 1,
            "(" | "[" => brackets += 1,
            ")" | "]" => brackets -= 1,
            // Not that of an array in a signature.
            ";" if brackets == 0 => method = None,
            word if before == "fn" && braces == 1 => {
                methods += 1;
                method = Some((word, *line));
            }
            _ => {}
        }
        if braces == 0 {
            break;
        }
        before = token;
    }
    if methods == 0 {
        findings.push(file.finding(1, format!("there is no trait `{name}` with a method: where is this seam now?")));
    }
    findings
}

#[test]
fn no_seam_has_a_method_with_a_default_body() {
    let findings = SEAMS.iter().flat_map(|(path, name)| default_bodies(&one(path), name));
    assert_none(&findings.collect::<Vec<_>>());
}

#[test]
fn a_default_body_is_found_in_the_seam_alone() {
    let text = "/// fn a() {}\npub trait Seam: Send {\n    fn a(&self, x: [u8; 2]);\n    async fn b(\n        &self,\n    ) \
                -> Option<()> {\n        fn inner() {}\n        None\n    }\n    fn c(&self) -> u8 { 1 }\n    fn d(&self);\n}\n\
                pub trait Other {\n    fn e(&self) {}\n}\nfn f() {}\n";
    assert_eq!(places(&default_bodies(&TextFile::new("a.rs", text), "Seam")), [("a.rs", 4), ("a.rs", 10)]);
}

#[test]
fn a_seam_that_is_no_longer_where_it_was_is_told() {
    for text in ["", "pub trait Seams { fn a(); }", "pub trait Seam {}", "// trait Seam { fn a(); }"] {
        assert_eq!(places(&default_bodies(&TextFile::new("a.rs", text), "Seam")), [("a.rs", 1)], "{text}");
    }
}
