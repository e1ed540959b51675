//! The output of `relay nats permissions`, on a real server: a client with it can submit and read its own, and nothing
//! else. Also the message of `relay serve` where there are no permissions.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Request, RequestErrorKind, jetstream};
use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use relay_conformance::testing::NatsServer;
use relay_nats::config::{Credentials, Secret};
use tokio::sync::mpsc;

use super::support::{Answer, Relay, Setup};
use crate::cli_support::{Running, code, run, stderr, stdout};

const JOB: &str = "0193a4b0-0000-7000-8000-000000000000";

/// A server with the permissions of these flags; everybody's password is `secret`.
fn permissions(flags: &[&str]) -> String {
    let printed = run(["nats", "permissions"].iter().chain(flags));
    assert_eq!(code(&printed), 0, "{}", stderr(&printed));
    let words = stdout(&printed).split('$').enumerate().map(|(at, part)| match part.split_once("_PASSWORD\n") {
        Some((name, rest)) if at > 0 && !name.contains(' ') => format!("secret\n{rest}"),
        _ if at > 0 => format!("${part}"),
        _ => part.to_owned(),
    });
    words.collect()
}

/// A user's connection, and what the server refuses it.
struct User {
    client: Client,
    refusals: mpsc::Receiver<String>,
}

impl User {
    async fn connect(relay: &Relay, name: &str, inbox: &str) -> Self {
        let (say, refusals) = mpsc::channel(64);
        let options = ConnectOptions::with_user_and_password(name.to_owned(), "secret".to_owned())
            .custom_inbox_prefix(inbox)
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    say.try_send(error.to_string()).unwrap();
                }
                std::future::ready(())
            });
        Self { client: options.connect(relay.server.url()).await.unwrap(), refusals }
    }

    async fn ask(&self, subject: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        let request =
            Request::new().headers(map).payload(body.to_owned().into()).timeout(Some(Duration::from_secs(60)));
        Answer(self.client.send_request(subject.to_owned(), request).await.unwrap())
    }

    /// The server refuses to take a message on `subject`.
    async fn may_not_publish(&mut self, subject: &str, headers: &[(&str, &str)]) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, *value);
        }
        let inbox = self.client.new_inbox();
        self.client.publish_with_reply_and_headers(subject.to_owned(), inbox, map, "x".into()).await.unwrap();
        self.is_refused(&format!("Publish to \"{subject}\"")).await;
    }

    /// The server refuses to send what comes on `subject`.
    async fn may_not_subscribe(&mut self, subject: &str) {
        let _subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        self.is_refused(&format!("Subscription to \"{subject}\"")).await;
    }

    async fn is_refused(&mut self, what: &str) {
        let refusal = tokio::time::timeout(Duration::from_secs(60), self.refusals.recv()).await;
        let refusal = refusal.unwrap_or_else(|_| panic!("{what} was not refused")).unwrap();
        assert!(refusal.to_lowercase().contains(&what.to_lowercase()), "{refusal}: not {what}");
    }
}

