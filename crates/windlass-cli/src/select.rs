//! Which tasks a bulk command changes: ids, a query or standard input; how many these are; and the change itself.

use std::io::BufRead;
use std::sync::Arc;

use serde_json::json;
use windlass::backend::{Command, Commanded, Target, TaskAction};
use windlass::view::{Filter, PAGE_MAX, Page};
use windlass::{Backend, State, TaskId};

use crate::context::{Agreed, Context, confirm};
use crate::exit::{Exit, Outcome, Problem};
use crate::output::plural;

/// Counting what matches stops here: the answer "so many or more" is enough to think twice.
const COUNT_MAX: u64 = 100_000;
/// Ids are changed in steps of this size, so that any number of them may come in.
const STEP: usize = 500;
/// Unchanged ids that are listed one by one for people.
const SHOWN_MAX: usize = 20;

/// Which tasks, as the command line says it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Selection {
    /// Ids of tasks.
    #[arg(value_name = "ID", help_heading = "Selection")]
    pub(crate) ids: Vec<TaskId>,

    /// Every task that matches, as in 'state:dead queue:mail name:send key:k reason:poison since:2026-01-31T00:00:00Z'.
    #[arg(short, long, value_name = "QUERY", conflicts_with_all = ["ids", "stdin"], help_heading = "Selection")]
    pub(crate) query: Option<Filter>,

    /// Read ids from standard input, one a line.
    #[arg(long, conflicts_with = "ids", help_heading = "Selection")]
    pub(crate) stdin: bool,

    /// Only say how many tasks would be changed.
    #[arg(long, help_heading = "Selection")]
    pub(crate) dry_run: bool,

    /// Do not ask before a query changes tasks.
    #[arg(short, long, help_heading = "Selection")]
    pub(crate) yes: bool,
}

/// What a bulk command does, in the words that people read.
#[derive(Debug, Clone)]
pub(crate) struct Verb {
    /// `cancel`.
    pub(crate) name: &'static str,
    /// `cancelled`.
    pub(crate) done: &'static str,
    /// The change.
    pub(crate) action: TaskAction,
}

/// Ids that were not changed, and their state.
type Unchanged = Vec<(TaskId, Option<State>)>;

/// Changes what is selected. `within` narrows a query: a dead-letter command never touches anything else.
pub(crate) async fn change(context: &Context, selection: Selection, verb: &Verb, within: &[State]) -> Outcome {
    if let Some(filter) = selection.query.clone() {
        return change_matching(context, filter, &selection, verb, within).await;
    }
    let ids = if selection.stdin { read_ids()? } else { selection.ids.clone() };
    if ids.is_empty() {
        return Err(Problem::usage(
            format_args!("nothing is selected to {}", verb.name),
            "name ids, or choose by query: `-q 'state:dead queue:mail'`",
        ));
    }
    let backend = context.store().await?;
    if selection.dry_run {
        return say_what_would_happen(context, &backend, &ids, verb, within).await;
    }
    let (mut changed, mut unchanged) = (0, Vec::new());
    for step in ids.chunks(STEP) {
        let mut step = step.to_vec();
        if !within.is_empty() {
            unchanged.extend(take_those_outside(&backend, &mut step, within).await?);
        }
        if step.is_empty() {
            continue;
        }
        let command = Command::Tasks { target: Target::Ids(step), action: verb.action.clone() };
        let done: Commanded = backend.command(&command).await?;
        changed += done.changed;
        unchanged.extend(done.unchanged);
    }
    report(context, verb, changed, &unchanged)
}

/// Removes the ids whose tasks are in other states, and answers them.
async fn take_those_outside(
    backend: &Arc<dyn Backend>,
    ids: &mut Vec<TaskId>,
    within: &[State],
) -> Result<Unchanged, Problem> {
    let states: Vec<Option<State>> =
        backend.find(ids).await?.into_iter().map(|record| record.map(|record| record.state)).collect();
    let mut outside = Vec::new();
    let mut at = 0;
    ids.retain(|id| {
        let state = states.get(at).copied().flatten();
        at += 1;
        let inside = state.is_some_and(|state| within.contains(&state));
        if !inside {
            outside.push((id.clone(), state));
        }
        inside
    });
    Ok(outside)
}

async fn say_what_would_happen(
    context: &Context,
    backend: &Arc<dyn Backend>,
    ids: &[TaskId],
    verb: &Verb,
    within: &[State],
) -> Outcome {
    let mut matched = 0;
    for step in ids.chunks(STEP) {
        let records = backend.find(step).await?;
        let applies = |state: State| verb.action.applies_to(state) && (within.is_empty() || within.contains(&state));
        matched += records.iter().flatten().filter(|record| applies(record.state)).count() as u64;
    }
    say_count(context, verb, matched, matched)
}

fn say_count(context: &Context, verb: &Verb, matched: u64, shown: u64) -> Outcome {
    let json = json!({"action": verb.name, "dry_run": true, "matched": matched, "changed": 0, "unchanged": []});
    context.out.object(&matched.to_string(), json, || {
        let more = if shown >= COUNT_MAX { " or more" } else { "" };
        format!("{}{more} would be {}\n", plural(shown, "task"), verb.done)
    })
}

