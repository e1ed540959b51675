//! Slugs are part of the contract: each has a page, and a released one never vanishes.

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

/// The bridge knows nothing of HTTP, so it spells the slugs itself.
#[cfg(feature = "server")]
#[test]
fn the_slugs_of_the_worker_protocol_are_those_of_the_api() {
    use std::time::Duration;

    use relay::api::Problem;
    use relay_bridge::contract::wire::WireError;
    use relay_bridge::error::{BrokerError, BrokerErrorKind as Kind};

    let mut differ = Vec::new();
    for kind in [
        Kind::Unavailable,
        Kind::Ambiguous,
        Kind::TooLarge { actual: 9, limit: 8 },
        Kind::QuotaExceeded { actual: 9, limit: 8 },
        Kind::Overloaded { retry_after: Duration::from_secs(1) },
        Kind::LeaseLost,
        Kind::NotFound,
        Kind::StateConflict,
        Kind::NewerVersion { found: 3, newest: 2 },
        Kind::Unauthorized,
        Kind::Corrupt,
        Kind::Invalid,
    ] {
        let error = BrokerError::new(kind, "test", "as told");
        let (wire, api) = (WireError::of(&error), Problem::from(&error));
        let slug: Slug = wire.slug.parse().unwrap_or_else(|_| panic!("`{}` of {kind:?} is no slug", wire.slug));
        if (slug, wire.retry.as_str()) != (api.slug, api.retry.as_str()) {
            differ.push((kind, slug.as_str(), api.slug.as_str()));
        }
    }
    let meant = [
        // A worker of this version won't read it however often it asks; a client's retry may meet a newer replica.
        (Kind::NewerVersion { found: 3, newest: 2 }, "internal", "broker-unavailable"),
        // The worker's own credentials; over HTTP they would be relay's.
        (Kind::Unauthorized, "forbidden", "broker-unavailable"),
        // Every request of a worker may be repeated anyway, and this one does not get better.
        (Kind::Corrupt, "internal", "internal"),
    ];
    assert_eq!(differ, meant);

    // Where the listeners of the TCP protocol name a slug that says more.
    let folders =
        ["src/ingress/tcp", "src/ingress/tcp/client"].map(|folder| std::fs::read_dir(root().join(folder)).unwrap());
    let files = folders.into_iter().flatten().map(|file| file.unwrap().path());
    for file in files.filter(|file| file.is_file()) {
        let text = std::fs::read_to_string(file).unwrap();
        for part in text.split("with_slug(\"").skip(1) {
            let slug = part.split('"').next().unwrap();
            assert!(slug.parse::<Slug>().is_ok(), "`{slug}` is no slug");
        }
    }
}
