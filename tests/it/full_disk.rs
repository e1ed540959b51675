//! A server whose data directory is full, as a process: it refuses work that it can't keep, and the work that it
//! acknowledged is there. One whose data directory can't be written does not start.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cli_support::{Running, relay, stderr, stdout};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use relay::api::{Problem, Slug};
use relay::client::retry::Patience;
use relay::client::{Client, ClientError, JobsFilter, NewJob};
use relay_bridge::contract::result::End;
use relay_bridge::contract::{JobId, JobResult, JobState, Outcome};
use relay_bridge::leasing::{Delivery, LeaseRequest, Leasing as _, Recorded};
use relay_bridge::settlement::Settlement;
use relay_remote::{Remote, RemoteConfig};

/// The bytes that the store may take on its full disk: some dozen of the test's jobs.
const BYTES_MAX: u32 = 4 * 1024 * 1024;

fn job(at: u8) -> NewJob {
    NewJob {
        key: Some(format!("job-{at}").parse().unwrap()),
        ..NewJob::new("default".parse().unwrap(), vec![at; 100 * 1024])
    }
}

fn serve(data: &Path) -> Command {
    let data = data.to_str().unwrap();
    let args = ["serve", "--json", "--no-auth", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data", data];
    relay(args.iter().chain(&["--queue", "default"]))
}

/// The same without a reserve, so that the disk gets full.
fn serve_to_the_end(data: &Path) -> Command {
    let mut command = serve(data);
    command.args(["--disk-reserve", "0B"]);
    command
}

/// A small file system of its own, which other processes do not see, where the system lets its users have one.
struct Disk(Running);

impl Disk {
    fn mount(folder: &Path) -> Option<Self> {
        let mount = format!("mount -t tmpfs -o size={BYTES_MAX} tmpfs '{}' && echo 1 && exec cat", folder.display());
        let allowed = Command::new("unshare").args(["-rm", "true"]).output().is_ok_and(|ran| ran.status.success());
        allowed.then(|| {
            let mut shell = Command::new("unshare");
            shell.args(["-rm", "sh", "-c", &mount]);
            Self(Running::start_command(piped(shell)))
        })
    }

    /// The same command, as a process that sees it.
    fn inside(&self, command: &Command) -> Command {
        let pid = self.0.id().to_string();
        behind(Command::new("nsenter").args(["--preserve-credentials", "-U", "-m", "-t", &pid]), command)
    }

    fn remount(&self, folder: &Path, options: &str) {
        let mut remount = Command::new("mount");
        remount.args(["-o", &format!("remount,{options}")]).arg(folder);
        assert!(self.inside(&remount).status().unwrap().success());
    }
}

/// The same command, whose writes fail where a file would grow beyond the limit.
fn limited(command: &Command) -> Command {
    let script = format!("ulimit -S -f {}; exec \"$0\" \"$@\"", BYTES_MAX / 512);
    behind(Command::new("sh").args(["-c", &script]), command)
}

/// `first`, with `command` as the end of its arguments.
fn behind(first: &Command, command: &Command) -> Command {
    let mut whole = Command::new(first.get_program());
    whole.args(first.get_args()).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => whole.env(name, value),
            None => whole.env_remove(name),
        };
    }
    piped(whole)
}

fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_data_directory_refuses_and_keeps_what_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(folder.path());
    let serve = serve_to_the_end(folder.path());
    let full = disk.as_ref().map_or_else(|| limited(&serve), |disk| disk.inside(&serve));
    let server = Running::start_command(full);
    let client = Client::new(&server.url(), None).unwrap().patient(Patience::NONE);
    let (acknowledged, refused) = until_refused(&client).await;
    assert!(acknowledged.len() > 10, "{} were taken", acknowledged.len());
    assert_eq!((refused.status, refused.retry.as_str()), (503, "safe"), "{refused:?}");
    assert!(refused.retry_after.is_some());
    // It goes on answering, and says what it can't do.
    assert!(storage_refuses(&server));
    assert_eq!(client.status(acknowledged[0]).await.unwrap().receipt.job_id, acknowledged[0]);
    server.kill();

    // There is room again.
    disk.iter().for_each(|disk| disk.remount(folder.path(), "size=64m"));
    let server =
        Running::start_command(disk.as_ref().map_or(serve, |disk| disk.inside(&serve_to_the_end(folder.path()))));
    let client = Client::new(&server.url(), None).unwrap().patient(Patience::NONE);
    for (at, id) in (0..).zip(&acknowledged) {
        let again = client.submit(&job(at)).await.unwrap();
        assert_eq!((again.job_id(), again.replayed()), (*id, true));
    }
    let next = u8::try_from(acknowledged.len()).unwrap();
    let next = client.submit(&job(next)).await.unwrap();
    assert!(!next.replayed(), "nothing was kept of what was refused");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_file_sizes_is_a_full_disk_and_ends_no_server() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start_command(limited(&serve_to_the_end(folder.path())));
    let client = Client::new(&server.url(), None).unwrap().patient(Patience::NONE);
    let (acknowledged, refused) = until_refused(&client).await;
    assert_eq!((refused.status, refused.retry.as_str()), (503, "safe"), "{refused:?}");
    assert!(storage_refuses(&server));
    for id in &acknowledged {
        assert_eq!(client.status(*id).await.unwrap().receipt.job_id, *id);
    }
    server.kill();

    let server = Running::start_command(serve_to_the_end(folder.path()));
    let client = Client::new(&server.url(), None).unwrap().patient(Patience::NONE);
    let next = client.submit(&job(u8::try_from(acknowledged.len()).unwrap())).await.unwrap();
    assert!(!next.replayed(), "nothing was kept of what was refused");
    server.stop();
}

