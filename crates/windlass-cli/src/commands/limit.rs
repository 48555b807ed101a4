//! `windlass limit`: how often and how many at once; who has set it, and what is counted now.

use std::time::Duration;

use serde_json::{Value, json};
use windlass::limit::{GateView, HOLD_MAX, LimitChange, LimitsView, SetBy};
use windlass::{Backend, Gate, Limit, Rate, Rule, Subject, format_duration};

use super::task::read_duration;
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::json;
use crate::output::{Cell, Column, Listing, Row, Tone};

/// Look at limits, set them, and hold what they are about
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass limit ls
  windlass limit set queue:mail --rate '100/m burst 10' --concurrency 4
  windlass limit set keys-of-queue:reports --concurrency 2
  windlass limit hold key:acme 30s")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List limits and who set them, and what runs, waits and is held because of them
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  windlass limit ls
  windlass limit ls --json"
    )]
    Ls,
    /// Set a limit; what is not named stays as it is, `none` takes a part away
    #[command(after_help = "\
EXAMPLES
  windlass limit set queue:mail --rate 100/m --concurrency 4
  windlass limit set queue:mail --length 10000
  windlass limit set task:render --concurrency 2 --rate none
  windlass limit set keys-of-task:render --rate '10/s burst 20'
  windlass limit set key:acme --weight 3")]
    Set {
        /// queue:NAME, task:NAME, key:KEY, keys-of-queue:NAME or keys-of-task:NAME (each key by itself)
        #[arg(value_name = "SUBJECT")]
        subject: Subject,
        #[command(flatten)]
        parts: Parts,
    },
    /// Forget limits; what an application declares comes back when one of its nodes starts
    #[command(
        visible_alias = "remove",
        after_help = "\
EXAMPLES
  windlass limit rm queue:mail"
    )]
    Rm {
        /// What they are about, as in queue:mail
        #[arg(value_name = "SUBJECT", required = true)]
        subjects: Vec<Subject>,
    },
    /// Start nothing of a queue, task or key for a time
    #[command(after_help = "\
EXAMPLES
  windlass limit hold key:acme 30s
  windlass limit hold queue:mail 10m
  windlass limit hold 'key-of-queue:mail acme' 1h")]
    Hold {
        /// queue:NAME, task:NAME, key:KEY, 'key-of-queue:NAME KEY' or 'key-of-task:NAME KEY'
        #[arg(value_name = "GATE")]
        gate: Gate,
        /// How long from now on; a hold that ends later stays
        #[arg(value_name = "DURATION", value_parser = read_hold)]
        time: Duration,
    },
    /// End holds, and forget what a rate has counted
    #[command(after_help = "\
EXAMPLES
  windlass limit reset queue:mail
  windlass limit reset 'key-of-queue:mail acme'")]
    Reset {
        /// As `limit ls` writes them
        #[arg(value_name = "GATE", required = true)]
        gates: Vec<Gate>,
    },
}

/// The parts of a rule.
#[derive(Debug, Clone, clap::Args)]
struct Parts {
    /// How often tasks start: 100/m, '10/s burst 20', 1/90s
    #[arg(long, value_name = "RATE", value_parser = read_part::<Rate>)]
    rate: Option<Part<Rate>>,
    /// How many run at once; 0 starts nothing
    #[arg(long, value_name = "COUNT", value_parser = read_part::<u32>)]
    concurrency: Option<Part<u32>>,
    /// How many may wait, of a queue; a push beyond it is refused
    #[arg(long, value_name = "COUNT", value_parser = read_part::<u64>)]
    length: Option<Part<u64>>,
    /// How many turns it gets where others have one, of a key
    #[arg(long, value_name = "TURNS", value_parser = read_part::<u32>)]
    weight: Option<Part<u32>>,
}

/// A part of a rule that is set or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<T> {
    Is(T),
    None,
}

fn read_part<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Part<T>, String> {
    if text == "none" {
        return Ok(Part::None);
    }
    text.parse().map(Part::Is).map_err(|error: T::Err| error.to_string())
}

