//! Lists of jobs whose records are past their keeping, and not removed by AWS yet.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use relay_bridge::contract::{Job, JobId};
use relay_bridge::job_queue::JobFilter;

use super::support::Stage;

impl Stage {
    /// Puts `count` records into the table like that of `job`, newer ones first in line, each past its keeping.
    async fn leave_past_records(&self, job: &Job, count: usize) {
        let text = |text: String| AttributeValue::S(text);
        let get = self.dynamodb().get_item().table_name("relay").consistent_read(true);
        let get = get.key("pk", text(format!("job#{}", job.id))).key("sk", text("record".to_owned()));
        let record = get.send().await.unwrap().item.unwrap();
        let at = record["cl_at"].as_s().unwrap().split_once('#').unwrap().0.to_owned();
        let past = (self.clock.now().as_millis() - 1).to_string();
        let items: Vec<_> = (0..count)
            .map(|_| {
                let id = JobId::mint();
                let item: HashMap<_, _> = record
                    .clone()
                    .into_iter()
                    .chain([
                        ("pk".to_owned(), text(format!("job#{id}"))),
                        ("cl".to_owned(), text(format!("{}#{}", job.client, id.as_bytes()[15] % 4))),
                        ("cl_at".to_owned(), text(format!("{at}#{id}"))),
                        ("keep".to_owned(), AttributeValue::N(past.clone())),
                    ])
                    .collect();
                let put = PutRequest::builder().set_item(Some(item)).build().unwrap();
                WriteRequest::builder().put_request(put).build()
            })
            .collect();
        for chunk in items.chunks(25) {
            self.dynamodb().batch_write_item().request_items("relay", chunk.to_vec()).send().await.unwrap();
        }
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
        (Vec::new(), JobFilter { queue: None, state: None, key_prefix: None, after: None, limit: 1_000 });
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
