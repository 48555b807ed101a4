//! The connections that work: group commit, without a thread and without a timer.
//!
//! 1. wait for a job   2. take everything else that waits
//! 3. `BEGIN`, one statement for each kind of job, `COMMIT`: sent together, answered together
//! 4. answer the jobs, ring the bell
//!
//! So concurrent pushes share one commit, and a worker's settle shares that of its next claim. When a transaction fails for
//! one job's fault, every job runs in a transaction of its own. What cannot be said in one statement for many borrows a
//! connection ([`Lanes::lend`]).

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::warn;
use windlass_core::StoreError;
use windlass_core::backend::{Demand, Renewed};

use crate::claim::{Claimed, PreparedRenewal, Walk};
use crate::connection::Connection;
use crate::errors::{Fault, Remedy};
use crate::push::{Inserted, NewTask};
use crate::settle::{Back, Backs, End};
use crate::turns::{self, Decided};
use crate::tx::Tx;
use crate::wake::Effects;
use crate::{Gates, Shared, claim, push, settle, wide};

/// No further job joins a transaction that changes this many rows.
const ROWS_MAX: usize = 5_000;
/// The most claims in one transaction: each is a statement.
const CLAIMS_MAX: usize = 8;
/// How often a transaction is repeated because others were in the way.
pub(crate) const TRIES: u32 = 8;
/// A job waits this long for a connection before it is unreachable.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to connect, at first and later.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What a lane can do for many callers at once, and lending itself.
#[derive(Debug)]
pub(crate) enum Job {
    Push(Arc<Vec<NewTask>>, Answer<Vec<Inserted>>),
    Settle(Arc<Settling>, Answer<SettledRows>),
    Claim(Arc<Claiming>, Answer<Took>),
    Renew(Arc<Vec<PreparedRenewal>>, Answer<Vec<Renewed>>),
    Lend(Answer<Lent>),
}

/// Verdicts without anything that follows.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    pub(crate) ends: Vec<End>,
    pub(crate) backs: Vec<Back>,
}

/// What a claim asks for.
#[derive(Debug)]
pub(crate) struct Claiming {
    pub(crate) demand: Demand,
    pub(crate) walk: Walk,
}

/// The rows that a settle changed, and those that it must not send back because they are to be cancelled.
#[derive(Debug, Clone, Default)]
pub(crate) struct SettledRows {
    pub(crate) applied: HashSet<i64>,
    pub(crate) marked: HashSet<i64>,
}

/// What a claim found.
#[derive(Debug, Default)]
pub(crate) struct Took {
    pub(crate) claimed: Vec<Claimed>,
    /// Ready tasks that have expired.
    pub(crate) late: Vec<i64>,
    /// How many scheduled tasks it made ready.
    pub(crate) promoted: usize,
    pub(crate) names_paused: bool,
    /// It took nothing, as gates or keys have to be looked at.
    pub(crate) shared: bool,
    /// Of a claim in turns: what the next one should know.
    pub(crate) opens_after: Option<Duration>,
    pub(crate) alone: bool,
    pub(crate) gates: Option<Gates>,
}

impl Job {
    fn rows(&self) -> usize {
        match self {
            Self::Push(tasks, _) => tasks.len(),
            Self::Settle(settling, _) => settling.ends.len() + settling.backs.len(),
            Self::Claim(claiming, _) => claiming.demand.max,
            Self::Renew(renewals, _) => renewals.len(),
            Self::Lend(_) => 0,
        }
    }

    fn goes_in_turns(&self) -> bool {
        matches!(self, Self::Claim(claiming, _) if claiming.walk == Walk::Turns)
    }

    fn nobody_waits(&self) -> bool {
        match self {
            Self::Push(_, answer) => answer.is_closed(),
            Self::Settle(_, answer) => answer.is_closed(),
            Self::Claim(_, answer) => answer.is_closed(),
            Self::Renew(_, answer) => answer.is_closed(),
            Self::Lend(answer) => answer.is_closed(),
        }
    }

    fn fail(self, error: &StoreError) {
        // Nobody hears it when the caller's future was dropped.
        match self {
            Self::Push(_, answer) => drop(answer.send(Err(error.copy()))),
            Self::Settle(_, answer) => drop(answer.send(Err(error.copy()))),
            Self::Claim(_, answer) => drop(answer.send(Err(error.copy()))),
            Self::Renew(_, answer) => drop(answer.send(Err(error.copy()))),
            Self::Lend(answer) => drop(answer.send(Err(error.copy()))),
        }
    }
}

