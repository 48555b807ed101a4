//! `windlass schedule`: look at schedules, make and change them.

mod change;
mod next;

use serde_json::json;
use windlass::backend::{ScheduleChange, ScheduleChanged};
use windlass::envelope::Source;
use windlass::schedule::Origin;
use windlass::view::ScheduleRecord;
use windlass::{Backend, Clock, ScheduleId, SystemClock};

use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::json::{self, Secrets};
use crate::output::{Cell, Column, Listing, Row, Tone, ago, plural};

/// Look at schedules, make and change them
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass schedule ls
  windlass schedule add ping http.request --every 5m --arg url=https://example.org
  windlass schedule next --cron '0 3 * * *' --zone Europe/Berlin
  windlass schedule pause ping")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List schedules with their next slot
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  windlass schedule ls
  windlass schedule ls -o wide
  windlass schedule ls --json"
    )]
    Ls,
    /// Show one schedule
    #[command(after_help = "\
EXAMPLES
  windlass schedule show nightly")]
    Show {
        /// The schedule
        #[arg(value_name = "ID")]
        id: ScheduleId,
    },
    /// Print the next slots of a schedule, or of a line that is not a schedule yet
    #[command(after_help = "\
EXAMPLES
  windlass schedule next nightly
  windlass schedule next --cron '0 9 L * *' --zone Asia/Kathmandu -n 12
  windlass schedule next --every 90s")]
    Next(next::Args),
    /// Make a schedule
    #[command(after_help = "\
EXAMPLES
  windlass schedule add nightly cleanup --cron '0 3 * * *' --zone Europe/Berlin
  windlass schedule add ping http.request --every 30s --arg url=https://example.org --overlap skip
  windlass schedule add launch noop --at 2027-01-01T00:00:00Z")]
    Add(change::AddArgs),
    /// Change a schedule; what is not named stays
    #[command(after_help = "\
EXAMPLES
  windlass schedule edit nightly --cron '30 3 * * *'
  windlass schedule edit ping --every 1m --jitter 10s
  windlass schedule edit ping --args '{\"url\": \"https://example.com\"}'")]
    Edit(change::EditArgs),
    /// Forget schedules; tasks that they have pushed go on
    #[command(
        visible_alias = "remove",
        after_help = "\
EXAMPLES
  windlass schedule rm ping"
    )]
    Rm(Ids),
    /// Stop firing until resumed
    #[command(after_help = "\
EXAMPLES
  windlass schedule pause nightly")]
    Pause(Ids),
    /// Fire again, from the next slot on
    #[command(after_help = "\
EXAMPLES
  windlass schedule resume nightly")]
    Resume(Ids),
    /// Push the task of a schedule once, now; its slots stay as they are
    #[command(after_help = "\
EXAMPLES
  windlass schedule run nightly")]
    Run {
        /// The schedule
        #[arg(value_name = "ID")]
        id: ScheduleId,
    },
}

/// Which schedules.
#[derive(Debug, Clone, clap::Args)]
struct Ids {
    /// Schedules
    #[arg(value_name = "ID", required = true)]
    ids: Vec<ScheduleId>,
}

const COLUMNS: &[Column] = &[
    Column::new("SCHEDULE"),
    Column::new("WHEN").stretch(),
    Column::new("TASK"),
    Column::new("QUEUE").wide(),
    Column::new("NEXT"),
    Column::new("LAST FIRED"),
    Column::new("FIRED"),
    Column::new("MISSED"),
    Column::new("OVERLAP").wide(),
    Column::new("FROM").wide(),
    Column::new("STATUS"),
];

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Ls => list(context).await,
        Command::Show { id } => show(context, &id).await,
        Command::Next(args) => next::run(context, args).await,
        Command::Add(args) => change::add(context, args).await,
        Command::Edit(args) => change::edit(context, args).await,
        Command::Rm(ids) => {
            each(context, ids, "removed", |record| ScheduleChange::Remove(record.schedule.id.clone())).await
        }
        Command::Pause(ids) => {
            each(context, ids, "paused", |record| ScheduleChange::Pause(record.schedule.id.clone())).await
        }
        Command::Resume(ids) => {
            let now = SystemClock.now();
            let resume = move |record: &ScheduleRecord| ScheduleChange::Resume {
                id: record.schedule.id.clone(),
                next: record.schedule.spec.next(now),
            };
            each(context, ids, "resumed", resume).await
        }
        Command::Run { id } => run_now(context, &id).await,
    }
}

async fn list(context: &Context) -> Outcome {
    let schedules = context.store().await?.schedules().await?;
    let rows = schedules.iter().map(|record| row(context, record)).collect();
    let empty = "there are no schedules: make one with `windlass schedule add`, or declare it in code";
    context.out.listing(&Listing::whole("schedules", COLUMNS, empty, rows))
}

