//! What a task is before any instance of it exists: its name, its arguments, its options. Made by `#[derive(Task)]`.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::args::{Args, InvalidArgs};
use crate::envelope::Envelope;
use crate::retry::RetryPolicy;
use crate::{Priority, QueueName, Rule, TaskName};

/// The hard limit of a task that names none: a handler that never returns must not hold a slot for ever.
pub const HARD_LIMIT_DEFAULT: Duration = Duration::from_secs(3600);

/// A named, typed unit of work. Derive it: [`macro@crate::Task`] lists what `#[task(..)]` takes.
///
/// ```
/// # extern crate windlass_core as windlass;
/// use serde::{Deserialize, Serialize};
/// use windlass::Task;
///
/// /// Mails the verification link.
/// #[derive(Task, Serialize, Deserialize)]
/// #[task(name = "send_verification_email", queue = "email", priority = 7, retries = 3, backoff = "60s * 2^n")]
/// #[task(soft_limit = "4m", hard_limit = "5m")]
/// struct SendVerificationEmail {
///     /// Whom to write to.
///     email: String,
///     /// The language of the mail.
///     #[serde(default)]
///     language: Option<String>,
/// }
///
/// let definition = SendVerificationEmail::definition();
/// assert_eq!(definition.doc, "Mails the verification link.");
/// assert_eq!(definition.options.queue.as_str(), "email");
/// assert_eq!(definition.schema()["required"], serde_json::json!(["email"]));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a task",
    note = "derive it: `#[derive(Task, Serialize, Deserialize)]` on a struct with named fields"
)]
pub trait Task: Serialize + DeserializeOwned + Send + 'static {
    /// What it returns.
    type Output: Serialize + DeserializeOwned + Send + 'static;
    /// Its name in the store: part of the contract between producers and workers.
    const NAME: &'static str;
    /// Everything that is known of it. Made by the first call and kept: every push asks for it.
    fn definition() -> &'static Definition;
}

/// Everything that is known of a task before any instance of it exists.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Its name.
    pub name: TaskName,
    /// The doc comment of its type, trimmed; each paragraph is one line.
    pub doc: String,
    /// Its arguments.
    pub fields: Fields,
    /// Its options.
    pub options: Options,
    /// The JSON Schema of its output, as far as the type tells.
    pub output: Value,
}

/// The arguments that a task takes.
#[derive(Debug, Clone, PartialEq)]
pub enum Fields {
    /// These; others are refused.
    Named(Vec<Field>),
    /// Any.
    Any,
}

impl Fields {
    /// The arguments by position; `None` when any are taken.
    pub fn named(&self) -> Option<&[Field]> {
        match self {
            Self::Named(fields) => Some(fields),
            Self::Any => None,
        }
    }
}

/// One argument.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Its name, as producers write it.
    pub name: &'static str,
    /// Other names that are accepted: those that producers wrote before.
    pub aliases: &'static [&'static str],
    /// Whether it may be left out.
    pub presence: Presence,
    /// Its doc comment.
    pub doc: &'static str,
    /// Its JSON Schema, as far as the type tells.
    pub schema: Value,
}

/// Whether an argument may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It must be given.
    Required,
    /// It has a default.
    Optional,
}

impl Field {
    /// An argument that must be given, of any type.
    pub const fn required(name: &'static str) -> Self {
        Self { name, aliases: &[], presence: Presence::Required, doc: "", schema: Value::Null }
    }

    /// An argument with a default, of any type.
    pub const fn optional(name: &'static str) -> Self {
        Self { name, aliases: &[], presence: Presence::Optional, doc: "", schema: Value::Null }
    }

    /// Whether it may be given by this name.
    pub fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }
}

