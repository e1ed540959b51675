//! The built binary with SQS as the broker, at the emulator, and calls of SQS as others make them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use relay_conformance::testing::AwsEmulator;
use serde_json::{Value, json};

use crate::cli_support::relay;

/// The binary with flags of SQS, which is at `url`, and credentials that an emulator takes.
pub(crate) fn on_sqs(url: &str, args: &[&str], rest: &[&str]) -> Command {
    let flags = ["--sqs", "--sqs-endpoint", url];
    with_credentials(relay(args.iter().copied().chain(flags).chain(rest.iter().copied())))
}

/// A command with credentials that an emulator takes.
pub(crate) fn with_credentials(mut command: Command) -> Command {
    command
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", "eu-central-1")
        .env("NO_PROXY", "127.0.0.1");
    command
}

/// The address of a new queue of SQS.
pub(crate) fn create_queue(emulator: &AwsEmulator, name: &str) -> String {
    let attributes = if name.ends_with(".fifo") { json!({ "FifoQueue": "true" }) } else { json!({}) };
    sqs(emulator, "CreateQueue", &json!({ "QueueName": name, "Attributes": attributes }))["QueueUrl"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// One call of SQS, as whoever knows nothing of relay makes it.
pub(crate) fn sqs(emulator: &AwsEmulator, action: &str, body: &Value) -> Value {
    let url = emulator.url();
    let address = url.trim_start_matches("http://");
    let body = body.to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    let authorization =
        "AWS4-HMAC-SHA256 Credential=test/20260101/eu-central-1/sqs/aws4_request, SignedHeaders=host, Signature=0";
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-amz-json-1.0\r\nX-Amz-Target: AmazonSQS.{action}\r\n\
         Authorization: {authorization}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{action}: {answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    // Also if it came in chunks: between the first brace and the last.
    let json = body.find('{').zip(body.rfind('}')).map_or("{}", |(from, to)| &body[from..=to]);
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{action}: {error}: {answer}"))
}
