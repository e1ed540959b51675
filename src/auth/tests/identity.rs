//! Lists of factors: the callers that they let in and keep out, and the sessions that end when they change.

use super::super::presented::{Certificate, CertificateName};
use super::signer::{ISSUER_OF_FILE, Signer, claims, set, show};
use super::*;

const ENDPOINT: &str = "vpce-0a1b2c3d";

fn certificate(name: &str) -> Certificate {
    Certificate { name: Ok(CertificateName::Uri(name.to_owned())), fingerprint: "0".repeat(16) }
}

fn is_forbidden(refused: Result<Caller, Refused>) -> String {
    match refused.unwrap_err() {
        Refused::Forbidden(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_factors_of_a_list_have_to_hold_and_none_of_them_lets_in_alone() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None);
    let to = bench.with_clients(
        "[[client]]\nname = \"acme\"\nany = [[\"key\", { mtls = \"spiffe://a.example/batch\" }, { vpce = [\"vpce-0a1b2c3d\"] }]]\n",
    );
    let (bearer, certificate) = (bearer(&key), certificate("spiffe://a.example/batch"));
    let all = Presented {
        authorization: Some(&bearer),
        certificate: Some(&certificate),
        endpoint: Some(ENDPOINT),
        ..Presented::default()
    };
    let caller = show(&to, all).unwrap();
    let methods: Vec<_> = caller.authenticated.iter().map(Authenticated::method).collect();
    assert_eq!((caller.client.as_str(), &methods[..]), ("acme", &["api-key", "certificate", "vpc-endpoint"][..]));
    assert_eq!(caller.method(), "several");
    let names = format!("{}, spiffe://a.example/batch, {ENDPOINT}", key.id());
    assert_eq!(caller.credential_names(), Some(names));
    is_forbidden(show(&to, Presented { certificate: None, ..all }));
    is_forbidden(show(&to, Presented { authorization: None, ..all }));
    assert!(is_forbidden(show(&to, Presented { endpoint: None, ..all })).contains("acme"));
    assert!(is_forbidden(show(&to, Presented { endpoint: Some("vpce-ffffffff"), ..all })).contains("vpce-ffffffff"));
    let alone = show(&to, Presented { endpoint: Some(ENDPOINT), ..Presented::default() });
    assert!(matches!(alone.unwrap_err(), Refused::Unauthenticated(_)), "an endpoint alone is nobody");
}

#[test]
fn once_a_client_has_a_block_its_keys_alone_let_in_no_more_and_those_of_other_clients_do() {
    let bench = Bench::new();
    let (listed, free) = (bench.create(Role::Client, "acme", None), bench.create(Role::Client, "shop", None));
    let to = bench
        .with_clients("[[client]]\nname = \"acme\"\nany = [[{ mtls = \"spiffe://a.example/batch\" }], [\"nats\"]]\n");
    is_forbidden(authenticate(&to, Some(&bearer(&listed)), None));
    assert_eq!(authenticate(&to, Some(&bearer(&free)), None).unwrap().client.as_str(), "shop");
    let certificate = certificate("spiffe://a.example/batch");
    let shown = Presented { certificate: Some(&certificate), ..Presented::default() };
    assert_eq!(show(&to, shown).unwrap().client.as_str(), "acme");
    assert!(to.lets_in_over_nats(&"acme".parse().unwrap()) && to.lets_in_over_nats(&"shop".parse().unwrap()));
    let to = bench.with_clients("[[client]]\nname = \"acme\"\nany = [[\"key\"]]\n");
    assert!(!to.lets_in_over_nats(&"acme".parse().unwrap()) && to.lets_in_over_nats(&"shop".parse().unwrap()));
    assert!(Authenticator::development().lets_in_over_nats(&"acme".parse().unwrap()));
}

#[test]
fn credentials_of_two_clients_at_once_let_in_neither() {
    let bench = Bench::new();
    let (key, free) = (bench.create(Role::Client, "acme", None), bench.create(Role::Client, "shop", None));
    let to = bench.with_clients(
        "[[client]]\nname = \"acme\"\nany = [[\"key\"]]\n[[client]]\nname = \"other\"\nany = [[{ mtls = \"spiffe://o.example/x\" }]]\n",
    );
    let certificate = certificate("spiffe://o.example/x");
    for key in [&key, &free] {
        let bearer = bearer(key);
        let both = Presented { authorization: Some(&bearer), certificate: Some(&certificate), ..Presented::default() };
        assert!(is_forbidden(show(&to, both)).contains("other"));
        show(&to, Presented { certificate: None, ..both }).unwrap();
        show(&to, Presented { authorization: None, ..both }).unwrap();
    }
}

#[test]
fn a_certificate_that_names_nobody_and_a_wrong_key_let_in_nobody_whatever_comes_with_them() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None);
    let to = bench
        .with_clients("[[client]]\nname = \"acme\"\nany = [[\"key\"], [{ mtls = \"spiffe://a.example/batch\" }]]\n");
    let nobody = Certificate { name: Err("it has two names".to_owned()), fingerprint: "0".repeat(16) };
    let bearer = bearer(&key);
    let shown = Presented { authorization: Some(&bearer), certificate: Some(&nobody), ..Presented::default() };
    assert!(is_forbidden(show(&to, shown)).contains("two names"));
    let good = certificate("spiffe://a.example/batch");
    let shown = Presented { authorization: Some("Bearer nobody.nothing"), certificate: Some(&good), ..shown };
    assert!(matches!(show(&to, shown).unwrap_err(), Refused::Unauthenticated(_)));
}

