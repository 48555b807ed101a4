//! Settle: what became of a claim, with what follows from it, in one step.
//!
//! 1. is the receipt the newest?   2. did somebody cancel the task meanwhile?   3. change the row   4. apply what follows

use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use windlass_core::backend::{Receipt, Settled, Settlement};
use windlass_core::flow::{self, Follow};
use windlass_core::state::{Spent, rank};
use windlass_core::view::{AttemptRecord, remember_attempt};
use windlass_core::{DeadReason, Failure, NodeId, SignalName, State, TaskId, Timestamp, Verdict};

use crate::errors::Fault;
use crate::flow::{PreparedFollow, apply};
use crate::push;
use crate::receipt::{place_of, plain_queue_of};
use crate::rows::{
    self, Id, RUNNING, id_of, is_id, optional_text, parse, priority_of, reason_code, state_code, to_json,
};
use crate::tx::Tx;

/// A settle as it is stored.
#[derive(Debug)]
pub(crate) struct PreparedSettle {
    receipt: Receipt,
    verdict: Verdict,
    follow: PreparedFollow,
}

impl PreparedSettle {
    pub(crate) fn of(settled: &Settled) -> Self {
        Self {
            receipt: settled.receipt.clone(),
            verdict: settled.verdict.clone(),
            follow: PreparedFollow::of(&settled.follow),
        }
    }

    /// About how many rows it changes.
    pub(crate) fn rows(&self) -> usize {
        1 + self.follow.rows()
    }
}

/// What must be known of a task to end it or to send it back.
pub(crate) struct Held {
    pub(crate) seq: i64,
    pub(crate) id: TaskId,
    pub(crate) queue: i64,
    pub(crate) state: State,
    pub(crate) cancel: bool,
    pub(crate) has_flow: bool,
    /// Workers that were lost with it, in a row; what is written when it ends.
    pub(crate) crashes: u32,
    /// How long its result is kept, in microseconds, when the task says so.
    keep: Option<i64>,
    pub(crate) guard: Option<String>,
}

impl Held {
    /// Whether the task, ended so, is kept for a time of its own instead of the store's.
    fn is_kept_apart(&self, state: State) -> bool {
        state == State::Succeeded && self.keep.is_some_and(|keep| keep > 0)
    }

    /// Counts that it leaves its state.
    pub(crate) fn count_change(&self, tx: &mut Tx<'_>, to: impl Into<Option<State>>) -> Result<(), Fault> {
        let to = to.into();
        tx.count(self.queue, Some(self.state), to);
        let counts = |state: State| i64::from(state.is_final() && state != State::Dead && !self.is_kept_apart(state));
        let change = to.map_or(0, counts) - counts(self.state);
        if change == 0 { Ok(()) } else { tx.keep(change) }
    }
}

/// Records one verdict, unless its receipt is not the newest.
pub(crate) fn settle(tx: &mut Tx<'_>, settled: &PreparedSettle) -> Result<Settlement, Fault> {
    let receipt = &settled.receipt;
    if settle_plainly(tx, settled)? {
        return Ok(Settlement::Applied);
    }
    let Some(mut held) = held_by(tx, receipt)? else { return Ok(Settlement::Stale) };
    // A holder that speaks is not lost.
    held.crashes = 0;
    if held.cancel && !settled.verdict.state().is_final() {
        // It would run again, and somebody asked that it does not.
        note_attempt(tx, &held, &settled.verdict)?;
        end_by_store(tx, &held, &Verdict::Cancelled)?;
        return Ok(Settlement::Applied);
    }
    match &settled.verdict {
        Verdict::Again { after, .. } => {
            note_attempt(tx, &held, &settled.verdict)?;
            again_at(tx, &held, settled.verdict.state(), tx.now + *after)?;
        }
        Verdict::Awaits { signal, seen, at_most } => wait_for(tx, &held, &settled.verdict, signal, *seen, *at_most)?,
        Verdict::Released | Verdict::Parked => {
            // Back to its old place; the attempt was none.
            let state = settled.verdict.state();
            note_attempt(tx, &held, &settled.verdict)?;
            tx.execute(
                "UPDATE windlass_task SET state = ?2, at = ?3, crashes = 0 WHERE seq = ?1",
                params![held.seq, state_code(state), tx.now_micros()],
            )?;
            move_to(tx, &held, state)?;
        }
        Verdict::Succeeded { .. } | Verdict::Dead { .. } | Verdict::Cancelled | Verdict::Expired => {
            end(tx, &held, &settled.verdict)?;
            apply(tx, &settled.follow)?;
        }
    }
    Ok(Settlement::Applied)
}

/// Leaves a task to a later time.
fn again_at(tx: &mut Tx<'_>, held: &Held, state: State, at: Timestamp) -> Result<(), Fault> {
    let mut select = tx.prepare("SELECT priority FROM windlass_task WHERE seq = ?1")?;
    let priority = priority_of(select.query_row([held.seq], |row| row.get(0))?)?;
    tx.execute(
        "UPDATE windlass_task SET state = ?2, at = ?3, rank = ?4, crashes = 0 WHERE seq = ?1",
        params![held.seq, state_code(state), at.as_micros(), rank(priority, at)],
    )?;
    move_to(tx, held, state)
}

