//! The binary with SQS as the broker, against the emulator.

use std::process::Output;

use crate::aws_support::on_sqs;
use crate::cli_support::{Running, code, json_lines, nobody, relay, stderr, stdout};
use relay_conformance::testing::{AwsEmulator, AwsFault, AwsProxy};

fn run(emulator: &AwsEmulator, args: &[&str], rest: &[&str]) -> Output {
    on_sqs(&emulator.url(), args, rest).output().unwrap()
}

fn serve(emulator: &AwsEmulator, more: &[&str]) -> Running {
    serve_at(&emulator.url(), more)
}

fn serve_at(url: &str, more: &[&str]) -> Running {
    let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--queue", "orders"];
    Running::start_command(on_sqs(url, &args, more))
}

fn worker(emulator: &AwsEmulator, script: &str) -> Running {
    let args = ["worker", "--json", "--slots", "2", "--queue", "orders"];
    Running::start_command(on_sqs(&emulator.url(), &args, &["--", "sh", "-c", script]))
}

fn submit(server: &Running, key: &str, payload: &[u8]) -> Output {
    let server = server.url();
    crate::cli_support::run_with(
        ["submit", "--server", &server, "--queue", "orders", "--key", key, "--wait=50s"],
        payload,
    )
}

#[tokio::test]
async fn a_job_is_run_by_a_worker_that_takes_it_from_sqs_itself() {
    let emulator = AwsEmulator::start().await;
    let server = serve(&emulator, &["--provision"]);
    let worker = worker(&emulator, "tr a-z A-Z");
    for _ in 0..2 {
        let done = submit(&server, "k", b"hello");
        assert_eq!((code(&done), stdout(&done)), (0, "HELLO"), "{done:?}");
    }
    worker.stop();
    server.stop();
}

#[tokio::test]
async fn a_server_that_names_no_queue_serves_those_that_are_provisioned() {
    let emulator = AwsEmulator::start().await;
    assert_eq!(code(&run(&emulator, &["provision", "--queue", "orders"], &[])), 0);
    let args = ["serve", "--no-auth", "--listen", "127.0.0.1:0", "--json"];
    let server = Running::start_command(on_sqs(&emulator.url(), &args, &[]));
    let worker = worker(&emulator, "cat");
    let done = submit(&server, "k", b"hello");
    assert_eq!((code(&done), stdout(&done)), (0, "hello"), "{done:?}");
    worker.stop();
    server.stop();
}

#[tokio::test]
async fn a_queue_is_counted_one_by_one_where_sqs_does_not_tell() {
    let emulator = AwsEmulator::start().await;
    let server = serve(&emulator, &["--provision", "--admin", "127.0.0.1:0"]);
    let url = server.url();
    // Parked for longer than SQS delays a message: there is none.
    let args = ["submit", "--server", &url, "--queue", "orders", "--delay", "1h"];
    assert_eq!(code(&crate::cli_support::run_with(args, b"x")), 0);
    let admin = format!("http://{}", server.ready["listening"]["admin"].as_str().unwrap());
    let show = |more: &[&str]| {
        let args = ["queues", "show", "orders", "--json", "--admin-server", &admin];
        json_lines(&crate::cli_support::run(args.iter().chain(more)))[0]["parked"].clone()
    };
    assert_eq!((show(&[]), show(&["--exact"])), (0.into(), 1.into()));
    server.stop();
}