fn read_hold(text: &str) -> Result<Duration, String> {
    let time = read_duration(text)?;
    if time > HOLD_MAX {
        return Err(format!("a gate is held for at most {}", format_duration(HOLD_MAX)));
    }
    Ok(time)
}

impl Parts {
    /// The rule with these parts changed; it is the operator's now.
    fn applied_to(&self, rule: Rule) -> Rule {
        fn part<T: Copy>(named: Option<Part<T>>, before: Option<T>) -> Option<T> {
            match named {
                Some(Part::Is(value)) => Some(value),
                Some(Part::None) => None,
                None => before,
            }
        }
        Rule {
            rate: part(self.rate, rule.rate),
            concurrency: part(self.concurrency, rule.concurrency),
            length: part(self.length, rule.length),
            weight: part(self.weight, rule.weight),
            set_by: SetBy::Operator,
        }
    }
}

const COLUMNS: &[Column] = &[
    Column::new("ABOUT").stretch(),
    Column::new("RATE"),
    Column::new("CONCURRENCY"),
    Column::new("LENGTH"),
    Column::new("WEIGHT"),
    Column::new("SET BY"),
    Column::new("RUNNING"),
    Column::new("NEXT START"),
    Column::new("HELD UNTIL"),
];

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Ls => list(context).await,
        Command::Set { subject, parts } => set(context, subject, &parts).await,
        Command::Rm { subjects } => remove(context, &subjects).await,
        Command::Hold { gate, time } => hold(context, gate, time).await,
        Command::Reset { gates } => reset(context, &gates).await,
    }
}

async fn list(context: &Context) -> Outcome {
    let LimitsView { limits, gates } = context.store().await?.limits().await?;
    let about = |limit: &Limit| gates.iter().find(|view| view.gate.to_string() == limit.subject.to_string());
    let mut rows: Vec<Row> = limits.iter().map(|limit| row(context, Some(limit), about(limit))).collect();
    if !context.out.is_json() {
        // A key of many, or a hold without a limit: below, as rows of their own.
        let has_row = |view: &&GateView| limits.iter().any(|limit| limit.subject.to_string() == view.gate.to_string());
        rows.extend(gates.iter().filter(|view| !has_row(view)).map(|view| row(context, None, Some(view))));
    }
    let empty = "there are no limits: set one with `windlass limit set`, or declare it in code";
    let mut listing = Listing::whole("limits", COLUMNS, empty, rows);
    listing.extra.insert("gates".to_owned(), gates.iter().map(json::gate).collect::<Vec<Value>>().into());
    context.out.listing(&listing)
}

fn row(context: &Context, limit: Option<&Limit>, gate: Option<&GateView>) -> Row {
    let optional = |text: Option<String>| text.map_or_else(|| Cell::toned("-", Tone::Dim), Cell::from);
    let rule = limit.map(|limit| &limit.rule);
    let about = limit.map(|limit| limit.subject.to_string()).or(gate.map(|view| view.gate.to_string()));
    let about = about.unwrap_or_default();
    let time = |at: Option<windlass::Timestamp>| at.map(|at| context.out.when(at));
    let held = time(gate.and_then(|view| view.held_until));
    Row {
        cells: vec![
            if limit.is_some() { Cell::toned(&about, Tone::Strong) } else { about.as_str().into() },
            optional(rule.and_then(|rule| rule.rate).map(|rate| rate.to_string())),
            optional(rule.and_then(|rule| rule.concurrency).map(|count| count.to_string())),
            optional(rule.and_then(|rule| rule.length).map(|count| count.to_string())),
            optional(rule.and_then(|rule| rule.weight).map(|count| count.to_string())),
            optional(rule.map(|rule| set_by(rule).to_owned())),
            optional(gate.and_then(|view| view.running).map(|count| count.to_string())),
            optional(time(gate.and_then(|view| view.next))),
            held.map_or_else(|| Cell::toned("-", Tone::Dim), |held| Cell::toned(held, Tone::Warn)),
        ],
        json: limit.map(json::limit).or(gate.map(json::gate)).unwrap_or_default(),
        id: about,
    }
}

