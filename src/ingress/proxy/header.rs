//! The header of the PROXY protocol, version 2, from its bytes: no I/O. A balancer writes it before the client's first byte. Of a
//! LOCAL header, which is about the balancer's own connection, nothing but the length counts: AWS writes a family into it and no
//! addresses. <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use thiserror::Error;

/// The first bytes of every header.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// How a header of version 1 begins.
const VERSION_1: &[u8] = b"PROXY";
/// The bytes of a header before what its length counts.
const FIXED_BYTES: usize = 16;
/// The bytes of a header at most. AWS sends 100.
pub(super) const HEADER_BYTES_MAX: usize = 4 * 1024;
/// A TLV with a CRC32C of the whole header.
const TLV_CRC: u8 = 0x03;
/// A TLV of AWS, whose value begins with what it is about.
const TLV_AWS: u8 = 0xEA;
/// Of a TLV of AWS: the id of the VPC endpoint.
/// <https://docs.aws.amazon.com/elasticloadbalancing/latest/network/edit-target-group-attributes.html#proxy-protocol>
const AWS_ENDPOINT: u8 = 0x01;

/// The id of a VPC endpoint: `vpce-` and 8 to 32 digits, `[0-9a-f]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointId(Arc<str>);

impl EndpointId {
    /// `None` if `bytes` are none.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let digits = bytes.strip_prefix(b"vpce-")?;
        let fits =
            (8..=32).contains(&digits.len()) && digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        std::str::from_utf8(bytes).ok().filter(|_| fits).map(|text| Self(text.into()))
    }

    /// The id as it is written.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The content of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// The connection is the balancer's own, such as a health check: its addresses are those of the socket.
    Local,
    /// The connection is another peer's.
    Proxied {
        /// The peer's address. An IPv4 address in the form of IPv6 is the IPv4 address.
        address: IpAddr,
        /// The VPC endpoint that it came through, if the balancer names one.
        endpoint: Option<EndpointId>,
    },
}

/// A look at the first bytes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// So many bytes more are of the header for certain. Once they are there, look again.
    More(usize),
    /// All of it.
    Whole(Header),
}

/// Why bytes are no header that is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Malformed {
    /// Something else came.
    #[error("the connection does not begin with a PROXY header: let the balancer send one, version 2")]
    Signature,
    /// The older form, as text.
    #[error("the PROXY header is of version 1: let the balancer send version 2")]
    Version1,
    /// A version or a command that there is not.
    #[error("version and command of the PROXY header are {0:#04x}, and only 0x20 and 0x21 are known")]
    Command(u8),
    /// It is longer than any that is needed.
    #[error("the PROXY header has {0} bytes, and at most {HEADER_BYTES_MAX} are read")]
    Long(usize),
    /// Addresses that are not of TCP over IPv4 or IPv6.
    #[error("family and transport of the PROXY header are {0:#04x}, and only 0x11 and 0x21 are taken")]
    Family(u8),
    /// It ends within its addresses.
    #[error("the PROXY header ends within its addresses")]
    Addresses,
    /// A TLV that does not end where the header does.
    #[error("a TLV of the PROXY header ends behind it")]
    Tlv,
    /// A checksum of another length than 4.
    #[error("the CRC32C of the PROXY header has {0} bytes, and not 4")]
    CrcLength(usize),
    /// More than one checksum.
    #[error("the PROXY header has two CRC32C")]
    CrcTwice,
    /// The checksum is of other bytes.
    #[error("the CRC32C of the PROXY header is not that of its bytes")]
    Crc,
    /// A TLV of AWS that says nothing.
    #[error("a TLV of AWS in the PROXY header is empty")]
    AwsEmpty,
    /// Something else than an endpoint's id.
    #[error("the VPC endpoint id in the PROXY header is none: `vpce-` and 8 to 32 hexadecimal digits are")]
    Endpoint,
    /// More than one endpoint.
    #[error("the PROXY header names two VPC endpoints")]
    EndpointTwice,
}