async fn change_matching(
    context: &Context,
    filter: Filter,
    selection: &Selection,
    verb: &Verb,
    within: &[State],
) -> Outcome {
    let filter = narrowed(filter, verb, within)?;
    let backend = context.store().await?;
    let matched = count(&backend, &filter).await?;
    if selection.dry_run {
        return say_count(context, verb, matched, matched);
    }
    if matched > 0 {
        let more = if matched >= COUNT_MAX { " or more" } else { "" };
        let question = format!("{}{more} match and will be {}.", plural(matched, "task"), verb.done);
        confirm(&question, if selection.yes { Agreed::Already } else { Agreed::Ask })?;
    }
    let changed = context.client(&backend).command_all(&filter, verb.action.clone()).await?;
    report(context, verb, changed, &[])
}

/// The filter with the states in which the change has a meaning.
fn narrowed(mut filter: Filter, verb: &Verb, within: &[State]) -> Result<Filter, Problem> {
    let applies = |state: &State| verb.action.applies_to(*state) && (within.is_empty() || within.contains(state));
    if filter.states.is_empty() {
        filter.states = State::ALL.into_iter().filter(applies).collect();
        return Ok(filter);
    }
    let asked: Vec<String> = filter.states.iter().map(ToString::to_string).collect();
    filter.states.retain(applies);
    if filter.states.is_empty() {
        let can: Vec<&str> = State::ALL.iter().filter(|state| applies(state)).map(|state| state.as_str()).collect();
        return Err(Problem::usage(
            format_args!("tasks that are {} cannot be {}", asked.join(" or "), verb.done),
            format_args!("select tasks that are {}", can.join(", ")),
        ));
    }
    Ok(filter)
}

/// How many tasks match, up to [`COUNT_MAX`].
pub(crate) async fn count(backend: &Arc<dyn Backend>, filter: &Filter) -> Result<u64, Problem> {
    let (mut count, mut after) = (0, None);
    loop {
        let listing = backend.list(filter, &Page { after, limit: PAGE_MAX }).await?;
        count += listing.tasks.len() as u64;
        after = listing.next;
        if after.is_none() || count >= COUNT_MAX {
            return Ok(count);
        }
    }
}

/// Ids from standard input; empty lines do not count.
fn read_ids() -> Result<Vec<TaskId>, Problem> {
    let mut ids = Vec::new();
    for (at, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line.map_err(|error| {
            Problem::usage(format_args!("standard input, line {}: {error}", at + 1), "write one id a line, as UTF-8")
        })?;
        let text = line.trim();
        if !text.is_empty() {
            ids.push(text.parse().map_err(|error| {
                Problem::usage(format_args!("standard input, line {}: {error}", at + 1), "write one id a line")
            })?);
        }
    }
    Ok(ids)
}

/// Says what was changed; the exit code tells all, some and none apart.
fn report(context: &Context, verb: &Verb, changed: u64, unchanged: &[(TaskId, Option<State>)]) -> Outcome {
    let rows: Vec<_> = unchanged.iter().map(|(id, state)| json!({"id": id, "state": state})).collect();
    let json = json!({"action": verb.name, "dry_run": false, "changed": changed, "unchanged": rows});
    context.out.object(&changed.to_string(), json, || format!("{} {}\n", plural(changed, "task"), verb.done))?;
    for (id, state) in unchanged.iter().take(SHOWN_MAX) {
        match state {
            Some(state) => context.out.warn(format_args!("{id} is {state}: it cannot be {}", verb.done)),
            None => context.out.warn(format_args!("{id} is not known (any more)")),
        }
    }
    if unchanged.len() > SHOWN_MAX {
        context.out.warn(format_args!("and {} more: see them with --json", unchanged.len() - SHOWN_MAX));
    }
    Ok(match (changed, unchanged.is_empty()) {
        (_, true) => Exit::Ok,
        (0, false) if unchanged.iter().all(|(_, state)| state.is_none()) => Exit::NotFound,
        (0, false) => Exit::Conflict,
        (_, false) => Exit::Partial,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> Verb {
        Verb { name: "retry", done: "retried", action: TaskAction::Retry }
    }

    #[test]
    fn a_query_is_narrowed_to_the_states_in_which_the_change_has_a_meaning() {
        let narrow = |query: &str, within: &[State]| narrowed(query.parse().unwrap(), &retry(), within);
        assert_eq!(narrow("queue:mail", &[State::Dead]).unwrap().states, [State::Dead]);
        assert_eq!(narrow("state:dead,running", &[]).unwrap().states, [State::Dead]);
        let problem = narrow("state:running", &[]).unwrap_err();
        assert_eq!(problem.exit_code(), Exit::Usage);
        assert!(problem.text().contains("running cannot be retried"), "{problem}");
        assert!(problem.next_step().contains("succeeded, dead"), "{}", problem.next_step());
    }
}
