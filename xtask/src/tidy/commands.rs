//! The commands that documents tell people to type exist.
//!
//! Looks into fenced `sh`, `console`, `bash` and `shell` blocks. `cargo xtask X` is checked against this program's own
//! command line, `--example X` against the crates, `windlass X` and `cargo run … -- X` against the help of the built
//! binary: the step `commands` of `cargo xtask test` does that, since only a fresh build can be asked.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::CommandFactory as _;

use crate::finding::Finding;
use crate::markdown::Document;
use crate::metadata::Metadata;
use crate::process::{self, Echo};
use crate::tree::Tree;

/// The languages of blocks that people type from.
const SHELLS: [&str; 4] = ["sh", "console", "bash", "shell"];
/// History may name commands that are gone.
const HISTORY: &str = "CHANGELOG.md";
/// Printing help takes milliseconds; a program that does not know `--help` may wait for ever.
const HELP_LIMIT: Duration = Duration::from_secs(10);

/// What a documented command starts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Program {
    Xtask,
    Windlass,
    Example(String),
}

/// One command in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Invocation {
    path: String,
    line: usize,
    program: Program,
    arguments: Vec<String>,
}

/// What the check against the binary saw.
#[derive(Debug)]
pub(crate) struct Documented {
    /// How many commands were asked about.
    pub(crate) count: usize,
    /// Those that the binary does not know.
    pub(crate) findings: Vec<Finding>,
}

/// Reports `cargo xtask` commands and examples that do not exist.
pub(super) fn check(tree: &Tree, metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for invocation in find_invocations(tree) {
        let problem = match &invocation.program {
            Program::Xtask => check_xtask(&invocation.arguments),
            Program::Example(name) => {
                let exists = metadata.members().any(|package| package.examples.contains(name));
                (!exists).then(|| format!("there is no example `{name}`"))
            }
            Program::Windlass => None,
        };
        findings.extend(
            problem
                .map(|what| Finding::at(&invocation.path, invocation.line, what, "mend the document or the command")),
        );
    }
    findings.extend(find_missing_example_files(tree));
    findings
}

/// Whether any document starts the `windlass` binary.
pub(super) fn names_the_binary(tree: &Tree) -> bool {
    find_invocations(tree).iter().any(|invocation| invocation.program == Program::Windlass)
}

/// Asks the built binary about every `windlass` command in the documents.
///
/// # Errors
/// When the binary does not start.
pub(super) fn check_binary(tree: &Tree, binary: &Path) -> Result<Documented> {
    ask_about_all(tree, &|subcommands| ask_help(binary, subcommands))
}

/// Checks every `windlass` command against the help that `ask` gives for its subcommands.
fn ask_about_all(tree: &Tree, ask: &dyn Fn(&[String]) -> Result<Option<String>>) -> Result<Documented> {
    let mut help_of: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
    let mut documented = Documented { count: 0, findings: Vec::new() };
    for invocation in find_invocations(tree).into_iter().filter(|invocation| invocation.program == Program::Windlass) {
        documented.count += 1;
        let subcommands = leading_subcommands(&invocation.arguments);
        if !help_of.contains_key(&subcommands) {
            help_of.insert(subcommands.clone(), ask(&subcommands)?);
        }
        let problem = find_unknown(&invocation.arguments, &subcommands, help_of[&subcommands].as_deref());
        documented.findings.extend(
            problem
                .map(|what| Finding::at(&invocation.path, invocation.line, what, "mend the document or the command")),
        );
    }
    Ok(documented)
}

fn check_xtask(arguments: &[String]) -> Option<String> {
    let program = crate::Xtask::command();
    let name = arguments.first()?;
    if name.starts_with('-') {
        return None;
    }
    let Some(command) = program.find_subcommand(name) else {
        return Some(format!("`cargo xtask` has no command `{name}`"));
    };
    let unknown = flags(arguments).find(|flag| !command.get_arguments().any(|known| known.get_long() == Some(flag)));
    unknown.map(|flag| format!("`cargo xtask {name}` has no flag `--{flag}`"))
}

