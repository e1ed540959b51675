//! Headers of real balancers, and everything that is none.

use super::*;

/// A connection through PrivateLink, as AWS publishes it with its own parser: CRC32C, endpoint, 36 bytes of NOOP.
const PRIVATELINK: &str = "0d0a0d0a000d0a515549540a21110054ac1f0771ac1f0a1fc8f20050030004e8d6892dea001701767063652d3038643262663135\
                           666163353030316339040024000000000000000000000000000000000000000000000000000000000000000000000000";
/// A health check of a network load balancer: LOCAL, the family of IPv4, and no addresses.
const HEALTH_CHECK: &str = "0d0a0d0a000d0a515549540a20110054030004bce5951f04004a00000000000000000000000000000000000000000000000000\
                            00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000";
/// IPv6, with a CRC32C and an endpoint.
const OVER_IPV6: &str = "0d0a0d0a000d0a515549540a2121004520010db800000000000000000000001020010db8000000000000000000000020c8f220fb0300\
                         0432b891ffea001701767063652d3031323334353637383961626364656630";
const LOCAL: &str = "0d0a0d0a000d0a515549540a20000000";
const LOCAL_WITH_CRC: &str = "0d0a0d0a000d0a515549540a20000007030004a9b87e8f";
/// Mutations of a run; RELAY_PROXY_MUTATIONS says another number.
const MUTATIONS: u64 = 1_000_000;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// A header with these addresses and TLVs.
fn made(command: u8, family: u8, addresses: &[u8], tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut block = addresses.to_vec();
    for (kind, value) in tlvs {
        block.push(*kind);
        block.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        block.extend(*value);
    }
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, &block].concat()
}

/// A header of IPv4 with these TLVs.
fn with(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    made(0x21, 0x11, &[10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4], tlvs)
}

/// The same with a right CRC32C in front.
fn with_crc(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut header = with(&[&[(TLV_CRC, &[0; 4][..])], tlvs].concat());
    let crc = crc32c(&header, 31);
    header[31..35].copy_from_slice(&crc.to_be_bytes());
    header
}

fn proxied(address: &str, endpoint: Option<&str>) -> Header {
    let endpoint = endpoint.map(|id| EndpointId(id.into()));
    Header::Proxied { address: address.parse().unwrap(), endpoint }
}

/// The outcome of bytes that arrive one by one: the header, and how many of them are of it.
fn one_by_one(bytes: &[u8]) -> Result<(Header, usize), Malformed> {
    let mut there = 0;
    loop {
        match look(&bytes[..there])? {
            Look::Whole(header) => return Ok((header, there)),
            Look::More(more) => {
                assert!(more > 0 && there + more <= HEADER_BYTES_MAX, "{more} more than {there}");
                // Until those are there, and never more of them than were asked for.
                for come in 1..more {
                    let partial = bytes.get(..there + come).expect("a header that ends is asked for no more");
                    assert_eq!(look(partial)?, Look::More(more - come), "after {} bytes", there + come);
                }
                there += more;
                assert!(there <= bytes.len(), "a header that ends is asked for no more");
            }
        }
    }
}

#[test]
fn headers_of_real_balancers_are_read_wherever_their_bytes_are_split() {
    for (hex, expected) in [
        (PRIVATELINK, proxied("172.31.7.113", Some("vpce-08d2bf15fac5001c9"))),
        (HEALTH_CHECK, Header::Local),
        (OVER_IPV6, proxied("2001:db8::10", Some("vpce-0123456789abcdef0"))),
        (LOCAL, Header::Local),
        (LOCAL_WITH_CRC, Header::Local),
    ] {
        let header = bytes(hex);
        assert_eq!(look(&header), Ok(Look::Whole(expected.clone())), "{hex}");
        for behind in [&b""[..], b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", &header] {
            let stream = [&header, behind].concat();
            assert_eq!(one_by_one(&stream), Ok((expected.clone(), header.len())), "{hex}");
            for split in 0..header.len() {
                let Ok(Look::More(more)) = look(&stream[..split]) else { panic!("{hex}: misread at {split}") };
                assert!(split + more <= header.len(), "{hex}: at {split} more is read than the header has");
            }
        }
    }
}

