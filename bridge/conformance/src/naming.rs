//! Clients know their own work by their own names: key and meta are with everything that is told of a job, and lists are
//! narrowed by what a key begins with.

use super::Fixture;
use super::reading::WAIT;
use super::stage::{Stage, soon};
use relay_bridge::contract::{ClientId, Job, JobId, Outcome, QueueName, Submission};
use relay_bridge::job_queue::JobFilter;
use relay_bridge::result_log::{ResultFilter, Start};
use relay_bridge::settlement::Settlement;

/// A keyed submission with two headers of its client's own and a trace context.
fn named(stage: &Stage<'_>, client: &ClientId, key: &str) -> Submission {
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("relay-meta-order", "17"), ("relay-meta-tenant", "blue"), ("traceparent", parent)];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Submission { headers, ..stage.keyed(client, key) }
}

/// Jobs of `client` under these keys, `None` without one, each finished before the next begins.
async fn finish(stage: &Stage<'_>, client: &ClientId, keys: &[Option<&str>]) -> Vec<JobId> {
    let mut jobs = Vec::new();
    for key in keys {
        let key = key.map(|key| key.parse().unwrap());
        jobs.push(stage.run(Submission { key, ..stage.submission(client) }).await.id);
    }
    jobs
}

/// The dead letters of the queue whose keys begin with `prefix`, page by page.
async fn letters(stage: &Stage<'_>, prefix: Option<&str>, limit: u32) -> Vec<JobId> {
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = stage.broker.dead_letters.list(Some(&stage.queue), prefix, after.as_ref(), limit).await.unwrap();
        assert!(page.letters.len() <= limit as usize);
        seen.extend(page.letters.iter().map(|head| head.letter.job.id));
        let Some(next) = page.next else { return seen };
        assert_ne!(after, Some(next.clone()), "the list goes on");
        after = Some(next);
    }
}

