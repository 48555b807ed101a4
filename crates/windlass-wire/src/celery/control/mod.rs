//! Remote control: `celery inspect`, `celery control` and the buttons of Flower.
//!
//! A request is broadcast to every worker through the exchange [`EXCHANGE`]. A worker that is meant and asked for an
//! answer sends one to the exchange and routing key that the request names, under its own name and **with the request's
//! ticket in the headers**: a client drops an answer without it.
//!
//! | method | answer |
//! |---|---|
//! | `ping`, `clock`, `report`, `hello` | [`answer::pong`], [`answer::clock`], [`answer::ok`], [`answer::hello`] |
//! | `active`, `reserved`, `scheduled`, `query_task` | [`answer::TaskInfo`] and [`answer::scheduled`] |
//! | `stats`, `active_queues` | [`answer::Stats`], [`answer::queue`] |
//! | everything that changes something | [`answer::ok`] with a text, or [`answer::error`] |

pub mod answer;
mod command;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use windlass_core::Timestamp;

pub use command::Command;

use crate::error::Malformed;
use crate::frame::{Frame, Properties};
use crate::json;

/// The exchange of requests: fanout.
pub const EXCHANGE: &str = "celery.pidbox";
/// The exchange of answers: direct.
pub const REPLY_EXCHANGE: &str = "reply.celery.pidbox";
/// The largest request or answer that is read, in bytes.
pub const CONTROL_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most nodes that a request names.
pub const DESTINATIONS_MAX: usize = 10_000;

/// How a pattern of node names is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matcher {
    /// As file names in a shell: `*`, `?`, `[abc]`.
    Glob,
    /// A regular expression.
    Pcre,
}

/// Which nodes a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// All of them.
    All,
    /// Those with these names.
    Nodes(Vec<String>),
    /// Those whose name matches.
    Pattern(String, Matcher),
}

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ReplyTo {
    /// The exchange, [`REPLY_EXCHANGE`].
    pub exchange: String,
    /// The routing key: the client. On Redis the queue is found in the exchange's bindings.
    pub routing_key: String,
}

/// A control request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// Which nodes it is for.
    pub destination: Destination,
    /// The client's name for the request; copied into the answer.
    pub ticket: Option<String>,
    /// Where an answer goes; without one none is wanted.
    pub reply_to: Option<ReplyTo>,
    /// The Lamport clock of the client.
    pub clock: u64,
    /// The client does not wait longer than to this time.
    pub expires: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Body {
    method: String,
    #[serde(default)]
    arguments: Option<Map<String, Value>>,
    #[serde(default)]
    destination: Option<Value>,
    #[serde(default)]
    pattern: Option<String>,
    #[serde(default)]
    matcher: Option<String>,
    #[serde(default)]
    ticket: Option<String>,
    #[serde(default)]
    reply_to: Option<ReplyTo>,
}

impl Request {
    /// Reads a request. A method that is not known, and arguments that do not fit, are a [`Command`] of their own: they are
    /// answered, not refused.
    ///
    /// # Errors
    /// [`Malformed`] when the body is no JSON object with a `method`.
    pub fn decode(frame: &Frame) -> Result<Self, Malformed> {
        let text = json::text("control request", &frame.body, CONTROL_BYTES_MAX)?;
        let body: Body = json::object("control request", text)?;
        let destination = match (body.destination, body.pattern) {
            (None | Some(Value::Null), None) => Destination::All,
            (None | Some(Value::Null), Some(pattern)) => {
                let matcher = if body.matcher.as_deref() == Some("pcre") { Matcher::Pcre } else { Matcher::Glob };
                Destination::Pattern(pattern, matcher)
            }
            (Some(nodes), _) => Destination::Nodes(
                command::texts(nodes, DESTINATIONS_MAX)
                    .ok_or(Malformed::shape("`destination`", "a list of node names"))?,
            ),
        };
        let seconds = frame.headers.get("expires").and_then(Value::as_f64).filter(|seconds| *seconds > 0.0);
        Ok(Self {
            command: Command::decode(&body.method, body.arguments.unwrap_or_default()),
            destination,
            ticket: body.ticket,
            reply_to: body.reply_to,
            clock: frame.headers.get("clock").and_then(Value::as_u64).unwrap_or(0),
            expires: seconds.map(|seconds| Timestamp::from_micros((seconds * 1_000_000.0) as i64)),
        })
    }

    /// The request as a frame, for a client of ours.
    pub fn frame(&self, delivery_tag: Option<&str>) -> Frame {
        let (nodes, pattern, matcher) = match &self.destination {
            Destination::All => (Value::Null, None, None),
            Destination::Nodes(nodes) => (json!(nodes), None, None),
            Destination::Pattern(pattern, matcher) => {
                let matcher = match matcher {
                    Matcher::Glob => "glob",
                    Matcher::Pcre => "pcre",
                };
                (Value::Null, Some(pattern), Some(matcher))
            }
        };
        let mut body = json!({
            "method": self.command.method(),
            "arguments": self.command.arguments(),
            "destination": nodes,
            "pattern": pattern,
            "matcher": matcher,
        });
        if let Some(ticket) = &self.ticket {
            body["ticket"] = Value::from(ticket.as_str());
        }
        if let Some(reply_to) = &self.reply_to {
            body["reply_to"] = json!({"exchange": reply_to.exchange, "routing_key": reply_to.routing_key});
        }
        let expires = self.expires.map_or(json!(0), |at| json!(at.as_micros() as f64 / 1_000_000.0));
        Frame {
            headers: Map::from_iter([("clock".to_owned(), json!(self.clock)), ("expires".to_owned(), expires)]),
            properties: properties(2, EXCHANGE, "", delivery_tag),
            body: json::python_text(&body.to_string()).into_bytes(),
        }
    }

