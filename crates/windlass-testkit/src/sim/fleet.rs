//! The workers of a simulation, and what is done to them.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use windlass_core::backend::{Backend, ScheduleChange};
use windlass_core::batch::Batch;
use windlass_core::schedule::every;
use windlass_core::worker::{Schedules, Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::{App, Clock, NodeId, QueueName, ScheduleId};

use super::script::{Slot, World, handle, handle_many, handle_slot, handle_sum};
use super::steps::{Ledger, handle_steps};
use super::{SimClock, draw_faults, limits};
use crate::faulty::{Faults, FaultyStore};

/// Short, so that it runs out often.
pub(super) const LEASE: Duration = Duration::from_secs(9);
/// How long things go wrong.
const SUFFERING: Duration = Duration::from_secs(120);

/// Workers over one store.
pub(super) struct Fleet {
    backend: Arc<dyn Backend>,
    began: Instant,
    dice: fastrand::Rng,
    faults: Faults,
    ledger: Arc<Ledger>,
    workers: Vec<Running>,
    started: u32,
    killed: u32,
}

struct Running {
    line: Arc<FaultyStore>,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

impl Fleet {
    pub(super) fn new(backend: Arc<dyn Backend>, began: Instant, dice: &mut fastrand::Rng) -> Self {
        let faults = draw_faults(dice);
        let (ledger, workers) = (Arc::default(), Vec::new());
        Self { backend, began, dice: dice.fork(), faults, ledger, workers, started: 0, killed: 0 }
    }

    pub(super) fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }

    pub(super) fn faults(&self) -> Faults {
        self.faults
    }

    pub(super) fn killed(&self) -> u32 {
        self.killed
    }

    pub(super) async fn start_workers(&mut self) {
        for _ in 0..self.dice.usize(2..5) {
            self.start_worker().await;
        }
    }

    async fn start_worker(&mut self) {
        let line = Arc::new(FaultyStore::new(Arc::clone(&self.backend), self.dice.u64(..), self.faults));
        let world = World { line: Arc::clone(&line), ledger: Arc::clone(&self.ledger) };
        let app = App::new("simulation")
            .state(async move || Ok::<_, std::convert::Infallible>(world))
            .task(handle)
            .task(handle_sum)
            .task(handle_slot)
            .task(handle_steps)
            .batch_task(Batch::up_to(4).within(Duration::from_millis(300)), handle_many)
            .schedule("slots", every("5s"), Slot {});
        let registry = match app.build().await {
            Ok(registry) => registry,
            Err(error) => unreachable!("the simulation is declared well: {error}"),
        };
        self.started += 1;
        let mut settings = Settings::new(NodeId::known(&format!("node-{}", self.started)));
        settings.queues = vec![(QueueName::default(), 1), (QueueName::known("other"), 2), (limits::queue(), 1)];
        settings.slots = self.dice.usize(1..9);
        settings.lease = LEASE;
        settings.grace = Duration::from_secs(self.dice.u64(1..10));
        settings.cancel_grace = Duration::from_secs(2);
        settings.schedules = Schedules::Fire;
        settings.seed = self.dice.u64(..);
        let ahead = Duration::from_millis(self.dice.u64(0..3_000));
        let clock: Arc<dyn Clock> = Arc::new(SimClock { started: self.began, ahead });
        let worker = Worker::new(Arc::clone(&line) as Arc<dyn Backend>, registry, settings).clock(clock);
        let shutdown = Shutdown::new();
        let run = worker.run(shutdown.clone());
        let task = tokio::spawn(async move {
            run.await;
        });
        self.workers.push(Running { line, shutdown, task });
    }

    /// Kills, stops, replaces and shuts down workers until the time is up. One is always left.
    pub(super) async fn suffer(&mut self) {
        let mut left = SUFFERING;
        while !left.is_zero() {
            let wait = Duration::from_millis(self.dice.u64(500..15_000)).min(left);
            tokio::time::sleep(wait).await;
            left -= wait;
            let index = self.dice.usize(..self.workers.len());
            match self.dice.u32(..6) {
                0 => {
                    // As `kill -9`: nothing of it does anything any more. Its handlers wait for ever.
                    let worker = self.workers.swap_remove(index);
                    worker.line.cut();
                    worker.task.abort();
                    self.killed += 1;
                    self.start_worker().await;
                }
                1 => {
                    let length = Duration::from_secs(self.dice.u64(1..30));
                    self.workers[index].line.freeze(length);
                }
                2 => {
                    let worker = self.workers.swap_remove(index);
                    worker.shutdown.begin(ShutdownStep::Graceful);
                    if self.dice.bool() {
                        worker.shutdown.begin(ShutdownStep::Immediate);
                    }
                    self.start_worker().await;
                }
                3 => limits::hold(&*self.backend, Duration::from_secs(self.dice.u64(1..10))).await,
                _ => {}
            }
        }
    }

    /// The faults end.
    pub(super) async fn recover(&mut self) {
        for worker in &self.workers {
            worker.line.set(Faults::NONE);
        }
        self.faults = Faults::NONE;
        self.start_worker().await;
        // Schedules would go on for ever.
        let pause = ScheduleChange::Pause(ScheduleId::known("slots"));
        // The store behind the lines has no faults.
        let _ = self.backend.schedule(&pause).await;
    }

    pub(super) async fn stop(self) {
        for worker in self.workers {
            worker.shutdown.begin(ShutdownStep::Graceful);
            // A worker that was killed was aborted; the others end.
            let _ = worker.task.await;
        }
    }
}
