//! The command line: every command, and the flags that all of them take. What a command does is in `commands`.

use std::path::PathBuf;

use clap::{Args, ColorChoice, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::{bench, commands, demo, doors};

/// Background tasks for services: durable, fast, and nothing is ever lost.
#[derive(Debug, Parser)]
#[command(
    name = "windlass",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "\
EXAMPLES
  windlass demo                          see it work and check itself
  windlass dev                           worker and scheduler on ./windlass.db
  windlass enqueue http.request --arg url=https://example.org
  windlass task ls -q state:dead         what gave up
  windlass limit set queue:mail --rate 100/m   not more often than this
  windlass doctor                        what is wrong, and what to do about it")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The store: sqlite:PATH, a bare path, or memory: [env: WINDLASS_STORE]
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub(crate) store: Option<String>,

    /// The configuration file [env: WINDLASS_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub(crate) config: Option<PathBuf>,

    /// The profile of the configuration file [env: WINDLASS_PROFILE]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    pub(crate) profile: Option<String>,

    /// Print JSON: short for -o json
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,

    /// How data is printed
    #[arg(short = 'o', long, global = true, value_name = "FORMAT", help_heading = "Output", conflicts_with = "json")]
    pub(crate) output: Option<Format>,

    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", help_heading = "Output")]
    pub(crate) color: Color,

    /// Show times in this zone (any IANA name) instead of how long ago
    #[arg(long, global = true, value_name = "ZONE", help_heading = "Output")]
    pub(crate) tz: Option<String>,

    /// Show times in UTC instead of how long ago
    #[arg(long, global = true, conflicts_with = "tz", help_heading = "Output")]
    pub(crate) utc: bool,

    /// Log more: -v for debug, -vv for trace
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    pub(crate) verbose: u8,

    /// Log errors only, and show no progress
    #[arg(long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    pub(crate) quiet: bool,
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    Table,
    /// The table with every column.
    Wide,
    /// One JSON object.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// Only the ids, one a line.
    Id,
}

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl From<Color> for ColorChoice {
    fn from(color: Color) -> Self {
        match color {
            Color::Auto => Self::Auto,
            Color::Always => Self::Always,
            Color::Never => Self::Never,
        }
    }
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Worker(commands::worker::Args),
    Scheduler(commands::worker::SchedulerArgs),
    All(commands::worker::AllArgs),
    Dev(commands::dev::Args),
    Enqueue(commands::enqueue::Args),
    Run(commands::run::Args),
    Task(commands::task::Args),
    Queue(commands::queue::Args),
    Dlq(commands::dlq::Args),
    Workflow(commands::workflow::Args),
    Limit(commands::limit::Args),
    Breaker(commands::breaker::Args),
    Schedule(commands::schedule::Args),
    Node(commands::node::Args),
    Migrate(commands::migrate::Args),
    Transfer(commands::transfer::Args),
    Outbox(commands::outbox::Args),
    Health(commands::health::Args),
    Doctor(commands::doctor::Args),
    Config(commands::config::Args),
    /// Show the main job at work and check it.
    Demo(demo::Args),
    /// Measure a store and the engine on this machine.
    Bench(bench::Args),
    Celery(doors::CeleryArgs),
    Taskiq(doors::TaskIqArgs),
    Completions(commands::completions::Args),
}

/// The command line of a program of this name: examples are written with `windlass` and must work when they are copied.
pub(crate) fn command_of(program: &str) -> clap::Command {
    fn rename(command: clap::Command, program: &str) -> clap::Command {
        let examples =
            command.get_after_help().map(|help| help.to_string().replace("  windlass ", &format!("  {program} ")));
        let command = match examples {
            Some(examples) => command.after_help(examples),
            None => command,
        };
        command.mut_subcommands(|child| rename(child, program))
    }
    let command = Cli::command();
    if program == "windlass" {
        return command;
    }
    // A name lives as long as the process, and there is one.
    let name: &'static str = program.to_owned().leak();
    rename(command.name(name), program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command_of("windlass").debug_assert();
    }

    /// Every command with its path: `task`, `task ls`.
    fn for_each(command: &clap::Command, path: &str, check: &mut dyn FnMut(&str, &clap::Command)) {
        for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
            let path = format!("{path} {}", child.get_name());
            check(&path, child);
            for_each(child, &path, check);
        }
    }

    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        help.lines().skip(1).map(|line| line.trim().to_owned()).collect()
    }

    /// What a shell would hand over of an example, up to the comment, a pipe or a redirection.
    fn words(example: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        for char in example.chars() {
            match char {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(std::mem::take(&mut word)),
                char => word.push(char),
            }
        }
        words.push(word);
        // Two spaces begin a comment.
        words.into_iter().take_while(|word| !matches!(word.as_str(), "" | "|" | ">")).collect()
    }

    #[test]
    fn every_command_has_examples_that_can_be_typed() {
        let program = command_of("windlass");
        for_each(&program, "windlass", &mut |path, command| {
            let examples = examples(command);
            assert!(!examples.is_empty(), "`{path}` has no examples");
            for example in examples {
                let typed =
                    example.rsplit_once("| windlass").map_or(example.clone(), |(_, rest)| format!("windlass{rest}"));
                let from = typed.find("windlass").unwrap_or_else(|| panic!("`{path}`: {example}"));
                let parsed = program.clone().try_get_matches_from(words(&typed[from..]));
                if let Err(error) = parsed {
                    panic!("`{path}`: {example}: {error}");
                }
            }
        });
    }

    #[test]
    fn every_command_and_flag_says_what_it_does() {
        for_each(&command_of("windlass"), "windlass", &mut |path, command| {
            assert!(command.get_about().is_some(), "{path}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {}", argument.get_id());
            }
        });
    }

    #[test]
    fn an_application_has_its_own_name_in_help_and_examples() {
        let mut command = command_of("courier");
        let help = command.render_help().to_string();
        assert!(help.contains("courier dev") && !help.contains("windlass dev"), "{help}");
        let worker = command.find_subcommand_mut("worker").expect("there is a worker");
        assert!(worker.render_help().to_string().contains("  courier worker"));
    }
}
