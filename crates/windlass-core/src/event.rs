//! What happens in a worker, as it happens. Metrics, log lines and live pages are listeners.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::Settlement;
use crate::breaker::Position;
use crate::call::Call;
use crate::state::Verdict;
use crate::view::NodePhase;
use crate::{QueueName, ScheduleId, StoreError, TaskId, TaskName, Timestamp};

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// An attempt was claimed and starts.
    Started(Arc<Call>),
    /// An attempt ended and the store has answered.
    Settled {
        /// The attempt.
        call: Arc<Call>,
        /// How it ended.
        verdict: Verdict,
        /// How long the handler ran.
        ran: Duration,
        /// Whether it counts.
        settlement: Settlement,
    },
    /// Another node has the task: whatever this attempt says does not count.
    LeaseLost(Arc<Call>),
    /// A handler does not end although its hard limit has passed: it blocks its thread.
    Stuck(Arc<Call>),
    /// The node begins or ends a part of its life.
    Phase(NodePhase),
    /// The node has fewer slots than a batch takes: its batches are smaller.
    SmallBatches {
        /// Of which task.
        task: TaskName,
        /// How many tasks its handler would take.
        takes: usize,
        /// How many slots there are.
        slots: usize,
    },
    /// The store failed at this; it is tried again after `again_in`.
    StoreFailed {
        /// At what: `claim`, `settle` and so on.
        operation: &'static str,
        /// Why.
        error: StoreError,
        /// When it is tried again.
        again_in: Duration,
    },
    /// The store answers again.
    StoreBack {
        /// How long it has failed.
        after: Duration,
    },
    /// Tasks whose lease had run out were returned to their queues by this node.
    Rescued {
        /// How many.
        count: u64,
    },
    /// Tasks ended without a holder: poison, parked for too long, too late.
    EndedByStore {
        /// How many.
        count: u64,
    },
    /// This node has changed how a circuit breaker stands, for all nodes.
    BreakerMoved {
        /// Of which service.
        service: String,
        /// How it stands now.
        to: Position,
    },
    /// Another application that shares the store declares a limit for the same subject: that of the node that starts last
    /// holds.
    LimitContested {
        /// Which, as text.
        subject: String,
        /// The other application.
        application: String,
    },
    /// A schedule pushed a task.
    ScheduleFired {
        /// Which.
        schedule: ScheduleId,
        /// For which planned instant.
        slot: Timestamp,
        /// The task.
        task: TaskId,
        /// How long after its instant.
        late: Duration,
    },
    /// A schedule left slots out, as its policies say.
    ScheduleMissed {
        /// Which.
        schedule: ScheduleId,
        /// How many.
        count: u64,
        /// Why.
        why: &'static str,
    },
    /// A relay has moved rows of an outbox into the store.
    Relayed {
        /// How many.
        moved: u64,
        /// Of these, how many the store had already.
        known: u64,
        /// The age of the oldest one.
        oldest: Duration,
    },
    /// A relay has set a row of an outbox aside: the store will never take it.
    RelayRefused {
        /// Its place.
        place: i64,
        /// Why.
        why: String,
    },
    /// The rows of a queue wait in an outbox, because the queue is full.
    RelayWaits {
        /// Which.
        queue: QueueName,
        /// How many tasks may wait in it.
        limit: u64,
    },
}

/// Hears of everything. Called on the engine's thread, and of breakers on the thread of a handler: it must not block.
pub trait Listener: Send + Sync {
    /// Something happened.
    fn on_event(&self, event: &Event);
}

impl<L: Listener + ?Sized> Listener for Arc<L> {
    fn on_event(&self, event: &Event) {
        (**self).on_event(event);
    }
}

/// Writes what happened to the log: one line an event, with fields, without arguments and results.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log;

