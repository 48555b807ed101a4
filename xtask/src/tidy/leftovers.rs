//! What nobody means to keep: unfinished work, prints in libraries, sleeps in tests, unwraps in production.
//!
//! | rule | where |
//! |---|---|
//! | unfinished | everywhere, comments and documents too |
//! | macro | any Rust code: `todo!`, `unimplemented!`, `dbg!` |
//! | print | library code: it writes nothing to a terminal it does not own |
//! | unwrap | library code outside tests: return the error, or `expect` with the invariant that makes it impossible |
//! | unbounded | library code: every queue between tasks has a bound, or says why not |
//! | sleep, ignore | tests: they wait for an event, and they all run |
//! | util | the names of crates and modules |

use crate::finding::Finding;
use crate::rust_source::{RustSource, declared_test_files, is_test_file};
use crate::tidy::allow;
use crate::tree::{SourceFile, Tree};

/// Marks of unfinished work. Put together here so that this file does not find itself.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
/// Where a mark of unfinished work is searched.
const WRITTEN: [&str; 12] = ["rs", "md", "toml", "html", "js", "css", "sql", "lua", "py", "sh", "yml", "yaml"];
/// Names that say nothing about what is inside.
const NAMELESS: [&str; 4] = ["util", "utils", "helpers", "misc"];

/// The contract of every store: test code, though it is part of a library.
const CONFORMANCE: &str = "crates/windlass-testkit/src/conformance";

/// One rule about a line of Rust code.
struct Rule {
    name: &'static str,
    patterns: &'static [&'static str],
    applies: fn(Place) -> bool,
    fix: &'static str,
}

/// What kind of code a line is.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// In a crate that others link, and not in its tests, examples or build script.
    library: bool,
    /// Test code.
    test: bool,
}

const RULES: [Rule; 6] = [
    Rule { name: "macro", patterns: &["todo!(", "unimplemented!(", "dbg!("], applies: |_| true, fix: "finish it" },
    Rule {
        name: "print",
        patterns: &["println!(", "eprintln!(", "print!(", "eprint!("],
        applies: |place| place.library,
        fix: "emit an event with `tracing`, or return the text",
    },
    Rule {
        name: "unwrap",
        patterns: &[".unwrap()"],
        applies: |place| place.library,
        fix: "return the error, or `expect` with the invariant that makes it impossible",
    },
    Rule {
        name: "unbounded",
        patterns: &["unbounded_channel(", "unbounded_channel::<", "mpsc::channel()"],
        applies: |place| place.library,
        fix: "bound the queue and say what happens when it is full",
    },
    Rule {
        name: "sleep",
        patterns: &["thread::sleep(", "time::sleep("],
        applies: |place| place.test,
        fix: "wait for the event or move the test clock",
    },
    Rule {
        name: "ignore",
        patterns: &["#[ignore"],
        applies: |place| place.test,
        fix: "assert today's behaviour and say so",
    },
];

/// Reports every left-over in the tree.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files.iter().filter(|file| WRITTEN.contains(&file.extension())) {
        findings.extend(find_unfinished(file));
    }
    let declared = declared_test_files(tree);
    for file in tree.with_extension("rs") {
        let test = is_test_file(&file.path) || file.path.starts_with(CONFORMANCE) || declared.contains(&file.path);
        findings.extend(find_in_code(file, test));
        findings.extend(find_nameless(file));
    }
    findings
}

fn find_unfinished(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, line) in file.text.lines().enumerate() {
        let mut words = line.split(|char: char| !char.is_alphanumeric() && char != '_');
        if let Some(word) = words.find(|word| UNFINISHED.contains(word)) {
            findings.push(Finding::at(
                &file.path,
                at + 1,
                format!("`{word}`"),
                "finish it, or file an issue and say what is missing",
            ));
        }
    }
    findings
}

fn find_in_code(file: &SourceFile, test_file: bool) -> Vec<Finding> {
    let source = RustSource::of(&file.text);
    let lines: Vec<&str> = file.text.lines().collect();
    let library_file = is_library_file(&file.path);
    let mut findings = Vec::new();
    for (at, code) in source.code.lines().enumerate() {
        let line = at + 1;
        let test = test_file || source.is_test_line(line);
        let place = Place { library: library_file && !test, test };
        for rule in RULES.iter().filter(|rule| (rule.applies)(place)) {
            let found = rule.patterns.iter().find(|pattern| contains_call(code, pattern));
            if let Some(pattern) = found
                && !allow::is_excused(&lines, line, rule.name)
            {
                let fix = format!("{}, {}", rule.fix, allow::hint(rule.name));
                findings.push(Finding::at(&file.path, line, format!("`{pattern}`"), fix));
            }
        }
    }
    findings
}

/// Whether `pattern` is in `code` and not as the end of a longer name: `print!(` is no part of `eprint!(`.
fn contains_call(code: &str, pattern: &str) -> bool {
    let starts_with_name = pattern.starts_with(|char: char| char.is_alphanumeric());
    code.match_indices(pattern).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !(starts_with_name && before.is_some_and(|char| char.is_alphanumeric() || char == '_'))
    })
}

