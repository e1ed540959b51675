//! Keys are made, found, refused and revoked; all on a real file, with time moved by hand.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use futures_util::FutureExt;
use relay_bridge::contract::Timestamp;

use super::keys::{InvalidKey, Key, KeyFile};
use super::*;

mod identity;
mod issuers;
mod signer;
mod tokens;

fn bearer(key: &Key) -> String {
    format!("Bearer {key}")
}

/// An answer that is there at once needs no runtime.
fn authenticate(to: &Authenticator, authorization: Option<&str>, named: Option<&str>) -> Result<Caller, Refused> {
    let asked = to.authenticate(Presented { authorization, named, ..Presented::default() });
    asked.now_or_never().expect("nobody else has to be asked")
}

fn authorize_worker(to: &Authenticator, worker: &WorkerId, key: Option<&str>) -> Result<WorkerRights, Refused> {
    to.authorize_worker(worker, key, Presented::default()).now_or_never().expect("nobody else has to be asked")
}

struct Bench {
    directory: tempfile::TempDir,
    file: KeyFile,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = KeyFile::new(directory.path().join("keys.toml"));
        Self { directory, file, clock: Clock::manual(Timestamp::from_millis(1_763_865_086_007)) }
    }

    fn create(&self, role: Role, name: &str, queues: Option<Vec<QueueName>>) -> Key {
        self.file.create(role, name.parse().unwrap(), queues, self.clock.now()).unwrap()
    }

    fn authenticator(&self) -> Authenticator {
        Authenticator::keys(self.file.path().to_owned(), self.clock.clone()).unwrap()
    }
}

#[test]
fn a_client_is_known_by_its_key_and_only_by_the_whole_of_it() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", Some(vec!["mail".parse().unwrap()]));
    let authenticator = bench.authenticator();
    let caller = authenticate(&authenticator, Some(&bearer(&key)), Some("other")).unwrap();
    assert_eq!(caller.client.as_str(), "acme");
    assert_eq!(caller.authenticated, [Authenticated::ApiKey(key.id().to_owned())]);
    assert!(caller.may_use(&"mail".parse().unwrap()) && !caller.may_use(&"thumbs".parse().unwrap()));
    let other = bench.create(Role::Client, "acme", None);
    let mixed = other.to_string().replace(other.id(), key.id());
    for header in [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer x"),
        Some("Basic eDp5"),
        Some(&*format!("Bearer {mixed}")),
        Some(&*format!("Bearer {key}x")),
        Some("Bearer nobody.nothing"),
    ] {
        let refused = authenticate(&authenticator, header, None).unwrap_err();
        assert!(matches!(refused, Refused::Unauthenticated(_)), "{header:?}");
    }
}

#[test]
fn a_new_key_has_a_form_that_scanners_find_and_one_of_before_is_still_read() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None).to_string();
    let letters = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let (id, rest) = key.strip_prefix("rlyk_").and_then(|rest| rest.split_once('_')).unwrap();
    assert!(letters(id, 12) && letters(rest, 49), "{key}");
    // By zlib the CRC32 is 0x73629afa.
    let known = format!("rlyk_0123456789ab_{}", "A".repeat(43));
    assert_eq!(format!("{known}270awk").parse::<Key>().unwrap().to_string(), format!("{known}270awk"));
    assert_eq!(format!("{known}000000").parse::<Key>().unwrap_err(), InvalidKey::Checksum);
    // 32 random bytes in base64url, as `relay keys` made them.
    let old = "3f9a0c11d2e4.c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I";
    let digest = sha256_hex(old.split_once('.').unwrap().1);
    let entry = format!(
        "[[key]]\nid = \"3f9a0c11d2e4\"\nsha256 = \"{digest}\"\nrole = \"client\"\nname = \"old\"\ncreated = \
         \"2025-01-01T00:00:00.000Z\"\n"
    );
    std::fs::write(bench.file.path(), entry).unwrap();
    let caller = authenticate(&bench.authenticator(), Some(&format!("Bearer {old}")), None).unwrap();
    assert_eq!(caller.client.as_str(), "old");
}

#[test]
fn a_key_that_lost_a_letter_is_told_so_before_it_is_looked_up() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None);
    let authenticator = bench.authenticator();
    let text = key.to_string();
    for at in 0..text.len() {
        let swapped = if &text[at..=at] == "x" { "y" } else { "x" };
        let wrong = format!("{}{swapped}{}", &text[..at], &text[at + 1..]);
        authenticate(&authenticator, Some(&format!("Bearer {wrong}")), None).unwrap_err();
        if at > 18 {
            let refused = authenticate(&authenticator, Some(&format!("Bearer {wrong}")), None).unwrap_err();
            assert!(refused.to_string().contains("checksum"), "{at}: {refused}");
        }
    }
    let cut = authenticate(&authenticator, Some(&format!("Bearer {}", &text[..40])), None).unwrap_err();
    assert!(cut.to_string().contains("not copied as a whole"), "{cut}");
}

