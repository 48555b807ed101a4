//! Rust source with what a check does not want to see blanked out: comments, strings, test code.
//!
//! Not a parser: a scanner that knows comments, strings, characters and brackets. Blanking keeps every line break, so
//! line numbers stay true.

use std::collections::BTreeSet;

use crate::tree::Tree;

/// What a byte of source belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Text,
}

/// One file of Rust source, scanned once.
#[derive(Debug)]
pub(crate) struct RustSource {
    /// The source with comments and the insides of strings blanked.
    pub(crate) code: String,
    /// The source with comments blanked: code and strings.
    pub(crate) code_and_strings: String,
    /// For each line, whether it is inside an item marked `#[cfg(test)]` or `#[test]`.
    test_lines: Vec<bool>,
}

impl RustSource {
    /// Scans `text`.
    pub(crate) fn of(text: &str) -> Self {
        let parts = scan(text.as_bytes());
        let code = blank(text, &parts, |part| part == Part::Code);
        let code_and_strings = blank(text, &parts, |part| part != Part::Comment);
        let test_lines = find_test_lines(&code);
        Self { code, code_and_strings, test_lines }
    }

    /// Whether the line, counted from 1, is test code.
    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.test_lines.get(line - 1).copied().unwrap_or(false)
    }
}

/// Whether a whole file is test code by its place: integration tests, benches, and `tests.rs` beside the code.
pub(crate) fn is_test_file(path: &str) -> bool {
    let mut folders = path.split('/').rev();
    let name = folders.next().unwrap_or_default();
    matches!(name, "tests.rs" | "test.rs")
        || name.ends_with("_tests.rs")
        || folders.any(|folder| matches!(folder, "tests" | "benches"))
}

/// The files that hold a module which its parent declares for tests only: `#[cfg(test)] mod support;`.
pub(crate) fn declared_test_files(tree: &Tree) -> BTreeSet<String> {
    let mut declared = BTreeSet::new();
    for file in tree.with_extension("rs") {
        let code = RustSource::of(&file.text).code;
        for (at, mark) in code.match_indices("#[cfg(test)]") {
            let Some((item, _)) = code[at + mark.len()..].split_once(';') else { continue };
            if let Some(name) = item.split_whitespace().skip_while(|word| *word != "mod").nth(1)
                && !item.contains('{')
            {
                let folder = folder_of_children(&file.path);
                declared.extend([format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")]);
            }
        }
    }
    declared
}

/// Where the modules that a file declares are: beside `lib.rs`, `main.rs` and `mod.rs`, below any other.
fn folder_of_children(path: &str) -> &str {
    let beside = ["/lib.rs", "/main.rs", "/mod.rs"].iter().find_map(|name| path.strip_suffix(name));
    beside.unwrap_or_else(|| path.strip_suffix(".rs").unwrap_or(path))
}

fn blank(text: &str, parts: &[Part], keep: impl Fn(Part) -> bool) -> String {
    let kept = text.char_indices().map(|(at, char)| if char == '\n' || keep(parts[at]) { char } else { ' ' });
    kept.collect()
}

fn scan(bytes: &[u8]) -> Vec<Part> {
    let mut parts = vec![Part::Code; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let (part, end) = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => (Part::Comment, end_of_line(bytes, at)),
            b'/' if bytes[at..].starts_with(b"/*") => (Part::Comment, end_of_block_comment(bytes, at)),
            b'"' => (Part::Text, end_of_string(bytes, at)),
            b'r' if starts_raw_string(bytes, at) => (Part::Text, end_of_raw_string(bytes, at)),
            b'\'' => end_of_char(bytes, at).map_or((Part::Code, at + 1), |end| (Part::Text, end)),
            _ => (Part::Code, at + 1),
        };
        parts[at..end].fill(part);
        at = end;
    }
    parts
}

fn end_of_line(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| from + length)
}

