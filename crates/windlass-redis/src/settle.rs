//! What became of tasks: by the word of their holders, or of the store itself when there is none.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use windlass_core::backend::{Receipt, Settled, Settlement};
use windlass_core::flow::{self, Follow};
use windlass_core::state::Spent;
use windlass_core::{DeadReason, Failure, StoreError, Verdict};

use crate::Shared;
use crate::encode::{self, micros};
use crate::errors::damaged;
use crate::record::{Packed, bytes, list, optional_text, row_text, to_json};
use crate::scripts::Script;

/// The most settles in one script, as many as a node has slots by default: the server does nothing else meanwhile.
const CHUNK: usize = 256;

/// The letter of a task that has succeeded.
const SUCCEEDED: &str = "S";

/// One task and what became of it, as `settle.lua` takes it.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    row: i64,
    check: Check,
    verdict: Word,
    follow: String,
}

/// What must be true for the settle to count.
#[derive(Debug, Clone)]
enum Check {
    /// The task is held by the claim with this fence.
    Fence { fence: i64, id: String },
    /// Nobody has changed the task; it gets this number of crashes.
    Same { packed: Vec<u8>, crashes: u32 },
}

/// A verdict in the words of the script.
#[derive(Debug, Clone)]
struct Word {
    letter: &'static str,
    text: String,
    note: String,
    amount: i64,
}

impl Word {
    fn of(verdict: &Verdict) -> Self {
        let word = |letter: &'static str| Self { letter, text: String::new(), note: String::new(), amount: 0 };
        match verdict {
            Verdict::Succeeded { result, skipped } => {
                Self { text: result.as_str().to_owned(), note: skipped.clone().unwrap_or_default(), ..word(SUCCEEDED) }
            }
            Verdict::Again { after, spent, failure } => Self {
                text: failure.as_ref().map(to_json).unwrap_or_default(),
                amount: micros((*after).min(windlass_core::envelope::DELAY_MAX)),
                ..word(if *spent == Spent::Yes { "A" } else { "a" })
            },
            Verdict::Awaits { signal, seen, at_most } => Self {
                text: signal.to_string(),
                note: seen.to_string(),
                amount: micros((*at_most).min(windlass_core::envelope::DELAY_MAX)),
                ..word("W")
            },
            Verdict::Dead { reason, failure } => Self {
                text: to_json(failure),
                amount: reason_code(*reason),
                ..word(if *reason == DeadReason::Poison { "P" } else { "D" })
            },
            Verdict::Cancelled => word("C"),
            Verdict::Expired => word("E"),
            Verdict::Released => word("R"),
            Verdict::Parked => word("K"),
        }
    }
}

pub(crate) fn reason_code(reason: DeadReason) -> i64 {
    DeadReason::ALL.iter().position(|known| *known == reason).map_or(0, |code| code as i64)
}

impl Item {
    /// What the holder says.
    pub(crate) fn held(receipt: &Receipt, verdict: &Verdict, follow: String) -> Self {
        Self {
            row: receipt.row,
            check: Check::Fence { fence: receipt.fence, id: receipt.id.to_string() },
            verdict: Word::of(verdict),
            follow,
        }
    }

    fn add_to(&self, cmd: &mut Cmd) {
        cmd.arg(row_text(self.row));
        let Word { letter, text, note, amount } = &self.verdict;
        match &self.check {
            // What nearly every task does.
            Check::Fence { fence, id } if *letter == SUCCEEDED && note.is_empty() && self.follow.is_empty() => {
                cmd.arg("s").arg(*fence).arg(id).arg(text);
                return;
            }
            Check::Fence { fence, id } => cmd.arg("f").arg(*fence).arg(id),
            Check::Same { packed, crashes } => cmd.arg("=").arg(*crashes).arg(packed),
        };
        cmd.arg(*letter).arg(text).arg(note).arg(*amount).arg(&self.follow);
    }
}

/// What became of an item.
pub(crate) enum Answer {
    Applied,
    Stale,
    /// It was to be cancelled: nothing was changed, and what follows that must be said.
    ToCancel {
        packed: Vec<u8>,
        body: String,
    },
}

