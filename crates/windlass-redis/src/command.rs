//! Commands: what operators change, only on tasks that nobody holds; a held one is marked.

use std::sync::Arc;

use redis::Value;
use windlass_core::backend::{COMMAND_MAX, Command, Commanded, Order, Target, TaskAction, check_batch};
use windlass_core::memo::Line;
use windlass_core::view::{Cursor, Filter};
use windlass_core::{State, StoreError, TaskId, Verdict};

use crate::Shared;
use crate::errors::damaged;
use crate::listing::{self, Scanned};
use crate::record::{bytes, integer, list, optional_text, row_number, row_text};
use crate::scripts::Script;
use crate::settle::end_by_store;

/// The most tasks that one script changes: the server does nothing else meanwhile.
const CHUNK: usize = 200;
/// How often a task is looked at again that somebody changes while it is cancelled.
const TRIES: usize = 5;

/// Obeys a command.
pub(crate) async fn command(shared: &Arc<Shared>, command: &Command) -> Result<Commanded, StoreError> {
    let [what, first, second] = match command {
        Command::Tasks { target: Target::Ids(ids), action } => return of_ids(shared, ids, action).await,
        Command::Tasks { target: Target::Matching { filter, after }, action } => {
            return matching(shared, filter, after.as_ref(), action).await;
        }
        Command::PauseQueue(queue) => ["pause", "q", queue.as_str()].map(str::to_owned),
        Command::ResumeQueue(queue) => ["resume", "q", queue.as_str()].map(str::to_owned),
        Command::PauseTask(name) => ["pause", "n", name.as_str()].map(str::to_owned),
        Command::ResumeTask(name) => ["resume", "n", name.as_str()].map(str::to_owned),
        Command::Order { node, order } => ["order".to_owned(), node.to_string(), order_text(*order)],
    };
    let answer = shared
        .run(Script::Command, |cmd| {
            cmd.arg(&what).arg(&first).arg(&second);
        })
        .await?;
    let changed = u64::try_from(integer(&answer)?).unwrap_or(0);
    Ok(Commanded { changed, ..Commanded::default() })
}

fn order_text(order: Order) -> String {
    match order {
        Order::Quiet => "quiet".to_owned(),
        Order::Resume => "resume".to_owned(),
        Order::Stop => "stop".to_owned(),
        Order::Resize(slots) => format!("resize {slots}"),
    }
}

/// The opposite of [`order_text`].
pub(crate) fn order_of(text: &str) -> Result<Order, StoreError> {
    match text {
        "quiet" => Ok(Order::Quiet),
        "resume" => Ok(Order::Resume),
        "stop" => Ok(Order::Stop),
        _ => text
            .strip_prefix("resize ")
            .and_then(|slots| slots.parse().ok())
            .map(Order::Resize)
            .ok_or_else(|| damaged("order", format_args!("`{text}`"))),
    }
}

async fn of_ids(shared: &Arc<Shared>, ids: &[TaskId], action: &TaskAction) -> Result<Commanded, StoreError> {
    check_batch("ids", ids.len(), COMMAND_MAX)?;
    let mut commanded = Commanded::default();
    for chunk in ids.chunks(CHUNK) {
        let names: Vec<String> = chunk.iter().map(ToString::to_string).collect();
        for (id, acted) in chunk.iter().zip(act(shared, action, "id", &names).await?) {
            match acted {
                Acted::Changed => commanded.changed += 1,
                Acted::Unchanged(state) => commanded.unchanged.push((id.clone(), Some(state))),
                Acted::Unknown => commanded.unchanged.push((id.clone(), None)),
            }
        }
    }
    Ok(commanded)
}

