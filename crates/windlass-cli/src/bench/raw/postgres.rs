//! What PostgreSQL itself allows, over `tokio-postgres`, with prepared statements.
//!
//! **The yardstick: ack of the last batch and claim of the next in one statement, one commit ([`TURN`]).** The table
//! has the columns that a claim and a settle need: a place in the queue that is the primary key, id, queue, state,
//! lease, fence, attempt and body, with two partial indices: ready tasks by queue and place, running ones by the end of
//! their lease. A turn deletes what was claimed before, by place and fence, and claims the first ready ones that nobody
//! else has locked, in their order: state, lease by the server's clock, fence and attempt are updated; place, fence, id
//! and body are read. Each connection takes turns until nothing is left. Statistics are fresh (`ANALYZE`) when it
//! begins, as they are in a store that has been at work.
//!
//! **Enqueue**: one `INSERT` of `unnest()` for each batch; single rows on several connections at once, each its own
//! commit.
//!
//! **Wake-up**: at a steady rate, one statement inserts a row and notifies; a connection that listens hears of it.
//!
//! What none of them does: unique ids, results, counts, priorities, retries, flows, decoding, handlers. How durable a
//! commit is, is the server's setting (`synchronous_commit`, `fsync`), the same as for the store.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls, Row, Statement};

use super::Load;
use crate::bench::server::{Cpu, without_parameters};
use crate::bench::stats::Histogram;
use crate::bench::{bed, machine};
use crate::exit::{Exit, Problem};

/// A server that says nothing for this long never will.
const PATIENCE: Duration = Duration::from_secs(10);

const TABLE: &str = "\
CREATE TABLE task (seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id bytea NOT NULL, queue int NOT NULL, \
    state smallint NOT NULL, lease timestamptz, fence int NOT NULL DEFAULT 0, attempt int NOT NULL DEFAULT 0, \
    body text NOT NULL);
CREATE INDEX task_ready ON task (queue, seq) WHERE state = 1;
CREATE INDEX task_lease ON task (lease) WHERE state = 2;";

const PUSH: &str = "INSERT INTO task (id, queue, state, body) SELECT id, 1, 1, body FROM unnest($1::bytea[], $2::text[]) AS new (id, body)";

/// Ends the last batch and claims the next.
const TURN: &str = "\
WITH ended AS (
    DELETE FROM task USING unnest($1::bigint[], $2::int[]) AS held (seq, fence)
    WHERE task.seq = held.seq AND task.fence = held.fence AND task.state = 2
), next AS (
    SELECT seq FROM task WHERE queue = 1 AND state = 1 ORDER BY seq LIMIT $3 FOR UPDATE SKIP LOCKED
)
UPDATE task SET state = 2, lease = now() + interval '30 s', fence = fence + 1, attempt = attempt + 1
FROM next WHERE task.seq = next.seq RETURNING task.seq, task.fence, task.id, task.body";

const INSERT_AND_NOTIFY: &str = "\
WITH new AS (INSERT INTO task (id, queue, state, body) VALUES ($1, 1, 1, $2) RETURNING seq) \
SELECT pg_notify($3, $4) FROM new";

/// A schema of its own in a database.
pub(super) struct Room {
    url: String,
    schema: String,
}

impl Room {
    /// Makes the schema and the table.
    pub(super) async fn new(url: &str, schema: &str) -> Result<Self, Problem> {
        let client = connect(url).await?;
        let made = client.batch_execute(&format!("CREATE SCHEMA {schema}; SET search_path TO {schema}; {TABLE}")).await;
        made.map_err(problem)?;
        Ok(Self { url: url.to_owned(), schema: schema.to_owned() })
    }

    async fn connect(&self) -> Result<Client, Problem> {
        let client = connect(&self.url).await?;
        client.batch_execute(&format!("SET search_path TO {}", self.schema)).await.map_err(problem)?;
        Ok(client)
    }

    async fn connections(&self, count: usize) -> Result<Vec<Client>, Problem> {
        try_join_all((0..count).map(|_| self.connect())).await
    }