/// What of an invocation its help text does not know. `help` is `None` when the binary refused the subcommand.
fn find_unknown(arguments: &[String], subcommands: &[String], help: Option<&str>) -> Option<String> {
    let command = ["windlass"].into_iter().chain(subcommands.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
    let Some(help) = help else {
        return Some(format!("`{command}` is no command of the binary"));
    };
    let knows = |flag: &str| {
        let written = format!("--{flag}");
        help.split(|char: char| !(char.is_alphanumeric() || char == '-' || char == '_')).any(|word| word == written)
    };
    flags(arguments).find(|flag| !knows(flag)).map(|flag| format!("`{command}` has no flag `--{flag}`"))
}

/// The long flags among the arguments, without dashes and values, up to a bare `--`.
fn flags(arguments: &[String]) -> impl Iterator<Item = &str> {
    let ours = arguments.iter().take_while(|argument| *argument != "--");
    ours.filter_map(|argument| argument.strip_prefix("--"))
        .map(|flag| flag.split_once('=').map_or(flag, |(name, _)| name))
}

/// The words that can only be subcommands: those before the first flag, value, path or placeholder.
fn leading_subcommands(arguments: &[String]) -> Vec<String> {
    let is_name = |word: &&String| {
        !word.is_empty() && !word.starts_with('-') && word.chars().all(|char| char.is_ascii_lowercase() || char == '-')
    };
    arguments.iter().take_while(is_name).cloned().collect()
}

/// The help of a subcommand; `None` when the binary does not know it.
fn ask_help(binary: &Path, subcommands: &[String]) -> Result<Option<String>> {
    let mut command = Command::new(binary);
    command.args(subcommands).arg("--help");
    let finished = process::run(command, HELP_LIMIT, Echo::Nothing)?;
    Ok(finished.success().then(|| finished.stdout + &finished.stderr))
}

fn find_invocations(tree: &Tree) -> Vec<Invocation> {
    let mut invocations = Vec::new();
    for file in tree.with_extension("md").filter(|file| !file.path.ends_with(HISTORY)) {
        for fence in Document::of(&file.text).fences {
            if !SHELLS.contains(&fence.language.as_str()) {
                continue;
            }
            // In a console block only the lines after a prompt are typed; the others are answers.
            let with_prompts = fence.lines.iter().any(|(_, line)| line.trim_start().starts_with("$ "));
            for (line, text) in join_continued(&fence.lines) {
                let text = text.trim();
                let typed = if with_prompts { text.strip_prefix("$ ") } else { Some(text) };
                for command in typed.map(split_commands).unwrap_or_default() {
                    if let Some((program, arguments)) = parse_command(&command) {
                        invocations.push(Invocation { path: file.path.clone(), line, program, arguments });
                    }
                }
            }
        }
    }
    invocations
}

/// Joins lines that end in a backslash with the next.
fn join_continued(lines: &[(usize, String)]) -> Vec<(usize, String)> {
    let mut joined: Vec<(usize, String)> = Vec::new();
    let mut continues = false;
    for (number, line) in lines {
        let (text, more) = line.trim_end().strip_suffix('\\').map_or((line.as_str(), false), |text| (text, true));
        match joined.last_mut() {
            Some((_, before)) if continues => before.extend([" ", text.trim_start()]),
            _ => joined.push((*number, text.to_owned())),
        }
        continues = more;
    }
    joined
}

/// The simple commands of a line as words: split at `|`, `;`, `&`, ended by a comment, quotes respected.
fn split_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    for char in line.chars() {
        match (char, quote) {
            (_, Some(open)) if char == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            ('|' | ';' | '&', None) => {
                commands.last_mut().expect("never empty").extend(word.take());
                commands.push(Vec::new());
            }
            (_, None) if char.is_whitespace() => commands.last_mut().expect("never empty").extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    commands.last_mut().expect("never empty").extend(word);
    commands.retain(|words| !words.is_empty());
    commands
}

/// Which of our programs a command starts, and with what.
fn parse_command(words: &[String]) -> Option<(Program, Vec<String>)> {
    let is_assignment = |word: &&String| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|char| char.is_ascii_uppercase() || char == '_')
        })
    };
    let words: Vec<&str> = words.iter().skip_while(is_assignment).map(String::as_str).collect();
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match words.as_slice() {
        ["cargo", "xtask", rest @ ..] => Some((Program::Xtask, owned(rest))),
        ["windlass" | "./target/release/windlass" | "target/release/windlass", rest @ ..] => {
            Some((Program::Windlass, owned(rest)))
        }
        ["cargo", "run", rest @ ..] => parse_cargo_run(rest).map(|(program, arguments)| (program, owned(arguments))),
        _ => None,
    }
}

