//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>): which of it a job carries, and what it says.
//!
//! A value that breaks the rules is dropped, as the recommendation asks: tracing must never be why a job is refused.

use std::fmt;
use std::str::FromStr;

use super::ids::InvalidId;

/// The header, and the field of a result, that says where in a trace its sender is.
pub const TRACEPARENT: &str = "traceparent";
/// The header with what tracing systems add to it.
pub const TRACESTATE: &str = "tracestate";
/// The longest `traceparent` of a later version that is taken, in bytes. Version 00 has 55.
const TRACEPARENT_BYTES_MAX: usize = 255;
/// The longest `tracestate` that is kept, in bytes: the least that the recommendation asks to be passed on.
const TRACESTATE_BYTES_MAX: usize = 512;

/// The content of a `traceparent`: which trace, which span in it, and whether it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; not all zero.
    pub trace_id: [u8; 16],
    /// The caller's span; not all zero.
    pub span_id: [u8; 8],
    /// The bits of the trace flags; the lowest one is `sampled`.
    pub flags: u8,
}

impl TraceParent {
    /// The trace's id as logs have it: 32 digits.
    #[must_use]
    pub fn trace(&self) -> String {
        hex(&self.trace_id)
    }
}

/// Version 00 exactly; a later version may have more behind it (section 3.2.4 of the recommendation).
impl FromStr for TraceParent {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| InvalidId {
            what: "traceparent",
            problem: "must be 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, ids not zero".to_owned(),
        })
    }
}

/// Version 00.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", hex(&self.trace_id), hex(&self.span_id), self.flags)
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

fn parse(text: &str) -> Option<TraceParent> {
    let bytes = text.as_bytes();
    let later =
        bytes.len() > 55 && bytes.len() <= TRACEPARENT_BYTES_MAX && !text.starts_with("00") && bytes[55] == b'-';
    if !(bytes.len() == 55 || later) || [bytes[2], bytes[35], bytes[52]] != [b'-'; 3] {
        return None;
    }
    let mut version = [0; 1];
    let (mut trace_id, mut span_id, mut flags) = ([0; 16], [0; 8], [0; 1]);
    unhex(&bytes[..2], &mut version)?;
    unhex(&bytes[3..35], &mut trace_id)?;
    unhex(&bytes[36..52], &mut span_id)?;
    unhex(&bytes[53..55], &mut flags)?;
    let valid = version[0] != 0xff && trace_id != [0; 16] && span_id != [0; 8];
    valid.then_some(TraceParent { trace_id, span_id, flags: flags[0] })
}

/// Lower-case digits only.
fn unhex(digits: &[u8], to: &mut [u8]) -> Option<()> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    for (pair, byte) in digits.chunks_exact(2).zip(to) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

/// The headers that a job keeps of the trace context it came with: none if `parent` is not valid, and no state that is
/// too long, or that a header could not carry. `states` are the values of all `tracestate` headers.
pub fn kept<'a>(
    parent: Option<&str>,
    states: impl IntoIterator<Item = &'a str>,
) -> impl Iterator<Item = (String, String)> {
    let parent = parent.filter(|parent| parse(parent).is_some());
    let state = parent.map(|_| states.into_iter().collect::<Vec<_>>().join(",")).filter(|state| is_state(state));
    [(TRACEPARENT, parent.map(ToOwned::to_owned)), (TRACESTATE, state)]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
}

fn is_state(state: &str) -> bool {
    let carried = state.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    !state.trim().is_empty() && state.len() <= TRACESTATE_BYTES_MAX && carried
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_valid_parent_is_read_and_written_as_it_came() {
        let parent: TraceParent = GOOD.parse().unwrap();
        assert_eq!((parent.trace().as_str(), parent.flags), ("4bf92f3577b34da6a3ce929d0e0e4736", 1));
        assert_eq!(parent.to_string(), GOOD);
        let later = format!("01{}-more", &GOOD[2..]);
        assert_eq!(later.parse(), Ok(parent));
    }

    #[test]
    fn what_breaks_the_rules_of_w3c_is_no_parent() {
        for bad in [
            "",
            "00",
            &format!("{GOOD}-more"),
            &GOOD.to_uppercase(),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", "00000000000000000000000000000000"),
            &GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
            &GOOD.replace('-', "_"),
            &format!("{}x", "é".repeat(27)),
            &format!("01{}-{}", &GOOD[2..], "x".repeat(255)),
        ] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_state_is_kept_with_a_valid_parent_only_and_if_it_is_not_too_long() {
        let names = |parent, state: &str| kept(parent, [state]).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(Some(GOOD), "a=1"), [TRACEPARENT, TRACESTATE]);
        assert_eq!(names(Some("00-x"), "a=1"), [""; 0]);
        assert_eq!(names(None, "a=1"), [""; 0]);
        for state in ["", " ", "a=\n", "a=ü", &"x".repeat(513)] {
            assert_eq!(names(Some(GOOD), state), [TRACEPARENT], "{state}");
        }
    }
}
