//! The versions of the tables, and the way from one to the next.
//!
//! Each step is a file of SQL and one transaction; an advisory lock lets one process at a time migrate. A step may only add
//! what older programs do not mind: old and new workers run side by side during a rollout.

use std::hash::{DefaultHasher, Hash, Hasher};

use tokio_postgres::Client;
use windlass_core::StoreError;

use crate::address::Address;
use crate::errors::store_error;

/// The version that this program writes and reads.
pub const SCHEMA_VERSION: u32 = 5;

/// One step from a version to the next, applied in one transaction.
struct Migration {
    /// What it does, for `pending`.
    what: &'static str,
    sql: &'static str,
}

/// `MIGRATIONS[n]` leads from version n to n + 1. Published ones never change.
const MIGRATIONS: [Migration; SCHEMA_VERSION as usize] = [
    Migration { what: "create the tables", sql: include_str!("sql/0001_tables.sql") },
    Migration { what: "add limits, memos and notes", sql: include_str!("sql/0002_limits_memos_notes.sql") },
    Migration { what: "add completion for other drivers", sql: include_str!("sql/0003_transactions.sql") },
    Migration { what: "make claims by key quick", sql: include_str!("sql/0004_claims_by_key.sql") },
    Migration { what: "find what ended without success by its time", sql: include_str!("sql/0005_ends_by_time.sql") },
];

/// The migrations that a schema needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The version of the schema; 0 when it has none of our tables, or does not exist.
    pub version: u32,
    /// What is to be done, in this order, in words.
    pub steps: Vec<&'static str>,
    /// The same as SQL, for those who apply it themselves: whole transactions, to be run in this order.
    pub sql: Vec<String>,
}

/// The channel of notifications of a schema.
pub(crate) fn channel(schema: &str) -> String {
    format!("windlass_{schema}")
}

/// A statement for a schema: `windlass.` stands for its name, `@channel` for its channel.
pub(crate) fn for_schema(text: &str, schema: &str, channel: &str) -> String {
    let text = text.replace("@channel", channel);
    if schema == "windlass" { text } else { text.replace("windlass.", &format!("{schema}.")) }
}

/// The version of a schema; 0 when it has none of our tables.
pub(crate) async fn version(client: &Client, address: &Address) -> Result<u32, StoreError> {
    let in_words = |error: tokio_postgres::Error| store_error(&error, &address.shown);
    let table = format!("{}.meta", address.schema);
    let known = client.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&table]).await.map_err(in_words)?;
    if !known.get::<_, bool>(0) {
        return Ok(0);
    }
    let sql = format!("SELECT value FROM {table} WHERE key = 'version'");
    let rows = client.query(&sql, &[]).await.map_err(in_words)?;
    match rows.first().map(|row| u32::try_from(row.get::<_, i64>(0))) {
        Some(Ok(version)) => Ok(version),
        Some(Err(_)) | None => Err(StoreError::Broken(format!(
            "the table {table} in {} says nothing about a version; restore a backup, or use another schema",
            address.shown
        ))),
    }
}

/// What is left to do for a schema of this version.
///
/// # Errors
/// [`StoreError::Broken`] when a newer program wrote it.
pub(crate) fn pending(version: u32, address: &Address) -> Result<Pending, StoreError> {
    if version > SCHEMA_VERSION {
        return Err(StoreError::Broken(format!(
            "{} has schema version {version}, this program knows versions up to {SCHEMA_VERSION}; \
             upgrade this program, or use another schema",
            address.shown
        )));
    }
    let left = MIGRATIONS.iter().enumerate().skip(version as usize);
    Ok(Pending {
        version,
        steps: left.clone().map(|(_, migration)| migration.what).collect(),
        sql: left.map(|(from, _)| format!("BEGIN;\n{}COMMIT;\n", step_sql(from, &address.schema))).collect(),
    })
}

/// The statements of the step from a version to the next.
fn step_sql(from: usize, schema: &str) -> String {
    let create = if from == 0 { format!("CREATE SCHEMA IF NOT EXISTS {schema};\n") } else { String::new() };
    let sql = for_schema(MIGRATIONS[from].sql, schema, &channel(schema));
    format!("{create}{sql}UPDATE {schema}.meta SET value = {} WHERE key = 'version';\n", from + 1)
}

/// Applies what is left to do, one transaction for each step, and answers how many steps that were. Another process may
/// do the same at the same time: it waits, and finds nothing left.
pub(crate) async fn migrate(client: &Client, address: &Address) -> Result<usize, StoreError> {
    let in_words = |error: tokio_postgres::Error| store_error(&error, &address.shown);
    let mut steps_done = 0;
    loop {
        client
            .batch_execute("BEGIN; SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = '10min'")
            .await
            .map_err(in_words)?;
        let step = step(client, address).await;
        match step {
            Ok(true) => {
                client.batch_execute("COMMIT").await.map_err(in_words)?;
                steps_done += 1;
            }
            Ok(false) => {
                client.batch_execute("ROLLBACK").await.map_err(in_words)?;
                return Ok(steps_done);
            }
            Err(error) => {
                // The first error is the one that says something.
                drop(client.batch_execute("ROLLBACK").await);
                return Err(error);
            }
        }
    }
}

/// One step within a transaction; `false` when none is left.
async fn step(client: &Client, address: &Address) -> Result<bool, StoreError> {
    let in_words = |error: tokio_postgres::Error| store_error(&error, &address.shown);
    let mut hasher = DefaultHasher::new();
    ("windlass migration", &address.schema).hash(&mut hasher);
    let lock = hasher.finish() as i64;
    client.query("SELECT pg_advisory_xact_lock($1)", &[&lock]).await.map_err(in_words)?;
    let version = version(client, address).await?;
    if pending(version, address)?.steps.is_empty() {
        return Ok(false);
    }
    client.batch_execute(&step_sql(version as usize, &address.schema)).await.map_err(in_words)?;
    Ok(true)
}