/// `cargo run` at the root starts `windlass`; with `--example` an example; with another `--package` something else.
fn parse_cargo_run<'words>(words: &'words [&'words str]) -> Option<(Program, &'words [&'words str])> {
    let split = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let (ours, rest) = (&words[..split], words.get(split + 1..).unwrap_or_default());
    let value_of = |long: &str, short: &str| {
        let at = ours.iter().position(|word| *word == long || *word == short)?;
        ours.get(at + 1).copied()
    };
    if let Some(example) = value_of("--example", "--example") {
        return Some((Program::Example(example.to_owned()), rest));
    }
    let package = value_of("--package", "-p").unwrap_or("windlass-cli");
    (package == "windlass-cli").then_some((Program::Windlass, rest))
}

/// Every `examples/NAME.rs` in a document is a file.
fn find_missing_example_files(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_extension("md").filter(|file| !file.path.ends_with(HISTORY)) {
        for (at, line) in file.text.lines().enumerate() {
            for (start, folder) in line.match_indices("examples/") {
                let rest = &line[start + folder.len()..];
                let length =
                    rest.find(|char: char| !(char.is_ascii_alphanumeric() || char == '_')).unwrap_or(rest.len());
                let (name, after) = rest.split_at(length);
                let missing = !tree.files.iter().any(|file| file.path.ends_with(&format!("examples/{name}.rs")));
                if !name.is_empty() && after.starts_with(".rs") && missing {
                    findings.push(Finding::at(
                        &file.path,
                        at + 1,
                        format!("there is no `examples/{name}.rs`"),
                        "mend the document",
                    ));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::samples::member;

    fn findings(readme: &str) -> Vec<String> {
        let mut package = member("windlass", &[], &[]);
        package.examples.push("hello".to_owned());
        let tree = Tree::of(&[("README.md", readme), ("crates/windlass/examples/hello.rs", "")]);
        check(&tree, &Metadata { packages: vec![package] }).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn commands_and_examples_that_exist_pass() {
        let readme =
            "```sh\ncargo xtask test --keep-going  # all\ncargo run --example hello\n```\nsee `examples/hello.rs`\n";
        assert_eq!(findings(readme), Vec::<String>::new());
    }

    #[test]
    fn commands_flags_and_examples_that_do_not_exist_are_found() {
        assert!(
            findings("```sh\ncargo xtask tset\n```\n")[0]
                .starts_with("README.md:2: `cargo xtask` has no command `tset`")
        );
        assert_eq!(findings("```sh\ncargo xtask test --fast\n```\n").len(), 1);
        assert_eq!(findings("```console\n$ cd x && cargo run --example bye\nhi\n```\n").len(), 1);
        assert_eq!(findings("see `crates/windlass/examples/bye.rs`\n").len(), 1);
        assert_eq!(findings("```rust\ncargo xtask tset\n```\n").len(), 0);
    }

    #[test]
    fn invocations_of_the_binary_are_read_from_every_form() {
        let readme = "```sh\ncargo run --release -- demo --keep\nRUST_LOG=debug windlass dlq \\\n  replay --all | jq '. | x'\n\
            cargo run -p courier -- worker\n```\n";
        let found = find_invocations(&Tree::of(&[("README.md", readme)]));
        let words: Vec<String> = found.iter().map(|invocation| invocation.arguments.join(" ")).collect();
        assert_eq!(words, ["demo --keep", "dlq replay --all"]);
        assert_eq!(found[1].line, 3);
    }

    #[test]
    fn the_binary_is_asked_about_each_command() {
        let readme = "```sh\nwindlass demo --keep\nwindlass demo --kep\nwindlass gone\n```\n";
        let knows_demo =
            |subcommands: &[String]| Ok((subcommands == ["demo"]).then(|| "  --keep  leave it running".to_owned()));
        let documented = ask_about_all(&Tree::of(&[("README.md", readme)]), &knows_demo).expect("always answers");
        let lines: Vec<Option<usize>> = documented.findings.iter().map(|finding| finding.line).collect();
        assert_eq!((documented.count, lines), (3, vec![Some(3), Some(4)]));
    }

    #[test]
    fn help_decides_what_the_binary_knows() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let arguments = words("enqueue http.request --from urls.ndjson --rate=50/s -- --raw");
        assert_eq!(leading_subcommands(&arguments), ["enqueue"]);
        let subcommands = words("enqueue");
        assert_eq!(find_unknown(&arguments, &subcommands, Some("  --from <FILE>\n  --rate <RATE>")), None);
        assert!(find_unknown(&arguments, &subcommands, Some("  --from-file <FILE>\n  --rate <RATE>")).is_some());
        assert!(
            find_unknown(&arguments, &subcommands, None)
                .is_some_and(|what| what.contains("`windlass enqueue` is no command"))
        );
    }
}
