//! The run: who is started, what is enqueued, who is killed, and when it is over.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::time::Instant;
use windlass::backend::{BATCH_MAX, ScheduleChange};
use windlass::schedule::{Missed, every};
use windlass::view::{Filter, Page, Record, Retention, ScheduleRecord};
use windlass::workflow::group;
use windlass::{
    Backend, Client, Clock, ConnectOptions, Due, Envelope, NodeId, Priority, QueueName, ScheduleId, State, SystemClock,
    TaskId, Timestamp,
};

use super::fleet::{Fleet, Process};
use super::plan::{CANCELLED, CANCELLED_AFTER, CHORD, DELAYED, DELAYED_FROM, DELAYED_OVER, Subject};
use super::receiver::{Ledger, Receiver};
use super::report::grouped;
use super::{Place, Progress};
use crate::builtin::HttpRequest;

/// Short, so that the tasks of the killed worker are seen to come back; long enough for a machine that is busy.
const LEASE: Duration = Duration::from_secs(5);
/// How long processes may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often the state of things is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A run.
pub(super) struct Stage {
    client: Client,
    receiver: Receiver,
    fleet: Fleet,
    processes: Vec<Process>,
    queue: QueueName,
    schedule: ScheduleId,
    slots: usize,
    tasks: u32,
    bar: ProgressBar,
}

/// What was enqueued.
#[derive(Debug, Default, Clone)]
pub(super) struct Enqueued {
    /// Deliveries, by number.
    pub(super) deliveries: Vec<TaskId>,
    /// Delayed tasks, by number, with the time they are due.
    pub(super) delayed: Vec<(TaskId, Timestamp)>,
    /// Tasks that were cancelled at once.
    pub(super) cancelled: Vec<TaskId>,
    /// How many of them the store says it has cancelled.
    pub(super) cancelled_now: u64,
    /// The members of the chord.
    pub(super) members: Vec<TaskId>,
    /// The first slot of the schedule.
    pub(super) first_slot: Timestamp,
    /// When everything with a time of its own is due.
    pub(super) all_due_at: Timestamp,
    /// How long it took to enqueue the deliveries.
    pub(super) took: Duration,
}

/// What the checks need to know of a run.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) enqueued: Enqueued,
    /// What the store says of every enqueued task, in the order deliveries, delayed, cancelled, members.
    pub(super) records: Vec<Option<Record>>,
    /// The schedule as the store knows it, after it was paused.
    pub(super) schedule: ScheduleRecord,
    pub(super) schedule_paused_at: Timestamp,
    /// What the killed worker held.
    pub(super) held: HashSet<TaskId>,
    /// What the receiver says.
    pub(super) ledger: Ledger,
    /// Tasks of this run that have not ended.
    pub(super) left: u64,
    pub(super) lease: Duration,
    pub(super) killed_at: Timestamp,
    pub(super) took: Duration,
}

impl Stage {
    /// Starts the receiver and all processes, and waits until they are there.
    pub(super) async fn set(place: &Place, slots: usize, tasks: u32, progress: Progress) -> anyhow::Result<Self> {
        // Every store prunes as its own process says, and the checks look at all that has ended.
        let kept = Retention { finished_max: kept_for(tasks), ..Retention::default() };
        let options = ConnectOptions { retention: kept, ..ConnectOptions::default() };
        let backend = windlass::connect_with(&place.store.parse()?, options).await?;
        let receiver = Receiver::start().await.context("the receiver cannot listen on 127.0.0.1")?;
        let fleet = Fleet::new(place, kept.finished_max)?;
        let processes = vec![
            fleet.worker("worker-1", slots, LEASE)?,
            fleet.worker("worker-2", slots, LEASE)?,
            fleet.scheduler("scheduler")?,
        ];
        let mut stage = Self {
            client: Client::new(backend),
            receiver,
            fleet,
            processes,
            queue: place.queue.clone(),
            schedule: ScheduleId::new(format!("{}-tick", place.queue))?,
            slots,
            tasks,
            bar: bar(tasks, progress),
        };
        stage.bar.set_message("starting two workers and a scheduler");
        stage.wait_for_nodes().await?;
        Ok(stage)
    }

    /// Plays the whole run, up to `limit`.
    pub(super) async fn play(&mut self, limit: Duration) -> anyhow::Result<Seen> {
        let started = Instant::now();
        let give_up_at = started + limit;
        let enqueued = self.enqueue().await?;
        let (held, killed_at) = self.kill_one_half_way(give_up_at).await?;
        self.wait_until(give_up_at, |stage| stage.receiver.delivered() >= stage.tasks as usize).await?;
        self.bar.set_message("every delivery has arrived; waiting for what is due later");
        self.wait_until(give_up_at, |_| SystemClock.now() > enqueued.all_due_at).await?;
        let schedule_paused_at = SystemClock.now();
        self.backend().schedule(&ScheduleChange::Pause(self.schedule.clone())).await?;
        let left = self.wait_for_the_rest(give_up_at).await?;
        let took = started.elapsed();
        self.bar.set_message("comparing the store with the receiver's ledger");
        let seen = self.look(enqueued, held, killed_at, schedule_paused_at, left, took).await?;
        self.bar.finish_and_clear();
        Ok(seen)
    }

