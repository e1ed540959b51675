//! `docs/contract.md` is the law and the only one: each promise names tests that run, its sections keep their numbers, the
//! README's list says the same, and no document speaks of a contract without leading there.

use std::collections::BTreeMap;

use relay_conformance::PROMISES;

use crate::documents::{is_function_name, links, target_path};
use crate::files::{Finding, TextFile, all, assert_none, one, places};

const CONTRACT: &str = "docs/contract.md";
/// Where the promises of the suite are; what is one of them is in `PROMISES`.
const SUITE: &str = "bridge/conformance/src/";
/// Sections keep their numbers: code and documents name them.
const SECTIONS: [&str; 8] = [
    "1. The sentence",
    "2. Nouns",
    "3. Promises",
    "4. Life of a job",
    "5. HTTP",
    "6. NATS",
    "7. TCP",
    "8. Policy and versions",
];

/// A numbered promise: what is in bold at its start, and all of its text.
struct Promise<'a> {
    number: usize,
    title: &'a str,
    text: &'a str,
    line: usize,
}

/// The section of `document` whose heading is `## <heading>`, and the number of its first line; empty if it is not there.
fn section<'a>(document: &'a TextFile, heading: &str) -> (&'a str, usize) {
    let text = document.text.as_str();
    let start = format!("\n## {heading}\n");
    let Some(from) = text.find(&start).map(|at| at + start.len()) else { return ("", 1) };
    let end = text[from..].find("\n## ").map_or(text.len(), |length| from + length);
    (&text[from..end], text[..from].lines().count() + 1)
}

/// The promises of a section that begins at line `first`: the paragraphs that begin with `N. **`.
fn promises(section: &str, first: usize) -> Vec<Promise<'_>> {
    let mut starts = Vec::new();
    let mut at = 0;
    for (index, line) in section.split_inclusive('\n').enumerate() {
        let numbered = line.split_once(". **").and_then(|(number, _)| number.parse().ok());
        starts.extend(numbered.map(|number| (number, at, first + index)));
        at += line.len();
    }
    let ends = starts.iter().skip(1).map(|(_, at, _)| *at).chain([section.len()]);
    let ends: Vec<_> = ends.collect();
    starts
        .into_iter()
        .zip(ends)
        .map(|((number, from, line), end)| {
            // Text that follows the last promise is not part of it any more.
            let text = &section[from..end];
            let text = text.split_once("\n\n").map_or(text, |(text, _)| text);
            let bold = text.split_once("**").and_then(|(_, rest)| rest.split_once("**"));
            Promise { number, title: bold.map_or("", |(title, _)| title), text, line }
        })
        .collect()
}

/// Whether `text` has a test of this name: a function with a test attribute.
fn has_test(text: &str, name: &str) -> bool {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let declares = |line: &str| line.split_once("fn ").is_some_and(|(_, rest)| rest.starts_with(&format!("{name}(")));
    lines.iter().enumerate().filter(|(_, line)| declares(line)).any(|(at, _)| {
        let above = lines[..at].iter().rev();
        above.take_while(|line| line.starts_with('#') || line.starts_with("//")).any(|line| {
            line.starts_with("#[test]") || line.starts_with("#[tokio::test") || line.starts_with("#[::tokio::test")
        })
    })
}

/// The faults in the promises of the contract. `files` are the sources; `suite` are the promises of conformance, as
/// (module, name).
fn bad_promises(contract: &TextFile, files: &[TextFile], suite: &[(&str, &str)]) -> Vec<Finding> {
    let by_path: BTreeMap<&str, &TextFile> = files.iter().map(|file| (file.path.as_str(), file)).collect();
    let (text, first) = section(contract, "3. Promises");
    let mut findings = Vec::new();
    for (index, promise) in promises(text, first).iter().enumerate() {
        let mut wrong = |what: String| findings.push(contract.finding(promise.line, what));
        if promise.number != index + 1 {
            wrong(format!("promise {} is where {} belongs: numbers have no gaps", promise.number, index + 1));
        }
        let mut tests = 0;
        for link in links(promise.text) {
            let name = link.text.strip_prefix('`').and_then(|text| text.strip_suffix('`'));
            let Some(name) = name.filter(|name| is_function_name(name) && link.target.ends_with(".rs")) else {
                continue;
            };
            tests += 1;
            let path = target_path(&contract.path, link.target);
            let in_suite = path.strip_prefix(SUITE).and_then(|file| file.strip_suffix(".rs"));
            let there = match in_suite {
                Some(module) => suite.contains(&(module, name)),
                None => by_path.get(path.as_str()).is_some_and(|file| has_test(&file.text, name)),
            };
            if !there {
                wrong(format!("promise {}: {path} has no test `{name}` that runs", promise.number));
            }
        }
        if tests == 0 {
            wrong(format!("promise {} names no test", promise.number));
        }
    }
    findings
}

/// Where a document says "contract" without leading to the contract. Code, and what a link leads to, does not count.
fn other_contracts(documents: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in documents.iter().filter(|document| document.path != CONTRACT) {
        let prose = without_code(&document.text);
        // The texts of links that lead there stand for a mention that is fine.
        let mut rest = prose.clone();
        for link in links(&prose) {
            let file = link.target.split('#').next().unwrap_or_default();
            let whole = format!("[{}]({})", link.text, link.target);
            let stands_for = if target_path(&document.path, file) == CONTRACT { "" } else { link.text };
            let lines = "\n".repeat(whole.matches('\n').count());
            rest = rest.replace(&whole, &format!("{stands_for}{lines}"));
        }
        for (at, line) in rest.lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
            if words.any(|word| word == "contract" || word == "contracts") {
                let what = format!("a contract that is not a link to {CONTRACT}: there is one, and it is there");
                findings.push(document.finding(at + 1, what));
            }
        }
    }
    findings
}

