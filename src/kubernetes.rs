//! A worker tells Kubernetes whether it is at work, by an annotation of its own pod: where pods are taken away, those go first
//! that do nothing. Kubernetes makes no promise of it, and a drain is no less needed.
//!
//! It takes an account that may patch its pod, and nothing of this stops a worker: what Kubernetes does not take is one warning.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use relay_bridge::load::Load;
use relay_workers::WorkerStats;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::scaler::Measured;

/// Pods with a lower number go first; one without the annotation has 0:
/// <https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost>
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const BUSY: &str = "100";
const IDLE: &str = "0";
/// Karpenter takes no node away below such a pod: <https://karpenter.sh/docs/concepts/disruption/#pod-level-controls>
const KEEP: &str = "karpenter.sh/do-not-disrupt";
/// Where a pod finds its account: <https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>
const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How often it is looked whether the worker is at work.
const LOOKS_EVERY: Duration = Duration::from_secs(1);
/// How long a worker has to be as it is before that is told.
const STEADY: Duration = Duration::from_secs(30);
/// The least time between two calls.
const CALLS_EVERY: Duration = Duration::from_secs(60);
/// Shorter attempts are done before a pod's end matters, and would be told again and again; in seconds.
const SHORT: f64 = 30.0;
/// How long a call may take.
const CALL_MAX: Duration = Duration::from_secs(5);
/// The part of an answer that is shown.
const SHOWN_MAX: usize = 200;

/// The account of a pod, and where it is good.
#[derive(Clone, Debug)]
pub struct Account {
    api: String,
    folder: PathBuf,
}

/// The process is in no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotInPod;

impl fmt::Display for NotInPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KUBERNETES_SERVICE_HOST is not set: this process runs in no pod")
    }
}

impl std::error::Error for NotInPod {}

impl Account {
    /// The account of the pod in which this process runs, by its variables.
    ///
    /// # Errors
    /// [`NotInPod`].
    pub fn of_pod(variable: impl Fn(&str) -> Option<String>) -> Result<Self, NotInPod> {
        let host = variable("KUBERNETES_SERVICE_HOST").ok_or(NotInPod)?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        Ok(Self::at(format!("https://{host}:{port}"), FOLDER))
    }

    /// An account whose token, and the authority of the API server at `api`, are in `folder`.
    #[must_use]
    pub fn at(api: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        Self { api: api.into(), folder: folder.into() }
    }

    /// Sets the annotations of the pod that the token was made for.
    ///
    /// # Errors
    /// Why they are not set, for people.
    pub async fn tell(&self, busy: bool, keeps_node: bool) -> Result<(), String> {
        let token = read(&self.folder.join("token")).await?;
        let Claims { namespace, pod: Named { name } } = claims(token.trim())?;
        let mut client =
            reqwest::Client::builder().timeout(CALL_MAX).redirect(reqwest::redirect::Policy::none()).no_proxy();
        if self.api.starts_with("https:") {
            let authority = read(&self.folder.join("ca.crt")).await?;
            let authority = reqwest::Certificate::from_pem_bundle(authority.as_bytes());
            client = client.tls_certs_only(authority.map_err(|error| format!("ca.crt: {error}"))?);
        }
        let client = client.build().map_err(|error| error.to_string())?;
        let mut annotations = json!({ COST: if busy { BUSY } else { IDLE } });
        if keeps_node {
            annotations[KEEP] = if busy { "true".into() } else { Value::Null };
        }
        let patch = json!({ "metadata": { "annotations": annotations } }).to_string();
        let call = client
            .patch(format!("{}/api/v1/namespaces/{namespace}/pods/{name}", self.api))
            .bearer_auth(token.trim())
            .header("content-type", "application/merge-patch+json")
            .body(patch);
        let answer = call.send().await.map_err(|error| explained(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        // It says who may not do what.
        let said = answer.json::<Value>().await.ok();
        let said = said.as_ref().and_then(|said| said["message"].as_str()).unwrap_or_default();
        let said: String = said.chars().take(SHOWN_MAX).collect();
        Err(format!("{status} {}", said.escape_debug()))
    }

    /// Tells what `stats` say until it is dropped.
    pub async fn keep_telling(self, stats: Arc<WorkerStats>, keeps_node: bool) {
        let began = Instant::now();
        let (mut standing, mut failing) = (Standing::default(), false);
        loop {
            sleep(LOOKS_EVERY).await;
            let report = stats.report();
            let (running, ended) = (report.running(), report.finished);
            let Some(busy) = standing.next(began.elapsed(), running, ended) else { continue };
            let told = self.tell(busy, keeps_node).await;
            standing.answered(busy, told.is_ok());
            match told {
                Ok(()) if failing => {
                    failing = false;
                    info!(busy, "Kubernetes is told again whether this worker is at work");
                }
                Ok(()) => debug!(busy, "told Kubernetes whether this worker is at work"),
                Err(error) if failing => debug!(%error, "Kubernetes is still not told whether this worker is at work"),
                Err(error) => {
                    failing = true;
                    warn!(
                        %error,
                        "Kubernetes can't be told whether this worker is at work, so that its pod may be taken away \
                         while others are idle; the work goes on: see that its account may patch its pod"
                    );
                }
            }
        }
    }
}

/// Whether a worker is at work, since when, and what of that was told.
#[derive(Debug, Default)]
struct Standing {
    busy: bool,
    since: Duration,
    told: bool,
    /// Whether the last call failed, which may have come through.
    failed: bool,
    told_at: Option<Duration>,
    attempts: Measured,
}

impl Standing {
    /// The state that is to be told at `now`, if one is, by how many deliveries are in hand and how many have ended.
    fn next(&mut self, now: Duration, running: u64, ended: u64) -> Option<bool> {
        self.attempts.note(now, Load { leased: running, ended, ..Load::default() });
        let busy = running > 0;
        if busy != self.busy {
            (self.busy, self.since) = (busy, now);
        }
        let is_short = self.attempts.pace().service.is_some_and(|service| service < SHORT);
        let is_steady = now.saturating_sub(self.since) >= STEADY;
        let may_call = self.told_at.is_none_or(|at| now.saturating_sub(at) >= CALLS_EVERY);
        // A pod that was said to be busy is said to be idle, also once its attempts are short.
        if self.told == busy && !self.failed || is_short && busy || !is_steady || !may_call {
            return None;
        }
        self.told_at = Some(now);
        Some(busy)
    }

    /// Notes how the call ended by which `busy` was to be told.
    fn answered(&mut self, busy: bool, is_told: bool) {
        self.failed = !is_told;
        if is_told {
            self.told = busy;
        }
    }
}

/// The claims of a token about its pod.
#[derive(Deserialize)]
struct Claims {
    namespace: String,
    pod: Named,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The pod that a token was made for. The API server judges the token; here it only says where to call.
fn claims(token: &str) -> Result<Claims, String> {
    #[derive(Deserialize)]
    struct Token {
        #[serde(rename = "kubernetes.io")]
        kubernetes: Claims,
    }
    let wrong = "the token names no pod: it has to be one that Kubernetes projects into the pod";
    let body = token.split('.').nth(1).ok_or(wrong)?;
    let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| wrong)?;
    let Token { kubernetes } = serde_json::from_slice(&body).map_err(|_| wrong)?;
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b));
    if is_name(&kubernetes.namespace) && is_name(&kubernetes.pod.name) { Ok(kubernetes) } else { Err(wrong.to_owned()) }
}

