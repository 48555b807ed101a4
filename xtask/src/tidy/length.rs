//! A long file may hide an idea that wants a name: it says at its top why it is long.

use crate::finding::Finding;
use crate::tree::Tree;

/// A file above this is more than one sitting; the number is a question, not a limit.
const LINES_MAX: usize = 600;
/// The reason must be seen by who opens the file.
const REASON_WITHIN_LINES: usize = 15;
/// How the reason begins, in a comment of the file's language.
const REASON: &str = "Long because ";
/// What people write by hand. Data, documents and recorded fixtures may have any length.
const WRITTEN_BY_HAND: [&str; 8] = ["rs", "js", "css", "html", "sql", "lua", "py", "sh"];

/// Reports long files without a reason.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let written = tree.files.iter().filter(|file| WRITTEN_BY_HAND.contains(&file.extension()));
    let long = written.filter_map(|file| {
        let lines = file.text.lines().count();
        let gives_reason = file
            .text
            .lines()
            .take(REASON_WITHIN_LINES)
            .any(|line| line.split_once(REASON).is_some_and(|(_, reason)| reason.trim().len() >= 8));
        (lines > LINES_MAX && !gives_reason).then_some((file, lines))
    });
    long.map(|(file, lines)| {
        let fix = format!(
            "split it where an idea ends, or begin a line of its first {REASON_WITHIN_LINES} with `//! {REASON}…`"
        );
        Finding::whole(&file.path, format!("{lines} lines"), fix)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_needs_a_reason_at_its_top() {
        let body = "let a = 1;\n".repeat(LINES_MAX);
        let with_reason = format!("//! One table.\n//!\n//! Long because the table has one row for each zone.\n{body}");
        let too_late = format!("{body}//! Long because of the table at its end.\n");
        assert_eq!(check(&Tree::of(&[("a.rs", &body)])).len(), 0, "exactly at the limit");
        assert_eq!(check(&Tree::of(&[("a.rs", &with_reason)])).len(), 0);
        assert_eq!(check(&Tree::of(&[("a.rs", &too_late)])).len(), 1);
        assert_eq!(check(&Tree::of(&[("vectors.json", &too_late)])).len(), 0);
    }
}
