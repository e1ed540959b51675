//! A store put back from a backup, and readers who had read beyond it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use relay_bridge::contract::Cursor;
use relay_bridge::policy::QueuePolicy;
use relay_bridge::result_log::{Page, Reset, ResultFilter, Start};
use relay_conformance::testing::NatsServer;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::support::{Stage, jobs};

/// Results in the backup, and after it.
const PART: usize = 5;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// A server, a copy of its store as it was after the first results, and a cursor after later ones.
async fn read_beyond_a_backup() -> (NatsServer, Stage, TempDir, Cursor) {
    let mut server = NatsServer::start().await;
    let stage = Stage::open(&server.url(), 1, QueuePolicy::default()).await;
    stage.submit_many("acme", "before", PART).await;
    stage.run(PART).await;
    let backup = tempfile::tempdir().unwrap();
    server.stop().await;
    copy(&server.store(), backup.path());
    server.restart().await;
    stage.submit_many("acme", "lost", PART).await;
    stage.run(PART).await;
    let (read, cursor) = stage.read("acme", Start::Oldest).await;
    assert_eq!(read.len(), PART * 2);
    (server, stage, backup, cursor)
}

/// Starts the server on the copy.
async fn put_back(server: &mut NatsServer, backup: &TempDir) {
    server.stop().await;
    std::fs::remove_dir_all(server.store()).unwrap();
    copy(backup.path(), &server.store());
    server.restart().await;
}

async fn restored() -> (NatsServer, Stage, Cursor) {
    let (mut server, stage, backup, cursor) = read_beyond_a_backup().await;
    put_back(&mut server, &backup).await;
    (server, stage, cursor)
}

async fn page(stage: &Stage, cursor: &Cursor) -> Page {
    let start = Start::After(cursor.clone());
    loop {
        // Until the connection is back.
        if let Ok(page) =
            stage.broker.results.page(&"acme".parse().unwrap(), &start, &ResultFilter::ALL, 100, Duration::ZERO).await
        {
            return page;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_newer_than_a_restored_backup_starts_over_once_with_all_that_is_kept() {
    let (_server, stage, cursor) = restored().await;
    let again = page(&stage, &cursor).await;
    assert_eq!((again.reset, again.entries.len()), (Some(Reset::LogReplaced), PART));
    let rest = page(&stage, &again.next).await;
    assert_eq!((rest.reset, rest.entries.len()), (None, 0));
    let new = stage.submit_many("acme", "new", 1).await;
    stage.run(1).await;
    let rest = page(&stage, &rest.next).await;
    assert_eq!((rest.reset, jobs(&rest.entries)), (None, new));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_a_restored_log_has_passed_again_starts_over_too() {
    let (_server, stage, cursor) = restored().await;
    // Other results are now where the cursor points.
    stage.submit_many("acme", "new", PART * 2).await;
    stage.run(PART * 2).await;
    let again = page(&stage, &cursor).await;
    assert_eq!((again.reset, again.entries.len()), (Some(Reset::LogReplaced), PART * 3));
    let rest = page(&stage, &again.next).await;
    assert_eq!((rest.reset, rest.entries.len()), (None, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_put_back_a_second_time_starts_a_cursor_over_once_more() {
    let (mut server, stage, backup, mut cursor) = read_beyond_a_backup().await;
    for time in ["first", "second"] {
        put_back(&mut server, &backup).await;
        let again = page(&stage, &cursor).await;
        assert_eq!((again.reset, again.entries.len()), (Some(Reset::LogReplaced), PART), "the {time} time");
        let new = stage.submit_many("acme", &format!("after-the-{time}"), PART).await;
        stage.run(PART).await;
        let rest = page(&stage, &again.next).await;
        let read: BTreeSet<_> = jobs(&rest.entries).into_iter().collect();
        assert_eq!((rest.reset, read), (None, new.into_iter().collect()), "the {time} time");
        cursor = rest.next;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_waits_while_a_backup_is_put_back_starts_over_at_once() {
    let (mut server, stage, backup, cursor) = read_beyond_a_backup().await;
    let results = stage.broker.results.clone();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move {
        let (client, start) = ("acme".parse().unwrap(), Start::After(cursor));
        let mut page = Box::pin(results.page(&client, &start, &ResultFilter::ALL, 100, Duration::from_secs(60)));
        // Asked once, it stands at the end of the log.
        let early = tokio::time::timeout(Duration::from_secs(2), &mut page).await;
        assert!(early.is_err(), "there is nothing to read: {early:?}");
        begun.send(()).unwrap();
        page.await
    });
    begins.await.unwrap();
    put_back(&mut server, &backup).await;
    let again = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!((again.reset, again.entries.len()), (Some(Reset::LogReplaced), PART));
}
