//! A duration as an argument of a task: text such as `30s` or `1h30m`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use windlass::time::duration_text;

/// How long, as people write it: `250ms`, `30s`, `5m`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(#[serde(with = "duration_text")] pub Duration);

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^([0-9]+(us|ms|s|m|h|d|w))+$", "examples": ["30s", "1h30m"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_people_write_it() {
        let read: DurationText = serde_json::from_str("\"1h30m\"").unwrap();
        assert_eq!(read.0, Duration::from_secs(5_400));
        assert_eq!(serde_json::to_string(&read).unwrap(), "\"1h30m\"");
        let error = serde_json::from_str::<DurationText>("\"5\"").unwrap_err().to_string();
        assert!(error.contains("30s"), "it says how to write it: {error}");
    }
}
