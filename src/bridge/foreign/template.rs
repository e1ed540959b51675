//! Text with places that a message fills: `shop-{subject.2}`, `{header.Order-Id}`.
//!
//! `{subject.N}` is the Nth word of the subject, from 1; `{header.NAME}` a header, whose name is compared without case;
//! `{message-id}` the id that the producer gave; `{place}` the message's place in its stream. Everything else stands for
//! itself.

use std::fmt;
use std::str::FromStr;

use relay_bridge::contract::Failure;

use super::Message;

/// A template, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// The Nth word of the subject, from 0.
    Subject(usize),
    /// In lower case.
    Header(String),
    MessageId,
    Place,
}

/// The text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidTemplate(String);

impl Template {
    /// The text itself, if no message changes it.
    #[must_use]
    pub fn fixed(&self) -> Option<&str> {
        match &self.parts[..] {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text for `message`.
    ///
    /// # Errors
    /// `missing`: the message lacks what a place needs, or has it empty.
    pub fn fill(&self, message: &Message) -> Result<String, Failure> {
        let mut filled = String::with_capacity(self.text.len());
        for part in &self.parts {
            let found = match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Subject(at) => message.subject.split('.').nth(*at),
                Part::Header(name) => message.headers.get(name).map(String::as_str),
                Part::MessageId => message.id.as_deref(),
                Part::Place => message.place.as_deref(),
            };
            let found = found.filter(|text| !text.is_empty());
            filled.push_str(found.ok_or_else(|| Failure::new("missing", format!("the message has no {part}")))?);
        }
        Ok(filled)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Subject(at) => write!(f, "{}. word in its subject", at + 1),
            Self::Header(name) => write!(f, "header {name}"),
            Self::MessageId => f.write_str("id of its producer's"),
            Self::Place => f.write_str("place in a stream"),
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Template {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        let wrong = |what: &str| Err(InvalidTemplate(format!("`{text}`: {what}")));
        if text.is_empty() {
            return wrong("it is empty");
        }
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let (before, after) = match rest.split_once('{') {
                Some((before, after)) => (before, Some(after)),
                None => (rest, None),
            };
            if before.contains('}') {
                return wrong("a `}` closes nothing");
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let Some(after) = after else { break };
            let Some((place, behind)) = after.split_once('}') else { return wrong("a `{` is not closed") };
            parts.push(match place.split_once('.') {
                None if place == "message-id" => Part::MessageId,
                None if place == "place" => Part::Place,
                Some(("header", name)) if !name.is_empty() => Part::Header(name.to_ascii_lowercase()),
                Some(("subject", number)) => match number.parse::<usize>() {
                    Ok(number @ 1..=64) => Part::Subject(number - 1),
                    _ => return wrong("words of the subject are numbered 1 to 64"),
                },
                _ => return wrong("a place is one of {subject.N}, {header.NAME}, {message-id}, {place}"),
            });
            rest = behind;
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> Message {
        Message {
            subject: "orders.eu.new".to_owned(),
            headers: [("order-id".to_owned(), "A-17".to_owned()), ("empty".to_owned(), String::new())].into(),
            id: Some("m1".to_owned()),
            place: Some("ORDERS.1.2".to_owned()),
            ..Message::default()
        }
    }

    #[test]
    fn places_are_filled_from_the_message() {
        for (template, expected) in [
            ("acme", "acme"),
            ("shop-{subject.2}", "shop-eu"),
            ("{header.Order-Id}", "A-17"),
            ("{subject.1}/{header.ORDER-ID}/{message-id}", "orders/A-17/m1"),
            ("{place}", "ORDERS.1.2"),
        ] {
            assert_eq!(template.parse::<Template>().unwrap().fill(&message()).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn what_a_message_lacks_is_named() {
        for (template, part) in
            [("{subject.4}", "4. word"), ("{header.Nobody}", "header nobody"), ("x{header.empty}", "header empty")]
        {
            let failure = template.parse::<Template>().unwrap().fill(&message()).unwrap_err();
            assert_eq!(failure.reason, "missing");
            assert!(failure.detail.contains(part), "{}", failure.detail);
        }
        let bare = Message { id: None, place: None, ..message() };
        assert!("{message-id}".parse::<Template>().unwrap().fill(&bare).is_err());
        assert!("{place}".parse::<Template>().unwrap().fill(&bare).is_err());
    }

    #[test]
    fn what_is_no_template_says_why() {
        for (text, part) in [
            ("", "empty"),
            ("{subject.0}", "1 to 64"),
            ("{subject.x}", "1 to 64"),
            ("{subject", "not closed"),
            ("a}b", "closes nothing"),
            ("{header.}", "a place is one of"),
            ("{body}", "a place is one of"),
        ] {
            let error = text.parse::<Template>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn only_text_without_places_is_fixed() {
        assert_eq!("orders".parse::<Template>().unwrap().fixed(), Some("orders"));
        assert_eq!("{subject.1}".parse::<Template>().unwrap().fixed(), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_shown_as_it_was(text in "[a-z{}.0-9 -]{0,24}") {
            if let Ok(template) = text.parse::<Template>() {
                prop_assert_eq!(template.to_string(), text);
            }
        }
    }
}
