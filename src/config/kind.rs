//! The kinds of values. A value of another type is refused also where it could be made to fit: `"3"` is no number, `30`
//! no duration, `1` not `true`.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use relay_bridge::contract::{ClientId, MediaRange, QueueName, Rate, WorkerId};
use toml::de::DeValue;

use super::values::{self, ClientShare, WeightedQueue};
use crate::bridge::foreign::template::Template;
use crate::ranges::AddressRange;

/// The kind of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// An address with its port.
    Address,
    /// A span with its unit: at least this many milliseconds.
    Duration(u64),
    /// A number of bytes with its unit, at least so many.
    Size(u64),
    /// A number of bytes with its unit, or `none`.
    SizeOrNone,
    /// `true` or `false`.
    Flag,
    /// A whole number within these bounds.
    Count(u64, u64),
    /// A number within these bounds, with or without a fraction.
    Factor(u32, u32),
    /// Any text that is not empty.
    Text,
    /// A file or a folder; a relative one is seen from the folder of the configuration file.
    Path,
    /// One of these words, each with its meaning.
    Choice(&'static [(&'static str, &'static str)]),
    /// Several texts.
    List,
    /// A program with its arguments, each as it is written: a script may have several lines.
    Command,
    /// A queue's name.
    Queue,
    /// Queues of a worker, each `NAME` or `NAME=WEIGHT`.
    WeightedQueues,
    /// Shares of clients, each `CLIENT=PERCENT`.
    ClientShares,
    /// Ranges of addresses, each `ADDRESS` or `ADDRESS/PREFIX`.
    AddressRanges,
    /// A worker's name.
    Worker,
    /// A client's name.
    Client,
    /// Names of clients, or `["*"]` for all: an empty list.
    Clients,
    /// Content types, `text/*` for all of a kind, or `["*/*"]` for all: an empty list.
    ContentTypes,
    /// Names of variables, in which `*` stands for any text.
    Variables,
    /// How many in which time, or `none`.
    Rate,
    /// A text with places for parts of a message.
    Template,
}

/// A value of a [`Kind`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// An address, a path, a name, a word or any text.
    Text(String),
    /// A duration.
    Duration(Duration),
    /// Bytes, or a count.
    Number(u64),
    /// A number with a fraction.
    Factor(f64),
    /// A flag.
    Flag(bool),
    /// Several texts.
    List(Vec<String>),
}

/// Why a value is none of its kind, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unfit {
    /// The mistake.
    pub(crate) what: String,
    /// The way to correct it.
    pub(crate) fix: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some say already what to write.
        if self.what.contains(": write ") { f.write_str(&self.what) } else { write!(f, "{}: {}", self.what, self.fix) }
    }
}

impl Unfit {
    fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }
}