/// Whether production code links this file: the sources of every crate but the command line, the test kit, tooling,
/// fakes and applications.
fn is_library_file(path: &str) -> bool {
    let Some((of_crate, rest)) = path.strip_prefix("crates/").and_then(|path| path.split_once('/')) else {
        return path.starts_with("apps/kit/src/");
    };
    !matches!(of_crate, "windlass-cli" | "windlass-testkit")
        && rest.starts_with("src/")
        && rest != "src/main.rs"
        && !rest.starts_with("src/bin/")
}

fn find_nameless(file: &SourceFile) -> Option<Finding> {
    let mut folders = file.path.split('/').rev().skip(1);
    let of_folder =
        folders.find(|folder| NAMELESS.iter().any(|name| folder == name || folder.ends_with(&format!("-{name}"))));
    let nameless = of_folder.or_else(|| NAMELESS.iter().find(|name| **name == file.stem()).copied())?;
    Some(Finding::whole(&file.path, format!("a module or crate called `{nameless}`"), "name it after its idea"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules_found(path: &str, text: &str) -> Vec<String> {
        check(&Tree::of(&[(path, text)])).into_iter().map(|finding| finding.what).collect()
    }

    const LIBRARY: &str = "crates/windlass-core/src/a.rs";

    #[test]
    fn unfinished_work_is_found_in_comments_and_documents() {
        let text = format!("// {}: later\n", UNFINISHED[0]);
        assert_eq!(rules_found(LIBRARY, &text).len(), 1);
        assert_eq!(rules_found("README.md", &text).len(), 1);
        assert_eq!(rules_found("README.md", "mastodons").len(), 0);
    }

    #[test]
    fn unfinished_code_is_found_in_every_crate() {
        assert_eq!(rules_found("crates/windlass-cli/src/a.rs", "fn f() { todo!() }\nfn g() { dbg!(1); }\n").len(), 2);
    }

    #[test]
    fn prints_and_unwraps_are_for_programs_and_tests() {
        let text = "fn f() { println!(\"{}\", g().unwrap()); }\n";
        assert_eq!(rules_found(LIBRARY, text).len(), 2);
        assert_eq!(rules_found("crates/windlass-cli/src/a.rs", text).len(), 0);
        assert_eq!(rules_found("crates/windlass/examples/hello.rs", text).len(), 0);
        assert_eq!(rules_found("crates/windlass-core/tests/a.rs", text).len(), 0);
        assert_eq!(rules_found(LIBRARY, &format!("#[cfg(test)]\nmod tests {{\n{text}}}\n")).len(), 0);
        assert_eq!(rules_found(LIBRARY, "/// let x = f().unwrap();\nconst A: &str = \"println!(\";\n").len(), 0);
    }

    #[test]
    fn sleeps_are_found_in_tests_only_and_may_be_excused() {
        let text = "fn f() { std::thread::sleep(x); tokio::time::sleep(y).await; }\n";
        assert_eq!(rules_found(LIBRARY, text).len(), 0);
        assert_eq!(rules_found("crates/windlass-core/tests/a.rs", text), ["`thread::sleep(`"]);
        let excused = format!("// tidy: allow(sleep): the file system has no event\n{text}");
        assert_eq!(rules_found("crates/windlass-core/tests/a.rs", &excused).len(), 0);
    }

    #[test]
    fn unbounded_queues_say_why() {
        let text = "fn f() { let (tx, rx) = tokio::sync::mpsc::unbounded_channel::<u8>(); }\n";
        assert_eq!(rules_found(LIBRARY, text).len(), 1);
        let excused = format!("// tidy: allow(unbounded): at most one message for each slot\n{text}");
        assert_eq!(rules_found(LIBRARY, &excused).len(), 0);
    }

    #[test]
    fn the_test_kit_may_unwrap_and_its_contract_may_not_sleep() {
        let text = "fn f() { std::thread::sleep(g().unwrap()); }\n";
        assert_eq!(rules_found("crates/windlass-testkit/src/sim.rs", text).len(), 0);
        assert_eq!(rules_found("crates/windlass-testkit/src/conformance/claim.rs", text), ["`thread::sleep(`"]);
    }

    #[test]
    fn a_module_declared_for_tests_is_test_code() {
        let tree = Tree::of(&[
            ("crates/windlass-core/src/lib.rs", "#[cfg(test)]\nmod support;\n"),
            ("crates/windlass-core/src/support.rs", "fn f() { g().unwrap() }\n"),
        ]);
        assert_eq!(check(&tree).len(), 0);
    }

    #[test]
    fn ignored_tests_are_found() {
        assert_eq!(rules_found(LIBRARY, "#[test]\n#[ignore = \"slow\"]\nfn f() {}\n").len(), 1);
    }

    #[test]
    fn nothing_is_called_util() {
        assert_eq!(rules_found("crates/windlass-util/src/lib.rs", "").len(), 1);
        assert_eq!(rules_found("crates/windlass/src/utils.rs", "").len(), 1);
        assert_eq!(rules_found("crates/windlass/src/util/mod.rs", "").len(), 1);
        assert_eq!(rules_found("crates/windlass/src/utility.rs", "").len(), 0);
    }
}
