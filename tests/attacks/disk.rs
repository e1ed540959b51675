//! A client that wants the whole disk: by payloads, and by results that it never reads.

use std::fs::{create_dir, write};

use crate::support::{Attacked, ask_for, json, new_key};

/// The bytes that each client may keep, and the payload of one job.
const MAX: usize = 256 * 1024;
const PAYLOAD: usize = 16 * 1024;

#[test]
fn a_client_that_stores_without_end_is_stopped_at_its_own_bytes_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ["greedy", "other"].map(|client| new_key(dir.path(), &[client]));
    let config = dir.path().join("relay.toml");
    let policy = format!("[[queue]]\nname = \"default\"\nkeep_keyless = true\nmax_stored = \"{MAX}B\"\n");
    write(&config, policy).unwrap();
    create_dir(dir.path().join("data")).unwrap();
    let attacked = Attacked::start_in(dir, &["--config", config.to_str().unwrap()]);
    let address = attacked.address();
    let body = "x".repeat(PAYLOAD);
    let submit = |key: &str| ask_for(address, "POST /v1/queues/default/jobs", key, &body);
    let mut taken = Vec::new();
    // Each job is finished at once, so that none waits and nothing but bytes is left of it.
    let refused = loop {
        let (status, _, answer) = submit(&keys[0]);
        if status != 202 {
            break (status, json(&answer));
        }
        let id = json(&answer)["job_id"].as_str().unwrap().to_owned();
        assert_eq!(ask_for(address, &format!("POST /v1/jobs/{id}/cancel"), &keys[0], "").0, 200);
        taken.push(id);
        assert!(taken.len() <= MAX / PAYLOAD, "{} jobs were taken", taken.len());
    };
    assert_eq!((refused.0, &refused.1["slug"], &refused.1["limit"]), (429, &"quota-exceeded".into(), &MAX.into()));
    assert!(taken.len() >= MAX / PAYLOAD - 2, "{} jobs were taken", taken.len());
    let whoami = json(&ask_for(address, "GET /v1/whoami", &keys[0], "").2);
    let stored = whoami["queue_limits"][0]["stored"].as_u64().unwrap();
    assert!(stored <= MAX as u64 && whoami["queue_limits"][0]["max_stored"] == MAX, "{whoami}");
    let rerun = ask_for(address, &format!("POST /v1/jobs/{}/rerun?from=1", taken[0]), &keys[0], "");
    assert_eq!(rerun.0, 202, "a rerun keeps nothing more");
    assert_eq!(submit(&keys[1]).0, 202, "another client has bytes of its own");
    // It may store again as much as it erases.
    assert_eq!(ask_for(address, &format!("DELETE /v1/jobs/{}", taken[1]), &keys[0], "").0, 204);
    assert_eq!(submit(&keys[0]).0, 202);
    attacked.server.stop();
}
