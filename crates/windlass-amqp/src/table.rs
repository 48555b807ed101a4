//! Tables of AMQP as plain values, with bounds, and back.
//!
//! A header is at most one frame of 128 KiB, so its bytes are bounded by the protocol; what is bounded here is how deep and
//! how many values there are, for whoever walks them.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Number, Value};

use crate::AmqpError;

/// How deep tables and lists may lie in each other. Deeper ones are replaced by null.
pub const DEPTH_MAX: usize = 16;
/// How many values one table may hold in all. What comes after them is left away.
pub const VALUES_MAX: usize = 4096;
/// The longest key, exchange, queue, routing key and property in bytes: a short string of AMQP.
pub const SHORT_BYTES_MAX: usize = 255;

/// What came out of a table.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Plain {
    pub(crate) values: Map<String, Value>,
    /// Whether a bound cut something off.
    pub(crate) is_cut: bool,
}

/// A table as plain values: text that is not UTF-8 with replacement characters, decimals as text, times as seconds.
pub(crate) fn plain(table: &FieldTable) -> Plain {
    let mut walk = Walk { left: VALUES_MAX, is_cut: false };
    let values = walk.table(table, 1);
    Plain { values, is_cut: walk.is_cut }
}

struct Walk {
    left: usize,
    is_cut: bool,
}

impl Walk {
    fn table(&mut self, table: &FieldTable, depth: usize) -> Map<String, Value> {
        let mut values = Map::new();
        for (key, value) in table {
            let Some(value) = self.value(value, depth) else { break };
            values.insert(key.as_str().to_owned(), value);
        }
        values
    }

    /// Nothing when there are too many.
    fn value(&mut self, value: &AMQPValue, depth: usize) -> Option<Value> {
        let Some(left) = self.left.checked_sub(1) else {
            self.is_cut = true;
            return None;
        };
        self.left = left;
        let text = |bytes: &[u8]| Value::String(String::from_utf8_lossy(bytes).into_owned());
        Some(match value {
            AMQPValue::Boolean(is) => Value::Bool(*is),
            AMQPValue::ShortShortInt(number) => Value::from(*number),
            AMQPValue::ShortShortUInt(number) => Value::from(*number),
            AMQPValue::ShortInt(number) => Value::from(*number),
            AMQPValue::ShortUInt(number) => Value::from(*number),
            AMQPValue::LongInt(number) => Value::from(*number),
            AMQPValue::LongUInt(number) => Value::from(*number),
            AMQPValue::LongLongInt(number) => Value::from(*number),
            AMQPValue::Timestamp(seconds) => Value::from(*seconds),
            AMQPValue::Float(number) => Number::from_f64(f64::from(*number)).map_or(Value::Null, Value::Number),
            AMQPValue::Double(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
            AMQPValue::DecimalValue(decimal) => Value::String(decimal_text(decimal.value, decimal.scale)),
            AMQPValue::ShortString(string) => Value::String(string.as_str().to_owned()),
            AMQPValue::LongString(string) => text(string.as_bytes()),
            AMQPValue::ByteArray(bytes) => text(bytes.as_slice()),
            AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) if depth >= DEPTH_MAX => {
                self.is_cut = true;
                Value::Null
            }
            AMQPValue::FieldArray(list) => {
                Value::Array(list.as_slice().iter().map_while(|value| self.value(value, depth + 1)).collect())
            }
            AMQPValue::FieldTable(table) => Value::Object(self.table(table, depth + 1)),
            AMQPValue::Void => Value::Null,
        })
    }
}

fn decimal_text(value: u32, scale: u8) -> String {
    let scale = usize::from(scale);
    let digits = format!("{value:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    if part.is_empty() { whole.to_owned() } else { format!("{whole}.{part}") }
}

/// Plain values as a table: whole numbers as 64 bits, other numbers as doubles.
///
/// # Errors
/// [`AmqpError::Refused`] when a key is too long.
pub(crate) fn table(values: &Map<String, Value>) -> Result<FieldTable, AmqpError> {
    let pairs = values.iter().map(|(key, value)| Ok((short("a key", key)?, wire_value(value)?)));
    Ok(FieldTable::from(pairs.collect::<Result<BTreeMap<_, _>, AmqpError>>()?))
}

fn wire_value(value: &Value) -> Result<AMQPValue, AmqpError> {
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(is) => AMQPValue::Boolean(*is),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => AMQPValue::LongLongInt(whole),
            None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(list) => AMQPValue::FieldArray(list.iter().map(wire_value).collect::<Result<Vec<_>, _>>()?.into()),
        Value::Object(values) => AMQPValue::FieldTable(table(values)?),
    })
}

/// A short string of AMQP.
///
/// # Errors
/// [`AmqpError::Refused`] when it is longer than 255 bytes.
pub(crate) fn short(what: &str, text: &str) -> Result<ShortString, AmqpError> {
    ShortString::try_new(text).map_err(|_| {
        AmqpError::Refused(format!("{what} takes {} bytes, the limit of AMQP is {SHORT_BYTES_MAX}", text.len()))
    })
}

#[cfg(test)]
mod tests {
    use lapin::types::DecimalValue;
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(values) => values,
            other => panic!("not an object: {other}"),
        }
    }

    #[test]
    fn plain_values_come_back_as_they_were() {
        let values = object(json!({
            "id": "a", "retries": 3, "big": -9_007_199_254_740_993_i64, "ratio": 0.5, "none": null, "yes": true,
            "timelimit": [null, 60], "embed": {"chain": [], "deep": {"er": "ü"}},
        }));
        let back = plain(&table(&values).expect("it can be written"));
        assert_eq!(back, Plain { values, is_cut: false });
    }

    #[test]
    fn what_only_amqp_has_becomes_plain() {
        let mut wire = FieldTable::default();
        wire.insert("price".into(), AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 5 }));
        wire.insert("at".into(), AMQPValue::Timestamp(17));
        wire.insert("bytes".into(), AMQPValue::LongString(vec![b'a', 0xff].into()));
        assert_eq!(plain(&wire).values, object(json!({"price": "0.05", "at": 17, "bytes": "a\u{fffd}"})));
    }

    #[test]
    fn depth_and_number_have_bounds() {
        let nested = |levels: usize| {
            let mut table = FieldTable::default();
            table.insert("x".into(), AMQPValue::Boolean(true));
            for _ in 1..levels {
                let mut outer = FieldTable::default();
                outer.insert("x".into(), AMQPValue::FieldTable(table));
                table = outer;
            }
            plain(&table).is_cut
        };
        assert!(!nested(DEPTH_MAX) && nested(DEPTH_MAX + 1));
        let many = |count: usize| {
            let mut table = FieldTable::default();
            table.insert("x".into(), AMQPValue::FieldArray(vec![AMQPValue::Boolean(true); count - 1].into()));
            plain(&table).is_cut
        };
        assert!(!many(VALUES_MAX) && many(VALUES_MAX + 1));
    }

    #[test]
    fn a_short_string_has_its_limit() {
        assert!(short("a key", &"x".repeat(SHORT_BYTES_MAX)).is_ok());
        let error = short("a key", &"x".repeat(SHORT_BYTES_MAX + 1)).expect_err("too long");
        assert!(error.to_string().contains("a key takes 256 bytes"), "{error}");
    }
}
