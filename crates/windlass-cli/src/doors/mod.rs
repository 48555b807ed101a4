//! Command lines of other programs: `windlass celery …` and `windlass taskiq …` take what their users type.
//!
//! 1. [`knock`] finds out which door a command line is for, also by the name that the program was started under
//! 2. the door reads it with a grammar of its own: its flags are not ours, and some of them are spelt as ours
//! 3. what starts a node becomes our own `worker` or `scheduler`; everything else is an [`Ask`] and answered by the door
//!
//! A door never starts Python: the tasks are those of this program. What has no meaning here is said once, on standard error.

mod broker;
pub(crate) mod celery;
pub(crate) mod taskiq;
mod words;

use std::ffi::OsString;
use std::path::Path;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, Command, Global, command_of};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::program::{self, Program};

/// A command line of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Celery,
    TaskIq,
}

impl Door {
    const ALL: [Self; 2] = [Self::Celery, Self::TaskIq];

    fn name(self) -> &'static str {
        match self {
            Self::Celery => "celery",
            Self::TaskIq => "taskiq",
        }
    }

    fn of(name: &std::ffi::OsStr) -> Option<Self> {
        Self::ALL.into_iter().find(|door| name == door.name())
    }
}

/// A command line that is for a door.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Knock {
    door: Door,
    /// Flags of ours in front of the door's name.
    ours: Vec<OsString>,
    /// What the other program would have been given.
    theirs: Vec<OsString>,
}

/// Use Celery's command line
///
/// Takes what `celery` takes: worker, beat, inspect, control, status, call, result, purge, report, list. The tasks are those
/// of this program. Also when the program is started under the name `celery`, as by a symbolic link.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
#[command(after_help = "\
EXAMPLES
  windlass celery -A shop worker -Q mail,celery -c 8 -n w1@%h
  windlass celery -b redis://127.0.0.1:6379/0 inspect active
  windlass celery call shop.tasks.add -a '[2, 3]'
  windlass celery --help")]
pub(crate) struct CeleryArgs {
    /// What celery is given
    #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    theirs: Vec<OsString>,
    #[arg(skip)]
    ask: Option<celery::Ask>,
}

/// Use TaskIQ's command line
///
/// Takes what `taskiq` takes, worker and scheduler, and sends a task by its name. The tasks are those of this program. Also
/// when the program is started under the name `taskiq`, as by a symbolic link.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
#[command(after_help = "\
EXAMPLES
  windlass taskiq worker shop.broker:broker --fs-discover --max-async-tasks 50
  windlass taskiq scheduler shop.scheduler:scheduler
  windlass taskiq task shop.tasks:add --args '[2, 3]'
  windlass taskiq --help")]
pub(crate) struct TaskIqArgs {
    /// What taskiq is given
    #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
    theirs: Vec<OsString>,
    #[arg(skip)]
    ask: Option<taskiq::Ask>,
}

/// What a door makes of its command line.
pub(crate) enum Way {
    /// A command of ours.
    Command(Box<Command>),
    /// Something that was answered already.
    Done(Exit),
}

/// Whether a command line is for a door.
pub(crate) fn knock(args: &[OsString]) -> Option<Knock> {
    let (own, rest) = args.split_first()?;
    if let Some(door) = Path::new(own).file_stem().and_then(Door::of) {
        return Some(Knock { door, ours: Vec::new(), theirs: rest.to_vec() });
    }
    let at = command_at(rest)?;
    let door = Door::of(&rest[at])?;
    Some(Knock { door, ours: rest[..at].to_vec(), theirs: rest[at + 1..].to_vec() })
}

/// Where the name of the command is, behind flags that may have values.
fn command_at(args: &[OsString]) -> Option<usize> {
    let cli = Cli::command();
    let takes_value = |flag: &str| {
        cli.get_arguments().any(|known| {
            let is_it = known.get_long().is_some_and(|long| flag == format!("--{long}"))
                || known.get_short().is_some_and(|short| flag == format!("-{short}"));
            is_it && known.get_action().takes_values()
        })
    };
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        match arg.to_str() {
            Some(flag) if flag.starts_with('-') => at += if takes_value(flag) { 2 } else { 1 },
            Some(_) | None => return Some(at),
        }
    }
    None
}

