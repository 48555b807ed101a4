//! The outbox: tasks that wait in a table of the application, for a store that is another database.
//!
//! ```text
//! application   push_in (a driver)   a row in the application's own transaction: there with its data, or not at all
//! relay         take                 the oldest rows that no other relay holds
//!               Backend::push        under the ids that the tasks were written with
//!               settle               rows that are in the store are removed, those that never can be are set aside
//! ```
//!
//! A relay may die after each of these. Before the push, the rows are taken again; after it, they are pushed again and the store
//! answers that it has them: every task gets there, once. **What voids that:** a store that has forgotten the task meanwhile.
//! Ids of ended tasks are known for as long as its retention keeps them, an hour and 100,000 by default: a relay that dies
//! between push and settle should be back before that.
//!
//! Rows go in the order of their places, which are given when they are written: a transaction that commits late comes late.
//! Several relays share the work batch by batch, and keep the order of each batch only. A queue that is full holds back its own
//! rows. A delay counts from the moment when the row was written.
//!
//! Pure but for the trait: [`Outbox`] is implemented by the drivers of the databases that applications have, [`Relay`] moves.

mod relay;

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::backend::{Push, StoreError};
use crate::envelope::{Due, Envelope};
use crate::flow::NewGroup;
use crate::{QueueName, Timestamp};

pub use relay::{Relay, Relayed};

/// The most rows that a relay takes at once.
pub const TAKE_ROWS_MAX: usize = 500;
/// No further row is taken when those before take this many bytes.
pub const TAKE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest reason that a row is set aside with, in bytes.
pub const REFUSAL_BYTES_MAX: usize = 2_000;

/// A table of an application, as the relay sees it.
#[async_trait]
pub trait Outbox: Send + Sync + std::fmt::Debug {
    /// The oldest rows that are not set aside, that no other relay holds, and whose queue is none of `except`: up to
    /// [`TAKE_ROWS_MAX`] and [`TAKE_BYTES_MAX`], the first whatever its size. `None` when there are none.
    async fn take(&self, except: &[QueueName]) -> Result<Option<Box<dyn Taken>>, StoreError>;

    /// Waits until a row may have been written since the last [`Outbox::take`], up to `wait`.
    async fn written(&self, wait: Duration);
}

/// Rows that a relay has taken. Dropped without a settle, they are as if they had never been taken.
#[async_trait]
pub trait Taken: Send {
    /// The rows, oldest first.
    fn rows(&self) -> &[Row];

    /// Removes the rows with the places `moved`, sets those of `refused` aside with their reasons, and gives the others back; all
    /// of it or nothing.
    async fn settle(self: Box<Self>, moved: &[i64], refused: &[(i64, String)]) -> Result<(), StoreError>;
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place in the order.
    pub place: i64,
    /// How long ago it was written, by the clock of the application's database.
    pub age: Duration,
    /// What [`to_text`] made.
    pub text: String,
}

/// Version of [`Stored`]. Fields may be added with a default; anything else raises it.
const STORED_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    tasks: Vec<Envelope>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<NewGroup>,
}

/// A push as the text of a row; for drivers.
///
/// # Errors
/// [`StoreError::Rejected`] when a limit is broken, or nothing is in it.
pub fn to_text(push: &Push) -> Result<String, StoreError> {
    push.check()?;
    check(push)?;
    let stored = Stored { v: STORED_VERSION, tasks: push.envelopes.clone(), groups: push.groups.clone() };
    serde_json::to_string(&stored).map_err(|error| StoreError::Rejected(format!("a task cannot be written: {error}")))
}

/// The queue that a row belongs to; for drivers. That of its first task.
pub fn queue_of(push: &Push) -> QueueName {
    push.envelopes.first().map(|envelope| envelope.queue.clone()).unwrap_or_default()
}

/// The push of a row, or why it can never be one.
fn of_text(row: &Row) -> Result<Push, String> {
    let stored: Stored = serde_json::from_str(&row.text).map_err(|error| format!("the row is damaged: {error}"))?;
    if stored.v > STORED_VERSION {
        return Err(format!("the row has format {}, this version reads up to {STORED_VERSION}", stored.v));
    }
    let mut push = Push { envelopes: stored.tasks, groups: stored.groups };
    for envelope in &mut push.envelopes {
        if let Due::After(delay) = envelope.due {
            envelope.due = Due::After(delay.saturating_sub(row.age));
        }
    }
    push.check().and_then(|()| check(&push)).map_err(|error| error.to_string())?;
    Ok(push)
}

/// Checks what every store relies on. Nobody knows the time of the store here: an absolute due time is taken as it is.
fn check(push: &Push) -> Result<(), StoreError> {
    if push.envelopes.is_empty() {
        return Err(StoreError::Rejected("there is no task in it".to_owned()));
    }
    push.envelopes.iter().try_for_each(|envelope| {
        let now = match envelope.due {
            Due::Now | Due::After(_) => Timestamp::MIN,
            Due::At(due) => due,
        };
        envelope.check(now).map_err(|error| StoreError::Rejected(error.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Args, TaskName};

    fn task() -> Envelope {
        Envelope::new(TaskName::known("mail"), QueueName::known("out"), Args::none())
    }

    fn row(text: &str, age: Duration) -> Row {
        Row { place: 1, age, text: text.to_owned() }
    }

    #[test]
    fn a_push_is_read_as_it_was_written() {
        let due_at = Envelope { due: Due::At(Timestamp::from_secs(1_000)), ..task() };
        let push = Push { envelopes: vec![task(), due_at], groups: Vec::new() };
        let text = to_text(&push).expect("written");
        assert_eq!(of_text(&row(&text, Duration::from_secs(7))), Ok(push.clone()));
        assert_eq!(queue_of(&push).as_str(), "out");
    }

    #[test]
    fn a_delay_counts_from_the_moment_of_writing() {
        let push = Push::from(Envelope { due: Due::After(Duration::from_secs(60)), ..task() });
        let text = to_text(&push).expect("written");
        for (age, left) in [(0, 60), (45, 15), (600, 0)] {
            let push = of_text(&row(&text, Duration::from_secs(age))).expect("read");
            assert_eq!(push.envelopes[0].due, Due::After(Duration::from_secs(left)), "{age}");
        }
    }

    #[test]
    fn what_can_never_be_pushed_says_why() {
        for (text, why) in [
            ("", "damaged"),
            ("{\"v\":1}", "damaged"),
            ("{\"v\":2,\"tasks\":[]}", "format 2"),
            ("{\"v\":1,\"tasks\":[]}", "no task"),
        ] {
            let error = of_text(&row(text, Duration::ZERO)).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(to_text(&Push::default()).is_err());
    }
}