#[test]
fn a_list_with_a_key_grants_no_more_than_both_its_block_and_the_key_do() {
    let bench = Bench::new();
    let queues = ["mail", "thumbs"].map(|queue| queue.parse().unwrap());
    let key = bench.create(Role::Client, "acme", Some(queues.to_vec()));
    let to = bench.with_clients(
        "[[client]]\nname = \"acme\"\nany = [[\"key\"]]\nqueues = [\"mail\", \"other\"]\nrights = [\"submit\", \"read\"]\n",
    );
    let caller = authenticate(&to, Some(&bearer(&key)), None).unwrap();
    assert_eq!(caller.queues, Some(vec!["mail".parse().unwrap()]));
    assert_eq!(Right::ALL.map(|right| caller.may(right)), [true, true, false]);
    let other = bench.with_clients(&format!("[[client]]\nname = \"acme\"\nany = [[{{ key = \"{}\" }}]]\n", key.id()));
    authenticate(&other, Some(&bearer(&key)), None).unwrap();
    let second = bench.create(Role::Client, "acme", None);
    is_forbidden(authenticate(&other, Some(&bearer(&second)), None));
}

#[test]
fn a_worker_is_let_in_by_its_lists_with_its_queues_and_a_client_is_none() {
    let bench = Bench::new();
    let key = bench.create(Role::Worker, "gpu", None);
    let to = bench.with_clients(
        "[[client]]\nname = \"acme\"\nany = [[{ mtls = \"spiffe://a.example/c\" }]]\n[[worker]]\nname = \"gpu\"\nany = [[\"key\", \
         { mtls = \"spiffe://a.example/gpu\" }]]\nqueues = [\"render\"]\n",
    );
    let id: WorkerId = "gpu-1".parse().unwrap();
    let ask = |key: Option<&str>, certificate: Option<&Certificate>| {
        let presented = Presented { certificate, ..Presented::default() };
        to.authorize_worker(&id, key, presented).now_or_never().unwrap()
    };
    let (good, client) = (certificate("spiffe://a.example/gpu"), certificate("spiffe://a.example/c"));
    let rights = ask(Some(&key.to_string()), Some(&good)).unwrap();
    assert_eq!((rights.key, rights.queues), (Some("gpu".parse().unwrap()), Some(vec!["render".parse().unwrap()])));
    for (key, certificate) in [(Some(key.to_string()), None), (None, Some(&good)), (None, Some(&client))] {
        ask(key.as_deref(), certificate).unwrap_err();
    }
}

