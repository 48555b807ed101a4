//! Moving everything from one store to another: the steps that a store takes part in, and [`Mover`], who takes them.
//!
//! The mover closes both stores, waits until nothing runs in the old one, and then repeats: export a parcel, import it into
//! the new store, evict it from the old one. It may be killed between any two steps and started again: what is known to
//! the new store is left alone, and while both are closed nothing that was copied can run. At the end the new store is
//! opened; the old one stays closed, so that a worker that still points to it starts nothing.

mod mover;

use crate::error::Failure;
use crate::flow::NewGroup;
use crate::view::Record;
use crate::{GroupId, Json, TaskId, Timestamp};

pub use mover::{Inventory, Moved, Mover, TransferError};

/// The most tasks in one parcel.
pub const PARCEL_TASKS_MAX: usize = 500;
/// The most groups in one parcel: each carries the results of its members.
pub const PARCEL_GROUPS_MAX: usize = 20;

/// One step of a move.
#[derive(Debug, Clone, PartialEq)]
pub enum Transfer {
    /// From here on no task is started and no schedule fires, whoever asks, until the store is opened. What runs goes on,
    /// and pushes are stored.
    Close,
    /// The opposite of closing.
    Open,
    /// Answers what there is to be moved and changes nothing: groups that are not complete while there are any, then the
    /// oldest tasks that nobody holds, whatever their state; at most [`PARCEL_GROUPS_MAX`] and [`PARCEL_TASKS_MAX`].
    Export,
    /// Keeps a parcel as it is, oldest task first, all or none. Ids that are known are left alone. A task takes its unique
    /// key where that is free, and its place among the ready ones by [`Parcelled::ready_at`].
    Import(Parcel),
    /// Forgets what is in another store by now, without anything following from it. A task that somebody holds is left.
    Evict {
        /// At most [`PARCEL_TASKS_MAX`].
        tasks: Vec<TaskId>,
        /// At most [`PARCEL_GROUPS_MAX`].
        groups: Vec<GroupId>,
    },
}

/// What a step answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Transferred {
    /// How many tasks and groups were imported or evicted; 1 when the store was closed or opened, 0 when it was so already.
    Changed(u64),
    /// What was exported; empty when nothing is left but what runs.
    Parcel(Parcel),
}

/// A part of a store on its way to another one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parcel {
    /// Groups, with what has arrived at them.
    pub groups: Vec<ParcelledGroup>,
    /// Tasks, oldest first.
    pub tasks: Vec<Parcelled>,
}

impl Parcel {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.tasks.is_empty()
    }
}

/// A task on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct Parcelled {
    /// Everything that is known of it.
    pub record: Record,
    /// When it became ready, or will: its place in line follows from it.
    pub ready_at: Timestamp,
}

/// A group on its way.
#[derive(Debug, Clone, PartialEq)]
pub struct ParcelledGroup {
    /// The group as it was created.
    pub group: NewGroup,
    /// What its members ended with, by their places; each once.
    pub arrived: Vec<(u32, Result<Json, Failure>)>,
    /// Whether its failure has been acted upon.
    pub failed: bool,
}

impl Transfer {
    /// Checks the limits of a step; for drivers.
    ///
    /// # Errors
    /// [`StoreError::Rejected`](crate::StoreError::Rejected) when one is broken.
    pub fn check(&self) -> Result<(), crate::StoreError> {
        let (tasks, groups) = match self {
            Self::Close | Self::Open | Self::Export => return Ok(()),
            Self::Import(parcel) => (parcel.tasks.len(), parcel.groups.len()),
            Self::Evict { tasks, groups } => (tasks.len(), groups.len()),
        };
        crate::backend::check_batch("tasks", tasks, PARCEL_TASKS_MAX)?;
        crate::backend::check_batch("groups", groups, PARCEL_GROUPS_MAX)
    }
}
