//! Availability zones: the one that a name of an interface endpoint is for, and the one that this host is in, which nothing but its
//! operator knows from outside. Names of zones (`eu-west-1b`) mean another zone in each account; ids (`euw1-az2`) do not.

use super::step::Failure;

/// The end of the names that AWS gives to interface endpoints.
const ENDPOINT_NAMES: &str = ".vpce.amazonaws.com";
/// The words of regions for directions, and their letters in the ids of zones.
const DIRECTIONS: [(&str, &str); 10] = [
    ("northeast", "ne"),
    ("northwest", "nw"),
    ("southeast", "se"),
    ("southwest", "sw"),
    ("north", "n"),
    ("south", "s"),
    ("east", "e"),
    ("west", "w"),
    ("central", "c"),
    ("gov", "g"),
];

/// The id of a zone, such as `euw1-az2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ZoneId(String);

impl ZoneId {
    /// Reads `euw1-az2`, as `aws ec2 describe-availability-zones` and the metadata of a machine have it.
    ///
    /// # Errors
    /// A sentence with the form.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let number = text.rsplit_once("-az").map_or("", |(_, number)| number);
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        if text.len() <= 32 && is_number && text.split('-').all(is_part) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{text}` is not the id of a zone, such as euw1-az2; names such as eu-west-1b differ from account to account"
        ))
    }

    /// Whether it is one of `region`; `None` if nobody here knows how ids of that region begin.
    fn is_of(&self, region: &str) -> Option<bool> {
        let begins = self.0.split('-').next()?;
        Some(begins == short(region)?)
    }
}

/// The beginning of the ids of a region's zones: `euw1` of `eu-west-1`.
fn short(region: &str) -> Option<String> {
    let (first, rest) = region.split_once('-')?;
    let (between, number) = rest.rsplit_once('-')?;
    let letters = |word| DIRECTIONS.iter().find(|(direction, _)| *direction == word).map(|(_, letters)| *letters);
    let between: Option<String> = between.split('-').map(letters).collect();
    Some(format!("{first}{}{number}", between?))
}

/// The region in the name of an interface endpoint, and the zone where the name is for one:
/// `vpce-0a1b-xyz-eu-west-1a.vpce-svc-….eu-west-1.vpce.amazonaws.com`.
fn of_endpoint(host: &str) -> Option<(&str, Option<&str>)> {
    let name = host.strip_suffix(ENDPOINT_NAMES)?;
    let (label, rest) = name.split_once('.')?;
    let region = rest.rsplit('.').next()?;
    let at = label.find(&format!("-{region}")).map(|at| at + 1);
    let zone = at.and_then(|at| label.get(at..)).filter(|zone| zone.len() == region.len() + 1);
    Some((region, zone))
}

/// The zones that `host` leads to, and how they go with the one that this host is in: the end of a sentence about the name.
///
/// # Errors
/// The name is one of another region.
pub(super) fn told(host: &str, here: Option<&ZoneId>) -> Result<String, Failure> {
    let endpoint = of_endpoint(host);
    let zone = endpoint.and_then(|(_, zone)| zone);
    let alone =
        zone.map(|zone| format!("; this name leads to zone {zone} alone, the one without the zone to all of them"));
    let Some(ZoneId(id)) = here else { return Ok(alone.unwrap_or_default()) };
    if let Some((region, _)) = endpoint
        && here.and_then(|here| here.is_of(region)) == Some(false)
    {
        return Err(Failure::new(
            format!("{host} is an endpoint in {region}, and {id}, which --zone-id names, is a zone of another region"),
            "use the endpoint of this host's own VPC: each region has its own, also where the service is in another one; or give this \
             host's zone",
        ));
    }
    let alone = alone.unwrap_or_default();
    Ok(match zone {
        Some(zone) => format!(
            "{alone}; this host is in {id}: `aws ec2 describe-availability-zones --zone-ids {id}` says whether that is {zone} in the \
             account of the endpoint"
        ),
        None => format!(
            "; this host is in {id}, where the endpoint and the balancer need an address for traffic to stay in the zone"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "vpce-svc-0123456789abcdef0.eu-west-1.vpce.amazonaws.com";

    #[test]
    fn a_name_of_an_endpoint_says_whether_it_is_for_one_zone() {
        let zonal = format!("vpce-0a1b2c3d-zq7xk2aa-eu-west-1b.{SERVICE}");
        assert_eq!(of_endpoint(&zonal), Some(("eu-west-1", Some("eu-west-1b"))));
        assert_eq!(of_endpoint(&format!("vpce-0a1b2c3d-zq7xk2aa.{SERVICE}")), Some(("eu-west-1", None)));
        assert_eq!(of_endpoint("relay.example"), None);
        assert!(told(&zonal, None).unwrap().contains("leads to zone eu-west-1b alone"));
        assert_eq!(told("relay.example", None).unwrap(), "");
    }

    #[test]
    fn ids_of_zones_begin_with_their_region() {
        for (region, begins) in [
            ("eu-west-1", "euw1"),
            ("ap-southeast-2", "apse2"),
            ("us-gov-west-1", "usgw1"),
            ("me-central-1", "mec1"),
            ("us-east-1", "use1"),
        ] {
            assert_eq!(short(region).as_deref(), Some(begins));
        }
        assert_eq!(short("mars-middle-1"), None);
        for text in ["euw1-az2", "use1-bos1-az1"] {
            assert_eq!(ZoneId::parse(text).unwrap().0, text);
        }
        for text in ["eu-west-1b", "euw1-az", "euw1", "EUW1-AZ2", "-az1", ""] {
            assert!(ZoneId::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_zone_that_is_given_is_compared_with_the_name() {
        let here = ZoneId::parse("euw1-az2").unwrap();
        let zonal = format!("vpce-0a1b2c3d-zq7xk2aa-eu-west-1b.{SERVICE}");
        let text = told(&zonal, Some(&here)).unwrap();
        assert!(text.contains("--zone-ids euw1-az2` says whether that is eu-west-1b"), "{text}");
        assert!(told("relay.example", Some(&here)).unwrap().contains("this host is in euw1-az2"));
        let failure = told(&zonal, Some(&ZoneId::parse("use1-az2").unwrap())).unwrap_err();
        assert!(failure.detail.contains("is a zone of another region"), "{failure:?}");
    }
}
