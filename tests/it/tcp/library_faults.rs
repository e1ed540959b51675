//! The Rust client over TCP against servers of the binary: one that is killed, and payloads at both ends of what is allowed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use relay::api::Slug;
use relay::client::{Client, ClientError, JobsFilter, NewJob, Patience, Payload, ResultsFilter, Submitted};
use relay_bridge::contract::{JobId, Outcome};

use crate::cli_support::Running;

const LONG: Duration = Duration::from_secs(60);
const JOBS: usize = 200;
/// The server is killed each time that so many more were accepted.
const KILLED_EACH: usize = 50;

fn client(address: &str) -> Client {
    let patience = Patience { base: Duration::from_millis(10), give_up_after: LONG, ..Patience::default() };
    Client::new(&format!("relay://{address}"), None).unwrap().patient(patience)
}

fn serve(data: &Path, http: &str, tcp: &str, more: &[&str]) -> Running {
    let of_server = ["serve", "--json", "--no-auth", "--listen", http, "--tcp", tcp, "--worker-listen", "127.0.0.1:0"];
    Running::start(of_server.iter().chain(&["--queue", "mail", "--data", data.to_str().unwrap()]).chain(more))
}

fn listening(server: &Running, at: &str) -> String {
    server.ready["listening"][at].as_str().unwrap().to_owned()
}

/// Submits a job for each key, and kills and starts the server in between. The job of each, and how many were there before.
async fn submitted(client: &Client, mut restart: impl FnMut(usize)) -> BTreeMap<String, (JobId, bool)> {
    let jobs =
        stream::iter((0..JOBS).map(|at| {
            NewJob::new("mail".parse().unwrap(), at.to_string()).keyed(format!("key-{at}").parse().unwrap())
        }));
    let mut sent = std::pin::pin!(client.submit_many(jobs, NonZeroUsize::new(20).unwrap()));
    let mut found = BTreeMap::new();
    while let Some(one) = sent.next().await {
        let submitted = one.answer.unwrap_or_else(|error| panic!("{}: {error}", one.index));
        let key = one.key.unwrap().to_string();
        assert!(found.insert(key, (submitted.job_id(), submitted.replayed())).is_none(), "a key was answered twice");
        restart(found.len());
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_in_the_middle_of_submissions_has_one_job_for_each_key() {
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path(), "127.0.0.1:0", "127.0.0.1:0", &[]);
    let [http, tcp] = ["http", "tcp"].map(|at| listening(&server, at));
    let client = client(&tcp);
    let (mut server, mut kills) = (Some(server), 0);
    let first = submitted(&client, |accepted| {
        if accepted < JOBS && accepted.is_multiple_of(KILLED_EACH) {
            // Those that are unanswered now are sent to the next one.
            server.take().unwrap().kill();
            server = Some(serve(data.path(), &http, &tcp, &[]));
            kills += 1;
        }
    })
    .await;
    assert_eq!((first.len(), kills), (JOBS, 3));
    let jobs: std::collections::BTreeSet<_> = first.values().map(|(job, _)| *job).collect();
    assert_eq!(jobs.len(), JOBS, "two keys are one job");

    let again = submitted(&client, |_| {}).await;
    for (key, (job, _)) in &first {
        assert_eq!(again[key], (*job, true), "{key} is another job, or was lost");
    }
    let listed = Client::new(&format!("http://{http}"), None).unwrap();
    let all = JobsFilter { queue: None, state: None, key_prefix: None, after: None, limit: 500 };
    let page = listed.jobs(&all).await.unwrap();
    assert_eq!(page.jobs.len(), JOBS);
    server.unwrap().stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_and_results_of_no_bytes_and_of_the_most_go_through_whole() {
    let data = tempfile::tempdir().unwrap();
    let server = serve(data.path(), "127.0.0.1:0", "127.0.0.1:0", &["--payload-max", "16MiB", "--result-max", "16MiB"]);
    let workers = server.workers();
    let worker =
        Running::start(["worker", "--json", "--connect", &workers, "--queue", "mail", "--slots", "1", "--", "cat"]);
    let client = client(&listening(&server, "tcp"));
    let most = usize::try_from(client.whoami().await.unwrap().limits.payload_max).unwrap();
    let job = |bytes: usize| {
        let payload: Vec<u8> = (0..bytes).map(|at| at.to_le_bytes()[at % 3]).collect();
        NewJob::new("mail".parse().unwrap(), payload)
    };
    let mut results = client.results(ResultsFilter::default());
    for bytes in [0, most] {
        let job = job(bytes);
        let Submitted::Finished(result) = client.run(&job, LONG).await.unwrap() else { panic!("no result in time") };
        assert_eq!(result.outcome, Outcome::Succeeded, "{bytes} bytes");
        assert!(result.payload == job.payload, "{bytes} bytes came back as {}", result.payload.len());
        let entry = results.next().await.unwrap().unwrap();
        assert_eq!((entry.view.job_id, entry.view.size), (result.job_id, bytes as u64));
        assert!(
            matches!(&entry.payload, Payload::Here(payload) if *payload == job.payload),
            "{bytes} bytes were pushed"
        );
    }
    let Err(ClientError::Refused { problem, .. }) = client.submit(&job(most + 1)).await else { panic!("it was taken") };
    assert_eq!((problem.slug, problem.limit), (Slug::PayloadTooLarge, Some(most as u64)));
    worker.stop();
    server.stop();
}
