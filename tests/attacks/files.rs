//! Another user of the same machine, who reads what is open, links what is written, and waits for a core.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::cli_support::{Running, code, relay, run, run_with, stderr, stdout};
use crate::support::{Attacked, new_key};

/// The command of [`relay`] as a shell starts it after `before`.
fn relay_after<S: AsRef<OsStr>>(before: &str, args: impl IntoIterator<Item = S>) -> Command {
    let whole = relay(args);
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{before}; exec \"$@\"")).arg("sh").arg(whole.get_program()).args(whole.get_args());
    for (name, value) in whole.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let piped = std::process::Stdio::piped;
    shell.stdin(std::process::Stdio::null()).stdout(piped()).stderr(piped());
    shell
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_store_and_its_backup_are_their_users_only_and_handlers_keep_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let args = ["dev", "--listen", "127.0.0.1:0", "--json", "--data", text(&data), "--", "sh", "-c", "umask"];
    let dev = Running::start_command(relay_after("umask 000", args));
    let done = run_with(["submit", "--wait", "--server", &dev.url()], b"hello");
    assert_eq!(stdout(&done).trim().trim_start_matches('0'), "", "the handler's umask is the operator's");
    let backup = dir.path().join("backup.db");
    let made = relay_after("umask 000", ["store", "backup", "--data", text(&data), text(&backup)]).output().unwrap();
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    assert_eq!(mode(&backup), 0o600, "the backup");
    assert_eq!(mode(&data), 0o700);
    let files: Vec<_> = fs::read_dir(&data).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() >= 4, "database, log, index of the log, lock, marker: {files:?}");
    for file in &files {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    dev.stop();
    let restored = dir.path().join("restored");
    let args = ["store", "restore", "--data", text(&restored), text(&backup)];
    let made = relay_after("umask 000", args).output().unwrap();
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    for file in fs::read_dir(&restored).unwrap().map(|file| file.unwrap().path()) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn a_backup_follows_no_link_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (data, elsewhere) = (dir.path().join("data"), dir.path().join("elsewhere"));
    Running::start(["dev", "--listen", "127.0.0.1:0", "--json", "--data", text(&data), "--", "cat"]).stop();
    let (backup, partial) = (dir.path().join("backup.db"), dir.path().join("backup.partial"));
    // The second name is the one that a backup has while it is written.
    for link in [&backup, &partial] {
        symlink(&elsewhere, link).unwrap();
        let refused = run(["store", "backup", "--data", text(&data), text(&backup)]);
        assert_eq!(code(&refused), 2, "{}: {}", link.display(), stderr(&refused));
        assert!(stderr(&refused).contains(text(link)), "{}", stderr(&refused));
        assert!(!elsewhere.exists(), "{} was followed", link.display());
        fs::remove_file(link).unwrap();
    }
    assert_eq!(code(&run(["store", "backup", "--data", text(&data), text(&backup)])), 0);
}

#[test]
fn files_that_others_can_read_are_named_at_the_start_with_what_to_do() {
    let (attacked, _) = Attacked::start(&["acme"], &["--queue", "mail"]);
    let Attacked { server, dir } = attacked;
    server.stop();
    let (keys, store) = (dir.path().join("keys.toml"), dir.path().join("data/relay.db"));
    set_mode(&keys, 0o644);
    set_mode(&store, 0o640);
    let Attacked { mut server, dir } = Attacked::start_in(dir, &[]);
    for file in [&keys, &store] {
        let line = server.wait_for_line("can be read");
        assert!(line.contains("WARN") && line.contains(text(file)) && line.contains("chmod"), "{line}");
    }
    server.stop();
    drop(dir);
}

#[test]
fn keys_that_others_can_write_are_taken_neither_at_the_start_nor_later() {
    let (attacked, _) = Attacked::start(&["acme"], &["--queue", "mail"]);
    let Attacked { mut server, dir } = attacked;
    let keys = dir.path().join("keys.toml");
    let own = fs::read_to_string(&keys).unwrap();
    // Of another user: a key of its own, in a file that it may write.
    let theirs = tempfile::tempdir().unwrap();
    let forged = new_key(theirs.path(), &["acme"]);
    set_mode(&keys, 0o666);
    fs::write(&keys, fs::read_to_string(theirs.path().join("keys.toml")).unwrap()).unwrap();
    let url = server.url();
    let asked = relay(["whoami", "--server", &url]).env("RELAY_API_KEY", &forged).output().unwrap();
    assert_ne!(code(&asked), 0, "{}", stdout(&asked));
    let line = server.wait_for_line("can't be read again");
    assert!(line.contains("chmod go-w") && line.contains(text(&keys)), "{line}");
    server.stop();
    fs::write(&keys, own).unwrap();
    let data = dir.path().join("data");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--keys", text(&keys), "--data", text(&data)];
    for writable in [0o620, 0o602] {
        set_mode(&keys, writable);
        let refused = run(serve);
        assert_eq!(code(&refused), 2, "{writable:o}: {}", stderr(&refused));
        assert!(stderr(&refused).contains("chmod go-w"), "{}", stderr(&refused));
    }
}

