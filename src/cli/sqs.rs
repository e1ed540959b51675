//! SQS with DynamoDB by its settings: the region, what table and queues are called, and which kind of queue. Credentials come
//! from where every AWS tool takes them: environment, profile, pod or machine.

use clap::ValueEnum;
pub(crate) use relay_sqs::config::SqsConfig;

use super::exit::CliError;
use crate::config::settings::Sqs;

/// Whose permissions to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleArg {
    /// `relay worker`, where table and queues are there
    Working,
    /// `relay serve`, where they are there
    Serving,
    /// `relay provision`, and `relay serve --provision`
    Provisioning,
}

impl Sqs {
    /// How to reach SQS and DynamoDB, if they are the broker.
    ///
    /// # Errors
    /// A usage error with everything that is wrong.
    pub(crate) fn broker(&self) -> Result<Option<SqsConfig>, CliError> {
        self.enabled.then(|| self.config()).transpose()
    }

    /// The same without queues that others use, which a worker and a bridge leave alone.
    ///
    /// # Errors
    /// As [`Sqs::broker`].
    pub(crate) fn own(&self) -> Result<Option<SqsConfig>, CliError> {
        Self { forward: Vec::new(), share: Vec::new(), ..self.clone() }.broker()
    }

    fn config(&self) -> Result<SqsConfig, CliError> {
        if !relay_sqs::IS_BUILT {
            let unbuilt = CliError::usage("this relay was built without SQS");
            return Err(unbuilt.hint("build it with the cargo feature `sqs`"));
        }
        let config = SqsConfig {
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            table: self.table.clone(),
            queue_prefix: self.prefix.clone(),
            fifo: self.fifo,
            forward: read("--sqs-forward", &self.forward)?,
            shares: read("--sqs-share", &self.share)?,
            ..SqsConfig::default()
        };
        match config.check() {
            Ok(()) => Ok(config),
            Err(invalid) => {
                let problems: Vec<_> = invalid.problems().iter().map(|problem| in_flags(problem)).collect();
                Err(CliError::usage(problems.join("; ")))
            }
        }
    }
}

/// The values of a flag that may be repeated.
fn read<T: std::str::FromStr<Err = String>>(flag: &str, texts: &[String]) -> Result<Vec<T>, CliError> {
    let read = |text: &String| text.parse().map_err(|wrong| CliError::usage(format!("{flag} {text}: {wrong}")));
    texts.iter().map(read).collect()
}

/// The least that a role needs, as an IAM policy.
pub(crate) fn iam(config: &SqsConfig, role: RoleArg, account: &str) -> serde_json::Value {
    use relay_sqs::iam::{Role, policy};
    let role = match role {
        RoleArg::Working => Role::Working,
        RoleArg::Serving => Role::Serving,
        RoleArg::Provisioning => Role::Provisioning,
    };
    policy(config, role, account)
}

/// A problem of the configuration, with the flag instead of the key.
fn in_flags(problem: &str) -> String {
    let Some((key, rest)) = problem.split_once(':') else { return problem.to_owned() };
    let flag = if key == "queue_prefix" { "prefix" } else { key };
    format!("--sqs-{flag}:{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::configured::tests::settings;

    fn resolve(line: &str) -> Result<Option<SqsConfig>, CliError> {
        settings("provision", line, &[])?.sqs.broker()
    }

    #[test]
    fn sqs_is_the_broker_when_it_is_asked_for() {
        assert!(resolve("").unwrap().is_none());
        let config = resolve("--sqs --sqs-table jobs --sqs-fifo").unwrap().unwrap();
        assert_eq!((config.table.as_str(), config.queue_prefix.as_str(), config.fifo), ("jobs", "relay-", true));
    }

    #[test]
    fn a_flag_of_sqs_without_it_is_a_mistake() {
        for line in [
            "--sqs-region eu-central-1",
            "--sqs-fifo",
            "--sqs-prefix a-",
            "--sqs-forward a=https://sqs/1/a",
            "--sqs-share orders",
        ] {
            let error = resolve(line).err().unwrap().to_string();
            assert!(error.contains("without --sqs"), "{error}");
        }
    }

    #[test]
    fn each_client_has_one_queue_for_its_results() {
        let config = resolve("--sqs --sqs-forward a=https://sqs/1/a,b=https://sqs/1/b").unwrap().unwrap();
        assert_eq!(config.forward.len(), 2);
        for line in ["--sqs --sqs-forward a=https://sqs/1/a,a=https://sqs/1/b", "--sqs --sqs-forward a"] {
            let error = resolve(line).err().unwrap().to_string();
            assert!(error.contains("--sqs-forward"), "{error}");
        }
    }

    #[test]
    fn queues_of_others_are_named_with_who_may_use_them_and_are_not_relays_own() {
        let config =
            resolve("--sqs --sqs-share orders=send:111122223333,shop.fifo --sqs-share orders").unwrap().unwrap();
        assert_eq!(
            config.shares.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["orders=send:111122223333", "shop.fifo", "orders"]
        );
        for line in ["--sqs --sqs-share relay-orders=receive:111122223333", "--sqs --sqs-share orders=send:*"] {
            let error = resolve(line).err().unwrap().to_string();
            assert!(error.contains("--sqs-share"), "{error}");
        }
    }

    #[test]
    fn all_mistakes_are_named_at_once_by_their_flags() {
        let error = resolve("--sqs --sqs-table a --sqs-endpoint host --sqs-prefix a.b").err().unwrap().to_string();
        for flag in ["--sqs-table:", "--sqs-endpoint:", "--sqs-prefix:"] {
            assert!(error.contains(flag), "{flag}: {error}");
        }
    }
}
