//! Encryption, with an authority of the test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use relay_conformance::testing::NatsServer;
use relay_nats::config::{ClientCertificate, NatsConfig, Tls};
use relay_nats::connection::Connection;
use tempfile::TempDir;

use super::{IN_VAIN, open, to};

/// An authority, certificates for 127.0.0.1 of a server and of a node that routes to others, and a client's, all good for
/// a day.
pub(crate) struct Certificates(TempDir);

impl Certificates {
    pub(crate) fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        openssl(dir.path(), &["req", "-x509", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"]);
        for (name, usage) in [("server", "serverAuth"), ("node", "serverAuth,clientAuth"), ("client", "clientAuth")] {
            let extensions = format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n");
            std::fs::write(dir.path().join("extensions"), extensions).unwrap();
            let (key, request, cert) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
            openssl(dir.path(), &["req", "-subj", &format!("/CN={name}"), "-keyout", &key, "-out", &request]);
            let sign = ["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
            openssl(dir.path(), &[&sign[..], &["-extfile", "extensions", "-out", &cert]].concat());
        }
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The server's `tls` block, with `more` in it.
    fn block(&self, more: &str) -> String {
        let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| self.path(name).display().to_string());
        format!("tls {{ cert_file: \"{cert}\"\nkey_file: \"{key}\"\nca_file: \"{ca}\"\n{more} }}")
    }
}

fn openssl(dir: &Path, args: &[&str]) {
    let mut command = Command::new("openssl");
    command.current_dir(dir).arg(args[0]);
    if args[0] == "req" {
        command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]);
    }
    let output = command.args(&args[1..]).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_server_that_asks_for_tls_gets_it_and_one_of_another_authority_is_not_trusted() {
    let (ours, theirs) = (Certificates::make(), Certificates::make());
    let server = NatsServer::builder().config(&ours.block("")).start().await;
    let trusting = |ca: PathBuf| NatsConfig { tls: Tls { ca: Some(ca), ..Tls::default() }, ..to(&server) };

    let connection = open(trusting(ours.path("ca.pem"))).await;
    assert!(connection.client().server_info().tls_required);

    let refused = Connection::open(trusting(theirs.path("ca.pem")), IN_VAIN).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
}

#[tokio::test]
async fn a_certificate_of_relays_own_is_shown_where_the_server_verifies_it() {
    let certificates = Certificates::make();
    let server = NatsServer::builder().config(&certificates.block("verify: true")).start().await;
    let client = ClientCertificate { cert: certificates.path("client.pem"), key: certificates.path("client.key") };
    let tls = Tls { required: true, ca: Some(certificates.path("ca.pem")), ..Tls::default() };

    open(NatsConfig { tls: Tls { client: Some(client), ..tls.clone() }, ..to(&server) }).await;

    Connection::open(NatsConfig { tls, ..to(&server) }, IN_VAIN).await.unwrap_err();
}

#[tokio::test]
async fn encryption_may_come_before_the_servers_first_word() {
    let certificates = Certificates::make();
    let server = NatsServer::builder().config(&certificates.block("handshake_first: true")).start().await;
    let tls = Tls { first: true, ca: Some(certificates.path("ca.pem")), ..Tls::default() };
    open(NatsConfig { tls, ..to(&server) }).await;
}

#[tokio::test]
async fn where_tls_is_required_nothing_is_said_to_a_server_without_it() {
    let server = NatsServer::start().await;
    let tls = Tls { required: true, ..Tls::default() };
    Connection::open(NatsConfig { tls, ..to(&server) }, IN_VAIN).await.unwrap_err();
}