#[test]
fn a_header_without_a_checksum_or_an_endpoint_is_taken_and_unknown_parts_are_passed_over() {
    let vpce = b"\x01vpce-0a1b2c3d";
    for (header, expected) in [
        (with(&[]), proxied("10.0.0.1", None)),
        (with(&[(TLV_AWS, vpce)]), proxied("10.0.0.1", Some("vpce-0a1b2c3d"))),
        (with_crc(&[(0x20, b"ssl"), (TLV_AWS, vpce)]), proxied("10.0.0.1", Some("vpce-0a1b2c3d"))),
        (with(&[(TLV_AWS, b"\x02vpce-0a1b2c3d"), (0xEE, b"\x01azure"), (0x04, b"")]), proxied("10.0.0.1", None)),
        (with(&[(TLV_AWS, b"\x02"), (TLV_AWS, vpce)]), proxied("10.0.0.1", Some("vpce-0a1b2c3d"))),
    ] {
        assert_eq!(one_by_one(&header), Ok((expected, header.len())));
    }
    let mapped = [&[0; 10][..], &[0xFF, 0xFF, 10, 0, 0, 1], &[0; 20]].concat();
    assert_eq!(look(&made(0x21, 0x21, &mapped, &[])), Ok(Look::Whole(proxied("10.0.0.1", None))));
}

#[test]
fn what_is_no_header_is_refused_with_what_is_wrong_wherever_its_bytes_are_split() {
    let ipv4 = [0; 12];
    let long = [1_u8; HEADER_BYTES_MAX];
    let crc = with_crc(&[]);
    let mut wrong = crc.clone();
    wrong[16] ^= 1;
    let twice = with_crc(&[(TLV_CRC, &[0; 4])]);
    let mut endless = with(&[]);
    endless[14..16].copy_from_slice(&[0xFF, 0xFF]);
    let cut = |mut header: Vec<u8>, from: usize, length: u16| {
        header.truncate(from + usize::from(length));
        header[14..16].copy_from_slice(&length.to_be_bytes());
        header
    };
    let id = |id: &[u8]| with(&[(TLV_AWS, &[b"\x01", id].concat())]);
    let longest = [b'a'; 33];
    for (bytes, error) in [
        (b"GET /v1/whoami HTTP/1.1\r\n".to_vec(), Malformed::Signature),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), Malformed::Signature),
        (b"\r\n\r\n\0\r\nQUIX\n".to_vec(), Malformed::Signature),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n".to_vec(), Malformed::Version1),
        (made(0x22, 0x11, &ipv4, &[]), Malformed::Command(0x22)),
        (made(0x11, 0x11, &ipv4, &[]), Malformed::Command(0x11)),
        (made(0x31, 0x11, &ipv4, &[]), Malformed::Command(0x31)),
        (endless.clone(), Malformed::Long(65_551)),
        (made(0x21, 0x11, &long[16 - 1..], &[]), Malformed::Long(HEADER_BYTES_MAX + 1)),
        (made(0x21, 0x00, &[], &[]), Malformed::Family(0x00)),
        (made(0x21, 0x12, &ipv4, &[]), Malformed::Family(0x12)),
        (made(0x21, 0x31, &[0; 216], &[]), Malformed::Family(0x31)),
        (made(0x21, 0x11, &ipv4[..11], &[]), Malformed::Addresses),
        (made(0x21, 0x21, &[0; 35], &[]), Malformed::Addresses),
        (cut(with(&[(0x04, b"ab")]), 16, 14), Malformed::Tlv),
        (cut(with(&[(0x04, b"ab")]), 16, 16), Malformed::Tlv),
        (with(&[(TLV_CRC, &[0; 3])]), Malformed::CrcLength(3)),
        (with(&[(TLV_CRC, &[])]), Malformed::CrcLength(0)),
        (with(&[(TLV_CRC, &[0; 5])]), Malformed::CrcLength(5)),
        (twice, Malformed::CrcTwice),
        (wrong, Malformed::Crc),
        (with(&[(TLV_AWS, b"")]), Malformed::AwsEmpty),
        (id(b""), Malformed::Endpoint),
        (id(b"vpce-0a1b2c3"), Malformed::Endpoint),
        (id(&[b"vpce-", &longest[..]].concat()), Malformed::Endpoint),
        (id(b"vpce-0A1B2C3D"), Malformed::Endpoint),
        (id(b"vpce-svc-0a1b2c3d"), Malformed::Endpoint),
        (id(b"vpce-0a1b2c3d\0"), Malformed::Endpoint),
        (id("vpce-０a1b2c3d".as_bytes()), Malformed::Endpoint),
        (with(&[(TLV_AWS, b"\x01vpce-0a1b2c3d"), (TLV_AWS, b"\x01vpce-0a1b2c3d")]), Malformed::EndpointTwice),
    ] {
        assert_eq!(one_by_one(&bytes), Err(error), "{bytes:02x?}");
        assert!(!error.to_string().is_empty());
    }
    // The longest that is taken.
    assert_eq!(one_by_one(&made(0x20, 0x00, &long[16..], &[])), Ok((Header::Local, HEADER_BYTES_MAX)));
}

