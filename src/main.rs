//! Parse, run, exit code; nothing else.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    relay::cli::run(std::env::args_os())
}
