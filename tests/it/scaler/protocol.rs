//! The protocol of KEDA as it is committed, compared with what its file generates.

use std::path::Path;

/// The words in front of the generated code.
const HEAD: &str = "//! The messages and the service of KEDA, generated out of `externalscaler.proto`.\n";

/// Generates the code anew.
fn generated() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scaler");
    let files = protox::compile([folder.join("externalscaler.proto")], [&folder]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .out_dir(out.path())
        .compile_fds(files)
        .unwrap();
    let code = std::fs::read_to_string(out.path().join("externalscaler.rs")).unwrap();
    format!("{HEAD}{code}")
}

#[test]
fn the_code_of_the_protocol_is_what_its_file_generates() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/scaler/proto.rs");
    let generated = generated();
    if std::env::var_os("RELAY_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == generated,
        "src/scaler/proto.rs differs: `RELAY_BLESS=1 cargo test -p relay --test it scaler::protocol` writes it anew"
    );
}
