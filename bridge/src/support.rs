//! Small things that all of relay shares.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks what no panic can leave half done: nothing of ours panics while it holds a lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `text` with the password of each URL in it as `***`, for logs and for people: `http://u:***@host`. A user without a password may
/// be a token, as NATS has them, and goes as well.
#[must_use]
pub fn without_passwords(text: &str) -> Cow<'_, str> {
    const SCHEME_END: &str = "://";
    let mut masked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(SCHEME_END) {
        let (before, after) = rest.split_at(at + SCHEME_END.len());
        masked.push_str(before);
        rest = after;
        if let Some(end) = credentials_end(after) {
            let (credentials, host) = after.split_at(end);
            if let Some((user, _)) = credentials.split_once(':') {
                masked.push_str(user);
                masked.push(':');
            }
            masked.push_str("***");
            rest = host;
        }
    }
    if masked.is_empty() {
        return Cow::Borrowed(text);
    }
    masked.push_str(rest);
    Cow::Owned(masked)
}

/// Where the credentials of a URL end, if it has any. The URL is given from behind its scheme on.
fn credentials_end(rest: &str) -> Option<usize> {
    let word = rest.split(|c: char| c.is_whitespace() || c.is_control() || ",\"'`<>".contains(c)).next()?;
    let authority = word.split(['/', '?', '#']).next()?;
    if let Some(at) = authority.rfind('@') {
        return Some(at);
    }
    // A password with a character that had to be escaped: the URL can't be read, and is shown in the error that says so.
    let (_, port) = authority.rsplit_once(':')?;
    if port.bytes().all(|byte| byte.is_ascii_digit()) { None } else { word.rfind('@') }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_url_is_masked_wherever_it_stands() {
        for (text, masked) in [
            ("traces go to http://u:hush@host:4318/v1", "traces go to http://u:***@host:4318/v1"),
            ("nats://relay:hush@a:4222,nats://b,tls://token@c", "nats://relay:***@a:4222,nats://b,tls://***@c"),
            ("`http://u:a@b:c@host`", "`http://u:***@host`"),
            ("http://u:pa/ss@host", "http://u:***@host"),
            ("http://u:@host", "http://u:***@host"),
            ("http://127.0.0.1:80/@me and a@b", "http://127.0.0.1:80/@me and a@b"),
            ("http://[::1]:80/", "http://[::1]:80/"),
            ("a://b://c:d@e", "a://b://c:***@e"),
            ("nothing: u:p@host", "nothing: u:p@host"),
            ("://", "://"),
            ("", ""),
        ] {
            assert_eq!(without_passwords(text), masked);
        }
    }
}
