//! The queues that other accounts use and their policies: planning the changes, and making them.

use crate::share::is_account;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_sqs::types::QueueAttributeName as Name;
use serde_json::{Value, json};

use crate::adapter::aws::connect::{Effect, failed};
use crate::adapter::aws::queue::SqsQueues;
use crate::adapter::stored::schema;
use crate::config::SqsConfig;
use crate::limits::FIFO;
use crate::share::{Access, Grant};
use relay_bridge::contract::QueueName;
use relay_bridge::error::BrokerError;
use relay_bridge::provision::Change;

const OPERATION: &str = "provision";
/// The word for everybody in a policy.
const EVERYBODY: &str = "*";

/// One right: a principal and an action.
type Right = (String, String);

/// Every right that these grants give on the queue with this ARN.
fn wanted(arn: &str, grants: &[&Grant]) -> BTreeSet<Right> {
    let actions = grants.iter().flat_map(|grant| grant.access.actions().iter().map(move |action| (grant, action)));
    actions.map(|(grant, action)| (who(arn, &grant.principal), (*action).to_owned())).collect()
}

/// A principal as AWS stores it: an account is its root.
fn who(arn: &str, principal: &str) -> String {
    let partition = arn.split(':').nth(1).unwrap_or("aws");
    if is_account(principal) { format!("arn:{partition}:iam::{principal}:root") } else { principal.to_owned() }
}

/// The policy of the queue with this ARN; `None` if nobody else may use it.
fn document(arn: &str, grants: &[&Grant]) -> Option<Value> {
    let statements = Access::ALL.into_iter().filter_map(|access| {
        let granted = grants.iter().filter(|grant| grant.access == access);
        let principals: BTreeSet<_> = granted.map(|grant| who(arn, &grant.principal)).collect();
        (!principals.is_empty()).then(|| {
            json!({
                "Sid": access.statement(), "Effect": "Allow", "Principal": { "AWS": principals },
                "Action": access.actions(), "Resource": arn,
            })
        })
    });
    let statements: Vec<_> = statements.collect();
    (!statements.is_empty()).then(|| json!({ "Version": "2012-10-17", "Statement": statements }))
}

/// The changes from the policy that was found to these grants, each with whether somebody loses a right by it.
fn differences(arn: &str, found: Option<&str>, grants: &[&Grant]) -> Vec<(String, bool)> {
    let wanted = wanted(arn, grants);
    let (found, others) = found.filter(|text| !text.is_empty()).map_or_else(Default::default, |text| read(arn, text));
    let by_principal = |rights: Vec<&Right>| {
        let mut sorted = BTreeMap::<String, Vec<String>>::new();
        rights.into_iter().for_each(|(who, action)| sorted.entry(who.clone()).or_default().push(action.clone()));
        sorted.into_iter().map(|(who, actions)| format!("{who}: {}", actions.join(", "))).collect::<Vec<_>>()
    };
    let added =
        by_principal(wanted.difference(&found).collect()).into_iter().map(|what| (format!("allow {what}"), false));
    let gone = by_principal(found.difference(&wanted).collect()).into_iter();
    let gone = gone.map(|what| (format!("no longer allow {what}"), true));
    let others = others.into_iter().map(|what| (format!("remove a statement that is not relay's: {what}"), true));
    added.chain(gone).chain(others).collect()
}

/// The rights in a stored policy, and its statements that are something else than plain rights on this queue.
fn read(arn: &str, text: &str) -> (BTreeSet<Right>, Vec<String>) {
    let Ok(policy) = serde_json::from_str::<Value>(text) else { return (BTreeSet::new(), vec![text.to_owned()]) };
    let (mut rights, mut others) = (BTreeSet::new(), Vec::new());
    for statement in many(&policy["Statement"]) {
        match rights_of(arn, statement) {
            Some(found) => rights.extend(found),
            None => others.push(statement.to_string()),
        }
    }
    (rights, others)
}

fn rights_of(arn: &str, statement: &Value) -> Option<Vec<Right>> {
    let known = ["Sid", "Effect", "Principal", "Action", "Resource"];
    let plain = statement.as_object()?.keys().all(|key| known.contains(&key.as_str()));
    if !plain || statement["Effect"] != "Allow" || many(&statement["Resource"]).any(|resource| resource != arn) {
        return None;
    }
    let principals = match &statement["Principal"] {
        Value::Object(kinds) if kinds.len() == 1 => many(kinds.get("AWS")?),
        everybody @ Value::String(_) => many(everybody),
        _ => return None,
    };
    let names = principals.map(|name| name.as_str().map(|name| who(arn, name))).collect::<Option<Vec<_>>>()?;
    let actions = many(&statement["Action"]).map(action).collect::<Option<Vec<_>>>()?;
    Some(names.iter().flat_map(|name| actions.iter().map(|action| (name.clone(), action.clone()))).collect())
}