/// How a task runs when its envelope says nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Where it waits.
    pub queue: QueueName,
    /// How much it matters.
    pub priority: Priority,
    /// When and how often it is tried again.
    pub retry: RetryPolicy,
    /// After this long the handler is asked to end.
    pub soft_limit: Option<Duration>,
    /// After this long the attempt is over, whatever the handler does; [`HARD_LIMIT_DEFAULT`].
    pub hard_limit: Duration,
    /// An instance that has not been started after this long is not started any more.
    pub expires_after: Option<Duration>,
    /// How long results are kept, instead of the store's retention; zero keeps none.
    pub result_ttl: Option<Duration>,
    /// The argument that takes the result of the step before in a workflow.
    pub input: Option<&'static str>,
    /// What is allowed to all instances together, wherever they wait; declared when a node starts.
    pub limit: Rule,
    /// What is allowed to the instances of each key; declared when a node starts.
    pub key_limit: Rule,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue: QueueName::default(),
            priority: Priority::default(),
            retry: RetryPolicy::default(),
            soft_limit: None,
            hard_limit: HARD_LIMIT_DEFAULT,
            expires_after: None,
            result_ttl: None,
            input: None,
            limit: Rule::default(),
            key_limit: Rule::default(),
        }
    }
}

impl Definition {
    /// The JSON Schema of the arguments, by name. Aliases are accepted, but not advertised.
    pub fn schema(&self) -> Value {
        let mut schema = serde_json::json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.name.as_str(),
            "type": "object",
        });
        if !self.doc.is_empty() {
            schema["description"] = Value::from(self.doc.as_str());
        }
        if let Fields::Named(fields) = &self.fields {
            let mut properties = serde_json::Map::new();
            let mut shared = serde_json::Map::new();
            for field in fields {
                let mut property = field.schema.as_object().cloned().unwrap_or_default();
                // A type that holds itself refers to its definition from the root: `#/$defs/Tree`.
                if let Some(Value::Object(definitions)) = property.remove("$defs") {
                    shared.extend(definitions);
                }
                if !field.doc.is_empty() {
                    property.insert("description".to_owned(), Value::from(field.doc));
                }
                properties.insert(field.name.to_owned(), Value::Object(property));
            }
            schema["properties"] = Value::Object(properties);
            if !shared.is_empty() {
                schema["$defs"] = Value::Object(shared);
            }
            schema["required"] = fields
                .iter()
                .filter(|field| field.presence == Presence::Required)
                .map(|field| field.name)
                .collect::<Vec<_>>()
                .into();
            schema["additionalProperties"] = Value::Bool(false);
        }
        schema
    }

    /// An instance of this task with its arguments and the defaults of its options.
    pub fn instance(&self, args: Args, now: crate::Timestamp) -> Envelope {
        let mut envelope = Envelope::new(self.name.clone(), self.options.queue.clone(), args);
        envelope.priority = self.options.priority;
        envelope.expires = self.options.expires_after.map(|after| now + after);
        envelope.result_ttl = self.options.result_ttl;
        if let Some(field) = self.options.input {
            envelope.feed = crate::args::Feed::Field(field.to_owned());
        }
        envelope
    }
}

impl Envelope {
    /// The envelope of a typed task: step 2 of the main line. Pure.
    ///
    /// # Errors
    /// [`InvalidArgs`] when the task does not serialise to a JSON object.
    pub fn of<T: Task>(task: &T, now: crate::Timestamp) -> Result<Self, InvalidArgs> {
        Ok(T::definition().instance(Args::of(task)?, now))
    }
}

/// A task in the catalogue, as `windlass task definitions --json` prints it.
impl Serialize for Definition {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let Options { retry, limit, key_limit, .. } = &self.options;
        let mut entry = serializer.serialize_struct("Definition", 16)?;
        entry.serialize_field("name", &self.name)?;
        entry.serialize_field("doc", &self.doc)?;
        entry.serialize_field("queue", &self.options.queue)?;
        entry.serialize_field("priority", &self.options.priority)?;
        entry.serialize_field("retries", &(retry.attempts_max - 1))?;
        entry.serialize_field("backoff", &retry.backoff)?;
        entry.serialize_field("soft_limit", &self.options.soft_limit.map(crate::format_duration))?;
        entry.serialize_field("hard_limit", &crate::format_duration(self.options.hard_limit))?;
        entry.serialize_field("expires_after", &self.options.expires_after.map(crate::format_duration))?;
        entry.serialize_field("result_ttl", &self.options.result_ttl.map(crate::format_duration))?;
        entry.serialize_field("rate", &limit.rate)?;
        entry.serialize_field("concurrency", &limit.concurrency)?;
        entry.serialize_field("key_rate", &key_limit.rate)?;
        entry.serialize_field("key_concurrency", &key_limit.concurrency)?;
        entry.serialize_field("arguments", &self.schema())?;
        entry.serialize_field("output", &self.output)?;
        entry.end()
    }
}

