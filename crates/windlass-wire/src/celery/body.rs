//! From the bytes of a body to JSON text: character set, compression.

use std::borrow::Cow;

use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_zlib_with_limit};
use serde_json::Value;

use crate::error::{Malformed, shown};
use crate::frame::Properties;
use crate::json::{self, BODY_BYTES_MAX};

/// What Celery calls zlib streams.
const ZLIB: &str = "application/x-gzip";

/// The JSON text of a body. Only JSON is accepted: other serialisers are refused by name and never run.
pub(super) fn text<'b>(
    body: &'b [u8],
    properties: &Properties,
    compression: &Value,
) -> Result<Cow<'b, str>, Malformed> {
    check_type(properties)?;
    match compression {
        Value::Null => json::text("body", body, BODY_BYTES_MAX).map(Cow::Borrowed),
        Value::String(kind) if kind == ZLIB => {
            let text = String::from_utf8(inflate(body)?);
            text.map(Cow::Owned).map_err(|error| Malformed::damaged("body", format_args!("not UTF-8: {error}")))
        }
        Value::String(kind) => Err(Malformed::Compression(shown(kind))),
        _ => Err(Malformed::shape("header `compression`", "a MIME type")),
    }
}

fn check_type(properties: &Properties) -> Result<(), Malformed> {
    let content_type = properties.content_type.as_deref().unwrap_or("application/json");
    if !content_type.eq_ignore_ascii_case("application/json") {
        return Err(Malformed::ContentType(shown(content_type)));
    }
    let encoding = properties.content_encoding.as_deref().unwrap_or("utf-8");
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
