//! Identities: the identity file and tokens, over real sockets and as the documents show them.

use std::fs;
use std::path::Path;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use relay::auth::presented::{Certificate, CertificateName};
use relay::auth::{Authenticator, Files, Presented};
use relay::ingress::proxy::Proxy;
use relay_bridge::clock::Clock;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::{Relay, Reply, Setup};

const CLIENTS: &str = r#"
[[client]]
name = "batch"
any = [[{ jwt = { issuer = "https://issuer.example", subject = "submitter" } }, { vpce = ["vpce-0a1b2c3d"] }]]
queues = ["mail"]
rights = ["submit", "read"]

[[issuer]]
url = "https://issuer.example"
audience = "relay"
algorithms = ["ES256"]
file = "jwks.json"
"#;

/// An issuer, whose keys are in a file beside the clients.
struct Issuer {
    folder: TempDir,
    key: EncodingKey,
    algorithm: Algorithm,
}

impl Issuer {
    fn new(clients: &str, set: &str, algorithm: Algorithm) -> Self {
        let (folder, key) = (tempfile::tempdir().unwrap(), key(algorithm));
        fs::write(folder.path().join("clients.toml"), clients).unwrap();
        let mut jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        jwk.common.key_id = Some("one".to_owned());
        fs::write(folder.path().join(set), json!({ "keys": [jwk] }).to_string()).unwrap();
        Self { folder, key, algorithm }
    }

