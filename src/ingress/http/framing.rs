//! The parts of a head that decide which request it is and where its body ends. A proxy in front that reads them in another way
//! would let one client's bytes become another one's request, so that relay takes one spelling only.

use http::Version;
use http::header::{HOST, TRANSFER_ENCODING};
use http::request::Parts;

use super::answer::Refusal;

/// Refuses a head that two readers may understand in two ways. HTTP/2 has frames, and its library refuses the rest.
///
/// # Errors
/// `malformed-request` over HTTP/1.1 without one `Host`, and with a transfer coding other than `chunked` alone.
pub(super) fn check(parts: &Parts) -> Result<(), Refusal> {
    // One pass: heads are short, and a look-up hashes the name.
    let (mut hosts, mut codings, mut are_known) = (0, 0, true);
    for (name, value) in &parts.headers {
        if *name == HOST {
            hosts += 1;
        } else if *name == TRANSFER_ENCODING {
            codings += 1;
            are_known &= value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        }
    }
    if parts.version == Version::HTTP_11 && hosts != 1 {
        let detail = "a request over HTTP/1.1 has exactly one Host header; nothing was done: send one";
        return Err(Refusal::malformed(detail));
    }
    if codings > 1 || !are_known {
        let detail = "relay knows the transfer coding `chunked` alone; nothing was done: send the body with its \
                      Content-Length, or with `Transfer-Encoding: chunked` once";
        return Err(Refusal::malformed(detail));
    }
    Ok(())
}
