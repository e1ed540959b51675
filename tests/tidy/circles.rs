//! No circle of files: whoever reads one from the top down never comes back to where he was. And no type whose methods are
//! spread over files that know each other by nothing but `self`.

use std::collections::{BTreeMap, BTreeSet};

use crate::code::{module, paths, without_comments_and_strings};
use crate::files::{Finding, TextFile, all, assert_none};

/// Where it holds.
const WITHOUT_CIRCLES: &[&str] =
    &["bridge/src/contract/", "bridge/embedded/src/", "bridge/nats/src/", "bridge/remote/src/", "bridge/sqs/src/"];

/// Of each file, the files that it names: not its own folder's `mod.rs`, which only says what is in the folder.
fn edges<'a>(files: &[&'a TextFile]) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let modules: BTreeMap<_, _> = files.iter().map(|file| (module(&file.path), file.path.as_str())).collect();
    let edges = files.iter().map(|file| {
        let named = paths(&file.path, without_tests(&without_comments_and_strings(&file.text)));
        let found = named.iter().filter_map(|named| {
            // The longest module that the path begins with.
            let longest = (1..=named.path.len()).rev().find_map(|length| modules.get(&named.path[..length]))?;
            (*longest != file.path && !is_own_root(&file.path, longest)).then_some(*longest)
        });
        (file.path.as_str(), found.collect())
    });
    edges.collect()
}

/// Unit tests, which stand last in a file, may stage what they like.
fn without_tests(code: &str) -> &str {
    code.split("#[cfg(test)]\nmod tests {").next().unwrap_or(code)
}

/// Whether `root` is the `mod.rs` or `lib.rs` of the folder that `file` is in.
fn is_own_root(file: &str, root: &str) -> bool {
    let folder = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    (root.ends_with("/mod.rs") || root.ends_with("/lib.rs")) && folder(file) == folder(root)
}

/// The files from which a way leads back to them.
fn in_circles<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<(&'a str, Vec<&'a str>)> {
    let reached = |from: &'a str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(file) = next.pop() {
            next.extend(edges.get(file).into_iter().flatten().filter(|file| seen.insert(**file)));
        }
        seen
    };
    let all: BTreeMap<_, _> = edges.keys().map(|file| (*file, reached(file))).collect();
    let circle = |file: &&'a str| -> Vec<&'a str> {
        all[file].iter().filter(|other| all.get(*other).is_some_and(|there| there.contains(file))).copied().collect()
    };
    all.keys().map(|file| (*file, circle(file))).filter(|(_, circle)| !circle.is_empty()).collect()
}

fn circles(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for under in WITHOUT_CIRCLES {
        let files: Vec<_> = files.iter().filter(|file| file.path.starts_with(under)).collect();
        for (path, circle) in in_circles(&edges(&files)) {
            let file = files.iter().find(|file| file.path == path);
            let why = format!("it is in a circle of files: {}", circle.join(", "));
            findings.extend(file.map(|file| file.finding(1, why)));
        }
    }
    findings
}

/// Types that stand for a whole adapter, each with the only file that may name it.
const WHOLE: [(&str, &str, &str); 2] = [
    ("bridge/nats/src/", "Nats", "bridge/nats/src/lib.rs"),
    ("bridge/sqs/src/adapter/", "Sqs", "bridge/sqs/src/adapter/mod.rs"),
];

fn names_of_wholes(files: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (under, whole, root) in WHOLE {
        for file in files.iter().filter(|file| file.path.starts_with(under) && file.path != root) {
            let code = without_comments_and_strings(&file.text);
            let lines = without_tests(&code).lines().enumerate();
            let named = lines
                .filter(|(_, line)| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == whole));
            let why = format!("`{whole}` is the whole adapter: give this part what it uses");
            findings.extend(named.map(|(line, _)| file.finding(line + 1, why.clone())));
        }
    }
    findings
}

#[test]
fn no_file_is_in_a_circle() {
    assert_none(&circles(&all(&[".rs"])));
}

#[test]
fn no_part_of_an_adapter_names_the_whole() {
    assert_none(&names_of_wholes(&all(&[".rs"])));
}

#[test]
fn a_circle_is_found_and_a_child_that_names_its_root_is_none() {
    let file = |path: &str, code: &str| TextFile::new(path, &format!("//! Doc.\n{code}\n"));
    let files = [
        file("bridge/nats/src/lib.rs", "mod a; mod b; use crate::a::A; use crate::b::B;"),
        file("bridge/nats/src/a.rs", "use crate::b::B; use crate::Nats;"),
        file("bridge/nats/src/b.rs", "fn x() -> crate::a::A { todo() }"),
        file("bridge/nats/src/c/mod.rs", "mod d; use d::D;"),
        file("bridge/nats/src/c/d.rs", "use super::C;"),
        file("bridge/nats/src/e.rs", "#[cfg(test)]\nmod tests {\n    use crate::a::A; use crate::Nats;\n}"),
    ];
    let found: Vec<_> = circles(&files).iter().map(|finding| finding.path.clone()).collect();
    assert_eq!(found, ["bridge/nats/src/a.rs", "bridge/nats/src/b.rs"]);
    let found: Vec<_> = names_of_wholes(&files).iter().map(|finding| finding.path.clone()).collect();
    assert_eq!(found, ["bridge/nats/src/a.rs"]);
}
