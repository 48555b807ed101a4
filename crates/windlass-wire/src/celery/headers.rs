//! The headers of a message as they come: any JSON under each name, `null` where there is none.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::json::{self, Members};

/// The headers of a message by their names. What they must be, a request says.
#[derive(Debug, Default)]
pub(super) struct Headers {
    pub(super) task: Value,
    pub(super) id: Value,
    pub(super) root_id: Value,
    pub(super) parent_id: Value,
    pub(super) group: Value,
    pub(super) group_index: Value,
    pub(super) retries: Value,
    pub(super) eta: Value,
    pub(super) expires: Value,
    pub(super) timelimit: Value,
    pub(super) ignore_result: Value,
    pub(super) shadow: Value,
    pub(super) argsrepr: Value,
    pub(super) kwargsrepr: Value,
    pub(super) origin: Value,
    pub(super) replaced_task_nesting: Value,
    pub(super) stamped_headers: Value,
    pub(super) stamps: Value,
    /// How the body is compressed: about the frame, not about the task.
    pub(super) compression: Value,
    /// How many were put in, those with the same name counted again.
    pub(super) len: usize,
    /// What Celery does not know.
    pub(super) extra: Map<String, Value>,
}

/// What becomes of a header.
enum Place<'h> {
    /// Celery knows it.
    Known(&'h mut Value),
    /// It is about the frame, not about the task.
    OfTheFrame,
    /// It is the caller's.
    Extra,
}

impl Headers {
    /// Copies of the headers of a frame.
    pub(super) fn copied(headers: &Map<String, Value>) -> Self {
        let mut copied = Self::default();
        for (name, value) in headers {
            copied.put(Cow::Borrowed(name), value.clone());
        }
        copied
    }

    /// Whether a header of the caller may have this name.
    pub(super) fn is_extra(name: &str) -> bool {
        matches!(Self::default().place(name), Place::Extra)
    }

    fn place(&mut self, name: &str) -> Place<'_> {
        Place::Known(match name {
            "task" => &mut self.task,
            "id" => &mut self.id,
            "root_id" => &mut self.root_id,
            "parent_id" => &mut self.parent_id,
            "group" => &mut self.group,
            "group_index" => &mut self.group_index,
            "retries" => &mut self.retries,
            "eta" => &mut self.eta,
            "expires" => &mut self.expires,
            "timelimit" => &mut self.timelimit,
            "ignore_result" => &mut self.ignore_result,
            "shadow" => &mut self.shadow,
            "argsrepr" => &mut self.argsrepr,
            "kwargsrepr" => &mut self.kwargsrepr,
            "origin" => &mut self.origin,
            "replaced_task_nesting" => &mut self.replaced_task_nesting,
            "stamped_headers" => &mut self.stamped_headers,
            "stamps" => &mut self.stamps,
            "compression" => &mut self.compression,
            "lang" | "redelivered" => return Place::OfTheFrame,
            _ => return Place::Extra,
        })
    }
}

impl From<Map<String, Value>> for Headers {
    fn from(headers: Map<String, Value>) -> Self {
        let mut taken = Self::default();
        for (name, value) in headers {
            taken.put(Cow::Owned(name), value);
        }
        taken
    }
}

impl<'t> Members<'t> for Headers {
    type Value = Value;

    fn put(&mut self, name: Cow<'t, str>, value: Value) {
        self.len += 1;
        match self.place(&name) {
            Place::Known(place) => *place = value,
            Place::OfTheFrame => {}
            Place::Extra => {
                self.extra.insert(name.into_owned(), value);
            }
        }
    }
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json::members(deserializer)
    }
}
