//! `schedule add` and `schedule edit`.

use std::time::Duration;

use clap::ValueEnum;
use serde_json::json;
use windlass::backend::{ScheduleChange, ScheduleChanged};
use windlass::schedule::{
    Dialect, InvalidSchedule, Jitter, Missed, MissedPolicy, Origin, Overlap, Schedule, Spec, SpecError,
};
use windlass::{Clock, Key, Priority, QueueName, ScheduleId, SystemClock, TaskId, TaskName, Timestamp, parse_duration};

use super::{find, warn_of_code};
use crate::commands::enqueue::{TaskOptions, envelope, find as find_task};
use crate::commands::task::{read_duration, read_priority};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::output::ago;
use crate::task_args::ArgsFlags;

/// When it fires.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "When")]
pub(super) struct WhenFlags {
    /// At the times of a cron line: '0 3 * * *'
    #[arg(long, value_name = "LINE", conflicts_with_all = ["every", "at"])]
    cron: Option<String>,
    /// Again and again: 30s, 5m; from 1s on
    #[arg(long, value_name = "DURATION", conflicts_with = "at")]
    every: Option<String>,
    /// Once, as in 2027-01-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// The time zone of the cron line: any IANA name [default: UTC]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// The dialect of the cron line
    #[arg(long, value_name = "DIALECT", value_parser = ["standard", "celery", "taskiq"])]
    dialect: Option<String>,
}

