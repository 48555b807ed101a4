//! The engine knows no driver, no socket and no clock but its own.
//!
//! Cargo shows which crates the engine links; this check reads its words. Comments may explain with foreign names, and
//! the cron dialects are named after the systems whose expressions they read.

use crate::finding::Finding;
use crate::rust_source::{RustSource, declared_test_files, is_test_file};
use crate::tidy::allow;
use crate::tree::Tree;

/// The engine's sources.
const ENGINE: &str = "crates/windlass-core/src/";
/// Where dialects are named.
const DIALECTS: &str = "crates/windlass-core/src/schedule/";
/// The one place that reads the machine's clock.
const CLOCK: &str = "crates/windlass-core/src/time.rs";

/// Foreign names that are no part of any other word.
const NAMES: [&str; 11] =
    ["celery", "taskiq", "kombu", "rabbitmq", "postgres", "sqlite", "valkey", "lapin", "dramatiq", "sidekiq", "amqp"];
/// Foreign names that hide inside other words (`redistribute`), so they count only as a whole word of a name.
const WHOLE_WORDS: [&str; 3] = ["sql", "redis", "mysql"];

/// Reads of the machine's own clock.
const CLOCKS: [&str; 4] = ["SystemTime::now", "Timestamp::now", "Zoned::now", "Utc::now"];
/// Ways to the network.
const SOCKETS: [&str; 5] = ["tokio::net", "TcpStream", "TcpListener", "UdpSocket", "UnixStream"];

/// Reports foreign names, clocks and sockets in the engine.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let declared = declared_test_files(tree);
    let is_test = |path: &str| is_test_file(path) || declared.contains(path);
    let engine = tree.with_extension("rs").filter(|file| file.path.starts_with(ENGINE) && !is_test(&file.path));
    let mut findings = Vec::new();
    for file in engine {
        let source = RustSource::of(&file.text);
        let lines: Vec<&str> = file.text.lines().collect();
        for (at, text) in source.code_and_strings.lines().enumerate() {
            let line = at + 1;
            if source.is_test_line(line) {
                continue;
            }
            if !file.path.starts_with(DIALECTS)
                && let Some(name) = find_foreign_name(text)
                && !allow::is_excused(&lines, line, "name")
            {
                let fix = format!("move what needs it to its driver or codec, {}", allow::hint("name"));
                findings.push(Finding::at(&file.path, line, format!("the engine says `{name}`"), fix));
            }
            if file.path != CLOCK
                && let Some(clock) = CLOCKS.iter().find(|clock| text.contains(**clock))
                && !allow::is_excused(&lines, line, "clock")
            {
                let fix = format!("ask the `Clock` that is passed in, {}", allow::hint("clock"));
                findings.push(Finding::at(&file.path, line, format!("the engine reads `{clock}`"), fix));
            }
            if let Some(socket) = SOCKETS.iter().find(|socket| text.contains(**socket)) {
                findings.push(Finding::at(
                    &file.path,
                    line,
                    format!("the engine uses `{socket}`"),
                    "move it to a driver",
                ));
            }
        }
    }
    findings
}

/// The first foreign name in a line of code, as it would be written in lower case.
fn find_foreign_name(text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    let inside = NAMES.iter().find(|name| lower.contains(**name));
    inside.or_else(|| WHOLE_WORDS.iter().find(|word| words(text).any(|part| part == **word))).copied()
}

/// The words of a line in lower case: `RedisUrl`, `redis_url` and `redis-url` are `redis` and `url`.
fn words(text: &str) -> impl Iterator<Item = String> {
    let mut split = String::with_capacity(text.len() + 16);
    let mut before = ' ';
    for char in text.chars() {
        if char.is_ascii_uppercase() && before.is_ascii_lowercase() {
            split.push(' ');
        }
        split.push(if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { ' ' });
        before = char;
    }
    split.split_whitespace().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        check(&Tree::of(&[(path, text)])).len()
    }

    #[test]
    fn foreign_names_in_code_and_strings_are_found() {
        assert_eq!(
            findings("crates/windlass-core/src/a.rs", "struct CeleryHeader;\nlet x = \"redis://\";\nfn to_sql() {}\n"),
            3
        );
    }

    #[test]
    fn comments_dialects_tests_and_other_crates_may_name_them() {
        assert_eq!(findings("crates/windlass-core/src/a.rs", "// like Celery\nfn redistribute() {}\n"), 0);
        assert_eq!(findings("crates/windlass-core/src/schedule/cron.rs", "enum Dialect { Celery, TaskIq }\n"), 0);
        assert_eq!(
            findings("crates/windlass-core/src/a.rs", "#[cfg(test)]\nmod tests { const X: &str = \"taskiq\"; }\n"),
            0
        );
        assert_eq!(findings("crates/windlass-sqlite/src/lib.rs", "struct Sqlite;\n"), 0);
    }

    #[test]
    fn clocks_and_sockets_are_found() {
        assert_eq!(
            findings("crates/windlass-core/src/a.rs", "let t = SystemTime::now();\nuse tokio::net::TcpStream;\n"),
            2
        );
        assert_eq!(findings("crates/windlass-core/src/time.rs", "let t = SystemTime::now();\n"), 0);
        assert_eq!(
            findings(
                "crates/windlass-core/src/a.rs",
                "// tidy: allow(clock): seeds the generator only\nSystemTime::now();\n"
            ),
            0
        );
    }
}