impl fmt::Display for Fields {
    /// The names in their order; `?` marks those with a default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Named(fields) => {
                for (index, field) in fields.iter().enumerate() {
                    let separator = if index > 0 { ", " } else { "" };
                    let mark = if field.presence == Presence::Optional { "?" } else { "" };
                    write!(f, "{separator}{}{mark}", field.name)?;
                }
                Ok(())
            }
        }
    }
}

/// What `#[derive(Task)]` expands to needs this; nobody else does.
///
/// A limit or a backoff that is written wrong does not compile:
/// ```
/// # extern crate windlass_core as windlass;
/// #[derive(windlass::Task, serde::Serialize, serde::Deserialize)]
/// #[task(soft_limit = "4m", hard_limit = "5m", backoff = "1s, 5s")]
/// struct Clean;
/// ```
/// ```compile_fail,E0080
/// # extern crate windlass_core as windlass;
/// #[derive(windlass::Task, serde::Serialize, serde::Deserialize)]
/// #[task(hard_limit = "5 minutes")]
/// struct Clean;
/// ```
/// ```compile_fail,E0080
/// # extern crate windlass_core as windlass;
/// #[derive(windlass::Task, serde::Serialize, serde::Deserialize)]
/// #[task(soft_limit = "2h")]
/// struct LongerThanTheDefaultHardLimit;
/// ```
/// ```compile_fail,E0080
/// # extern crate windlass_core as windlass;
/// #[derive(windlass::Task, serde::Serialize, serde::Deserialize)]
/// #[task(backoff = "1s ** n")]
/// struct Clean;
/// ```
/// ```compile_fail,E0080
/// # extern crate windlass_core as windlass;
/// #[derive(windlass::Task, serde::Serialize, serde::Deserialize)]
/// #[task(rate = "100 a minute")]
/// struct Clean;
/// ```
/// ```compile_fail,E0080
/// # extern crate windlass_core as windlass;
/// #[derive(windlass::Task, serde::Serialize, serde::Deserialize)]
/// #[task(key_rate = "0/s")]
/// struct Never;
/// ```
#[doc(hidden)]
pub mod derive {
    use std::marker::PhantomData;

    use serde_json::Value;

    /// Answers the JSON Schema of a type that has one, and an empty schema for any other type.
    ///
    /// Call it as `(&Probe::<T>::new()).schema()`: the method of [`WithSchema`] takes `&Probe<T>` as it is, that of
    /// [`WithoutSchema`] needs one more reference, and the compiler looks for the latter only when the former is not
    /// there. It works for concrete types only, which is what a derive has.
    pub struct Probe<T>(PhantomData<T>);

    impl<T> Probe<T> {
        #[must_use]
        pub const fn new() -> Self {
            Self(PhantomData)
        }
    }

    impl<T> Default for Probe<T> {
        fn default() -> Self {
            Self::new()
        }
    }

    pub trait WithSchema {
        fn schema(&self) -> Value;
    }

    impl<T: schemars::JsonSchema> WithSchema for Probe<T> {
        fn schema(&self) -> Value {
            let mut generator = schemars::generate::SchemaSettings::draft2020_12()
                .with(|settings| settings.inline_subschemas = true)
                .into_generator();
            let mut schema = generator.subschema_for::<T>();
            // Everything is inlined but types that hold themselves.
            let definitions = generator.take_definitions(true);
            if !definitions.is_empty() {
                schema.insert("$defs".to_owned(), Value::Object(definitions));
            }
            schema.into()
        }
    }

    pub trait WithoutSchema {
        fn schema(&self) -> Value;
    }

    impl<T> WithoutSchema for &Probe<T> {
        fn schema(&self) -> Value {
            any_schema()
        }
    }

    /// The schema that everything fulfils.
    #[must_use]
    pub fn any_schema() -> Value {
        Value::Object(serde_json::Map::new())
    }
}
