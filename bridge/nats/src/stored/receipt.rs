//! The contents of this adapter's receipts: enough for any process on the same streams to find the delivery, and
//! nothing that lets a receipt's bearer answer for a job of another client or queue.
//!
//! A receipt is not signed, so nothing in it is believed: the process that gave it out goes by what it remembers,
//! another process by the record (`leases::adopt`).

use crate::stored::names::{self, Lane};
use relay_bridge::contract::{JobId, Timestamp};
use relay_bridge::error::{BrokerError, BrokerErrorKind};
use relay_bridge::leasing::Receipt;

const VERSION: u8 = 1;
/// How many parts the shorter form of a server's reply subject has.
const SHORT: usize = 9;
const FIXED: usize = 1 + 8 + 8 + 4 + 8 + FORMER.len();
/// Names one delivery in this process: the job, its record's sequence, and the number of the delivery of that record.
pub(crate) type Key = (JobId, u64, u64);

/// The bytes that releases before this one read as the lease and as whether the record stays. They say that it stays.
const FORMER: [u8; 9] = [0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A receipt's token, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The sequence of the record.
    pub(crate) seq: u64,
    /// The number of the delivery of that record.
    pub(crate) delivered: u64,
    pub(crate) attempt: u32,
    pub(crate) leased_at: Timestamp,
    /// The subject on which the server takes answers to this delivery.
    pub(crate) reply: String,
    /// The lane from which the delivery came: `reply` names it.
    pub(crate) lane: Lane,
}

impl Token {
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.reply.len());
        bytes.push(VERSION);
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.delivered.to_be_bytes());
        bytes.extend(self.attempt.to_be_bytes());
        bytes.extend(self.leased_at.as_millis().to_be_bytes());
        bytes.extend(FORMER);
        bytes.extend(self.reply.as_bytes());
        bytes
    }

    /// # Errors
    /// `Invalid` if this adapter gave no such receipt for this client and queue.
    pub(crate) fn read(receipt: &Receipt, operation: &'static str) -> Result<Self, BrokerError> {
        Self::parse(receipt)
            .ok_or_else(|| BrokerError::new(BrokerErrorKind::Invalid, operation, "the receipt is not of this broker"))
    }

    fn parse(receipt: &Receipt) -> Option<Self> {
        let mut rest = receipt.token.as_slice();
        let [version] = take(&mut rest)?;
        if version != VERSION {
            return None;
        }
        let (seq, delivered) = (u64::from_be_bytes(take(&mut rest)?), u64::from_be_bytes(take(&mut rest)?));
        let attempt = u32::from_be_bytes(take(&mut rest)?);
        let leased_at = Timestamp::from_millis(i64::from_be_bytes(take(&mut rest)?));
        let _: [u8; FORMER.len()] = take(&mut rest)?;
        let reply = std::str::from_utf8(rest).ok()?.to_owned();
        let plain = reply.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>'));
        // There are two forms of these subjects: behind `$JS.ACK`, and behind a domain and a hash of the account. Elsewhere the
        // same words would be those of a delivery that another stream gave.
        let stream = names::jobs_stream(&receipt.queue);
        let parts: Vec<&str> = reply.split('.').collect();
        let named = parts.get(if parts.len() == SHORT { 2 } else { 4 }..)?;
        let numbers = [delivered.to_string(), seq.to_string()];
        let came_from = |lane: &Lane| named.starts_with(&[&*stream, &*lane.to_string(), &*numbers[0], &*numbers[1]]);
        let lanes = [Lane::Own(receipt.client.clone()), Lane::shared_by(&receipt.client), Lane::ALL];
        let lane = lanes.into_iter().find(came_from).filter(|_| plain && reply.starts_with("$JS.ACK."))?;
        Some(Self { seq, delivered, attempt, leased_at, reply, lane })
    }

    pub(crate) fn key(&self, receipt: &Receipt) -> Key {
        (receipt.job_id, self.seq, self.delivered)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay_bridge::contract::{JobId, RunId};

    fn receipt(reply: &str) -> Receipt {
        let token = Token {
            seq: 7,
            delivered: 2,
            attempt: 3,
            leased_at: Timestamp::from_millis(1_763_865_086_007),
            reply: reply.to_owned(),
            lane: Lane::ALL,
        };
        Receipt {
            job_id: JobId::mint(),
            run_id: RunId::mint(token.leased_at, None),
            client: "acme".parse().unwrap(),
            queue: "work".parse().unwrap(),
            token: token.write(),
        }
    }

    #[test]
    fn both_forms_of_a_servers_reply_subject_are_taken_and_no_other_delivery() {
        for reply in [
            "$JS.ACK.relay-jobs-work.acme.2.7.9.1795563068201590761.4",
            "$JS.ACK._.hash.relay-jobs-work.acme.2.7.9.1795563068201590761.4.x",
        ] {
            let read = Token::read(&receipt(reply), "test").unwrap();
            assert_eq!((read.reply.as_str(), read.lane), (reply, Lane::Own("acme".parse().unwrap())));
        }
        for lane in [Lane::ALL, Lane::shared_by(&"acme".parse().unwrap())] {
            let reply = format!("$JS.ACK.relay-jobs-work.{lane}.2.7.9.1795563068201590761.4");
            assert_eq!(Token::read(&receipt(&reply), "test").unwrap().lane, lane);
        }
        for reply in [
            "",
            "relay.jobs.work.acme.x",
            "$JS.ACK.relay-jobs-work.other.2.7.9.1.4",
            "$JS.ACK.relay-jobs-work.lane_99.2.7.9.1.4",
            "$JS.ACK.relay-jobs-other.acme.2.7.9.1.4",
            "$JS.ACK.relay-jobs-work.acme.2.8.9.1.4",
            "$JS.ACK.relay-jobs-work.acme.2.7.>",
            "$JS.ACK.relay-jobs-other.lane.relay-jobs-work.acme.2.7.9",
            "$JS.ACK.relay-jobs-other.lane.2.7.9.1.4.relay-jobs-work.acme.2.7.9.1.4",
        ] {
            assert_eq!(Token::read(&receipt(reply), "test").unwrap_err().kind(), BrokerErrorKind::Invalid, "{reply}");
        }
    }
}