/// Jobs that wait, oldest first.
#[derive(Debug, Default)]
struct Waiting {
    jobs: Mutex<VecDeque<(Instant, Job)>>,
    some: Notify,
    /// A lane claims in turns: others that did so would only wait for it, so such claims wait here.
    turn_taken: AtomicBool,
}

impl Waiting {
    fn add(&self, job: Job) {
        self.jobs.lock().push_back((Instant::now(), job));
        self.some.notify_one();
    }

    async fn until_some(&self) {
        loop {
            if self.jobs.lock().iter().any(|(_, job)| self.can_be_done(job)) {
                return;
            }
            self.some.notified().await;
        }
    }

    fn can_be_done(&self, job: &Job) -> bool {
        !job.goes_in_turns() || !self.turn_taken.load(Ordering::Acquire)
    }

    /// The turn of a lane is over.
    fn give_turn(&self) {
        self.turn_taken.store(false, Ordering::Release);
        self.some.notify_one();
    }

    /// The oldest job that can be done, and those that can share its transaction.
    fn take(&self) -> Vec<Job> {
        let mut jobs = self.jobs.lock();
        jobs.retain(|(_, job)| !job.nobody_waits());
        let first = jobs.iter().position(|(_, job)| self.can_be_done(job));
        let Some((_, first)) = first.and_then(|first| jobs.remove(first)) else { return Vec::new() };
        let mut taken = vec![first];
        if !matches!(taken[0], Job::Lend(_)) {
            let (mut rows, mut claims) = (taken[0].rows(), usize::from(matches!(taken[0], Job::Claim(..))));
            let mut index = 0;
            while let Some((_, job)) = jobs.get(index) {
                let claim = usize::from(matches!(job, Job::Claim(..)));
                if matches!(job, Job::Lend(_))
                    || !self.can_be_done(job)
                    || rows + job.rows() > ROWS_MAX
                    || claims + claim > CLAIMS_MAX
                {
                    index += 1;
                    continue;
                }
                rows += job.rows();
                claims += claim;
                taken.extend(jobs.remove(index).map(|(_, job)| job));
            }
        }
        if taken.iter().any(Job::goes_in_turns) {
            self.turn_taken.store(true, Ordering::Release);
        }
        if !jobs.is_empty() {
            self.some.notify_one();
        }
        taken
    }

    /// Gives up on jobs: all when nothing can help, those that have waited for too long otherwise.
    fn give_up(&self, error: &StoreError) {
        let mut jobs = self.jobs.lock();
        let (lost, rest): (VecDeque<_>, VecDeque<_>) =
            jobs.drain(..).partition(|(since, _)| !error.is_transient() || since.elapsed() >= PATIENCE);
        *jobs = rest;
        drop(jobs);
        for (_, job) in lost {
            job.fail(error);
        }
    }
}

/// The way to the connections. They close when this is dropped.
#[derive(Debug)]
pub(crate) struct Lanes {
    pub(crate) shared: Arc<Shared>,
    waiting: Arc<Waiting>,
    running: Vec<AbortHandle>,
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.running.iter().for_each(AbortHandle::abort);
    }
}

impl Lanes {
    /// Starts as many lanes as the address says; the first uses `first`, the others connect when there is work for them.
    pub(crate) fn start(shared: &Arc<Shared>, first: Connection<'static>) -> Self {
        let waiting = Arc::new(Waiting::default());
        let mut first = Some(first);
        let running = (0..shared.address.connections)
            .map(|_| {
                let lane = Lane { shared: Arc::clone(shared), waiting: Arc::clone(&waiting), connection: first.take() };
                tokio::spawn(lane.run()).abort_handle()
            })
            .collect();
        Self { shared: Arc::clone(shared), waiting, running }
    }

    pub(crate) async fn push(&self, tasks: Arc<Vec<NewTask>>) -> Result<Vec<Inserted>, StoreError> {
        self.ask(|answer| Job::Push(tasks, answer)).await
    }