    fn open(&self) -> Authenticator {
        let files = Files { keys: None, clients: Some(self.folder.path().join("clients.toml")) };
        Authenticator::open(files, Clock::system()).unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    /// A relay on loopback behind a balancer there.
    async fn serve(&self) -> Relay {
        let mut setup = Setup { authenticator: self.open(), ..Setup::default() };
        setup.front.proxy = Some(Proxy::new(vec!["127.0.0.1".parse().unwrap()]));
        setup.start().await
    }
}

fn key(algorithm: Algorithm) -> EncodingKey {
    if algorithm == Algorithm::RS256 {
        let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
        return EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
    }
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
}

fn token((key, algorithm): (&EncodingKey, Algorithm), issuer: &str, subject: &str) -> String {
    let now = Clock::system().now().as_millis() / 1_000;
    let claims = json!({ "iss": issuer, "sub": subject, "aud": ["relay"], "iat": now, "exp": now + 600 });
    let mut header = Header::new(algorithm);
    header.kid = Some("one".to_owned());
    encode(&header, &claims, key).unwrap()
}

/// Asks with `bearer` through `endpoint`.
async fn ask(relay: &Relay, endpoint: &str, line: &str, bearer: &str) -> Reply {
    let mut block = vec![10, 1, 1, 1, 10, 0, 0, 2, 0x80, 0, 0, 80, 0xEA, 0];
    block.extend([u8::try_from(endpoint.len() + 1).unwrap(), 1]);
    block.extend(endpoint.as_bytes());
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    let mut peer = relay.connect().await;
    peer.write(&[b"\r\n\r\n\0\r\nQUIT\n\x21\x11", &length[..], &block].concat()).await;
    peer.send(line, &[("authorization", &format!("Bearer {bearer}"))], "").await;
    peer.reply().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoami_names_each_factor_of_a_token_through_its_endpoint_and_the_source() {
    let issuer = Issuer::new(CLIENTS, "jwks.json", Algorithm::ES256);
    let relay = issuer.serve().await;
    let token = token((&issuer.key, issuer.algorithm), "https://issuer.example", "submitter");
    let reply = ask(&relay, "vpce-0a1b2c3d", "GET /v1/whoami", &token).await;
    let who: Value = serde_json::from_slice(&reply.body).unwrap();
    let factors = json!([
        { "method": "token", "credential": "https://issuer.example submitter" },
        { "method": "vpc-endpoint", "credential": "vpce-0a1b2c3d" },
    ]);
    assert_eq!((&who["client"], &who["factors"]), (&json!("batch"), &factors));
    assert_eq!((&who["authenticated_by"], &who["key_id"]), (&json!("token"), &json!(null)));
    assert_eq!((&who["vpc_endpoint_id"], &who["source"]), (&json!("vpce-0a1b2c3d"), &json!("10.1.1.1")));
    assert_eq!((&who["queues"], &who["rights"]), (&json!(["mail"]), &json!(["submit", "read"])));
    let submitted = ask(&relay, "vpce-0a1b2c3d", "POST /v1/queues/mail/jobs", &token).await;
    assert_eq!(submitted.status, 202);
    let other = ask(&relay, "vpce-0a1b2c3d", "POST /v1/queues/other/jobs", &token).await;
    assert_eq!(other.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_token_through_another_endpoint_is_forbidden_and_a_wrong_one_is_told_what_is_wrong() {
    let issuer = Issuer::new(CLIENTS, "jwks.json", Algorithm::ES256);
    let relay = issuer.serve().await;
    let good = token((&issuer.key, issuer.algorithm), "https://issuer.example", "submitter");
    let elsewhere = ask(&relay, "vpce-ffffffff", "GET /v1/whoami", &good).await;
    assert_eq!(elsewhere.status, 403);
    assert!(elsewhere.field("detail").contains("vpce-ffffffff"), "{}", elsewhere.field("detail"));
    for (bearer, reason) in [
        (token((&key(Algorithm::ES256), Algorithm::ES256), "https://issuer.example", "submitter"), "signature"),
        (token((&issuer.key, issuer.algorithm), "https://other.example", "submitter"), "does not believe the issuer"),
        ("rlyk_0123456789ab_AAAA".to_owned(), "checksum"),
        ("nonsense".to_owned(), "rlyk_<key id>_<secret>"),
    ] {
        let refused = ask(&relay, "vpce-0a1b2c3d", "GET /v1/whoami", &bearer).await;
        assert_eq!(refused.status, 401);
        assert!(refused.field("detail").contains(reason), "{}", refused.field("detail"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_shows_too_many_wrong_signatures_is_answered_429_and_another_endpoint_is_not() {
    let issuer = Issuer::new(CLIENTS, "jwks.json", Algorithm::ES256);
    let relay = issuer.serve().await;
    let forged = token((&key(Algorithm::ES256), Algorithm::ES256), "https://issuer.example", "submitter");
    let mut slow = None;
    // Each takes a signature's worth, and twenty a second come back.
    for _ in 0..10_000 {
        let reply = ask(&relay, "vpce-0a1b2c3d", "GET /v1/whoami", &forged).await;
        if reply.status == 429 {
            slow = Some(reply);
            break;
        }
    }
    let slow = slow.expect("a flood of wrong signatures is slowed down");
    assert_eq!((slow.field("slug"), slow.field("retry")), ("rate-limited".to_owned(), "safe".to_owned()));
    let other = ask(&relay, "vpce-ffffffff", "GET /v1/whoami", &forged).await;
    assert_eq!(other.status, 401);
}

/// The blocks of TOML in `docs/identity.md`.
fn blocks() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/identity.md");
    let text = fs::read_to_string(path).unwrap();
    let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0.to_owned());
    blocks.collect()
}

#[tokio::test]
async fn each_block_of_the_documents_lets_in_its_client_by_all_of_a_list_and_by_no_part_of_it() {
    let all = blocks().concat();
    assert!(blocks().len() >= 7, "{all}");
    let issuer = Issuer::new(&all, "eks-batch.json", Algorithm::RS256);
    for block in blocks() {
        Issuer::new(&block, "eks-batch.json", Algorithm::RS256).open();
    }
    let keys = relay::auth::keys::KeyFile::new(issuer.folder.path().join("keys.toml"));
    let key_of = |name: &str, role| keys.create(role, name.parse().unwrap(), None, Clock::system().now()).unwrap();
    let [globex, plant, shop] = ["globex", "plant-7", "shop"].map(|name| key_of(name, relay::auth::keys::Role::Client));
    let files = Files { keys: Some(keys.path().to_owned()), clients: Some(issuer.folder.path().join("clients.toml")) };
    let to = Authenticator::open(files, Clock::system()).unwrap();
    let eks = "https://oidc.eks.eu-central-1.amazonaws.com/id/0A1B2C3D";
    let batch = token((&issuer.key, issuer.algorithm), eks, "system:serviceaccount:batch:submitter");
    let certificate = |name| Some(Certificate { name: Ok(name), fingerprint: String::new() });
    let acme = CertificateName::Uri("spiffe://acme.example/orders".to_owned());
    let plant_7 = CertificateName::Dns("submitter.plant-7.example".to_owned());
    for (client, bearer, certificate, endpoint) in [
        ("acme", None, certificate(acme), Some("vpce-33334444")),
        ("globex", Some(globex.to_string()), None, Some("vpce-55556666")),
        ("plant-7", Some(plant.to_string()), certificate(plant_7), None),
        ("shop", Some(shop.to_string()), None, None),
        ("batch", Some(batch), None, Some("vpce-0a1b2c3d")),
    ] {
        let header = bearer.map(|bearer| format!("Bearer {bearer}"));
        let certificate = certificate.as_ref();
        let shown = Presented { authorization: header.as_deref(), certificate, endpoint, ..Presented::default() };
        let caller = to.authenticate(shown).await.unwrap();
        assert_eq!(caller.client.as_str(), client);
        for part in [
            Presented { authorization: None, ..shown },
            Presented { certificate: None, ..shown },
            Presented { endpoint: None, ..shown },
        ] {
            let is_all = part.authorization == shown.authorization
                && part.certificate == shown.certificate
                && part.endpoint == shown.endpoint;
            assert!(is_all || to.authenticate(part).await.is_err(), "{client}");
        }
    }
    assert!(to.lets_in_over_nats(&"shop".parse().unwrap()) && !to.lets_in_over_nats(&"acme".parse().unwrap()));
    let worker = keys.create(relay::auth::keys::Role::Worker, "mailer".parse().unwrap(), None, Clock::system().now());
    let worker = worker.unwrap().to_string();
    let rights = to.authorize_worker(&"mailer-1".parse().unwrap(), Some(&worker), Presented::default()).await.unwrap();
    assert_eq!(rights.queues, Some(vec!["mail".parse().unwrap()]));
}
