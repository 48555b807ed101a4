//! What `#[derive(Task)]` makes of a struct: the whole way from the source text to an argument that is read.

extern crate windlass_core as windlass;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use windlass::retry::{ATTEMPTS_MAX, Backoff, RetryPolicy};
use windlass::task::{Definition, Fields, HARD_LIMIT_DEFAULT, Options, Presence};
use windlass::{Args, Envelope, Feed, Json, Priority, Rule, Secret, Task, Timestamp};

/// Reads `json` as the worker reads it.
fn decode<T: Task>(json: &str) -> Result<T, String> {
    let args = Args::parse(json).expect("valid arguments");
    args.decode(T::definition().fields.named(), &Feed::Nothing, None).map_err(|error| error.to_string())
}

fn names<T: Task>() -> String {
    T::definition().fields.to_string()
}

/// Sends a mail.
///
/// It is written in the language
/// of the reader.
#[derive(Debug, PartialEq, Task, Serialize, Deserialize)]
#[task(name = "mail.send", queue = "email", priority = 7, retries = 3, backoff = "60s * 2^n up to 5m", jitter = 0.5)]
#[task(age_max = "1d", never_retry("declined", "not_found"), only_retry("timeout"))]
#[task(soft_limit = "4m", hard_limit = "5m", expires_after = "10m", result_ttl = "0s", output = Receipt, input = "to")]
#[task(rate = "100/m burst 10", concurrency = 4, key_rate = "10/s", key_concurrency = 2)]
struct SendMail {
    /// Whom to
    /// write to.
    to: String,
    #[serde(default)]
    copies: u32,
    language: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Receipt {
    sent: bool,
}

#[derive(Debug, PartialEq, Task, Serialize, Deserialize)]
struct HTTPPing;

#[test]
fn every_option_reaches_the_definition() {
    let retry = RetryPolicy {
        attempts_max: 4,
        backoff: Backoff::formula("60s * 2^n up to 5m"),
        jitter: 0.5,
        age_max: Some(Duration::from_secs(86_400)),
        never: vec!["declined".into(), "not_found".into()],
        only: vec!["timeout".into()],
    };
    let options = Options {
        queue: windlass::QueueName::known("email"),
        priority: Priority::HIGH,
        retry,
        soft_limit: Some(Duration::from_secs(240)),
        hard_limit: Duration::from_secs(300),
        expires_after: Some(Duration::from_secs(600)),
        result_ttl: Some(Duration::ZERO),
        input: Some("to"),
        limit: Rule { rate: Some("100/m burst 10".parse().unwrap()), concurrency: Some(4), ..Rule::default() },
        key_limit: Rule { rate: Some("10/s".parse().unwrap()), concurrency: Some(2), ..Rule::default() },
    };
    assert_eq!(SendMail::definition().options, options);
    assert_eq!(SendMail::definition().name.as_str(), "mail.send");
    assert_eq!(SendMail::NAME, "mail.send");
}

#[test]
fn what_is_not_said_has_the_defaults_of_the_engine() {
    let definition = HTTPPing::definition();
    assert_eq!(definition.options, Options::default());
    assert_eq!(definition.options.hard_limit, HARD_LIMIT_DEFAULT);
    assert_eq!((definition.name.as_str(), definition.doc.as_str()), ("http_ping", ""));
    assert_eq!(definition.output, json!({"type": "null"}));
}

#[test]
fn a_definition_is_made_once() {
    assert!(std::ptr::eq::<Definition>(SendMail::definition(), SendMail::definition()));
}

#[test]
fn doc_comments_are_the_documentation() {
    assert_eq!(SendMail::definition().doc, "Sends a mail.\n\nIt is written in the language of the reader.");
    assert_eq!(SendMail::definition().fields.named().unwrap()[0].doc, "Whom to write to.");
}

#[test]
fn the_schema_tells_names_types_and_what_is_required() {
    assert_eq!(
        SendMail::definition().schema(),
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "mail.send",
            "description": "Sends a mail.\n\nIt is written in the language of the reader.",
            "type": "object",
            "properties": {
                "to": {"type": "string", "description": "Whom to write to."},
                "copies": {"type": "integer", "format": "uint32", "minimum": 0},
                "language": {"type": ["string", "null"]},
            },
            "required": ["to"],
            "additionalProperties": false,
        })
    );
    assert_eq!(SendMail::definition().output["properties"], json!({"sent": {"type": "boolean"}}));
}