impl Listener for Log {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Started(call) => tracing::debug!(
                event = "task_started",
                task_name = %call.envelope.name,
                task_id = %call.id(),
                queue = %call.envelope.queue,
                attempt = call.attempt,
                "task started"
            ),
            Event::Settled { call, verdict, ran, settlement } => log_settled(call, verdict, *ran, *settlement),
            Event::LeaseLost(call) => tracing::warn!(
                event = "lease_lost",
                task_name = %call.envelope.name,
                task_id = %call.id(),
                attempt = call.attempt,
                "lease lost: another node runs the task"
            ),
            Event::Stuck(call) => tracing::error!(
                event = "task_stuck",
                task_name = %call.envelope.name,
                task_id = %call.id(),
                attempt = call.attempt,
                "handler blocks its thread beyond its hard limit: register it with `blocking_task`"
            ),
            Event::Phase(NodePhase::Running) => tracing::info!(event = "worker_ready", "worker ready"),
            Event::Phase(NodePhase::Quiet) => tracing::info!(event = "worker_quiet", "worker takes no more tasks"),
            Event::Phase(NodePhase::Stopping) => {
                tracing::info!(event = "worker_draining", "worker finishes what it has");
            }
            Event::Phase(NodePhase::Stopped) => tracing::info!(event = "worker_stopped", "worker stopped"),
            Event::SmallBatches { task, takes, slots } => tracing::warn!(
                event = "batches_small",
                task_name = %task,
                takes,
                slots,
                "batches are no larger than the slots of the worker"
            ),
            Event::StoreFailed { operation, error, again_in } => tracing::warn!(
                event = "store_failed",
                operation,
                error = %error,
                again_in_ms = again_in.as_millis() as u64,
                "store failed"
            ),
            Event::StoreBack { after } => {
                tracing::info!(event = "store_back", after_ms = after.as_millis() as u64, "store answers again");
            }
            Event::Rescued { count } => {
                tracing::warn!(event = "tasks_rescued", count, "tasks of a lost worker are ready again");
            }
            Event::EndedByStore { count } => {
                tracing::warn!(event = "tasks_ended", count, "tasks ended without a worker: see their reasons");
            }
            Event::BreakerMoved { service, to: Position::Open } => {
                tracing::warn!(event = "breaker_opened", service, "too many calls failed: none passes for a time");
            }
            Event::BreakerMoved { service, to: Position::HalfOpen } => {
                tracing::info!(event = "breaker_tried", service, "one call is tried");
            }
            Event::BreakerMoved { service, to: Position::Closed } => {
                tracing::info!(event = "breaker_closed", service, "the service answers again");
            }
            Event::LimitContested { subject, application } => tracing::warn!(
                event = "limit_contested",
                subject,
                application,
                "another application declares this limit too: whichever node starts last decides"
            ),
            Event::ScheduleFired { schedule, slot, task, late } => tracing::info!(
                event = "schedule_fired",
                schedule_id = %schedule,
                slot = %slot,
                task_id = %task,
                late_ms = late.as_millis() as u64,
                "schedule fired"
            ),
            Event::ScheduleMissed { schedule, count, why } => {
                tracing::warn!(event = "schedule_missed", schedule_id = %schedule, count, why, "slots left out");
            }
            Event::Relayed { moved, known, oldest } => {
                tracing::debug!(
                    event = "relay_moved",
                    moved,
                    known,
                    oldest_ms = oldest.as_millis() as u64,
                    "rows moved"
                );
            }
            Event::RelayRefused { place, why } => {
                tracing::error!(event = "relay_refused", place, error = %why, "row of the outbox set aside");
            }
            Event::RelayWaits { queue, limit } => {
                tracing::warn!(event = "relay_waits", queue = %queue, limit, "queue full: its rows wait in the outbox");
            }
        }
    }
}

fn log_settled(call: &Call, verdict: &Verdict, ran: Duration, settlement: Settlement) {
    macro_rules! line {
        ($level:ident, $event:literal, $message:literal $(, $($field:tt)*)?) => {
            tracing::$level!(
                event = $event,
                task_name = %call.envelope.name,
                task_id = %call.id(),
                queue = %call.envelope.queue,
                attempt = call.attempt,
                duration_ms = ran.as_millis() as u64,
                wait_ms = call.started_at.since(call.ready_at).as_millis() as u64,
                $($($field)*,)?
                $message
            )
        };
    }
    if settlement == Settlement::Stale {
        return line!(
            warn,
            "task_stale",
            "attempt does not count: it was settled before, or another node has the task"
        );
    }
    match verdict {
        Verdict::Succeeded { .. } => line!(debug, "task_succeeded", "task succeeded"),
        Verdict::Again { failure: Some(failure), after, .. } => line!(
            warn,
            "task_retried",
            "task failed, it runs again",
            error_type = %failure.class,
            error = %failure.message,
            again_in_ms = after.as_millis() as u64
        ),
        Verdict::Again { failure: None, after, .. } => {
            line!(debug, "task_snoozed", "task runs again later", again_in_ms = after.as_millis() as u64);
        }
        Verdict::Awaits { signal, at_most, .. } => line!(
            debug,
            "task_awaits",
            "task waits for a signal",
            signal = %signal,
            at_most_ms = at_most.as_millis() as u64
        ),
        Verdict::Dead { reason, failure } => line!(
            error,
            "task_dead",
            "task gave up",
            reason = %reason,
            error_type = %failure.class,
            error = %failure.message
        ),
        Verdict::Cancelled => line!(info, "task_cancelled", "task cancelled"),
        Verdict::Expired => line!(info, "task_expired", "task was not started in time"),
        Verdict::Released => line!(info, "task_released", "task given back"),
        Verdict::Parked => line!(warn, "task_parked", "no handler of this name here: it waits for a node that has one"),
    }
}