impl Knock {
    /// The command line without the trick of a symbolic link: what a process of this program is to be given to do the same.
    pub(crate) fn typed(&self) -> Vec<OsString> {
        [self.ours.clone(), vec![self.door.name().into()], self.theirs.clone()].concat()
    }

    /// Our own command line that does what was asked for.
    ///
    /// # Errors
    /// What cannot be read, or help that was asked for.
    pub(crate) fn read(self, program: &Program) -> Result<Result<Cli, Exit>, Refused> {
        let mut global = self.global(program.name())?;
        let way = match self.door {
            Door::Celery => celery::read(&self.theirs, &mut global, program)?,
            Door::TaskIq => taskiq::read(&self.theirs, &mut global, program)?,
        };
        Ok(match way {
            Way::Command(command) => Ok(Cli { global, command: *command }),
            Way::Done(exit) => Err(exit),
        })
    }

    fn global(&self, program: &str) -> Result<Global, clap::Error> {
        let own: OsString = program.into();
        let line = std::iter::once(own).chain(self.ours.clone()).chain([self.door.name().into()]);
        let matches = command_of(program).try_get_matches_from(line)?;
        Cli::from_arg_matches(&matches).map(|cli| cli.global)
    }
}

/// A command line that is not done.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It cannot be read, or asks for help.
    Grammar(clap::Error),
    /// It can be read and not be done.
    Problem(Problem),
}

impl From<clap::Error> for Refused {
    fn from(error: clap::Error) -> Self {
        Self::Grammar(error)
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Answers what Celery's users ask.
pub(crate) async fn celery(context: &Context, args: CeleryArgs) -> Outcome {
    match args.ask {
        Some(ask) => celery::answer(context, ask).await,
        None => Err(unread("celery", &args.theirs)),
    }
}

/// Answers what TaskIQ's users ask.
pub(crate) async fn taskiq(context: &Context, args: TaskIqArgs) -> Outcome {
    match args.ask {
        Some(ask) => taskiq::answer(context, ask).await,
        None => Err(unread("taskiq", &args.theirs)),
    }
}

/// The door is looked for before the command line is read, so this needs a flag that hides its name.
fn unread(door: &str, theirs: &[OsString]) -> Problem {
    let shown: Vec<_> = theirs.iter().map(|arg| arg.to_string_lossy()).collect();
    let program = program::as_typed("`windlass ").into_owned();
    Problem::usage(
        format_args!("`{door}` could not be told from the flags in front of it"),
        format_args!("write {program}{door} {}`", shown.join(" ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_door_is_found_behind_our_flags_and_by_the_name_of_the_program() {
        for (typed, door, ours, theirs) in [
            ("windlass celery -A shop worker", Door::Celery, "", "-A shop worker"),
            ("/opt/bin/celery -A shop worker --config x", Door::Celery, "", "-A shop worker --config x"),
            ("windlass --store redis://h -v taskiq worker a:b", Door::TaskIq, "--store redis://h -v", "worker a:b"),
            ("./taskiq.exe worker a:b", Door::TaskIq, "", "worker a:b"),
            ("shop -o json --store=x celery status", Door::Celery, "-o json --store=x", "status"),
        ] {
            let knock = knock(&line(typed)).unwrap_or_else(|| panic!("{typed}"));
            let split = |text: &str| if text.is_empty() { Vec::new() } else { line(text) };
            assert_eq!(knock, Knock { door, ours: split(ours), theirs: split(theirs) }, "{typed}");
        }
        for other in ["windlass worker celery", "windlass --store celery", "windlass", "windlass enqueue taskiq"] {
            assert_eq!(knock(&line(other)), None, "{other}");
        }
    }

    #[test]
    fn what_children_are_started_with_names_the_door() {
        let knock = knock(&line("/opt/bin/celery worker -c 2")).expect("a door");
        assert_eq!(knock.typed(), line("celery worker -c 2"));
    }
}