#[test]
fn a_change_of_the_lists_ends_what_was_begun_by_them_and_nothing_else() {
    let block = |lists: &str, more: &str| format!("[[client]]\nname = \"acme\"\nany = {lists}\n{more}");
    let lists = "[[\"key\", { vpce = [\"vpce-0a1b2c3d\", \"vpce-11111111\"] }]]";
    let queues = "queues = [\"mail\", \"thumbs\"]\n";
    for (text, ends) in [
        (block("[[\"key\", { vpce = [\"vpce-11111111\"] }]]", queues), true),
        (block("[[\"key\", { mtls = \"spiffe://a.example/batch\" }]]", queues), true),
        (block(lists, "queues = [\"mail\"]\n"), true),
        (block(lists, "queues = [\"mail\", \"thumbs\"]\nrights = [\"submit\"]\n"), true),
        (block(lists, queues).replace("acme", "other"), false),
        (String::new(), false),
        (block(lists, ""), false),
        (block(lists, "queues = [\"mail\", \"thumbs\", \"more\"]\n"), false),
        (block("[[\"key\", { vpce = [\"vpce-0a1b2c3d\"] }]]", queues), false),
        (block("[[\"key\"]]", queues), false),
        (block(lists, "queues = 3\n"), false),
    ] {
        let bench = Bench::new();
        let key = bench.create(Role::Client, "acme", Some(vec!["mail".parse().unwrap(), "thumbs".parse().unwrap()]));
        let to = bench.with_clients(&block(lists, queues));
        let bearer = bearer(&key);
        let shown = Presented { authorization: Some(&bearer), endpoint: Some(ENDPOINT), ..Presented::default() };
        let begun = show(&to, shown).unwrap().credential;
        bench.write("clients.toml", &text);
        bench.clock.advance(Duration::from_secs(1));
        show(&to, Presented::default()).unwrap_err();
        assert_eq!(begun.has_ended(), ends, "{text}");
        assert!(ends || show(&to, shown).is_ok(), "{text}");
    }
}

#[test]
fn a_revoked_or_expired_key_ends_what_was_begun_with_a_list_that_has_it() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None);
    let to = bench.with_clients("[[client]]\nname = \"acme\"\nany = [[\"key\"]]\n");
    let begun = authenticate(&to, Some(&bearer(&key)), None).unwrap().credential;
    assert!(!begun.has_ended());
    bench.file.revoke(key.id()).unwrap();
    bench.clock.advance(Duration::from_secs(1));
    show(&to, Presented::default()).unwrap_err();
    assert!(begun.has_ended());
}

#[test]
fn keys_clients_and_the_keys_of_issuers_are_taken_together_or_not_at_all() {
    let bench = Bench::new();
    let (signer, successor) =
        (Signer::new("one", jsonwebtoken::Algorithm::ES256), Signer::new("two", jsonwebtoken::Algorithm::ES256));
    bench.write("jwks.json", &set(&[&signer]));
    bench.create(Role::Client, "other", None);
    let client = "[[client]]\nname = \"acme\"\nany = [[{ jwt = { issuer = \"https://issuer.example\", subject = \"batch\" } }]]\n";
    let to = bench.with_clients(&format!("{client}{ISSUER_OF_FILE}"));
    let new = bench.create(Role::Client, "late", None);
    bench.write("jwks.json", &set(&[&successor]));
    bench.write("clients.toml", &format!("{client}{ISSUER_OF_FILE}oops"));
    bench.clock.advance(Duration::from_secs(1));
    let token = |by: &Signer| format!("Bearer {}", by.sign(&claims(bench.clock.now(), "batch")));
    assert_eq!(authenticate(&to, Some(&token(&signer)), None).unwrap().client.as_str(), "acme");
    authenticate(&to, Some(&token(&successor)), None).unwrap_err();
    authenticate(&to, Some(&bearer(&new)), None).unwrap_err();
    assert!(!to.is_up_to_date());
    let mistakes = to.reload().unwrap_err();
    assert!(mistakes[0].to_string().contains("clients.toml:9"), "{}", mistakes[0]);
    bench.write("clients.toml", &format!("{client}{ISSUER_OF_FILE}"));
    to.reload().unwrap();
    assert!(to.is_up_to_date());
    authenticate(&to, Some(&token(&signer)), None).unwrap_err();
    authenticate(&to, Some(&token(&successor)), None).unwrap();
    authenticate(&to, Some(&bearer(&new)), None).unwrap();
}

#[test]
fn links_that_are_swapped_as_kubernetes_does_are_followed() {
    let bench = Bench::new();
    let root = bench.directory.path();
    let version = |name: &str, queue: &str| {
        std::fs::create_dir(root.join(name)).unwrap();
        let text = format!(
            "[[client]]\nname = \"acme\"\nany = [[{{ mtls = \"spiffe://a.example/x\" }}]]\nqueues = [\"{queue}\"]\n"
        );
        std::fs::write(root.join(name).join("clients.toml"), text).unwrap();
    };
    let link = |to: &str, name: &str| {
        std::os::unix::fs::symlink(to, root.join("new")).unwrap();
        std::fs::rename(root.join("new"), root.join(name)).unwrap();
    };
    version("..1", "mail");
    link("..1", "..data");
    link("..data/clients.toml", "clients.toml");
    let to = bench.open().unwrap();
    let certificate = certificate("spiffe://a.example/x");
    let shown = Presented { certificate: Some(&certificate), ..Presented::default() };
    let first = show(&to, shown).unwrap();
    assert_eq!(first.queues, Some(vec!["mail".parse().unwrap()]));
    version("..2", "thumbs");
    link("..2", "..data");
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!(show(&to, shown).unwrap().queues, Some(vec!["thumbs".parse().unwrap()]));
    assert!(first.credential.has_ended());
}