impl Kind {
    /// Reads a value.
    ///
    /// # Errors
    /// If it is none of this kind.
    pub(crate) fn read(self, value: &DeValue<'_>) -> Result<Value, Unfit> {
        let shown = show(value);
        let not = |fix: String| Unfit::new(format!("`{shown}` is not {self}"), fix);
        match (self, value) {
            (Self::Flag, DeValue::Boolean(flag)) => Ok(Value::Flag(*flag)),
            (Self::Flag, _) => Err(not("write true or false, without quotes".to_owned())),
            (Self::Count(min, max), DeValue::Integer(number)) => {
                let number = u64::from_str_radix(number.as_str(), number.radix()).ok();
                let number = number.filter(|number| (min..=max).contains(number)).map(Value::Number);
                number.ok_or_else(|| not(format!("write a number {}", between(min, max))))
            }
            (Self::Count(..), DeValue::String(text)) if text.parse::<u64>().is_ok() => Err(Unfit::new(
                format!("`{shown}` is a text and not a number"),
                format!("write {text}, without quotes"),
            )),
            (Self::Count(min, max), _) => Err(not(format!("write a whole number {}", between(min, max)))),
            (Self::Factor(min, max), DeValue::Float(_) | DeValue::Integer(_)) => {
                let number = shown.parse::<f64>().ok();
                let number = number.filter(|number| (f64::from(min)..=f64::from(max)).contains(number));
                number.map(Value::Factor).ok_or_else(|| not(format!("write a number from {min} to {max}")))
            }
            (Self::Factor(min, max), _) => Err(not(format!("write a number from {min} to {max}, without quotes"))),
            (Self::Duration(_), DeValue::Integer(_)) => {
                Err(Unfit::new(format!("`{shown}` has no unit"), format!("write \"{shown}s\" for seconds")))
            }
            (Self::Size(_) | Self::SizeOrNone, DeValue::Integer(_)) => Err(Unfit::new(
                format!("`{shown}` has no unit"),
                format!("write \"{shown}B\" for bytes, or \"{shown}KiB\""),
            )),
            (Self::Command, DeValue::Array(values)) => {
                let words = values.iter().map(|value| value.get_ref().as_str().map(str::to_owned));
                let words: Option<Vec<_>> = words.collect();
                let fits = |words: &Vec<String>| {
                    words.first().is_some_and(|program| is_plain(program))
                        && !words.iter().any(|word| word.contains('\0'))
                };
                let not = || not(format!("write a program and its arguments: {}", self.example()));
                words.filter(fits).map(Value::List).ok_or_else(not)
            }
            (_, DeValue::Array(values)) if self.is_list() => {
                let texts = values.iter().map(|value| value.get_ref().as_str().map(str::to_owned));
                let texts: Option<Vec<_>> = texts.collect();
                let texts = texts.filter(|texts| !texts.is_empty() && texts.iter().all(|text| is_plain(text)));
                self.read_list(texts.ok_or_else(|| not(format!("write {}", self.example())))?)
            }
            _ if self.is_list() => Err(not(format!("write it in brackets: {}", self.example()))),
            (_, DeValue::String(text)) => self.read_text(text),
            (_, _) => Err(not("write a text in quotes".to_owned())),
        }
    }

    /// Reads a value from what a flag or a variable says; of a list, one of its texts.
    ///
    /// # Errors
    /// If it is none of this kind.
    pub(crate) fn parse(self, text: &str) -> Result<Value, Unfit> {
        let not = |fix: String| Unfit::new(format!("`{text}` is not {self}"), fix);
        match self {
            Self::Flag => text.parse().map(Value::Flag).map_err(|_| not("write true or false".to_owned())),
            Self::Count(min, max) => {
                let number = text.parse().ok().filter(|number| (min..=max).contains(number));
                number.map(Value::Number).ok_or_else(|| not(format!("write a whole number {}", between(min, max))))
            }
            Self::Factor(min, max) => {
                let number = text.parse().ok().filter(|number| (f64::from(min)..=f64::from(max)).contains(number));
                number.map(Value::Factor).ok_or_else(|| not(format!("write a number from {min} to {max}")))
            }
            _ if self.is_list() && is_plain(text) => self
                .read_list(vec![text.to_owned()])
                .map_err(|unfit| Unfit { fix: format!("write {}", self.typed_example()), ..unfit }),
            _ if self.is_list() => Err(not("write a text that is not empty".to_owned())),
            _ => self.read_text(text),
        }
    }

    /// Whether it is of several texts.
    pub(crate) fn is_list(self) -> bool {
        matches!(
            self,
            Self::List
                | Self::Command
                | Self::Clients
                | Self::ContentTypes
                | Self::WeightedQueues
                | Self::ClientShares
                | Self::AddressRanges
                | Self::Variables
        )
    }

