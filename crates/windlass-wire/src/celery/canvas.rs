//! What follows a task: the third part of a message's body.

use std::collections::BTreeMap;

use windlass_core::Json;

use super::signature::{self, Signature};
use crate::error::Malformed;
use crate::json;

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
    ///
    /// Members are text still: numbers in the arguments of signatures keep every digit.
    pub(super) fn decode(members: &mut BTreeMap<String, Json>) -> Result<Self, Malformed> {
        let mut take = |name: &'static str| members.remove(name).unwrap_or_else(Json::null);
        let chord = match take("chord") {
            nothing if nothing.as_str() == "null" => None,
            chord => Some(Box::new(signature::one("`chord`", &chord)?)),
        };
        Ok(Self {
            callbacks: signature::list("`callbacks`", &take("callbacks"))?,
            errbacks: signature::list("`errbacks`", &take("errbacks"))?,
            chain: signature::list("`chain`", &take("chain"))?,
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
