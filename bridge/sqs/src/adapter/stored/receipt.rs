//! The receipt of a delivery. Its token names the lease that the claim wrote into the record, and the message in SQS.

use relay_bridge::contract::{JobId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::Receipt;

/// The version of a token's form.
const VERSION: u8 = 1;
/// The longest token that a receipt carries.
const BYTES_MAX: usize = 1_024;
const FIXED: usize = 1 + 16 + 4 + 8;

/// The content of a receipt's token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Names the claim: no other claim has the same lease.
    pub(crate) lease: [u8; 16],
    pub(crate) attempt: u32,
    /// Until when the lease may be extended, as the release before this one reads it: this one goes by the record.
    pub(crate) until: Timestamp,
    /// The message's handle in SQS. It is empty if it is too long to carry: the message then comes again, and its
    /// receiver reads the record.
    pub(crate) handle: String,
}

impl Token {
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.handle.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.lease);
        bytes.extend_from_slice(&self.attempt.to_be_bytes());
        bytes.extend_from_slice(&self.until.as_millis().to_be_bytes());
        if FIXED + self.handle.len() <= BYTES_MAX {
            bytes.extend_from_slice(self.handle.as_bytes());
        }
        bytes
    }

    /// # Errors
    /// `Invalid` if relay did not give out the receipt.
    pub(crate) fn read(receipt: &Receipt, operation: &'static str) -> Result<Self, BrokerError> {
        parse(&receipt.token).ok_or_else(|| {
            let why = format!("the receipt of job {} was not given out by relay on SQS", receipt.job_id);
            BrokerError::new(BrokerErrorKind::Invalid, operation, why)
        })
    }
}

fn parse(bytes: &[u8]) -> Option<Token> {
    let (version, rest) = bytes.split_first()?;
    let (lease, rest) = rest.split_first_chunk::<16>()?;
    let (attempt, rest) = rest.split_first_chunk::<4>()?;
    let (until, handle) = rest.split_first_chunk::<8>()?;
    let handle = std::str::from_utf8(handle).ok()?;
    let plain = handle.chars().all(|c| c.is_ascii_graphic());
    (*version == VERSION && plain).then(|| Token {
        lease: *lease,
        attempt: u32::from_be_bytes(*attempt),
        until: Timestamp::from_millis(i64::from_be_bytes(*until)),
        handle: handle.to_owned(),
    })
}

/// The error for a receipt whose lease does not hold the job any more.
pub(crate) fn lost(job: JobId, operation: &'static str) -> BrokerError {
    BrokerError::new(BrokerErrorKind::LeaseLost, operation, format!("job {job} is not held by this lease any more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(handle: &str) -> Token {
        let until = Timestamp::from_millis(1_763_865_086_007);
        Token { lease: [7; 16], attempt: 3, until, handle: handle.to_owned() }
    }

    #[test]
    fn a_token_is_read_as_it_was_written_and_nothing_else_is_one() {
        let written = token("AQEB+handle/of=sqs").write();
        assert_eq!(parse(&written), Some(token("AQEB+handle/of=sqs")));
        for other in [vec![], vec![0xff; 8], vec![0; 1_024], [&written[..], &[0]].concat()] {
            assert_eq!(parse(&other), None);
        }
    }

    #[test]
    fn a_handle_that_is_too_long_to_carry_is_left_out() {
        let written = token(&"h".repeat(BYTES_MAX)).write();
        assert!(written.len() <= BYTES_MAX);
        assert_eq!(parse(&written), Some(token("")));
    }
}
