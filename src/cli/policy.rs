//! Queues and their policy as flags. A value that is not given stays as the store has it.

use clap::Args;
use relay_bridge::contract::QueueName;
use relay_bridge::policy::QueuePolicy;

use super::exit::CliError;
use super::values;
use crate::app::{QueueSetup, Size};
use crate::config::kind::Value;
use crate::config::policy::PolicySetting;
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
    /// The values that flags set for every queue.
    #[arg(skip)]
    typed: Vec<(&'static PolicySetting, Value)>,
    /// Also apply changes that shorten what clients rely on, such as a smaller retention
    #[arg(long)]
    force: bool,
}

impl PolicyArgs {
    /// Takes the values that flags set for every queue, and the queues of a configuration file.
    pub(crate) fn take_in(&mut self, typed: Vec<(&'static PolicySetting, Value)>, configured: Vec<Queue>) {
        (self.typed, self.configured) = (typed, configured);
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
        let (policy, is_typed) = (self.over(QueuePolicy::default()), |key| self.typed(key).is_some());
        if is_typed("lease") && policy.lease > policy.lease_max {
            let max = values::show_duration(policy.lease_max);
            let what = format!("--lease must be at most {max}, the longest a worker may hold a job in all");
            return Err(CliError::usage(what));
        }
        if is_typed("retry_base") && is_typed("retry_cap") && policy.retry.cap < policy.retry.base {
            return Err(CliError::usage("--retry-cap must not be smaller than --retry-base"));
        }
        let (queues, are_named, force) = (self.queues(), !self.named().is_empty(), self.force);
        let sizes = self.sizes();
        let policy = move |name: &QueueName, stored: QueuePolicy| {
            let configured = self.configured.iter().find(|queue| queue.name == *name);
            self.over(configured.map_or(stored.clone(), |queue| queue.patch.over(stored)))
        };
        Ok(QueueSetup { queues, are_named, policy: Box::new(policy), sizes, force })
    }

    /// The value that a flag sets for every queue.
    fn typed(&self, key: &str) -> Option<&Value> {
        self.typed.iter().find(|(setting, _)| setting.key == key).map(|(_, value)| value)
    }

    /// The sizes that flags say, and those of the file that no flag stands over.
    fn sizes(&self) -> Vec<Size> {
        let mut sizes = Vec::new();
        for (flag, key) in [("--payload-max", "payload_max"), ("--result-max", "result_max")] {
            if let Some(value) = self.typed(key) {
                sizes.push(Size { by: flag.to_owned(), bytes: value.number() });
                continue;
            }
            let written = self.configured.iter().filter_map(|queue| Some((queue, queue.patch.values.get(key)?)));
            sizes.extend(written.map(|(queue, (value, line))| Size {
                by: format!("`{key}` of queue `{}` (line {line})", queue.name),
                bytes: value.number(),
            }));
        }
        sizes
    }

    /// `base` with the given flags over it.
    fn over(&self, base: QueuePolicy) -> QueuePolicy {
        let mut policy = base;
        self.typed.iter().for_each(|(setting, value)| setting.set(&mut policy, value));
        policy
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::tests::parsed;
    use crate::cli::{Command, flags};

    fn resolve(line: &str) -> Result<QueueSetup, CliError> {
        let (command, matches) = parsed(&format!("provision {line}"));
        let Command::Provision(mut args) = command else { panic!("{line}") };
        let (_, matches) = matches.subcommand().unwrap();
        args.policy().take_in(flags::typed_policy("provision", matches).unwrap(), Vec::new());
        args.policy().clone().resolve()
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
    fn values_that_exclude_each_other_are_refused_by_their_flags() {
        for (line, expected) in [
            ("--retry-base 2s --retry-cap 1s", "--retry-cap must not be smaller"),
            ("--lease 2h", "--lease must be at most 1h"),
        ] {
            let error = resolve(line).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