#[test]
fn every_mistake_is_told_at_once_with_its_line_and_what_to_write() {
    let bench = Bench::new();
    let block = |list: &str| format!("[[client]]\nname = \"acme\"\nany = {list}\n");
    let issuer = "[[issuer]]\nurl = \"https://i.example\"\naudience = \"relay\"\n";
    for (text, expected) in [
        (block("[[{ vpce = [\"vpce-0a1b2c3d\"] }]]"), &["3: a VPC endpoint alone"][..]),
        (
            block("[[\"key\", { jwt = { issuer = \"https://i.example\", subject = \"s\" } }]]"),
            &["3: a request can't bring a key and a token"],
        ),
        (block("[[\"nats\", \"key\"]]"), &["3: nothing but NATS"]),
        (block("[[\"nats\"]]").replace("client", "worker"), &["3: no worker comes over NATS"]),
        (block("[[\"keys\"]]"), &["3: this is no factor"]),
        (block("[[\"key\", \"key\"]]"), &["3: a list has each kind"]),
        (block("[\"key\"]"), &["3: each entry of `any` is a list"]),
        (block("[]"), &["3: `any` has 1 to 100 lists"]),
        (block("[[\"key\", { vpce = [\"vpce-XYZ\"] }]]"), &["3: `vpce-XYZ` is no VPC endpoint"]),
        (block("[[{ mtls = \"*.a.example\" }]]"), &["3: `*.a.example` is no name of a certificate"]),
        (block("[[{ mtls = \"dns:*.a.example\" }]]"), &["3: `dns:*.a.example` is no name"]),
        (block("[[{ jwt = { issuer = \"https://j.example\", subject = \"s\" } }]]"), &["1: acme names the issuer"]),
        (block("[[\"key\"]]") + &block("[[\"key\"]]"), &["4: client acme is on line 1 already"]),
        (
            block("[[{ mtls = \"dns:a.example\" }]]")
                + &block("[[{ mtls = \"dns:a.example\" }]]").replace("acme", "shop"),
            &["4: shop has a list that acme has on line 1 too"],
        ),
        (
            block("[[\"key\"]]") + "queue = [\"mail\"]\nshare = 101\nrights = [\"write\"]\n",
            &["4: client has no `queue`", "5: a share", "6: this names a right"],
        ),
        (format!("{issuer}algorithms = [\"HS256\"]\nfile = \"j\"\n"), &["4: this names an algorithm"]),
        (format!("{issuer}algorithms = [\"none\"]\nfile = \"j\"\n"), &["4: this names an algorithm"]),
        (format!("{issuer}algorithms = [\"ES256\"]\n"), &["1: issuer has one of `file` and `jwks_url`"]),
        (
            format!("{issuer}algorithms = [\"ES256\"]\njwks_url = \"http://i.example\"\n"),
            &["5: `http://i.example` is no address of https"],
        ),
        (
            format!("{issuer}algorithms = [\"ES256\"]\nfile = \"j\"\nlifetime_max = \"25h\"\n"),
            &["6: a token of relay lives for 24h"],
        ),
        (format!("{issuer}algorithms = [\"ES256\"]\nfile = \"nowhere.json\"\n"), &["nowhere.json: it can't be read"]),
        ("[client]\nname = 3\n".to_owned(), &["1: `client` is a list of tables"]),
        ("[[clients]]\n".to_owned(), &["1: there is no table `clients`"]),
    ] {
        bench.write("clients.toml", &text);
        let mistakes = bench.open().unwrap_err();
        let told = mistakes.to_string();
        assert_eq!(mistakes.0.len(), expected.len(), "{told}");
        for (mistake, expected) in mistakes.0.iter().zip(expected) {
            assert!(told.contains(expected) && !mistake.fix.is_empty(), "{expected}: {told}");
        }
    }
}

#[test]
fn a_file_that_others_can_write_is_not_taken() {
    let bench = Bench::new();
    bench.write("clients.toml", "[[client]]\nname = \"acme\"\nany = [[{ mtls = \"dns:a.example\" }]]\n");
    let path = bench.directory.path().join("clients.toml");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o664)).unwrap();
    assert!(bench.open().unwrap_err().to_string().contains("chmod go-w"));
}
