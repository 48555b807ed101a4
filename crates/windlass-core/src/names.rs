//! Names and identities: parsed once at the edge, trusted inside.
//!
//! Every name is cheap to clone (a shared string) and cannot be constructed without passing its rule.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

/// The longest name of any kind, in bytes: the limit of an AMQP short string, which some queues travel through.
pub const NAME_BYTES_MAX: usize = 255;

/// A name that breaks its rule, with the rule in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {kind} `{shown}`: {rule}")]
pub struct InvalidName {
    kind: &'static str,
    shown: String,
    rule: &'static str,
}

impl InvalidName {
    fn new(kind: &'static str, text: &str, rule: &'static str) -> Self {
        // A hostile name may be huge or hold control characters: show its start, escaped.
        Self { kind, shown: text.chars().take(40).flat_map(char::escape_debug).collect(), rule }
    }
}

const GRAPHIC_RULE: &str = "1 to 255 visible ASCII characters without spaces";
const PRINTABLE_RULE: &str = "1 to 255 bytes without control characters";

fn is_graphic(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_printable(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $holds:ident, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses a name.
            ///
            /// # Errors
            /// [`InvalidName`] when the text breaks the rule of this kind of name.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                if text.is_empty() || text.len() > NAME_BYTES_MAX || !$holds(text) {
                    return Err(InvalidName::new($kind, text, $rule));
                }
                Ok(Self(text.into()))
            }

            /// A name written in the source code.
            ///
            /// # Panics
            /// When the text breaks the rule: a mistake of the programmer, found by the first run.
            #[track_caller]
            pub fn known(text: &str) -> Self {
                match Self::new(text) {
                    Ok(name) => name,
                    Err(invalid) => panic!("{invalid}"),
                }
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// The name of a task: 1 to 255 visible ASCII characters, such as `send_verification_email` or `app.tasks:sync`.
    TaskName, "task name", is_graphic, GRAPHIC_RULE
}
name! {
    /// The name of a queue: 1 to 255 visible ASCII characters (`taskiq:default:queue` must pass).
    QueueName, "queue name", is_graphic, GRAPHIC_RULE
}
name! {
    /// The name of one running worker process, unique in the fleet: `web-1-4242-k3f9`.
    NodeId, "node name", is_graphic, GRAPHIC_RULE
}
name! {
    /// The name of a schedule: anything printable up to 255 bytes, such as `nightly cleanup`.
    ScheduleId, "schedule name", is_printable, PRINTABLE_RULE
}
name! {
    /// What a task belongs to (a tenant, an account): fairness and limits are per key.
    Key, "key", is_printable, PRINTABLE_RULE
}
name! {
    /// What must not be queued twice.
    UniqueKey, "unique key", is_printable, PRINTABLE_RULE
}
name! {
    /// What a task can wait for: `approved`, `payment received`.
    SignalName, "signal name", is_printable, PRINTABLE_RULE
}

name! {
    /// How a foreign transport knows a delivery: its delivery tag, the id of a stream's entry. It begins with the name of the
    /// bridge, so that two transports never mean the same: `orders:1718000000000-0`.
    DeliveryId, "delivery id", is_printable, PRINTABLE_RULE
}

impl Default for QueueName {
    /// The queue `default`.
    fn default() -> Self {
        Self::known("default")
    }
}

/// The identity of one task instance.
///
/// Our own ids are UUID v7 (they sort by creation). Any visible ASCII text up to 255 bytes is accepted, because producers
/// may bring their own; text that is a UUID in its usual form takes 16 bytes.
///
/// ```
/// use windlass_core::TaskId;
/// let id: TaskId = "order-1017".parse().unwrap();
/// assert_eq!(id.to_string(), "order-1017");
/// assert!("two words".parse::<TaskId>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Identity);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Identity {
    Uuid(Uuid),
    Text(Arc<str>),
}

