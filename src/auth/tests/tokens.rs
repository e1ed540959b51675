//! Tokens that are taken, and all the ways in which one can be wrong.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::signer::{ISSUER_OF_FILE, Signer, claims, set, show};
use super::*;

const CLIENT: &str =
    "[[client]]\nname = \"acme\"\nany = [[{ jwt = { issuer = \"https://issuer.example\", subject = \"batch\" } }]]\n";

fn believing(bench: &Bench, keys: &[&Signer]) -> Authenticator {
    bench.write("jwks.json", &set(keys));
    bench.with_clients(&format!("{CLIENT}{ISSUER_OF_FILE}"))
}

fn bring(to: &Authenticator, token: &str) -> Result<Caller, Refused> {
    authenticate(to, Some(&format!("Bearer {token}")), None)
}

fn refusal(to: &Authenticator, token: &str) -> String {
    match bring(to, token).unwrap_err() {
        Refused::Unauthenticated(why) => why,
        other => panic!("{other:?}"),
    }
}

/// A token of this header and these claims, with `signature`.
fn raw(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

fn with(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}

#[test]
fn a_token_of_each_algorithm_names_its_client() {
    let bench = Bench::new();
    let signers = [Algorithm::RS256, Algorithm::ES256, Algorithm::ES384].map(|of| Signer::new(&format!("{of:?}"), of));
    let to = believing(&bench, &signers.iter().collect::<Vec<_>>());
    for signer in &signers {
        let caller = bring(&to, &signer.sign(&claims(bench.clock.now(), "batch"))).unwrap();
        let (issuer, subject) = ("https://issuer.example".to_owned(), "batch".to_owned());
        assert_eq!(caller.authenticated, [Authenticated::Token { issuer, subject }]);
        let several = with(&claims(bench.clock.now(), "batch"), "aud", json!(["sts.amazonaws.com", "relay"]));
        assert_eq!(bring(&to, &signer.sign(&several)).unwrap().client.as_str(), "acme");
    }
    let stranger = signers[1].sign(&claims(bench.clock.now(), "somebody"));
    assert!(matches!(bring(&to, &stranger).unwrap_err(), Refused::Forbidden(_)), "it is right and nobody's");
}

#[test]
fn a_token_with_a_wrong_claim_is_refused_with_the_reason() {
    let bench = Bench::new();
    let signer = Signer::new("one", Algorithm::ES256);
    let to = believing(&bench, &[&signer]);
    let good = claims(bench.clock.now(), "batch");
    let now = good["iat"].as_i64().unwrap();
    bring(&to, &signer.sign(&good)).unwrap();
    for (claim, value, reason) in [
        ("exp", json!(now - 61), "expired"),
        ("exp", Value::Null, "no `exp`"),
        ("exp", json!(now + 3_601), "lives longer"),
        ("exp", json!("soon"), "can't be read"),
        ("exp", json!(1e300), "no time"),
        ("nbf", json!(now + 61), "not valid before"),
        ("iat", json!(now + 61), "in the future"),
        ("iat", Value::Null, "no `iat`"),
        ("iat", json!(now - 86_400), "lives longer"),
        ("aud", json!("other"), "another audience"),
        ("aud", json!(["a", "b"]), "another audience"),
        ("aud", json!([]), "another audience"),
        ("aud", Value::Null, "another audience"),
        ("sub", Value::Null, "no `sub`"),
        ("sub", json!(""), "no `sub`"),
        ("iss", json!("https://attacker.example"), "does not believe the issuer"),
        ("iss", Value::Null, "no `iss`"),
    ] {
        let why = refusal(&to, &signer.sign(&with(&good, claim, value.clone())));
        assert!(why.contains(reason), "{claim} {value}: {why}");
    }
    for (claim, value) in [("exp", json!(now - 59)), ("nbf", json!(now + 59)), ("nbf", Value::Null)] {
        let mut claims = with(&good, claim, value.clone());
        if claim == "exp" {
            claims["iat"] = json!(now - 1_000);
        }
        assert!(bring(&to, &signer.sign(&claims)).is_ok(), "{claim} {value} is within the skew of clocks");
    }
}

#[test]
fn a_token_can_not_choose_how_and_with_what_it_is_checked() {
    let bench = Bench::new();
    let (signer, attacker) = (Signer::new("one", Algorithm::RS256), Signer::new("one", Algorithm::RS256));
    let to = believing(&bench, &[&signer]);
    let good = claims(bench.clock.now(), "batch");
    let token = signer.sign(&good);
    let (message, signature) = token.rsplit_once('.').unwrap();
    assert!(refusal(&to, &raw(&json!({ "alg": "none" }), &good, "")).contains("none of RS256"));
    assert!(refusal(&to, &raw(&json!({ "alg": "None", "kid": "one" }), &good, signature)).contains("none of RS256"));
    // The public key as the secret of an HMAC, in each form in which it is known.
    for secret in [set(&[&signer]), signer.jwk().to_string(), signer.jwk()["n"].as_str().unwrap().to_owned()] {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("one".to_owned());
        let forged = encode(&header, &good, &EncodingKey::from_secret(secret.as_bytes())).unwrap();
        assert!(refusal(&to, &forged).contains("none of RS256"));
    }
    assert!(refusal(&to, &attacker.sign(&good)).contains("signature"));
    for field in ["jku", "jwk", "x5u", "crit"] {
        let mut header = json!({ "alg": "RS256", "kid": "one" });
        header[field] = if field == "jwk" { attacker.jwk() } else { json!("https://attacker.example") };
        assert!(refusal(&to, &raw(&header, &good, signature)).contains(field));
    }
    let es256 = raw(&json!({ "alg": "ES256", "kid": "one" }), &good, signature);
    assert!(refusal(&to, &es256).contains("does not sign in this way"));
    let other = with(&good, "sub", json!("admin"));
    let swapped = raw(&json!({ "alg": "RS256", "kid": "one" }), &other, signature);
    for wrong in [&swapped, &format!("{message}."), &format!("{message}.AAAA"), &format!("{token}="), "a.b.c", ".."] {
        refusal(&to, wrong);
    }
    let twice = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","alg":"none","kid":"one"}"#);
    refusal(&to, &format!("{twice}.{}.{signature}", URL_SAFE_NO_PAD.encode(good.to_string())));
    assert!(
        refusal(&to, &format!("{}.{}.{}", "a".repeat(4_000), "b".repeat(4_000), "c".repeat(400))).contains("bytes")
    );
}

#[test]
fn an_algorithm_that_its_issuer_is_not_configured_for_is_refused_though_the_key_fits() {
    let bench = Bench::new();
    let signer = Signer::new("one", Algorithm::ES384);
    bench.write("jwks.json", &set(&[&signer]));
    let issuer = ISSUER_OF_FILE.replace("\"RS256\", \"ES256\", \"ES384\"", "\"RS256\"");
    let to = bench.with_clients(&format!("{CLIENT}{issuer}"));
    assert!(refusal(&to, &signer.sign(&claims(bench.clock.now(), "batch"))).contains("does not use here"));
}

#[test]
fn a_token_names_its_key_where_the_set_has_several() {
    let bench = Bench::new();
    let (one, two) = (Signer::new("one", Algorithm::ES256), Signer::new("two", Algorithm::ES256));
    let claims = claims(bench.clock.now(), "batch");
    let nameless = encode(&Header::new(Algorithm::ES256), &claims, &one.key).unwrap();
    let to = believing(&bench, &[&one, &two]);
    assert!(refusal(&to, &nameless).contains("names no key"));
    assert!(refusal(&to, &Signer::new("three", Algorithm::ES256).sign(&claims)).contains("does not have"));
    let to = believing(&bench, &[&one]);
    bring(&to, &nameless).unwrap();
    assert!(refusal(&to, &two.sign(&claims)).contains("does not have"));
}

#[test]
fn a_token_is_good_until_it_expires_and_what_was_begun_with_it_ends_then() {
    let bench = Bench::new();
    let signer = Signer::new("one", Algorithm::ES256);
    let to = believing(&bench, &[&signer]);
    let token = signer.sign(&claims(bench.clock.now(), "batch"));
    let begun = bring(&to, &token).unwrap().credential;
    bench.clock.advance(Duration::from_secs(1_800 + 59));
    assert_eq!(bring(&to, &token).unwrap().credential, begun, "the same token is one credential");
    bench.clock.advance(Duration::from_secs(2));
    assert!(refusal(&to, &token).contains("expired"));
    show(&to, Presented::default()).unwrap_err();
    assert!(begun.has_ended());
}

#[test]
fn a_token_that_was_verified_is_not_believed_when_its_key_or_its_issuer_is_taken_away() {
    for (jwks, clients) in [
        (Some("two"), None),
        (None, Some(CLIENT.replace("batch", "other") + ISSUER_OF_FILE)),
        (None, Some(CLIENT.to_owned() + &ISSUER_OF_FILE.replace("\"relay\"", "\"elsewhere\""))),
        (None, Some(CLIENT.to_owned() + ISSUER_OF_FILE + "lifetime_max = \"10m\"\n")),
        (None, Some("[[client]]\nname = \"acme\"\nany = [[\"key\"]]\n".to_owned())),
    ] {
        let bench = Bench::new();
        let signer = Signer::new("one", Algorithm::ES256);
        let to = believing(&bench, &[&signer]);
        let token = signer.sign(&claims(bench.clock.now(), "batch"));
        let begun = bring(&to, &token).unwrap().credential;
        if let Some(id) = jwks {
            bench.write("jwks.json", &set(&[&Signer::new(id, Algorithm::ES256)]));
        }
        if let Some(text) = clients {
            bench.write("clients.toml", &text);
        }
        to.reload().unwrap();
        assert!(begun.has_ended());
        bring(&to, &token).unwrap_err();
    }
}

#[test]
fn a_worker_is_let_in_by_its_token_and_a_clients_token_is_none() {
    let bench = Bench::new();
    let signer = Signer::new("one", Algorithm::ES256);
    bench.write("jwks.json", &set(&[&signer]));
    let worker = CLIENT.replace("client", "worker").replace("acme", "gpu").replace("batch", "renderer");
    let to = bench.with_clients(&format!("{CLIENT}{worker}{ISSUER_OF_FILE}"));
    let ask = |subject: &str| {
        let token = signer.sign(&claims(bench.clock.now(), subject));
        authorize_worker(&to, &"gpu-1".parse().unwrap(), Some(&token))
    };
    assert_eq!(ask("renderer").unwrap().key, Some("gpu".parse().unwrap()));
    assert!(ask("batch").unwrap_err().to_string().contains("no worker is let in"));
}

#[test]
fn the_same_token_through_another_endpoint_lets_nobody_in() {
    let bench = Bench::new();
    let signer = Signer::new("one", Algorithm::ES256);
    bench.write("jwks.json", &set(&[&signer]));
    let client = CLIENT.replace("} }]]", "} }, { vpce = [\"vpce-0a1b2c3d\"] }]]");
    let to = bench.with_clients(&format!("{client}{ISSUER_OF_FILE}"));
    let bearer = format!("Bearer {}", signer.sign(&claims(bench.clock.now(), "batch")));
    let through =
        |endpoint| Presented { authorization: Some(&bearer), endpoint: Some(endpoint), ..Presented::default() };
    assert_eq!(show(&to, through("vpce-0a1b2c3d")).unwrap().client.as_str(), "acme");
    assert!(matches!(show(&to, through("vpce-ffffffff")).unwrap_err(), Refused::Forbidden(_)));
}

#[test]
fn after_a_hundred_wrong_signatures_a_source_waits_and_keys_and_known_tokens_of_it_do_not() {
    let bench = Bench::new();
    let (signer, attacker) = (Signer::new("one", Algorithm::ES256), Signer::new("one", Algorithm::ES256));
    let key = bench.create(Role::Client, "shop", None);
    let to = believing(&bench, &[&signer]);
    let claims = claims(bench.clock.now(), "batch");
    let (known, forged) = (signer.sign(&claims), attacker.sign(&claims));
    bring(&to, &known).unwrap();
    for _ in 0..100 {
        assert!(refusal(&to, &forged).contains("signature"));
    }
    let after = match bring(&to, &forged).unwrap_err() {
        Refused::TooMany { after, .. } => after,
        other => panic!("{other:?}"),
    };
    assert!(after <= Duration::from_millis(50), "{after:?}");
    let fresh = signer.sign(&claims);
    assert!(matches!(bring(&to, &fresh).unwrap_err(), Refused::TooMany { .. }), "it is not looked at");
    bring(&to, &known).unwrap();
    authenticate(&to, Some(&bearer(&key)), None).unwrap();
    for _ in 0..1_000 {
        assert!(refusal_of_key(&to).contains("does not know"));
    }
    let elsewhere = format!("Bearer {fresh}");
    let shown = Presented { authorization: Some(&elsewhere), endpoint: Some("vpce-0a1b2c3d"), ..Presented::default() };
    show(&to, shown).unwrap();
    bench.clock.advance(Duration::from_secs(1));
    bring(&to, &signer.sign(&with(&claims, "jti", json!(1)))).unwrap();
}

fn refusal_of_key(to: &Authenticator) -> String {
    authenticate(to, Some("Bearer nobody.nothing"), None).unwrap_err().to_string()
}
