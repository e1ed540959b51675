//! Manifests, the lockfile and the bans of `deny.toml`: also where cargo-deny is not installed.

use std::collections::BTreeSet;
use std::process::Command;

use crate::files::{Finding, TextFile, all, assert_none, one, places};

/// In the lockfile and never built, with the reason. What is built is asked of cargo below.
const LOCKED_BUT_NOT_BUILT: [(&str, &str); 1] =
    [("ring", "rustls-webpki and quinn-proto name it for a feature that nothing switches on")];

/// A crate that must not be there: its name, and below which major version (`None`: any).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ban {
    name: String,
    below: Option<u64>,
    line: usize,
}

impl Ban {
    fn hits(&self, name: &str, version: &str) -> bool {
        let major = version.split('.').next().and_then(|major| major.parse().ok());
        self.name == name && self.below.is_none_or(|below| major.is_some_and(|major: u64| major < below))
    }
}

/// The bans of `deny.toml`, and those that can't be read or give no reason.
fn bans(deny: &TextFile) -> (Vec<Ban>, Vec<Finding>) {
    let (mut bans, mut findings) = (Vec::new(), Vec::new());
    for (at, line) in deny.text.lines().enumerate() {
        let Some(spec) = value_of(line, "crate") else { continue };
        if value_of(line, "reason").is_none_or(str::is_empty) {
            findings.push(deny.finding(at + 1, format!("`{spec}` is banned without a reason")));
        }
        let (name, below) = match spec.split_once(":<") {
            Some((name, major)) => (name, major.parse().ok()),
            None => (spec, None),
        };
        if name.contains([':', '@']) || (below.is_none() && spec.contains('<')) {
            findings.push(deny.finding(at + 1, format!("`{spec}` is neither `name` nor `name:<major`")));
        }
        bans.push(Ban { name: name.to_owned(), below, line: at + 1 });
    }
    (bans, findings)
}

/// The text of `key = "text"` in a line.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("{key} = \""))?;
    rest.split_once('"').map(|(value, _)| value)
}

fn banned_in_lockfile(lock: &TextFile, bans: &[Ban]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut name = "";
    for (at, line) in lock.text.lines().enumerate() {
        name = value_of(line, "name").unwrap_or(name);
        let Some(version) = value_of(line, "version") else { continue };
        let excused = LOCKED_BUT_NOT_BUILT.iter().any(|(excused, _)| *excused == name);
        if let Some(ban) = bans.iter().find(|ban| ban.hits(name, version)).filter(|_| !excused) {
            findings.push(lock.finding(at + 1, format!("{name} {version} is banned by deny.toml:{}", ban.line)));
        }
    }
    findings
}

/// `name v1.2.3 (…)` lines of `cargo tree` that are banned.
fn banned_in_tree<'a>(tree: &'a str, bans: &[Ban]) -> Vec<&'a str> {
    let is_banned = |line: &&str| {
        let mut words = line.split_whitespace();
        let (Some(name), Some(version)) = (words.next(), words.next()) else { return false };
        bans.iter().any(|ban| ban.hits(name, version.trim_start_matches('v')))
    };
    tree.lines().filter(is_banned).collect()
}

/// Dependencies that don't take their version from the workspace.
fn versions_of_their_own(manifests: &[TextFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in manifests {
        for (line, name, text) in dependencies(manifest) {
            if !text.contains("workspace = true") && !text.contains("path = \".\"") {
                findings.push(manifest.finding(line, format!("`{name}` has no `workspace = true`")));
            }
        }
    }
    findings
}

/// What the workspace declares and no package uses.
fn unused(root: &TextFile, manifests: &[TextFile]) -> Vec<Finding> {
    let used: BTreeSet<&str> = manifests.iter().flat_map(dependencies).map(|(_, name, _)| name).collect();
    let declared = entries(root, |section| section == "[workspace.dependencies]");
    let unused = declared.into_iter().filter(|(_, name, _)| !used.contains(name));
    unused.map(|(line, name, _)| root.finding(line, format!("no package uses `{name}`"))).collect()
}

fn dependencies(manifest: &TextFile) -> Vec<(usize, &str, &str)> {
    entries(manifest, |section| section.ends_with("dependencies]") && section != "[workspace.dependencies]")
}

/// Line, name and text of every entry in the sections that `wanted` picks.
fn entries(manifest: &TextFile, wanted: impl Fn(&str) -> bool) -> Vec<(usize, &str, &str)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (at, line) in manifest.text.lines().enumerate() {
        if line.starts_with('[') {
            inside = wanted(line.trim());
        } else if let Some((left, _)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ' '])) {
            let name = left.trim().split('.').next().unwrap_or_default();
            found.push((at + 1, name, line));
        }
    }
    found
}

