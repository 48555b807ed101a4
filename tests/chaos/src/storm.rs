//! The run: tasks are pushed, workers are killed and frozen at random, the server crashes, and in the end the store is
//! compared with the ledger.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use windlass::backend::{BATCH_MAX, Push};
use windlass::view::{QueueCounts, Retention};
use windlass::{Args, Backend, ConnectOptions, Envelope, QueueName, State, StoreError, TaskId, TaskName};

use crate::fleet::{Fleet, NO_STORE, Worker};
use crate::ledger::Runs;
use crate::place::{Place, Store};

/// Workers at any time, and tasks that each runs at once.
const WORKERS: usize = 3;
const SLOTS: usize = 32;
/// Tasks in one push.
const BATCH: usize = 500;
/// Workers that are killed at equal steps of the work, beside those that the clock kills: a short run has its share too.
const KILLS_MIN: u32 = 4;
/// How long the store may be away while the run itself asks it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(50);

/// What is to happen.
#[derive(Debug, Clone)]
pub struct Storm {
    /// On which store.
    pub store: Store,
    /// How many tasks.
    pub tasks: u32,
    /// What decides when what happens to whom.
    pub seed: u64,
    /// How often the server crashes.
    pub crashes: u32,
    /// How long the whole run may take.
    pub limit: Duration,
}

/// What has happened.
#[derive(Debug)]
pub struct Report {
    /// How many workers were killed.
    pub killed: u32,
    /// How many were frozen.
    pub frozen: u32,
    /// How often the server crashed.
    pub crashed: u32,
    /// Runs beyond the first of each task.
    pub repeats: u64,
    /// The most that were allowed: what was in flight when something was taken away.
    pub repeats_max: u64,
    /// From the first push to the last settle.
    pub took: Duration,
}

