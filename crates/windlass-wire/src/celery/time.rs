//! Times as Celery writes them, and the routing keys of its delayed delivery.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use windlass_core::Timestamp;

use crate::error::Malformed;

/// The levels of Celery's delayed delivery on quorum queues: 28 binary digits of whole seconds.
const DELAY_LEVELS: usize = 28;

/// Reads a time in ISO 8601: with an offset or `Z` it is absolute, without one it is on the wall clock of `zone`.
///
/// # Errors
/// [`Malformed::Time`] for any other text.
///
/// ```
/// use jiff::tz::TimeZone;
/// use windlass_wire::celery::parse_time;
/// let at = |text| parse_time("eta", text, &TimeZone::UTC).unwrap().to_string();
/// assert_eq!(at("2040-01-02T03:04:05.123000+05:30"), "2040-01-01T21:34:05.123Z");
/// assert_eq!(at("2040-01-02T03:04:05"), "2040-01-02T03:04:05.000Z");
/// assert!(parse_time("eta", "tomorrow", &TimeZone::UTC).is_err());
/// ```
pub fn parse_time(part: &'static str, text: &str, zone: &TimeZone) -> Result<Timestamp, Malformed> {
    // The longest form has 35 characters; a parser need not see more.
    if text.len() > 64 {
        return Err(Malformed::time(part, text));
    }
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_jiff(instant));
    }
    let local: DateTime = text.parse().map_err(|_| Malformed::time(part, text))?;
    let instant = zone.to_timestamp(local).map_err(|_| Malformed::time(part, text))?;
    Ok(Timestamp::from_jiff(instant))
}

/// The time as Python's `isoformat` writes it in UTC: microseconds only when there are any.
///
/// ```
/// use windlass_core::Timestamp;
/// assert_eq!(windlass_wire::celery::iso_time(Timestamp::from_secs(0)), "1970-01-01T00:00:00+00:00");
/// assert_eq!(windlass_wire::celery::iso_time(Timestamp::from_micros(1_500_000)), "1970-01-01T00:00:01.500000+00:00");
/// ```
pub fn iso_time(at: Timestamp) -> String {
    let local = TimeZone::UTC.to_datetime(at.to_jiff());
    if at.as_micros().rem_euclid(1_000_000) == 0 { format!("{local:.0}+00:00") } else { format!("{local:.6}+00:00") }
}

/// The routing key of a message that RabbitMQ delays: `seconds` as 28 binary digits, most significant first, then the real
/// key. It is published to the exchange `celery_delayed_27`. Longer delays than 2²⁸ - 1 seconds are cut to that.
///
/// ```
/// use windlass_wire::celery::{delayed_routing_key, undelayed_routing_key};
/// let key = delayed_routing_key(5, "interop.q");
/// assert!(key.starts_with("0.0.") && key.ends_with(".1.0.1.interop.q"));
/// assert_eq!(undelayed_routing_key(&key), "interop.q");
/// assert_eq!(undelayed_routing_key("1.0.interop"), "1.0.interop");
/// ```
pub fn delayed_routing_key(seconds: u64, routing_key: &str) -> String {
    let seconds = seconds.min((1 << DELAY_LEVELS) - 1);
    let mut key = String::with_capacity(DELAY_LEVELS * 2 + routing_key.len());
    for level in (0..DELAY_LEVELS).rev() {
        key.push(if seconds >> level & 1 == 1 { '1' } else { '0' });
        key.push('.');
    }
    key + routing_key
}

/// The real routing key of a message that was delayed; any other key is answered as it is.
pub fn undelayed_routing_key(routing_key: &str) -> &str {
    let Some((digits, rest)) = routing_key.split_at_checked(DELAY_LEVELS * 2) else { return routing_key };
    let delayed = digits.as_bytes().chunks(2).all(|pair| matches!(pair, [b'0' | b'1', b'.']));
    if delayed { rest } else { routing_key }
}
