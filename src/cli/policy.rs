//! Queues and their policy as flags. A value that is not given stays as the store has it.

use std::time::Duration;

use clap::Args;
use relay_bridge::contract::QueueName;
use relay_bridge::policy::QueuePolicy;

use super::exit::CliError;
use super::values;
use crate::app::{QueueSetup, Size};
use crate::config::kind::Value;
use crate::config::queues::Queue;

/// Queues and what holds for them; the same policy for each of them.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Queues")]
pub(crate) struct PolicyArgs {
    /// A queue to create or update; repeat it for more. Queues that are not named stay as they are, and are served as well
    /// [default: those of --config, else `default`; for `relay serve` with --nats or --sqs and without --provision those
    /// that are provisioned]
    #[arg(long = "queue", value_name = "NAME")]
    queues: Vec<QueueName>,
    /// Those of the configuration file.
    #[arg(skip)]
    configured: Vec<Queue>,
    /// Handler starts per run before a job is dead-lettered as `exhausted` [new queues: 10]
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// How long a worker holds a job without a heartbeat: how long a dead worker delays its jobs [new queues: 30s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    lease: Option<Duration>,
    /// The longest a run may take from acceptance to its outcome [new queues: 6h]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    job_ttl: Option<Duration>,
    /// How long after completion results are kept and keys replay [new queues: 24h]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    retention: Option<Duration>,
    /// The longest wait before the second attempt; it doubles with each one [new queues: 1s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    retry_base: Option<Duration>,
    /// The longest wait between two attempts [new queues: 5m]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    retry_cap: Option<Duration>,
    /// The largest payload; more than the broker takes is refused at the start [new queues: 256KiB, or what the broker takes]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    payload_max: Option<u64>,
    /// The largest result; a larger one fails its job; otherwise as --payload-max
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    result_max: Option<u64>,
    /// Keep payload and record of jobs without a key after their result, so that they can be rerun
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    keep_keyless: Option<bool>,
    /// Also apply changes that shorten what clients rely on, such as a smaller retention
    #[arg(long)]
    force: bool,
}

impl PolicyArgs {
    /// The words of a configuration file about queues.
    pub(crate) fn set_queues(&mut self, queues: Vec<Queue>) {
        self.configured = queues;
    }

    /// The queues that were named, here and in the file; `default` if none was.
    pub(crate) fn queues(&self) -> Vec<QueueName> {
        let mut queues = self.named();
        if queues.is_empty() {
            queues.extend("default".parse());
        }
        queues
    }

    fn named(&self) -> Vec<QueueName> {
        let mut queues = self.queues.clone();
        queues.extend(self.configured.iter().map(|queue| queue.name.clone()));
        queues.sort();
        queues.dedup();
        queues
    }

    /// The queues with a function that makes their policy out of the stored one (or the default one).
    ///
    /// # Errors
    /// A usage error that names every value that can't be.
    pub(crate) fn resolve(self) -> Result<QueueSetup, CliError> {
        let policy = self.over(QueuePolicy::default());
        let mut wrong = Vec::new();
        if policy.max_attempts == 0 {
            wrong.push("--max-attempts must be at least 1".to_owned());
        }
        for (flag, value, min) in [
            ("--lease", policy.lease, Duration::from_millis(500)),
            ("--job-ttl", policy.job_ttl, Duration::from_secs(1)),
            ("--retry-base", policy.retry.base, Duration::from_millis(1)),
        ] {
            if value < min {
                wrong.push(format!("{flag} must be at least {}", values::show_duration(min)));
            }
        }
        if self.lease.is_some() && policy.lease > policy.lease_max {
            let max = values::show_duration(policy.lease_max);
            wrong.push(format!("--lease must be at most {max}, the longest a worker may hold a job in all"));
        }
        if self.retry_base.is_some() && self.retry_cap.is_some() && policy.retry.cap < policy.retry.base {
            wrong.push("--retry-cap must not be smaller than --retry-base".to_owned());
        }
        if !wrong.is_empty() {
            return Err(CliError::usage(wrong.join("; ")));
        }
        let (queues, are_named, force) = (self.queues(), !self.named().is_empty(), self.force);
        let sizes = self.sizes();
        let policy = move |name: &QueueName, stored: QueuePolicy| {
            let configured = self.configured.iter().find(|queue| queue.name == *name);
            self.over(configured.map_or(stored.clone(), |queue| queue.patch.over(stored)))
        };
        Ok(QueueSetup { queues, are_named, policy: Box::new(policy), sizes, force })
    }

    /// The sizes that flags say, and those of the file that no flag stands over.
    fn sizes(&self) -> Vec<Size> {
        let mut sizes = Vec::new();
        for (flag, key, given) in
            [("--payload-max", "payload_max", self.payload_max), ("--result-max", "result_max", self.result_max)]
        {
            if let Some(bytes) = given {
                sizes.push(Size { by: flag.to_owned(), bytes });
                continue;
            }
            let written = self.configured.iter().filter_map(|queue| Some((queue, queue.patch.values.get(key)?)));
            sizes.extend(written.filter_map(|(queue, (value, line))| match value {
                Value::Number(bytes) => {
                    Some(Size { by: format!("`{key}` of queue `{}` (line {line})", queue.name), bytes: *bytes })
                }
                _ => None,
            }));
        }
        sizes
    }

    /// `base` with the given flags over it.
    fn over(&self, base: QueuePolicy) -> QueuePolicy {
        let mut policy = base;
        let set = |to: &mut Duration, from: Option<Duration>| *to = from.unwrap_or(*to);
        set(&mut policy.lease, self.lease);
        set(&mut policy.job_ttl, self.job_ttl);
        set(&mut policy.retention, self.retention);
        set(&mut policy.retry.base, self.retry_base);
        set(&mut policy.retry.cap, self.retry_cap);
        policy.max_attempts = self.max_attempts.unwrap_or(policy.max_attempts);
        policy.payload_max = self.payload_max.unwrap_or(policy.payload_max);
        policy.result_max = self.result_max.unwrap_or(policy.result_max);
        policy.keep_keyless = self.keep_keyless.unwrap_or(policy.keep_keyless);
        policy
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        policy: PolicyArgs,
    }

    fn resolve(line: &str) -> Result<QueueSetup, CliError> {
        Line::try_parse_from(format!("relay {line}").split_whitespace()).unwrap().policy.resolve()
    }

    #[test]
    fn what_is_not_given_stays_as_it_was_stored() {
        let setup = resolve("--queue b --queue a --queue a --lease 2s").unwrap();
        let stored = QueuePolicy { max_attempts: 3, ..QueuePolicy::default() };
        let policy = (setup.policy)(&setup.queues[0], stored.clone());
        assert_eq!(policy, QueuePolicy { lease: Duration::from_secs(2), ..stored });
        assert_eq!(setup.queues.iter().map(QueueName::as_str).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let refused = resolve("--max-attempts 0 --lease 0s --retry-base 2s --retry-cap 1s");
        let error = refused.err().unwrap().to_string();
        for flag in ["--max-attempts", "--lease", "--retry-cap"] {
            assert!(error.contains(flag), "{error}");
        }
    }
}
