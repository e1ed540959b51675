//! Lists of jobs among many records that are left out: past their keeping and not removed by AWS yet, or of another queue.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use relay_bridge::contract::{Job, JobId};
use relay_bridge::job_queue::JobFilter;

use super::support::Stage;

impl Stage {
    /// Puts `count` records into the table like that of `job`, each past its keeping, and gives their ids.
    async fn leave_past_records(&self, job: &Job, count: usize) -> Vec<JobId> {
        let past = (self.clock.now().as_millis() - 1).to_string();
        self.leave_records(job, count, ("keep", AttributeValue::N(past))).await
    }

    /// Puts `count` records into the table like that of `job`, but accepted now and with another value of one attribute, and
    /// gives their ids.
    async fn leave_records(&self, job: &Job, count: usize, (name, value): (&str, AttributeValue)) -> Vec<JobId> {
        let text = |text: String| AttributeValue::S(text);
        let get = self.dynamodb().get_item().table_name("relay").consistent_read(true);
        let get = get.key("pk", text(format!("job#{}", job.id))).key("sk", text("record".to_owned()));
        let record = get.send().await.unwrap().item.unwrap();
        let at = format!("{:015}", self.clock.now().as_millis());
        let ids: Vec<_> = (0..count).map(|_| JobId::mint()).collect();
        let items: Vec<_> = ids
            .iter()
            .map(|id| {
                let item: HashMap<_, _> = record
                    .clone()
                    .into_iter()
                    .chain([
                        ("pk".to_owned(), text(format!("job#{id}"))),
                        ("cl".to_owned(), text(format!("{}#{}", job.client, id.as_bytes()[15] % 4))),
                        ("cl_at".to_owned(), text(format!("{at}#{id}"))),
                        (name.to_owned(), value.clone()),
                    ])
                    .collect();
                let put = PutRequest::builder().set_item(Some(item)).build().unwrap();
                WriteRequest::builder().put_request(put).build()
            })
            .collect();
        for chunk in items.chunks(25) {
            self.dynamodb().batch_write_item().request_items("relay", chunk.to_vec()).send().await.unwrap();
        }
        ids
    }
}

#[tokio::test]
async fn a_list_of_jobs_goes_on_behind_any_number_of_records_past_their_keeping() {
    // One more than a page looks at.
    const PAST: usize = 2_001;
    let stage = Stage::at_a_clock_that_is_moved().await;
    let kept = stage.submit().await;
    stage.clock.advance(Duration::from_secs(1));
    let newer = stage.submit().await;
    stage.leave_past_records(&newer, PAST).await;
    let (jobs, client) = (&stage.broker.jobs, stage.client());
    let (mut found, mut filter) =
        (Vec::new(), JobFilter { queues: None, state: None, key_prefix: None, after: None, limit: 1_000 });
    loop {
        let listed = jobs.list(&client, &filter).await.unwrap();
        assert_eq!(listed.after_known, filter.after.is_some(), "the last page said where to go on");
        found.extend(listed.jobs.iter().map(|status| status.job_id));
        let Some(next) = listed.next else { break };
        filter.after = Some(next);
        let stolen = jobs.list(&"other".parse().unwrap(), &filter).await.unwrap();
        assert!(!stolen.after_known && stolen.jobs.is_empty() && stolen.next.is_none(), "it is another client's");
    }
    found.sort();
    let mut both = [kept.id, newer.id];
    both.sort();
    assert_eq!(found, both, "whatever lies between");
}

#[tokio::test]
async fn a_list_of_one_queue_goes_on_behind_any_number_of_jobs_of_another_and_names_none() {
    // One more than a page looks at, all of one moment.
    const OTHERS: usize = 2_001;
    let stage = Stage::at_a_clock_that_is_moved().await;
    let mut own = Vec::new();
    let like = stage.submit().await;
    own.push(like.id);
    stage.clock.advance(Duration::from_secs(1));
    let others = stage.leave_records(&like, OTHERS, ("queue", AttributeValue::S("elsewhere".to_owned()))).await;
    stage.clock.advance(Duration::from_secs(1));
    own.push(stage.submit().await.id);
    let (jobs, client) = (&stage.broker.jobs, stage.client());
    let queues = Some(vec![like.queue.clone()]);
    let (mut found, mut positions) = (Vec::new(), 0);
    let mut filter = JobFilter { queues, state: None, key_prefix: None, after: None, limit: 1_000 };
    loop {
        let listed = jobs.list(&client, &filter).await.unwrap();
        assert_eq!(listed.after_known, filter.after.is_some(), "the last page said where to go on");
        found.extend(listed.jobs.iter().map(|status| status.job_id));
        let Some(next) = listed.next else { break };
        assert!(!others.contains(&next), "it names a job of another queue");
        positions += usize::from(!own.contains(&next));
        filter.after = Some(next);
    }
    found.sort_unstable();
    own.sort_unstable();
    assert_eq!(found, own, "whatever lies between");
    assert_eq!(positions, 1, "one page ends among them");
    let filter = JobFilter { after: Some(others[0]), ..filter };
    let stolen = jobs.list(&client, &filter).await.unwrap();
    assert!(!stolen.after_known && stolen.jobs.is_empty() && stolen.next.is_none(), "it is another queue's");
}