#[test]
fn a_key_is_revoked_in_the_file_that_the_server_reads_whatever_links_lead_there() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    let key = new_key(&real, &["acme"]);
    let (target, link) = (real.join("keys.toml"), dir.path().join("keys.toml"));
    symlink("real/keys.toml", &link).unwrap();
    let server = ["serve", "--json", "--memory", "--listen", "127.0.0.1:0", "--keys", text(&target), "--queue", "mail"];
    let server = Running::start(server);
    let url = server.url();
    let whoami = || code(&relay(["whoami", "--server", &url]).env("RELAY_API_KEY", &key).output().unwrap());
    assert_eq!(whoami(), 0);
    let id = key.split('_').nth(1).unwrap();
    let revoked = run(["keys", "revoke", id, "--file", text(&link)]);
    assert_eq!(code(&revoked), 0, "{}", stderr(&revoked));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink(), "the link is still one");
    assert!(!fs::read_to_string(&target).unwrap().contains(id), "the key is gone from the file that is read");
    // Any other id makes the server look at the file at once.
    let unknown = relay(["whoami", "--server", &url]).env("RELAY_API_KEY", "none.none").output().unwrap();
    assert_ne!(code(&unknown), 0);
    assert_ne!(whoami(), 0, "the revoked key is not taken");
    server.stop();
    fs::remove_file(&target).unwrap();
    let refused = run(["keys", "new", "acme", "--file", text(&link)]);
    assert_eq!(code(&refused), 2, "a link that leads nowhere: {}", stderr(&refused));
    assert!(!target.exists());
}

#[test]
fn a_key_file_is_not_taken_from_the_server_that_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let key = new_key(dir.path(), &["acme"]);
    let (keys, id) = (dir.path().join("keys.toml"), key.split('_').nth(1).unwrap());
    let revoke = ["keys", "revoke", id, "--file", text(&keys)];
    if fs::metadata(&keys).unwrap().uid() != 0 {
        // Nobody else can have a file given away; that its group keeps it is seen without that.
        set_mode(&keys, 0o640);
        assert_eq!(code(&run(revoke)), 0);
        return assert_eq!(mode(&keys), 0o640);
    }
    // The server is user 65533, and 65534 may write to its folder.
    chown(dir.path(), Some(65_534), None).unwrap();
    chown(&keys, Some(65_533), Some(65_533)).unwrap();
    set_mode(&keys, 0o644);
    let before = fs::read_to_string(&keys).unwrap();
    let refused = relay(revoke).uid(65_534).gid(65_534).current_dir("/").output().unwrap();
    assert_eq!(code(&refused), 2, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("belongs to user 65533") && stderr(&refused).contains("sudo -u '#65533'"));
    assert_eq!(fs::read_to_string(&keys).unwrap(), before, "nothing was changed");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the draft is gone");
    set_mode(&keys, 0o640);
    let revoked = run(revoke);
    assert_eq!(code(&revoked), 0, "root may: {}", stderr(&revoked));
    let found = fs::metadata(&keys).unwrap();
    assert_eq!((found.uid(), found.gid(), mode(&keys)), (65_533, 65_533, 0o640));
}

#[test]
fn a_new_key_goes_to_a_new_file_of_its_user_only() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, out) = (dir.path().join("keys.toml"), dir.path().join("acme.key"));
    let new = ["keys", "new", "acme", "--file", text(&keys), "--out", text(&out)];
    let made = relay_after("umask 000", new).output().unwrap();
    assert_eq!((code(&made), stdout(&made)), (0, ""), "{}", stderr(&made));
    assert_eq!(mode(&out), 0o600);
    let key = fs::read_to_string(&out).unwrap();
    let id = key.split('_').nth(1).unwrap();
    let next = dir.path().join("next.key");
    let rotated = run(["keys", "rotate", id, "--file", text(&keys), "--out", text(&next)]);
    assert_eq!((code(&rotated), stdout(&rotated)), (0, ""), "{}", stderr(&rotated));
    assert_eq!(mode(&next), 0o600);
    // Neither a file that is there nor a link, whose target another user chose, is written; and no key is made.
    let before = fs::read_to_string(&keys).unwrap();
    let (link, elsewhere) = (dir.path().join("link.key"), dir.path().join("elsewhere"));
    symlink(&elsewhere, &link).unwrap();
    for taken in [&out, &link] {
        let refused = run(["keys", "new", "acme", "--file", text(&keys), "--out", text(taken)]);
        assert_eq!(code(&refused), 2, "{}", stderr(&refused));
        assert!(stderr(&refused).contains(text(taken)), "{}", stderr(&refused));
    }
    assert!(!elsewhere.exists());
    assert_eq!(fs::read_to_string(&out).unwrap(), key);
    assert_eq!(fs::read_to_string(&keys).unwrap(), before);
    // Where no key is made, no file is left either.
    let unmade = dir.path().join("unmade.key");
    assert_ne!(code(&run(["keys", "rotate", "none", "--file", text(&keys), "--out", text(&unmade)])), 0);
    assert!(!unmade.exists());
}

#[test]
fn a_process_with_keys_leaves_no_core() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let handler = "ulimit -S -c; ulimit -H -c";
    let args = ["dev", "--listen", "127.0.0.1:0", "--json", "--data", text(&data), "--", "sh", "-c", handler];
    // As much as the system allows: where that is nothing, there is nothing to see.
    let dev = Running::start_command(relay_after("ulimit -S -c $(ulimit -H -c)", args));
    let limits = fs::read_to_string(format!("/proc/{}/limits", dev.id())).unwrap();
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(cores.split_whitespace().nth(4), Some("0"), "{cores}");
    let done = run_with(["submit", "--wait", "--server", &dev.url()], b"x");
    assert_eq!(stdout(&done).lines().next(), Some("0"), "handlers inherit it, and may raise it: {}", stdout(&done));
    dev.stop();
}