#[test]
fn a_task_comes_back_as_it_was_pushed() {
    let mail = SendMail { to: "a@b".into(), copies: 2, language: None };
    let envelope = Envelope::of(&mail, Timestamp::from_secs(1_000)).unwrap();
    assert_eq!(envelope.expires, Some(Timestamp::from_secs(1_600)));
    assert_eq!(envelope.feed, Feed::Field("to".into()));
    let read = envelope.args.decode(SendMail::definition().fields.named(), &envelope.feed, None);
    assert_eq!(read, Ok(mail));
}

#[test]
fn the_result_before_takes_the_place_of_the_input() {
    let mail = SendMail { to: String::new(), copies: 0, language: None };
    let envelope = Envelope::of(&mail, Timestamp::MIN).unwrap();
    let before = Json::of("c@d").unwrap();
    let read: SendMail =
        envelope.args.decode(SendMail::definition().fields.named(), &envelope.feed, Some(&before)).unwrap();
    assert_eq!(read.to, "c@d");
}

#[test]
fn a_unit_struct_takes_no_arguments() {
    let envelope = Envelope::of(&HTTPPing, Timestamp::MIN).unwrap();
    assert_eq!(envelope.args, Args::none());
    assert_eq!(decode::<HTTPPing>("{}"), Ok(HTTPPing));
    assert_eq!(decode::<HTTPPing>(r#"{"a":1}"#), Err("unknown argument `a`; the task takes no arguments".to_owned()));
    assert_eq!(HTTPPing::definition().schema()["properties"], json!({}));
}

#[test]
fn retries_go_up_to_the_limit_of_the_engine() {
    #[derive(Task, Serialize, Deserialize)]
    #[task(retries = 9_999, backoff = "1s, 5s,30s", priority = 0, jitter = 0)]
    struct Stubborn;
    #[derive(Task, Serialize, Deserialize)]
    #[task(retries = 0)]
    struct Once;

    let options = &Stubborn::definition().options;
    assert_eq!(options.retry.attempts_max, ATTEMPTS_MAX);
    assert_eq!(options.retry.backoff.to_string(), "1s, 5s, 30s");
    assert_eq!(options.priority, Priority::LAST);
    assert_eq!(Once::definition().options.retry.attempts_max, 1);
}

#[test]
fn arguments_have_the_names_that_serde_reads() {
    #[derive(Debug, PartialEq, Task, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Sync {
        user_id: u64,
        #[serde(rename = "kind")]
        r#type: String,
        r#loop: bool,
        #[serde(alias = "oldName", alias = "olderName")]
        new_name: u8,
        #[serde(rename(deserialize = "READ"), skip_serializing, default)]
        read_only: u8,
        #[serde(skip)]
        cache: Vec<u8>,
    }
    assert_eq!(names::<Sync>(), "userId, kind, loop, newName, READ?");
    assert_eq!(Sync::definition().fields.named().unwrap()[3].aliases, ["oldName", "olderName"]);
    let task = Sync { user_id: 1, r#type: "a".into(), r#loop: true, new_name: 2, read_only: 0, cache: Vec::new() };
    assert_eq!(decode(Args::of(&task).unwrap().keyword().unwrap().as_str()), Ok(task));
    assert!(decode::<Sync>(r#"{"userId":1,"kind":"a","loop":true,"oldName":2,"READ":1}"#).is_ok());
    assert_eq!(
        decode::<Sync>(r#"{"user_id":1}"#).unwrap_err(),
        "unknown argument `user_id` (did you mean `userId`?); the task takes userId, kind, loop, newName, READ"
    );
}

#[test]
fn an_argument_may_be_left_out_where_serde_has_something_in_its_place() {
    #[derive(Default, Task, Serialize, Deserialize)]
    #[serde(default)]
    struct AllHaveDefaults {
        a: u8,
        b: String,
    }

    #[derive(Task, Serialize, Deserialize)]
    struct Mixed {
        plain: std::option::Option<u8>,
        #[serde(with = "windlass::time::duration_text::option")]
        with: Option<Duration>,
        #[serde(default, with = "windlass::time::duration_text")]
        with_default: Duration,
        #[serde(default = "seven")]
        function: u8,
        list: Vec<Option<u8>>,
    }
    fn seven() -> u8 {
        7
    }

    assert_eq!(names::<AllHaveDefaults>(), "a?, b?");
    assert_eq!(names::<Mixed>(), "plain?, with, with_default?, function?, list");
    // The derive must agree with serde itself.
    let mixed: Mixed = decode(r#"{"with":"1s","list":[]}"#).unwrap();
    assert_eq!((mixed.plain, mixed.function), (None, 7));
    assert_eq!(decode::<Mixed>(r#"{"list":[]}"#).err().unwrap(), "missing field `with`");
}

#[test]
fn a_flattened_field_or_the_word_any_takes_any_argument() {
    #[derive(Task, Serialize, Deserialize)]
    struct Webhook {
        url: String,
        #[serde(flatten)]
        rest: std::collections::BTreeMap<String, u8>,
    }
    #[derive(Task, Serialize, Deserialize)]
    #[task(any, input = "whatever")]
    struct Loose {
        #[serde(default)]
        a: u8,
    }
    assert_eq!(Webhook::definition().fields, Fields::Any);
    let webhook: Webhook = decode(r#"{"url":"u","x":1}"#).unwrap();
    assert_eq!((webhook.url.as_str(), webhook.rest["x"]), ("u", 1));
    assert_eq!(Loose::definition().fields, Fields::Any);
    assert_eq!(decode::<Loose>(r#"{"b":1}"#).unwrap().a, 0);
    assert_eq!(Loose::definition().schema().get("properties"), None);
}

/// Refers to itself.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Tree {
    children: Vec<Tree>,
}

#[derive(Serialize, Deserialize)]
struct WithoutSchema;

#[derive(Task, Serialize, Deserialize)]
#[task(output = WithoutSchema)]
struct Typed {
    token: Secret<String>,
    unknown: WithoutSchema,
    unknown_list: Vec<WithoutSchema>,
    tree: Tree,
    #[serde(with = "windlass::time::duration_text")]
    delay: Duration,
}

#[test]
fn a_type_tells_its_schema_where_it_has_one() {
    let schema = Typed::definition().schema();
    let properties = &schema["properties"];
    assert_eq!(properties["token"], json!({"type": "string", "writeOnly": true}));
    assert_eq!((&properties["unknown"], &properties["unknown_list"]), (&json!({}), &json!({})));
    assert_eq!(properties["delay"], json!({}), "it travels as text, not as the type tells");
    assert_eq!(Typed::definition().output, json!({}));
}

#[test]
fn a_type_that_holds_itself_is_defined_at_the_root() {
    let schema = Typed::definition().schema();
    let reference = schema["properties"]["tree"]["properties"]["children"]["items"]["$ref"].as_str().unwrap();
    let pointer = reference.strip_prefix('#').unwrap();
    assert_eq!(schema.pointer(pointer).unwrap()["type"], "object", "{reference}");
    assert_eq!(schema["properties"]["tree"].get("$defs"), None);
}

#[test]
fn presence_is_said_in_words() {
    let presence: Vec<_> = SendMail::definition().fields.named().unwrap().iter().map(|field| field.presence).collect();
    assert_eq!(presence, [Presence::Required, Presence::Optional, Presence::Optional]);
}

/// Names of the generated code must not get in the way of names that a field's type uses.
mod hygiene {
    use super::{Deserialize, Serialize, Task};

    const DURATION: usize = 3;

    #[derive(Task, Serialize, Deserialize)]
    #[task(crate = "windlass_core", hard_limit = "5m")]
    struct Fixed {
        bytes: [u8; DURATION],
        parent: Option<Box<Self>>,
    }

    #[test]
    fn the_crate_may_be_elsewhere_and_names_do_not_clash() {
        assert_eq!(Fixed::definition().schema()["properties"]["bytes"]["maxItems"], 3);
        assert_eq!(super::names::<Fixed>(), "bytes, parent?");
    }
}
