//! What a node counts and measures, in the Prometheus text format.
//!
//! Labels are bounded: queues, declared task names, outcomes, reasons. Never ids, arguments or users.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::backend::Settlement;
use crate::breaker::{Position, Standing};
use crate::call::Call;
use crate::event::{Event, Listener};
use crate::limit::{Gate, Limit, LimitsView, Subject};
use crate::state::{State, Verdict};
use crate::view::{Counts, NodePhase};
use crate::{QueueName, TaskName, Timestamp};

/// Upper bounds of the duration buckets, in seconds: from a no-op to an hour.
const BUCKETS: [f64; 20] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    3600.0,
];

/// The metrics of a node. A listener of its worker; cheap to clone.
///
/// ```
/// let metrics = windlass_core::metrics::Metrics::new();
/// assert!(metrics.encode().contains("windlass_worker_busy 0"));
/// ```
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    /// The series of each task, so that nothing is allocated or looked up by text when a task ends.
    of_task: Mutex<HashMap<TaskName, Vec<(QueueName, OfTask)>>>,
    /// Breakers that the store has listed.
    breakers_seen: Mutex<BTreeSet<String>>,
    finished: Family<Finished, Counter>,
    retries: Family<Reason, Counter>,
    dead: Family<Reason, Counter>,
    stale: Family<Task, Counter>,
    ran: Family<Task, Histogram>,
    waited: Family<Task, Histogram>,
    end_to_end: Family<Task, Histogram>,
    recovered: Counter,
    store_errors: Family<Operation, Counter>,
    store_up: Gauge,
    busy: Gauge,
    up: Gauge,
    schedule_fired: Family<Schedule, Counter>,
    schedule_missed: Family<Schedule, Counter>,
    schedule_lag: Family<Schedule, Gauge<f64, AtomicU64>>,
    relay_moved: Counter,
    relay_refused: Counter,
    relay_lag: Gauge<f64, AtomicU64>,
    depth: Family<Depth, Gauge>,
    latency: Family<Queue, Gauge<f64, AtomicU64>>,
    paused: Family<Queue, Gauge>,
    rate_tokens: Family<Limiter, Gauge>,
    breaker_state: Family<Breaker, Gauge>,
    breaker_moves: Family<Move, Counter>,
}

