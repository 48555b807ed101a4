//! Changes of a whole workflow: in bounded steps, by a query for its tasks.

use serde_json::json;
use windlass::backend::TaskAction;
use windlass::view::Filter;
use windlass::{DeadReason, Json, SignalName, State, TaskId};

use super::unknown;
use crate::context::{Agreed, Context, confirm};
use crate::exit::{Exit, Outcome, Problem};
use crate::output::plural;
use crate::select::{Selection, Verb, change, count};

/// A workflow that is changed.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Whole {
    /// The workflow
    #[arg(value_name = "ID")]
    id: TaskId,
    /// Only say how many tasks would be changed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Whole {
    fn selection(self) -> Selection {
        let query = Filter { workflow: Some(self.id), ..Filter::default() };
        Selection { ids: Vec::new(), query: Some(query), stdin: false, dry_run: self.dry_run, yes: self.yes }
    }
}

pub(super) async fn cancel(context: &Context, whole: Whole) -> Outcome {
    must_be_known(context, &whole.id).await?;
    let verb = Verb { name: "cancel", done: "cancelled", action: TaskAction::Cancel };
    change(context, whole.selection(), &verb, &[]).await
}

pub(super) async fn discard(context: &Context, whole: Whole) -> Outcome {
    let backend = context.store().await?;
    let live = State::ALL.into_iter().filter(|state| !state.is_final());
    let running = Filter { workflow: Some(whole.id.clone()), ..Filter::in_states(live) };
    let running = count(&backend, &running).await?;
    if running > 0 {
        return Err(Problem::new(
            Exit::Conflict,
            format_args!(
                "{} of this workflow {} not ended",
                plural(running, "task"),
                if running == 1 { "has" } else { "have" }
            ),
            format_args!("cancel it first, with `windlass workflow cancel {}`", whole.id),
        ));
    }
    must_be_known(context, &whole.id).await?;
    let verb = Verb { name: "discard", done: "discarded", action: TaskAction::Discard };
    change(context, whole.selection(), &verb, &[]).await
}

/// Retries what has failed by itself. Tasks that never ran because of others are left: they come back to life when those
/// succeed, with the results that they wait for.
pub(super) async fn retry(context: &Context, Whole { id, dry_run, yes }: Whole) -> Outcome {
    must_be_known(context, &id).await?;
    let backend = context.store().await?;
    let of = |filter: Filter| Filter { workflow: Some(id.clone()), ..filter };
    let by_itself = DeadReason::ALL.into_iter().filter(|reason| *reason != DeadReason::Upstream);
    let mut filters: Vec<Filter> =
        by_itself.map(|reason| of(Filter { reason: Some(reason), ..Filter::in_states([State::Dead]) })).collect();
    filters.push(of(Filter::in_states([State::Cancelled, State::Expired])));
    let mut matched = 0;
    for filter in &filters {
        matched += count(&backend, filter).await?;
    }
    let mut changed = 0;
    if !dry_run && matched > 0 {
        let question = format!("{} of this workflow will be retried.", plural(matched, "task"));
        confirm(&question, if yes { Agreed::Already } else { Agreed::Ask })?;
        let client = context.client(&backend);
        for filter in &filters {
            changed += client.command_all(filter, TaskAction::Retry).await?;
        }
    }
    let json = json!({"action": "retry", "dry_run": dry_run, "matched": matched, "changed": changed, "unchanged": []});
    context.out.object(&changed.to_string(), json, || {
        if dry_run {
            format!("{} would be retried\n", plural(matched, "task"))
        } else {
            format!("{} retried\n", plural(changed, "task"))
        }
    })
}

pub(super) async fn signal(context: &Context, id: &TaskId, name: SignalName, value: Json) -> Outcome {
    let backend = context.store().await?;
    let live = State::ALL.into_iter().filter(|state| !state.is_final());
    let filter = Filter { workflow: Some(id.clone()), ..Filter::in_states(live) };
    let action = TaskAction::Signal { name: name.clone(), value };
    let sent = context.client(&backend).command_all(&filter, action).await?;
    if sent == 0 {
        must_be_known(context, id).await?;
        return Err(Problem::new(
            Exit::Conflict,
            "every task of this workflow has ended: none takes a signal any more",
            "retry what has failed first, with `windlass workflow retry`",
        ));
    }
    context.out.object(&sent.to_string(), json!({"id": id, "signal": name, "sent": sent}), || {
        format!("sent to {}\n", plural(sent, "task"))
    })
}

async fn must_be_known(context: &Context, id: &TaskId) -> Result<(), Problem> {
    let backend = context.store().await?;
    let filter = Filter { workflow: Some(id.clone()), ..Filter::default() };
    let page = windlass::view::Page::first(1);
    if backend.list(&filter, &page).await?.tasks.is_empty() { Err(unknown(id)) } else { Ok(()) }
}