fn sha256_hex(text: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_worker_key_and_a_client_key_are_not_good_for_each_other() {
    let bench = Bench::new();
    let client = bench.create(Role::Client, "acme", None);
    let worker = bench.create(Role::Worker, "gpu", Some(vec!["mail".parse().unwrap()]));
    let authenticator = bench.authenticator();
    let refused = authenticate(&authenticator, Some(&bearer(&worker)), None).unwrap_err();
    assert!(matches!(refused, Refused::Forbidden(_)));
    let id: WorkerId = "gpu-1".parse().unwrap();
    let rights = authorize_worker(&authenticator, &id, Some(&worker.to_string())).unwrap();
    let (key, queues) = (Some("gpu".parse().unwrap()), Some(vec!["mail".parse().unwrap()]));
    assert_eq!((rights.key, rights.queues), (key, queues));
    assert!(
        authorize_worker(&authenticator, &id, Some(&client.to_string())).unwrap_err().to_string().contains("client's")
    );
    assert!(authorize_worker(&authenticator, &id, None).unwrap_err().to_string().contains("no key"));
}

#[test]
fn a_new_key_works_at_once_and_a_revoked_one_ends_within_a_second() {
    let bench = Bench::new();
    let first = bench.create(Role::Client, "acme", None);
    let authenticator = bench.authenticator();
    let second = bench.create(Role::Client, "acme", None);
    authenticate(&authenticator, Some(&bearer(&second)), None).unwrap();
    assert!(bench.file.revoke(first.id()).unwrap());
    assert!(!bench.file.revoke(first.id()).unwrap());
    bench.clock.advance(std::time::Duration::from_secs(1));
    authenticate(&authenticator, Some(&bearer(&first)), None).unwrap_err();
    authenticate(&authenticator, Some(&bearer(&second)), None).unwrap();
}

#[test]
fn the_file_holds_no_secret_and_nobody_else_reads_it() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None);
    let secret = key.to_string().rsplit_once('_').unwrap().1[..43].to_owned();
    let text = std::fs::read_to_string(bench.file.path()).unwrap();
    assert!(text.contains(key.id()) && !text.contains(&secret));
    let mode = std::fs::metadata(bench.file.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let files = std::fs::read_dir(bench.directory.path()).unwrap().count();
    assert_eq!(files, 1, "nothing is left beside it");
    assert!(!format!("{key:?} {:?}", bench.file.list().unwrap()).contains(&secret));
}

#[test]
fn a_damaged_file_is_named_with_its_line_and_leaves_the_keys_as_they_were() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None);
    let authenticator = bench.authenticator();
    let good = std::fs::read_to_string(bench.file.path()).unwrap();
    for (damage, line) in [
        (good.replace("role = \"client\"", "role = \"admin\""), 6),
        (good.replace("name = \"acme\"", "name = \"ACME\""), 7),
        (good.replace("sha256 = \"", "sha256 = \"zz"), 5),
        (good.replace("created", "creatd"), 3),
    ] {
        std::fs::write(bench.file.path(), &damage).unwrap();
        let error = bench.file.list().unwrap_err().to_string();
        assert!(error.contains("keys.toml:"), "{error}");
        // An error about an entry as a whole points at its head, one about a value at the value.
        let found: usize = error.split(':').nth(1).unwrap().parse().unwrap();
        assert!(found.abs_diff(line) <= 5 && found >= 3, "{error}");
        bench.clock.advance(std::time::Duration::from_secs(2));
        authenticate(&authenticator, Some(&bearer(&key)), None).unwrap();
        assert!(bench.file.revoke(key.id()).is_err(), "a damaged file is not overwritten");
    }
    let twice = format!("{good}\n{}", good.split_once("\n\n").unwrap().1);
    std::fs::write(bench.file.path(), twice).unwrap();
    assert!(bench.file.list().unwrap_err().to_string().contains("twice"));
    std::fs::write(bench.file.path(), vec![b'#'; 1024 * 1024 + 1]).unwrap();
    assert!(bench.file.list().unwrap_err().to_string().contains("larger"));
}