/// A [`TaskId`] as the bytes or the text that a store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdForm<'a> {
    /// A UUID: 16 bytes.
    Uuid(&'a [u8; 16]),
    /// Any other id.
    Text(&'a str),
}

impl TaskId {
    /// A new id that no other task has; ids made later sort later.
    pub fn random() -> Self {
        Self(Identity::Uuid(Uuid::now_v7()))
    }

    /// Parses an id.
    ///
    /// # Errors
    /// [`InvalidName`] unless the text is 1 to 255 visible ASCII characters.
    pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
        let text = text.as_ref();
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !is_graphic(text) {
            return Err(InvalidName::new("task id", text, GRAPHIC_RULE));
        }
        // Only the canonical form becomes a UUID: an id must come back exactly as the producer wrote it.
        if text.len() == 36
            && let Ok(uuid) = Uuid::try_parse(text)
            && uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text
        {
            return Ok(Self(Identity::Uuid(uuid)));
        }
        Ok(Self(Identity::Text(text.into())))
    }

    /// An id from the 16 bytes that [`TaskId::form`] gave.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Identity::Uuid(Uuid::from_bytes(bytes)))
    }

    /// How a store keeps this id.
    pub fn form(&self) -> IdForm<'_> {
        match &self.0 {
            Identity::Uuid(uuid) => IdForm::Uuid(uuid.as_bytes()),
            Identity::Text(text) => IdForm::Text(text),
        }
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Identity::Uuid(uuid) => f.pad(uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer())),
            Identity::Text(text) => f.pad(text),
        }
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TaskId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl Serialize for TaskId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Identity::Uuid(uuid) => {
                serializer.serialize_str(uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
            Identity::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for TaskId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(text).map_err(serde::de::Error::custom)
    }
}

/// The identity of a group of tasks that report to one fan-in.
pub type GroupId = TaskId;

/// How much a task matters: 0 (last) to 9 (first), 5 by default.
///
/// Priority decides the order of tasks that became ready at the same time; a task that waits rises
/// (five minutes a level), so nothing starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    /// 0: after everything else.
    pub const LAST: Self = Self(0);
    /// 3.
    pub const LOW: Self = Self(3);
    /// 5, the default.
    pub const NORMAL: Self = Self(5);
    /// 7.
    pub const HIGH: Self = Self(7);
    /// 9: before everything else.
    pub const FIRST: Self = Self(9);

    /// A priority from its number.
    ///
    /// # Errors
    /// [`InvalidPriority`] above 9.
    pub const fn new(level: u8) -> Result<Self, InvalidPriority> {
        if level > 9 { Err(InvalidPriority(level)) } else { Ok(Self(level)) }
    }

    /// The number, 0 to 9.
    pub const fn level(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Priority {
    type Err = InvalidPriority;
    fn from_str(text: &str) -> Result<Self, InvalidPriority> {
        text.parse().map_err(|_| InvalidPriority(u8::MAX)).and_then(Self::new)
    }
}

impl Serialize for Priority {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(u8::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A priority that is not a whole number from 0 to 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid priority: it is a whole number from 0 (last) to 9 (first)")]
pub struct InvalidPriority(u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_at_its_limit_passes_and_one_over_does_not() {
        assert!(QueueName::new("q".repeat(NAME_BYTES_MAX)).is_ok());
        assert!(QueueName::new("q".repeat(NAME_BYTES_MAX + 1)).is_err());
        assert!(QueueName::new("").is_err());
        assert!(QueueName::new("taskiq:default:queue").is_ok());
    }

    #[test]
    fn a_hostile_name_is_shown_short_and_escaped() {
        let message = TaskName::new("a\u{1b}[31m\n".repeat(100)).unwrap_err().to_string();
        assert!(message.len() < 400 && !message.contains('\n') && !message.contains('\u{1b}'), "{message}");
    }

    #[test]
    fn an_id_comes_back_exactly_as_it_was_written() {
        for text in [
            "0192e4a5-7d6c-7000-8000-000000000001",
            "0192E4A5-7D6C-7000-8000-000000000001",
            "0192e4a57d6c70008000000000000001",
            "order-1017",
        ] {
            assert_eq!(TaskId::new(text).unwrap().to_string(), text);
        }
        assert!(matches!(TaskId::random().form(), IdForm::Uuid(_)));
    }

    #[test]
    fn ids_made_later_sort_later() {
        let ids: Vec<_> = (0..1000).map(|_| TaskId::random()).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_priority_is_0_to_9() {
        assert_eq!("9".parse(), Ok(Priority::FIRST));
        assert!("10".parse::<Priority>().is_err());
        assert!("-1".parse::<Priority>().is_err());
    }
}
