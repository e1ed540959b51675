//! The attempts of one call of the SDK: whether an attempt before the last had no answer, and so may have taken effect.

use aws_sdk_dynamodb::config::interceptors::{
    AfterDeserializationInterceptorContextRef, BeforeDeserializationInterceptorContextMut,
    BeforeTransmitInterceptorContextRef,
};
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::{BoxError, SdkError};
use aws_smithy_types::config_bag::{Storable, StoreReplace};

/// Marks the answer to an attempt that came after one without an answer.
#[derive(Clone, Debug)]
struct AfterNoAnswer;

/// The number of a call's attempts that were sent and have no certain answer, including the one that is on its way.
#[derive(Clone, Copy, Debug, Default)]
struct Open(u32);

impl Storable for Open {
    type Storer = StoreReplace<Self>;
}

fn open(cfg: &ConfigBag) -> u32 {
    cfg.load::<Open>().copied().unwrap_or_default().0
}

/// Whether an attempt before the one that was answered with this error had no answer.
pub(crate) fn had_no_answer<E>(error: &SdkError<E>) -> bool {
    error.raw_response().is_some_and(|answer| answer.extension::<AfterNoAnswer>().is_some())
}

/// Watches the attempts of each call.
#[derive(Debug)]
pub(crate) struct Attempts;

impl Intercept for Attempts {
    fn name(&self) -> &'static str {
        "attempts"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let open = Open(open(cfg) + 1);
        cfg.interceptor_state().store_put(open);
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if open(cfg) > 1 {
            context.response_mut().add_extension(AfterNoAnswer);
        }
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let refused = context.output_or_error().is_err_and(|error| error.is_operation_error());
        // An error of the servers does not tell whether the call took effect.
        if refused && !context.response().status().is_server_error() {
            let open = Open(open(cfg).saturating_sub(1));
            cfg.interceptor_state().store_put(open);
        }
        Ok(())
    }
}
