//! relay on NATS beside what async-nats alone does, against one nats-server that is started for the run.
//!
//! `cargo bench --bench nats`, or with the names of some parts: `cargo bench --bench nats -- submit cycle`. Everything
//! is on this machine and shares its cores. One pair is relay and its baseline, one after the other; the streams of one
//! are gone before the other begins. CPU is given apart for the process that does the work and for nats-server.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking and prints its figures")]

mod bare;
mod figures;
mod ours;
mod parts;
#[path = "../support/mod.rs"]
mod support;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match arguments[..] {
            ["serve-bare", url] => bare::serve(url, false).await,
            ["serve-relay", url] => ours::serve_http(url).await,
            ["serve-workers", url] => ours::serve_tcp(url).await,
            ["serve-bare-wait", url] => bare::serve_wait(url).await,
            ["serve-bare-create", url] => bare::serve(url, true).await,
            ref parts => parts::run(parts).await,
        }
    });
}