/// `text` without fenced code and code in backticks; its lines stay.
fn without_code(text: &str) -> String {
    let mut fenced = false;
    let mut kept = String::with_capacity(text.len());
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if !fenced && !fence {
            kept.extend(line.split('`').step_by(2));
        }
        kept.push('\n');
    }
    kept
}

#[test]
fn every_promise_of_the_contract_names_tests_that_run() {
    let contract = one(CONTRACT);
    let (text, first) = section(&contract, SECTIONS[2]);
    assert!(promises(text, first).len() >= 9, "there are at least the nine promises of the first day");
    assert_none(&bad_promises(&contract, &all(&[".rs"]), PROMISES));
}

#[test]
fn the_sections_of_the_contract_keep_their_numbers() {
    let contract = one(CONTRACT);
    let headings: Vec<_> = contract.text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(headings, SECTIONS);
}

#[test]
fn the_readme_lists_the_promises_of_the_contract() {
    let (contract, readme) = (one(CONTRACT), one("README.md"));
    let (of_contract, of_readme) = (section(&contract, SECTIONS[2]), section(&readme, "Promises"));
    let titles = |(text, first)| {
        let all = promises(text, first).into_iter();
        all.map(|promise| (promise.number, promise.title.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(titles(of_readme), titles(of_contract), "the README's list and section 3 of {CONTRACT}");
}

#[test]
fn no_document_speaks_of_another_contract() {
    assert_none(&other_contracts(&all(&[".md"])));
}

#[test]
fn a_promise_without_a_test_that_runs_is_found() {
    let text = "# C\n\n## 3. Promises\n\nSome words.\n\n1. **A.** Text.\n   [`a_test`](../tests/a.rs)\n\
                2. **B.** It names a helper. [`a_helper`](../tests/a.rs)\n3. **C.** None. [`a.rs`](../tests/a.rs)\n\
                5. **D.** [`kept_by_all`](../bridge/conformance/src/x.rs)\n\
                5. **E.** [`not_in_the_suite`](../bridge/conformance/src/x.rs)\n\nAfter: [`a_test`](../tests/a.rs)\n\n## 4. Life\n";
    let source = "#[test]\nfn a_test() {}\n\n#[must_use]\nfn a_helper() {}\nfn not_in_the_suite() {}\n";
    let files = [TextFile::new("tests/a.rs", source), TextFile::new("bridge/conformance/src/x.rs", source)];
    let found = bad_promises(&TextFile::new(CONTRACT, text), &files, &[("x", "kept_by_all")]);
    assert_eq!(places(&found), [(CONTRACT, 9), (CONTRACT, 10), (CONTRACT, 11), (CONTRACT, 12)]);
}

#[test]
fn a_test_is_found_below_its_attributes_only() {
    let source =
        "#[tokio::test(flavor = \"multi_thread\")]\n// Why.\n#[allow(dead_code)]\nasync fn one() {}\n\nfn two() {}\n";
    assert!(has_test(source, "one"));
    assert!(!has_test(source, "two") && !has_test(source, "on"));
}

#[test]
fn another_contract_is_found() {
    let text = "The contract says so.\n[The contract](../contract.md#3-promises) is one, `src/contract/` and\n```\na contract\n```\n\
                [contracts](x.md) are not, nor the\n[one\ncontract](../contract.md) that\nis a Contract.\n";
    let found = other_contracts(&[TextFile::new("docs/decisions/x.md", text), TextFile::new(CONTRACT, text)]);
    let expected = [1, 6, 9].map(|line| ("docs/decisions/x.md", line));
    assert_eq!(places(&found), expected);
}

/// The paths of the OpenAPI document that `section` does not name. A name may go on with a query.
fn unnamed_paths(openapi: &TextFile, section: &str) -> Vec<Finding> {
    let described: serde_json::Value = serde_json::from_str(&openapi.text).unwrap();
    let paths = described["paths"].as_object().unwrap().keys();
    let is_named = |path: &str| {
        let after = section.match_indices(path).map(|(at, path)| &section[at + path.len()..]);
        after.into_iter().any(|rest| rest.starts_with(['`', '?']))
    };
    paths.filter(|path| !is_named(path)).map(|path| openapi.finding(1, format!("{path} is not in section 5"))).collect()
}

#[test]
fn each_route_stands_in_the_contract() {
    let contract = one(CONTRACT);
    assert_none(&unnamed_paths(&one("docs/openapi.json"), section(&contract, "5. HTTP").0));
}

#[test]
fn a_route_that_is_not_in_the_contract_is_found() {
    let openapi =
        TextFile::new("docs/openapi.json", r#"{"paths": {"/v1/jobs": {}, "/v1/jobs/{id}": {}, "/v1/new": {}}}"#);
    let found = unnamed_paths(&openapi, "| `GET /v1/jobs?queue=` | `DELETE /v1/jobs/{id}/x` | `GET /v1/new` |");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].what.starts_with("/v1/jobs/{id} "), "{found:?}");
}