pub async fn results_carry_the_clients_own_key_and_meta(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let keyless = Submission { key: None, ..named(&stage, &client, "none") };
    let mut jobs = Vec::new();
    // A result of a few bytes, one of many, one that no handler left, and one of a job of which nothing else may be kept.
    for (submission, bytes) in [
        (named(&stage, &client, "small"), Some(3)),
        (named(&stage, &client, "large"), Some(40_000)),
        (named(&stage, &client, "cancelled"), None),
        (keyless, Some(3)),
    ] {
        let job = stage.submit(submission).await;
        match bytes {
            Some(bytes) => {
                let delivery = stage.lease_one().await;
                stage.record_first(&stage.success(&delivery, vec![b'x'; bytes])).await;
                stage.settle(&delivery, Settlement::Complete).await;
            }
            None => drop(stage.broker.jobs.cancel(&client, job.id).await.unwrap()),
        }
        jobs.push(job);
    }
    let (entries, _) = stage.read_all(&client, Start::Oldest).await;
    assert_eq!(entries.len(), jobs.len());
    for (job, entry) in jobs.iter().zip(entries) {
        let meta = [("order", "17"), ("tenant", "blue")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        for result in [entry.result, stage.finished(job).await.result] {
            assert_eq!((result.job_id, &result.key), (job.id, &job.key));
            assert_eq!(result.meta, meta.clone().into(), "{:?}: the client's own headers and no others", job.key);
        }
    }
}

pub async fn a_later_run_has_the_key_and_the_meta_of_the_first(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.run(named(&stage, &stage.client("a"), "order-17")).await;
    stage.broker.jobs.rerun(&job.client, job.id, 1).await.unwrap();
    let delivery = stage.lease_one().await;
    assert_eq!((&delivery.job.key, &delivery.job.headers), (&job.key, &job.headers));
    stage.end_badly(&delivery, Outcome::Failed).await;
    let result = stage.finished(&job).await.result;
    assert_eq!((result.generation, &result.key, result.meta), (2, &job.key, job.meta()));
    let letter = stage.broker.dead_letters.get(job.id).await.unwrap().unwrap();
    assert_eq!((&letter.job.key, letter.job.meta()), (&job.key, job.meta()));
}

pub async fn results_are_read_by_queue_and_key_prefix_to_the_end(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let keys =
        [Some("order-1"), Some("mail-1"), None, Some("order-2"), Some("Order-3"), Some("order"), Some("order-4")];
    let jobs = finish(&stage, &client, &keys).await;
    let elsewhere = stage.another_queue().await;
    let other = Submission { queue: elsewhere.clone(), ..stage.keyed(&client, "order-5") };
    let other = stage.submit(other).await.id;
    stage.broker.jobs.cancel(&client, other).await.unwrap();
    let last = finish(&stage, &client, &[Some("mail-2"), None]).await;
    let (queue, prefix) = (Some(vec![stage.queue.clone()]), Some("order-".to_owned()));
    let both = Some(vec![elsewhere.clone(), stage.queue.clone()]);
    for (filter, expected) in [
        (ResultFilter { queues: None, key_prefix: prefix.clone() }, vec![jobs[0], jobs[3], jobs[6], other]),
        (ResultFilter { queues: both, key_prefix: prefix.clone() }, vec![jobs[0], jobs[3], jobs[6], other]),
        (ResultFilter { queues: queue.clone(), key_prefix: prefix }, vec![jobs[0], jobs[3], jobs[6]]),
        (ResultFilter { queues: Some(vec![elsewhere]), key_prefix: None }, vec![other]),
        (ResultFilter { queues: Some(vec![]), key_prefix: None }, vec![]),
        (ResultFilter { queues: queue, key_prefix: Some("order-17".to_owned()) }, vec![]),
    ] {
        for limit in [1, 2, 100] {
            let (mut seen, mut from) = (Vec::new(), Start::Oldest);
            loop {
                let page = stage.broker.results.page(&client, &from, &filter, limit, std::time::Duration::ZERO);
                let page = page.await.unwrap();
                assert!(page.reset.is_none() && page.entries.len() <= limit as usize);
                seen.extend(page.entries.into_iter().map(|entry| entry.result.job_id));
                let next = Start::After(page.next.to_string().parse().unwrap());
                if next == from {
                    break;
                }
                from = next;
            }
            assert_eq!(seen, expected, "{filter:?}, {limit} a page");
            // Entries that were passed over count as read, so that nobody passes over them again.
            assert!(stage.read_all(&client, from).await.0.is_empty(), "{filter:?}, {limit} a page");
        }
    }
    assert_eq!(last.len(), 2);
}

pub async fn a_wait_for_some_results_ends_with_another_and_moves_past_it(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let filter = ResultFilter { queues: None, key_prefix: Some("order-".to_owned()) };
    let mut from = Start::After(stage.page(&client, &Start::Now, 10).await.next);
    for (key, wanted) in [("mail-1", false), ("order-1", true), ("mail-2", false)] {
        let (page, jobs) = soon(async {
            tokio::join!(stage.broker.results.page(&client, &from, &filter, 10, WAIT), async {
                tokio::task::yield_now().await;
                finish(&stage, &client, &[Some(key)]).await
            })
        })
        .await;
        let page = page.unwrap();
        let found: Vec<_> = page.entries.iter().map(|entry| entry.result.job_id).collect();
        assert_eq!(found, if wanted { jobs } else { vec![] }, "{key}");
        let next = Start::After(page.next);
        assert!(next != from, "{key}: it is behind what was passed over");
        assert!(stage.read_all(&client, next.clone()).await.0.is_empty(), "{key}");
        from = next;
    }
}

pub async fn jobs_are_listed_by_key_prefix_to_the_end(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.keep_keyless = true).await;
    let client = stage.client("a");
    let mut expected = Vec::new();
    for number in 0..4 {
        expected.push(stage.submit(named(&stage, &client, &format!("order-{number}"))).await);
        stage.submit(named(&stage, &client, &format!("mail-{number}"))).await;
        stage.submit(Submission { key: None, ..named(&stage, &client, "none") }).await;
        stage.submit(named(&stage, &stage.client("b"), &format!("order-{number}"))).await;
        stage.pass(stage.slack).await;
    }
    expected.reverse();
    for limit in [1, 3, 1_000] {
        let key_prefix = Some("order-".to_owned());
        let mut filter = JobFilter { queues: None, state: None, key_prefix, after: None, limit };
        let mut seen = Vec::new();
        loop {
            let page = stage.broker.jobs.list(&client, &filter).await.unwrap();
            assert!(page.jobs.len() <= limit as usize);
            seen.extend(page.jobs);
            let Some(next) = page.next else { break };
            filter.after = Some(next);
        }
        let found: Vec<_> = seen.iter().map(|status| (status.job_id, &status.key, &status.headers)).collect();
        let expected: Vec<_> = expected.iter().map(|job: &Job| (job.id, &job.key, &job.headers)).collect();
        assert_eq!(found, expected, "{limit} a page");
    }
}

pub async fn a_job_is_found_in_its_own_queue_and_in_no_other(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (client, other) = (stage.client("a"), stage.client("b"));
    let (here, elsewhere) = (stage.queue.clone(), stage.another_queue().await);
    let nowhere: QueueName = "no-such-queue".parse().unwrap();
    // Of the second nothing is left but its result, once it is done.
    let jobs = [stage.submit(named(&stage, &client, "order")).await, stage.submit_plain(&client).await];
    let looks = async || {
        for job in &jobs {
            let is_in =
                async |client, queues: &[QueueName]| stage.broker.jobs.is_in(client, job.id, queues).await.unwrap();
            assert!(is_in(&client, &[elsewhere.clone(), here.clone()]).await);
            assert!(!is_in(&client, &[elsewhere.clone(), nowhere.clone()]).await);
            assert!(!is_in(&client, &[]).await);
            assert!(!is_in(&other, std::slice::from_ref(&here)).await, "another client's");
        }
    };
    looks().await;
    for _ in &jobs {
        let delivery = stage.lease_one().await;
        stage.succeed(&delivery).await;
    }
    looks().await;
}