async fn read(path: &Path) -> Result<String, String> {
    tokio::fs::read_to_string(path).await.map_err(|error| format!("{}: {error}", path.display()))
}

/// An error of the client with what it comes from.
fn explained(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The states that are told within so many seconds of one state, each with the second in which it is.
    fn during(standing: &mut Standing, seconds: std::ops::Range<u64>, running: u64, ended: u64) -> Vec<(u64, bool)> {
        let told = |at| {
            let busy = standing.next(Duration::from_secs(at), running, ended)?;
            standing.answered(busy, true);
            Some((at, busy))
        };
        seconds.filter_map(told).collect()
    }

    #[test]
    fn a_change_is_told_once_it_has_lasted_and_once_a_minute_at_most() {
        let mut standing = Standing::default();
        assert_eq!(during(&mut standing, 0..100, 0, 0), [], "an idle pod is as it began");
        assert_eq!(during(&mut standing, 100..120, 1, 0), []);
        assert_eq!(during(&mut standing, 120..122, 0, 0), []);
        assert_eq!(during(&mut standing, 122..160, 1, 0), [(152, true)]);
        assert_eq!(during(&mut standing, 160..300, 0, 1), [(212, false)]);
        assert_eq!(during(&mut standing, 300..400, 8, 1), [(330, true)]);
    }

    #[test]
    fn what_was_not_told_is_told_again_a_minute_later_and_so_is_that_it_is_over() {
        let mut standing = Standing::default();
        let mut failing = |at| {
            let busy = standing.next(Duration::from_secs(at), 1, 0)?;
            standing.answered(busy, false);
            Some((at, busy))
        };
        assert_eq!((0..100).filter_map(&mut failing).collect::<Vec<_>>(), [(30, true), (90, true)]);
        assert_eq!(during(&mut standing, 100..400, 0, 1), [(150, false)]);
    }

    #[test]
    fn a_worker_of_short_attempts_is_not_told_of() {
        let mut standing = Standing::default();
        let told = (0..600).filter_map(|at| standing.next(Duration::from_secs(at), 1, at)).count();
        assert_eq!(told, 0);
    }

    #[test]
    fn a_pod_is_named_by_its_token_and_by_nothing_that_leads_elsewhere() {
        let token = |claims: &str| format!("x.{}.y", URL_SAFE_NO_PAD.encode(claims));
        let of = |pod: &str| token(&format!(r#"{{"kubernetes.io":{{"namespace":"jobs","pod":{{"name":"{pod}"}}}}}}"#));
        let found = claims(&of("mail-7")).unwrap();
        assert_eq!((found.namespace.as_str(), found.pod.name.as_str()), ("jobs", "mail-7"));
        for wrong in [of("../secrets/a"), of(""), token("{}"), "x".to_owned(), String::new()] {
            assert!(claims(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_process_that_is_in_no_pod_is_told_apart() {
        assert_eq!(Account::of_pod(|_| None).unwrap_err(), NotInPod);
        let of = |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| "fd00::1".to_owned());
        assert_eq!(Account::of_pod(of).unwrap().api, "https://[fd00::1]:443");
    }
}
