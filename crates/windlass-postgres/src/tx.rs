//! One transaction on a borrowed connection: what the verbs work with that cannot be said in one statement for many.
//!
//! Changes of the counts, and whom to wake, are collected here and written once, just before the commit.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};
use windlass_core::{QueueName, State, StoreError, Timestamp};

use crate::Shared;
use crate::connection::{Connection, Values};
use crate::errors::{Fault, Remedy};
use crate::lanes::{Lanes, Lent, TRIES, pause};
use crate::rows;
use crate::settle::{self, Back, Backs, End};
use crate::wake::Effects;

/// A transaction in progress. One that is dropped before its end is rolled back.
#[derive(Debug)]
pub(crate) struct Tx<'c> {
    on: On<'c>,
    /// The store's time when it began.
    pub(crate) now: Timestamp,
    /// Whom the commit wakes.
    pub(crate) effects: Effects,
    counts: HashMap<QueueName, [i64; State::ALL.len()]>,
    finished: HashMap<QueueName, i64>,
}

/// Whose transaction it is.
#[derive(Debug)]
enum On<'c> {
    /// Ours, on a borrowed connection.
    Lent(Lent),
    /// That of a lane, which commits with what else it does.
    Lane(&'c Connection<'static>),
    /// The application's: it commits.
    Theirs(Connection<'c>),
}

/// How a transaction ended.
pub(crate) enum Ended<T> {
    /// It is committed.
    Done(T),
    /// Others were in the way and nothing has happened: the same once more.
    Again,
}

/// The time: `$1` the given one.
pub(crate) const NOW: &str = "SELECT coalesce($1::bigint, windlass.micros())";

/// The answer of [`NOW`].
pub(crate) fn time_of(rows: &[Row]) -> Result<Timestamp, Fault> {
    let row = rows.first().ok_or_else(|| Fault::damaged("clock", "it says nothing"))?;
    rows::value(row, 0).map(Timestamp::from_micros)
}

/// Runs work in a transaction, again and again while others are in the way.
macro_rules! transaction {
    ($store:expr, $tx:ident => $work:expr) => {{
        let mut tries = 0;
        loop {
            #[allow(unused_mut, reason = "some work only reads")]
            let mut $tx = $crate::tx::Tx::begin(&$store.lanes).await?;
            let outcome: Result<_, $crate::errors::Fault> = async { $work }.await;
            match $tx.end(&$store.shared, outcome, &mut tries).await? {
                $crate::tx::Ended::Done(answer) => break answer,
                $crate::tx::Ended::Again => {}
            }
        }
    }};
}
pub(crate) use transaction;

impl<'c> Tx<'c> {
    /// Begins a transaction.
    pub(crate) async fn begin(lanes: &Lanes) -> Result<Self, StoreError> {
        let mut lent = lanes.lend().await?;
        // Until it has ended, the connection is of no use to anybody else.
        lent.spoiled = true;
        let given = lanes.shared.given_now();
        let connection = lent.connection();
        let values: Values<'_> = &[&given];
        let (began, now) = tokio::join!(biased; connection.run("BEGIN"), connection.query(NOW, values));
        match began.and(now).and_then(|rows| time_of(&rows)) {
            Ok(now) => Ok(Self::on(On::Lent(lent), now)),
            Err(fault) => Err(fault.to_store_error(&lanes.shared.address.shown)),
        }
    }

    /// Works in the application's own transaction. [`Tx::flush`] ends the work; the application commits.
    pub(crate) async fn of_application(client: &'c Client, schema: &str) -> Result<Self, Fault> {
        let connection = Connection::of_application(client, schema);
        let now = time_of(&connection.query(NOW, &[&None::<i64>]).await?)?;
        Ok(Self::on(On::Theirs(connection), now))
    }

    /// Works in the transaction of a lane. [`Tx::flush`] ends the work; the lane commits. Whoever works sets the time.
    pub(crate) fn of_lane(connection: &'c Connection<'static>) -> Self {
        Self::on(On::Lane(connection), Timestamp::MIN)
    }

    fn on(on: On<'c>, now: Timestamp) -> Self {
        Self { on, now, effects: Effects::default(), counts: HashMap::new(), finished: HashMap::new() }
    }

    /// Commits what went well and rolls the rest back.
    pub(crate) async fn end<T>(
        mut self,
        shared: &Shared,
        outcome: Result<T, Fault>,
        tries: &mut u32,
    ) -> Result<Ended<T>, StoreError> {
        let committed = match outcome {
            Ok(answer) => match self.flush().await {
                Ok(()) => self.connection().run("COMMIT").await.map(|()| answer),
                Err(fault) => Err(fault),
            },
            Err(fault) => Err(fault),
        };
        let fault = match committed {
            Ok(answer) => {
                self.sound();
                shared.bell.ring(&self.effects);
                shared.changed();
                return Ok(Ended::Done(answer));
            }
            Err(fault) => fault,
        };
        let remedy = fault.remedy();
        if remedy != Remedy::Reconnect && self.connection().run("ROLLBACK").await.is_ok() {
            self.sound();
        }
        if remedy == Remedy::Repeat && *tries < TRIES {
            *tries += 1;
            drop(self);
            pause(*tries).await;
            return Ok(Ended::Again);
        }
        Err(fault.to_store_error(&shared.address.shown))
    }