    pub(crate) async fn settle(&self, settling: Settling) -> Result<SettledRows, StoreError> {
        self.ask(|answer| Job::Settle(Arc::new(settling), answer)).await
    }

    pub(crate) async fn claim(&self, claiming: Claiming) -> Result<Took, StoreError> {
        self.ask(|answer| Job::Claim(Arc::new(claiming), answer)).await
    }

    pub(crate) async fn renew(&self, renewals: Vec<PreparedRenewal>) -> Result<Vec<Renewed>, StoreError> {
        self.ask(|answer| Job::Renew(Arc::new(renewals), answer)).await
    }

    /// Borrows a connection.
    pub(crate) async fn lend(&self) -> Result<Lent, StoreError> {
        self.ask(Job::Lend).await
    }

    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.waiting.add(job(answer));
        answered.await.map_err(|_| {
            StoreError::Unreachable("the runtime that the store was opened on has ended; keep it alive as long".into())
        })?
    }
}

/// A borrowed connection. One that is dropped in the middle of a transaction is closed, which rolls it back.
#[derive(Debug)]
pub(crate) struct Lent {
    connection: Option<Connection<'static>>,
    back: Option<oneshot::Sender<Connection<'static>>>,
    /// Whether a transaction is open, or the connection is of no use for another reason.
    pub(crate) spoiled: bool,
}

impl Lent {
    pub(crate) fn connection(&self) -> &Connection<'static> {
        self.connection.as_ref().unwrap_or_else(|| unreachable!("it is there until it is given back"))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(connection), Some(back), false) = (self.connection.take(), self.back.take(), self.spoiled) {
            // A lane that has ended meanwhile needs no connection.
            drop(back.send(connection));
        }
    }
}

struct Lane {
    shared: Arc<Shared>,
    waiting: Arc<Waiting>,
    connection: Option<Connection<'static>>,
}

impl Lane {
    async fn run(mut self) {
        let mut backoff = BACKOFF;
        loop {
            self.waiting.until_some().await;
            let connection = match self.connection.take().filter(|connection| !connection.is_closed()) {
                Some(connection) => connection,
                None => match Connection::open(&self.shared).await {
                    Ok(connection) => {
                        backoff = BACKOFF;
                        connection
                    }
                    Err(error) => {
                        warn!(%error, "cannot connect to the store");
                        self.waiting.give_up(&error);
                        tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64())).await;
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                        self.waiting.some.notify_one();
                        continue;
                    }
                },
            };
            // A worker asks for its next tasks right after it has settled the last ones: let it get that far.
            tokio::task::yield_now().await;
            self.connection = Box::pin(self.work(connection)).await;
        }
    }

    /// Does what waits; answers the connection when it can be used further.
    async fn work(&self, connection: Connection<'static>) -> Option<Connection<'static>> {
        let mut jobs = self.waiting.take();
        if matches!(jobs.first(), Some(Job::Lend(_))) {
            let Some(Job::Lend(answer)) = jobs.pop() else { return Some(connection) };
            let (back, returned) = oneshot::channel();
            let lent = Lent { connection: Some(connection), back: Some(back), spoiled: false };
            // When the borrower has gone, the connection comes back with the drop of what could not be sent.
            drop(answer.send(Ok(lent)));
            return returned.await.ok();
        }
        if jobs.is_empty() {
            return Some(connection);
        }
        let _turn = jobs.iter().any(Job::goes_in_turns).then(|| MyTurn(&self.waiting));
        if Box::pin(commit(&self.shared, &connection, jobs)).await { Some(connection) } else { None }
    }
}

/// The turn of a lane; given on however it ends.
struct MyTurn<'a>(&'a Waiting);

impl Drop for MyTurn<'_> {
    fn drop(&mut self) {
        self.0.give_turn();
    }
}

