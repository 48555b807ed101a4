//! The arguments of a task: positional and keyword, kept as JSON text until the handler's type is known.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::Json;
use crate::json::InvalidJson;
use crate::task::Field;

/// Enough for a reference and some context; larger payloads belong in a blob store and slow every listing. In bytes,
/// positional and keyword arguments together.
pub const ARGS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Arguments as they travel: a JSON array and a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    positional: Option<Json>,
    keyword: Option<Json>,
}

/// How the result of the step before reaches a task.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feed {
    /// It does not.
    #[default]
    Nothing,
    /// As this keyword argument, in place of the one that is there.
    Field(String),
    /// As the first positional argument, before those that are there.
    First,
}

/// Where a type that takes any field finds the positional arguments.
///
/// ```
/// # extern crate windlass_core as windlass;
/// use serde::{Deserialize, Serialize};
/// use serde_json::{Map, Value};
/// use windlass::Task;
///
/// /// Takes whatever it is given.
/// #[derive(Task, Serialize, Deserialize)]
/// struct Echo {
///     #[serde(rename = "*", default)]
///     args: Vec<Value>,
///     #[serde(flatten)]
///     kwargs: Map<String, Value>,
/// }
///
/// let given = windlass::Args::new(Some(windlass::Json::parse("[1, 2]")?), None)?;
/// let echo: Echo = given.decode(Echo::definition().fields.named(), &windlass::Feed::Nothing, None)?;
/// assert_eq!(echo.args, [1, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub const ALL_POSITIONAL: &str = "*";

impl Args {
    /// No arguments.
    pub const fn none() -> Self {
        Self { positional: None, keyword: None }
    }

    /// The fields of a task's own type, as keyword arguments.
    ///
    /// # Errors
    /// [`InvalidArgs`] when the type does not serialise to a JSON object.
    pub fn of<T: Serialize>(task: &T) -> Result<Self, InvalidArgs> {
        let json = Json::of(task)?;
        match json.as_str() {
            // A unit struct has no arguments.
            "{}" | "null" => Ok(Self::none()),
            text if text.starts_with('{') => Ok(Self { positional: None, keyword: Some(json) }),
            _ => Err(InvalidArgs::NotAnObject),
        }
    }

    /// Arguments from outside: JSON text of an object (keyword) or an array (positional).
    ///
    /// # Errors
    /// [`InvalidArgs`] for anything else, with the reason.
    pub fn parse(text: &str) -> Result<Self, InvalidArgs> {
        let json = Json::parse(text)?;
        match json.as_str().as_bytes().first() {
            Some(b'{') => Self::new(None, Some(json)),
            Some(b'[') => Self::new(Some(json), None),
            _ => Err(InvalidArgs::NotAnObject),
        }
    }

    /// Both kinds of arguments: an array, an object.
    ///
    /// # Errors
    /// [`InvalidArgs`] when `positional` is not an array or `keyword` is not an object.
    pub fn new(positional: Option<Json>, keyword: Option<Json>) -> Result<Self, InvalidArgs> {
        if positional.as_ref().is_some_and(|json| !json.as_str().starts_with('[')) {
            return Err(InvalidArgs::NotAnArray);
        }
        if keyword.as_ref().is_some_and(|json| !json.as_str().starts_with('{')) {
            return Err(InvalidArgs::NotAnObject);
        }
        let non_empty = |json: &Json| !matches!(json.as_str(), "[]" | "{}");
        Ok(Self { positional: positional.filter(non_empty), keyword: keyword.filter(non_empty) })
    }

    /// The positional arguments, a JSON array, when there are any.
    pub fn positional(&self) -> Option<&Json> {
        self.positional.as_ref()
    }

    /// The keyword arguments, a JSON object, when there are any.
    pub fn keyword(&self) -> Option<&Json> {
        self.keyword.as_ref()
    }

    /// The size of both, in bytes.
    pub fn size(&self) -> usize {
        [&self.positional, &self.keyword].into_iter().flatten().map(|json| json.as_str().len()).sum()
    }

