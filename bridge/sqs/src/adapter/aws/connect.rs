//! Clients of both services, with a time limit on every call, and the broker's error for each of their errors.

use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

use crate::adapter::aws::attempts::{Attempts, had_no_answer};
use crate::config::{Credentials, SqsConfig};
use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// How long a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_millis(3_100);
/// How long one attempt of a call may be unanswered, and all of them together.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
const CALL_MAX: Duration = Duration::from_secs(20);
/// The same for a receive, which waits at the server for up to 20 s.
const RECEIVE_ATTEMPT_MAX: Duration = Duration::from_secs(30);
const RECEIVE_CALL_MAX: Duration = Duration::from_secs(40);
/// Attempts of one call, and the wait after the first.
const ATTEMPTS: u32 = 3;
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// How long to wait before a call that AWS throttled is tried again.
pub(crate) const THROTTLED_FOR: Duration = Duration::from_secs(1);

/// Clients of both services. Clones share their connections.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    pub(crate) table: aws_sdk_dynamodb::Client,
    pub(crate) queues: aws_sdk_sqs::Client,
    /// For receives, which SQS answers later than other calls.
    pub(crate) receiving: aws_sdk_sqs::Client,
}

impl Clients {
    /// Makes the clients. Credentials are looked for at the first call.
    ///
    /// # Errors
    /// `Invalid` for a configuration that is wrong, or without a region.
    pub(crate) async fn new(config: &SqsConfig) -> Result<Self, BrokerError> {
        let invalid = |why: String| BrokerError::new(BrokerErrorKind::Invalid, "connect", why);
        config.check().map_err(|error| invalid(error.to_string()))?;
        let times = |attempt, call| {
            TimeoutConfig::builder()
                .connect_timeout(CONNECT_MAX)
                .operation_attempt_timeout(attempt)
                .operation_timeout(call)
                .build()
        };
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .timeout_config(times(ATTEMPT_MAX, CALL_MAX))
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(FIRST_WAIT))
            // A long poll is a stalled stream by design; the timeouts above end one that died.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(region) = &config.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &config.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Credentials::Keys(keys) = &config.credentials {
            let keys = aws_sdk_sqs::config::Credentials::new(&keys.id, &keys.secret, None, None, "relay");
            loader = loader.credentials_provider(keys);
        }
        let sdk = loader.load().await;
        if sdk.region().is_none() {
            return Err(invalid("no AWS region is known: set AWS_REGION, or name one".to_owned()));
        }
        let receiving = aws_sdk_sqs::config::Builder::from(&sdk)
            .timeout_config(times(RECEIVE_ATTEMPT_MAX, RECEIVE_CALL_MAX))
            .interceptor(Attempts)
            .build();
        let queues = aws_sdk_sqs::config::Builder::from(&sdk).interceptor(Attempts).build();
        let table = aws_sdk_dynamodb::config::Builder::from(&sdk).interceptor(Attempts).build();
        Ok(Self {
            table: aws_sdk_dynamodb::Client::from_conf(table),
            queues: aws_sdk_sqs::Client::from_conf(queues),
            receiving: aws_sdk_sqs::Client::from_conf(receiving),
        })
    }
}

/// Whether a call that failed may have taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The call reads, or repeating it is harmless.
    None,
    /// The call writes: if its answer was lost, nobody knows whether it took effect.
    Write,
}

/// The broker's error for an error of the SDK in `operation`.
pub(crate) fn failed<E>(operation: &'static str, effect: Effect, error: SdkError<E>) -> BrokerError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (kind, what) = match &error {
        SdkError::ServiceError(refused) => {
            let code = refused.err().code().unwrap_or("an error without a code");
            let message = refused.err().message().unwrap_or_default();
            if effect == Effect::Write && had_no_answer(&error) {
                let what = format!("AWS did not answer, and refused the repetition: {code}: {message}");
                return BrokerError::new(BrokerErrorKind::Ambiguous, operation, what);
            }
            (kind_of(code, effect), format!("AWS refused: {code}: {message}"))
        }
        SdkError::ConstructionFailure(_) => {
            (BrokerErrorKind::Unauthorized, "the call could not be made; are there credentials?".to_owned())
        }
        SdkError::DispatchFailure(failure) if failure.as_connector_error().is_none() => {
            (BrokerErrorKind::Unauthorized, "no credentials were found for AWS".to_owned())
        }
        _ if effect == Effect::Write => (BrokerErrorKind::Ambiguous, unanswered(&error)),
        _ => (BrokerErrorKind::Unavailable, unanswered(&error)),
    };
    let told = format!("{}", DisplayErrorContext(&error));
    BrokerError::new(kind, operation, what).with_source(told)
}

/// What is known of a call that has no answer: the innermost cause, and whether the call had credentials.
fn unanswered(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let causes: Vec<_> = causes.collect();
    let cause = causes.last().map_or("", String::as_str);
    if causes.iter().any(|cause| cause.contains("credential")) {
        return format!("there are no credentials for AWS, or they can't be loaded: {cause}");
    }
    format!("AWS did not answer: {cause}")
}

/// The kind of error that a code of a refusal means to the caller.
fn kind_of(code: &str, effect: Effect) -> BrokerErrorKind {
    match code {
        "ThrottlingException"
        | "Throttling"
        | "RequestThrottled"
        | "ProvisionedThroughputExceededException"
        | "RequestLimitExceeded"
        | "OverLimit"
        | "TooManyRequestsException" => BrokerErrorKind::Overloaded { retry_after: THROTTLED_FOR },
        "AccessDenied"
        | "AccessDeniedException"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken" => BrokerErrorKind::Unauthorized,
        "ResourceNotFoundException" | "QueueDoesNotExist" | "AWS.SimpleQueueService.NonExistentQueue" => {
            BrokerErrorKind::NotFound
        }
        "ValidationException" | "InvalidParameterValue" | "InvalidMessageContents" => BrokerErrorKind::Invalid,
        // The next call has a new token, once there is one.
        "ExpiredToken" | "ExpiredTokenException" => BrokerErrorKind::Unavailable,
        "TransactionConflictException" | "TransactionInProgressException" | "LimitExceededException" => {
            BrokerErrorKind::Unavailable
        }
        _ if effect == Effect::Write => BrokerErrorKind::Ambiguous,
        _ => BrokerErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttled_call_had_no_effect_and_says_when_to_come_back() {
        for code in ["ThrottlingException", "RequestThrottled", "ProvisionedThroughputExceededException", "OverLimit"] {
            let kind = kind_of(code, Effect::Write);
            assert_eq!(kind, BrokerErrorKind::Overloaded { retry_after: THROTTLED_FOR }, "{code}");
        }
    }

    #[test]
    fn an_error_of_the_servers_leaves_a_write_in_doubt_and_a_read_not() {
        assert_eq!(kind_of("InternalServerError", Effect::Write), BrokerErrorKind::Ambiguous);
        assert_eq!(kind_of("InternalServerError", Effect::None), BrokerErrorKind::Unavailable);
        assert_eq!(kind_of("AccessDeniedException", Effect::Write), BrokerErrorKind::Unauthorized);
    }
}
