//! The messages on a queue's control subject.

use bytes::Bytes;

use relay_bridge::contract::JobId;

/// The message that the queue's policy has changed.
pub(crate) const POLICY_CHANGED: &str = "policy";
/// Precedes a job's id in the message that a run of it ended.
const ENDED: &str = "ended";
/// The message that a consumer of the queue is not where it was.
pub(crate) const BEGAN_ANEW: &str = "anew";
/// Precedes a process's number: that process made a round over the consumers.
pub(crate) const ROUND: &str = "round";
/// Precedes a process's number: that process waits for jobs too, and made no round.
pub(crate) const HERE: &str = "here";

/// The message that a run of `job` ended.
pub(crate) fn ended(job: JobId) -> Bytes {
    format!("{ENDED} {job}").into()
}

/// A message on the control subject, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    PolicyChanged,
    BeganAnew,
    Ended(JobId),
    /// Another process, by its number, is there; `true` if it made a round.
    There(u64, bool),
}

impl Word {
    pub(crate) fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        match text.split_once(' ') {
            None if text == POLICY_CHANGED => Some(Self::PolicyChanged),
            None if text == BEGAN_ANEW => Some(Self::BeganAnew),
            Some((ENDED, job)) => job.parse().ok().map(Self::Ended),
            Some((ROUND, who)) => who.parse().ok().map(|who| Self::There(who, true)),
            Some((HERE, who)) => who.parse().ok().map(|who| Self::There(who, false)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_on_the_control_subject_are_read_and_others_are_nothing() {
        let job = JobId::mint();
        assert_eq!(Word::read(&ended(job)), Some(Word::Ended(job)));
        for (text, word) in [
            (POLICY_CHANGED, Some(Word::PolicyChanged)),
            (BEGAN_ANEW, Some(Word::BeganAnew)),
            ("round 7", Some(Word::There(7, true))),
            ("here 7", Some(Word::There(7, false))),
            ("round", None),
            ("ended", None),
            ("ended 7", None),
            ("", None),
            ("\u{fffd} 7", None),
        ] {
            assert_eq!(Word::read(text.as_bytes()), word, "{text:?}");
        }
    }
}
