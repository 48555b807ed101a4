//! `windlass workflow`: tasks that belong together, seen and changed as a whole.

mod change;
mod draw;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use windlass::view::{Filter, PAGE_MAX, Page, Record};
use windlass::workflow::view::{Progress, Standing, WorkflowView};
use windlass::{Backend, Json, SignalName, State, TaskId, TaskName, Timestamp};

use super::task::{read_json, state};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::output::{Cell, Column, Listing, Row, Tone, ago};

/// So many tasks of one workflow are looked at.
const TASKS_MAX: usize = 20_000;
/// So many of the newest tasks are looked at for the workflows that they belong to.
const SCAN_MAX: usize = 20_000;
/// Failed tasks that are listed one by one for people.
const FAILED_SHOWN_MAX: usize = 20;

/// Look at workflows, cancel and retry them as a whole
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass workflow ls
  windlass workflow show 01927c1e-0000-7000-8000-000000000000
  windlass workflow graph 01927c1e-0000-7000-8000-000000000000 --dot | dot -Tsvg > workflow.svg
  windlass workflow retry 01927c1e-0000-7000-8000-000000000000 --yes")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List the workflows of the newest tasks, newest first
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  windlass workflow ls
  windlass workflow ls --limit 200 --json"
    )]
    Ls {
        /// At most this many
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Show how far a workflow is, and what has failed
    #[command(after_help = "\
EXAMPLES
  windlass workflow show order-1017")]
    Show {
        /// The workflow: the id of its first task or group, as `workflow ls` lists it
        #[arg(value_name = "ID")]
        id: TaskId,
    },
    /// Show the graph of a workflow: what follows what, and how it stands
    #[command(after_help = "\
EXAMPLES
  windlass workflow graph order-1017
  windlass workflow graph order-1017 --json
  windlass workflow graph order-1017 --dot | dot -Tsvg > workflow.svg")]
    Graph {
        /// The workflow
        #[arg(value_name = "ID")]
        id: TaskId,
        /// Print it for Graphviz
        #[arg(long, conflicts_with_all = ["json", "output"])]
        dot: bool,
    },
    /// Cancel every task of a workflow that has not ended; what follows them does not start
    #[command(after_help = "\
EXAMPLES
  windlass workflow cancel order-1017 --dry-run
  windlass workflow cancel order-1017 --yes")]
    Cancel(change::Whole),
    /// Retry what has failed: tasks that gave up, expired or were cancelled; what waits for them goes on when they succeed
    #[command(after_help = "\
EXAMPLES
  windlass workflow retry order-1017 --dry-run
  windlass workflow retry order-1017 --yes")]
    Retry(change::Whole),
    /// Forget every task of a workflow that has ended
    #[command(
        visible_alias = "rm",
        after_help = "\
EXAMPLES
  windlass workflow discard order-1017 --yes"
    )]
    Discard(change::Whole),
    /// Send a signal to every task of a workflow that has not ended
    #[command(after_help = "\
EXAMPLES
  windlass workflow signal order-1017 approved
  windlass workflow signal order-1017 approved '{\"by\": \"ada\"}'")]
    Signal {
        /// The workflow
        #[arg(value_name = "ID")]
        id: TaskId,
        /// The signal, as the tasks name it
        #[arg(value_name = "NAME")]
        name: SignalName,
        /// What is sent with it, as JSON
        #[arg(value_name = "JSON", default_value = "null", hide_default_value = true, value_parser = read_json)]
        value: Json,
    },
}

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Ls { limit } => list(context, limit).await,
        Command::Show { id } => show(context, &id).await,
        Command::Graph { id, dot } => graph(context, &id, dot).await,
        Command::Cancel(whole) => change::cancel(context, whole).await,
        Command::Retry(whole) => change::retry(context, whole).await,
        Command::Discard(whole) => change::discard(context, whole).await,
        Command::Signal { id, name, value } => change::signal(context, &id, name, value).await,
    }
}