#[test]
fn strangers_do_not_make_a_file_that_can_not_be_taken_be_read_more_often_than_once_a_second() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None);
    let authenticator = bench.authenticator();
    let stranger = format!("Bearer {}", Key::random().unwrap());
    let good = std::fs::read_to_string(bench.file.path()).unwrap();
    for damage in [Some(good.replace("created", "creatd")), None] {
        match damage {
            Some(text) => std::fs::write(bench.file.path(), text).unwrap(),
            None => std::fs::remove_file(bench.file.path()).unwrap(),
        }
        authenticate(&authenticator, Some(&stranger), None).unwrap_err();
        assert!(!authenticator.is_up_to_date(), "the operator is told");
        std::fs::write(bench.file.path(), &good).unwrap();
        std::fs::set_permissions(bench.file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let next = bench.create(Role::Client, "acme", None);
        authenticate(&authenticator, Some(&bearer(&next)), None).unwrap_err();
        assert!(!authenticator.is_up_to_date(), "it was not read again");
        bench.clock.advance(std::time::Duration::from_secs(1));
        authenticate(&authenticator, Some(&bearer(&next)), None).unwrap();
        authenticate(&authenticator, Some(&bearer(&key)), None).unwrap();
        assert!(authenticator.is_up_to_date());
    }
}

#[test]
fn a_file_that_is_not_there_is_an_error_that_names_it() {
    let bench = Bench::new();
    let error = Authenticator::keys(bench.file.path().to_owned(), bench.clock.clone()).unwrap_err();
    assert!(error.to_string().contains("keys.toml"), "{error}");
}

#[test]
fn development_takes_the_callers_word() {
    let authenticator = Authenticator::development();
    assert_eq!(authenticate(&authenticator, None, None).unwrap().client.as_str(), "dev");
    assert_eq!(authenticate(&authenticator, None, Some("acme")).unwrap().client.as_str(), "acme");
    assert!(matches!(authenticate(&authenticator, None, Some("A B")).unwrap_err(), Refused::Malformed(_)));
}

#[test]
fn a_rotated_key_and_its_successor_both_work_until_the_old_one_expires() {
    let bench = Bench::new();
    let old = bench.create(Role::Client, "acme", Some(vec!["mail".parse().unwrap()]));
    let authenticator = bench.authenticator();
    let now = bench.clock.now();
    let hour = std::time::Duration::from_secs(3_600);
    let new = bench.file.rotate(old.id(), now, now + hour).unwrap().unwrap();
    bench.clock.advance(std::time::Duration::from_secs(2));
    let callers = [&old, &new].map(|key| authenticate(&authenticator, Some(&bearer(key)), None).unwrap());
    assert_eq!(callers[0].client, callers[1].client);
    assert_eq!(callers[0].queues, callers[1].queues);
    bench.clock.advance(hour);
    assert!(authenticate(&authenticator, Some(&bearer(&old)), None).is_err());
    assert!(authenticate(&authenticator, Some(&bearer(&new)), None).is_ok());
    let later = bench.clock.now() + hour;
    assert!(bench.file.rotate(old.id(), bench.clock.now(), later).unwrap().is_none(), "it has expired");
    assert!(bench.file.rotate("nobody", bench.clock.now(), later).unwrap().is_none());
}

/// Lets `key` in, as a client or a worker, and gives the handle on its credential.
fn begun(authenticator: &Authenticator, key: &Key) -> Credential {
    authenticate(authenticator, Some(&bearer(key)), None).unwrap().credential
}

/// Replaces a text of the key file, and lets the second pass after which that is seen.
fn edit(bench: &Bench, authenticator: &Authenticator, from: &str, to: &str) {
    let text = std::fs::read_to_string(bench.file.path()).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(bench.file.path(), text.replace(from, to)).unwrap();
    bench.clock.advance(std::time::Duration::from_secs(1));
    authenticate(authenticator, None, None).unwrap_err();
    authenticate(authenticator, Some("Bearer nobody.nothing"), None).unwrap_err();
}

#[test]
fn a_change_that_takes_something_away_ends_what_was_begun_and_no_other_does() {
    for (from, to, ends) in [
        ("queues = [\"mail\", \"thumbs\"]", "queues = [\"mail\"]", true),
        ("queues = [\"mail\", \"thumbs\"]", "queues = []", true),
        ("role = \"client\"", "role = \"client\"\nrights = [\"submit\", \"manage\"]", true),
        ("name = \"acme\"", "name = \"other\"", true),
        ("role = \"client\"", "role = \"worker\"", true),
        ("expires = \"2100-01-01T00:00:00.000Z\"", "expires = \"2000-01-01T00:00:00.000Z\"", true),
        ("expires = \"2100-01-01T00:00:00.000Z\"", "expires = \"2090-01-01T00:00:00.000Z\"", false),
        ("expires = \"2100-01-01T00:00:00.000Z\"", "", false),
        ("queues = [\"mail\", \"thumbs\"]", "queues = [\"thumbs\", \"mail\", \"more\"]", false),
        ("queues = [\"mail\", \"thumbs\"]", "", false),
        ("role = \"client\"", "role = \"client\"\nrights = [\"manage\", \"read\", \"submit\"]", false),
        ("role = \"client\"", "# a comment\nrole = \"client\"", false),
        ("role = \"client\"", "role = \"nobody's\"", false),
    ] {
        let bench = Bench::new();
        let key = bench.create(Role::Client, "acme", Some(vec!["mail".parse().unwrap(), "thumbs".parse().unwrap()]));
        let text = std::fs::read_to_string(bench.file.path()).unwrap();
        std::fs::write(bench.file.path(), text + "expires = \"2100-01-01T00:00:00.000Z\"\n").unwrap();
        let authenticator = bench.authenticator();
        let credential = begun(&authenticator, &key);
        edit(&bench, &authenticator, from, to);
        assert_eq!(credential.has_ended(), ends, "{from} -> {to}");
    }
}