/// An action as relay writes it: to AWS `SQS:` is the same as `sqs:`.
fn action(value: &Value) -> Option<String> {
    let name = value.as_str()?;
    Some(
        name.split_once(':')
            .map_or(EVERYBODY.to_owned(), |(service, call)| format!("{}:{call}", service.to_ascii_lowercase())),
    )
}

/// A value that AWS writes alone or in a list.
fn many(value: &Value) -> impl Iterator<Item = &Value> {
    let (list, one) = match value {
        Value::Array(list) => (list.as_slice(), None),
        Value::Null => (&[][..], None),
        one => (&[][..], Some(one)),
    };
    list.iter().chain(one)
}

/// The queues that the configuration names, each with its grants.
fn by_queue(config: &SqsConfig) -> BTreeMap<&str, Vec<&Grant>> {
    let mut queues = BTreeMap::<_, Vec<_>>::new();
    for share in &config.shares {
        queues.entry(share.queue.as_str()).or_default().extend(&share.grant);
    }
    queues
}

/// A queue that exists: its URL, its ARN, and its policy if it has one.
struct Found {
    url: String,
    arn: String,
    policy: Option<String>,
}

async fn find(queues: &SqsQueues, name: &str) -> Result<Option<Found>, BrokerError> {
    let Some(url) = queues.find_named(name, OPERATION).await? else { return Ok(None) };
    let call = queues.client().get_queue_attributes().queue_url(&url);
    let call = call.attribute_names(Name::QueueArn).attribute_names(Name::Policy);
    let output = call.send().await.map_err(|error| failed(OPERATION, Effect::None, error))?;
    let mut attributes = output.attributes.unwrap_or_default();
    let arn = attributes.remove(&Name::QueueArn).unwrap_or_default();
    Ok(Some(Found { url, arn, policy: attributes.remove(&Name::Policy) }))
}

/// The changes that [`apply`] would make, reported under the queue `first`.
pub(crate) async fn plan(queues: &SqsQueues, first: &QueueName) -> Result<Vec<Change>, BrokerError> {
    let mut planned = Vec::new();
    for (name, grants) in by_queue(queues.config()) {
        let note = |what: String, destructive| Change {
            queue: first.clone(),
            what: format!("queue `{name}` of SQS, for others: {what}"),
            destructive,
        };
        let found = find(queues, name).await?;
        if found.is_none() {
            planned.push(note("create it".to_owned(), false));
        }
        let (arn, policy) = found.map_or_else(Default::default, |found| (found.arn, found.policy));
        let differs = differences(&arn, policy.as_deref(), &grants);
        planned.extend(differs.into_iter().map(|(what, destructive)| note(what, destructive)));
    }
    Ok(planned)
}