const COLUMNS: &[Column] = &[
    Column::new("WORKFLOW"),
    Column::new("BEGINS WITH").stretch(),
    Column::new("STANDING"),
    Column::new("TASKS"),
    Column::new("ENDED"),
    Column::new("FAILED"),
    Column::new("STARTED"),
];

/// What a look at the newest tasks tells of a workflow.
struct Seen {
    id: TaskId,
    progress: Progress,
    first: TaskName,
    started_at: Timestamp,
}

async fn list(context: &Context, limit: usize) -> Outcome {
    let backend = context.store().await?;
    let (mut seen, mut places, mut looked_at, mut after) = (Vec::<Seen>::new(), BTreeMap::new(), 0, None);
    loop {
        let listing = backend.list(&Filter::all(), &Page { after, limit: PAGE_MAX }).await?;
        looked_at += listing.tasks.len();
        for record in &listing.tasks {
            let Some(id) = &record.envelope.workflow else { continue };
            let place = *places.entry(id.clone()).or_insert_with(|| {
                let (first, started_at) = (record.envelope.name.clone(), record.enqueued_at);
                seen.push(Seen { id: id.clone(), progress: Progress::default(), first, started_at });
                seen.len() - 1
            });
            let workflow = &mut seen[place];
            workflow.progress.add(record.state);
            // The newest come first: the last one that is seen began.
            (workflow.first, workflow.started_at) = (record.envelope.name.clone(), record.enqueued_at);
        }
        after = listing.next;
        if after.is_none() || looked_at >= SCAN_MAX {
            break;
        }
    }
    let found = seen.len();
    let rows = seen.iter().take(limit).map(|workflow| row(context, workflow)).collect();
    let mut listing = Listing::whole("workflows", COLUMNS, "no task that is kept belongs to a workflow", rows);
    listing.extra.insert("complete".to_owned(), Value::from(after.is_none() && found <= limit));
    context.out.listing(&listing)?;
    if found > limit {
        context.out.say(format_args!("{} more: raise --limit", found - limit));
    }
    if after.is_some() {
        context
            .out
            .say(format_args!("only the newest {looked_at} tasks were looked at: older workflows are missing or cut"));
    }
    Ok(Exit::Ok)
}

fn row(context: &Context, workflow: &Seen) -> Row {
    let Seen { id, progress, first, started_at } = workflow;
    Row {
        id: id.to_string(),
        cells: vec![
            id.to_string().into(),
            first.to_string().into(),
            Cell::toned(progress.standing().as_str(), tone_of(progress.standing())),
            progress.tasks.to_string().into(),
            progress.ended.to_string().into(),
            Cell::count(failed(progress) as u64, Tone::Bad),
            context.out.when(*started_at).into(),
        ],
        json: json!({
            "id": id,
            "begins_with": first,
            "standing": progress.standing(),
            "progress": progress,
            "started_at": started_at,
        }),
    }
}

fn failed(progress: &Progress) -> usize {
    progress.of(State::Dead) + progress.of(State::Expired)
}

fn tone_of(standing: Standing) -> Tone {
    match standing {
        Standing::Running => Tone::Active,
        Standing::Succeeded => Tone::Good,
        Standing::Failed => Tone::Bad,
        Standing::Cancelled => Tone::Dim,
    }
}

/// The tasks of a workflow, and whether these are all.
async fn tasks_of(backend: &Arc<dyn Backend>, id: &TaskId) -> Result<(Vec<Record>, bool), Problem> {
    let filter = Filter { workflow: Some(id.clone()), ..Filter::default() };
    let (mut records, mut after) = (Vec::new(), None);
    loop {
        let listing = backend.list(&filter, &Page { after, limit: PAGE_MAX }).await?;
        records.extend(listing.tasks);
        after = listing.next;
        if after.is_none() || records.len() >= TASKS_MAX {
            break;
        }
    }
    if records.is_empty() {
        return Err(unknown(id));
    }
    Ok((records, after.is_none()))
}

fn unknown(id: &TaskId) -> Problem {
    Problem::new(
        Exit::NotFound,
        format_args!("no task of a workflow `{id}` is known (any more)"),
        "`windlass workflow ls` lists the workflows that are",
    )
}

