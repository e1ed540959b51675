//! Ranges of addresses, `10.0.1.0/28`: peers that are believed. A prefix whose other bits are not zero is refused, because
//! nobody can say which range was meant.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Deserialize;

/// The prefix from which on a range of IPv4 addresses is narrow: 16 addresses.
const NARROW_V4: u8 = 28;
/// The same for IPv6.
const NARROW_V6: u8 = 124;

/// A range of addresses, typed `ADDRESS/PREFIX`, or `ADDRESS` for that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressRange {
    first: IpAddr,
    prefix: u8,
}

impl AddressRange {
    /// Whether `address` is in it. An IPv4 address in the form of IPv6 (`::ffff:10.0.1.7`), as a listener on `[::]` sees it, is the
    /// IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (first.to_bits() ^ address.to_bits()) & mask_v4(self.prefix) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()) & mask_v6(self.prefix) == 0
            }
            _ => false,
        }
    }

    /// Whether it has more than 16 addresses.
    #[must_use]
    pub fn is_wide(&self) -> bool {
        self.prefix < if self.first.is_ipv4() { NARROW_V4 } else { NARROW_V6 }
    }

    /// Its first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Its last address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | !mask_v4(self.prefix)).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | !mask_v6(self.prefix)).into(),
        }
    }
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

/// Fails with a sentence that says what is wrong and what to write.
impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let given: IpAddr = address.parse().map_err(|_| format!("`{address}` is no IP address"))?;
        if given.to_canonical() != given {
            return Err(format!("`{given}` is an IPv4 address in the form of IPv6: write `{}`", given.to_canonical()));
        }
        let most = if given.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(prefix) => {
                let digits = prefix.bytes().all(|byte| byte.is_ascii_digit());
                let prefix = prefix.parse().ok().filter(|prefix| digits && *prefix <= most);
                prefix.ok_or_else(|| format!("the prefix in `{text}` must be 0 to {most}"))?
            }
        };
        let first: IpAddr = match given {
            IpAddr::V4(given) => Ipv4Addr::from_bits(given.to_bits() & mask_v4(prefix)).into(),
            IpAddr::V6(given) => Ipv6Addr::from_bits(given.to_bits() & mask_v6(prefix)).into(),
        };
        if first != given {
            return Err(format!("`{text}` names an address within a range: write `{first}/{prefix}`, or `{given}`"));
        }
        Ok(Self { first, prefix })
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_its_addresses_and_no_other() {
        for (range, inside, outside) in [
            ("10.0.1.0/28", "10.0.1.15", "10.0.1.16"),
            ("10.0.1.7", "10.0.1.7", "10.0.1.6"),
            ("10.0.1.7/32", "::ffff:10.0.1.7", "::ffff:10.0.1.8"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("fd00::10/124", "fd00::1f", "fd00::20"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            let range: AddressRange = range.parse().unwrap();
            assert!(range.contains(inside.parse().unwrap()), "{range} {inside}");
            assert!(!range.contains(outside.parse().unwrap()), "{range} {outside}");
            assert_eq!(range.to_string().parse(), Ok(range));
        }
    }

    #[test]
    fn a_wide_range_is_one_of_more_than_sixteen_addresses() {
        for (range, wide, last) in [
            ("10.0.1.0/28", false, "10.0.1.15"),
            ("10.0.1.0/27", true, "10.0.1.31"),
            ("0.0.0.0/0", true, "255.255.255.255"),
            ("fd00::/124", false, "fd00::f"),
            ("fd00::/64", true, "fd00::ffff:ffff:ffff:ffff"),
        ] {
            let range: AddressRange = range.parse().unwrap();
            assert_eq!((range.is_wide(), range.last()), (wide, last.parse().unwrap()), "{range}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_what_to_write() {
        for (text, said) in [
            ("10.0.1.7/28", "write `10.0.1.0/28`, or `10.0.1.7`"),
            ("10.0.1.0/33", "0 to 32"),
            ("10.0.1.0/+8", "0 to 32"),
            ("10.0.1.0/", "0 to 32"),
            ("fd00::/129", "0 to 128"),
            ("nlb.example", "no IP address"),
            ("::ffff:10.0.1.7", "write `10.0.1.7`"),
            ("", "no IP address"),
        ] {
            let error = text.parse::<AddressRange>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