    fn example(self) -> &'static str {
        match self {
            Self::Clients => "[\"shop\", \"mail\"], or [\"*\"] for all",
            Self::ContentTypes => "[\"application/json\", \"text/*\"], or [\"*/*\"] for all",
            Self::WeightedQueues => "[\"urgent=5\", \"bulk\"]",
            Self::ClientShares => "[\"shop=50\", \"mail=10\"]",
            Self::AddressRanges => "[\"10.0.1.7\", \"10.0.2.0/28\"]",
            Self::Variables => "[\"AWS_*\", \"MY_TOKEN\"]",
            Self::Command => "[\"./handle\", \"--fast\"]",
            _ => "[\"a\", \"b\"]",
        }
    }

    /// The example as a flag or a variable has it: without brackets and quotes.
    fn typed_example(self) -> String {
        let (list, _) = self.example().split_once(']').unwrap_or((self.example(), ""));
        list.replace(['[', '"'], "").replace(", ", ",")
    }

    fn read_list(self, texts: Vec<String>) -> Result<Value, Unfit> {
        let (all, check): (_, fn(&str) -> Option<String>) = match self {
            Self::Clients => ("*", |text| text.parse::<ClientId>().err().map(|error| error.to_string())),
            Self::ContentTypes => ("*/*", |text| text.parse::<MediaRange>().err().map(|error| error.to_string())),
            Self::WeightedQueues => ("", |text| text.parse::<WeightedQueue>().err()),
            Self::ClientShares => ("", |text| text.parse::<ClientShare>().err()),
            Self::AddressRanges => ("", |text| text.parse::<AddressRange>().err()),
            Self::Variables => ("", no_variables),
            _ => return Ok(Value::List(texts)),
        };
        if texts == [all] {
            return Ok(Value::List(Vec::new()));
        }
        if texts.iter().any(|text| text == all) {
            let fix = format!("write [\"{all}\"] alone, or leave it out of the others");
            return Err(Unfit::new(format!("`\"{all}\"` stands for all, and others are beside it"), fix));
        }
        match texts.iter().find_map(|text| Some((text, check(text)?))) {
            None => Ok(Value::List(texts)),
            Some((text, error)) => {
                let shown: String = text.chars().take(80).collect();
                Err(Unfit::new(format!("`\"{shown}\"`: {error}"), format!("write {}", self.example())))
            }
        }
    }

    fn read_text(self, text: &str) -> Result<Value, Unfit> {
        let shown = format!("\"{text}\"");
        let not = |fix: &str| Unfit::new(format!("`{shown}` is not {self}"), fix);
        match self {
            Self::Duration(min) => {
                let duration = values::duration(text)
                    .map_err(|error| Unfit::new(error, "write \"250ms\", \"20s\", \"5m\", \"6h\" or \"14d\""))?;
                if duration < Duration::from_millis(min) {
                    let least = values::show_duration(Duration::from_millis(min));
                    return Err(Unfit::new(format!("`{shown}` is too short"), format!("write at least \"{least}\"")));
                }
                Ok(Value::Duration(duration))
            }
            Self::SizeOrNone if text == NONE => Ok(Value::Text(NONE.to_owned())),
            Self::Size(_) | Self::SizeOrNone => {
                let size =
                    values::size(text).map_err(|error| Unfit::new(error, "write \"512B\", \"256KiB\" or \"1MiB\""))?;
                if matches!(self, Self::Size(min) if size < min) {
                    let fix = "leave it out for the default, or write a size such as \"64MiB\"";
                    return Err(Unfit::new(format!("`{shown}` is too little: nothing would get through"), fix));
                }
                Ok(Value::Number(size))
            }
            Self::Address if text.parse::<SocketAddr>().is_err() => {
                Err(not("write HOST:PORT with an IP address, such as \"127.0.0.1:7410\" or \"[::]:7410\""))
            }
            Self::Choice(words) if words.iter().all(|(word, _)| *word != text) => {
                let words: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                Err(not(&format!("write {}", words.join(" or "))))
            }
            Self::Queue => match text.parse::<QueueName>() {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(error) => Err(Unfit::new(format!("`{shown}`: {error}"), "give it a name such as \"orders\"")),
            },
            Self::Worker => match text.parse::<WorkerId>() {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(error) => Err(Unfit::new(format!("`{shown}`: {error}"), "give it a name such as \"gpu-1\"")),
            },
            Self::Client => match text.parse::<ClientId>() {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(error) => Err(Unfit::new(format!("`{shown}`: {error}"), "write the name that its key has")),
            },
            Self::Rate if text != NONE => match text.parse::<Rate>() {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(error) => {
                    Err(Unfit::new(error.to_string(), format!("write \"100/s\", or \"{NONE}\" for no limit")))
                }
            },
            Self::Template => match text.parse::<Template>() {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(error) => Err(Unfit::new(error.to_string(), "correct it; docs/bridge.md has the places")),
            },
            _ if !is_plain(text) => Err(not("write a text that is not empty, on one line")),
            _ => Ok(Value::Text(text.to_owned())),
        }
    }
}

