//! Limits of SQS and DynamoDB, and parts of the names that AWS uses.

/// The largest payload or result in bytes: an item of DynamoDB holds 400 KiB with everything about it, a dead letter's
/// reason included.
pub const PAYLOAD_MAX: u64 = 350 * 1_024;
/// The longest name of a queue of SQS, suffix included.
pub(crate) const QUEUE_MAX: usize = 80;
/// The end of a FIFO queue's name.
pub(crate) const FIFO: &str = ".fifo";

/// The partition of AWS in which a region is; `aws` if it is not known.
pub(crate) fn partition(region: Option<&str>) -> &'static str {
    let region = region.unwrap_or_default();
    let known = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("us-isof-", "aws-iso-f"),
        ("eu-isoe-", "aws-iso-e"),
        ("eusc-", "aws-eusc"),
    ];
    known.iter().find(|(start, _)| region.starts_with(start)).map_or("aws", |(_, partition)| partition)
}