/// What it does about slots.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Policies")]
struct PolicyFlags {
    /// What becomes of slots that passed while no scheduler ran [default: once]
    #[arg(long, value_name = "POLICY")]
    missed: Option<MissedFlag>,
    /// Slots older than this never fire late
    #[arg(long, value_name = "DURATION", value_parser = read_duration)]
    max_lateness: Option<Duration>,
    /// What happens when the task of the slot before has not ended [default: allow]
    #[arg(long, value_name = "POLICY")]
    overlap: Option<OverlapFlag>,
    /// Spread the pushes of schedules that share a slot over this long
    #[arg(long, value_name = "DURATION", value_parser = read_duration)]
    jitter: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MissedFlag {
    Skip,
    Once,
    All,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OverlapFlag {
    Allow,
    Skip,
    CancelPrevious,
}

/// What it pushes.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Task")]
struct PushFlags {
    /// 0 (last) to 9 (first)
    #[arg(long, value_name = "LEVEL", value_parser = read_priority)]
    priority: Option<Priority>,
    /// Another queue than the task's own
    #[arg(long, value_name = "QUEUE")]
    queue: Option<QueueName>,
    /// What its tasks belong to
    #[arg(long, value_name = "KEY")]
    key: Option<Key>,
    /// Its tasks are not started any more this long after their slot
    #[arg(long, value_name = "DURATION", value_parser = read_duration)]
    expires: Option<Duration>,
    /// Another number of retries than the task's own
    #[arg(long, value_name = "COUNT")]
    retries: Option<u32>,
    /// Schedule a task that this program does not know
    #[arg(long)]
    unregistered: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct AddArgs {
    /// The id of the schedule
    #[arg(value_name = "ID")]
    id: ScheduleId,
    /// The name of the task
    #[arg(value_name = "TASK")]
    task: TaskName,
    #[command(flatten)]
    when: WhenFlags,
    #[command(flatten)]
    args: ArgsFlags,
    #[command(flatten)]
    policies: PolicyFlags,
    #[command(flatten)]
    push: PushFlags,
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct EditArgs {
    /// The schedule
    #[arg(value_name = "ID")]
    id: ScheduleId,
    #[command(flatten)]
    when: WhenFlags,
    #[command(flatten)]
    args: ArgsFlags,
    #[command(flatten)]
    policies: PolicyFlags,
    #[command(flatten)]
    push: PushFlags,
}

impl WhenFlags {
    /// What the flags say; `before` fills in what an edit leaves out. `None` when they say nothing.
    pub(super) fn spec(&self, before: Option<&Spec>) -> Result<Option<Spec>, Problem> {
        if let Some(at) = self.at {
            return Ok(Some(Spec::once(at)));
        }
        if let Some(every) = &self.every {
            let period =
                parse_duration(every).map_err(|error| Problem::usage(format_args!("--every: {error}"), WRITE_EVERY))?;
            // Slots are whole periods since 1970, so that every node agrees.
            return Spec::every(period, Timestamp::MIN).map(Some).map_err(|error| wrong_spec(&error));
        }
        let stored = match before {
            Some(Spec::Cron { cron, zone }) => Some((cron.as_str(), cron.dialect(), zone.name())),
            Some(Spec::Every { .. } | Spec::Once { .. }) | None => None,
        };
        let line = match (&self.cron, stored) {
            (Some(line), _) => line.as_str(),
            (None, Some((line, ..))) if self.zone.is_some() || self.dialect.is_some() => line,
            (None, _) if self.zone.is_some() || self.dialect.is_some() => {
                return Err(Problem::usage("a zone and a dialect belong to a cron line", "add `--cron '0 3 * * *'`"));
            }
            (None, _) => return Ok(None),
        };
        let dialect = match self.dialect.as_deref() {
            Some(word) => word.parse().map_err(|error| Problem::usage(error, "leave `--dialect` out"))?,
            None => stored.map_or(Dialect::Standard, |(_, dialect, _)| dialect),
        };
        let zone = self.zone.as_deref().or(stored.map(|(.., zone)| zone)).unwrap_or("UTC");
        Spec::cron_of(dialect, line, zone).map(Some).map_err(|error| wrong_spec(&error))
    }
}

const WRITE_EVERY: &str = "write it as 30s, 5m or 1h30m";

fn wrong_spec(error: &SpecError) -> Problem {
    Problem::usage(
        error,
        "see when it would fire with `windlass schedule next --cron '0 3 * * *' --zone Europe/Berlin`",
    )
}

impl PolicyFlags {
    fn apply(&self, schedule: &mut Schedule) -> Result<(), Problem> {
        let what = self.missed.map(|missed| match missed {
            MissedFlag::Skip => Missed::Skip,
            MissedFlag::Once => Missed::Once,
            MissedFlag::All => Missed::All,
        });
        schedule.missed = MissedPolicy {
            what: what.unwrap_or(schedule.missed.what),
            max_lateness: self.max_lateness.or(schedule.missed.max_lateness),
        };
        if let Some(overlap) = self.overlap {
            schedule.overlap = match overlap {
                OverlapFlag::Allow => Overlap::Allow,
                OverlapFlag::Skip => Overlap::Skip,
                OverlapFlag::CancelPrevious => Overlap::CancelPrevious,
            };
        }
        if let Some(jitter) = self.jitter {
            schedule.jitter =
                Jitter::up_to(jitter).map_err(|error| Problem::usage(error, "choose a shorter `--jitter`"))?;
        }
        Ok(())
    }
}

impl PushFlags {
    fn apply(&self, schedule: &mut Schedule) -> Result<(), Problem> {
        let options = TaskOptions {
            priority: self.priority,
            queue: self.queue.clone(),
            key: self.key.clone(),
            retries: self.retries,
            ..TaskOptions::default()
        };
        options.apply(&mut schedule.task, Timestamp::MIN)?;
        schedule.expires_after = self.expires.or(schedule.expires_after);
        Ok(())
    }
}

pub(super) async fn add(context: &Context, args: AddArgs) -> Outcome {
    let known = find_task(&context.program, &args.task, args.push.unregistered)?;
    let task_args = args.args.read(known)?;
    let spec = args.when.spec(None)?.ok_or_else(|| {
        Problem::usage("it is not said when it fires", "add `--cron '0 3 * * *'`, `--every 5m` or `--at TIME`")
    })?;
    let mut task = envelope(&args.task, known, task_args, Timestamp::MIN);
    // Equal schedules are equal data, and the task of a slot gets an id of its own.
    task.id = TaskId::new(&args.id).map_err(|error| Problem::usage(error, "choose a shorter id"))?;
    let expires_after = task.expires.take().map(|expires| expires.since(Timestamp::MIN));
    let mut schedule = Schedule {
        id: args.id,
        spec,
        task,
        expires_after,
        missed: MissedPolicy::default(),
        overlap: Overlap::default(),
        jitter: Jitter::NONE,
        origin: Origin::Operator,
    };
    args.policies.apply(&mut schedule)?;
    args.push.apply(&mut schedule)?;
    let backend = context.store_or_new().await?;
    if backend.schedules().await?.iter().any(|record| record.schedule.id == schedule.id) {
        return Err(Problem::new(
            Exit::Conflict,
            format_args!("there is a schedule `{}` already", schedule.id),
            format_args!("change it with `windlass schedule edit {}`, or choose another id", schedule.id),
        ));
    }
    put(context, backend.as_ref(), schedule, "made").await
}

pub(super) async fn edit(context: &Context, args: EditArgs) -> Outcome {
    let backend = context.store().await?;
    let record = find(backend.as_ref(), &args.id).await?;
    let mut schedule = record.schedule.clone();
    if let Some(spec) = args.when.spec(Some(&schedule.spec))? {
        schedule.spec = spec;
    }
    if args.args.is_given() {
        // What runs may be of another program: then its arguments are not checked here.
        schedule.task.args = args.args.read(context.program.task(&schedule.task.name))?;
    }
    args.policies.apply(&mut schedule)?;
    args.push.apply(&mut schedule)?;
    if schedule == record.schedule {
        return Err(Problem::usage("nothing would change", "see what can with `windlass schedule edit --help`"));
    }
    warn_of_code(context, &record);
    put(context, backend.as_ref(), schedule, "changed").await
}

async fn put(context: &Context, backend: &dyn windlass::Backend, schedule: Schedule, done: &str) -> Outcome {
    let now = SystemClock.now();
    schedule.check(Timestamp::MIN).map_err(|error| match error {
        InvalidSchedule::Task(error) => Problem::from(error),
        error => Problem::usage(error, "see `windlass schedule add --help`"),
    })?;
    let next = schedule.spec.next(now);
    if next.is_none() {
        return Err(Problem::usage("its only time has passed", "choose a time that is to come"));
    }
    let (id, words) = (schedule.id.clone(), schedule.spec.words());
    let changed = backend.schedule(&ScheduleChange::Put { schedule, next }).await?;
    let json = json!({"id": id, "changed": changed == ScheduleChanged::Done, "words": words, "next": next});
    context.out.object(id.as_str(), json, || {
        let next = next.map(|next| format!(", next {} ({})", context.out.exactly(next), ago(next, now)));
        format!("{id} {done}: {words}{}\n", next.unwrap_or_default())
    })
}