    /// The connection can be given back.
    fn sound(&mut self) {
        match &mut self.on {
            On::Lent(lent) => lent.spoiled = false,
            On::Lane(_) | On::Theirs(_) => {}
        }
    }

    /// The connection, for statements that the lanes use as well.
    pub(crate) fn connection(&self) -> &Connection<'c> {
        match &self.on {
            On::Lent(lent) => lent.connection(),
            On::Lane(connection) => connection,
            On::Theirs(connection) => connection,
        }
    }

    /// Runs a statement, prepared once for the life of the connection.
    pub(crate) async fn query(&self, sql: &'static str, values: Values<'_>) -> Result<Vec<Row>, Fault> {
        self.connection().query(sql, values).await
    }

    /// Runs a statement and answers how many rows it changed.
    pub(crate) async fn execute(&self, sql: &'static str, values: Values<'_>) -> Result<u64, Fault> {
        self.connection().execute(sql, values).await
    }

    /// Ends tasks; answers which, by row and fence.
    pub(crate) async fn end_tasks(&mut self, ends: &[&End]) -> Result<HashSet<(i64, i64)>, Fault> {
        let ended = settle::end(self.connection(), Some(self.now.as_micros()), ends).await?;
        let applied = ended.applied;
        let ids = ends.iter().filter(|end| applied.contains(&(end.seq, end.fence))).map(|end| end.id.clone());
        self.effects.ended.extend(ids);
        self.effects.all |= ended.frees;
        Ok(applied)
    }

    /// Sends running tasks back.
    pub(crate) async fn send_back(&mut self, backs: &[&Back]) -> Result<Backs, Fault> {
        let done = settle::send_back(self.connection(), Some(self.now.as_micros()), backs).await?;
        self.effects.queues.extend(done.queues.iter().cloned());
        self.effects.scheduled |= done.scheduled;
        self.effects.all |= done.frees;
        Ok(done)
    }

    /// Notes that a task of `queue` left a state; `None` for a new or a forgotten one.
    ///
    /// Of the states that end a task, only the dead letters are counted down; the others count what ever ended so.
    pub(crate) fn count(&mut self, queue: &QueueName, from: Option<State>, to: Option<State>) {
        let counts = self.counts.entry(queue.clone()).or_default();
        if let Some(from) = from
            && (!from.is_final() || from == State::Dead)
        {
            counts[rows::state_code(from) as usize] -= 1;
        }
        if let Some(to) = to {
            counts[rows::state_code(to) as usize] += 1;
        }
    }

    /// Notes that rows of the table `finished` were removed.
    pub(crate) fn count_removed(&mut self, queue: &QueueName, rows: i64) {
        *self.finished.entry(queue.clone()).or_default() -= rows;
    }

    /// Writes what was collected.
    pub(crate) async fn flush(&mut self) -> Result<(), Fault> {
        let mut changes: HashMap<&QueueName, [i64; 9]> = HashMap::new();
        for (queue, counts) in &self.counts {
            changes.entry(queue).or_default()[..State::ALL.len()].copy_from_slice(counts);
        }
        for (queue, rows) in &self.finished {
            changes.entry(queue).or_default()[State::ALL.len()] = *rows;
        }
        if !changes.is_empty() {
            let queues: Vec<&str> = changes.keys().map(|queue| queue.as_str()).collect();
            let column = |index: usize| -> Vec<i64> { changes.values().map(|counts| counts[index]).collect() };
            self.execute(
                "INSERT INTO windlass.delta (queue, scheduled, ready, running, parked, succeeded, dead, cancelled, expired, finished) \
                 SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], \
                 $8::bigint[], $9::bigint[], $10::bigint[])",
                &[
                    &queues,
                    &column(0),
                    &column(1),
                    &column(2),
                    &column(3),
                    &column(4),
                    &column(5),
                    &column(6),
                    &column(7),
                    &column(8),
                ],
            )
            .await?;
        }
        let notes = self.effects.notes();
        if !notes.is_empty() {
            self.query(
                "SELECT pg_notify('@channel', r.note)::text FROM unnest($1::text[]) AS r(note) \
                 WHERE EXISTS (SELECT 1 FROM windlass.waiting WHERE until > windlass.micros())",
                &[&notes],
            )
            .await?;
        }
        Ok(())
    }
}