async fn matching(
    shared: &Arc<Shared>,
    filter: &Filter,
    after: Option<&Cursor>,
    action: &TaskAction,
) -> Result<Commanded, StoreError> {
    let after = listing::row_of(after)?;
    let mut applicable = filter.clone();
    applicable.states = State::ALL
        .into_iter()
        .filter(|state| action.applies_to(*state) && (filter.states.is_empty() || filter.states.contains(state)))
        .collect();
    if applicable.states.is_empty() {
        return Ok(Commanded::default());
    }
    let Scanned { rows, next } = listing::scan(shared, &applicable, after, COMMAND_MAX).await?;
    let mut changed = 0;
    for chunk in rows.chunks(CHUNK) {
        let names: Vec<String> = chunk.iter().map(|row| row_text(*row)).collect();
        let acted = act(shared, action, "row", &names).await?;
        changed += acted.iter().filter(|acted| matches!(acted, Acted::Changed)).count() as u64;
    }
    Ok(Commanded { changed, unchanged: Vec::new(), next: next.map(listing::cursor) })
}

/// What an action did to one task.
enum Acted {
    Changed,
    /// It has no meaning for the task in this state.
    Unchanged(State),
    Unknown,
}

async fn act(
    shared: &Arc<Shared>,
    action: &TaskAction,
    kind: &str,
    names: &[String],
) -> Result<Vec<Acted>, StoreError> {
    let mut acted: Vec<Option<Acted>> = names.iter().map(|_| None).collect();
    let mut open: Vec<usize> = (0..names.len()).collect();
    for _ in 0..TRIES {
        let wanted: Vec<&String> = open.iter().map(|place| &names[*place]).collect();
        let answers = ask(shared, action, kind, &wanted).await?;
        let places = std::mem::take(&mut open);
        for (place, answer) in places.into_iter().zip(answers) {
            match answer {
                Value::Array(parts) => {
                    if end(shared, parts).await? {
                        acted[place] = Some(Acted::Changed);
                    } else {
                        open.push(place);
                    }
                }
                number => acted[place] = Some(acted_of(integer(&number)?)?),
            }
        }
        if open.is_empty() {
            break;
        }
    }
    acted
        .into_iter()
        .map(|acted| {
            acted.ok_or_else(|| StoreError::Busy("a task changes all the time; repeat the command".to_owned()))
        })
        .collect()
}

async fn ask(shared: &Shared, action: &TaskAction, kind: &str, names: &[&String]) -> Result<Vec<Value>, StoreError> {
    let (word, value) = match action {
        TaskAction::Cancel => ("cancel", String::new()),
        TaskAction::Retry => ("retry", String::new()),
        TaskAction::Discard => ("discard", String::new()),
        TaskAction::Move(queue) => ("move", queue.to_string()),
        TaskAction::Reprioritise(priority) => ("reprioritise", priority.level().to_string()),
        TaskAction::RunNow => ("run_now", String::new()),
        TaskAction::Signal { name, value } => {
            let line = Line::Signal { signal: name.clone(), value: value.clone() };
            // Names have no line breaks.
            ("signal", format!("{name}\n{}", line.to_text()))
        }
    };
    let answer = shared
        .run(Script::Command, |cmd| {
            cmd.arg(word).arg(&value).arg(kind);
            for name in names {
                cmd.arg(*name);
            }
        })
        .await?;
    list(answer)
}

/// Cancels a task that something follows. Answers whether nobody has changed it meanwhile.
async fn end(shared: &Arc<Shared>, parts: Vec<Value>) -> Result<bool, StoreError> {
    let mut parts = parts.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    let (row, packed, body) = (row_number(&next())?, bytes(next())?, optional_text(next())?.unwrap_or_default());
    end_by_store(shared, row, &packed, &body, &Verdict::Cancelled).await
}

fn acted_of(code: i64) -> Result<Acted, StoreError> {
    match code {
        -1 => Ok(Acted::Changed),
        -2 => Ok(Acted::Unknown),
        code => usize::try_from(code)
            .ok()
            .and_then(|code| State::ALL.get(code).copied())
            .map(Acted::Unchanged)
            .ok_or_else(|| damaged("answer", format_args!("state {code}"))),
    }
}
