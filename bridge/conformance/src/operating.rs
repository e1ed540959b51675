//! Listings, the views of operators, and the state that a crash of the broker leaves.

use std::time::Duration;

use bytes::Bytes;

use super::Fixture;
use super::stage::{Stage, refused};
use relay_bridge::contract::envelope::{EnvelopeError, NEWEST, WireVersion, decode_job, encode_job};
use relay_bridge::contract::{Job, JobState, Outcome, QueueName};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::job_queue::Depth;
use relay_bridge::policy::{QueuePolicy, change_policy};
use relay_bridge::provision::{Wanted, provision_queues};
use relay_bridge::result_log::Start;
use relay_bridge::settlement::Settlement;

/// `job` as a relay of the next version would write it: the same fields behind a version that this build does not
/// read.
#[must_use]
pub fn newer_envelope(job: &Job) -> Bytes {
    let mut bytes = encode_job(job, WireVersion::V2);
    let at = bytes.windows(2).position(|pair| pair == [0xa1, b'v']).map(|at| at + 2);
    if let Some(version) = at.and_then(|at| bytes.get_mut(at)) {
        *version = u8::try_from(NEWEST + 1).unwrap_or(u8::MAX);
    }
    bytes.into()
}

pub async fn an_envelope_of_a_newer_version_is_handed_back_and_not_dead_lettered(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let job = stage.submit(stage.keyed(&stage.client("a"), "key")).await;
    assert_eq!(decode_job(&newer_envelope(&job)).unwrap_err(), EnvelopeError::Newer { found: NEWEST + 1 });
    if !fixture.make_newer(&job).await {
        // Nothing to hand back: this adapter stores no envelope of its own. The error above is what keeps the promise.
        return;
    }
    for _ in 0..3 {
        match stage.leasing.lease(&stage.request(10, Duration::ZERO)).await {
            Ok(deliveries) => assert!(deliveries.is_empty(), "{deliveries:?}"),
            Err(error) => assert!(matches!(error.kind(), BrokerErrorKind::NewerVersion { .. }), "{error}"),
        }
        stage.pass_lease().await;
    }
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
    // It spent no attempt, as far as this build can tell.
    match stage.broker.jobs.status(&job.client, job.id).await {
        Ok(status) => assert_eq!(status.map(|status| (status.state, status.attempt)), Some((JobState::Queued, 0))),
        Err(error) => assert!(matches!(error.kind(), BrokerErrorKind::NewerVersion { .. }), "{error}"),
    }
    // And it holds up nothing that this build can read: not the line, not the listing, not the sweep.
    let mut expiring = stage.keyed(&stage.client("a"), "expiring");
    expiring.expires_in = Some(stage.policy.job_ttl * 3 / 4);
    let other = stage.submit(stage.keyed(&stage.client("a"), "other")).await;
    assert_eq!(stage.lease_one().await.job.id, other.id);
    assert!(stage.list(&job.client, |_| {}).await.contains(&other.id));
    let expiring = stage.submit(expiring).await;
    stage.pass(stage.policy.job_ttl + stage.slack).await;
    for _ in 0..10 {
        // One record a step: the first in line is the one that can't be read.
        stage.broker.jobs.sweep(1).await.unwrap();
    }
    assert_eq!(stage.finished(&expiring).await.result.outcome, Outcome::Expired);
    assert_eq!(stage.broker.dead_letters.get(job.id).await.unwrap(), None);
}

pub async fn jobs_are_listed_newest_first_page_by_page(fixture: &dyn Fixture) {
    let stage = Stage::with(fixture, |policy| policy.keep_keyless = true).await;
    let client = stage.client("a");
    let mut jobs = Vec::new();
    for number in 0..10 {
        let submission = match number % 2 {
            0 => stage.keyed(&client, &format!("key-{number}")),
            _ => stage.submission(&client),
        };
        jobs.push(stage.submit(submission).await.id);
        stage.submit_plain(&stage.client("b")).await;
        stage.pass(stage.slack).await;
    }
    jobs.reverse();
    assert_eq!(stage.list(&client, |_| {}).await, jobs);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = stage.list(&client, |filter| (filter.after, filter.limit) = (after, 3)).await;
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(*last);
        seen.extend(page);
    }
    assert_eq!(seen, jobs);
}