    /// Whether the client has stopped waiting.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires < now)
    }

    /// Whether this node is meant. A node that is not is silent.
    ///
    /// Patterns that are regular expressions (`matcher` = `pcre`) are not matched: the answer is [`Meant::Unknown`].
    pub fn is_for(&self, node: &str) -> Meant {
        let meant = match &self.destination {
            Destination::All => true,
            Destination::Nodes(nodes) => nodes.iter().any(|name| name == node),
            Destination::Pattern(pattern, Matcher::Glob) => glob(pattern, node),
            Destination::Pattern(_, Matcher::Pcre) => return Meant::Unknown,
        };
        if meant { Meant::Yes } else { Meant::No }
    }

    /// The answer of a node as a frame; `None` when none is wanted.
    pub fn reply(&self, node: &str, answer: &Value, clock: u64, delivery_tag: Option<&str>) -> Option<Frame> {
        let reply_to = self.reply_to.as_ref()?;
        let body = Value::Object(Map::from_iter([(node.to_owned(), answer.clone())]));
        let ticket = self.ticket.as_deref().map_or(Value::Null, Value::from);
        Some(Frame {
            headers: Map::from_iter([("ticket".to_owned(), ticket), ("clock".to_owned(), Value::from(clock))]),
            properties: properties(1, &reply_to.exchange, &reply_to.routing_key, delivery_tag),
            body: json::python_text(&body.to_string()).into_bytes(),
        })
    }
}

/// Whether a node is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    /// It is.
    Yes,
    /// Another one is.
    No,
    /// The pattern is of a kind that is not matched.
    Unknown,
}

/// An answer as a client reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The client's name for the request.
    pub ticket: Option<String>,
    /// The Lamport clock of the node.
    pub clock: u64,
    /// The answers by the names of the nodes; usually one.
    pub answers: Map<String, Value>,
}

impl Reply {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`Malformed`] when the body is no JSON object.
    pub fn decode(frame: &Frame) -> Result<Self, Malformed> {
        let text = json::text("control reply", &frame.body, CONTROL_BYTES_MAX)?;
        Ok(Self {
            ticket: frame.headers.get("ticket").and_then(Value::as_str).map(ToOwned::to_owned),
            clock: frame.headers.get("clock").and_then(Value::as_u64).unwrap_or(0),
            answers: json::object("control reply", text)?,
        })
    }
}

fn properties(delivery_mode: u8, exchange: &str, routing_key: &str, delivery_tag: Option<&str>) -> Properties {
    Properties {
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("utf-8".to_owned()),
        delivery_mode: Some(delivery_mode),
        priority: Some(0),
        delivery_tag: delivery_tag.map(ToOwned::to_owned),
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        ..Properties::default()
    }
}

/// Matches as Python's `fnmatch` does: `*`, `?`, `[a-c]`, `[!a]`. The time is bounded by the product of the lengths.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last `*` does not match here.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match step(&pattern[p.min(pattern.len())..], text[t]) {
            Step::Star => {
                star = Some((p, t));
                p += 1;
            }
            Step::Matches(width) => {
                p += width;
                t += 1;
            }
            Step::Differs => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p.min(pattern.len())..].iter().all(|char| *char == '*')
}

enum Step {
    Star,
    Matches(usize),
    Differs,
}

fn step(pattern: &[char], char: char) -> Step {
    match pattern {
        [] => Step::Differs,
        ['*', ..] => Step::Star,
        ['?', ..] => Step::Matches(1),
        ['[', rest @ ..] => match rest.iter().skip(1).position(|char| *char == ']') {
            // Without an end it is a bracket like any other character.
            None => {
                if char == '[' {
                    Step::Matches(1)
                } else {
                    Step::Differs
                }
            }
            Some(end) => {
                let set = &rest[..=end];
                let (negated, set) = match set {
                    ['!', set @ ..] if !set.is_empty() => (true, set),
                    set => (false, set),
                };
                if in_set(set, char) == negated { Step::Differs } else { Step::Matches(end + 3) }
            }
        },
        [first, ..] => {
            if *first == char {
                Step::Matches(1)
            } else {
                Step::Differs
            }
        }
    }
}

fn in_set(mut set: &[char], char: char) -> bool {
    while let [first, rest @ ..] = set {
        match rest {
            ['-', last, rest @ ..] => {
                if (*first..=*last).contains(&char) {
                    return true;
                }
                set = rest;
            }
            rest => {
                if *first == char {
                    return true;
                }
                set = rest;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn nodes_are_matched_as_file_names_are() {
        for (pattern, node, matches) in [
            ("w*@*", "w1@host", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("w?@host", "w1@host", true),
            ("w?@host", "w12@host", false),
            ("w[0-3]@*", "w2@host", true),
            ("w[0-3]@*", "w4@host", false),
            ("w[!0-3]@*", "w4@host", true),
            ("w[", "w[", true),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxcxxb", false),
            ("w]", "w]", true),
            ("[]]", "]", true),
        ] {
            assert_eq!(glob(pattern, node), matches, "{pattern} {node}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_time() {
        assert!(!glob(&"*a".repeat(200), &"a".repeat(199)));
    }
}
