//! Who moves: step by step, and safe to be killed at any of them.
//!
//! 1. are these two stores?   2. close both   3. wait until nothing runs in the old one   4. pauses, schedules, limits, notes
//! 5. parcel by parcel: export, import, evict   6. open the new store
//!
//! What a rate has counted stays behind: a gate of the new store begins as if nothing had started.

use std::sync::Arc;
use std::time::Duration;

use super::{Parcel, Transfer, Transferred};
use crate::backend::{Backend, Command, ScheduleChange, StoreError};
use crate::limit::{HOLD_MAX, LimitChange};
use crate::note::{NOTE_TTL_MAX, NoteAnswer, NoteAsk};
use crate::view::{Counts, QueueCounts, ScheduleRecord};
use crate::{Clock, NodeId, SystemClock, TaskName};

/// How often it looks whether anything still runs; each look is a tick, which takes tasks from lost workers.
const LOOK: Duration = Duration::from_millis(200);
/// A step that fails because a store is away or busy is taken again this often, with a pause that doubles: a minute in all.
const TRIES: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How the names begin that are paused for a moment to tell two stores apart.
const MARK: &str = "windlass.transfer.";

/// Moves everything from one store to another.
#[derive(Debug)]
pub struct Mover {
    from: Arc<dyn Backend>,
    to: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
}

/// What there is to be moved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    /// Tasks by state, over all queues. Of those that ended well, the count of all that ever did: how many of them are
    /// still kept is seen when they are moved.
    pub tasks: QueueCounts,
    /// Schedules.
    pub schedules: u64,
    /// Queues and names that are paused.
    pub pauses: u64,
    /// Limits and holds.
    pub limits: u64,
}

/// What was moved so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Tasks that have not ended.
    pub live: u64,
    /// Dead letters.
    pub dead: u64,
    /// Other tasks that had ended, with their results.
    pub ended: u64,
    /// Groups of workflows.
    pub groups: u64,
    /// Schedules.
    pub schedules: u64,
    /// Limits and holds.
    pub limits: u64,
    /// Notes: receipts, breakers.
    pub notes: u64,
    /// Of all these, what the new store had already: a run before this one was ended half-way.
    pub known: u64,
    /// Tasks that still run in the old store; they are waited for.
    pub running: u64,
}

