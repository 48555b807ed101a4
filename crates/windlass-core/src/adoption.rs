//! Adoption: how deliveries of a foreign transport become tasks of a store.
//!
//! A bridge ([`crate::bridge`]) takes messages from a transport that keeps them itself, such as a broker or a list, adopts them,
//! and accepts them at the transport only then. Whatever dies in between, the transport delivers again: so an adopted
//! delivery is remembered by the transport's own identity of it, in the same atomic step, and is known when it comes again.
//! The id of its task would not tell: a producer may send one id twice on purpose, and means a second run.
//!
//! Identities are notes ([`crate::note`]) in the space [`DELIVERY_SPACE`], with the id of the task as value: they are listed,
//! moved to another store and forgotten as all notes are.

use std::time::Duration;

use crate::backend::{BATCH_MAX, Claim, Demand, Pushed, check_batch};
use crate::note::NOTE_TTL_MAX;
use crate::state::DeadReason;
use crate::{DeliveryId, Envelope, Failure, Json, StoreError, TaskId, Verdict};

/// How long an adopted delivery is remembered: longer than any transport waits before it delivers again.
pub const DELIVERY_TTL: Duration = Duration::from_secs(24 * 3600);
/// The space of the notes that remember deliveries.
pub const DELIVERY_SPACE: &str = "delivery";

const _: () = assert!(DELIVERY_TTL.as_secs() <= NOTE_TTL_MAX.as_secs(), "a note can remember a delivery");
const _: () =
    assert!(crate::names::NAME_BYTES_MAX <= crate::note::NOTE_KEY_BYTES_MAX, "an identity is a key of a note");

/// What a bridge brings to a store.
#[derive(Debug, Clone, Default)]
pub struct Adoption {
    /// Deliveries that the transport has let go for certain: it never delivers them again, and they are forgotten before
    /// anything is stored. At most [`BATCH_MAX`]. An adoption that stores again what it has forgotten is the only one that is
    /// not safe to repeat.
    pub accepted: Vec<DeliveryId>,
    /// What the transport has delivered. At most [`BATCH_MAX`].
    pub deliveries: Vec<Delivery>,
    /// What is claimed in the same step, after the deliveries are stored. Its [`wait`](Demand::wait) is not used. Without
    /// it, nothing is claimed: the bridge has no free slot.
    pub demand: Option<Demand>,
}

/// One message of a transport.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The transport's own identity of it.
    pub id: DeliveryId,
    /// The task that it asks for.
    pub envelope: Envelope,
    /// What is wrong with the message. Then the task is a dead letter from the start ([`DeadReason::Malformed`]): nothing
    /// follows it, it takes no unique key, and its queue is never too full for it.
    pub flaw: Option<Failure>,
}

impl Delivery {
    /// How its task ends before it begins; `None` for one that can run.
    pub fn verdict(&self) -> Option<Verdict> {
        let failure = self.flaw.clone()?;
        Some(Verdict::Dead { reason: DeadReason::Malformed, failure })
    }
}

/// What became of an adoption.
#[derive(Debug, Clone, Default)]
pub struct Adopting {
    /// What became of each delivery, in their order.
    pub adopted: Vec<Adopted>,
    /// What the node holds now: of these deliveries and of what was there before, as any claim.
    pub claims: Vec<Claim>,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adopted {
    /// Its task is stored. An ended task with the same id was forgotten for it.
    Stored,
    /// It was adopted before: nothing has changed.
    Known,
    /// Nothing was stored. When this is the id of its own task, that has not ended: the delivery is not remembered, and can be
    /// adopted under another id. Otherwise this task has its unique key, and the delivery is remembered.
    Exists(TaskId),
    /// Its unique key is taken by this task, which waits: that one has got its arguments.
    Replaced(TaskId),
    /// Its queue holds as many waiting tasks as it may: nothing was stored, and the delivery is not remembered.
    Full {
        /// That many.
        limit: u64,
    },
}

impl Adopted {
    /// Whether nothing is left to be done with a delivery of this task: it is remembered, and can be accepted.
    pub fn is_done(&self, task: &TaskId) -> bool {
        match self {
            Self::Stored | Self::Known | Self::Replaced(_) => true,
            Self::Exists(id) => id != task,
            Self::Full { .. } => false,
        }
    }

    /// What is remembered with a delivery of this task: the task that it became or that stands for it. `None` when it is
    /// not remembered, or was before; for drivers.
    pub fn to_remember(&self, task: &TaskId) -> Option<Json> {
        let id = match self {
            Self::Stored => task,
            Self::Exists(id) | Self::Replaced(id) if id != task => id,
            Self::Known | Self::Exists(_) | Self::Replaced(_) | Self::Full { .. } => return None,
        };
        Some(remembered(id))
    }
}

impl From<Pushed> for Adopted {
    fn from(pushed: Pushed) -> Self {
        match pushed {
            Pushed::Stored => Self::Stored,
            Pushed::Exists(id) => Self::Exists(id),
            Pushed::Replaced(id) => Self::Replaced(id),
            Pushed::Full { limit } => Self::Full { limit },
        }
    }
}

/// The value of the note that remembers a delivery; for drivers.
pub fn remembered(task: &TaskId) -> Json {
    // An id is visible ASCII: only the quote and the backslash are escaped.
    Json::trusted(serde_json::Value::from(task.to_string()).to_string())
}

impl Adoption {
    /// Checks the limits; for drivers.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when one is broken.
    pub fn check(&self) -> Result<(), StoreError> {
        check_batch("deliveries", self.deliveries.len(), BATCH_MAX)?;
        check_batch("accepted deliveries", self.accepted.len(), BATCH_MAX)?;
        self.demand.as_ref().map_or(Ok(()), Demand::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_remembered_is_not_accepted() {
        let (own, other) = (TaskId::random(), TaskId::random());
        for adopted in [
            Adopted::Stored,
            Adopted::Exists(own.clone()),
            Adopted::Exists(other.clone()),
            Adopted::Replaced(other),
            Adopted::Full { limit: 1 },
        ] {
            assert_eq!(adopted.is_done(&own), adopted.to_remember(&own).is_some(), "{adopted:?}");
        }
        assert!(Adopted::Known.is_done(&own), "it was remembered before");
    }

    #[test]
    fn an_id_with_quotes_is_remembered_as_json() {
        let id = TaskId::new("a\"b\\c").expect("an id");
        assert_eq!(serde_json::from_str::<String>(remembered(&id).as_str()).expect("JSON"), id.to_string());
    }
}
