//! JSON text that travels unparsed: arguments and results.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// How deeply arguments and results may nest; the parser's own limit, checked before anything is stored.
pub const JSON_DEPTH_MAX: usize = 127;

/// One valid JSON value as text; cheap to clone.
///
/// Numbers keep every digit and keys keep their order, because nobody parses what only travels.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Arc<str>);

impl Json {
    /// The value `null`.
    pub fn null() -> Self {
        Self(Arc::from("null"))
    }

    /// Serialises a value.
    ///
    /// # Errors
    /// [`InvalidJson`] when the value has no JSON form (a map with keys that are not text) or nests too deeply.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Self, InvalidJson> {
        let text = serde_json::to_string(value).map_err(|error| InvalidJson(error.to_string()))?;
        check_depth(&text)?;
        Ok(Self(text.into()))
    }

    /// Checks text that came from outside.
    ///
    /// # Errors
    /// [`InvalidJson`] with the line and column of the mistake, or when it nests more than [`JSON_DEPTH_MAX`] deep.
    pub fn parse(text: &str) -> Result<Self, InvalidJson> {
        check_depth(text)?;
        serde_json::from_str::<&RawValue>(text)
            .map(|raw| Self(raw.get().into()))
            .map_err(|error| InvalidJson(error.to_string()))
    }

    /// Text that is known to be JSON: it was written by [`Json::as_str`], or put together from such parts.
    pub fn trusted(text: impl Into<Arc<str>>) -> Self {
        let text = text.into();
        debug_assert!(serde_json::from_str::<&RawValue>(&text).is_ok(), "trusted JSON is valid");
        Self(text)
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the value as a type.
    ///
    /// # Errors
    /// [`InvalidJson`] when it has another shape.
    pub fn to<T: DeserializeOwned>(&self) -> Result<T, InvalidJson> {
        serde_json::from_str(&self.0).map_err(|error| InvalidJson(error.to_string()))
    }
}

impl fmt::Debug for Json {
    /// Shows the size only: arguments and results never reach a log by accident.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An owned value: `&RawValue` would fail for readers that do not borrow.
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Self(raw.get().into()))
    }
}

/// Text that is not acceptable JSON, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidJson(String);

/// Counts brackets outside of strings: a bound that costs one pass and no stack.
fn check_depth(text: &str) -> Result<(), InvalidJson> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return Err(InvalidJson(format!("it nests more than {JSON_DEPTH_MAX} deep")));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_accepted_at_the_limit_and_refused_one_over() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Json::parse(&nested(JSON_DEPTH_MAX)).is_ok());
        assert!(Json::parse(&nested(JSON_DEPTH_MAX + 1)).is_err());
        assert!(Json::parse(&nested(10_000)).is_err());
        assert!(Json::parse(&format!("\"{}\"", "[".repeat(10_000))).is_ok(), "brackets in a string are text");
    }

    #[test]
    fn big_numbers_keep_every_digit() {
        let text = "[9007199254740993,0.1000000000000000055511151231257827,123456789012345678901234567890]";
        assert_eq!(Json::parse(text).unwrap().as_str(), text);
        let through_serde: Json = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&through_serde).unwrap(), text);
    }

    #[test]
    fn the_debug_form_does_not_show_the_value() {
        assert_eq!(format!("{:?}", Json::parse("\"s3cret\"").unwrap()), "Json(8 bytes)");
    }

    #[test]
    fn not_a_number_is_refused() {
        assert!(Json::parse("NaN").is_err());
        assert!(Json::parse("{\"a\":1,}").is_err());
        assert!(Json::parse("1 2").is_err());
    }
}