fn manifests() -> Vec<TextFile> {
    all(&["Cargo.toml"])
}

#[test]
fn every_ban_can_be_read_and_has_a_reason() {
    let (bans, findings) = bans(&one("deny.toml"));
    assert_none(&findings);
    for name in ["ring", "openssl-sys", "native-tls", "proxy-protocol", "backoff", "rustls-pemfile", "hyper"] {
        assert!(bans.iter().any(|ban| ban.name == name), "{name} is not banned");
    }
}

#[test]
fn no_banned_crate_is_locked() {
    let (bans, _) = bans(&one("deny.toml"));
    assert_none(&banned_in_lockfile(&one("Cargo.lock"), &bans));
}

/// Everything that is built, a crate a line.
fn tree() -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--all-features", "--locked", "--offline"])
        .args(["--edges", "normal,build,dev", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(tree.lines().any(|line| line.starts_with("rusqlite v")), "this is not the tree: {tree}");
    tree
}

#[test]
fn no_banned_crate_is_built() {
    let (bans, _) = bans(&one("deny.toml"));
    assert_eq!(banned_in_tree(&tree(), &bans), Vec::<&str>::new());
}

#[test]
fn one_tls_stack_is_built() {
    let tree = tree();
    // rustls over aws-lc-rs, each in one version; other stacks are banned.
    for name in ["rustls v", "aws-lc-rs v", "tokio-rustls v"] {
        let versions: BTreeSet<_> =
            tree.lines().filter(|line| line.starts_with(name)).map(|line| line.trim_end_matches(" (*)")).collect();
        assert_eq!(versions.len(), 1, "{versions:?}");
    }
}

#[test]
fn every_dependency_takes_its_version_from_the_workspace() {
    assert_none(&versions_of_their_own(&manifests()));
}

#[test]
fn everything_the_workspace_declares_is_used() {
    assert_none(&unused(&one("Cargo.toml"), &manifests()));
}

#[test]
fn a_banned_crate_is_found() {
    let deny = TextFile::new(
        "deny.toml",
        "deny = [\n{ crate = \"bad\", reason = \"x\" },\n{ crate = \"old:<1\", reason = \"y\" },\n]\n",
    );
    let (bans, findings) = bans(&deny);
    assert_none(&findings);
    let lock = "[[package]]\nname = \"good\"\nversion = \"1.0.0\"\n[[package]]\nname = \"bad\"\nversion = \"2.0.0\"\n\
                [[package]]\nname = \"old\"\nversion = \"0.14.2\"\n[[package]]\nname = \"old\"\nversion = \"1.0.0\"\n";
    assert_eq!(
        places(&banned_in_lockfile(&TextFile::new("Cargo.lock", lock), &bans)),
        [("Cargo.lock", 6), ("Cargo.lock", 9)]
    );
    let tree = "good v1.0.0\nbad v2.0.0\nold v0.14.2 (*)\nold v1.0.0\n";
    assert_eq!(banned_in_tree(tree, &bans), ["bad v2.0.0", "old v0.14.2 (*)"]);
}

#[test]
fn a_ban_without_a_reason_or_in_another_form_is_found() {
    let text =
        "{ crate = \"a\" },\n{ crate = \"b@1.0.0\", reason = \"x\" },\n{ crate = \"c:<1.2\", reason = \"x\" },\n";
    assert_eq!(
        places(&bans(&TextFile::new("deny.toml", text)).1),
        [("deny.toml", 1), ("deny.toml", 2), ("deny.toml", 3)]
    );
}

#[test]
fn a_version_of_its_own_and_an_unused_declaration_are_found() {
    let root = "[workspace.dependencies]\nused = \"1\"\nunused = { version = \"1\" }\n\n[dependencies]\nused.workspace = true\n";
    let member = "[package]\nname = \"x\"\n[dev-dependencies]\nown = \"1\"\nitself = { path = \".\" }\n\
                  [target.'cfg(unix)'.dependencies]\nnix = { version = \"1\" }\n";
    let manifests = [TextFile::new("Cargo.toml", root), TextFile::new("x/Cargo.toml", member)];
    assert_eq!(places(&versions_of_their_own(&manifests)), [("x/Cargo.toml", 4), ("x/Cargo.toml", 7)]);
    assert_eq!(places(&unused(&manifests[0], &manifests)), [("Cargo.toml", 3)]);
}
