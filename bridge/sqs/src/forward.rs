//! The configuration of a client that reads its results from a queue of SQS.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::limits::partition;
use relay_bridge::contract::ClientId;
use relay_bridge::result_log::Finished;

/// Writes the body of a message about a result, in at most the given number of bytes.
pub type Render = Arc<dyn Fn(&Finished, usize) -> String + Send + Sync>;

/// A client that reads its results from a queue of SQS, and that queue. As text: `CLIENT=URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The client that reads its results.
    pub client: ClientId,
    /// The queue's URL. It may be another account's.
    pub url: String,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.client, self.url)
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (client, url) = text.split_once('=').ok_or("write it as CLIENT=URL")?;
        if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) || url.split('/').count() < 5 {
            return Err(format!("`{url}` is no queue: write its URL, https://sqs.REGION.amazonaws.com/ACCOUNT/NAME"));
        }
        Ok(Self {
            client: client.parse().map_err(|error: relay_bridge::contract::ids::InvalidId| error.to_string())?,
            url: url.to_owned(),
        })
    }
}

impl Forward {
    /// The queue's ARN, as far as its URL tells: `*` for a region that the URL does not name.
    #[must_use]
    pub fn arn(&self) -> String {
        let mut words = self.url.rsplit('/');
        let (name, account) = (words.next().unwrap_or("*"), words.next().unwrap_or("*"));
        let host = self.url.split('/').nth(2).unwrap_or_default();
        let mut labels = host.split('.');
        let region = if labels.next() == Some("sqs") { labels.next() } else { None };
        let partition = partition(region);
        format!("arn:{partition}:sqs:{}:{account}:{name}", region.unwrap_or("*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_read_as_it_is_written_and_names_its_queue() {
        let text = "shop=https://sqs.eu-central-1.amazonaws.com/111122223333/shop-results.fifo";
        let forward: Forward = text.parse().unwrap();
        assert_eq!((forward.to_string().as_str(), forward.client.as_str()), (text, "shop"));
        assert_eq!(forward.arn(), "arn:aws:sqs:eu-central-1:111122223333:shop-results.fifo");
        let by_endpoint: Forward = "shop=https://vpce-1.sqs.internal/111122223333/results".parse().unwrap();
        assert_eq!(by_endpoint.arn(), "arn:aws:sqs:*:111122223333:results");
        for wrong in ["shop", "Shop=https://sqs/1/results", "shop=results", "shop=https://sqs/results"] {
            assert!(wrong.parse::<Forward>().is_err(), "{wrong}");
        }
    }
}
