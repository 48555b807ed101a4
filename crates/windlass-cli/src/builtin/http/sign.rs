//! The signature that tells a receiver who sent a request, and when.
//!
//! `windlass-signature: t=1800000000,v1=5257a8…`: the time in seconds since 1970, and the HMAC-SHA256 in lower-case hex of
//! `"{t}.{body}"` with the shared key `tasks.http.signing_key`. A receiver computes the same, compares in constant time,
//! and refuses a `t` that is more than a few minutes off, so that a recorded request is worthless later. Every attempt is
//! signed anew.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use windlass::Timestamp;

/// The header that holds the signature.
pub(crate) const HEADER: &str = "windlass-signature";

/// The value of the header.
pub(crate) fn signature(key: &str, now: Timestamp, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes())
        .unwrap_or_else(|error| unreachable!("HMAC takes keys of any length: {error}"));
    let secs = now.as_secs();
    mac.update(secs.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    let mut value = format!("t={secs},v1=");
    for byte in mac.finalize().into_bytes() {
        // Writing to a string cannot fail.
        let _ = write!(value, "{byte:02x}");
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_can_compute_it_with_any_other_tool() {
        // printf '1800000000.{"a":1}' | openssl dgst -sha256 -hmac s3cret
        let expected = "t=1800000000,v1=476d445fc5d734bcaf69961f0de38cb8c2ec42450829655895ca5e064c0765c9";
        assert_eq!(signature("s3cret", Timestamp::from_secs(1_800_000_000), br#"{"a":1}"#), expected);
    }

    #[test]
    fn it_depends_on_the_key_the_time_and_the_body() {
        let now = Timestamp::from_secs(1);
        let one = signature("k", now, b"x");
        assert_ne!(one, signature("l", now, b"x"));
        assert_ne!(one, signature("k", Timestamp::from_secs(2), b"x"));
        assert_ne!(one, signature("k", now, b"y"));
    }
}