/// Creates the queues that are missing, and writes the policies that differ.
pub(crate) async fn apply(queues: &SqsQueues) -> Result<(), BrokerError> {
    for (name, grants) in by_queue(queues.config()) {
        if queues.find_named(name, OPERATION).await?.is_none() {
            let call = queues.client().create_queue().queue_name(name);
            let call = call
                .set_attributes(Some(schema::plain_attributes(name.ends_with(FIFO))))
                .set_tags(Some(schema::queue_tags()));
            call.send().await.map_err(|error| failed(OPERATION, Effect::Write, error))?;
        }
        // The policy names the queue, so it is written when the queue has its ARN. After a crash in between, the next
        // call writes it.
        let Some(found) = find(queues, name).await? else { continue };
        if !differences(&found.arn, found.policy.as_deref(), &grants).is_empty() {
            let policy = document(&found.arn, &grants).map(|policy| policy.to_string()).unwrap_or_default();
            let call = queues.client().set_queue_attributes().queue_url(found.url);
            let call = call.set_attributes(Some(HashMap::from([(Name::Policy, policy)])));
            call.send().await.map_err(|error| failed(OPERATION, Effect::Write, error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::Share;

    const ARN: &str = "arn:aws:sqs:eu-central-1:999988887777:shop-results.fifo";

    fn grants(texts: &[&str]) -> Vec<Grant> {
        texts.iter().map(|text| format!("q={text}").parse::<Share>().unwrap().grant.unwrap()).collect()
    }

    fn told(found: &Value, wanted: &[&str]) -> Vec<(String, bool)> {
        let wanted = grants(wanted);
        differences(ARN, Some(&found.to_string()), &wanted.iter().collect::<Vec<_>>())
    }

    fn written(wanted: &[&str]) -> Value {
        let wanted = grants(wanted);
        document(ARN, &wanted.iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_share_is_read_as_it_is_written_and_names_somebody() {
        let role = "arn:aws:iam::111122223333:role/app/reader";
        for text in ["orders", "shop.fifo=receive:111122223333", &format!("orders=send:{role}")] {
            assert_eq!(text.parse::<Share>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            ".fifo",
            "a.b=send:111122223333",
            "https://sqs/1/a=send:111122223333",
            "orders=own:111122223333",
            "orders=send",
            "orders=send:*",
            "orders=send:11112222333",
            "orders=send:arn:aws:iam::111122223333:role/*",
            "orders=send:arn:aws:iam::*:role/reader",
            "orders=send:arn:aws:sqs::111122223333:role/reader",
        ] {
            assert!(wrong.parse::<Share>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_policy_has_a_statement_for_those_who_send_and_one_for_those_who_receive() {
        let role = "arn:aws:iam::444455556666:role/reader";
        let policy = written(&["receive:111122223333", "send:111122223333", &format!("receive:{role}")]);
        let expected = json!({ "Version": "2012-10-17", "Statement": [
            {
                "Sid": "RelaySend", "Effect": "Allow", "Principal": { "AWS": ["arn:aws:iam::111122223333:root"] },
                "Action": ["sqs:GetQueueUrl", "sqs:SendMessage"], "Resource": ARN,
            },
            {
                "Sid": "RelayReceive", "Effect": "Allow",
                "Principal": { "AWS": ["arn:aws:iam::111122223333:root", role] },
                "Action": [
                    "sqs:ChangeMessageVisibility", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:GetQueueUrl",
                    "sqs:ReceiveMessage",
                ],
                "Resource": ARN,
            },
        ] });
        assert_eq!(policy, expected);
        assert_eq!(document(ARN, &[]), None);
        let china =
            document("arn:aws-cn:sqs:cn-north-1:1:q", &grants(&["send:111122223333"]).iter().collect::<Vec<_>>());
        assert_eq!(china.unwrap()["Statement"][0]["Principal"]["AWS"][0], "arn:aws-cn:iam::111122223333:root");
    }

    #[test]
    fn what_says_the_same_in_other_words_is_no_change() {
        let both = ["send:111122223333", "receive:444455556666"];
        assert!(told(&written(&both), &[both[1], both[0]]).is_empty());
        let stored = json!({ "Statement": {
            "Effect": "Allow", "Principal": { "AWS": "111122223333" }, "Action": ["SQS:SendMessage", "sqs:GetQueueUrl"],
            "Resource": [ARN],
        } });
        assert!(told(&stored, &both[..1]).is_empty());
        assert!(differences(ARN, Some(""), &[]).is_empty() && differences(ARN, None, &[]).is_empty());
    }

    #[test]
    fn who_gets_rights_and_who_loses_them_is_told_and_the_loss_needs_force() {
        let changed = told(&written(&["send:111122223333"]), &["send:444455556666"]);
        let expected = [
            ("allow arn:aws:iam::444455556666:root: sqs:GetQueueUrl, sqs:SendMessage".to_owned(), false),
            ("no longer allow arn:aws:iam::111122223333:root: sqs:GetQueueUrl, sqs:SendMessage".to_owned(), true),
        ];
        assert_eq!(changed, expected);
    }

    #[test]
    fn a_policy_that_somebody_widened_is_a_change() {
        let wanted = ["send:111122223333"];
        let mut widened = written(&wanted);
        widened["Statement"][0]["Principal"] = json!("*");
        let changed = told(&widened, &wanted);
        assert!(changed.iter().any(|(what, force)| what.starts_with("no longer allow *: ") && *force), "{changed:?}");
        for (key, value) in [
            ("Effect", json!("Deny")),
            ("Condition", json!({ "Bool": { "aws:SecureTransport": "true" } })),
            ("Resource", json!("*")),
            ("Principal", json!({ "Service": "sns.amazonaws.com" })),
        ] {
            let mut stored = written(&wanted);
            let mut other = stored["Statement"][0].clone();
            other[key] = value;
            stored["Statement"].as_array_mut().unwrap().push(other);
            let changed = told(&stored, &wanted);
            let [(what, true)] = &changed[..] else { panic!("{key}: {changed:?}") };
            assert!(what.starts_with("remove a statement that is not relay's: "), "{what}");
        }
        assert_eq!(differences(ARN, Some("no json"), &[]).len(), 1);
    }
}