    /// Reads the arguments as the type of a task.
    ///
    /// Positional arguments take the fields in their order. `fields` is `None` for a type that takes any field: it finds them as
    /// a list in the field [`ALL_POSITIONAL`].
    ///
    /// # Errors
    /// [`InvalidArgs`] in words that name the argument: unknown, given twice, too many, missing, of the wrong type.
    pub fn decode<T: DeserializeOwned>(
        &self,
        fields: Option<&[Field]>,
        feed: &Feed,
        input: Option<&Json>,
    ) -> Result<T, InvalidArgs> {
        let fed = input.filter(|_| *feed != Feed::Nothing);
        if self.positional.is_none() && fed.is_none() {
            let text = self.keyword.as_ref().map_or("{}", Json::as_str);
            if let (Some(fields), Some(_)) = (fields, &self.keyword) {
                check_names(text, fields)?;
            }
            return read(text);
        }
        if let (None, Feed::First | Feed::Nothing) = (fields, feed) {
            let all = self.all_positional(if *feed == Feed::First { fed } else { None })?;
            let list = serde_json::value::to_raw_value(&all).map_err(|error| InvalidArgs::Shape(error.to_string()))?;
            let none = Self { positional: None, keyword: self.keyword.clone() };
            let mut named = none.merge(&[], &Feed::Nothing, None)?;
            if named.insert(ALL_POSITIONAL.to_owned(), &list).is_some() {
                return Err(InvalidArgs::Twice(ALL_POSITIONAL.to_owned()));
            }
            let text = serde_json::to_string(&named).map_err(|error| InvalidArgs::Shape(error.to_string()))?;
            return read(&text);
        }
        let merged = self.merge(fields.unwrap_or_default(), feed, fed)?;
        let text = serde_json::to_string(&merged).map_err(|error| InvalidArgs::Shape(error.to_string()))?;
        if let Some(fields) = fields {
            check_names(&text, fields)?;
        }
        read(&text)
    }

    /// The positional arguments, the result of the task before in front.
    fn all_positional<'a>(&'a self, fed: Option<&'a Json>) -> Result<Vec<&'a RawValue>, InvalidArgs> {
        let mut positional: Vec<&RawValue> = match &self.positional {
            Some(positional) => serde_json::from_str(positional.as_str()).map_err(InvalidArgs::shape)?,
            None => Vec::new(),
        };
        if let Some(fed) = fed {
            positional.insert(0, serde_json::from_str(fed.as_str()).map_err(InvalidArgs::shape)?);
        }
        Ok(positional)
    }

    /// One object of all arguments by name.
    fn merge<'a>(
        &'a self,
        fields: &[Field],
        feed: &Feed,
        fed: Option<&'a Json>,
    ) -> Result<BTreeMap<String, &'a RawValue>, InvalidArgs> {
        let mut merged: BTreeMap<String, &RawValue> = match &self.keyword {
            Some(keyword) => serde_json::from_str(keyword.as_str()).map_err(InvalidArgs::shape)?,
            None => BTreeMap::new(),
        };
        let positional = self.all_positional(fed.filter(|_| *feed == Feed::First))?;
        match (feed, fed) {
            (Feed::Field(name), Some(value)) => {
                let value: &RawValue = serde_json::from_str(value.as_str()).map_err(InvalidArgs::shape)?;
                // In place of the one that is there, under whichever of its names.
                if let Some(field) = fields.iter().find(|field| field.name == name) {
                    merged.retain(|given, _| !field.answers_to(given));
                }
                merged.insert(name.clone(), value);
            }
            (Feed::First | Feed::Nothing, _) | (_, None) => {}
        }
        if positional.len() > fields.len() {
            return Err(InvalidArgs::TooMany { given: positional.len(), takes: fields.len() });
        }
        for (field, value) in fields.iter().zip(positional) {
            if merged.keys().any(|given| field.answers_to(given)) {
                return Err(InvalidArgs::Twice(field.name.to_owned()));
            }
            merged.insert(field.name.to_owned(), value);
        }
        Ok(merged)
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, InvalidArgs> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        // A unit struct reads from `null`, not from an object.
        Err(error) => match (text, serde_json::from_str("null")) {
            ("{}", Ok(value)) => Ok(value),
            _ => Err(which_argument::<T>(text).unwrap_or_else(|| InvalidArgs::shape(error))),
        },
    }
}