async fn restricted() -> Relay {
    let server = permissions(&["--client", "me", "--client", "other=mail", "--worker", "gpu=mail"]);
    let server = server.replace("  users: [", "  users: [\n    { user: operator, password: secret }");
    let user = |name: &str| ConnectOptions::with_user_and_password(name.to_owned(), "secret".to_owned());
    let password = Secret::Value("secret".to_owned());
    let relay = Credentials::User { name: "relay".to_owned(), password };
    let relay = Setup { server, user: relay, operator: user("operator"), ..Setup::default() }.start().await;
    // The streams that an adapter would have there: they hold jobs and results of all clients.
    let jetstream = jetstream::new(relay.client.clone());
    for (name, subjects) in [("relay-jobs-mail", "relay.jobs.mail.>"), ("relay-results", "relay.results-log.>")] {
        let subjects = vec![subjects.to_owned()];
        let config = jetstream::stream::Config { name: name.to_owned(), subjects, ..Default::default() };
        jetstream.create_stream(config).await.unwrap();
    }
    relay
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_its_permissions_submits_and_reads_its_own() {
    let relay = restricted().await;
    let me = User::connect(&relay, "me", "_INBOX_me").await;
    let id = me.ask("relay.submit.me.mail", &[("Idempotency-Key", "k")], "x").await.job();
    assert_eq!(me.ask("relay.status.me", &[], &id).await.field("state"), "queued");
    let mut announced = me.client.subscribe("relay.reply.me.*").await.unwrap();
    relay.work("text/plain", "done").await;
    assert_eq!(me.ask("relay.result.me", &[], &id).await.text(), "done");
    assert_eq!(me.ask("relay.cancel.me", &[], &id).await.field("outcome"), "succeeded");
    // The request above came back on the same connection, so the subscription stands.
    relay.client.publish(format!("relay.reply.me.{id}"), "done".into()).await.unwrap();
    assert_eq!(&announced.next().await.unwrap().payload[..], b"done");

    let inbox = me.client.new_inbox();
    let mut results = me.client.subscribe(inbox.clone()).await.unwrap();
    me.client.publish_with_reply("relay.results.me", inbox, "".into()).await.unwrap();
    assert_eq!(&results.next().await.unwrap().payload[..], b"done");
    assert!(results.next().await.unwrap().payload.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_its_permissions_can_do_nothing_else() {
    let relay = restricted().await;
    let mut me = User::connect(&relay, "me", "_INBOX_me").await;
    for subject in [
        // As another client.
        "relay.submit.other.mail",
        "relay.status.other",
        "relay.result.other",
        "relay.results.other",
        "relay.cancel.other",
        // The subjects of answers and announcements of others.
        "_INBOX_other.x",
        "_INBOX__relay.x",
        &format!("relay.reply.other.{JOB}"),
        &format!("relay.reply.me.{JOB}"),
        // The subjects of the messages that relay keeps.
        &format!("relay.jobs.mail.me.{JOB}"),
        &format!("relay.lane-0.mail.me.{JOB}"),
        &format!("relay.timer.mail.me.{JOB}"),
        &format!("relay.results-log.me.{JOB}"),
        &format!("relay.dead.mail.me.{JOB}"),
        &format!("relay.state.me.{JOB}"),
        "relay.control.mail",
        // JetStream, and the service's figures about all clients.
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.relay-jobs-mail",
        "$JS.API.STREAM.PURGE.relay-jobs-mail",
        "$JS.API.STREAM.DELETE.relay-results",
        &format!("$JS.API.DIRECT.GET.relay-results.relay.results-log.other.{JOB}"),
        "$JS.API.STREAM.MSG.GET.relay-results",
        "$JS.API.CONSUMER.CREATE.relay-results",
        "$JS.ACK.relay-jobs-mail.x.1.1.1.1.0",
        "$SRV.STATS.relay",
    ] {
        me.may_not_publish(subject, &[]).await;
    }
    for headers in [("Nats-Rollup", "all"), ("Nats-Schedule", "@at 2030-01-01T00:00:00Z")] {
        me.may_not_publish(&format!("relay.jobs.mail.me.{JOB}"), &[headers]).await;
    }
    for subject in [
        ">",
        "relay.>",
        "relay.reply.>",
        "relay.reply.other.*",
        "relay.events.other.*",
        "relay.submit.me.*",
        "relay.jobs.mail.me.*",
        "relay.results-log.me.*",
        "_INBOX.>",
        "_INBOX_other.>",
        "$JS.EVENT.ADVISORY.>",
    ] {
        me.may_not_subscribe(subject).await;
    }
    let mut other = User::connect(&relay, "other", "_INBOX_other").await;
    other.may_not_publish("relay.submit.other.render", &[]).await;

    // Headers of NATS on what it may publish reach nothing: the job is a job like any other.
    let headers = [("Nats-Rollup", "all"), ("Nats-Schedule-Target", "relay.jobs.mail.other.x"), ("Nats-TTL", "1")];
    let id = me.ask("relay.submit.me.mail", &headers, "x").await.job();
    let job = relay.lease().await.job;
    assert_eq!((job.id.to_string(), job.headers.len()), (id, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_can_not_have_relay_do_what_it_may_not() {
    let relay = restricted().await;
    let me = User::connect(&relay, "me", "_INBOX_me").await;
    // Relay may publish on all of these, and NATS lets the client name any reply subject.
    for reply in ["relay.submit.other.mail", "_INBOX_other.x", "$JS.API.STREAM.DELETE.relay-results"] {
        for subject in ["relay.submit.me.mail", "relay.results.me"] {
            me.client.publish_with_reply(subject, reply, "x".into()).await.unwrap();
        }
    }
    while relay.stats("results").await["num_errors"] != 3 || relay.stats("submit").await["num_errors"] != 3 {}
    let depth = relay.broker.jobs.depth(&"mail".parse().unwrap()).await.unwrap();
    assert_eq!(depth.waiting, 0);
    let jetstream = jetstream::new(relay.client.clone());
    jetstream.get_stream("relay-results").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn printed_for_an_account_they_are_its_users_and_another_account_may_be_let_in_to_submit() {
    let users = permissions(&["--client", "me", "--in-account"]);
    let users = users.replace("users: [", "users: [\n    { user: operator, password: secret }");
    let server = format!(
        "accounts {{
           RELAY {{
             exports: [{{ service: relay.submit.me.mail, accounts: [SHOP] }}]
             {users}
           }}
           SHOP {{
             users: [{{ user: shop, password: secret }}]
             imports: [{{ service: {{ account: RELAY, subject: relay.submit.me.mail }} }}]
           }}
         }}"
    );
    let password = Secret::Value("secret".to_owned());
    let user = Credentials::User { name: "relay".to_owned(), password };
    let operator = ConnectOptions::with_user_and_password("operator".to_owned(), "secret".to_owned());
    let relay = Setup { server, user, operator, ..Setup::default() }.start().await;
    let me = User::connect(&relay, "me", "_INBOX_me").await;
    let first = me.ask("relay.submit.me.mail", &[("Idempotency-Key", "k")], "x").await.job();
    let shop = User::connect(&relay, "shop", "_INBOX").await;
    let again = shop.ask("relay.submit.me.mail", &[("Idempotency-Key", "k")], "x").await;
    assert_eq!((again.header("Idempotency-Replayed"), again.job()), ("true", first));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_is_let_in() {
    let relay = restricted().await;
    let anybody = async_nats::connect(relay.server.url()).await;
    assert_eq!(anybody.unwrap_err().kind(), async_nats::ConnectErrorKind::AuthorizationViolation);
    let refused = relay.client.request("_INBOX_me.nobody", "".into()).await.unwrap_err();
    assert_eq!(refused.kind(), RequestErrorKind::NoResponders, "relay may answer its clients");
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_says_that_anyone_is_anyone_where_nats_has_no_permissions() {
    let open = NatsServer::start().await;
    let users = "authorization { users: [{ user: all, password: secret }] }";
    let unrestricted = NatsServer::builder().config(users).start().await;
    for (server, user, says) in [
        (&open, None, "so everybody who reaches it can act as any client"),
        (&unrestricted, Some("all"), "everybody can act as any client"),
    ] {
        let mut serve = serve(&server.url(), user);
        tokio::task::block_in_place(|| serve.wait_for_line(says));
        serve.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_takes_jobs_over_nats_and_says_nothing_of_anyone_where_there_are_permissions() {
    let server = permissions(&["--client", "me"]);
    let server = NatsServer::builder().config(&server).start().await;
    let mut serve = serve(&server.url(), Some("relay"));
    tokio::task::block_in_place(|| serve.wait_for_line("the NATS ingress is open"));
    let options = ConnectOptions::with_user_and_password("me".to_owned(), "secret".to_owned());
    let me = options.custom_inbox_prefix("_INBOX_me").connect(server.url()).await.unwrap();
    let receipt = Answer(me.request("relay.submit.me.default", "x".into()).await.unwrap());
    assert_eq!(receipt.field("state"), "queued");
    serve.signal(Signal::SIGTERM);
    let (code, said) = serve.wait();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("can act as any client"), "{said}");
}

fn serve(nats: &str, user: Option<&str>) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    let args = ["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json", "--nats-listen", nats];
    let user = user.map(|user| ["--nats-user", user, "--nats-password-file", file.to_str().unwrap()]);
    let mut serve = Running::start(args.iter().chain(user.iter().flatten()));
    // The file is read at each connection.
    tokio::task::block_in_place(|| serve.wait_for_line("connected to NATS"));
    serve
}

#[test]
fn permissions_are_for_those_that_are_named_and_a_name_is_one_user() {
    for (flags, says) in [
        (vec![], "nobody is named"),
        (vec!["--client", "me", "--worker", "me=mail"], "named twice"),
        (vec!["--client", "relay"], "named twice"),
        (vec!["--worker", "gpu"], "has no queues"),
        (vec!["--client", "me", "--nats-domain", "a.>"], "--nats-domain `a.>`"),
    ] {
        let refused = run(["nats", "permissions"].iter().chain(&flags));
        assert_eq!(code(&refused), 2, "{flags:?}");
        assert!(stderr(&refused).contains(says), "{}", stderr(&refused));
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let file = file.to_str().unwrap();
    for args in [["me", "client", "mail"], ["me", "client", "other"], ["gpu", "worker", "mail"]] {
        let [name, role, queue] = args;
        let made = run(["keys", "new", name, "--role", role, "--queue", queue, "--file", file]);
        assert_eq!(code(&made), 0, "{}", stderr(&made));
    }
    let printed = run(["nats", "permissions", "--keys", file]);
    let text = stdout(&printed);
    for subject in ["\"relay.submit.me.mail\"", "\"relay.submit.me.other\"", "\"$JS.ACK.relay-jobs-mail.>\""] {
        assert!(text.contains(subject), "{text}");
    }
    assert!(!text.contains("relay.submit.me.*"), "{text}");
}