fn row(context: &Context, record: &ScheduleRecord) -> Row {
    let schedule = &record.schedule;
    let (status, tone) = status(record);
    Row {
        id: schedule.id.to_string(),
        cells: vec![
            Cell::toned(&schedule.id, Tone::Strong),
            schedule.spec.words().into(),
            schedule.task.name.to_string().into(),
            schedule.task.queue.to_string().into(),
            context.out.when_any(record.next).into(),
            context.out.when_any(record.last_fired_at).into(),
            record.fired.to_string().into(),
            Cell::count(record.missed, Tone::Warn),
            word(&schedule.overlap).into(),
            word(&schedule.origin).into(),
            Cell::toned(status, tone),
        ],
        json: json::schedule(record, Secrets::Mask),
    }
}

fn status(record: &ScheduleRecord) -> (&'static str, Tone) {
    match (record.paused, record.next) {
        (true, _) => ("paused", Tone::Warn),
        (false, Some(_)) => ("active", Tone::Good),
        (false, None) => ("over", Tone::Dim),
    }
}

/// An enum as its JSON writes it.
fn word(value: &impl serde::Serialize) -> String {
    json!(value).as_str().unwrap_or_default().to_owned()
}

async fn show(context: &Context, id: &ScheduleId) -> Outcome {
    let backend = context.store().await?;
    let record = find(backend.as_ref(), id).await?;
    let (out, schedule) = (&context.out, &record.schedule);
    out.object(id.as_str(), json::schedule(&record, Secrets::Mask), || {
        let time = |at: Option<windlass::Timestamp>| {
            at.map(|at| format!("{} ({})", out.exactly(at), ago(at, out.now()))).unwrap_or_default()
        };
        let (status, tone) = status(&record);
        let args = schedule.task.args.keyword().or(schedule.task.args.positional());
        let args = args.map(|json| json::value_of(json, Secrets::Mask).to_string()).unwrap_or_default();
        out.fields(&[
            ("schedule", out.tone(id.as_str(), Tone::Strong)),
            ("status", out.tone(status, tone)),
            ("when", schedule.spec.words()),
            ("written", json!(schedule.spec).to_string()),
            ("task", schedule.task.name.to_string()),
            ("queue", schedule.task.queue.to_string()),
            ("arguments", args),
            ("next", time(record.next)),
            ("last fired", time(record.last_fired_at)),
            ("last task", record.last_task.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("fired", record.fired.to_string()),
            ("missed", record.missed.to_string()),
            ("when missed", word(&schedule.missed.what)),
            ("max lateness", schedule.missed.max_lateness.map(windlass::format_duration).unwrap_or_default()),
            ("overlap", word(&schedule.overlap)),
            ("jitter", word(&schedule.jitter)),
            ("declared by", word(&schedule.origin)),
        ])
    })
}

/// The schedule of this id.
async fn find(backend: &dyn Backend, id: &ScheduleId) -> Result<ScheduleRecord, Problem> {
    let schedules = backend.schedules().await?;
    let names: Vec<String> = schedules.iter().map(|record| record.schedule.id.to_string()).collect();
    schedules.into_iter().find(|record| record.schedule.id == *id).ok_or_else(|| {
        let next = match crate::task_args::nearest(id.as_str(), names.iter().map(String::as_str)) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "`windlass schedule ls` lists all schedules".to_owned(),
        };
        Problem::new(Exit::NotFound, format_args!("there is no schedule `{id}`"), next)
    })
}

/// Changes schedules one after the other; nothing happens when one of them is not known.
async fn each(context: &Context, ids: Ids, done: &str, change: impl Fn(&ScheduleRecord) -> ScheduleChange) -> Outcome {
    let backend = context.store().await?;
    let mut records = Vec::with_capacity(ids.ids.len());
    for id in &ids.ids {
        records.push(find(backend.as_ref(), id).await?);
    }
    let mut changed = 0;
    for record in &records {
        if backend.schedule(&change(record)).await? == ScheduleChanged::Done {
            changed += 1;
        }
        warn_of_code(context, record);
    }
    let unchanged = records.len() as u64 - changed;
    context.out.object(&changed.to_string(), json!({"changed": changed, "unchanged": unchanged}), || {
        let already = if unchanged > 0 { format!("; {unchanged} had been already") } else { String::new() };
        format!("{} {done}{already}\n", plural(changed, "schedule"))
    })
}

/// What code declares comes back with the code.
fn warn_of_code(context: &Context, record: &ScheduleRecord) {
    if record.schedule.origin == Origin::Code {
        context.out.warn(format_args!(
            "`{}` is declared in code: the next node that starts with schedules declares it again",
            record.schedule.id
        ));
    }
}

async fn run_now(context: &Context, id: &ScheduleId) -> Outcome {
    let backend = context.store().await?;
    let record = find(backend.as_ref(), id).await?;
    let now = SystemClock.now();
    // As a slot of its own: listings then show where it comes from, and two at once are two runs.
    let mut task = record.schedule.instance(now, now);
    task.due = windlass::envelope::Due::Now;
    task.source = Source::Schedule { id: id.clone(), slot: now };
    let pushed = context.client(&backend).push(vec![task]).await?;
    let Some((task, _)) = pushed.into_iter().next() else {
        return Err(Problem::new(Exit::Failed, "the store answered nothing", "run `windlass doctor`"));
    };
    context.out.object(&task.to_string(), json!({"id": task, "schedule": id}), || format!("{task}\n"))
}