/// The text that stands for no limit.
pub(crate) const NONE: &str = "none";

/// Why a text names no variables that a worker may pass on.
fn no_variables(text: &str) -> Option<String> {
    if text.starts_with("RELAY_") {
        return Some("RELAY_* are the worker's own, and its handlers have those of their job".to_owned());
    }
    let fits = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'*'));
    (!fits).then(|| "names of variables have letters, digits and `_`, and `*` for any text".to_owned())
}

fn is_plain(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains(char::is_control)
}

fn between(min: u64, max: u64) -> String {
    if max == u64::MAX { format!("of at least {min}") } else { format!("from {min} to {max}") }
}

/// A kind's name in the reference and in mistakes.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("an address"),
            Self::Duration(_) => f.write_str("a duration"),
            Self::Size(_) => f.write_str("a size"),
            Self::SizeOrNone => write!(f, "a size, or `{NONE}`"),
            Self::Flag => f.write_str("true or false"),
            Self::Count(min, max) => write!(f, "a number {}", between(*min, *max)),
            Self::Factor(min, max) => write!(f, "a number from {min} to {max}"),
            Self::Text => f.write_str("a text"),
            Self::Path => f.write_str("a path"),
            Self::Choice(words) => {
                write!(f, "one of {}", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "))
            }
            Self::List | Self::Command => f.write_str("a list of texts"),
            Self::Queue => f.write_str("a queue's name"),
            Self::WeightedQueues => f.write_str("a list of queues, with weights or without"),
            Self::ClientShares => f.write_str("a list of clients with their shares"),
            Self::AddressRanges => f.write_str("a list of addresses or ranges of them"),
            Self::Worker => f.write_str("a worker's name"),
            Self::Client => f.write_str("a client's name"),
            Self::Clients => f.write_str("a list of clients' names, or `[\"*\"]`"),
            Self::ContentTypes => f.write_str("a list of content types, or `[\"*/*\"]`"),
            Self::Variables => f.write_str("a list of variables, with `*` for any text"),
            Self::Rate => write!(f, "a rate, or `{NONE}`"),
            Self::Template => f.write_str("a text with places"),
        }
    }
}

/// Each of these reads a value of its [`Kind`]; a value of another kind is nothing.
impl Value {
    /// A span.
    pub(crate) fn duration(&self) -> Duration {
        if let Self::Duration(duration) = self { *duration } else { Duration::ZERO }
    }

    /// Bytes, or a count.
    pub(crate) fn number(&self) -> u64 {
        if let Self::Number(number) = self { *number } else { 0 }
    }

    /// A count whose kind lets in no more than a `u32` holds.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.number()).unwrap_or(u32::MAX)
    }

    /// A number with a fraction.
    pub(crate) fn factor(&self) -> f64 {
        if let Self::Factor(factor) = self { *factor } else { 0.0 }
    }

    /// Whether it is a flag that is set.
    pub(crate) fn is_true(&self) -> bool {
        *self == Self::Flag(true)
    }

    /// Several texts.
    pub(crate) fn texts(&self) -> &[String] {
        if let Self::List(texts) = self { texts } else { &[] }
    }
}

/// As it is typed for a flag.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Duration(duration) => f.write_str(&values::show_duration(*duration)),
            Self::Number(number) => write!(f, "{number}"),
            Self::Factor(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::List(texts) => f.write_str(&texts.join(",")),
        }
    }
}

/// A value as it stands in a file, shortened.
fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{}\"", text.chars().take(80).collect::<String>()),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "[...]".to_owned(),
        DeValue::Table(_) => "{...}".to_owned(),
    }
}
