//! What is kept of an answer: its status, the headers worth keeping, and a bounded part of its body.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Response;
use reqwest::header::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use windlass::envelope::RESULT_BYTES_MAX;

/// No more of a body is kept, whatever the configuration allows: it has to fit into a result.
pub(super) const KEPT_BYTES_MAX: usize = 1536 * 1024;
// Text may double when it is written as JSON, and base64 adds a third; headers and frame take little.
const _: () = assert!(KEPT_BYTES_MAX * 2 + 64 * 1024 <= RESULT_BYTES_MAX, "a whole answer is a legal result");

/// The headers that are kept. Cookies and the like are not: results are shown to people.
const KEPT_HEADERS: [&str; 10] = [
    "content-type",
    "content-length",
    "content-encoding",
    "date",
    "etag",
    "last-modified",
    "location",
    "retry-after",
    "server",
    "x-request-id",
];
/// Longer values are cut.
const HEADER_BYTES_MAX: usize = 1024;
/// How much of a body an error quotes.
const QUOTED_CHARS_MAX: usize = 300;

/// What a receiver answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HttpAnswer {
    /// The status, such as 200.
    pub status: u16,
    /// The headers that are worth keeping, by their name in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
    /// Whether the body is text or base64.
    #[serde(default, skip_serializing_if = "BodyForm::is_text")]
    pub form: BodyForm,
    /// Whether there was more of the body than is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// How long the exchange took, with its redirects, in milliseconds.
    pub ms: u64,
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BodyForm {
    /// As it is.
    #[default]
    Text,
    /// In base64, because it is not text.
    Base64,
}

impl BodyForm {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
    fn is_text(&self) -> bool {
        *self == Self::Text
    }
}

/// The start of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) cut: bool,
}

impl Body {
    /// Reads up to `kept_max` bytes; what comes after them is not waited for.
    pub(super) async fn read(response: &mut Response, kept_max: usize) -> Result<Self, reqwest::Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            let room = kept_max - bytes.len();
            if chunk.len() > room {
                bytes.extend_from_slice(&chunk[..room]);
                return Ok(Self { bytes, cut: true });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Self { bytes, cut: false })
    }

    /// The start of it as one line, for an error.
    pub(super) fn quote(&self) -> String {
        let start = &self.bytes[..self.bytes.len().min(4 * QUOTED_CHARS_MAX)];
        let text = String::from_utf8_lossy(start);
        let words: Vec<&str> = text.split_whitespace().collect();
        let line = words.join(" ");
        line.chars().filter(|char| !char.is_control()).take(QUOTED_CHARS_MAX).collect()
    }

    fn into_text(self) -> (String, BodyForm, bool) {
        let (cut, mut bytes) = (self.cut, self.bytes);
        if cut {
            drop_half_a_character(&mut bytes);
        }
        match String::from_utf8(bytes) {
            // Control characters would take six bytes each as JSON.
            Ok(text) if !text.contains(|char: char| char.is_control() && !matches!(char, '\n' | '\r' | '\t')) => {
                (text, BodyForm::Text, cut)
            }
            Ok(text) => (STANDARD.encode(text), BodyForm::Base64, cut),
            Err(binary) => (STANDARD.encode(binary.into_bytes()), BodyForm::Base64, cut),
        }
    }
}

/// A text that was cut inside of its last character is still text.
fn drop_half_a_character(bytes: &mut Vec<u8>) {
    if let Err(error) = std::str::from_utf8(bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
}

impl HttpAnswer {
    pub(super) fn of(status: u16, headers: &HeaderMap, body: Body, took: Duration) -> Self {
        let (body, form, cut) = body.into_text();
        Self { status, headers: kept_headers(headers), body, form, cut, ms: took.as_millis() as u64 }
    }
}

fn kept_headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let kept = KEPT_HEADERS.iter().filter_map(|name| {
        let value = headers.get(*name)?.as_bytes();
        let value = String::from_utf8_lossy(&value[..value.len().min(HEADER_BYTES_MAX)]).into_owned();
        Some(((*name).to_owned(), value))
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: &[u8], cut: bool) -> HttpAnswer {
        HttpAnswer::of(200, &HeaderMap::new(), Body { bytes: bytes.to_vec(), cut }, Duration::from_millis(7))
    }

    #[test]
    fn text_stays_text_and_anything_else_is_base64() {
        assert_eq!((answer(b"hello\n", false).body.as_str(), answer(b"x", false).form), ("hello\n", BodyForm::Text));
        let binary = answer(&[0xff, 0x00], false);
        assert_eq!((binary.body.as_str(), binary.form), ("/wA=", BodyForm::Base64));
        assert_eq!(answer(b"\0", false).form, BodyForm::Base64);
    }

    #[test]
    fn a_text_cut_inside_of_a_character_is_text() {
        let half = answer(&"aé".as_bytes()[..2], true);
        assert_eq!((half.body.as_str(), half.form, half.cut), ("a", BodyForm::Text, true));
    }

    #[test]
    fn the_largest_answer_is_a_legal_result() {
        for byte in [b'"', b'\n', 0xff, 0x01] {
            let json = serde_json::to_string(&answer(&vec![byte; KEPT_BYTES_MAX], true)).unwrap();
            assert!(json.len() < RESULT_BYTES_MAX, "{byte}: {} bytes", json.len());
        }
    }

    #[test]
    fn cookies_are_not_kept_and_long_headers_are_cut() {
        let mut headers = HeaderMap::new();
        headers.insert("set-cookie", "session=1".parse().unwrap());
        headers.insert("server", "x".repeat(5_000).parse().unwrap());
        let kept = kept_headers(&headers);
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["server"]);
        assert_eq!(kept["server"].len(), HEADER_BYTES_MAX);
    }

    #[test]
    fn an_error_quotes_one_short_line() {
        let body =
            Body { bytes: format!("<b>\u{1b}[31m no\n such\u{0} order {}", "x".repeat(9_000)).into(), cut: false };
        let quote = body.quote();
        assert!(quote.starts_with("<b>[31m no such order xxx") && quote.chars().count() <= QUOTED_CHARS_MAX, "{quote}");
    }
}