#[tokio::test]
async fn a_size_that_dynamodb_does_not_keep_is_refused_with_both_numbers() {
    let emulator = AwsEmulator::start().await;
    let serve = ["serve", "--no-auth", "--listen", "127.0.0.1:0"];
    for args in [&["provision"][..], &serve, &[&serve[..], &["--provision"]].concat()] {
        let refused = run(&emulator, args, &["--queue", "orders", "--payload-max", "1MiB"]);
        assert_eq!(code(&refused), 2, "{refused:?}");
        for text in ["--payload-max", "1048576", "358400"] {
            assert!(stderr(&refused).contains(text), "{text}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn a_job_whose_worker_is_killed_is_done_by_another() {
    let emulator = AwsEmulator::start().await;
    let server = serve(&emulator, &["--provision", "--lease", "2s"]);
    let mark = tempfile::tempdir().unwrap();
    let started = mark.path().join("started");
    // The first that gets it never ends.
    let stuck = worker(&emulator, &format!("mkfifo {0}.pipe; : > {0}; cat {0}.pipe", started.display()));
    let url = server.url();
    let args = ["submit", "--server", &url, "--queue", "orders", "--key", "k", "--wait=50s"];
    let mut waiting = relay(args).stdin(std::process::Stdio::piped()).spawn().unwrap();
    drop(waiting.stdin.take());
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !started.exists() {
        assert!(std::time::Instant::now() < until, "the job never started");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    stuck.kill();
    let worker = worker(&emulator, "echo done");
    let output = tokio::task::spawn_blocking(move || waiting.wait_with_output().unwrap()).await.unwrap();
    assert_eq!((code(&output), stdout(&output)), (0, "done\n"), "{output:?}");
    worker.stop();
    server.stop();
}

// The proxy has a thread of its own: starting the binary blocks one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_aws_throttles_is_answered_503_with_when_to_come_back() {
    let emulator = AwsEmulator::start().await;
    let proxy = AwsProxy::start(&emulator.url()).await;
    let server = serve_at(&proxy.url(), &["--provision"]);
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let jobs = format!("{}/v1/queues/orders/jobs", server.url());
    let post = async |key: &str| {
        let answer = client.post(&jobs).header("idempotency-key", key).body("hello").send().await.unwrap();
        let (status, after) = (answer.status().as_u16(), answer.headers().get("retry-after").cloned());
        (status, after, answer.json::<serde_json::Value>().await.unwrap())
    };
    let (status, _, first) = post("before").await;
    assert_eq!(status, 202, "{first}");
    let of_table = ["PutItem", "GetItem", "BatchGetItem", "Query", "UpdateItem"];
    for operation in of_table {
        proxy.fault_all(operation, AwsFault::Refuse("ThrottlingException"));
    }
    let mut refused = vec![post("k").await];
    for path in [format!("/v1/jobs/{}", first["job_id"].as_str().unwrap()), "/v1/results".to_owned()] {
        let answer = client.get(format!("{}{path}", server.url())).send().await.unwrap();
        let (status, after) = (answer.status().as_u16(), answer.headers().get("retry-after").cloned());
        refused.push((status, after, answer.json().await.unwrap()));
    }
    for (status, after, problem) in refused {
        assert_eq!(
            (status, &problem["slug"], &problem["retry"]),
            (503, &"overloaded".into(), &"safe".into()),
            "{problem}"
        );
        let seconds: u64 = after.expect("a time to come back").to_str().unwrap().parse().unwrap();
        assert!((1..=30).contains(&seconds), "{seconds} s");
    }
    of_table.iter().for_each(|operation| proxy.mend(operation));
    let (status, _, receipt) = post("k").await;
    assert_eq!((status, &receipt["replayed"]), (202, &false.into()), "what was refused had no effect: {receipt}");
    // A job is accepted when the table has it: its message is relay's own care.
    proxy.fault_all("SendMessageBatch", AwsFault::Refuse("RequestThrottled"));
    assert_eq!(post("unsent").await.0, 202);
    proxy.mend("SendMessageBatch");
    server.stop();
}

#[tokio::test]
async fn a_job_of_another_relay_is_done_on_sqs_by_a_bridge() {
    let emulator = AwsEmulator::start().await;
    assert_eq!(code(&run(&emulator, &["provision", "--queue", "orders"], &[])), 0);
    let args =
        ["serve", "--no-auth", "--memory", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--json"];
    let source = Running::start(args.into_iter().chain(["--queue", "orders"]));
    let workers = source.workers();
    let bridge = Running::start_command(on_sqs(
        &emulator.url(),
        &["bridge", "--json", "--from-tcp", &workers, "--queue", "orders"],
        &[],
    ));
    let worker = worker(&emulator, "tr a-z A-Z");
    let done = submit(&source, "k", b"hello");
    assert_eq!((code(&done), stdout(&done)), (0, "HELLO"), "{done:?}");
    worker.stop();
    bridge.stop();
    source.stop();
}

// The proxy has a thread of its own: starting the binary blocks one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_a_bridge_could_not_put_in_line_is_done_where_no_server_is() {
    let emulator = AwsEmulator::start().await;
    let proxy = AwsProxy::start(&emulator.url()).await;
    assert_eq!(code(&run(&emulator, &["provision", "--queue", "orders"], &[])), 0);
    let args =
        ["serve", "--no-auth", "--memory", "--listen", "127.0.0.1:0", "--worker-listen", "127.0.0.1:0", "--json"];
    let source = Running::start(args.into_iter().chain(["--queue", "orders"]));
    let workers = source.workers();
    let bridge = ["bridge", "--json", "--from-tcp", &workers, "--queue", "orders"];
    let bridge = Running::start_command(on_sqs(&proxy.url(), &bridge, &[]));
    let worker = worker(&emulator, "tr a-z A-Z");
    // The table has the job when the bridge dies, and no message tells of it.
    proxy.fault_all("SendMessageBatch", AwsFault::Hold);
    let url = source.url();
    let args = ["submit", "--server", &url, "--queue", "orders", "--key", "k", "--wait=55s"];
    let mut waiting = crate::cli_support::relay(args).stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut waiting.stdin.take().unwrap(), b"hello").unwrap();
    proxy.held().await;
    drop(bridge);
    let bridge = ["bridge", "--json", "--from-tcp", &workers, "--queue", "orders"];
    let bridge = Running::start_command(on_sqs(&emulator.url(), &bridge, &[]));
    let done = tokio::task::spawn_blocking(move || waiting.wait_with_output().unwrap()).await.unwrap();
    assert_eq!((code(&done), stdout(&done)), (0, "HELLO"), "{done:?}");
    worker.stop();
    bridge.stop();
    source.stop();
}

#[tokio::test]
async fn provisioning_shows_what_it_does_and_does_it_once() {
    let emulator = AwsEmulator::start().await;
    let provision = ["provision", "--queue", "orders", "--json"];
    let changes = |output: &Output| json_lines(output)[0]["changes"].as_array().unwrap().len();
    for _ in 0..2 {
        let shown = run(&emulator, &provision, &["--dry-run"]);
        assert_eq!((code(&shown), changes(&shown)), (0, 3), "the table, the policy, the queue: {shown:?}");
    }
    let unprovisioned = run(&emulator, &["serve", "--no-auth", "--listen", "127.0.0.1:0", "--queue", "orders"], &[]);
    assert_eq!(code(&unprovisioned), 2, "{unprovisioned:?}");
    assert!(stderr(&unprovisioned).contains("relay provision"), "{unprovisioned:?}");
    assert_eq!(changes(&run(&emulator, &provision, &[])), 3);
    assert_eq!(changes(&run(&emulator, &provision, &[])), 0);
    serve(&emulator, &[]).stop();
}

#[tokio::test]
async fn queues_of_other_accounts_are_shown_before_they_are_made_and_a_loss_needs_force() {
    let emulator = AwsEmulator::start().await;
    let provision = ["provision", "--queue", "orders", "--json"];
    let share = "shop-results.fifo=receive:111122223333";
    let told = |output: &Output| {
        let changes = json_lines(output)[0]["changes"].as_array().unwrap().clone();
        let of_others = changes.iter().filter_map(|change| change["what"].as_str()?.split_once(", for others: "));
        of_others.map(|(_, what)| what.to_owned()).collect::<Vec<_>>()
    };
    let allow = "arn:aws:iam::111122223333:root: sqs:ChangeMessageVisibility, sqs:DeleteMessage, sqs:GetQueueAttributes, \
                 sqs:GetQueueUrl, sqs:ReceiveMessage";
    for more in [&["--dry-run"][..], &[]] {
        let shown = run(&emulator, &provision, &[&["--sqs-share", share], more].concat());
        assert_eq!(
            (code(&shown), told(&shown)),
            (0, vec!["create it".to_owned(), format!("allow {allow}")]),
            "{shown:?}"
        );
    }
    let config = tempfile::tempdir().unwrap();
    let file = config.path().join("relay.toml");
    std::fs::write(&file, format!("[sqs]\nenabled = true\nshare = [\"{share}\"]\n")).unwrap();
    let again = run(&emulator, &provision, &["--config", file.to_str().unwrap()]);
    assert_eq!((code(&again), told(&again)), (0, vec![]), "the file says the same: {again:?}");
    let nobody = ["--sqs-share", "shop-results.fifo"];
    let refused = run(&emulator, &provision, &nobody);
    assert_eq!((code(&refused), told(&refused)), (2, vec![format!("no longer allow {allow}")]), "{refused:?}");
    assert!(stderr(&refused).contains("--force"), "{refused:?}");
    assert_eq!(code(&run(&emulator, &provision, &[&nobody[..], &["--force"]].concat())), 0);
    assert!(told(&run(&emulator, &provision, &nobody)).is_empty());
}

#[test]
fn what_only_a_server_does_is_no_flag_of_a_worker_or_a_bridge() {
    let forward = "shop=https://sqs.eu-central-1.amazonaws.com/111122223333/results";
    for (command, rest) in [("worker", &["--", "cat"][..]), ("bridge", &["--from-tcp", "127.0.0.1:1"])] {
        for (flag, value) in [("--sqs-forward", forward), ("--sqs-share", "orders")] {
            let args = [&[command, "--sqs", flag, value][..], rest].concat();
            let refused = crate::cli_support::run(args);
            assert_eq!(code(&refused), 2, "{refused:?}");
            assert!(stderr(&refused).contains(&format!("unexpected argument '{flag}'")), "{refused:?}");
        }
    }
}

#[tokio::test]
async fn a_worker_whose_queues_are_missing_says_how_they_are_made() {
    let emulator = AwsEmulator::start().await;
    let ended = run(&emulator, &["worker", "--queue", "orders"], &["--", "cat"]);
    assert_eq!(code(&ended), 2, "{ended:?}");
    assert!(stderr(&ended).contains("`relay provision` with the same --sqs flags"), "{ended:?}");
}

#[test]
fn the_printed_permissions_have_the_queues_of_clients() {
    let forward = "shop=https://sqs.eu-central-1.amazonaws.com/111122223333/results";
    let args = |role| ["provision", "--sqs", "--sqs-forward", forward, "--print-iam", role];
    let printed = crate::cli_support::run(args("serving"));
    let policy: serde_json::Value = serde_json::from_str(stdout(&printed)).unwrap();
    assert_eq!(policy["Statement"][3]["Resource"][0], "arn:aws:sqs:eu-central-1:111122223333:results");
    assert!(
        !stdout(&crate::cli_support::run(args("working"))).contains("111122223333"),
        "a worker sends nothing there"
    );
}

#[test]
fn the_printed_permissions_to_provision_have_the_queues_of_other_accounts() {
    let args = |role| ["provision", "--sqs", "--sqs-share", "shop-orders=send:111122223333", "--print-iam", role];
    let printed = crate::cli_support::run(args("provisioning"));
    let policy: serde_json::Value = serde_json::from_str(stdout(&printed)).unwrap();
    let statement = &policy["Statement"][3];
    assert_eq!(statement["Resource"], serde_json::json!(["arn:aws:sqs:*:*:shop-orders"]));
    let actions: Vec<_> =
        statement["Action"].as_array().unwrap().iter().map(|action| action.as_str().unwrap()).collect();
    for action in ["CreateQueue", "GetQueueAttributes", "GetQueueUrl", "SetQueueAttributes", "TagQueue"] {
        assert!(actions.contains(&format!("sqs:{action}").as_str()), "{action}: {actions:?}");
    }
    assert_eq!(actions.len(), 5, "{actions:?}");
    assert!(!stdout(&crate::cli_support::run(args("serving"))).contains("shop-orders"), "a server changes no policies");
}

#[test]
fn the_printed_permissions_are_those_of_the_account_and_names() {
    let args = ["provision", "--sqs", "--sqs-table", "jobs", "--print-iam", "serving", "--account", "123456789012"];
    let printed = crate::cli_support::run(args);
    assert_eq!(code(&printed), 0, "{printed:?}");
    let policy: serde_json::Value = serde_json::from_str(stdout(&printed)).unwrap();
    assert_eq!(policy["Statement"][0]["Resource"][0], "arn:aws:dynamodb:*:123456789012:table/jobs");
    assert_eq!(policy["Statement"][1]["Resource"], "arn:aws:sqs:*:123456789012:relay-*");
    assert_eq!(policy["Statement"][2]["Resource"], "arn:aws:sqs:*:123456789012:relay-_reply_*");
}

#[test]
fn jobs_are_kept_in_one_place() {
    for other in [&["--nats", "nats://127.0.0.1:1"][..], &["--memory"]] {
        let args = ["serve", "--no-auth", "--sqs"].iter().chain(other);
        assert_eq!(code(&crate::cli_support::run(args)), 2, "{other:?}");
    }
}

#[test]
fn a_call_that_has_no_answer_is_told_with_the_cause_and_one_without_credentials_as_such() {
    let (_held, nobody) = nobody();
    let asked = |credentials: &[(&str, &str)]| {
        let mut command = relay(["provision", "--sqs", "--sqs-region", "eu-central-1", "--sqs-endpoint", &nobody]);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env("HOME", "/nowhere").env("AWS_EC2_METADATA_DISABLED", "true").envs(credentials.iter().copied());
        let ended = command.output().unwrap();
        assert_eq!(code(&ended), 69, "{}", stderr(&ended));
        stderr(&ended).to_owned()
    };
    let said = asked(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]);
    assert!(said.contains("AWS did not answer: Connection refused"), "{said}");
    let said = asked(&[]);
    assert!(said.contains("there are no credentials for AWS"), "{said}");
}