/// Reads once more, slowly, to name the argument that does not fit.
fn which_argument<T: DeserializeOwned>(text: &str) -> Option<InvalidArgs> {
    let error = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_str(text)).err()?;
    let path = crate::error::cut(&error.path().to_string(), 80);
    let InvalidArgs::Shape(message) = InvalidArgs::shape(error.into_inner()) else { return None };
    // The whole object has no path of its own: the message names the missing argument already.
    Some(InvalidArgs::Shape(if path == "." { message } else { format!("argument `{path}`: {message}") }))
}

/// Refuses names that the task does not take, without reading the values.
fn check_names(text: &str, fields: &[Field]) -> Result<(), InvalidArgs> {
    struct Names<'f>(&'f [Field]);
    impl<'de> Visitor<'de> for Names<'_> {
        type Value = Option<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of arguments by name")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut unknown = None;
            while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
                if unknown.is_none() && !self.0.iter().any(|field| field.answers_to(&name)) {
                    unknown = Some(name.into_owned());
                }
                map.next_value::<serde::de::IgnoredAny>()?;
            }
            Ok(unknown)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    match reader.deserialize_map(Names(fields)).map_err(InvalidArgs::shape)? {
        None => Ok(()),
        Some(name) => {
            let nearest = fields
                .iter()
                .map(|field| (strsim::damerau_levenshtein(field.name, &name), field.name))
                .min()
                .filter(|(distance, _)| *distance <= 2)
                .map(|(_, nearest)| nearest.to_owned());
            let takes = fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ");
            Err(InvalidArgs::UnknownName { name: crate::error::cut(&name, 80), nearest, takes })
        }
    }
}

/// Arguments that do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidArgs {
    /// The keyword arguments are not an object.
    #[error("arguments must be a JSON object (by name) or a JSON array (by position)")]
    NotAnObject,
    /// The positional arguments are not an array.
    #[error("positional arguments must be a JSON array")]
    NotAnArray,
    /// Not JSON at all.
    #[error("arguments are not valid JSON: {0}")]
    NotJson(#[from] InvalidJson),
    /// A name that the task does not take.
    #[error("unknown argument `{name}`{}; the task takes {}", did_you_mean(nearest.as_ref()), or_nothing(takes))]
    UnknownName {
        /// The name that was given.
        name: String,
        /// A name that is nearly the same.
        nearest: Option<String>,
        /// What the task takes.
        takes: String,
    },
    /// Given by position and by name.
    #[error("argument `{0}` is given by position and by name")]
    Twice(String),
    /// More positional arguments than fields.
    #[error("{given} positional arguments were given, the task takes {takes}")]
    TooMany {
        /// How many were given.
        given: usize,
        /// How many there are.
        takes: usize,
    },
    /// Missing or of the wrong type, in the words of the reader.
    #[error("{0}")]
    Shape(String),
}

impl InvalidArgs {
    fn shape(error: serde_json::Error) -> Self {
        // The position inside merged text means nothing to the producer.
        let text = error.to_string();
        let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
        Self::Shape(message.to_owned())
    }
}

fn did_you_mean(nearest: Option<&String>) -> String {
    nearest.map(|nearest| format!(" (did you mean `{nearest}`?)")).unwrap_or_default()
}

fn or_nothing(takes: &str) -> &str {
    if takes.is_empty() { "no arguments" } else { takes }
}

