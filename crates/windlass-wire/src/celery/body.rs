//! From the bytes of a body to JSON text: character set, compression.

use std::borrow::Cow;

use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_zlib_with_limit};
use serde_json::Value;

use crate::error::{Malformed, shown};
use crate::frame::Frame;
use crate::json::{self, BODY_BYTES_MAX};

/// What Celery calls zlib streams.
const ZLIB: &str = "application/x-gzip";

/// The JSON text of a body. Only JSON is accepted: other serialisers are refused by name and never run.
pub(super) fn text(frame: &Frame) -> Result<Cow<'_, str>, Malformed> {
    check_type(frame)?;
    match frame.headers.get("compression") {
        None | Some(Value::Null) => json::text("body", &frame.body, BODY_BYTES_MAX).map(Cow::Borrowed),
        Some(Value::String(kind)) if kind == ZLIB => {
            let text = String::from_utf8(inflate(&frame.body)?);
            text.map(Cow::Owned).map_err(|error| Malformed::damaged("body", format_args!("not UTF-8: {error}")))
        }
        Some(Value::String(kind)) => Err(Malformed::Compression(shown(kind))),
        Some(_) => Err(Malformed::shape("header `compression`", "a MIME type")),
    }
}

fn check_type(frame: &Frame) -> Result<(), Malformed> {
    let content_type = frame.properties.content_type.as_deref().unwrap_or("application/json");
    if !content_type.eq_ignore_ascii_case("application/json") {
        return Err(Malformed::ContentType(shown(content_type)));
    }
    let encoding = frame.properties.content_encoding.as_deref().unwrap_or("utf-8");
    let known = ["utf-8", "utf8", "us-ascii", "ascii"];
    if !known.iter().any(|known| encoding.eq_ignore_ascii_case(known)) {
        return Err(Malformed::ContentEncoding(shown(encoding)));
    }
    Ok(())
}

fn inflate(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    decompress_to_vec_zlib_with_limit(bytes, BODY_BYTES_MAX).map_err(|error| match error.status {
        TINFLStatus::HasMoreOutput => {
            Malformed::TooLarge { part: "decompressed body", size: BODY_BYTES_MAX + 1, max: BODY_BYTES_MAX }
        }
        _ => Malformed::damaged("compressed body", "not a zlib stream"),
    })
}