/// Does jobs in one transaction and answers them; `false` when the connection is of no use any more.
async fn commit(shared: &Shared, connection: &Connection<'static>, jobs: Vec<Job>) -> bool {
    let mut tries = 0;
    loop {
        let done = Box::pin(Batch::of(&jobs).run(shared, connection)).await;
        let fault = match done {
            Ok(done) => {
                done.answer(jobs);
                return true;
            }
            Err(fault) => fault,
        };
        let remedy = fault.remedy();
        if remedy == Remedy::Reconnect {
            let error = fault.to_store_error(&shared.address.shown);
            fail_all(jobs, &error);
            return false;
        }
        if connection.run("ROLLBACK").await.is_err() {
            let error = fault.to_store_error(&shared.address.shown);
            fail_all(jobs, &error);
            return false;
        }
        if remedy == Remedy::Repeat && tries < TRIES {
            tries += 1;
            pause(tries).await;
            continue;
        }
        if jobs.len() > 1 {
            // One of them cannot be done; the others can.
            let mut rest = jobs.into_iter();
            while let Some(job) = rest.next() {
                if !Box::pin(commit(shared, connection, vec![job])).await {
                    let error = StoreError::Unreachable("the connection was lost".into());
                    fail_all(rest, &error);
                    return false;
                }
            }
            return true;
        }
        let error = fault.to_store_error(&shared.address.shown);
        fail_all(jobs, &error);
        return true;
    }
}

fn fail_all(jobs: impl IntoIterator<Item = Job>, error: &StoreError) {
    for job in jobs {
        job.fail(error);
    }
}

/// Lets the others go first; who collides twice must not do so in step.
pub(crate) async fn pause(tries: u32) {
    let longest = Duration::from_millis(2) * 2_u32.saturating_pow(tries.min(7));
    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
}

/// The statements of some jobs, and their values.
#[derive(Default)]
struct Batch<'a> {
    tasks: Vec<&'a NewTask>,
    /// Which job each of them is part of.
    pushes: Vec<i32>,
    ends: Vec<&'a End>,
    backs: Vec<&'a Back>,
    claims: Vec<&'a Claiming>,
    renewals: Vec<&'a PreparedRenewal>,
}

/// What the statements answered.
struct Done {
    stored: Vec<Inserted>,
    ended: HashSet<(i64, i64)>,
    sent_back: Backs,
    took: Vec<Took>,
    renewed: Vec<Renewed>,
}

impl<'a> Batch<'a> {
    fn of(jobs: &'a [Job]) -> Self {
        let mut batch = Self::default();
        for (number, job) in jobs.iter().enumerate() {
            match job {
                Job::Push(tasks, _) => {
                    batch.tasks.extend(tasks.iter());
                    batch.pushes.resize(batch.tasks.len(), number as i32);
                }
                Job::Settle(settling, _) => {
                    batch.ends.extend(&settling.ends);
                    batch.backs.extend(&settling.backs);
                }
                Job::Claim(claiming, _) => batch.claims.push(claiming),
                Job::Renew(renewals, _) => batch.renewals.extend(renewals.iter()),
                Job::Lend(_) => unreachable!("a borrowed connection is no part of a transaction"),
            }
        }
        // Everybody locks rows in one order.
        batch.ends.sort_by_key(|end| end.seq);
        batch.backs.sort_by_key(|back| back.seq);
        batch
    }

