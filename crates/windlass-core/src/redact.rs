//! The one list of what must never be shown: in a log, a page, a metric, a trace or an error text.
//!
//! Three forms are masked: fields whose name is on the list, `name=value` pairs with such a name in free text, and the
//! user part of a URL. A value of type [`Secret`] hides itself.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// What stands in for a masked value.
pub const MASK: &str = "***";

/// Parts of names whose values are secret; compared without case, `-` and `_`.
const SECRET_NAMES: [&str; 16] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "authorization",
    "credential",
    "privatekey",
    "accesskey",
    "cookie",
    "session",
    "cardnumber",
    "cvv",
    "cvc",
    "signature",
];

/// Whether the value of a field with this name must be masked.
///
/// ```
/// assert!(windlass_core::redact::is_secret("X-Api-Key"));
/// assert!(!windlass_core::redact::is_secret("order_id"));
/// ```
pub fn is_secret(name: &str) -> bool {
    let folded: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    SECRET_NAMES.iter().any(|secret| folded.contains(secret))
}

/// Masks `name=value`, `name: value` with a secret name, and the user part of URLs, in free text.
pub fn text(text: &str) -> String {
    if !text.contains(['=', ':', '@']) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    let mut mask_next = false;
    for piece in text.split_inclusive(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '&')) {
        let word_end = piece.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '&')).len();
        let (word, gap) = piece.split_at(word_end);
        if mask_next && !word.is_empty() {
            // `Authorization: Bearer abc`: the scheme may stay, what follows it may not.
            if matches!(word.to_ascii_lowercase().as_str(), "bearer" | "basic") {
                shown.push_str(word);
            } else {
                shown.push_str(MASK);
                mask_next = false;
            }
            shown.push_str(gap);
            continue;
        }
        match word.split_once(['=', ':']) {
            Some((name, value)) if is_secret(name) && !value.starts_with("//") => {
                shown.push_str(&word[..=name.len()]);
                if value.trim_matches('"').is_empty() {
                    mask_next = true;
                } else {
                    shown.push_str(MASK);
                }
            }
            _ => shown.push_str(&url(word)),
        }
        shown.push_str(gap);
    }
    shown
}

/// Masks the user part of a URL and its parameters with a secret name: `postgres://***@db/app?password=***`; also those
/// of a URL that is the value of a parameter.
///
/// Other text comes back as it is.
pub fn url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let rest = match rest[..authority_end].rfind('@') {
        Some(at) => format!("{MASK}{}", &rest[at..]),
        None => rest.to_owned(),
    };
    let Some((path, query)) = rest.split_once('?') else { return format!("{scheme}://{rest}") };
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, value)) if is_secret(name) && !value.is_empty() => format!("{name}={MASK}"),
        Some((name, value)) => match crate::url::decoded(value) {
            Ok(inner) if inner.contains("://") => format!("{name}={}", url(&inner)),
            _ => parameter.to_owned(),
        },
        None => parameter.to_owned(),
    });
    format!("{scheme}://{path}?{}", parameters.collect::<Vec<_>>().join("&"))
}

/// A JSON value with every secret field masked and long texts cut; for listings and pages.
pub fn json(value: &mut serde_json::Value) {
    /// Enough to recognise a value; a listing is no place for a document.
    const SHOWN_CHARS_MAX: usize = 1_000;
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                if is_secret(name) {
                    *field = serde_json::Value::from(MASK);
                } else {
                    json(field);
                }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(json),
        serde_json::Value::String(shown) => {
            if shown.chars().count() > SHOWN_CHARS_MAX {
                *shown = shown.chars().take(SHOWN_CHARS_MAX).chain("… (cut)".chars()).collect();
            }
            *shown = text(shown);
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {}
    }
}

/// A value that travels to the handler but hides itself from logs, listings and debug output.
///
/// ```
/// use windlass_core::Secret;
/// let token = Secret::new("s3cret".to_owned());
/// assert_eq!(format!("{token:?}"), "***");
/// assert_eq!(token.expose(), "s3cret");
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself; the name makes each use visible in a review.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl<T: JsonSchema> JsonSchema for Secret<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Secret_{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = T::json_schema(generator);
        // The standard word for "may be written, is never shown".
        schema.insert("writeOnly".to_owned(), true.into());
        schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_free_text_are_masked() {
        for (given, shown) in [
            ("connect to redis://user:pw@host:6379/0 failed", "connect to redis://***@host:6379/0 failed"),
            ("password=hunter2 user=bob", "password=*** user=bob"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
            ("api_key=1&page=2", "api_key=***&page=2"),
            ("time: 12:30, no=secrets", "time: 12:30, no=secrets"),
            ("https://host/a@b", "https://host/a@b"),
        ] {
            assert_eq!(text(given), shown);
        }
    }

    #[test]
    fn secrets_in_urls_are_masked() {
        for (given, shown) in [
            ("postgres://user:p@ss@db/app", "postgres://***@db/app"),
            ("postgres://db/app?sslmode=verify&password=x", "postgres://db/app?sslmode=verify&password=***"),
            ("redis://u:p@h/0?access_token=a=b&token=", "redis://***@h/0?access_token=***&token="),
            ("https://host/a@b?to=a@b", "https://host/a@b?to=a@b"),
            ("tasks.db?password=x", "tasks.db?password=x"),
            (
                "a+redis://u:p@h?results=redis%3A%2F%2F%3Ap%40h2&events=1",
                "a+redis://***@h?results=redis://***@h2&events=1",
            ),
            ("a+redis://h?results=redis://:p@h2/1", "a+redis://h?results=redis://***@h2/1"),
        ] {
            assert_eq!(url(given), shown);
        }
    }

    #[test]
    fn secret_fields_of_json_are_masked_at_any_depth() {
        let mut value = serde_json::json!({"user": "a", "deep": [{"access_token": "x", "url": "http://u:p@h/"}]});
        json(&mut value);
        assert_eq!(value, serde_json::json!({"user": "a", "deep": [{"access_token": "***", "url": "http://***@h/"}]}));
    }
}