/// Records what holders say.
pub(crate) async fn settle(shared: &Arc<Shared>, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
    let items: Vec<Item> = settled
        .iter()
        .map(|settled| {
            // What follows a verdict that ends nothing is nothing; the script asks when it needs to know.
            let follow =
                if settled.verdict.state().is_final() { encode::follow(&settled.follow) } else { String::new() };
            Item::held(&settled.receipt, &settled.verdict, follow)
        })
        .collect();
    let answers = run(shared, &items).await?;
    let mut settlements = Vec::with_capacity(answers.len());
    for (item, mut answer) in items.into_iter().zip(answers) {
        while let Answer::ToCancel { packed, body } = answer {
            let follow = follow_of(&packed, &body, &Verdict::Cancelled)?;
            // Nothing follows a task whose body cannot be read; something must be said all the same.
            let text = Some(encode::follow(&follow)).filter(|text| !text.is_empty()).unwrap_or_else(|| "{}".to_owned());
            let repeated = Item { follow: text, ..item.clone() };
            answer = run(shared, &[repeated]).await?.pop().unwrap_or(Answer::Stale);
        }
        settlements.push(match answer {
            Answer::Applied => Settlement::Applied,
            Answer::Stale | Answer::ToCancel { .. } => Settlement::Stale,
        });
    }
    Ok(settlements)
}

/// Ends a task that nobody settles, unless somebody has changed it since. Answers whether it was ended.
pub(crate) async fn end_by_store(
    shared: &Arc<Shared>,
    row: i64,
    packed: &[u8],
    body: &str,
    verdict: &Verdict,
) -> Result<bool, StoreError> {
    let crashes = Packed::of(packed)?.crashes;
    end_lost(shared, row, packed, body, verdict, crashes).await
}

/// The same for a task that has lost so many workers.
pub(crate) async fn end_lost(
    shared: &Arc<Shared>,
    row: i64,
    packed: &[u8],
    body: &str,
    verdict: &Verdict,
    crashes: u32,
) -> Result<bool, StoreError> {
    let follow = follow_of(packed, body, verdict)?;
    let item = Item {
        row,
        check: Check::Same { packed: packed.to_vec(), crashes },
        verdict: Word::of(verdict),
        follow: encode::follow(&follow),
    };
    Ok(matches!(run(shared, &[item]).await?.pop(), Some(Answer::Applied)))
}

fn follow_of(packed: &[u8], body: &str, verdict: &Verdict) -> Result<Follow, StoreError> {
    let packed = Packed::of(packed)?;
    // What follows a task that cannot be read is not known either.
    Ok(packed.envelope(body).map(|envelope| flow::follow(&envelope, verdict)).unwrap_or_default())
}

/// Runs settles, each atomic by itself.
pub(crate) async fn run(shared: &Arc<Shared>, items: &[Item]) -> Result<Vec<Answer>, StoreError> {
    let chunks = items.chunks(CHUNK).map(|chunk| run_chunk(shared, chunk));
    Ok(futures_util::future::try_join_all(chunks).await?.into_iter().flatten().collect())
}

async fn run_chunk(shared: &Shared, items: &[Item]) -> Result<Vec<Answer>, StoreError> {
    let answer = shared.run(Script::Settle, |cmd| items.iter().for_each(|item| item.add_to(cmd))).await?;
    list(answer)?.into_iter().map(answer_of).collect()
}

fn answer_of(value: Value) -> Result<Answer, StoreError> {
    if let Value::Array(parts) = value {
        let mut parts = parts.into_iter();
        let packed = bytes(parts.next().unwrap_or(Value::Nil))?;
        let body = optional_text(parts.next().unwrap_or(Value::Nil))?.unwrap_or_default();
        return Ok(Answer::ToCancel { packed, body });
    }
    match bytes(value)?.as_slice() {
        b"a" => Ok(Answer::Applied),
        b"s" => Ok(Answer::Stale),
        _ => Err(damaged("answer", "it says nothing about a settle")),
    }
}

/// The verdict on a task that took down its workers.
pub(crate) fn poison(crashes: u32) -> Verdict {
    Verdict::Dead { reason: DeadReason::Poison, failure: windlass_core::state::poison_failure(crashes) }
}

/// The verdict on a task that nobody declared in time.
pub(crate) fn unknown(name: &str) -> Verdict {
    let failure: Failure = windlass_core::state::unknown_failure(name);
    Verdict::Dead { reason: DeadReason::Unknown, failure }
}

/// How long a parked task waits.
pub(crate) const PARKED_FOR: Duration = windlass_core::state::PARKED_FOR;