/// Looks at the first bytes of a connection. Those behind the header are not looked at.
///
/// # Errors
/// As soon as no further byte can make a header of them.
pub(crate) fn look(bytes: &[u8]) -> Result<Look, Malformed> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return if bytes.starts_with(VERSION_1) {
            Err(Malformed::Version1)
        } else if VERSION_1.starts_with(bytes) {
            Ok(Look::More(FIXED_BYTES - bytes.len()))
        } else {
            Err(Malformed::Signature)
        };
    }
    if let Some(command) = bytes.get(12).filter(|command| !matches!(command, 0x20 | 0x21)) {
        return Err(Malformed::Command(*command));
    }
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else { return Ok(Look::More(FIXED_BYTES - bytes.len())) };
    let [.., command, family, high, low] = *fixed;
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > HEADER_BYTES_MAX {
        return Err(Malformed::Long(length));
    }
    let is_local = command == 0x20;
    if !is_local && !matches!(family, 0x11 | 0x21) {
        return Err(Malformed::Family(family));
    }
    let Some(header) = bytes.get(..length) else { return Ok(Look::More(length - bytes.len())) };
    if is_local { Ok(Look::Whole(Header::Local)) } else { proxied(header, family == 0x21).map(Look::Whole) }
}

fn proxied(header: &[u8], is_v6: bool) -> Result<Header, Malformed> {
    let block = &header[FIXED_BYTES..];
    let (address, tlvs): (IpAddr, _) = if is_v6 {
        // Source and destination of 16 bytes, and two ports.
        let (addresses, tlvs) = block.split_first_chunk::<36>().ok_or(Malformed::Addresses)?;
        let source = addresses.first_chunk::<16>().ok_or(Malformed::Addresses)?;
        (Ipv6Addr::from(*source).to_canonical(), tlvs)
    } else {
        let (addresses, tlvs) = block.split_first_chunk::<12>().ok_or(Malformed::Addresses)?;
        let source = addresses.first_chunk::<4>().ok_or(Malformed::Addresses)?;
        (Ipv4Addr::from(*source).into(), tlvs)
    };
    let (mut rest, mut checked, mut endpoint) = (tlvs, false, None);
    while !rest.is_empty() {
        let ([kind, high, low], behind) = rest.split_first_chunk().ok_or(Malformed::Tlv)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, behind) = behind.split_at_checked(length).ok_or(Malformed::Tlv)?;
        match *kind {
            TLV_CRC if checked => return Err(Malformed::CrcTwice),
            TLV_CRC => {
                let said = value.try_into().map_err(|_| Malformed::CrcLength(length))?;
                let at = header.len() - behind.len() - length;
                if crc32c(header, at) != u32::from_be_bytes(said) {
                    return Err(Malformed::Crc);
                }
                checked = true;
            }
            TLV_AWS => match value.split_first().ok_or(Malformed::AwsEmpty)? {
                (&AWS_ENDPOINT, _) if endpoint.is_some() => return Err(Malformed::EndpointTwice),
                (&AWS_ENDPOINT, id) => endpoint = Some(EndpointId::read(id).ok_or(Malformed::Endpoint)?),
                _ => {}
            },
            _ => {}
        }
        rest = behind;
    }
    Ok(Header::Proxied { address, endpoint })
}

/// The CRC32C of `header`, with zeros instead of the four bytes at `at`.
fn crc32c(header: &[u8], at: usize) -> u32 {
    let value = at..at + 4;
    let bytes = header.iter().enumerate().map(|(at, byte)| if value.contains(&at) { 0 } else { *byte });
    !bytes.fold(u32::MAX, |crc, byte| CRC_TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

/// CRC32C (Castagnoli), reflected, a byte at a time: <https://www.rfc-editor.org/rfc/rfc3720#appendix-B.4>.
const CRC_TABLE: [u32; 256] = {
    let (mut table, mut at) = ([0_u32; 256], 0_u32);
    while at < 256 {
        let (mut crc, mut bit) = (at, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            bit += 1;
        }
        table[at as usize] = crc;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests;