fn say_when_cut(context: &Context, complete: bool) {
    if !complete {
        context.out.say(format_args!("only its newest {TASKS_MAX} tasks were looked at"));
    }
}

const FAILED: &[Column] =
    &[Column::new("TASK"), Column::new("NAME"), Column::new("STATE"), Column::new("WHAT WENT WRONG").stretch()];

async fn show(context: &Context, id: &TaskId) -> Outcome {
    let (records, complete) = tasks_of(&context.store().await?, id).await?;
    let view = WorkflowView::of(&records);
    let progress = &view.progress;
    let started_at = records.iter().map(|record| record.enqueued_at).min();
    let all_ended = progress.standing() != Standing::Running;
    let ended_at = records.iter().filter_map(|record| record.finished_at).max().filter(|_| all_ended);
    let bad = |record: &&Record| matches!(record.state, State::Dead | State::Expired | State::Cancelled);
    let failed: Vec<&Record> = records.iter().filter(bad).collect();
    let json = json!({
        "id": id,
        "standing": progress.standing(),
        "progress": progress,
        "started_at": started_at,
        "ended_at": ended_at,
        "failed": failed.iter().map(|record| json!({
            "id": record.envelope.id,
            "name": record.envelope.name,
            "state": record.state,
            "reason": record.reason,
            "failure": record.failure,
        })).collect::<Vec<_>>(),
        "complete": complete,
    });
    context.out.object(&id.to_string(), json, || {
        let out = &context.out;
        let time = |at: Option<Timestamp>| {
            at.map(|at| format!("{} ({})", out.exactly(at), ago(at, out.now()))).unwrap_or_default()
        };
        let planned = if progress.planned > 0 { format!(", {} planned", progress.planned) } else { String::new() };
        let states: Vec<String> = progress.by_state.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let mut text = out.fields(&[
            ("workflow", out.tone(&id.to_string(), Tone::Strong)),
            ("standing", out.tone(progress.standing().as_str(), tone_of(progress.standing()))),
            ("progress", format!("{} of {} tasks ended", progress.ended, progress.tasks)),
            ("states", states.join(", ") + &planned),
            ("started", time(started_at)),
            ("ended", time(ended_at)),
        ]);
        if !failed.is_empty() {
            text.push('\n');
            text.push_str(&failures(context, &failed));
        }
        text
    })?;
    if failed.len() > FAILED_SHOWN_MAX {
        context.out.say(format_args!("and {} more: see them with --json", failed.len() - FAILED_SHOWN_MAX));
    }
    say_when_cut(context, complete);
    Ok(Exit::Ok)
}

fn failures(context: &Context, failed: &[&Record]) -> String {
    let rows = failed.iter().take(FAILED_SHOWN_MAX).map(|record| {
        let reason = record.reason.map(|reason| reason.to_string());
        let failure = record.failure.as_ref().map(|failure| format!("{}: {}", failure.class, failure.message));
        Row {
            id: String::new(),
            cells: vec![
                record.envelope.id.to_string().into(),
                record.envelope.name.to_string().into(),
                state(record.state),
                [reason, failure].into_iter().flatten().collect::<Vec<_>>().join("; ").into(),
            ],
            json: Value::Null,
        }
    });
    context.out.table(&Listing::whole("failed", FAILED, "", rows.collect()))
}

async fn graph(context: &Context, id: &TaskId, dot: bool) -> Outcome {
    let (records, complete) = tasks_of(&context.store().await?, id).await?;
    let view = WorkflowView::of(&records);
    if dot {
        context.out.line(draw::dot(&view).trim_end())?;
    } else {
        let json = json!({
            "id": id,
            "standing": view.progress.standing(),
            "nodes": view.nodes,
            "edges": view.edges,
            "progress": view.progress,
            "complete": complete,
        });
        context.out.object(&id.to_string(), json, || draw::tree(&view, &context.out))?;
    }
    say_when_cut(context, complete);
    Ok(Exit::Ok)
}
