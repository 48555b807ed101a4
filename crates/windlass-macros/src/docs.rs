//! Doc comments as text for people: what the command line, the dashboard and the schema show.

use syn::{Attribute, Expr, ExprLit, Lit, Meta};

/// The doc comment among `attributes`, trimmed.
///
/// The lines of a paragraph become one line, as Markdown reads them; paragraphs, lists, tables and code keep their lines.
pub(crate) fn doc(attributes: &[Attribute]) -> String {
    let comments: Vec<String> = attributes.iter().filter_map(comment).collect();
    // Not `lines`: an empty `///` is the empty line between two paragraphs.
    join(&comments.iter().flat_map(|comment| comment.split('\n')).collect::<Vec<_>>())
}

fn comment(attribute: &Attribute) -> Option<String> {
    match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("doc") => match &meta.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            // `include_str!` and the like: known to the compiler only.
            _ => None,
        },
        _ => None,
    }
}

fn join(lines: &[&str]) -> String {
    let indent = lines.iter().filter(|line| !line.trim().is_empty()).map(|line| indent_of(line)).min().unwrap_or(0);
    let mut text = String::new();
    let mut above = Line::Own;
    let mut in_code = false;
    for line in lines {
        let line = line.get(indent..).unwrap_or("").trim_end();
        let fence = line.trim_start().starts_with("```");
        let here = if in_code || fence || !flows(line) { Line::Own } else { Line::Flowing };
        in_code ^= fence;
        match (above, here) {
            (Line::Flowing, Line::Flowing) => text.push(' '),
            (Line::Own, _) | (_, Line::Own) => text.push('\n'),
        }
        // A list item may go on in the next line.
        above = if here == Line::Own && is_item(line) && !in_code { Line::Flowing } else { here };
        text.push_str(if above == Line::Flowing && here == Line::Flowing { line.trim_start() } else { line });
    }
    text.trim().to_owned()
}

#[derive(Clone, Copy, PartialEq)]
enum Line {
    /// Goes on in the paragraph above.
    Flowing,
    /// Stands alone.
    Own,
}

fn indent_of(line: &str) -> usize {
    line.bytes().take_while(|byte| *byte == b' ').count()
}

fn flows(line: &str) -> bool {
    !line.is_empty() && !is_item(line) && !line.starts_with(['#', '|', '>']) && !line.starts_with("    ")
}

fn is_item(line: &str) -> bool {
    let line = line.trim_start();
    let numbered = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_number = numbered.len() < line.len() && (numbered.starts_with(". ") || numbered.starts_with(") "));
    is_number || ["- ", "* ", "+ "].iter().any(|mark| line.starts_with(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(comment: &str) -> String {
        join(&comment.lines().collect::<Vec<_>>())
    }

    #[test]
    fn the_lines_of_a_paragraph_become_one() {
        assert_eq!(joined(" Mails the\n verification link.\n\n Once.  "), "Mails the verification link.\n\nOnce.");
        assert_eq!(joined(""), "");
    }

    #[test]
    fn lists_and_code_keep_their_lines() {
        let comment = " Steps:\n - one,\n   still one\n - two\n 1. three\n\n ```\n a\n b\n ```\n | x |\n | y |";
        let text = "Steps:\n- one, still one\n- two\n1. three\n\n```\na\nb\n```\n| x |\n| y |";
        assert_eq!(joined(comment), text);
    }

    #[test]
    fn the_text_of_a_block_comment_loses_its_indent() {
        assert_eq!(joined("\n    Mails the link.\n\n    Once.\n    "), "Mails the link.\n\nOnce.");
    }
}