fn set_by(rule: &Rule) -> &'static str {
    match rule.set_by {
        SetBy::Operator => "operator",
        SetBy::Application => "application",
    }
}

async fn set(context: &Context, subject: Subject, parts: &Parts) -> Outcome {
    let backend = context.store_or_new().await?;
    let before = backend.limits().await?.limits.into_iter().find(|limit| limit.subject == subject);
    let declared = before.as_ref().is_some_and(|limit| limit.rule.set_by == SetBy::Application);
    let rule = parts.applied_to(before.map(|limit| limit.rule).unwrap_or_default());
    let limit = Limit { subject, rule };
    limit.check().map_err(|error| {
        let next = format!("name a part, as in `--rate 100/m`, or `windlass limit rm {}`", limit.subject);
        Problem::usage(error, next)
    })?;
    let changed = backend.limit(&LimitChange::Set(limit.clone())).await?;
    if declared && changed {
        context.out.say(format_args!(
            "an application declares this limit: yours holds until `windlass limit rm {}`, then its own from the next start \
             of a node on",
            limit.subject
        ));
    }
    context.out.object(&limit.subject.to_string(), json::limit(&limit), || {
        if changed { "set\n".to_owned() } else { "it was so already\n".to_owned() }
    })
}

async fn remove(context: &Context, subjects: &[Subject]) -> Outcome {
    let backend = context.store().await?;
    let known = backend.limits().await?.limits;
    let find = |subject: &Subject| known.iter().find(|limit| limit.subject == *subject);
    if let Some(unknown) = subjects.iter().find(|subject| find(subject).is_none()) {
        let texts: Vec<String> = known.iter().map(|limit| limit.subject.to_string()).collect();
        let next = match crate::task_args::nearest(&unknown.to_string(), texts.iter().map(String::as_str)) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "`windlass limit ls` lists all limits".to_owned(),
        };
        return Err(Problem::new(Exit::NotFound, format_args!("there is no limit for `{unknown}`"), next));
    }
    let changes = subjects.iter().map(|subject| LimitChange::Remove(subject.clone()));
    let changed = apply(&*backend, changes).await?;
    for limit in subjects.iter().filter_map(find).filter(|limit| limit.rule.set_by == SetBy::Application) {
        context.out.warn(format_args!(
            "`{}` is declared by an application: the next node of it that starts declares it again",
            limit.subject
        ));
    }
    report(context, changed, subjects.len(), "removed")
}

async fn hold(context: &Context, gate: Gate, time: Duration) -> Outcome {
    let backend = context.store_or_new().await?;
    let changed = backend.limit(&LimitChange::Hold { gate: gate.clone(), time }).await?;
    let held = backend.limits().await?.gates.into_iter().find(|view| view.gate == gate);
    let until = held.and_then(|view| view.held_until);
    let json = json!({"gate": gate.to_string(), "held_until": until, "changed": changed});
    context.out.object(&gate.to_string(), json, || {
        let until = context.out.when_any(until);
        if changed {
            format!("held until {until}\n")
        } else {
            format!("it is held for longer already: until {until}\n")
        }
    })
}

async fn reset(context: &Context, gates: &[Gate]) -> Outcome {
    let backend = context.store().await?;
    let changed = apply(&*backend, gates.iter().map(|gate| LimitChange::Reset(gate.clone()))).await?;
    report(context, changed, gates.len(), "reset")
}

async fn apply(backend: &dyn Backend, changes: impl Iterator<Item = LimitChange>) -> Result<usize, Problem> {
    let mut changed = 0;
    for change in changes {
        changed += usize::from(backend.limit(&change).await?);
    }
    Ok(changed)
}

fn report(context: &Context, changed: usize, asked: usize, done: &str) -> Outcome {
    let unchanged = asked - changed;
    context.out.object(&changed.to_string(), json!({"changed": changed, "unchanged": unchanged}), || {
        if unchanged == 0 {
            format!("{done}\n")
        } else {
            format!("{done}; at {unchanged} of {asked} there was nothing\n")
        }
    })
}
