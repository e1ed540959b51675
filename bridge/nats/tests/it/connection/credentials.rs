//! Credentials: which users are let in.

use std::path::Path;

use relay_bridge::error::BrokerErrorKind;
use relay_conformance::testing::NatsServer;
use relay_nats::config::{Credentials, NatsConfig, Secret};
use relay_nats::connection::Connection;

use super::{IN_VAIN, open, to, until};

fn user(password: Secret) -> Credentials {
    Credentials::User { name: "relay".to_owned(), password }
}

async fn is_let_in(server: &NatsServer, credentials: Credentials) {
    let connection = open(NatsConfig { credentials, ..to(server) }).await;
    assert!(connection.up("test").is_ok());
}

async fn is_refused(server: &NatsServer, credentials: Credentials) {
    let refused = Connection::open(NatsConfig { credentials, ..to(server) }, IN_VAIN).await.unwrap_err();
    assert_eq!(refused.kind(), BrokerErrorKind::Unavailable);
    assert!(refused.to_string().contains("check the user and the secret"), "{refused}");
}

#[tokio::test]
async fn a_user_with_the_password_is_let_in_and_with_another_one_not() {
    let server =
        NatsServer::builder().config("authorization { users: [{ user: relay, password: right }] }").start().await;
    is_let_in(&server, user(Secret::Value("right".to_owned()))).await;
    is_refused(&server, user(Secret::Value("wrong".to_owned()))).await;
    is_refused(&server, Credentials::None).await;
}

#[tokio::test]
async fn a_token_is_let_in() {
    let server = NatsServer::builder().config("authorization { token: right }").start().await;
    is_let_in(&server, Credentials::Token(Secret::Value("right".to_owned()))).await;
}

#[tokio::test]
async fn an_nkey_is_let_in_by_its_signature() {
    let (known, stranger) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let config = format!("authorization {{ users: [{{ nkey: {} }}] }}", known.public_key());
    let server = NatsServer::builder().config(&config).start().await;
    is_let_in(&server, Credentials::NKey(Secret::Value(known.seed().unwrap()))).await;
    is_refused(&server, Credentials::NKey(Secret::Value(stranger.seed().unwrap()))).await;
}

#[tokio::test]
async fn a_secret_that_was_rotated_is_read_when_the_connection_comes_back() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "first\n").unwrap();
    let config = |password| format!("authorization {{ users: [{{ user: relay, password: {password} }}] }}");
    let mut server = NatsServer::builder().config(&config("first")).start().await;
    let connection = open(NatsConfig { credentials: user(Secret::File(file.path().to_owned())), ..to(&server) }).await;

    std::fs::write(file.path(), "second\n").unwrap();
    server.kill();
    until(&connection, |link| !link.is_up()).await;
    server.configure(NatsServer::builder().config(&config("second")));
    server.restart().await;

    until(&connection, |link| link.is_up()).await;
}

/// A JWT as `nsc` makes it: signed by `by`, about `subject`.
fn jwt(by: &nkeys::KeyPair, subject: &str, name: &str, nats: serde_json::Value) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

    let header = BASE64.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let claims = serde_json::json!({
        "jti": name, "iat": 1_700_000_000, "iss": by.public_key(), "name": name, "sub": subject, "nats": nats,
    });
    let signed = format!("{header}.{}", BASE64.encode(claims.to_string()));
    let signature = BASE64.encode(by.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

fn creds_file(path: &Path, jwt: &str, user: &nkeys::KeyPair) {
    let seed = user.seed().unwrap();
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn a_credentials_file_is_let_in_by_an_operators_server() {
    let [operator, system, account, user] = [
        nkeys::KeyPair::new_operator(),
        nkeys::KeyPair::new_account(),
        nkeys::KeyPair::new_account(),
        nkeys::KeyPair::new_user(),
    ];
    let operator_jwt =
        jwt(&operator, &operator.public_key(), "O", serde_json::json!({ "type": "operator", "version": 2 }));
    let account_jwt = |account: &nkeys::KeyPair, storage: i64| {
        let limits = serde_json::json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
        });
        let claims = serde_json::json!({ "type": "account", "version": 2, "limits": limits });
        jwt(&operator, &account.public_key(), "A", claims)
    };
    let user_jwt = jwt(
        &account,
        &user.public_key(),
        "U",
        serde_json::json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 }),
    );
    let config = format!(
        "operator: {operator_jwt}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload {{ {system}: {}\n{}: {} }}",
        account_jwt(&system, 0),
        account.public_key(),
        account_jwt(&account, -1),
        system = system.public_key(),
    );
    let server = NatsServer::builder().config(&config).start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("relay.creds");
    creds_file(&file, &user_jwt, &user);

    is_let_in(&server, Credentials::Creds(Secret::File(file.clone()))).await;

    creds_file(&file, &user_jwt, &nkeys::KeyPair::new_user());
    is_refused(&server, Credentials::Creds(Secret::File(file))).await;
}