pub async fn jobs_of_one_moment_are_listed_once_each(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    stage.backlog(&client, 25).await;
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = stage.list(&client, |filter| (filter.after, filter.limit) = (after, 4)).await;
        let Some(last) = page.last() else { break };
        after = Some(*last);
        seen.extend(page);
    }
    let listed = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((listed, seen.len()), (25, 25));
}

pub async fn jobs_are_listed_by_queue_and_state(fixture: &dyn Fixture) {
    let stage = Stage::steady(fixture).await;
    let client = stage.client("a");
    let done = stage.run(stage.keyed(&client, "done")).await.id;
    let leased = stage.submit(stage.keyed(&client, "leased")).await.id;
    stage.lease_one().await;
    let queued = stage.submit(stage.keyed(&client, "queued")).await.id;
    let mut elsewhere = stage.keyed(&client, "elsewhere");
    elsewhere.queue = stage.another_queue().await;
    let (queue, elsewhere) = (elsewhere.queue.clone(), stage.submit(elsewhere).await.id);
    for (state, expected) in [
        (JobState::Finished(Outcome::Succeeded), vec![done]),
        (JobState::Leased, vec![leased]),
        (JobState::Finished(Outcome::Failed), vec![]),
    ] {
        assert_eq!(stage.list(&client, |filter| filter.state = Some(state)).await, expected, "{state}");
    }
    assert_eq!(stage.list(&client, |filter| filter.queues = Some(vec![queue.clone()])).await, [elsewhere]);
    let both = |filter: &mut relay_bridge::job_queue::JobFilter| {
        (filter.queues, filter.state) = (Some(vec![stage.queue.clone()]), Some(JobState::Queued));
    };
    assert_eq!(stage.list(&client, both).await, [queued]);
}

pub async fn depth_counts_what_waits_what_is_parked_and_what_runs(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let client = stage.client("a");
    stage.assert_depth(Depth::default()).await;
    stage.backlog(&client, 3).await;
    stage.backlog(&stage.client("b"), 2).await;
    let mut delayed = stage.submission(&client);
    delayed.delay = stage.lease * 2;
    stage.submit(delayed).await;
    stage.assert_depth(Depth { waiting: 5, parked: 1, leased: 0 }).await;
    let held = stage.lease_some(2).await;
    let leased = u64::try_from(held.len()).unwrap();
    stage.assert_depth(Depth { waiting: 5 - leased, parked: 1, leased }).await;
    stage.settle(&held[0], Settlement::RetryAfter(stage.lease * 2)).await;
    stage.assert_depth(Depth { waiting: 5 - leased, parked: 2, leased: leased - 1 }).await;
    stage.pass(stage.lease * 2 + stage.slack).await;
    let held = stage.lease_exactly(6).await;
    stage.assert_depth(Depth { waiting: 0, parked: 0, leased: 6 }).await;
    for delivery in &held {
        stage.succeed(delivery).await;
    }
    stage.assert_depth(Depth::default()).await;
}

pub async fn a_policy_is_read_as_it_was_written_and_applies_live(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    let policies = stage.broker.policies.clone();
    let (rate, burst) = (Some("5/min".parse().unwrap()), 3);
    let of_client = relay_bridge::policy::ClientPolicy { weight: 7, rate, burst, ..Default::default() };
    stage.policy.clients.insert(stage.client("a"), of_client);
    stage.policy.allowed_clients = [stage.client("a"), stage.client("b")].into();
    stage.policy.content_types = ["image/*", "text/plain"].map(|text| text.parse().unwrap()).into();
    stage.policy.max_attempts = 4;
    stage.policy.lease = stage.lease * 2;
    stage.write_policy(&stage.policy).await;
    assert_eq!(policies.policy(&stage.queue).await.unwrap().as_ref(), Some(&stage.policy));
    assert_eq!(policies.recent(&stage.queue).await.unwrap().as_deref(), Some(&stage.policy));
    assert_eq!(stage.leasing.queue_policy(&stage.queue).await.unwrap(), stage.policy);
    stage.submit_plain(&stage.client("a")).await;
    stage.lease_one().await;
    stage.pass(stage.lease + stage.slack).await;
    stage.assert_nothing_in_line().await;
    stage.pass(stage.lease).await;
    assert_eq!(stage.lease_one().await.attempt, 2);

    let other = stage.another_queue().await;
    let names: Vec<_> = policies.policies().await.unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "in the order of names");
    assert!(names.contains(&stage.queue) && names.contains(&other));
}

