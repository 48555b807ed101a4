//! The counters of the queues.

use std::collections::BTreeMap;

use redis::Value;
use windlass_core::state::AGING;
use windlass_core::view::{Counts, QueueCounts};
use windlass_core::{QueueName, State, StoreError, Timestamp};

use crate::Shared;
use crate::errors::damaged;
use crate::record::{integer, list, parse, text, texts};
use crate::scripts::Script;

/// The counters of every queue, and what is paused.
pub(crate) async fn counts(shared: &Shared) -> Result<Counts, StoreError> {
    let answer = shared.run(Script::Counts, |_| {}).await?;
    let mut parts = list(answer)?.into_iter();
    let mut next = || list(parts.next().unwrap_or(Value::Nil));
    let mut queues: BTreeMap<QueueName, QueueCounts> = BTreeMap::new();
    let mut counters = next()?.into_iter();
    while let (Some(field), Some(value)) = (counters.next(), counters.next()) {
        let field = text(field)?;
        let (queue, state) = field.rsplit_once(' ').ok_or_else(|| damaged("counter", format_args!("`{field}`")))?;
        let state: usize = parse("counter", state)?;
        let state = *State::ALL.get(state).ok_or_else(|| damaged("counter", format_args!("`{field}`")))?;
        *queues.entry(parse("queue name", queue)?).or_default().of_mut(state) =
            u64::try_from(integer(&value)?).unwrap_or(0);
    }
    let (mut paused_tasks, mut closed) = (Vec::new(), false);
    for paused in next()? {
        let paused = text(paused)?;
        match paused.split_once(' ') {
            Some(("q", queue)) => queues.entry(parse("queue name", queue)?).or_default().paused = true,
            Some(("n", name)) => paused_tasks.push(parse("task name", name)?),
            None if paused == "closed" => closed = true,
            _ => return Err(damaged("pause", "it is of neither a queue nor a name")),
        }
    }
    paused_tasks.sort();
    let mut heads = next()?.into_iter();
    while let (Some(queue), Some(rank), Some(priority)) = (heads.next(), heads.next(), heads.next()) {
        let since = integer(&rank)? + integer(&priority)? * AGING.as_micros() as i64;
        let counts = queues.entry(parse("queue name", &text(queue)?)?).or_default();
        counts.oldest_ready_at = Some(Timestamp::from_micros(since));
    }
    for queue in texts(Value::Array(next()?))? {
        queues.entry(parse("queue name", &queue)?).or_default();
    }
    Ok(Counts { queues, paused_tasks, closed })
}
