//! What the URLs of stores and transports have in common.

/// Text with `%40` and the like decoded, as in the user, password and path of a URL.
///
/// ```
/// assert_eq!(windlass_core::url::decoded("p%40ss%2Fword").as_deref(), Ok("p@ss/word"));
/// ```
///
/// # Errors
/// What is wrong, when a `%` is followed by something else than two hexadecimal digits, or what they say is not UTF-8.
pub fn decoded(text: &str) -> Result<String, &'static str> {
    const WRONG: &str = "a `%` is followed by two hexadecimal digits";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        if *first == b'%' {
            let digits = others.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit)).ok_or(WRONG)?;
            let digits = std::str::from_utf8(digits).map_err(|_| WRONG)?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| WRONG)?);
            rest = &others[2..];
        } else {
            bytes.push(*first);
            rest = others;
        }
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 when it is decoded")
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn what_is_no_escape_is_refused() {
        for wrong in ["%", "%4", "%4g", "%+4", "a%é", "%ff"] {
            decoded(wrong).expect_err(wrong);
        }
        assert_eq!(decoded("").as_deref(), Ok(""));
        assert_eq!(decoded("%F0%9f%9A%a2 100%25").as_deref(), Ok("\u{1f6a2} 100%"));
    }
}
