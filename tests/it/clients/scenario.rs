//! The scenarios as types. A field that is not known is a mistake in the file.

use std::collections::BTreeSet;

use serde::Deserialize;

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// The format's version.
    version: u32,
    pub(super) scenarios: Vec<Scenario>,
}

impl File {
    pub(super) fn read() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/scenarios.json");
        let file: Self = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(file.version, 1);
        let names: BTreeSet<_> = file.scenarios.iter().map(|scenario| &scenario.name).collect();
        assert_eq!(names.len(), file.scenarios.len(), "two scenarios have one name");
        file
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with TLS.
    H2,
    Tcp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) protocols: Vec<Protocol>,
    #[serde(default)]
    pub(super) client: Settings,
    #[serde(default)]
    pub(super) server: Server,
    pub(super) calls: Vec<Call>,
    #[serde(default)]
    pub(super) reached: Reached,
}

/// How the library is set.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Settings {
    pub(super) patience_ms: u64,
    pub(super) backoff_ms: u64,
    pub(super) token: Option<String>,
    /// The age at which connections are left; that of the library where it is left out.
    pub(super) renewed_after_ms: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { patience_ms: 20_000, backoff_ms: 5, token: None, renewed_after_ms: None }
    }
}

/// A scripted server. Beyond its steps it is a good one.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Server {
    /// How many addresses it has.
    pub(super) addresses: usize,
    /// The addresses that its name has at first.
    pub(super) resolves_to: Vec<usize>,
    pub(super) welcome: Welcome,
    pub(super) steps: Vec<Step>,
    pub(super) results: Kept,
    pub(super) clock_off_s: i64,
    pub(super) cut: Option<Cut>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            addresses: 1,
            resolves_to: vec![0],
            welcome: Welcome::default(),
            steps: Vec::new(),
            results: Kept::default(),
            clock_off_s: 0,
            cut: None,
        }
    }
}

/// The message of the first connection that is cut, at every byte in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Cut {
    Welcome,
    Request,
    Answer,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Welcome {
    pub(super) version: u16,
    pub(super) requests_max: u32,
    pub(super) frame_max: u32,
    pub(super) unknown_fields: bool,
    /// The hellos that are refused, the first ones.
    pub(super) refused: Option<Refused>,
}

impl Default for Welcome {
    fn default() -> Self {
        let (requests_max, frame_max) = (1_024, relay_bridge::contract::wire::FRAME_MAX);
        Self { version: 1, requests_max, frame_max, unknown_fields: false, refused: None }
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Refused {
    #[serde(rename = "for", default = "one")]
    pub(super) times: usize,
    pub(super) problem: Trouble,
}

/// A refusal.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trouble {
    pub(super) slug: String,
    /// That of the slug where it is left out.
    pub(super) status: Option<u16>,
    pub(super) retry: Option<String>,
    pub(super) retry_after_ms: Option<u64>,
}

fn one() -> usize {
    1
}

/// An answer to the next request, or to the next ones.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Step {
    #[serde(rename = "for")]
    pub(super) times: usize,
    pub(super) answer: What,
    pub(super) problem: Option<Trouble>,
    pub(super) other: Option<Other>,
    /// Instead of the answer: text over HTTP, hexadecimal over TCP.
    pub(super) raw: Option<String>,
    pub(super) bytes_every_ms: Option<u64>,
    pub(super) after_ms: u64,
    /// The answer is held until so many requests are unanswered.
    pub(super) held_until: usize,
    pub(super) unknown_fields: bool,
    pub(super) unknown_message: bool,
    /// It says that it goes away, with the answer.
    pub(super) leaves: bool,
    /// The name has these addresses from this request on. With `leaves`, all others go away as well.
    pub(super) resolves_to: Option<Vec<usize>>,
}

impl Default for Step {
    fn default() -> Self {
        Self {
            times: 1,
            answer: What::default(),
            problem: None,
            other: None,
            raw: None,
            bytes_every_ms: None,
            after_ms: 0,
            held_until: 0,
            unknown_fields: false,
            unknown_message: false,
            leaves: false,
            resolves_to: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    /// The usual one of the request.
    #[default]
    Good,
    /// A wait ends without a result.
    Open,
    /// A submission that waits is answered by its result.
    Result,
    /// The request is taken, and the connection ends.
    Lost,
    /// None, and the connection stays.
    Never,
    /// Over h2: the stream is refused before anything is done for it.
    Untaken,
}

/// The thing that an answer is about, where it is another one than was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Other {
    Job,
    Queue,
    Key,
    /// Over TCP: the id is of no request.
    Request,
}

/// The results that the client may read.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Kept {
    pub(super) count: u32,
    pub(super) bytes: usize,
    /// The results before this one are gone.
    pub(super) oldest: u32,
    /// The results up to this one are passed over.
    pub(super) passed: u32,
    /// Over TCP: they are pushed whatever the credit is.
    pub(super) overrun: bool,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Call {
    pub(super) call: Name,
    pub(super) key: Option<String>,
    #[serde(default)]
    pub(super) bytes: usize,
    #[serde(default)]
    pub(super) within_ms: u64,
    /// Of `submit_many`: how many, and how many at a time.
    #[serde(default)]
    pub(super) count: usize,
    #[serde(default)]
    pub(super) in_flight: usize,
    /// Of `results`: how many are taken, and then so many after the server could push no more.
    #[serde(default)]
    pub(super) take: u32,
    #[serde(default)]
    pub(super) then_take: u32,
    pub(super) after: Option<String>,
    /// The call comes so long after the one before.
    #[serde(default)]
    pub(super) pause_ms: u64,
    /// The server's name has these addresses from here on.
    pub(super) resolves_to: Option<Vec<usize>>,
    /// A new client with this token calls, from here on.
    pub(super) token: Option<String>,
    /// The caller gives it up after this time.
    pub(super) given_up_after_ms: Option<u64>,
    /// The caller gives it up once so many requests were answered.
    pub(super) given_up_after: Option<usize>,
    pub(super) expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Name {
    Submit,
    SubmitMany,
    Run,
    Wait,
    Status,
    Cancel,
    Rerun,
    Whoami,
    Page,
    Results,
}

/// The report of the library.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Expect {
    Receipt {
        replayed: bool,
    },
    Result {
        outcome: String,
    },
    /// The time is up.
    Open {},
    Job {
        state: String,
    },
    Done {
        count: usize,
    },
    Whoami {},
    Results {
        count: usize,
        #[serde(default)]
        reset: bool,
    },
    Error {
        kind: String,
        #[serde(default)]
        slug: Option<String>,
    },
    /// It was given up.
    Nothing {},
}

/// The requests that have to have reached the server by the end.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Reached {
    pub(super) requests: Option<usize>,
    pub(super) requests_most: Option<usize>,
    pub(super) keys: Option<usize>,
    pub(super) bytes: Option<Vec<usize>>,
    pub(super) gaps_ms_least: Vec<u64>,
    pub(super) connections: Option<usize>,
    pub(super) connections_least: Option<usize>,
    /// The address of each request, in order.
    pub(super) addresses: Option<Vec<usize>>,
    /// The addresses that any request came at.
    pub(super) addresses_used: Option<Vec<usize>>,
    pub(super) unanswered_most: Option<usize>,
    pub(super) unanswered_least: Option<usize>,
    /// Results that left the server and were not taken.
    pub(super) ahead_most: Option<usize>,
    pub(super) tokens: Option<Vec<String>>,
}
