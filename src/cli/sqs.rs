//! SQS with DynamoDB as flags: the region, what table and queues are called, and which kind of queue. Credentials come from
//! where every AWS tool takes them: environment, profile, pod or machine.

use clap::{Args, ValueEnum};
pub(crate) use relay_sqs::config::SqsConfig;

use super::exit::CliError;

/// SQS and DynamoDB as the broker.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "SQS")]
pub(crate) struct SqsArgs {
    /// Keep jobs and results in a table of DynamoDB, and put jobs in line in queues of SQS. Credentials are those of the AWS
    /// tools: environment, profile, pod or machine
    #[arg(long, env = "RELAY_SQS", conflicts_with = "nats")]
    sqs: bool,
    /// The AWS region [default: that of AWS_REGION, of the profile, or of the machine]
    #[arg(long, value_name = "REGION", env = "RELAY_SQS_REGION")]
    sqs_region: Option<String>,
    /// Where both services are, if not at the region's endpoints: an emulator, or a VPC endpoint without private names
    #[arg(long, value_name = "URL", env = "RELAY_SQS_ENDPOINT")]
    sqs_endpoint: Option<String>,
    /// The table [default: relay]
    #[arg(long, value_name = "NAME", env = "RELAY_SQS_TABLE")]
    sqs_table: Option<String>,
    /// What names of queues in SQS begin with [default: relay-]
    #[arg(long, value_name = "PREFIX", env = "RELAY_SQS_PREFIX")]
    sqs_prefix: Option<String>,
    /// Queues of the FIFO kind, where a send that is repeated makes no second message
    #[arg(long, env = "RELAY_SQS_FIFO")]
    sqs_fifo: bool,
}

/// Queues of SQS that others use. Nothing of a worker or a bridge.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "SQS")]
pub(crate) struct OthersArgs {
    /// Send each of a client's results to a queue of SQS of its own, which may be another account's: the queue's URL; repeat
    /// it for more clients. `relay serve` does so, and --print-iam allows it
    #[arg(long, value_name = "CLIENT=URL", value_delimiter = ',', env = "RELAY_SQS_FORWARD")]
    sqs_forward: Vec<String>,
    /// Provision a queue of SQS that another account uses, such as one for a client's results or one that a bridge takes
    /// messages from, and let that account or role send there, or receive: `orders=send:111122223333`. Its policy has no
    /// other grants; repeat it for more. A name alone lets in nobody
    #[arg(long, value_name = "QUEUE=send|receive:WHO", value_delimiter = ',', env = "RELAY_SQS_SHARE")]
    sqs_share: Vec<String>,
}

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

impl SqsArgs {
    /// Whether SQS is the broker.
    pub(crate) fn is_broker(&self) -> bool {
        self.sqs
    }

    /// How to reach SQS and DynamoDB, if they are the broker.
    ///
    /// # Errors
    /// A usage error with everything that is wrong, also flags of SQS without `--sqs`.
    pub(crate) fn resolve(self, others: OthersArgs) -> Result<Option<SqsConfig>, CliError> {
        let given = [
            ("--sqs-region", self.sqs_region.is_some()),
            ("--sqs-endpoint", self.sqs_endpoint.is_some()),
            ("--sqs-table", self.sqs_table.is_some()),
            ("--sqs-prefix", self.sqs_prefix.is_some()),
            ("--sqs-fifo", self.sqs_fifo),
            ("--sqs-forward", !others.sqs_forward.is_empty()),
            ("--sqs-share", !others.sqs_share.is_empty()),
        ];
        if self.sqs {
            return self.config(others).map(Some);
        }
        match given.into_iter().find_map(|(flag, given)| given.then_some(flag)) {
            None => Ok(None),
            Some(flag) => Err(CliError::usage(format!("{flag} without --sqs: jobs are not kept on SQS"))
                .hint("leave it out, or add --sqs")),
        }
    }

    fn config(self, others: OthersArgs) -> Result<SqsConfig, CliError> {
        if !relay_sqs::IS_BUILT {
            let unbuilt = CliError::usage("this relay was built without SQS");
            return Err(unbuilt.hint("build it with the cargo feature `sqs`"));
        }
        let defaults = SqsConfig::default();
        let config = SqsConfig {
            region: self.sqs_region,
            endpoint: self.sqs_endpoint,
            table: self.sqs_table.unwrap_or_else(|| defaults.table.clone()),
            queue_prefix: self.sqs_prefix.unwrap_or_else(|| defaults.queue_prefix.clone()),
            fifo: self.sqs_fifo,
            forward: read("--sqs-forward", &others.sqs_forward)?,
            shares: read("--sqs-share", &others.sqs_share)?,
            ..defaults
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
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sqs: SqsArgs,
        #[command(flatten)]
        others: OthersArgs,
        #[arg(long)]
        nats: bool,
    }

    fn resolve(line: &str) -> Result<Option<SqsConfig>, CliError> {
        let line = Line::try_parse_from(format!("relay {line}").split_whitespace()).unwrap();
        line.sqs.resolve(line.others)
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