/// That the server is ready, and whether it says that its storage refuses something, in `/readyz` and in its metrics alike.
fn storage_refuses(server: &Running) -> bool {
    let admin = server.ready["listening"]["admin"].as_str().unwrap();
    let (status, body) = get(admin, "/readyz");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["ready"]), (200, &true.into()), "{body}");
    let what: Vec<_> = body["refusing"].as_array().unwrap().iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert!(what.iter().all(|what| *what == "storage"), "{body}");
    let metrics = get(admin, "/metrics").1;
    assert!(metrics.contains("relay_ready 1\n"), "{metrics}");
    let refused = metrics.contains("relay_refusing{what=\"storage\"} 1\n");
    assert_eq!(refused, !what.is_empty(), "{body}");
    refused
}

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Jobs until one is refused: those that were taken, and the refusal.
async fn until_refused(client: &Client) -> (Vec<JobId>, Box<Problem>) {
    let mut acknowledged = Vec::new();
    loop {
        let at = u8::try_from(acknowledged.len()).expect("255 jobs of 100 KiB were taken into files of 4 MiB");
        match client.submit(&job(at)).await {
            Ok(submitted) => acknowledged.push(submitted.job_id()),
            Err(ClientError::Refused { problem, .. }) => return (acknowledged, problem),
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_disk_has_room_again_goes_on_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(folder.path());
    let serve = serve_to_the_end(folder.path());
    let server = Running::start_command(disk.as_ref().map_or_else(|| limited(&serve), |disk| disk.inside(&serve)));
    let client = Client::new(&server.url(), None).unwrap().patient(Patience::NONE);
    assert!(!storage_refuses(&server));
    let (acknowledged, _) = until_refused(&client).await;
    assert!(storage_refuses(&server), "a full disk withdraws no server");
    // It takes nothing while it is so, however often it is asked, and does not forget what it took.
    let next = u8::try_from(acknowledged.len()).unwrap();
    for _ in 0..3 {
        let Err(ClientError::Refused { problem, .. }) = client.submit(&job(next)).await else {
            panic!("a full disk took a job");
        };
        assert!(matches!(problem.status, 503 | 504), "{problem:?}");
    }
    for id in &acknowledged {
        assert_eq!(client.status(*id).await.unwrap().receipt.job_id, *id);
    }
    match &disk {
        Some(disk) => disk.remount(folder.path(), "size=64m"),
        None => {
            let mut allow = Command::new("prlimit");
            allow.args(["--fsize=unlimited", "--pid", &server.id().to_string()]);
            assert!(allow.status().unwrap().success());
        }
    }
    // The same process: the refused job is taken, once, and finished work can be recorded.
    let patience = Patience::default();
    let refused = job(next);
    let taken = patience.repeat(true, || client.submit(&refused), |_| {}).await.unwrap();
    assert!(!taken.replayed(), "nothing was kept of what was refused");
    assert!(!storage_refuses(&server));
    assert_eq!(client.cancel(taken.job_id()).await.unwrap().outcome, Some(Outcome::Cancelled));
    let page =
        client.jobs(&JobsFilter { queue: None, state: None, key_prefix: None, after: None, limit: 100 }).await.unwrap();
    assert_eq!(page.jobs.len(), acknowledged.len() + 1);
    server.stop();
}

/// How often a client is refused while another one's job runs.
const REFUSALS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn refused_submissions_on_a_full_disk_cost_another_clients_running_job_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(folder.path());
    let mut serve = serve_to_the_end(folder.path());
    // Heartbeats come while submissions are refused.
    serve.args(["--queue", "slow", "--lease", "1s", "--worker-listen", "127.0.0.1:0"]);
    let server = Running::start_command(disk.as_ref().map_or_else(|| limited(&serve), |disk| disk.inside(&serve)));
    let handlers = tempfile::tempdir().unwrap();
    let (gate, starts) = (handlers.path().join("gate"), handlers.path().join("starts"));
    mkfifo(&gate, Mode::S_IRWXU).unwrap();
    let handler = format!("echo started >> '{}'; cat '{}'", starts.display(), gate.display());
    let worker = ["worker", "--json", "--connect", &server.workers(), "--queue", "slow", "--slots", "2", "--"];
    let worker = Running::start(worker.into_iter().chain(["sh", "-c", &handler]));

    let one = Client::new(&server.url(), None).unwrap().patient(Patience::NONE).named("one".parse().unwrap());
    let other = Client::new(&server.url(), None).unwrap().patient(Patience::NONE).named("other".parse().unwrap());
    let slow = NewJob { queue: "slow".parse().unwrap(), payload: "slow".into(), ..job(0) };
    let running = one.submit(&slow).await.unwrap().job_id();
    // Opens once the handler reads.
    let gate = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(gate).unwrap());
    let gate = gate.await.unwrap();
    let (acknowledged, _) = until_refused(&other).await;
    let next = job(u8::try_from(acknowledged.len()).unwrap());
    for _ in 0..REFUSALS {
        assert!(other.submit(&next).await.is_err(), "a full disk took a job");
    }
    let status = one.status(running).await.unwrap();
    assert_eq!((status.receipt.state, status.attempt), (JobState::Leased, 1));

    match &disk {
        Some(disk) => disk.remount(folder.path(), "size=64m"),
        None => {
            let mut allow = Command::new("prlimit");
            allow.args(["--fsize=unlimited", "--pid", &server.id().to_string()]);
            assert!(allow.status().unwrap().success());
        }
    }
    drop(gate);
    let patience = Patience::default();
    let waited = patience.repeat(true, || one.wait(running, Duration::from_secs(20)), |_| {});
    let result = waited.await.unwrap().unwrap();
    assert_eq!((result.outcome, result.attempt), (Outcome::Succeeded, 1));
    assert_eq!(std::fs::read_to_string(starts).unwrap(), "started\n", "the handler was started again");
    worker.stop();
    server.stop();
}

