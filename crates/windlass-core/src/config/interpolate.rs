//! `${VAR}`, `${VAR:-default}` and `${VAR:?message}` inside the text of the configuration file.
//!
//! `$$` is a plain dollar sign; a `$` before anything else stays as it is, so most passwords need no escape. A variable
//! that is empty counts as missing for `:-` and `:?`, as it does in a shell. Values of variables are not read again:
//! what they hold is data.

use super::VALUE_BYTES_MAX;

/// Defaults inside defaults: `${A:-${B:-c}}`. More is a mistake or an attack on the stack.
const DEPTH_MAX: usize = 8;

/// Finds the value of a variable.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<&'a str>;

/// The text with every variable put in; or what is wrong, in words that hold no value.
pub(super) fn interpolate(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    expand(text, lookup, DEPTH_MAX, &mut out)?;
    Ok(out)
}

fn expand(text: &str, lookup: Lookup<'_>, depth_left: usize, out: &mut String) -> Result<(), String> {
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(inside) = after.strip_prefix('{') {
            let end = closing_brace(inside)
                .ok_or("`${` is never closed: write `}` after the name, or `$$` for a plain dollar sign")?;
            substitute(&inside[..end], lookup, depth_left, out)?;
            rest = &inside[end + 1..];
        } else {
            out.push('$');
            rest = after;
        }
        // Checked as it grows: a small file that names a large variable ten thousand times must not fill the memory.
        if out.len() > VALUE_BYTES_MAX {
            return Err(format!("grows above {} KiB: shorten what it refers to", VALUE_BYTES_MAX / 1024));
        }
    }
    out.push_str(rest);
    Ok(())
}

/// Where the `}` is that ends the text after `${`.
fn closing_brace(inside: &str) -> Option<usize> {
    let bytes = inside.as_bytes();
    let mut open = 0_usize;
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'$', Some(b'$')) => at += 1,
            (b'$', Some(b'{')) => {
                open += 1;
                at += 1;
            }
            (b'}', _) if open == 0 => return Some(at),
            (b'}', _) => open -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

fn substitute(body: &str, lookup: Lookup<'_>, depth_left: usize, out: &mut String) -> Result<(), String> {
    const FORMS: &str = "write ${NAME}, ${NAME:-default} or ${NAME:?message}, or `$$` for a plain dollar sign";
    let (name, instead) = body.split_once(':').map_or((body, None), |(name, instead)| (name, Some(instead)));
    if !is_variable_name(name) {
        return Err(format!("`${{` is not followed by the name of a variable: {FORMS}"));
    }
    let value = lookup(name);
    let filled = value.filter(|value| !value.is_empty());
    match (instead, instead.and_then(|instead| instead.chars().next())) {
        (None, _) => {
            let Some(value) = value else {
                return Err(format!("variable {name} is not set: set it, or write ${{{name}:-default}}"));
            };
            out.push_str(value);
        }
        (Some(default), Some('-')) => match filled {
            Some(value) => out.push_str(value),
            None if depth_left == 0 => return Err(format!("nests more than {DEPTH_MAX} defaults: simplify it")),
            None => expand(&default[1..], lookup, depth_left - 1, out)?,
        },
        (Some(message), Some('?')) => match filled {
            Some(value) => out.push_str(value),
            None if message.len() == 1 => return Err(format!("variable {name} is required: set it")),
            None => return Err(format!("variable {name} is required: {}", &message[1..])),
        },
        (Some(_), _) => return Err(format!("`${{{name}:` is followed by neither `-` nor `?`: {FORMS}")),
    }
    Ok(())
}

/// Letters, digits and `_`, not beginning with a digit.
pub(super) fn is_variable_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(name: &str) -> Option<&'static str> {
        match name {
            "HOST" => Some("db.internal"),
            "PORT" => Some("5432"),
            "EMPTY" => Some(""),
            "TRICKY" => Some("${HOST} $$ }"),
            "LARGE" => Some(LARGE),
            _ => None,
        }
    }

    const LARGE: &str = match std::str::from_utf8(&[b'x'; 4096]) {
        Ok(text) => text,
        Err(_) => "",
    };

    #[test]
    fn variables_are_put_in_before_the_value_is_typed() {
        for (given, expected) in [
            ("plain", "plain"),
            ("${HOST}:${PORT}", "db.internal:5432"),
            ("[${EMPTY}]", "[]"),
            ("${MISSING:-fallback}", "fallback"),
            ("${EMPTY:-fallback}", "fallback"),
            ("${HOST:-fallback}", "db.internal"),
            ("${MISSING:-}", ""),
            ("${MISSING:-a:b-c?d}", "a:b-c?d"),
            ("${MISSING:-${HOST}}!", "db.internal!"),
            ("${MISSING:-${ALSO:-deep}}", "deep"),
            ("${MISSING:-$${}x", "${x"),
            ("${HOST:?needed}", "db.internal"),
            ("$$", "$"),
            ("$${HOST}", "${HOST}"),
            ("pa$word$", "pa$word$"),
            ("a $1 and $HOST", "a $1 and $HOST"),
            ("${TRICKY}", "${HOST} $$ }"),
            ("ä${HOST}ß", "ädb.internalß"),
        ] {
            assert_eq!(interpolate(given, &variables).as_deref(), Ok(expected), "{given}");
        }
    }

    #[test]
    fn what_cannot_be_put_in_is_said_in_words() {
        for (given, part) in [
            ("${MISSING}", "variable MISSING is not set: set it, or write ${MISSING:-default}"),
            ("${MISSING:?ask the database team}", "variable MISSING is required: ask the database team"),
            ("${EMPTY:?}", "variable EMPTY is required: set it"),
            ("${HOST", "never closed"),
            ("${MISSING:-${HOST}", "never closed"),
            ("${}", "not followed by the name"),
            ("${1ST}", "not followed by the name"),
            ("${HO ST}", "not followed by the name"),
            ("${HOST:+x}", "neither `-` nor `?`"),
        ] {
            let message = interpolate(given, &variables).unwrap_err();
            assert!(message.contains(part), "{given}: {message}");
        }
    }

    #[test]
    fn hostile_text_neither_fills_the_memory_nor_the_stack() {
        assert!(interpolate(&"${LARGE}".repeat(100_000), &variables).unwrap_err().contains("grows above"));
        let nested = format!("{}{}", "${A:-".repeat(100_000), "}".repeat(100_000));
        assert!(interpolate(&nested, &variables).unwrap_err().contains("nests more than"));
    }
}
