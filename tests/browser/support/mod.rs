//! The headless Chromium in which tests look at pages.

use std::fs;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Installs the browser if it is missing, and gives the command that runs `tests/dashboard/{script}` in it, and the folder
/// for its pictures. The script's arguments are the caller's.
pub(crate) fn script(script: &str, pictures: &str) -> (Command, String) {
    let installed = Command::new(format!("{ROOT}/tests/install-browser")).status().unwrap();
    assert!(installed.success());
    let browser = format!("{ROOT}/target/tools/browser");
    // Next to the packages that it imports.
    fs::copy(format!("{ROOT}/tests/dashboard/{script}"), format!("{browser}/{script}")).unwrap();
    let pictures = format!("{}/{pictures}", env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&pictures).unwrap();
    let mut command = Command::new("node");
    command.arg(format!("{browser}/{script}")).env("TMPDIR", format!("{browser}/tmp"));
    (command, pictures)
}
