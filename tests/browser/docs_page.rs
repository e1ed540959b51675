//! `/docs`, the page about the HTTP API, in a browser.

use crate::cli_support::{Running, stderr, stdout};

#[test]
fn a_browser_shows_every_operation_with_nothing_but_the_page() {
    let (mut scenes, pictures) = crate::support::script("docs.mjs", "docs");
    let relay = Running::start(["serve", "--memory", "--no-auth", "--listen", "127.0.0.1:0", "--json"]);
    let said = scenes.args([&relay.url(), &pictures]).output().unwrap();
    assert!(said.status.success(), "{}{}", stdout(&said), stderr(&said));
    println!("{}pictures are in {pictures}", stdout(&said));
}