/// A move that cannot go on. Nothing is lost: both stores stay closed, and the same move goes on where it ended.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Both are one store.
    #[error("both are the same store")]
    SameStore,
    /// The old store failed.
    #[error("the old store failed: {0}")]
    From(#[source] StoreError),
    /// The new store failed.
    #[error("the new store failed: {0}")]
    To(#[source] StoreError),
}

impl Mover {
    /// From one store to another.
    pub fn new(from: Arc<dyn Backend>, to: Arc<dyn Backend>) -> Self {
        Self { from, to, clock: Arc::new(SystemClock) }
    }

    /// Another clock than the wall clock; that of the stores. Holds and notes last for what is left of their time.
    #[must_use]
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// [`TransferError::From`].
    pub async fn inventory(&self) -> Result<Inventory, TransferError> {
        let counts = self.from.counts().await.map_err(TransferError::From)?;
        let schedules = self.from.schedules().await.map_err(TransferError::From)?;
        let paused_queues = counts.queues.values().filter(|queue| queue.paused).count();
        Ok(Inventory {
            tasks: counts.total(),
            schedules: schedules.len() as u64,
            pauses: (paused_queues + counts.paused_tasks.len()) as u64,
            limits: self.limits().await?.len() as u64,
        })
    }

    /// Moves everything. `progress` hears of every step.
    ///
    /// Waits without end for what runs in the old store; dropping the future is as good as being killed. Producers may go
    /// on pushing to the old store: what they push while this runs is moved, what they push later waits there, closed.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn run(&self, mut progress: impl FnMut(&Moved)) -> Result<Moved, TransferError> {
        self.must_differ().await?;
        to(|| self.to.transfer(&Transfer::Close)).await?;
        from(|| self.from.transfer(&Transfer::Close)).await?;
        let mut moved = Moved::default();
        self.wait_until_nothing_runs(&mut moved, &mut progress).await?;
        let counts = from(|| self.from.counts()).await?;
        self.copy_pauses(&counts).await?;
        for record in from(|| self.from.schedules()).await? {
            self.move_schedule(&record).await?;
            moved.schedules += 1;
            progress(&moved);
        }
        for (here, there) in self.limits().await? {
            to(|| self.to.limit(&there)).await?;
            from(|| self.from.limit(&here)).await?;
            moved.limits += 1;
        }
        self.move_notes(&mut moved).await?;
        progress(&moved);
        loop {
            let Transferred::Parcel(parcel) = from(|| self.from.transfer(&Transfer::Export)).await? else {
                unreachable!("an export is answered with a parcel")
            };
            if parcel.is_empty() {
                break;
            }
            self.move_parcel(parcel, &mut moved).await?;
            progress(&moved);
        }
        to(|| self.to.transfer(&Transfer::Open)).await?;
        Ok(moved)
    }

    /// Two URLs may lead to one store, and to evict there what was "imported" would lose it. A pause that is given to one
    /// of them and seen in the other tells.
    async fn must_differ(&self) -> Result<(), TransferError> {
        let mark = TaskName::known(&format!("{MARK}{:016x}", fastrand::u64(..)));
        let (pause, resume) = (Command::PauseTask(mark.clone()), Command::ResumeTask(mark.clone()));
        from(|| self.from.command(&pause)).await?;
        let seen = to(|| self.to.counts()).await;
        from(|| self.from.command(&resume)).await?;
        if seen?.paused_tasks.contains(&mark) {
            return Err(TransferError::SameStore);
        }
        Ok(())
    }

    async fn wait_until_nothing_runs(
        &self,
        moved: &mut Moved,
        progress: &mut impl FnMut(&Moved),
    ) -> Result<(), TransferError> {
        let node = NodeId::known("windlass-transfer");
        loop {
            // Tasks of workers that are gone come back with the end of their leases.
            from(|| self.from.tick(&node)).await?;
            moved.running = from(|| self.from.counts()).await?.total().running;
            progress(moved);
            if moved.running == 0 {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn copy_pauses(&self, counts: &Counts) -> Result<(), TransferError> {
        let queues = counts.queues.iter().filter(|(_, counts)| counts.paused);
        let queues = queues.map(|(queue, _)| Command::PauseQueue(queue.clone()));
        // A mark that a killed run has left is no pause of anybody's.
        let (marks, names): (Vec<_>, Vec<_>) =
            counts.paused_tasks.iter().cloned().partition(|name| name.as_str().starts_with(MARK));
        for mark in marks {
            let resume = Command::ResumeTask(mark);
            from(|| self.from.command(&resume)).await?;
        }
        let names = names.into_iter().map(Command::PauseTask);
        for pause in queues.chain(names) {
            to(|| self.to.command(&pause)).await?;
        }
        Ok(())
    }

    async fn move_schedule(&self, record: &ScheduleRecord) -> Result<(), TransferError> {
        let ScheduleRecord { schedule, next, paused, .. } = record;
        let put = ScheduleChange::Put { schedule: schedule.clone(), next: *next };
        to(|| self.to.schedule(&put)).await?;
        if *paused {
            let pause = ScheduleChange::Pause(schedule.id.clone());
            to(|| self.to.schedule(&pause)).await?;
        }
        let remove = ScheduleChange::Remove(schedule.id.clone());
        from(|| self.from.schedule(&remove)).await?;
        Ok(())
    }

    /// Each limit and hold: how it is forgotten in the old store, and set in the new one.
    async fn limits(&self) -> Result<Vec<(LimitChange, LimitChange)>, TransferError> {
        let view = from(|| self.from.limits()).await?;
        let limits =
            view.limits.into_iter().map(|limit| (LimitChange::Remove(limit.subject.clone()), LimitChange::Set(limit)));
        let now = self.clock.now();
        let holds = view.gates.into_iter().filter_map(|view| {
            let time = view.held_until?.since(now).min(HOLD_MAX);
            let hold = LimitChange::Hold { gate: view.gate.clone(), time };
            (!time.is_zero()).then_some((LimitChange::Reset(view.gate), hold))
        });
        Ok(limits.chain(holds).collect())
    }

    /// Notes page by page; one that the new store has is newer, because nobody works on the old one.
    async fn move_notes(&self, moved: &mut Moved) -> Result<(), TransferError> {
        let list = NoteAsk::List { space: None, after: None };
        loop {
            let NoteAnswer::Notes(notes) = from(|| self.from.note(&list)).await? else { return Ok(()) };
            if notes.is_empty() {
                return Ok(());
            }
            for note in notes {
                let ttl = note.expires.since(self.clock.now()).min(NOTE_TTL_MAX);
                let (space, key) = (note.space, note.key);
                if !ttl.is_zero() {
                    let write =
                        NoteAsk::Write { space: space.clone(), key: key.clone(), seen: None, value: note.value, ttl };
                    let written = to(|| self.to.note(&write)).await?;
                    moved.known += u64::from(matches!(written, NoteAnswer::Conflict(_)));
                }
                let forget = NoteAsk::Forget { space, key, seen: note.version };
                from(|| self.from.note(&forget)).await?;
                moved.notes += 1;
            }
        }
    }

    async fn move_parcel(&self, parcel: Parcel, moved: &mut Moved) -> Result<(), TransferError> {
        let tasks: Vec<_> = parcel.tasks.iter().map(|task| task.record.envelope.id.clone()).collect();
        let groups: Vec<_> = parcel.groups.iter().map(|group| group.group.id.clone()).collect();
        moved.groups += groups.len() as u64;
        for task in &parcel.tasks {
            let state = task.record.state;
            let count = match state {
                crate::State::Dead => &mut moved.dead,
                _ if state.is_final() => &mut moved.ended,
                _ => &mut moved.live,
            };
            *count += 1;
        }
        let things = (tasks.len() + groups.len()) as u64;
        let import = Transfer::Import(parcel);
        if let Transferred::Changed(new) = to(|| self.to.transfer(&import)).await? {
            moved.known += things.saturating_sub(new);
        }
        let evict = Transfer::Evict { tasks, groups };
        from(|| self.from.transfer(&evict)).await?;
        Ok(())
    }
}

async fn from<T, F: Future<Output = Result<T, StoreError>>>(step: impl FnMut() -> F) -> Result<T, TransferError> {
    patiently(step).await.map_err(TransferError::From)
}

async fn to<T, F: Future<Output = Result<T, StoreError>>>(step: impl FnMut() -> F) -> Result<T, TransferError> {
    patiently(step).await.map_err(TransferError::To)
}

/// Every step is safe to be repeated.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(mut step: impl FnMut() -> F) -> Result<T, StoreError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        match step().await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "a step of the transfer is repeated");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            answer => return answer,
        }
    }
    step().await
}