    /// Fires the schedule again, for people who look around.
    pub(super) async fn go_on(&self) -> anyhow::Result<()> {
        let next =
            every("1s").schedule(self.schedule.as_str(), self.request(Subject::Tick)?)?.spec.next(SystemClock.now());
        self.backend().schedule(&ScheduleChange::Resume { id: self.schedule.clone(), next }).await?;
        Ok(())
    }

    /// Ends every process, and takes the schedule out of the store.
    pub(super) async fn end(self) {
        for process in self.processes {
            process.end().await;
        }
        let removed = self.client.backend().schedule(&ScheduleChange::Remove(self.schedule.clone())).await;
        if let Err(error) = removed {
            tracing::warn!(%error, schedule = %self.schedule, "the demo's schedule stays in the store");
        }
    }

    fn backend(&self) -> &Arc<dyn Backend> {
        self.client.backend()
    }

    fn all_run(&mut self) -> anyhow::Result<()> {
        self.processes.iter_mut().try_for_each(Process::must_run)
    }

    async fn wait_for_nodes(&mut self) -> anyhow::Result<()> {
        let give_up_at = Instant::now() + START_LIMIT;
        loop {
            self.all_run()?;
            let nodes = self.backend().nodes().await?;
            let there = |process: &Process| nodes.iter().any(|node| node.alive && node.info.id == process.node);
            if self.processes.iter().all(there) {
                return Ok(());
            }
            if Instant::now() > give_up_at {
                bail!("the workers have not come up within {}", windlass::format_duration(START_LIMIT));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A request about this, as an envelope.
    fn request(&self, subject: Subject) -> anyhow::Result<Envelope> {
        let mut task = HttpRequest::to(self.receiver.url(subject));
        task.method = Some("POST".to_owned());
        if let Subject::Delivery(number) = subject {
            task.json = Some(serde_json::json!({ "order": number }));
        }
        let mut envelope = Envelope::of(&task, Timestamp::MIN)?;
        envelope.queue = self.queue.clone();
        if !matches!(subject, Subject::Delivery(_)) {
            // What has a time of its own overtakes the deliveries that wait.
            envelope.priority = Priority::FIRST;
        }
        Ok(envelope)
    }

    async fn enqueue(&mut self) -> anyhow::Result<Enqueued> {
        self.bar.set_message("enqueueing");
        let mut enqueued = Enqueued { first_slot: self.put_schedule().await?, ..Enqueued::default() };
        enqueued.members = self.start_chord().await?;
        let now = SystemClock.now();
        let mut delayed = Vec::new();
        for number in 0..DELAYED {
            let due = now + DELAYED_FROM + DELAYED_OVER * number / DELAYED;
            delayed.push((Envelope { due: Due::At(due), ..self.request(Subject::Delayed(number))? }, due));
        }
        enqueued.delayed = delayed.iter().map(|(envelope, due)| (envelope.id.clone(), *due)).collect();
        self.client.push(delayed.into_iter().map(|(envelope, _)| envelope).collect()).await?;
        let mut cancelled = Vec::new();
        for number in 0..CANCELLED {
            cancelled.push(Envelope { due: Due::After(CANCELLED_AFTER), ..self.request(Subject::Cancelled(number))? });
        }
        enqueued.cancelled = cancelled.iter().map(|envelope| envelope.id.clone()).collect();
        self.client.push(cancelled).await?;
        enqueued.all_due_at = SystemClock.now() + (DELAYED_FROM + DELAYED_OVER).max(CANCELLED_AFTER);
        enqueued.cancelled_now = self.client.cancel(enqueued.cancelled.clone()).await?.changed;
        let started = Instant::now();
        let numbers: Vec<u32> = (0..self.tasks).collect();
        for batch in numbers.chunks(windlass::envelope::PUSH_MAX) {
            let envelopes: Vec<Envelope> =
                batch.iter().map(|number| self.request(Subject::Delivery(*number))).collect::<Result<_, _>>()?;
            let pushed = self.client.push(envelopes).await?;
            enqueued.deliveries.extend(pushed.into_iter().map(|(id, _)| id));
            self.show();
        }
        enqueued.took = started.elapsed();
        Ok(enqueued)
    }

    async fn put_schedule(&self) -> anyhow::Result<Timestamp> {
        // Every slot counts here, also one that fires late.
        let when = every("1s").missed(Missed::All);
        let schedule = when.schedule(self.schedule.as_str(), self.request(Subject::Tick)?)?;
        let next = schedule.spec.next(SystemClock.now()).context("the schedule has no next slot")?;
        self.backend().schedule(&ScheduleChange::Put { schedule, next: Some(next) }).await?;
        Ok(next)
    }

    async fn start_chord(&self) -> anyhow::Result<Vec<TaskId>> {
        let members: Vec<Envelope> =
            (0..CHORD).map(|number| self.request(Subject::Member(number))).collect::<Result<_, _>>()?;
        let chord = group(members).then(self.request(Subject::Chord)?);
        Ok(self.client.start(chord).await?.tasks)
    }

    /// Kills a worker when half of the deliveries have arrived, notes what it held, and starts another.
    async fn kill_one_half_way(&mut self, give_up_at: Instant) -> anyhow::Result<(HashSet<TaskId>, Timestamp)> {
        self.bar.set_message("delivering");
        self.wait_until(give_up_at, |stage| stage.receiver.delivered() * 2 >= stage.tasks as usize).await?;
        let mut victim = self.processes.remove(0);
        let pid = victim.pid().unwrap_or_default();
        victim.kill().await?;
        let killed_at = SystemClock.now();
        let held = self.held_by(&victim.node).await?;
        self.bar.set_message(format!("worker {pid} was killed while it held {} tasks", held.len()));
        self.processes.push(self.fleet.worker("worker-3", self.slots, LEASE)?);
        Ok((held, killed_at))
    }

    async fn held_by(&self, node: &NodeId) -> anyhow::Result<HashSet<TaskId>> {
        let filter = Filter { queues: vec![self.queue.clone()], ..Filter::in_states([State::Running]) };
        let (mut held, mut page) = (HashSet::new(), Page::first(windlass::view::PAGE_MAX));
        loop {
            let listing = self.backend().list(&filter, &page).await?;
            let of_node = listing.tasks.into_iter().filter(|record| record.node.as_ref() == Some(node));
            held.extend(of_node.map(|record| record.envelope.id));
            match listing.next {
                Some(next) => page.after = Some(next),
                None => return Ok(held),
            }
        }
    }

    /// Waits until no task of the run is left; answers how many are when the time is up.
    async fn wait_for_the_rest(&mut self, give_up_at: Instant) -> anyhow::Result<u64> {
        loop {
            self.all_run()?;
            let counts = self.backend().counts().await?;
            let left = counts.queues.get(&self.queue).map_or(0, windlass::view::QueueCounts::live);
            if left == 0 || Instant::now() > give_up_at {
                return Ok(left);
            }
            self.bar.set_message(format!("waiting for the last {left} tasks"));
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until something holds, or the time is up: then the checks say what is missing.
    async fn wait_until(&mut self, give_up_at: Instant, holds: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        while !holds(self) && Instant::now() < give_up_at {
            self.all_run()?;
            self.show();
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    fn show(&self) {
        self.bar.set_position(self.receiver.delivered() as u64);
    }

    async fn look(
        &self,
        enqueued: Enqueued,
        held: HashSet<TaskId>,
        killed_at: Timestamp,
        schedule_paused_at: Timestamp,
        left: u64,
        took: Duration,
    ) -> anyhow::Result<Seen> {
        let ids: Vec<TaskId> = enqueued.all().cloned().collect();
        let mut records = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH_MAX) {
            records.extend(self.backend().find(batch).await?);
        }
        let schedules = self.backend().schedules().await?;
        let schedule = schedules.into_iter().find(|record| record.schedule.id == self.schedule);
        let schedule = schedule.context("the store has forgotten the schedule")?;
        let ledger = self.receiver.ledger();
        Ok(Seen { enqueued, records, schedule, schedule_paused_at, held, ledger, left, lease: LEASE, killed_at, took })
    }
}

impl Enqueued {
    /// Every task but those of the schedule and the end of the chord, in the order of [`Seen::records`].
    pub(super) fn all(&self) -> impl Iterator<Item = &TaskId> {
        let delayed = self.delayed.iter().map(|(id, _)| id);
        self.deliveries.iter().chain(delayed).chain(&self.cancelled).chain(&self.members)
    }
}

/// How many tasks that have ended a store keeps for the checks: those of this run, and those that were there.
fn kept_for(tasks: u32) -> u64 {
    Retention::default().finished_max + 2 * u64::from(tasks)
}

fn bar(tasks: u32, progress: Progress) -> ProgressBar {
    let target = match progress {
        // indicatif draws nothing when standard error is no terminal.
        Progress::OnTerminal => ProgressDrawTarget::stderr(),
        Progress::Hidden => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} {rate:>8}  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let style = style.with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // Text for a terminal: what cannot be written is not missed.
        let _ = write!(out, "{}/s", grouped(state.per_sec() as u64));
    });
    ProgressBar::with_draw_target(Some(u64::from(tasks)), target).with_style(style)
}