#[test]
fn a_header_with_a_checksum_is_refused_with_any_other_bit_of_its_peer() {
    let header = bytes(PRIVATELINK);
    // Addresses, ports, the checksum's value, and the endpoint with its length.
    for bit in (16 * 8..28 * 8).chain(31 * 8..58 * 8) {
        let mut changed = header.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(look(&changed).is_err(), "bit {bit}");
    }
}

#[test]
fn no_bytes_make_it_panic_or_read_beyond_a_header() {
    let most = std::env::var("RELAY_PROXY_MUTATIONS").ok().map_or(MUTATIONS, |most| most.parse().unwrap());
    let seeds =
        [bytes(PRIVATELINK), bytes(HEALTH_CHECK), bytes(OVER_IPV6), bytes(LOCAL_WITH_CRC), with(&[(0x04, b"")])];
    // A generator of Marsaglia's, so that every run has the same mutations.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % end
    };
    let mut ends = [0_u64; 3];
    let mut mutant = Vec::with_capacity(256);
    for turn in 0..most {
        mutant.clear();
        mutant.extend_from_slice(&seeds[below(seeds.len())]);
        for _ in 0..=below(3) {
            let (at, byte) = (below(mutant.len()), u8::try_from(below(256)).unwrap());
            match below(8) {
                0 => mutant.insert(at, byte),
                1 if mutant.len() > 1 => drop(mutant.remove(at)),
                2 => mutant.truncate(at.max(1)),
                3 => mutant[at] = [0x00, 0x03, 0xEA, 0xFF][below(4)],
                // The length, so that the end is elsewhere.
                4 if mutant.len() > 15 => mutant[15] = byte,
                _ => mutant[at] ^= 1 << below(8),
            }
        }
        match look(&mutant) {
            Ok(Look::More(more)) => {
                assert!(more > 0 && mutant.len() + more <= HEADER_BYTES_MAX, "{turn}: {mutant:02x?}");
                ends[0] += 1;
            }
            Ok(Look::Whole(header)) => {
                if let Header::Proxied { endpoint: Some(id), .. } = header {
                    assert!(EndpointId::read(id.0.as_bytes()).is_some(), "{turn}: {mutant:02x?}");
                }
                ends[1] += 1;
            }
            Err(_) => ends[2] += 1,
        }
    }
    assert!(most < 1_000 || ends.iter().all(|count| *count > most / 100), "all three ends are met: {ends:?}");
}