fn end_of_block_comment(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn end_of_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Whether `r` at this place opens `r"…"` or `r#"…"#` and is not the end of a name nor a raw identifier.
fn starts_raw_string(bytes: &[u8], at: usize) -> bool {
    // The `b` of `br"…"` and the `c` of `cr"…"` belong to the string, other letters before the `r` to a name.
    let before = at.checked_sub(1).map(|before| bytes[before]);
    let ends_a_name = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if ends_a_name && !matches!(before, Some(b'b' | b'c')) {
        return false;
    }
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    bytes.get(at + 1 + hashes) == Some(&b'"')
}

fn end_of_raw_string(bytes: &[u8], from: usize) -> usize {
    let hashes = bytes[from + 1..].iter().take_while(|byte| **byte == b'#').count();
    let mut at = from + hashes + 2;
    while at < bytes.len() {
        if bytes[at] == b'"' && bytes[at + 1..].iter().take(hashes).filter(|byte| **byte == b'#').count() == hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    bytes.len()
}

/// The end of `'x'`, `'\n'`, `'ä'`; `None` when the quote opens a lifetime.
fn end_of_char(bytes: &[u8], from: usize) -> Option<usize> {
    let first = *bytes.get(from + 1)?;
    if first == b'\\' {
        let close = bytes.get(from + 3..)?.iter().position(|byte| *byte == b'\'')?;
        return Some(from + 3 + close + 1);
    }
    let width = match first {
        0x00..=0x7f => 1,
        0x80..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0.. => 4,
    };
    let close = from + 1 + width;
    (bytes.get(close) == Some(&b'\'')).then_some(close + 1)
}

/// Marks the lines of every item after `#[cfg(test)]`, `#[test]` and friends, from the attribute to its closing brace.
fn find_test_lines(code: &str) -> Vec<bool> {
    const MARKS: [&str; 5] = ["#[cfg(test)]", "#[cfg(all(test", "#[test]", "#[tokio::test", "proptest! {"];
    let bytes = code.as_bytes();
    let mut lines = vec![false; code.lines().count()];
    for mark in MARKS {
        for (start, _) in code.match_indices(mark) {
            let end = end_of_item(bytes, start);
            let first = count_lines(&bytes[..start]);
            let last = (first + count_lines(&bytes[start..end])).min(lines.len().saturating_sub(1));
            lines[first..=last].fill(true);
        }
    }
    lines
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').count() - 1
}

/// The end of the item at `from`: its first `;` or the match of its first `{`, outside every round or square bracket.
fn end_of_item(bytes: &[u8], from: usize) -> usize {
    let mut braces = 0_usize;
    let mut brackets = 0_usize;
    for (at, byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => brackets += 1,
            b')' | b']' => brackets = brackets.saturating_sub(1),
            b';' if braces == 0 && brackets == 0 => return at + 1,
            b'{' => braces += 1,
            b'}' => {
                braces = braces.saturating_sub(1);
                if braces == 0 && brackets == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_blanked_and_lines_kept() {
        let source = RustSource::of("let a = \"x // y\"; // unwrap\n/* a /* b */ c */ let b = 'c';\n");
        assert_eq!(source.code, "let a =         ;          \n                  let b =    ;\n");
        assert!(source.code_and_strings.contains("x // y"));
        assert!(!source.code_and_strings.contains("unwrap"));
    }

    #[test]
    fn lifetimes_and_raw_strings_do_not_confuse_it() {
        let source = RustSource::of("fn f<'a>(x: &'a str) { g(r#\"say \"hi\" // \"#, br\"\\\", '\\'', 'ä') } // end");
        assert!(source.code.starts_with("fn f<'a>(x: &'a str) { g("));
        assert!(source.code.trim_end().ends_with('}'), "{}", source.code);
        assert!(!source.code.contains("hi"));
    }

    #[test]
    fn test_items_are_known_by_line() {
        let source = RustSource::of(
            "fn a() {}\n#[cfg(test)]\nuse x::y;\nfn b() {}\n#[cfg(test)]\nmod tests {\n  fn c() { if x {} }\n}\nfn d() {}\n",
        );
        let tests: Vec<usize> = (1..=9).filter(|line| source.is_test_line(*line)).collect();
        assert_eq!(tests, [2, 3, 5, 6, 7, 8]);
    }

    #[test]
    fn modules_declared_for_tests_are_known() {
        let tree = Tree::of(&[
            (
                "crates/x/src/lib.rs",
                "mod a;\n#[cfg(test)]\npub(crate) mod support;\n#[cfg(test)]\nmod tests { use x; }\n",
            ),
            ("crates/x/src/worker.rs", "#[cfg(test)] mod fakes;\n"),
        ]);
        let declared = declared_test_files(&tree);
        assert!(declared.contains("crates/x/src/support.rs") && declared.contains("crates/x/src/worker/fakes.rs"));
        assert_eq!(declared.len(), 4, "{declared:?}");
    }

    #[test]
    fn test_files_are_known_by_place() {
        assert!(is_test_file("crates/x/tests/all.rs"));
        assert!(is_test_file("crates/x/src/worker/tests.rs"));
        assert!(is_test_file("tests/chaos/src/lib.rs"));
        assert!(!is_test_file("crates/x/src/lib.rs"));
    }
}