/// Leaves a task to a signal, unless one has come that its holder has not seen.
fn wait_for(
    tx: &mut Tx<'_>,
    held: &Held,
    verdict: &Verdict,
    signal: &SignalName,
    seen: usize,
    at_most: Duration,
) -> Result<(), Fault> {
    note_attempt(tx, held, verdict)?;
    if at_most.is_zero() || memo_bytes(tx, held.seq)? > seen {
        return again_at(tx, held, State::Ready, tx.now);
    }
    tx.execute("UPDATE windlass_task SET waits_for = ?2 WHERE seq = ?1", params![held.seq, signal.as_str()])?;
    again_at(tx, held, State::Scheduled, tx.now + at_most)
}

/// How long the memo of a task is.
pub(crate) fn memo_bytes(tx: &Tx<'_>, seq: i64) -> Result<usize, Fault> {
    let mut select = tx.prepare("SELECT coalesce(length(CAST(memo AS BLOB)), 0) FROM windlass_task WHERE seq = ?1")?;
    let bytes: i64 = select.query_row([seq], |row| row.get(0))?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Ends a plain task that succeeded with one statement. Answers whether it was that.
fn settle_plainly(tx: &mut Tx<'_>, settled: &PreparedSettle) -> Result<bool, Fault> {
    let receipt = &settled.receipt;
    let (Some(queue), Verdict::Succeeded { result, skipped: None }) = (plain_queue_of(receipt.row), &settled.verdict)
    else {
        return Ok(false);
    };
    let ended = tx.execute(
        "UPDATE windlass_task SET state = 4, at = ?4, crashes = 0, result = ?5 \
         WHERE seq = ?1 AND id = ?2 AND fence = ?3 AND state = 2 AND cancel = 0",
        params![place_of(receipt.row), Id(&receipt.id), receipt.fence, tx.now_micros(), result.as_str()],
    )?;
    if ended == 0 {
        return Ok(false);
    }
    tx.count(queue, Some(State::Running), Some(State::Succeeded));
    tx.keep(1)?;
    tx.ended(&receipt.id);
    apply(tx, &settled.follow)?;
    Ok(true)
}

/// Writes down what went wrong in an attempt that does not end the task, and gives the attempt back when it was none.
fn note_attempt(tx: &Tx<'_>, held: &Held, verdict: &Verdict) -> Result<(), Fault> {
    let failure = match verdict {
        Verdict::Again { failure, .. } => failure.as_ref(),
        Verdict::Awaits { .. } | Verdict::Released | Verdict::Parked => None,
        Verdict::Succeeded { .. } | Verdict::Dead { .. } | Verdict::Cancelled | Verdict::Expired => {
            unreachable!("such a verdict ends the task")
        }
    };
    if let Some(failure) = failure {
        let history = with_attempt(tx, held.seq, failure)?;
        tx.execute(
            "UPDATE windlass_task SET failure = ?2, history = ?3 WHERE seq = ?1",
            params![held.seq, to_json(failure), history],
        )?;
    }
    if verdict.spent() == Spent::No {
        tx.execute("UPDATE windlass_task SET attempt = attempt - 1 WHERE seq = ?1", [held.seq])?;
    }
    Ok(())
}

/// The task of a receipt, when it is the newest.
fn held_by(tx: &Tx<'_>, receipt: &Receipt) -> Result<Option<Held>, Fault> {
    let mut select = tx.prepare(HELD)?;
    let place = place_of(receipt.row);
    let mut rows = select.query([place])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let newest = row.get::<_, i64>(2)? == RUNNING
        && row.get::<_, i64>(7)? == receipt.fence
        && is_id(row.get_ref(0)?, &receipt.id);
    if !newest {
        return Ok(None);
    }
    held(row, place, receipt.id.clone()).map(Some)
}

/// The task at a place, whatever its state.
pub(crate) fn held_at(tx: &Tx<'_>, seq: i64) -> Result<Held, Fault> {
    let mut select = tx.prepare(HELD)?;
    let mut rows = select.query([seq])?;
    let row = rows.next()?.ok_or_else(|| Fault::damaged("index of tasks", format_args!("no task {seq}")))?;
    held(row, seq, id_of(row.get_ref(0)?)?)
}

/// The task with this id, when it is known.
pub(crate) fn held_under(tx: &Tx<'_>, id: &TaskId) -> Result<Option<Held>, Fault> {
    let mut select = tx.prepare("SELECT seq FROM windlass_task WHERE id = ?1")?;
    let seq = select.query_row([Id(id)], |row| row.get(0)).optional()?;
    seq.map(|seq| held_at(tx, seq)).transpose()
}

const HELD: &str =
    "SELECT id, queue, state, cancel, has_flow, keep, guard, fence, crashes FROM windlass_task WHERE seq = ?1";

fn held(row: &rusqlite::Row<'_>, seq: i64, id: TaskId) -> Result<Held, Fault> {
    Ok(Held {
        seq,
        id,
        queue: row.get(1)?,
        state: rows::state_of(row.get(2)?)?,
        cancel: row.get::<_, i64>(3)? != 0,
        has_flow: row.get::<_, i64>(4)? != 0,
        keep: row.get(5)?,
        guard: row.get(6)?,
        crashes: row.get(8)?,
    })
}

/// Ends a task. What follows is the caller's.
pub(crate) fn end(tx: &mut Tx<'_>, held: &Held, verdict: &Verdict) -> Result<(), Fault> {
    let state = verdict.state();
    assert!(state.is_final(), "only a final verdict ends a task");
    let (mut result, mut skip, mut why, mut last, mut history) = (None, None, None, None, None);
    match verdict {
        Verdict::Succeeded { result: value, skipped } => {
            result = Some(value.as_str()).filter(|_| held.keep != Some(0));
            skip = skipped.as_deref();
        }
        Verdict::Dead { reason, failure } => {
            why = Some(reason_code(*reason));
            last = Some(to_json(failure));
            // Only what ran is an attempt.
            if held.state == State::Running {
                history = Some(with_attempt(tx, held.seq, failure)?);
            }
        }
        Verdict::Cancelled
        | Verdict::Expired
        | Verdict::Again { .. }
        | Verdict::Awaits { .. }
        | Verdict::Released
        | Verdict::Parked => {}
    }
    let forget_at = held.keep.filter(|_| held.is_kept_apart(state)).map(|keep| tx.now_micros().saturating_add(keep));
    if why.is_none() && forget_at.is_none() && skip.is_none() && !held.cancel {
        // What nearly every task needs; fewer columns, and no index but one is looked at.
        tx.execute(
            "UPDATE windlass_task SET state = ?2, at = ?3, crashes = ?4, result = ?5 WHERE seq = ?1",
            params![held.seq, state_code(state), tx.now_micros(), held.crashes, result],
        )?;
    } else {
        tx.execute(
            "UPDATE windlass_task SET state = ?2, at = ?3, crashes = ?4, cancel = 0, result = ?5, skipped = ?6, reason = ?7, \
             failure = coalesce(?8, failure), history = coalesce(?9, history), forget_at = ?10 WHERE seq = ?1",
            params![
                held.seq,
                state_code(state),
                tx.now_micros(),
                held.crashes,
                result,
                skip,
                why,
                last,
                history,
                forget_at
            ],
        )?;
    }
    if let Some(guard) = &held.guard {
        push::give_back(tx, guard, &held.id)?;
    }
    move_to(tx, held, state)
}

/// Ends a task that nobody settles: what follows is computed here.
pub(crate) fn end_by_store(tx: &mut Tx<'_>, held: &Held, verdict: &Verdict) -> Result<(), Fault> {
    let follow = if held.has_flow {
        let record = rows::record_at(tx.db, held.seq)?;
        record.map_or_else(Follow::default, |record| flow::follow(&record.envelope, verdict))
    } else {
        Follow::default()
    };
    end(tx, held, verdict)?;
    apply(tx, &PreparedFollow::of(&follow))
}

/// Counts the change and wakes whom it concerns.
pub(crate) fn move_to(tx: &mut Tx<'_>, held: &Held, state: State) -> Result<(), Fault> {
    held.count_change(tx, state)?;
    if state.is_final() {
        tx.ended(&held.id);
    }
    if state == State::Ready {
        tx.wake(held.queue);
    }
    Ok(())
}

/// The history of a running task with its present attempt, as text.
pub(crate) fn with_attempt(tx: &Tx<'_>, seq: i64, failure: &Failure) -> Result<String, Fault> {
    let mut select = tx.prepare(
        "SELECT attempt, (SELECT id FROM windlass_node WHERE number = node), started_at, history \
         FROM windlass_task WHERE seq = ?1",
    )?;
    let mut rows = select.query([seq])?;
    let row = rows.next()?.ok_or_else(|| Fault::damaged("index of tasks", format_args!("no task {seq}")))?;
    let mut history: Vec<AttemptRecord> =
        optional_text(row, 3)?.map(|text| rows::from_json("history", text)).transpose()?.unwrap_or_default();
    let attempt = AttemptRecord {
        number: row.get(0)?,
        node: optional_text(row, 1)?.map(|node| parse::<NodeId>("node name", node)).transpose()?,
        started_at: row.get::<_, Option<i64>>(2)?.map(Timestamp::from_micros),
        ended_at: tx.now,
        failure: failure.clone(),
    };
    remember_attempt(&mut history, attempt);
    Ok(to_json(&history))
}

/// Makes a task that was claimed but cannot be read a dead letter: it would be claimed again and again.
pub(crate) fn bury(tx: &mut Tx<'_>, receipt: &Receipt, detail: &str) -> Result<(), Fault> {
    if let Some(held) = held_by(tx, receipt)? {
        let failure = Failure::new(rows::DAMAGED, detail);
        end(tx, &held, &Verdict::Dead { reason: DeadReason::Malformed, failure })?;
    }
    Ok(())
}
