//! Receipts: a side effect that is done once for a key, whatever task or attempt comes to it.
//!
//! A receipt is a note ([`crate::note`]) with what the effect returned. It is written when the effect has happened; while it
//! happens, the note says who is at it, and others come back later.
//!
//! **What voids it.** A process that dies after the effect and before the receipt is written leaves the key open: the next
//! attempt does it again, so that it is done at least once. Only an effect in the same database as the receipt can be exact;
//! see `complete_in` of the stores. A receipt is forgotten after its time.

use std::future::Future;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::call::Call;
use crate::note::{Note, NoteAnswer, NoteAsk};
use crate::task::HARD_LIMIT_DEFAULT;
use crate::{Json, TaskError, TaskId};

/// Where receipts are kept.
pub const SPACE: &str = "once";
/// When to look again for a receipt that somebody else is about to write.
const COME_BACK: Duration = Duration::from_secs(1);

/// What is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Receipt {
    /// Somebody does it now.
    Begun {
        /// Who.
        by: TaskId,
    },
    /// It is done.
    Done {
        /// What it returned.
        value: Json,
    },
}

impl Call {
    /// Does something once for this key in the whole store, and answers what it returned, now or then; the receipt is kept
    /// for `keep`. While another task is at it, this one comes back in a second; no attempt is spent.
    ///
    /// ```
    /// # use windlass_core::{Cx, TaskError};
    /// # use std::time::Duration;
    /// # async fn charge() -> Result<u64, TaskError> { Ok(1) }
    /// # async fn pay(cx: Cx) -> Result<(), TaskError> {
    /// let payment: u64 = cx.once("invoice 4711", Duration::from_secs(30 * 86_400), || charge()).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of `work`: then there is no receipt, and whoever comes next tries. [`TaskError::Throttled`] while somebody else
    /// is at it.
    pub async fn once<T, F, Fut>(&self, key: &str, keep: Duration, work: F) -> Result<T, TaskError>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, TaskError>>,
    {
        let seen = match self.begin(key).await? {
            Begun::Ours(version) => version,
            Begun::Done(value) => {
                return value.to().map_err(|error| {
                    TaskError::fatal(format_args!("the receipt of `{key}` has another shape: {error}"))
                });
            }
        };
        let value = match work().await {
            Ok(value) => value,
            Err(error) => {
                // Nothing was done, as far as anybody knows: the key is free again at once, or when the note has expired.
                let forget = NoteAsk::Forget { space: SPACE.to_owned(), key: key.to_owned(), seen };
                if let Err(error) = self.client().backend().note(&forget).await {
                    tracing::debug!(%error, "a receipt that was begun is left to expire");
                }
                return Err(error);
            }
        };
        let json = Json::of(&value)
            .map_err(|error| TaskError::fatal(format_args!("the result for `{key}` cannot be stored: {error}")))?;
        // Had the note expired meanwhile, another task may have begun: its receipt stays, ours is not needed.
        if let Err(now) = self.write(key, Some(seen), &Receipt::Done { value: json }, keep).await? {
            tracing::warn!(key, taken = now.is_some(), "somebody else has begun what was done once already");
        }
        Ok(value)
    }

    async fn begin(&self, key: &str) -> Result<Begun, TaskError> {
        let receipt = Receipt::Begun { by: self.id().clone() };
        // Long enough for any attempt: what is begun for longer was left behind.
        let time = self.envelope.hard_limit.unwrap_or(HARD_LIMIT_DEFAULT) + Duration::from_secs(60);
        let mut seen = None;
        for _ in 0..3 {
            let now = match self.write(key, seen, &receipt, time).await? {
                Ok(version) => return Ok(Begun::Ours(version)),
                Err(now) => now,
            };
            match now.as_ref().and_then(|note| note.value.to::<Receipt>().ok()) {
                Some(Receipt::Done { value }) => return Ok(Begun::Done(value)),
                // An earlier attempt of this task was at it, and is gone.
                Some(Receipt::Begun { by }) if by == *self.id() => {}
                Some(Receipt::Begun { .. }) => break,
                None => {}
            }
            seen = now.map(|note| note.version);
        }
        Err(TaskError::Throttled { after: COME_BACK })
    }

    async fn write(
        &self,
        key: &str,
        seen: Option<i64>,
        receipt: &Receipt,
        ttl: Duration,
    ) -> Result<Result<i64, Option<Note>>, TaskError> {
        let value = Json::of(receipt)
            .map_err(|error| TaskError::fatal(format_args!("the receipt of `{key}` cannot be stored: {error}")))?;
        let ask = NoteAsk::Write { space: SPACE.to_owned(), key: key.to_owned(), seen, value, ttl };
        match self.client().backend().note(&ask).await? {
            NoteAnswer::Written(version) => Ok(Ok(version)),
            NoteAnswer::Conflict(now) => Ok(Err(now)),
            NoteAnswer::Notes(_) | NoteAnswer::Forgotten => {
                Err(TaskError::failed("the store answered something else than it was asked").class("store"))
            }
        }
    }
}

/// Who does it.
enum Begun {
    /// This attempt; the note has this version.
    Ours(i64),
    /// Somebody has done it, with this result.
    Done(Json),
}