/// A worker of the server.
async fn worker(server: &Running) -> Remote {
    Remote::connect(RemoteConfig::new(server.workers(), "test".parse().unwrap())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_down_to_its_reserve_takes_no_jobs_and_lets_those_that_it_has_be_finished_cancelled_and_erased() {
    let folder = tempfile::tempdir().unwrap();
    // Where users have no file systems of their own, `room` of the store is tested without one.
    let Some(disk) = Disk::mount(folder.path()) else { return };
    disk.remount(folder.path(), "size=32m");
    let mut serve = serve(folder.path());
    serve.args(["--worker-listen", "127.0.0.1:0"]);
    let server = Running::start_command(disk.inside(&serve));
    let client = Client::new(&server.url(), None).unwrap().patient(Patience::NONE);
    let leasing = worker(&server).await;
    let request = LeaseRequest {
        worker: "test".parse().unwrap(),
        queues: vec!["default".parse().unwrap()],
        max: 1.try_into().unwrap(),
        wait: Duration::from_secs(20),
    };
    let finish = async |leasing: &Remote, delivery: &Delivery| {
        let now = delivery.leased_at;
        let end = End { attempt: delivery.attempt, started_at: Some(now), finished_at: now };
        let result = JobResult::succeeded(&delivery.job, end, "text/plain", vec![b'r'; 100 * 1024].into());
        assert_eq!(leasing.record(&result).await.unwrap(), Recorded::First);
        leasing.settle(&delivery.receipt, &Settlement::Complete).await.unwrap();
    };
    let done = client.submit(&job(1)).await.unwrap().job_id();
    finish(&leasing, &leasing.lease(&request).await.unwrap()[0]).await;
    let running = client.submit(&job(2)).await.unwrap().job_id();
    let held = leasing.lease(&request).await.unwrap().remove(0);
    let queued = client.submit(&job(3)).await.unwrap().job_id();
    drop(leasing);
    server.stop();

    // Somebody else fills the disk: an eighth of it is 4 MiB, of which 3 are left.
    let filler = folder.path().join("filler");
    let fill = format!(
        "head -c $(($(df --output=avail -B1 '{}' | tail -n 1) - 3145728)) /dev/zero > '{}'",
        folder.path().display(),
        filler.display()
    );
    let mut sh = Command::new("sh");
    assert!(disk.inside(sh.args(["-c", &fill])).status().unwrap().success());
    let server = Running::start_command(disk.inside(&serve));
    let client = Client::new(&server.url(), None).unwrap().patient(Patience::NONE);
    let refused = |error: ClientError| {
        let ClientError::Refused { problem, .. } = error else { panic!("{error}") };
        assert_eq!(
            (problem.status, problem.slug, problem.retry.as_str()),
            (503, Slug::Overloaded, "safe"),
            "{problem:?}"
        );
        assert!(problem.retry_after.is_some());
    };
    let readiness = || get(server.ready["listening"]["admin"].as_str().unwrap(), "/readyz");
    refused(client.submit(&job(4)).await.unwrap_err());
    let (status, body) = readiness();
    assert!(status == 200 && body.contains("disk_reserve"), "{body}");
    refused(client.rerun(done, 1).await.unwrap_err());
    let again = client.submit(&job(3)).await.unwrap();
    assert!(again.replayed(), "a job that relay has is answered");
    finish(&worker(&server).await, &held).await;
    let result = client.wait(running, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!((result.outcome, result.payload.len()), (Outcome::Succeeded, 100 * 1024));
    assert_eq!(client.cancel(queued).await.unwrap().outcome, Some(Outcome::Cancelled));
    client.erase(done).await.unwrap();
    refused(client.submit(&job(4)).await.unwrap_err());

    disk.remount(folder.path(), "size=64m");
    let next = job(4);
    let taken = Patience::default().repeat(true, || client.submit(&next), |_| {}).await.unwrap();
    assert!(!taken.replayed() && !readiness().1.contains("disk_reserve"));
    server.stop();
}

/// The same command, as somebody who may not write into `folder`, where there are no file systems of one's own.
fn locked_out(folder: &Path, command: &Command) -> Command {
    std::fs::set_permissions(folder, Permissions::from_mode(0o555)).unwrap();
    let mut nobody = Command::new("env");
    if std::fs::metadata(folder).unwrap().uid() == 0 {
        // The folder is this user's, and permissions do not bind root.
        nobody = Command::new("setpriv");
        nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    behind(&nobody, command)
}

#[test]
fn a_data_directory_that_can_not_be_written_is_named_and_nothing_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let serve = serve_to_the_end(folder.path());
    let refused = |mut command: Command| {
        let output = command.output().unwrap();
        let said = stderr(&output);
        assert!(!output.status.success() && !said.contains("relay listens"), "{said}");
        assert_eq!(stdout(&output), "", "it never said that it listens");
        assert!(said.contains(folder.path().to_str().unwrap()) && said.contains("may write there"), "{said}");
    };
    let Some(disk) = Disk::mount(folder.path()) else { return refused(locked_out(folder.path(), &serve)) };
    disk.remount(folder.path(), "ro");
    refused(disk.inside(&serve));
    // With a store in it that could be read it is no different.
    disk.remount(folder.path(), "rw");
    Running::start_command(disk.inside(&serve)).stop();
    disk.remount(folder.path(), "ro");
    refused(disk.inside(&serve));
}