pub async fn writers_of_different_settings_of_one_queue_all_keep_theirs(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let policies = &*stage.broker.policies;
    // The first round makes the queue.
    let queue: QueueName = format!("queue-{}", super::stage::unique()).parse().unwrap();
    for round in 1..=20_u32 {
        let before = policies.policy(&queue).await.unwrap();
        let provision = |_: &QueueName, found: QueuePolicy| QueuePolicy { payload_max: round.into(), ..found };
        let queues = std::slice::from_ref(&queue);
        tokio::join!(
            answered(|| change_policy(policies, &queue, |found| QueuePolicy { max_attempts: round + 100, ..found })),
            answered(|| change_policy(policies, &queue, |found| QueuePolicy { result_max: round.into(), ..found })),
            answered(|| provision_queues(&stage.broker, queues, &provision, false)),
        );
        let found = policies.policy(&queue).await.unwrap().unwrap();
        let kept = (found.max_attempts, found.result_max, found.payload_max);
        assert_eq!(kept, (round + 100, round.into(), round.into()), "round {round}");
        if let Some(before) = before {
            let (max_attempts, result_max, payload_max) = kept;
            assert_eq!(found, QueuePolicy { max_attempts, result_max, payload_max, ..before }, "and nothing else");
        }
    }
}

/// Makes the call, and again where the broker did not answer, as users do: a cluster does not answer a look at a stream that
/// another writer is making.
async fn answered<T, F: Future<Output = Result<T, BrokerError>>>(call: impl Fn() -> F) -> T {
    for _ in 0..5 {
        match call().await {
            Err(error) if error.is_transient() => {}
            done => return done.unwrap(),
        }
    }
    call().await.unwrap()
}

pub async fn a_policy_that_changed_meanwhile_is_not_overwritten(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let (policies, queue) = (&stage.broker.policies, &stage.queue);
    let seen = policies.policy(queue).await.unwrap().unwrap();
    let meanwhile = QueuePolicy { max_attempts: 7, ..seen.clone() };
    policies.put_policy(queue, &meanwhile, Some(&seen)).await.unwrap();
    let late = QueuePolicy { result_max: 9, ..seen.clone() };
    let changed = "somebody else changed what holds for queue";
    for (seen, why) in [(Some(&seen), changed), (Some(&late), changed), (None, "somebody else created queue")] {
        let error = policies.put_policy(queue, &late, seen).await.unwrap_err();
        assert_eq!(error.kind(), BrokerErrorKind::StateConflict, "{error}");
        assert_eq!(error.detail(), format!("{why} `{queue}` meanwhile; nothing was changed: try again"));
        assert_eq!(policies.policy(queue).await.unwrap().as_ref(), Some(&meanwhile));
    }
    // Written again, as by a writer that was not told that it was done.
    for seen in [Some(&seen), None] {
        policies.put_policy(queue, &meanwhile, seen).await.unwrap();
    }
    // Nor by provisioning, which changes no other queue then.
    let new: QueueName = format!("queue-{}", super::stage::unique()).parse().unwrap();
    let wanted = [
        Wanted { queue: new.clone(), policy: late.clone(), seen: None },
        Wanted { queue: queue.clone(), policy: late.clone(), seen: Some(seen.clone()) },
    ];
    assert_eq!(refused(stage.broker.provision.apply(&wanted, true).await), BrokerErrorKind::StateConflict);
    assert_eq!(policies.policy(queue).await.unwrap().as_ref(), Some(&meanwhile));
    assert_eq!(policies.policy(&new).await.unwrap(), None);
    // A queue that is gone is not made again by a writer that saw it.
    assert_eq!(refused(policies.put_policy(&new, &late, Some(&seen)).await), BrokerErrorKind::StateConflict);
    assert_eq!(policies.policy(&new).await.unwrap(), None);
    // A pause is no change of it, and stands.
    policies.set_paused(queue, true).await.unwrap();
    policies.put_policy(queue, &late, Some(&meanwhile)).await.unwrap();
    let paused = QueuePolicy { paused: true, ..late.clone() };
    assert_eq!(policies.policy(queue).await.unwrap(), Some(paused.clone()));
    policies.put_policy(queue, &meanwhile, Some(&paused)).await.unwrap();
    assert_eq!(policies.policy(queue).await.unwrap(), Some(QueuePolicy { paused: true, ..meanwhile }));
}

