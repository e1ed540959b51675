//! The error for a worker that does not hold its job any more.

use relay_bridge::error::{BrokerError, BrokerErrorKind};

/// A `LeaseLost`.
pub(crate) fn lost(operation: &'static str, why: &str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::LeaseLost, operation, format!("the lease is lost: {why}"))
}
