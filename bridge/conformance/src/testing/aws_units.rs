//! The units that DynamoDB charges for a call, by the sizes of the items that it touches:
//! <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html>.
//!
//! The emulator tells of writes as AWS does: a unit for each KiB of the item as it was or as it is, whichever is larger, two of
//! them in a transaction, and those of the indexes. Of a read it says one unit however large the items are, and of a write
//! whose condition did not hold nothing; both are worked out here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Bytes that a unit reads, and that one writes.
const READ_UNIT: usize = 4_096;
const WRITE_UNIT: usize = 1_024;

/// The charge of a call.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Charge {
    /// The partition that it was about, the first one of many: `job#…`, `policy`.
    pub(super) partition: String,
    /// Write units, those of indexes included.
    pub(super) writes: f64,
    /// Read units.
    pub(super) reads: f64,
}

/// The call to make as well to see all that a read looked at, where its own answer does not show it.
pub(super) fn whole(operation: &str, asked: &Value) -> Option<Value> {
    let hides = ["ProjectionExpression", "FilterExpression", "Select"];
    if operation == "BatchGetItem" {
        let mut whole = asked.clone();
        let tables = || asked["RequestItems"].as_object().into_iter().flatten();
        tables().any(|(_, wanted)| !wanted["ProjectionExpression"].is_null()).then_some(())?;
        for (table, wanted) in tables() {
            let (keys, consistent) = (&wanted["Keys"], wanted["ConsistentRead"] == true);
            whole["RequestItems"][table] = serde_json::json!({ "Keys": keys, "ConsistentRead": consistent });
        }
        return Some(whole);
    }
    let reads = matches!(operation, "GetItem" | "Query") && hides.iter().any(|part| !asked[*part].is_null());
    reads.then(|| {
        let mut whole = asked.clone();
        let of_keys = asked["KeyConditionExpression"].as_str().unwrap_or_default();
        for names in ["ExpressionAttributeNames", "ExpressionAttributeValues"] {
            // A name that no expression has is refused.
            if let Some(named) = whole[names].as_object_mut() {
                named.retain(|name, _| of_keys.split([' ', ',', '(', ')']).any(|word| word == name));
                if named.is_empty() {
                    whole[names].take();
                }
            }
        }
        whole.as_object_mut().unwrap().retain(|name, value| !hides.contains(&name.as_str()) && !value.is_null());
        whole
    })
}

/// The charge of a call whose answer, or that of [`whole`], is `answer`.
pub(super) fn charge(operation: &str, asked: &Value, answer: &Value) -> Charge {
    let (mut writes, mut reads) = (0.0, 0.0);
    let factor = |asked: &Value| if asked["ConsistentRead"] == true { 1.0 } else { 0.5 };
    match operation {
        "GetItem" => reads = factor(asked) * read_units(bytes_of(&answer["Item"])),
        // All of a page together.
        "Query" => reads = factor(asked) * read_units(values(&answer["Items"]).map(bytes_of).sum()),
        "BatchGetItem" => {
            for (table, wanted) in asked["RequestItems"].as_object().into_iter().flatten() {
                let found: Vec<_> = values(&answer["Responses"][table]).map(bytes_of).collect();
                // An item that is not there is a unit.
                let absent = values(&wanted["Keys"]).count().saturating_sub(found.len());
                let units: f64 = found.into_iter().chain(std::iter::repeat_n(0, absent)).map(read_units).sum();
                reads += factor(wanted) * units;
            }
        }
        "PutItem" | "UpdateItem" | "DeleteItem" | "TransactWriteItems" => {
            let told = &answer["ConsumedCapacity"];
            let told: Vec<_> = if told.is_array() { values(told).collect() } else { vec![told] };
            writes = told.iter().filter_map(|table| table["CapacityUnits"].as_f64()).sum();
            let refused = answer["__type"].as_str().unwrap_or_default();
            if refused.ends_with("ConditionalCheckFailedException") {
                writes += write_units(bytes_of(&answer["Item"]));
            } else if refused.ends_with("TransactionCanceledException") {
                let reasons = values(&answer["CancellationReasons"]);
                writes += reasons.map(|reason| 2.0 * write_units(bytes_of(&reason["Item"]))).sum::<f64>();
            }
        }
        _ => {}
    }
    Charge { partition: partition(operation, asked), writes, reads }
}

fn partition(operation: &str, asked: &Value) -> String {
    let key = match operation {
        "Query" => {
            return asked["ExpressionAttributeValues"][":partition"]["S"].as_str().unwrap_or_default().to_owned();
        }
        "BatchGetItem" => {
            let mut tables = asked["RequestItems"].as_object().into_iter().flat_map(|tables| tables.values());
            tables.next().map_or(&Value::Null, |table| &table["Keys"][0])
        }
        "PutItem" => &asked["Item"],
        "TransactWriteItems" => {
            let first = &asked["TransactItems"][0];
            if first["Put"].is_object() { &first["Put"]["Item"] } else { &first["Update"]["Key"] }
        }
        _ => &asked["Key"],
    };
    key["pk"]["S"].as_str().unwrap_or_default().to_owned()
}