pub async fn provisioning_plans_what_it_does_and_does_it_once(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let provision = &stage.broker.provision;
    let new = format!("queue-{}", super::stage::unique()).parse().unwrap();
    let (of_stage, new) =
        (stage.wanted(&stage.policy).await, Wanted { queue: new, policy: stage.policy.clone(), seen: None });
    let wanted = [of_stage, new];
    let new = &wanted[1].queue;
    let plan = provision.plan(&wanted).await.unwrap();
    assert!(!plan.is_empty() && plan.iter().all(|change| change.queue == *new && !change.destructive));
    assert_eq!(stage.broker.policies.policy(new).await.unwrap(), None, "a plan changes nothing");
    assert_eq!(provision.apply(&wanted, false).await.unwrap(), plan);
    assert_eq!(stage.broker.policies.policy(new).await.unwrap().as_ref(), Some(&stage.policy));
    assert!(provision.apply(&wanted, false).await.unwrap().is_empty());
    assert!(provision.plan(&wanted).await.unwrap().is_empty());
}

pub async fn a_destructive_change_needs_force(fixture: &dyn Fixture) {
    let stage = Stage::new(fixture).await;
    let provision = &stage.broker.provision;
    let shorter = QueuePolicy { retention: stage.policy.retention / 2, ..stage.policy.clone() };
    let other = format!("queue-{}", super::stage::unique()).parse().unwrap();
    let other = Wanted { queue: other, policy: stage.policy.clone(), seen: None };
    let wanted = [other, stage.wanted(&shorter).await];
    assert!(provision.plan(&wanted).await.unwrap().iter().any(|change| change.destructive));
    assert_eq!(refused(provision.apply(&wanted, false).await), BrokerErrorKind::StateConflict);
    let policies = &stage.broker.policies;
    assert_eq!(policies.policy(&stage.queue).await.unwrap().as_ref(), Some(&stage.policy));
    assert_eq!(policies.policy(&wanted[0].queue).await.unwrap(), None, "nothing was changed");
    provision.apply(&wanted, true).await.unwrap();
    assert_eq!(policies.policy(&stage.queue).await.unwrap(), Some(shorter));
}

pub async fn accepted_jobs_survive_a_crash_of_the_broker(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let mut submission = stage.keyed(&client, "key");
    submission.payload = (0..=255_u8).collect();
    submission.headers.insert("relay-meta-n".to_owned(), "1".to_owned());
    let keyed = stage.submit(submission.clone()).await;
    let plain = stage.submit_plain(&client).await;
    let mut delayed = stage.submission(&client);
    // Longer than a crash takes in real time.
    delayed.delay = stage.policy.job_ttl;
    let delayed = stage.submit(delayed).await;
    if !stage.crash().await {
        return;
    }
    assert_eq!(stage.replay(submission).await.run_id, keyed.run_id);
    let mut held = stage.lease_exactly(2).await;
    held.sort_by_key(|delivery| delivery.job.id != keyed.id);
    assert_eq!(
        held.iter().map(|delivery| (&delivery.job, delivery.attempt)).collect::<Vec<_>>(),
        [(&keyed, 1), (&plain, 1)]
    );
    for delivery in &held {
        stage.succeed(delivery).await;
    }
    stage.pass_until(delayed.due_at, 1).await;
    assert_eq!(stage.lease_one().await.job, delayed);
}