/// The series that every task that ends adds to.
#[derive(Clone)]
struct OfTask {
    ran: Histogram,
    waited: Histogram,
    end_to_end: Histogram,
    succeeded: Counter,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Task {
    queue: String,
    task: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    queue: String,
    task: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    queue: String,
    task: String,
    reason: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Schedule {
    schedule: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Depth {
    queue: String,
    state: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Queue {
    queue: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Limiter {
    limiter: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Breaker {
    breaker: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Move {
    breaker: String,
    to: &'static str,
}

fn seconds() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Metrics {
    /// Metrics that have counted nothing.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("windlass");
        let inner = Inner {
            finished: Family::default(),
            retries: Family::default(),
            dead: Family::default(),
            stale: Family::default(),
            ran: Family::new_with_constructor(seconds),
            waited: Family::new_with_constructor(seconds),
            end_to_end: Family::new_with_constructor(seconds),
            recovered: Counter::default(),
            store_errors: Family::default(),
            store_up: Gauge::default(),
            busy: Gauge::default(),
            up: Gauge::default(),
            schedule_fired: Family::default(),
            schedule_missed: Family::default(),
            schedule_lag: Family::default(),
            relay_moved: Counter::default(),
            relay_refused: Counter::default(),
            relay_lag: Gauge::default(),
            depth: Family::default(),
            latency: Family::default(),
            paused: Family::default(),
            rate_tokens: Family::default(),
            breaker_state: Family::default(),
            breaker_moves: Family::default(),
            registry: Mutex::new(Registry::default()),
            of_task: Mutex::new(HashMap::new()),
            breakers_seen: Mutex::new(BTreeSet::new()),
        };
        registry.register("tasks_finished", "Tasks that ended, by outcome", inner.finished.clone());
        registry.register("task_retries", "Attempts that failed and run again, by error class", inner.retries.clone());
        registry.register("dead_letters", "Tasks that gave up, by reason", inner.dead.clone());
        registry.register("tasks_stale", "Attempts that did not count: their lease was lost", inner.stale.clone());
        registry.register_with_unit("task_duration", "How long handlers ran", Unit::Seconds, inner.ran.clone());
        registry.register_with_unit("task_wait", "From ready to claimed", Unit::Seconds, inner.waited.clone());
        registry.register_with_unit("task_end_to_end", "From pushed to ended", Unit::Seconds, inner.end_to_end.clone());
        registry.register("tasks_recovered", "Tasks of lost workers that are ready again", inner.recovered.clone());
        registry.register("backend_errors", "Requests that the store failed, by operation", inner.store_errors.clone());
        inner.store_up.set(1);
        registry.register("backend_up", "1 while the store answers this worker", inner.store_up.clone());
        registry.register("worker_busy", "Handlers that run now", inner.busy.clone());
        registry.register("worker_up", "1 while the worker claims tasks", inner.up.clone());
        registry.register("schedule_fired", "Slots that were pushed", inner.schedule_fired.clone());
        registry.register("schedule_missed", "Slots that were left out by policy", inner.schedule_missed.clone());
        let lag = inner.schedule_lag.clone();
        registry.register_with_unit("schedule_lag", "How late the last slot was pushed", Unit::Seconds, lag);
        registry.register("relay_moved", "Rows moved from an outbox", inner.relay_moved.clone());
        registry.register("relay_refused", "Rows of an outbox that were set aside", inner.relay_refused.clone());
        let lag = inner.relay_lag.clone();
        registry.register_with_unit("relay_lag", "Age of the oldest row moved last", Unit::Seconds, lag);
        registry.register("queue_depth", "Tasks by state", inner.depth.clone());
        registry.register_with_unit(
            "queue_latency",
            "Age of the next ready task",
            Unit::Seconds,
            inner.latency.clone(),
        );
        registry.register("queue_paused", "1 while a queue is paused", inner.paused.clone());
        registry.register(
            "rate_limit_tokens",
            "Starts that the rate of a queue or task allows now",
            inner.rate_tokens.clone(),
        );
        registry.register(
            "circuit_breaker_state",
            "0 closed, 1 half-open, 2 open; of breakers that were ever not closed",
            inner.breaker_state.clone(),
        );
        registry.register(
            "circuit_breaker_transitions",
            "Changes of a circuit breaker that this worker made",
            inner.breaker_moves.clone(),
        );
        *inner.registry.lock() = registry;
        Self(Arc::new(inner))
    }

    /// Takes over what the store counts; called before the metrics are read.
    pub fn observe_counts(&self, counts: &Counts, now: Timestamp) {
        for (queue, counted) in &counts.queues {
            let queue = queue.to_string();
            for state in [State::Scheduled, State::Ready, State::Running, State::Parked, State::Dead] {
                let depth = Depth { queue: queue.clone(), state: state.as_str() };
                self.0.depth.get_or_create(&depth).set(counted.of(state) as i64);
            }
            let label = Queue { queue };
            let age = counted.oldest_ready_at.map_or(Duration::ZERO, |oldest| now.since(oldest));
            self.0.latency.get_or_create(&label).set(age.as_secs_f64());
            self.0.paused.get_or_create(&label).set(i64::from(counted.paused));
        }
    }

    /// Takes over what the store counts at limits; called before the metrics are read. Only those of queues and tasks:
    /// keys are tenants and users, which are no labels.
    pub fn observe_limits(&self, view: &LimitsView, now: Timestamp) {
        // Those that were removed must not stay.
        self.0.rate_tokens.clear();
        for Limit { subject, rule } in &view.limits {
            let gate = match subject {
                Subject::Queue(queue) => Gate::Queue(queue.clone()),
                Subject::Task(task) => Gate::Task(task.clone()),
                Subject::Key(_) | Subject::KeysOfQueue(_) | Subject::KeysOfTask(_) => continue,
            };
            let Some(rate) = rule.rate else { continue };
            let counted = view.gates.iter().find(|view| view.gate == gate);
            let held = counted.and_then(|view| view.held_until).is_some_and(|until| until > now);
            let next = counted.and_then(|view| view.next).unwrap_or(Timestamp::MIN);
            let tokens = if held { 0 } else { rate.room(next, now) };
            let label = Limiter { limiter: subject.to_string() };
            self.0.rate_tokens.get_or_create(&label).set(i64::try_from(tokens).unwrap_or(i64::MAX));
        }
    }

    /// Takes over how the circuit breakers stand ([`crate::breaker::list`]); called before the metrics are read. A breaker
    /// that was seen before and is not listed any more is closed.
    pub fn observe_breakers(&self, breakers: &[(String, Standing)]) {
        let mut seen = self.0.breakers_seen.lock();
        seen.extend(breakers.iter().map(|(service, _)| service.clone()));
        for service in seen.iter() {
            let listed = breakers.iter().find(|(listed, _)| listed == service);
            let position = listed.map_or(Position::Closed, |(_, standing)| standing.position);
            let state = match position {
                Position::Closed => 0,
                Position::HalfOpen => 1,
                Position::Open => 2,
            };
            self.0.breaker_state.get_or_create(&Breaker { breaker: service.clone() }).set(state);
        }
    }

    /// Everything in the Prometheus (OpenMetrics) text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.0.registry.lock());
        text
    }

    fn settled(&self, call: &Call, verdict: &Verdict, ran: Duration, settlement: Settlement) {
        if settlement == Settlement::Stale {
            self.0.stale.get_or_create(&Task::of(call)).inc();
            return;
        }
        let series = self.series(call);
        series.ran.observe(ran.as_secs_f64());
        series.waited.observe(call.started_at.since(call.ready_at).as_secs_f64());
        let Task { queue, task } = match verdict {
            Verdict::Succeeded { .. } => {
                series.end_to_end.observe(call.now().since(call.enqueued_at).as_secs_f64());
                series.succeeded.inc();
                return;
            }
            Verdict::Again { failure: None, .. } | Verdict::Awaits { .. } | Verdict::Released | Verdict::Parked => {
                return;
            }
            Verdict::Again { failure: Some(_), .. } | Verdict::Dead { .. } | Verdict::Cancelled | Verdict::Expired => {
                Task::of(call)
            }
        };
        if let Verdict::Again { failure: Some(failure), .. } = verdict {
            let reason = failure.class.clone();
            self.0.retries.get_or_create(&Reason { queue, task, reason }).inc();
            return;
        }
        if let Verdict::Dead { reason, .. } = verdict {
            let reason = reason.to_string();
            self.0.dead.get_or_create(&Reason { queue: queue.clone(), task: task.clone(), reason }).inc();
        }
        series.end_to_end.observe(call.now().since(call.enqueued_at).as_secs_f64());
        self.0.finished.get_or_create(&Finished { queue, task, outcome: verdict.state().as_str() }).inc();
    }

    fn series(&self, call: &Call) -> OfTask {
        let (name, queue) = (&call.envelope.name, &call.envelope.queue);
        let mut of_task = self.0.of_task.lock();
        if let Some((_, series)) = of_task.get(name).and_then(|queues| queues.iter().find(|(known, _)| known == queue))
        {
            return series.clone();
        }
        let labels = Task::of(call);
        let succeeded =
            Finished { queue: labels.queue.clone(), task: labels.task.clone(), outcome: State::Succeeded.as_str() };
        let series = OfTask {
            ran: self.0.ran.get_or_create(&labels).clone(),
            waited: self.0.waited.get_or_create(&labels).clone(),
            end_to_end: self.0.end_to_end.get_or_create(&labels).clone(),
            succeeded: self.0.finished.get_or_create(&succeeded).clone(),
        };
        of_task.entry(name.clone()).or_default().push((queue.clone(), series.clone()));
        series
    }
}

impl Task {
    fn of(call: &Call) -> Self {
        Self { queue: call.envelope.queue.to_string(), task: call.envelope.name.to_string() }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Listener for Metrics {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Started(_) => {
                self.0.busy.inc();
            }
            Event::Settled { call, verdict, ran, settlement } => {
                self.0.busy.dec();
                self.settled(call, verdict, *ran, *settlement);
            }
            Event::LeaseLost(call) => {
                self.0.busy.dec();
                self.0.stale.get_or_create(&Task::of(call)).inc();
            }
            Event::Stuck(_) | Event::SmallBatches { .. } | Event::LimitContested { .. } => {}
            Event::BreakerMoved { service, to } => {
                let label = Move { breaker: service.clone(), to: to.as_str() };
                self.0.breaker_moves.get_or_create(&label).inc();
            }
            Event::Phase(phase) => {
                self.0.up.set(i64::from(*phase == NodePhase::Running));
            }
            Event::StoreFailed { operation, .. } => {
                self.0.store_errors.get_or_create(&Operation { operation }).inc();
                self.0.store_up.set(0);
            }
            Event::StoreBack { .. } => {
                self.0.store_up.set(1);
            }
            Event::Rescued { count } => {
                self.0.recovered.inc_by(*count);
            }
            Event::EndedByStore { .. } => {}
            Event::ScheduleFired { schedule, late, .. } => {
                let label = Schedule { schedule: schedule.to_string() };
                self.0.schedule_fired.get_or_create(&label).inc();
                self.0.schedule_lag.get_or_create(&label).set(late.as_secs_f64());
            }
            Event::ScheduleMissed { schedule, count, .. } => {
                let label = Schedule { schedule: schedule.to_string() };
                self.0.schedule_missed.get_or_create(&label).inc_by(*count);
            }
            Event::Relayed { moved, oldest, .. } => {
                self.0.relay_moved.inc_by(*moved);
                self.0.relay_lag.set(oldest.as_secs_f64());
            }
            Event::RelayRefused { .. } => {
                self.0.relay_refused.inc();
            }
            Event::RelayWaits { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{GateView, Rate, Rule};
    use crate::view::QueueCounts;

    #[test]
    fn what_a_rate_allows_now_is_a_gauge_of_queues_and_tasks() {
        let metrics = Metrics::new();
        let now = Timestamp::from_secs(1_000);
        let rule = Rule { rate: Some(Rate::known("10/s burst 5")), ..Rule::default() };
        let limit = |subject: &str| Limit { subject: subject.parse().unwrap(), rule: rule.clone() };
        let gate =
            |gate: &str, held_until, next| GateView { gate: gate.parse().unwrap(), held_until, next, running: None };
        let due = now + Duration::from_millis(200);
        let view = LimitsView {
            limits: ["queue:mail", "queue:held", "task:send", "key:acme", "keys-of-task:send"].map(limit).to_vec(),
            gates: vec![
                gate("queue:mail", None, Some(due)),
                gate("queue:held", Some(due), None),
                gate("key-of-task:send acme", None, Some(due)),
            ],
        };
        metrics.observe_limits(&view, now);
        let text = metrics.encode();
        for line in [r#"{limiter="queue:mail"} 3"#, r#"{limiter="queue:held"} 0"#, r#"{limiter="task:send"} 5"#] {
            assert!(text.contains(&format!("windlass_rate_limit_tokens{line}")), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("acme") && !text.contains("keys-of"), "{text}");
        metrics.observe_limits(&LimitsView::default(), now);
        assert!(!metrics.encode().contains("rate_limit_tokens{"), "a limit that was removed has no tokens");
    }

    #[test]
    fn a_breaker_that_is_listed_no_more_is_closed() {
        let metrics = Metrics::new();
        let standing = |position| Standing { position, until: Timestamp::MAX, opened: 1, forced: false };
        metrics.observe_breakers(&[
            ("payments".into(), standing(Position::Open)),
            ("sms".into(), standing(Position::HalfOpen)),
        ]);
        let text = metrics.encode();
        for line in [r#"{breaker="payments"} 2"#, r#"{breaker="sms"} 1"#] {
            assert!(text.contains(&format!("windlass_circuit_breaker_state{line}")), "{line} is missing in\n{text}");
        }
        metrics.observe_breakers(&[]);
        assert!(metrics.encode().contains(r#"windlass_circuit_breaker_state{breaker="payments"} 0"#));
    }

    #[test]
    fn counts_of_the_store_become_gauges() {
        let metrics = Metrics::new();
        let now = Timestamp::from_secs(1_000);
        let mail = QueueCounts { ready: 7, oldest_ready_at: Some(Timestamp::from_secs(990)), ..QueueCounts::default() };
        let counts = Counts { queues: [(QueueName::known("mail"), mail)].into(), ..Counts::default() };
        metrics.observe_counts(&counts, now);
        let text = metrics.encode();
        assert!(text.contains(r#"windlass_queue_depth{queue="mail",state="ready"} 7"#), "{text}");
        assert!(text.contains(r#"windlass_queue_latency_seconds{queue="mail"} 10.0"#), "{text}");
    }
}