    /// Pushes the tasks of a load over its connections, and answers for how long.
    pub(super) async fn push(&self, load: &Load) -> Result<Duration, Problem> {
        let clients = self.connections(load.connections).await?;
        let statements = prepare(&clients, PUSH).await?;
        let batches: Vec<_> = load.batches(load.push_batch).collect();
        let began = Instant::now();
        let mine = |worker: usize| batches.iter().skip(worker).step_by(clients.len()).cloned();
        try_join_all(clients.iter().zip(&statements).enumerate().map(|(worker, (client, push))| async move {
            for numbers in mine(worker) {
                let ids: Vec<Vec<u8>> = numbers.clone().map(super::id).map(Vec::from).collect();
                let bodies: Vec<&str> = numbers.map(|_| load.body.as_str()).collect();
                client.execute(push, &[&ids, &bodies]).await?;
            }
            Ok::<_, Error>(())
        }))
        .await
        .map_err(problem)?;
        let took = began.elapsed();
        clients[0].batch_execute("ANALYZE task").await.map_err(problem)?;
        Ok(took)
    }

    /// Drains them over this many connections; answers how many there were, and for how long.
    pub(super) async fn drain(&self, batch: usize, connections: usize) -> Result<(u64, Duration), Problem> {
        let clients = self.connections(connections).await?;
        let statements = prepare(&clients, TURN).await?;
        let began = Instant::now();
        let done = try_join_all(clients.iter().zip(&statements).map(|(client, turn)| async move {
            let (mut places, mut fences): (Vec<i64>, Vec<i32>) = (Vec::new(), Vec::new());
            let mut done = 0;
            loop {
                let rows = client.query(turn, &[&places, &fences, &(batch as i64)]).await?;
                done += places.len() as u64;
                places.clear();
                fences.clear();
                for row in &rows {
                    let (_, _): (&[u8], &str) = (row.try_get(2)?, row.try_get(3)?);
                    places.push(row.try_get(0)?);
                    fences.push(row.try_get(1)?);
                }
                if rows.is_empty() {
                    return Ok::<u64, Error>(done);
                }
            }
        }))
        .await
        .map_err(problem)?;
        Ok((done.iter().sum(), began.elapsed()))
    }

    /// From before an insert with a notification to its arrival at a listener, in microseconds.
    pub(super) async fn wake_ups(&self, tasks: usize, every: Duration) -> Result<Histogram, Problem> {
        let channel = format!("{}_bell", self.schema);
        let (sender, mut heard) = mpsc::unbounded_channel();
        let (listener, mut connection) = config(&self.url)?.connect(NoTls).await.map_err(problem)?;
        let listening = tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(notification) = message {
                    let sent_at: i64 = notification.payload().parse().unwrap_or_default();
                    let _ = sender.send((bed::now().as_micros() - sent_at).max(0) as u64);
                }
            }
        });
        listener.batch_execute(&format!("LISTEN {channel}")).await.map_err(problem)?;
        let client = self.connect().await?;
        let notify = client.prepare(INSERT_AND_NOTIFY).await.map_err(problem)?;
        let mut times = Histogram::default();
        let mut next = Instant::now();
        for number in 0..tasks {
            tokio::time::sleep_until(next.into()).await;
            next += every;
            let (id, sent_at) = (Vec::from(super::id(number)), bed::now().as_micros().to_string());
            client.execute(&notify, &[&id, &"{}", &channel, &sent_at]).await.map_err(problem)?;
            let after = tokio::time::timeout(PATIENCE, heard.recv()).await.ok().flatten();
            times.add(after.ok_or_else(|| {
                Problem::new(Exit::TimedOut, "a notification has not arrived within 10 s", "run it again with `-v`")
            })?);
        }
        drop(listener);
        listening.abort();
        Ok(times)
    }

    /// How many rows there are; for tests.
    #[cfg(test)]
    pub(super) async fn rows(&self) -> i64 {
        let client = self.connect().await.unwrap();
        client.query_one("SELECT count(*) FROM task", &[]).await.unwrap().get(0)
    }
}

async fn prepare(clients: &[Client], sql: &str) -> Result<Vec<Statement>, Problem> {
    try_join_all(clients.iter().map(|client| client.prepare(sql))).await.map_err(problem)
}

fn config(url: &str) -> Result<Config, Problem> {
    let ours = ["schema", "connections", "sslmode", "sslrootcert"];
    // The parser's own message may repeat the URL, and with it the password.
    let mut config: Config = without_parameters(url, &ours).parse().map_err(|_| {
        Problem::usage("the URL of PostgreSQL cannot be read", "write postgres://USER@HOST:5432/DATABASE")
    })?;
    config.connect_timeout(PATIENCE).application_name("windlass bench");
    Ok(config)
}