pub async fn results_and_cursors_survive_a_crash_of_the_broker(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let done = stage.run(stage.keyed(&client, "done")).await;
    let (_, cursor) = stage.read_all(&client, Start::Oldest).await;
    let recorded = stage.submit(stage.keyed(&client, "recorded")).await;
    let unsettled = stage.lease_one().await;
    stage.record_first(&stage.success(&unsettled, "recorded")).await;
    let cancelled = stage.submit(stage.keyed(&client, "cancelled")).await;
    stage.broker.jobs.cancel(&client, cancelled.id).await.unwrap();
    let failed = stage.submit(stage.keyed(&client, "failed")).await;
    let delivery = stage.lease_one().await;
    stage.end_badly(&delivery, Outcome::Failed).await;
    let before = stage.read_all(&client, Start::Oldest).await;
    if !stage.crash().await {
        return;
    }
    let after = stage.read_all(&client, Start::Oldest).await;
    let entries = |(entries, _): &(Vec<relay_bridge::result_log::Finished>, _)| {
        entries.iter().map(|entry| (entry.result.clone(), entry.cursor.clone())).collect::<Vec<_>>()
    };
    assert_eq!(entries(&after), entries(&before));
    let (rest, _) = stage.read_all(&client, Start::After(cursor)).await;
    let rest: Vec<_> = rest.into_iter().map(|entry| entry.result.job_id).collect();
    assert_eq!(rest, [recorded.id, cancelled.id, failed.id]);
    assert_eq!(stage.replay(stage.keyed(&client, "done")).await.state, JobState::Finished(Outcome::Succeeded));
    assert_eq!(stage.finished(&done).await.result.payload, "done");
    assert!(stage.broker.dead_letters.get(failed.id).await.unwrap().is_some());
    stage.pass_lease().await;
    for again in stage.lease_all().await {
        assert_eq!(again.job.id, recorded.id, "only what was not settled may come once more");
        stage.settle_late(&again, Settlement::Complete).await;
    }
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn leases_and_attempts_survive_a_crash_of_the_broker(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let job = stage.submit(stage.keyed(&client, "key")).await;
    let delivery = stage.lease_one().await;
    stage.settle(&delivery, Settlement::RetryAfter(stage.slack)).await;
    stage.pass(stage.slack * 2).await;
    let held = stage.lease_one().await;
    assert_eq!(held.attempt, 2);
    if !stage.crash().await {
        return;
    }
    // The holder may still end it, or the job comes back; it is never lost, and the crash gave no attempt back.
    stage.pass_lease().await;
    let again = stage.lease_one().await;
    assert_eq!((again.job.id, again.attempt), (job.id, 3));
    stage.settle_late(&held, Settlement::Complete).await;
    stage.record_first(&stage.success(&held, "by the first holder")).await;
    stage.settle_late(&again, Settlement::Complete).await;
    assert_eq!(stage.finished(&job).await.result.payload, "by the first holder");
    stage.pass_lease().await;
    stage.assert_nothing_in_line().await;
}

pub async fn policies_and_pauses_survive_a_crash_of_the_broker(fixture: &dyn Fixture) {
    let mut stage = Stage::with(fixture, |policy| policy.client_defaults.max_running = 1).await;
    stage.backlog(&stage.client("a"), 2).await;
    stage.broker.policies.set_paused(&stage.queue, true).await.unwrap();
    if !stage.crash().await {
        return;
    }
    let paused = QueuePolicy { paused: true, ..stage.policy.clone() };
    assert_eq!(stage.broker.policies.policy(&stage.queue).await.unwrap(), Some(paused));
    stage.assert_nothing_in_line().await;
    stage.broker.policies.set_paused(&stage.queue, false).await.unwrap();
    stage.lease_exactly(1).await;
}

pub async fn fairness_and_quotas_survive_a_crash_of_the_broker(fixture: &dyn Fixture) {
    let mut stage = Stage::with(fixture, |policy| policy.client_defaults.max_queued = 50).await;
    let (busy, lone) = (stage.client("busy"), stage.client("lone"));
    stage.backlog(&busy, 50).await;
    let job = stage.submit_plain(&lone).await;
    if !stage.crash().await {
        return;
    }
    let refusal = stage.broker.jobs.enqueue(stage.accept(stage.submission(&busy))).await;
    assert_eq!(refused(refusal), BrokerErrorKind::QuotaExceeded { actual: 50, limit: 50 });
    stage.assert_depth(Depth { waiting: 51, parked: 0, leased: 0 }).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(stage.lease_one().await.job.id);
    }
    assert!(!stage.broker.capabilities.fair || held.contains(&job.id));
}

pub async fn a_rerun_and_an_erasure_survive_a_crash_of_the_broker(fixture: &dyn Fixture) {
    let mut stage = Stage::new(fixture).await;
    let client = stage.client("a");
    let rerun = stage.run(stage.keyed(&client, "rerun")).await;
    let erased = stage.run(stage.keyed(&client, "erased")).await;
    stage.broker.jobs.rerun(&client, rerun.id, 1).await.unwrap();
    stage.broker.jobs.erase(&client, erased.id).await.unwrap();
    if !stage.crash().await {
        return;
    }
    assert_eq!(stage.open(&rerun).await.generation, 2);
    assert!(stage.finished(&erased).await.erased);
    let delivery = stage.lease_one().await;
    assert_eq!((delivery.job.id, delivery.job.generation, delivery.attempt), (rerun.id, 2, 1));
    stage.succeed(&delivery).await;
    assert_eq!(stage.finished(&rerun).await.result.generation, 2);
}
