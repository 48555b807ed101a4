//! Reads a `.env` file: `NAME=value` lines.
//!
//! | line | means |
//! |---|---|
//! | `NAME=plain text # why` | `plain text`: the spaces around it and the comment are no part of it |
//! | `NAME='as $it is'` | as it is, over several lines too |
//! | `NAME="two\nlines"` | with `\n`, `\r`, `\t`, `\"`, `\\` and `\$`; over several lines too |
//! | `export NAME=value` | the same, for files that a shell reads as well |
//! | `# comment`, an empty line | nothing |
//!
//! Nothing is put in for `${VAR}` here: a password with a dollar sign must not need an escape that the shell, which may
//! read the same file, understands differently.

use super::interpolate::is_variable_name;

/// One `NAME=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) name: String,
    pub(super) value: String,
    /// Counted from 1.
    pub(super) line: usize,
}

/// A line that cannot be read. The message holds nothing of the line: it may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadLine {
    pub(super) line: usize,
    pub(super) message: String,
}

/// Every assignment in the order of the file, and every line that cannot be read.
pub(super) fn parse(text: &str) -> (Vec<Assignment>, Vec<BadLine>) {
    let mut assignments = Vec::new();
    let mut bad = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let (taken, outcome) = read_one(rest);
        match outcome {
            Ok(Some((name, value))) => assignments.push(Assignment { name, value, line }),
            Ok(None) => {}
            Err(message) => bad.push(BadLine { line, message }),
        }
        line += rest[..taken].matches('\n').count();
        rest = &rest[taken..];
    }
    (assignments, bad)
}

type Outcome = Result<Option<(String, String)>, String>;

/// Reads from the start of a line to the start of the next: how many bytes, and what they say.
fn read_one(text: &str) -> (usize, Outcome) {
    let line_end = text.find('\n').map_or(text.len(), |at| at + 1);
    let line = text[..line_end].trim();
    if line.is_empty() || line.starts_with('#') {
        return (line_end, Ok(None));
    }
    let Some(equals) = text[..line_end].find('=') else {
        return (line_end, Err("has no `=`: write NAME=value, or # in front of a comment".to_owned()));
    };
    let before = text[..equals].trim();
    let name = before.strip_prefix("export ").map_or(before, str::trim_start);
    if !is_variable_name(name) {
        let message = "does not begin with a name: use letters, digits and `_`, as in NAME=value";
        return (line_end, Err(message.to_owned()));
    }
    let blanks = text[equals + 1..line_end].len() - text[equals + 1..line_end].trim_start_matches([' ', '\t']).len();
    let value_at = equals + 1 + blanks;
    match text.as_bytes().get(value_at) {
        Some(quote @ (b'\'' | b'"')) => match read_quoted(&text[value_at + 1..], *quote) {
            Ok((value, taken)) => {
                let after_at = value_at + 1 + taken;
                let after_end = text[after_at..].find('\n').map_or(text.len(), |at| after_at + at + 1);
                let after = text[after_at..after_end].trim();
                if after.is_empty() || after.starts_with('#') {
                    (after_end, Ok(Some((name.to_owned(), value))))
                } else {
                    (after_end, Err(format!("sets {name} and has text after the closing quote: remove it")))
                }
            }
            // Only this line is given up: what follows is read as usual, so one missing quote hides nothing else.
            Err(message) => (line_end, Err(format!("sets {name} and {message}"))),
        },
        _ => (line_end, Ok(Some((name.to_owned(), plain(&text[value_at..line_end]).to_owned())))),
    }
}

/// A value without quotes: up to a `#` that follows a blank.
fn plain(text: &str) -> &str {
    let comment = text.char_indices().find(|(at, char)| *char == '#' && text[..*at].ends_with([' ', '\t']));
    if text.starts_with('#') { "" } else { text[..comment.map_or(text.len(), |(at, _)| at)].trim() }
}

/// The text up to the closing quote, and how many bytes it and the quote take.
fn read_quoted(text: &str, quote: u8) -> Result<(String, usize), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        if char == char::from(quote) {
            return Ok((value, at + 1));
        }
        if char != '\\' || quote == b'\'' {
            value.push(char);
            continue;
        }
        match chars.next() {
            Some((_, 'n')) => value.push('\n'),
            Some((_, 'r')) => value.push('\r'),
            Some((_, 't')) => value.push('\t'),
            Some((_, same @ ('"' | '\\' | '$'))) => value.push(same),
            // Windows paths and patterns are written without thinking of escapes: leave them.
            Some((_, other)) => value.extend(['\\', other]),
            None => break,
        }
    }
    Err(format!("never closes its quote: write `{}` at the end", char::from(quote)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, String, usize)> {
        let (assignments, bad) = parse(text);
        assert_eq!(bad, []);
        assignments.into_iter().map(|one| (one.name, one.value, one.line)).collect()
    }

    #[test]
    fn each_form_of_a_line_is_read() {
        for (text, value) in [
            ("A=plain", "plain"),
            ("A=", ""),
            ("A= ", ""),
            ("  A = spaced out  ", "spaced out"),
            ("export A=x", "x"),
            ("export  A=x", "x"),
            ("A=a#b", "a#b"),
            ("A=a # why", "a"),
            ("A=# why", ""),
            ("A=x=y", "x=y"),
            ("A=pa$${w}rd", "pa$${w}rd"),
            ("A='it is # $as \\n it is'", "it is # $as \\n it is"),
            ("A=\"tab\\there \\\"quoted\\\" \\$5 C:\\dir\"", "tab\there \"quoted\" $5 C:\\dir"),
            ("A='x' # why", "x"),
            ("A=\"two\nlines\"", "two\nlines"),
            ("\u{feff}A=x\r\n", "x"),
            ("A=ä\u{1f600}", "ä\u{1f600}"),
        ] {
            assert_eq!(values(text), [("A".to_owned(), value.to_owned(), 1)], "{text}");
        }
    }

    #[test]
    fn lines_are_counted_over_comments_and_long_values() {
        let text = "# head\n\nA=1\r\nB='x\ny\nz'\nC=3";
        let lines: Vec<_> = values(text).into_iter().map(|(name, _, line)| (name, line)).collect();
        assert_eq!(lines, [("A".to_owned(), 3), ("B".to_owned(), 4), ("C".to_owned(), 7)]);
    }

    #[test]
    fn every_line_that_cannot_be_read_is_named_and_the_others_are_read() {
        let (assignments, bad) = parse("A=1\nhunter2\n1X=2\nB='open\nC=\"x\" hunter2\nD=4\n=5\nexport=6");
        let names: Vec<_> = assignments.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["A", "D", "export"]);
        let shown: Vec<_> = bad.iter().map(|one| format!("{}: {}", one.line, one.message)).collect();
        assert_eq!(
            shown,
            [
                "2: has no `=`: write NAME=value, or # in front of a comment",
                "3: does not begin with a name: use letters, digits and `_`, as in NAME=value",
                "4: sets B and never closes its quote: write `'` at the end",
                "5: sets C and has text after the closing quote: remove it",
                "7: does not begin with a name: use letters, digits and `_`, as in NAME=value",
            ]
        );
        assert!(!shown.concat().contains("hunter2"), "a line that cannot be read may be a secret");
    }

    #[test]
    fn a_large_file_of_open_quotes_is_read_in_reasonable_time() {
        let (_, bad) = parse(&"A='\nB=\"\n".repeat(2_000));
        assert!(!bad.is_empty());
    }
}