/// What decides when what happens: set in the environment to repeat a run, drawn otherwise.
pub fn seed() -> u64 {
    set("WINDLASS_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..))
}

/// How many tasks a run has: set in the environment for a large one.
pub fn tasks() -> u32 {
    set("WINDLASS_CHAOS_TASKS").and_then(|tasks| u32::try_from(tasks).ok()).unwrap_or(6_000)
}

fn set(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

impl Storm {
    /// The run of every test: its size and its seed may be set in the environment.
    pub fn usual(store: Store) -> Self {
        let tasks = tasks();
        let seed = seed();
        println!("{store}: {tasks} tasks, WINDLASS_CHAOS_SEED={seed}");
        Self { store, tasks, seed, crashes: 2, limit: Duration::from_secs(180 + u64::from(tasks) / 100) }
    }

    /// Plays it and compares.
    ///
    /// # Errors
    /// When something was lost, counted twice, repeated without a reason, or does not come to an end. The logs stay.
    pub fn play(&self, program: &Path) -> Result<Report> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut place = Place::start(self.store)?;
        let mut fleet = Fleet::new(program, &place.url(), SLOTS)?;
        let played = self.play_in(&runtime, &mut place, &mut fleet);
        if played.is_err() {
            println!("the logs of all workers are in {}", fleet.keep_logs().display());
        }
        played.with_context(|| format!("WINDLASS_CHAOS_SEED={}", self.seed))
    }

    /// How many tasks have ended when this one of some equal steps is due, the last of them before the end.
    fn step(&self, number: u32, of: u32) -> u64 {
        u64::from(self.tasks) * u64::from(number) / u64::from(of + 1)
    }

    fn play_in(&self, runtime: &tokio::runtime::Runtime, place: &mut Place, fleet: &mut Fleet) -> Result<Report> {
        let kept =
            Retention { finished: Duration::from_secs(86_400), finished_max: 10_000_000, ..Retention::default() };
        let options = ConnectOptions { retention: kept, ..ConnectOptions::default() };
        let location = place.url().parse()?;
        let backend = runtime.block_on(windlass::connect_with(&location, options))?;
        let began = Instant::now();
        let pushing = runtime.spawn(push_all(Arc::clone(&backend), self.tasks));
        let mut weather = Weather::new(self, fleet)?;
        let (mut next_kill, mut next_crash) = (1, 1);
        loop {
            ensure!(
                began.elapsed() < self.limit,
                "it does not come to an end: {:?}",
                runtime.block_on(counts(&backend))
            );
            weather.turn(fleet)?;
            let counts = runtime.block_on(counts(&backend))?;
            if next_kill <= KILLS_MIN && counts.succeeded >= self.step(next_kill, KILLS_MIN) {
                weather.kill_one(fleet)?;
                next_kill += 1;
            }
            let due = self.step(next_crash, self.crashes);
            if place.has_server() && next_crash <= self.crashes && counts.succeeded >= due {
                place.crash(Duration::from_millis(weather.dice.u64(0..1_500)))?;
                weather.crashed += 1;
                next_crash += 1;
            }
            if pushing.is_finished() && counts.live() == 0 && counts.succeeded > 0 {
                break;
            }
        }
        let ids = runtime.block_on(pushing)??;
        let took = began.elapsed();
        let report = weather.end(took)?;
        runtime.block_on(compare(&backend, &ids))?;
        let runs = Runs::read(&fleet.ledger())?;
        let missing = runs.missing(self.tasks);
        ensure!(
            missing.is_empty(),
            "{} tasks never ran, such as {:?}",
            missing.len(),
            &missing[..missing.len().min(5)]
        );
        let repeats = runs.repeats();
        ensure!(
            repeats <= report.repeats_max,
            "{repeats} runs are repeats, and only {} tasks were in flight at {} kills, {} freezes and {} crashes",
            report.repeats_max,
            report.killed,
            report.frozen,
            report.crashed
        );
        Ok(Report { repeats, ..report })
    }
}

/// What is done to the workers.
struct Weather {
    dice: Rng,
    workers: Vec<Worker>,
    /// The worker that is frozen, and until when.
    frozen: Option<(usize, Instant)>,
    next_at: Instant,
    killed: u32,
    froze: u32,
    crashed: u32,
}

impl Weather {
    fn new(storm: &Storm, fleet: &mut Fleet) -> Result<Self> {
        let workers = (0..WORKERS).map(|_| fleet.worker(&[])).collect::<Result<_>>()?;
        let dice = Rng::with_seed(storm.seed);
        Ok(Self { dice, workers, frozen: None, next_at: Instant::now(), killed: 0, froze: 0, crashed: 0 })
    }

    /// Does what is due, and waits a moment.
    fn turn(&mut self, fleet: &mut Fleet) -> Result<()> {
        // tidy: allow(sleep): the pause between two looks at other processes
        std::thread::sleep(LOOK);
        for worker in &mut self.workers {
            if !worker.runs()? {
                *worker = fleet.worker(&[])?;
            }
        }
        if let Some((index, until)) = self.frozen
            && until <= Instant::now()
        {
            self.workers[index].thaw()?;
            self.frozen = None;
        }
        if self.next_at > Instant::now() {
            return Ok(());
        }
        self.next_at = Instant::now() + Duration::from_millis(self.dice.u64(150..900));
        let index = self.dice.usize(0..WORKERS);
        if self.frozen.is_some_and(|(frozen, _)| frozen == index) {
            return Ok(());
        }
        if self.dice.u8(0..3) == 0 && self.frozen.is_none() {
            // Longer than its lease now and then: another worker takes its tasks meanwhile.
            self.workers[index].freeze()?;
            self.frozen = Some((index, Instant::now() + Duration::from_millis(self.dice.u64(200..8_000))));
            self.froze += 1;
        } else {
            self.kill(index, fleet)?;
        }
        Ok(())
    }

    /// Kills a worker that is not frozen.
    fn kill_one(&mut self, fleet: &mut Fleet) -> Result<()> {
        let frozen = self.frozen.map(|(index, _)| index);
        let index = (0..WORKERS).find(|index| Some(*index) != frozen).unwrap_or(0);
        self.kill(index, fleet)
    }

    fn kill(&mut self, index: usize, fleet: &mut Fleet) -> Result<()> {
        let fresh = fleet.worker(&[])?;
        std::mem::replace(&mut self.workers[index], fresh).kill()?;
        self.killed += 1;
        Ok(())
    }

    /// Ends the workers in order, and says what was in flight at most whenever something was taken away.
    fn end(mut self, took: Duration) -> Result<Report> {
        if let Some((index, _)) = self.frozen.take() {
            self.workers[index].thaw()?;
        }
        for worker in self.workers {
            let code = worker.end()?;
            // One that began while the server was away has left: nobody has looked after it since.
            ensure!(matches!(code, Some(0 | NO_STORE)), "a worker does not end in order, but with {code:?}");
        }
        let of_one = u64::from(self.killed + self.froze) * SLOTS as u64;
        let of_all = u64::from(self.crashed) * (SLOTS * WORKERS) as u64;
        Ok(Report {
            killed: self.killed,
            frozen: self.froze,
            crashed: self.crashed,
            repeats: 0,
            repeats_max: of_one + of_all,
            took,
        })
    }
}

/// Pushes every task, each batch again and again until the store has said that it has it.
async fn push_all(backend: Arc<dyn Backend>, tasks: u32) -> Result<Vec<TaskId>> {
    let name = TaskName::known("chaos.count");
    let mut ids = Vec::new();
    for from in (0..tasks).step_by(BATCH) {
        let envelopes = (from..tasks.min(from + BATCH as u32))
            .map(|number| {
                Ok(Envelope::new(
                    name.clone(),
                    QueueName::default(),
                    Args::of(&serde_json::json!({ "number": number }))?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        ids.extend(envelopes.iter().map(|envelope| envelope.id.clone()));
        let push = Push { envelopes, groups: Vec::new() };
        patiently(|| backend.push(&push)).await?;
    }
    Ok(ids)
}

async fn counts(backend: &Arc<dyn Backend>) -> Result<QueueCounts> {
    Ok(patiently(|| backend.counts()).await?.total())
}

/// Every task succeeded with its own number, and each is counted once.
async fn compare(backend: &Arc<dyn Backend>, ids: &[TaskId]) -> Result<()> {
    let mut number = 0_u32;
    for batch in ids.chunks(BATCH_MAX) {
        for record in patiently(|| backend.find(batch)).await? {
            let record = record.with_context(|| format!("the store has lost task {number}"))?;
            ensure!(record.state == State::Succeeded, "task {number} is {} ({:?})", record.state, record.failure);
            let result = record.result.map(|result| result.as_str().to_owned());
            ensure!(result == Some(number.to_string()), "task {number} has the result {result:?}");
            number += 1;
        }
    }
    let counts = counts(backend).await?;
    ensure!(counts.succeeded == u64::from(number), "{number} tasks ended, {} are counted", counts.succeeded);
    ensure!((counts.dead, counts.cancelled, counts.expired) == (0, 0, 0), "some ended otherwise: {counts:?}");
    Ok(())
}

/// Asks until the store answers.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(mut ask: impl FnMut() -> F) -> Result<T> {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.is_transient() && began.elapsed() < PATIENCE => {
                // tidy: allow(sleep): a server that is away tells nobody when it is back
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
