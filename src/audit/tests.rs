//! Lines of the audit: their fields, and the end of those that have no room.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use super::*;

fn audit(file: &std::path::Path, level: Level, required: bool, clock: &Clock) -> Arc<Audit> {
    let config = AuditConfig { file: Some(file.to_owned()), level, required };
    Audit::start(config, clock.clone()).unwrap()
}

fn lines(file: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn manual() -> Clock {
    Clock::manual(Timestamp::from_millis(1_763_865_086_007))
}

#[tokio::test]
async fn a_call_is_one_line_of_its_outcome_also_if_nobody_hears_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let audit = audit(&file, Level::Changes, false, &manual());
    assert!(audit.begin(Door::Http, Action::Submit).unwrap().is_none(), "a submission is in the store");
    let mut line = audit.begin(Door::Http, Action::Cancel).unwrap().unwrap();
    line.set(|record| record.who = Some("orders".to_owned()));
    line.end(404, Some(Slug::NotFound));
    drop(audit.begin(Door::Http, Action::Erase).unwrap());
    audit.close(Duration::from_secs(10)).await;
    let written = lines(&file);
    assert_eq!(written.len(), 2);
    let expected = serde_json::json!({
        "time": "2025-11-23T02:31:26.007Z", "door": "http", "action": "cancel", "outcome": "refused",
        "who": "orders", "slug": "not-found",
    });
    assert_eq!((&written[0], &written[1]["outcome"]), (&expected, &"unknown".into()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_flood_of_strangers_is_one_line_a_second_and_kind_and_none_is_left_out_of_the_count() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let clock = manual();
    let audit = audit(&file, Level::Changes, false, &clock);
    let flood = |slug| (0..1_000).for_each(|_| audit.refused(Door::Http, slug, |record| record));
    flood(Slug::Unauthenticated);
    clock.advance(REFUSAL_EVERY);
    flood(Slug::Unauthenticated);
    flood(Slug::Forbidden);
    audit.close(Duration::from_secs(10)).await;
    let counts: Vec<_> = lines(&file).iter().map(|line| line["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 1_000, 1]);
}

#[tokio::test]
async fn lines_go_on_in_a_new_file_after_the_old_one_was_moved_and_none_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (file, old) = (folder.path().join("audit.jsonl"), folder.path().join("audit.1"));
    let audit = audit(&file, Level::All, false, &manual());
    drop(audit.begin(Door::Http, Action::Read).unwrap());
    std::fs::rename(&file, &old).unwrap();
    drop(audit.begin(Door::Http, Action::List).unwrap());
    audit.reopen().unwrap();
    drop(audit.begin(Door::Http, Action::Submit).unwrap());
    audit.close(Duration::from_secs(10)).await;
    assert_eq!((lines(&old).len(), lines(&file).len()), (2, 1));
}

#[tokio::test]
async fn where_every_call_has_to_be_on_record_none_is_let_in_without_room_and_else_it_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    for required in [true, false] {
        let file = folder.path().join(format!("audit-{required}"));
        let audit = audit(&file, Level::Changes, required, &manual());
        // Each of them holds its place until its call has ended.
        let held: Vec<_> = (0..QUEUE_MAX).map(|_| audit.begin(Door::Http, Action::Cancel).unwrap()).collect();
        let more = audit.begin(Door::Http, Action::Cancel);
        if required {
            assert_eq!((more.err(), audit.dropped()), (Some(Full), 0));
        } else {
            assert!(more.unwrap().is_none());
            assert_eq!(audit.dropped(), 1);
        }
        drop(held);
        audit.close(Duration::from_secs(10)).await;
        assert_eq!(lines(&file).len(), QUEUE_MAX);
    }
}

#[tokio::test]
async fn a_disk_that_takes_nothing_refuses_calls_until_it_does() {
    let full = std::path::Path::new("/dev/full");
    let config = AuditConfig { file: Some(full.to_owned()), level: Level::Changes, required: true };
    let audit = Audit::start(config, Clock::system()).unwrap();
    drop(audit.begin(Door::Http, Action::Cancel).unwrap());
    // The writer finds out when it writes.
    while audit.begin(Door::Http, Action::Cancel).is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(audit.dropped(), 0, "nothing is let go");
    audit.shared.closing.store(true, Ordering::Relaxed);
}