fn values(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[expect(clippy::cast_precision_loss, reason = "an item has at most 400 KiB")]
fn read_units(bytes: usize) -> f64 {
    bytes.div_ceil(READ_UNIT).max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "an item has at most 400 KiB")]
fn write_units(bytes: usize) -> f64 {
    bytes.div_ceil(WRITE_UNIT).max(1) as f64
}

/// The size of an item: its names and values. No item has none.
///
/// Rules: <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html>. The 100 bytes about
/// each item are storage, and no unit.
fn bytes_of(item: &Value) -> usize {
    item.as_object().into_iter().flatten().map(|(name, value)| name.len() + value_bytes(value)).sum()
}

fn value_bytes(value: &Value) -> usize {
    let Some((kind, value)) = value.as_object().and_then(|value| value.iter().next()) else { return 0 };
    let text = value.as_str().unwrap_or_default();
    match kind.as_str() {
        "S" => text.len(),
        "B" => STANDARD.decode(text).map_or(0, |bytes| bytes.len()),
        "N" => number_bytes(text),
        "SS" => values(value).map(|text| text.as_str().map_or(0, str::len)).sum(),
        "M" => {
            3 + value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, value)| name.len() + value_bytes(value) + 1)
                .sum::<usize>()
        }
        "L" => 3 + values(value).map(|value| value_bytes(value) + 1).sum::<usize>(),
        _ => 1,
    }
}

/// A byte for two digits that count, one about them, and one for a sign.
fn number_bytes(text: &str) -> usize {
    let digits = text.trim_start_matches('-').trim_start_matches('0').trim_end_matches('0');
    digits.len().div_ceil(2) + 1 + usize::from(text.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_item_is_as_large_as_its_names_and_values() {
        let item = json!({"pk": {"S": "job#é"}, "n": {"N": "1763865086007"}, "b": {"B": STANDARD.encode([7; 100])}});
        assert_eq!(bytes_of(&item), 2 + 6 + 1 + 8 + 1 + 100);
        let nested =
            json!({"held": {"M": {"ab": {"N": "100"}}}, "names": {"SS": ["abc", "de"]}, "erased": {"BOOL": true}});
        assert_eq!(bytes_of(&nested), 4 + 3 + 2 + 2 + 1 + 5 + 5 + 6 + 1);
        assert_eq!((number_bytes("0"), number_bytes("-12")), (1, 3));
    }

    #[test]
    fn a_read_is_charged_by_what_it_looked_at() {
        let item = |bytes: usize| json!({"x": {"S": "y".repeat(bytes - 1)}});
        let reads = |operation, asked: Value, answer| charge(operation, &asked, &answer).reads;
        let consistent = || json!({"ConsistentRead": true});
        assert_eq!(reads("GetItem", consistent(), json!({})), 1.0, "what is not there");
        assert_eq!(reads("GetItem", consistent(), json!({"Item": item(4_096)})), 1.0);
        assert_eq!(reads("GetItem", consistent(), json!({"Item": item(4_097)})), 2.0);
        let page = |each| json!({"Items": vec![item(each); 10]});
        assert_eq!(reads("Query", json!({}), page(1_000)), 1.5, "together, and half as an index is late");
        assert_eq!(reads("Query", json!({}), json!({"Items": []})), 0.5);
        let keys = json!({"RequestItems": {"t": {"ConsistentRead": true, "Keys": [{}, {}, {}]}}});
        assert_eq!(
            reads("BatchGetItem", keys, json!({"Responses": {"t": [item(10), item(5_000)]}})),
            4.0,
            "each by itself"
        );
    }

    #[test]
    fn a_write_whose_condition_did_not_hold_is_charged_by_the_item_that_is_there() {
        let refused = |bytes| {
            let item = json!({"x": {"B": STANDARD.encode(vec![7; bytes])}});
            json!({"__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException", "Item": item})
        };
        assert_eq!(charge("UpdateItem", &json!({}), &refused(100)).writes, 1.0);
        assert_eq!(charge("UpdateItem", &json!({}), &refused(2_000)).writes, 2.0);
    }

    #[test]
    fn what_a_filter_hides_is_asked_for_as_well() {
        let asked = json!({
            "KeyConditionExpression": "#ix = :partition", "FilterExpression": "#client = :client", "Select": "COUNT",
            "ExpressionAttributeNames": {"#ix": "ix", "#client": "client"},
            "ExpressionAttributeValues": {":partition": {"S": "open#a#0"}, ":client": {"S": "shop"}}, "Limit": 7,
        });
        let expected = json!({
            "KeyConditionExpression": "#ix = :partition", "ExpressionAttributeNames": {"#ix": "ix"},
            "ExpressionAttributeValues": {":partition": {"S": "open#a#0"}}, "Limit": 7,
        });
        assert_eq!(whole("Query", &asked), Some(expected));
        assert_eq!(whole("Query", &json!({"KeyConditionExpression": "#ix = :partition"})), None);
        assert_eq!(charge("Query", &asked, &json!({})).partition, "open#a#0");
    }
}
