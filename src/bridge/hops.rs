//! Circles of bridges: each adds one to the hops of what it passes on, and beyond [`HOPS_MAX`] nothing becomes a job.

use std::collections::BTreeMap;

use relay_bridge::contract::Failure;
use relay_bridge::contract::job::{HOPS, HOPS_MAX, hops};

/// The headers of a job that comes over one bridge more than something with these headers.
///
/// # Errors
/// `too-many-hops`: it goes round in a circle.
pub(super) fn one_more(mut headers: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Failure> {
    let hops = hops(&headers).saturating_add(1);
    if hops > HOPS_MAX {
        let detail = format!(
            "it came over {HOPS_MAX} bridges before this one: see whether results, or what is put aside, come back as messages"
        );
        return Err(Failure::new("too-many-hops", detail));
    }
    headers.insert(HOPS.to_owned(), hops.to_string());
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bridge_adds_a_hop_and_the_ninth_refuses() {
        let mut headers = BTreeMap::from([("traceparent".to_owned(), "x".to_owned())]);
        for bridge in 1..=HOPS_MAX {
            headers = one_more(headers).unwrap();
            assert_eq!((hops(&headers), headers.len()), (bridge, 2));
        }
        assert_eq!(one_more(headers).unwrap_err().reason, "too-many-hops");
        for (said, then) in [("", 1), ("many", 1), (" 3 ", 4), ("-1", 1)] {
            let next = one_more([(HOPS.to_owned(), said.to_owned())].into()).unwrap();
            assert_eq!(hops(&next), then, "{said:?}");
        }
        assert!(one_more([(HOPS.to_owned(), u32::MAX.to_string())].into()).is_err());
    }
}
