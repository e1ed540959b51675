//! Slugs are contract: each has a page, and a released one never vanishes.
#![cfg(any(feature = "client", feature = "server"))]

use std::collections::BTreeSet;
use std::path::Path;

use relay::api::Slug;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_slug_has_a_page_that_says_its_status_and_whether_a_retry_is_safe() {
    for slug in Slug::ALL {
        let path = root().join(format!("docs/problems/{slug}.md"));
        let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let facts = format!("`{slug}`, HTTP status {}, retry: `{}`", slug.status(), slug.retry().as_str());
        assert!(page.contains(&facts), "{}: has no line `{facts}`", path.display());
        for heading in [slug.title(), "What happened", "Is a retry safe?", "What to do"] {
            assert!(page.contains(&format!("# {heading}\n")), "{}: has no heading `{heading}`", path.display());
        }
    }
}

#[test]
fn every_page_is_of_a_slug() {
    for entry in std::fs::read_dir(root().join("docs/problems")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(name.parse::<Slug>().is_ok(), "{} is of no slug", path.display());
    }
}

#[test]
fn no_released_slug_vanishes() {
    let known: BTreeSet<&str> = Slug::ALL.iter().map(|slug| slug.as_str()).collect();
    let released = std::fs::read_to_string(root().join("tests/slugs.released")).unwrap();
    for slug in released.lines().filter(|line| !line.starts_with('#')) {
        assert!(known.contains(slug), "`{slug}` was released: clients rely on it");
    }
}