#[test]
fn another_secret_under_a_keys_id_ends_what_was_begun_with_the_old_one() {
    let bench = Bench::new();
    let (key, other) = (bench.create(Role::Client, "acme", None), bench.create(Role::Client, "acme", None));
    let [old, new] = [&key, &other].map(|key| serde_json::to_string(&key.digest()).unwrap());
    let authenticator = bench.authenticator();
    let credential = begun(&authenticator, &key);
    edit(&bench, &authenticator, &old, &new);
    assert!(credential.has_ended());
}

#[test]
fn a_key_that_was_revoked_and_put_back_begins_anew() {
    let bench = Bench::new();
    let key = bench.create(Role::Client, "acme", None);
    let authenticator = bench.authenticator();
    let credential = begun(&authenticator, &key);
    let entry = std::fs::read_to_string(bench.file.path()).unwrap();
    edit(&bench, &authenticator, &entry, "");
    assert!(credential.has_ended());
    std::fs::write(bench.file.path(), entry).unwrap();
    let again = begun(&authenticator, &key);
    assert!(credential.has_ended() && !again.has_ended());
}

#[tokio::test]
async fn a_credential_ends_while_nobody_calls_by_the_file_and_by_the_clock() {
    let bench = Bench::new();
    let (revoked, expiring) = (bench.create(Role::Worker, "gpu", None), bench.create(Role::Client, "acme", None));
    let second = std::time::Duration::from_secs(1);
    bench.file.rotate(expiring.id(), bench.clock.now(), bench.clock.now() + second * 5).unwrap().unwrap();
    let authenticator = bench.authenticator();
    let worker = authorize_worker(&authenticator, &"gpu-1".parse().unwrap(), Some(&revoked.to_string())).unwrap();
    let client = begun(&authenticator, &expiring);
    let all = async {
        tokio::task::yield_now().await;
        assert!(bench.file.revoke(revoked.id()).unwrap());
        bench.clock.advance(second);
        worker.credential.ended().await;
        assert!(!client.has_ended());
        bench.clock.advance(second * 4);
        client.ended().await;
    };
    tokio::select! {
        () = authenticator.watch() => {}
        () = all => {}
    }
    assert!(authenticate(&authenticator, Some(&bearer(&expiring)), None).is_err());
}

#[test]
fn a_key_has_the_rights_that_the_file_names_and_all_where_it_names_none() {
    let bench = Bench::new();
    let rights = Rights::of(&[Right::Read, Right::Submit]).unwrap();
    let (name, now) = ("acme".parse().unwrap(), bench.clock.now());
    let held = bench.file.create_with(Role::Client, name, None, rights, now).unwrap();
    let free = bench.create(Role::Client, "acme", None);
    let text = std::fs::read_to_string(bench.file.path()).unwrap();
    assert_eq!(text.matches("rights = [\"submit\", \"read\"]").count(), 1, "{text}");
    let authenticator = bench.authenticator();
    let may = |key| {
        let caller = authenticate(&authenticator, Some(&bearer(key)), None).unwrap();
        Right::ALL.map(|right| caller.may(right))
    };
    assert_eq!((may(&held), may(&free)), ([true, true, false], [true; 3]));
    let now = bench.clock.now();
    let successor = bench.file.rotate(held.id(), now, now).unwrap().unwrap();
    assert_eq!(may(&successor), [true, true, false], "a successor may do the same");
    for (wrong, why) in [("[]", "names none"), ("[\"write\"]", "`write`"), ("\"read\"", "expected")] {
        std::fs::write(bench.file.path(), text.replace("[\"submit\", \"read\"]", wrong)).unwrap();
        let error = bench.file.list().unwrap_err().to_string();
        assert!(error.contains("keys.toml:") && error.contains(why), "{error}");
    }
    std::fs::write(bench.file.path(), text.replace("role = \"client\"", "role = \"worker\"")).unwrap();
    assert!(bench.file.list().unwrap_err().to_string().contains("a worker's"));
    let refused = bench.file.create_with(Role::Worker, "gpu".parse().unwrap(), None, rights, now).unwrap_err();
    assert!(refused.to_string().contains("queues only"));
}