async fn connect(url: &str) -> Result<Client, Problem> {
    let (client, connection) = config(url)?.connect(NoTls).await.map_err(problem)?;
    // Its error is that of the statement which waits for an answer.
    tokio::spawn(connection);
    Ok(client)
}

fn problem(error: Error) -> Problem {
    let exit = if error.as_db_error().is_none() { Exit::Unreachable } else { Exit::Failed };
    let text = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
    let text = windlass_core::redact::text(&text);
    Problem::new(
        exit,
        format_args!("PostgreSQL alone cannot be measured: {text}"),
        "check that it answers without TLS and that you may create a schema: psql URL -c 'select 1'",
    )
}

/// Drops a schema, or all whose names begin with what is before a `*`.
pub(in crate::bench) async fn remove(url: &str, room: &str) -> Result<(), Problem> {
    let client = connect(url).await?;
    let names: Vec<String> = match room.strip_suffix('*') {
        None => vec![room.to_owned()],
        Some(prefix) => {
            let sql = "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname::text, $1)";
            let rows = client.query(sql, &[&prefix]).await.map_err(problem)?;
            rows.iter().map(|row: &Row| row.get(0)).collect()
        }
    };
    for name in names {
        client.batch_execute(&format!("DROP SCHEMA IF EXISTS {name} CASCADE")).await.map_err(problem)?;
    }
    Ok(())
}

/// CPU time that the server's processes have used, in seconds; `None` when they are not on this machine.
pub(in crate::bench) async fn cpu(url: &str) -> Result<Cpu, Problem> {
    let client = connect(url).await?;
    let row = client.query_one("SELECT pg_backend_pid()", &[]).await.map_err(problem)?;
    let backend: i32 = row.get(0);
    // The connection stays open until its process has been looked at.
    Ok(machine::parent_of_process(backend, "postgres").and_then(machine::cpu_seconds_of_family))
}

/// What decides how fast and how durable it is.
pub(in crate::bench) async fn facts(url: &str) -> Result<Json, Problem> {
    let client = connect(url).await?;
    let sql = "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'), \
               current_setting('shared_buffers'), current_setting('max_wal_size')";
    let row = client.query_one(sql, &[]).await.map_err(problem)?;
    let text = |column: usize| row.get::<_, &str>(column);
    Ok(json!({
        "version": text(0),
        "fsync": text(1),
        "synchronous_commit": text(2),
        "shared_buffers": text(3),
        "max_wal_size": text(4),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(tasks: usize, connections: usize) -> Load {
        Load { tasks, body: "{}".to_owned(), push_batch: 30, batch: 40, connections }
    }

    fn schema() -> String {
        format!("windlass_bench_test_{:08x}", fastrand::u32(..))
    }

    #[tokio::test]
    async fn one_statement_drains_everything_that_was_pushed() {
        let (url, schema) = (windlass_servers::postgres_url(), schema());
        let room = Room::new(&url, &schema).await.unwrap();
        for connections in [1, 3] {
            room.push(&load(250, connections)).await.unwrap();
            assert_eq!(room.rows().await, 250);
            assert_eq!(room.drain(40, connections).await.unwrap().0, 250);
            assert_eq!(room.rows().await, 0);
        }
        remove(&url, &schema).await.unwrap();
    }

    #[tokio::test]
    async fn every_wake_up_is_timed_and_the_schema_is_removed() {
        let (url, schema) = (windlass_servers::postgres_url(), schema());
        let room = Room::new(&url, &schema).await.unwrap();
        assert_eq!(room.wake_ups(20, Duration::from_millis(1)).await.unwrap().count(), 20);
        remove(&url, &format!("{}*", &schema[..schema.len() - 1])).await.unwrap();
        let client = connect(&url).await.unwrap();
        let left = client.query("SELECT FROM pg_namespace WHERE nspname = $1", &[&schema]).await.unwrap();
        assert!(left.is_empty());
    }

    #[tokio::test]
    async fn a_server_on_this_machine_says_what_it_has_used_and_how_it_syncs() {
        let url = windlass_servers::postgres_url();
        assert!(cpu(&url).await.unwrap().is_some_and(|seconds| seconds > 0.0));
        assert!(facts(&url).await.unwrap()["synchronous_commit"].is_string());
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_a_problem_without_its_password() {
        let problem = cpu("postgres://root:hunter2@127.0.0.1:1/d").await.unwrap_err();
        assert_eq!(problem.exit_code(), Exit::Unreachable);
        assert!(!format!("{problem:?}").contains("hunter2"));
    }
}
