//! Whole numbers of any size between decimal text and the bytes of a pickle: two's complement, the lowest first.

use std::fmt::Write as _;

/// The most digits: Python itself reads and writes no more.
pub(super) const DIGITS_MAX: usize = 4_300;
/// The most bytes that such a number takes.
pub(super) const BYTES_MAX: usize = 1_786;

/// Digits of one step.
const STEP: usize = 9;
const BASE: u64 = 1_000_000_000;

/// The bytes of a number; `None` when the text is none, or has more than [`DIGITS_MAX`] digits.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut limbs: Vec<u32> = Vec::new();
    for step in digits.as_bytes().rchunks(STEP).rev() {
        let mut carry = step.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
        for limb in &mut limbs {
            carry += u64::from(*limb) * BASE;
            *limb = carry as u32;
            carry >>= 32;
        }
        limbs.push(carry as u32);
    }
    let mut bytes: Vec<u8> = limbs.into_iter().flat_map(u32::to_le_bytes).collect();
    // Room for the sign, then as short as it goes.
    bytes.push(0);
    if negative {
        negate(&mut bytes);
    }
    // Nothing below nothing is nothing.
    let negative = bytes.last().is_some_and(|highest| is_negative(*highest));
    let sign = if negative { 0xff } else { 0 };
    while let [.., before, last] = bytes.as_slice()
        && *last == sign
        && is_negative(*before) == negative
    {
        bytes.pop();
    }
    Some(bytes)
}

/// The number of some bytes, at most [`BYTES_MAX`].
pub(super) fn text(bytes: &[u8]) -> String {
    let negative = bytes.last().is_some_and(|highest| is_negative(*highest));
    let mut bytes = bytes.to_vec();
    if negative {
        negate(&mut bytes);
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let mut steps: Vec<u64> = Vec::new();
    for limb in bytes.rchunks_exact(4) {
        let mut carry = limb.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        for step in &mut steps {
            carry += *step << 32;
            *step = carry % BASE;
            carry /= BASE;
        }
        while carry > 0 {
            steps.push(carry % BASE);
            carry /= BASE;
        }
    }
    let mut text = String::new();
    if negative {
        text.push('-');
    }
    let (first, others) = steps.split_last().map_or((0, &[][..]), |(first, others)| (*first, others));
    text.push_str(&first.to_string());
    for step in others.iter().rev() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{step:0STEP$}");
    }
    text
}

fn is_negative(highest: u8) -> bool {
    highest & 0x80 != 0
}

/// The number with the other sign. The lowest of a size becomes the one above the highest, which its reader has to know.
fn negate(bytes: &mut [u8]) {
    let mut carry = true;
    for byte in bytes {
        (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_128_bits_is_what_the_machine_makes_of_it() {
        let mut random = fastrand::Rng::with_seed(4711);
        let ends = [0, 1, -1, 127, 128, -128, -129, 255, 256, i128::MAX, i128::MIN, i128::MIN + 1];
        for number in ends.into_iter().chain((0..10_000).map(|_| random.i128(..) >> random.u32(0..127))) {
            let bytes = bytes(&number.to_string()).unwrap();
            let whole: Vec<u8> = number.to_le_bytes().to_vec();
            let sign = if number < 0 { 0xff } else { 0 };
            assert!(whole.starts_with(&bytes[..bytes.len().min(16)]), "{number}");
            assert!(whole[bytes.len().min(16)..].iter().all(|byte| *byte == sign), "{number}");
            assert_eq!(text(&bytes), number.to_string());
            assert_eq!(text(&whole), number.to_string(), "as long as it likes");
        }
    }

    #[test]
    fn numbers_are_exact_up_to_their_limit_and_none_above() {
        for digits in ["9".repeat(DIGITS_MAX), format!("-{}", "9".repeat(DIGITS_MAX)), "1".repeat(64)] {
            let bytes = bytes(&digits).unwrap();
            assert!(bytes.len() <= BYTES_MAX, "{}", bytes.len());
            assert_eq!(text(&bytes), digits);
        }
        assert_eq!(bytes(&"9".repeat(DIGITS_MAX + 1)), None);
        for none in ["", "-", "1.0", "1e3", "+1"] {
            assert_eq!(bytes(none), None, "{none}");
        }
        assert_eq!((bytes("-0"), text(&[])), (bytes("0"), "0".to_owned()));
    }
}
