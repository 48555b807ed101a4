//! What follows a task: the third part of a message's body.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::signature::{self, Signature};
use crate::error::Malformed;
use crate::json::{self, Members};

/// The members of `embed` as text: numbers in the arguments of signatures keep every digit.
#[derive(Default)]
pub(super) struct Embed<'t> {
    callbacks: Option<&'t RawValue>,
    errbacks: Option<&'t RawValue>,
    chain: Option<&'t RawValue>,
    chord: Option<&'t RawValue>,
}

impl<'t> Members<'t> for Embed<'t> {
    type Value = &'t RawValue;

    fn put(&mut self, name: Cow<'t, str>, value: &'t RawValue) {
        match &*name {
            "callbacks" => self.callbacks = Some(value),
            "errbacks" => self.errbacks = Some(value),
            "chain" => self.chain = Some(value),
            "chord" => self.chord = Some(value),
            _ => {}
        }
    }
}

impl<'de: 't, 't> Deserialize<'de> for Embed<'t> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json::members::<D, Embed<'de>>(deserializer)
    }
}

/// What follows a task: the third part of a message's body, `embed`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Canvas {
    /// Sent when it succeeded, each with the result.
    pub callbacks: Vec<Signature>,
    /// Sent when it gave up, each with the id of the task.
    pub errbacks: Vec<Signature>,
    /// The rest of the chain **in reverse order**, as on the wire: the next step is the last element.
    pub chain: Vec<Signature>,
    /// The body of the chord that it is a part of.
    pub chord: Option<Box<Signature>>,
}

impl Canvas {
    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// From the members of `embed`, or of a message of protocol 1. Missing members are nothing, unknown ones are ignored.
    pub(super) fn decode(embed: Embed<'_>) -> Result<Self, Malformed> {
        let list = |part, member: Option<&RawValue>| {
            member.map_or_else(|| Ok(Vec::new()), |member| signature::list(part, member.get()))
        };
        let chord = match embed.chord.map(RawValue::get) {
            None | Some("null") => None,
            Some(chord) => Some(Box::new(signature::one("`chord`", chord)?)),
        };
        Ok(Self {
            callbacks: list("`callbacks`", embed.callbacks)?,
            errbacks: list("`errbacks`", embed.errbacks)?,
            chain: list("`chain`", embed.chain)?,
            chord,
        })
    }

    /// As the third part of a body; what is empty is `null`.
    pub(super) fn encode(&self) -> String {
        let list = |signatures: &[Signature]| {
            if signatures.is_empty() { "null".to_owned() } else { json::written(signatures) }
        };
        format!(
            r#"{{"callbacks": {}, "errbacks": {}, "chain": {}, "chord": {}}}"#,
            list(&self.callbacks),
            list(&self.errbacks),
            list(&self.chain),
            self.chord.as_deref().map_or_else(|| "null".to_owned(), json::written),
        )
    }
}