pub async fn a_list_of_some_queues_tells_nothing_of_the_others(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let elsewhere = stage.another_queue().await;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for number in 0..4 {
        here.push(stage.submit(named(&stage, &client, &format!("order-{number}"))).await.id);
        let other = Submission { queue: elsewhere.clone(), ..named(&stage, &client, &format!("order-{number}")) };
        there.push(stage.submit(other).await.id);
        stage.pass(stage.slack).await;
    }
    here.reverse();
    there.reverse();
    let all: Vec<_> = there.iter().zip(&here).flat_map(|(there, here)| [*there, *here]).collect();
    let nowhere = "no-such-queue".parse().unwrap();
    for (queues, expected) in [
        (vec![stage.queue.clone()], &here),
        (vec![elsewhere.clone(), nowhere], &there),
        (vec![elsewhere.clone(), stage.queue.clone()], &all),
        (vec![], &Vec::new()),
    ] {
        for limit in [1, 3, 1_000] {
            let queues = Some(queues.clone());
            let mut filter = JobFilter { queues, state: None, key_prefix: None, after: None, limit };
            let mut seen = Vec::new();
            loop {
                let page = stage.broker.jobs.list(&client, &filter).await.unwrap();
                seen.extend(page.jobs.into_iter().map(|status| status.job_id));
                let Some(next) = page.next else { break };
                assert!(
                    expected.contains(&next) || !all.contains(&next),
                    "{filter:?}: it names a job that is left out"
                );
                filter.after = Some(next);
            }
            let (mut found, mut expected) = (seen, expected.clone());
            // The two of each round may have been accepted in one moment.
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected, "{:?}, {limit} a page", filter.queues);
        }
    }
    let queues = Some(vec![stage.queue.clone()]);
    for after in [there[1], JobId::mint()] {
        let filter = JobFilter { queues: queues.clone(), state: None, key_prefix: None, after: Some(after), limit: 10 };
        let page = stage.broker.jobs.list(&client, &filter).await.unwrap();
        assert!(page.jobs.is_empty() && page.next.is_none() && !page.after_known, "{page:?}");
    }
}

pub async fn dead_letters_are_listed_by_key_prefix_to_the_end(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let (mut expected, mut all) = (Vec::new(), Vec::new());
    for key in [Some("order-1"), Some("mail-1"), None, Some("order-2"), Some("mail-2")] {
        let key = key.map(|key| key.parse().unwrap());
        let job = stage.submit(Submission { key, ..named(&stage, &client, "any") }).await;
        let delivery = stage.lease_one().await;
        stage.end_badly(&delivery, Outcome::Failed).await;
        all.push(job.id);
        expected.extend(job.key.filter(|key| key.as_str().starts_with("order-")).map(|_| job.id));
        stage.pass(stage.slack).await;
    }
    expected.reverse();
    all.reverse();
    for limit in [1, 2, 1_000] {
        assert_eq!(letters(&stage, Some("order-"), limit).await, expected, "{limit} a page");
        assert_eq!(letters(&stage, Some("order-17"), limit).await, [], "{limit} a page");
        assert_eq!(letters(&stage, None, limit).await, all, "{limit} a page");
    }
}

pub async fn erasing_removes_meta_and_keeps_the_key(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let keyless = Submission { key: None, ..named(&stage, &client, "none") };
    for submission in [named(&stage, &client, "order-17"), keyless] {
        let job = stage.submit(submission).await;
        let delivery = stage.lease_one().await;
        stage.end_badly(&delivery, Outcome::Failed).await;
        stage.broker.jobs.erase(&client, job.id).await.unwrap();
        let result = stage.finished(&job).await.result;
        assert_eq!((&result.key, result.meta), (&job.key, Default::default()), "the result");
        if let Some(status) = stage.broker.jobs.status(&client, job.id).await.unwrap() {
            assert_eq!((status.key, status.headers), (job.key.clone(), Default::default()), "the record");
        }
        let filter = JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 1_000 };
        let listed = stage.broker.jobs.list(&client, &filter).await.unwrap().jobs;
        assert!(listed.iter().all(|status| status.headers.is_empty()), "the list");
        let letter = stage.broker.dead_letters.get(job.id).await.unwrap();
        assert_eq!(letter.map(|letter| letter.job.meta()).unwrap_or_default(), Default::default(), "the letter");
    }
    let (entries, _) = stage.read_all(&client, Start::Oldest).await;
    assert!(entries.len() == 2 && entries.iter().all(|entry| entry.erased && entry.result.meta.is_empty()), "the log");
    let filter = ResultFilter { queues: None, key_prefix: Some("order-".to_owned()) };
    let page = stage.broker.results.page(&client, &Start::Oldest, &filter, 10, std::time::Duration::ZERO).await;
    assert_eq!(page.unwrap().entries.len(), 1, "it is found by its key all the same");
}