/// Stored as `[positional, keyword]`, shortest form first.
impl Serialize for Args {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (&self.positional, &self.keyword) {
            (None, None) => ().serialize(serializer),
            (None, Some(keyword)) => keyword.serialize(serializer),
            (Some(positional), None) => (positional,).serialize(serializer),
            (Some(positional), Some(keyword)) => (positional, keyword).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let json = Json::deserialize(deserializer)?;
        let read = |error: serde_json::Error| D::Error::custom(error);
        let args = match json.as_str().as_bytes().first() {
            Some(b'n') => return Ok(Self::none()),
            Some(b'{') => Self::new(None, Some(json)),
            _ => {
                let mut parts: Vec<Json> = serde_json::from_str(json.as_str()).map_err(read)?;
                let keyword = if parts.len() > 1 { parts.pop() } else { None };
                Self::new(parts.pop(), keyword)
            }
        };
        args.map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Mail {
        to: String,
        #[serde(default)]
        copies: u32,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Unit;

    fn fields() -> Vec<Field> {
        vec![Field::required("to"), Field::optional("copies")]
    }

    fn decode(text: &str) -> Result<Mail, String> {
        Args::parse(text).and_then(|args| args.decode(Some(&fields()), &Feed::Nothing, None)).map_err(|e| e.to_string())
    }

    #[test]
    fn arguments_are_read_by_name_and_by_position() {
        let mail = |copies| Ok(Mail { to: "a".into(), copies });
        assert_eq!(decode(r#"{"to":"a","copies":2}"#), mail(2));
        assert_eq!(decode(r#"["a",2]"#), mail(2));
        assert_eq!(decode(r#"["a"]"#), mail(0));
        let both = Args::new(Some(Json::trusted(r#"["a"]"#)), Some(Json::trusted(r#"{"copies":3}"#))).unwrap();
        assert_eq!(both.decode::<Mail>(Some(&fields()), &Feed::Nothing, None), Ok(Mail { to: "a".into(), copies: 3 }));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        for (text, message) in [
            (
                r#"{"to":"a","copeis":2}"#,
                "unknown argument `copeis` (did you mean `copies`?); the task takes to, copies",
            ),
            (r#"{"copies":2}"#, "missing field `to`"),
            (r#"{"to":7}"#, "argument `to`: invalid type: integer `7`, expected a string"),
            (r#"["a",1,2]"#, "3 positional arguments were given, the task takes 2"),
            ("7", "arguments must be a JSON object (by name) or a JSON array (by position)"),
        ] {
            assert_eq!(decode(text), Err(message.to_owned()));
        }
        let twice = Args::new(Some(Json::trusted(r#"["a"]"#)), Some(Json::trusted(r#"{"to":"b"}"#))).unwrap();
        assert_eq!(
            twice.decode::<Mail>(Some(&fields()), &Feed::Nothing, None),
            Err(InvalidArgs::Twice("to".to_owned()))
        );
    }

    #[test]
    fn a_task_without_fields_takes_no_arguments() {
        let args = Args::of(&Unit).unwrap();
        assert_eq!(args, Args::none());
        assert_eq!(args.decode::<Unit>(Some(&[]), &Feed::Nothing, None), Ok(Unit));
    }

    #[test]
    fn an_argument_answers_to_its_aliases() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Mail {
            #[serde(alias = "recipient")]
            to: String,
        }
        let fields = [Field { aliases: &["recipient"], ..Field::required("to") }];
        let args = Args::parse(r#"{"recipient":"a"}"#).unwrap();
        assert_eq!(args.decode(Some(&fields), &Feed::Nothing, None), Ok(Mail { to: "a".into() }));
        let fed = args.decode(Some(&fields), &Feed::Field("to".into()), Some(&Json::trusted(r#""b""#)));
        assert_eq!(fed, Ok(Mail { to: "b".into() }), "the result takes its place under any name");
        let twice = Args::new(Some(Json::trusted(r#"["a"]"#)), args.keyword().cloned()).unwrap();
        assert_eq!(twice.decode::<Mail>(Some(&fields), &Feed::Nothing, None), Err(InvalidArgs::Twice("to".to_owned())));
    }

    #[test]
    fn the_result_before_is_fed_in_as_asked() {
        let args = Args::parse(r#"{"to":"a","copies":1}"#).unwrap();
        let input = Json::trusted("9");
        let copies = |feed| args.decode::<Mail>(Some(&fields()), &feed, Some(&input)).map(|mail| mail.copies);
        assert_eq!(copies(Feed::Nothing), Ok(1));
        assert_eq!(copies(Feed::Field("copies".into())), Ok(9));
        let first = Args::parse(r#"{"copies":1}"#).unwrap();
        let mail = first.decode::<Mail>(Some(&fields()), &Feed::First, Some(&Json::trusted(r#""b""#)));
        assert_eq!(mail, Ok(Mail { to: "b".into(), copies: 1 }));
    }

    #[test]
    fn arguments_survive_storage() {
        for (positional, keyword) in
            [(None, None), (Some("[1]"), None), (None, Some(r#"{"a":1}"#)), (Some("[[1],2]"), Some(r#"{"a":1}"#))]
        {
            let args = Args::new(positional.map(Json::trusted), keyword.map(Json::trusted)).unwrap();
            let stored = serde_json::to_string(&args).unwrap();
            assert_eq!(serde_json::from_str::<Args>(&stored).unwrap(), args, "{stored}");
        }
    }
}