    /// One round trip: every statement is sent before the first is answered. Claims in turns need two more.
    async fn run(self, shared: &Shared, connection: &Connection<'static>) -> Result<Done, Fault> {
        let now = shared.given_now();
        let mut effects = Effects::default();
        let in_turns: Vec<&Demand> = self
            .claims
            .iter()
            .filter(|claiming| claiming.walk == Walk::Turns)
            .map(|claiming| &claiming.demand)
            .collect();
        if !in_turns.is_empty() {
            connection.prepare_all(&turns::SENT_TOGETHER).await?;
        }
        let passes = wide::passes(&self.claims);
        if passes.iter().any(Option::is_some) {
            connection.prepare_all(&wide::SENT_TOGETHER).await?;
        }
        let takes = self
            .claims
            .iter()
            .zip(&passes)
            .map(|(claiming, pass)| claim::take(connection, now, claiming, pass.as_ref()));
        let mut tx = Tx::of_lane(connection);
        let ((), began, stored, known, ended, sent_back, renewed, promoted, took, shares) = tokio::join!(
            biased;
            wide::reserve(connection, now, &self.claims, &passes),
            connection.run("BEGIN"),
            push::insert(connection, now, &self.tasks, Some(&self.pushes)),
            push::forget_known(connection, &self.tasks),
            settle::end(connection, now, &self.ends),
            settle::send_back(connection, now, &self.backs),
            claim::renew(connection, now, &self.renewals),
            claim::promote(connection, now, if self.claims.is_empty() { 0 } else { claim::PROMOTE_MAX }),
            join_all(takes),
            finish(shared, &mut tx, &in_turns),
        );
        began?;
        let stored = push::stored(&self.tasks, Some(&self.pushes), &stored?, &known?, &mut effects);
        let ended = ended?;
        effects.all |= ended.frees;
        let ended = ended.applied;
        let sent_back = sent_back?;
        let renewed = renewed?;
        let promoted = promoted?;
        let mut took = took.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut shares = shares?.into_iter();
        effects.add(std::mem::take(&mut tx.effects));
        for (took, claiming) in took.iter_mut().zip(&self.claims) {
            if claiming.walk == Walk::Turns {
                *took = shares.next().unwrap_or_default();
            }
            took.promoted = promoted.tasks;
            took.names_paused = promoted.names_paused;
        }
        shared.names_paused(promoted.names_paused, !self.claims.is_empty());
        effects.queues.extend(promoted.queues);
        effects.queues.extend(sent_back.queues.iter().cloned());
        effects.scheduled |= sent_back.scheduled;
        effects.all |= sent_back.frees;
        effects
            .ended
            .extend(self.ends.iter().filter(|end| ended.contains(&(end.seq, end.fence))).map(|end| end.id.clone()));
        shared.bell.ring(&effects);
        shared.changed();
        Ok(Done { stored, ended, sent_back, took, renewed })
    }
}

/// Claims in turns, one after the other, and commits.
async fn finish(shared: &Shared, tx: &mut Tx<'_>, in_turns: &[&Demand]) -> Result<Vec<Took>, Fault> {
    let mut shares = Vec::with_capacity(in_turns.len());
    let mut last = None;
    for demand in in_turns {
        if let Some((mut decided, demand)) = last.take() {
            shares.push(written(&mut decided, tx, demand).await?);
        }
        let read = Box::pin(turns::read(tx, shared, demand)).await?;
        last = Some((Box::pin(turns::decide(tx, read, demand)).await?, *demand));
    }
    tx.flush().await?;
    let Some((mut decided, demand)) = last else {
        tx.connection().run("COMMIT").await?;
        return Ok(shares);
    };
    let tx: &Tx<'_> = tx;
    let (took, committed) = tokio::join!(biased; written(&mut decided, tx, demand), tx.connection().run("COMMIT"));
    shares.push(took?);
    committed.map(|()| shares)
}

async fn written(decided: &mut Decided, tx: &Tx<'_>, demand: &Demand) -> Result<Took, Fault> {
    let claimed = decided.write(tx, demand).await?;
    let Decided { opens_after, alone, gates, .. } = *decided;
    Ok(Took { claimed, opens_after, alone, gates: Some(gates), ..Took::default() })
}

impl Done {
    fn answer(mut self, jobs: Vec<Job>) {
        let (mut stored, mut renewed) = (self.stored.into_iter(), self.renewed.into_iter());
        let mut took = self.took.into_iter();
        for job in jobs {
            // Nobody hears it when the caller's future was dropped; the change stands.
            match job {
                Job::Push(tasks, answer) => drop(answer.send(Ok(stored.by_ref().take(tasks.len()).collect()))),
                Job::Settle(settling, answer) => {
                    let mut rows = SettledRows::default();
                    for end in &settling.ends {
                        // Of equal receipts in two jobs the first counts, as in the statement.
                        if self.ended.remove(&(end.seq, end.fence)) {
                            rows.applied.insert(end.seq);
                        }
                    }
                    for back in &settling.backs {
                        if self.sent_back.applied.remove(&(back.seq, back.fence)) {
                            rows.applied.insert(back.seq);
                        } else if self.sent_back.marked.contains(&(back.seq, back.fence)) {
                            rows.marked.insert(back.seq);
                        }
                    }
                    drop(answer.send(Ok(rows)));
                }
                Job::Claim(_, answer) => drop(answer.send(Ok(took.next().unwrap_or_default()))),
                Job::Renew(renewals, answer) => {
                    drop(answer.send(Ok(renewed.by_ref().take(renewals.len()).collect())));
                }
                Job::Lend(_) => unreachable!("a borrowed connection is no part of a transaction"),
            }
        }
    }
}
