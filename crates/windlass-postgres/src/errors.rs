//! What PostgreSQL's errors mean for the caller, each with the next step in its text, and what the driver does about them.

use std::fmt::Display;

use tokio_postgres::error::SqlState;
use windlass_core::{StoreError, redact};

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The server or the connection said so.
    Sql(tokio_postgres::Error),
    /// We said so; the answer is complete.
    Store(StoreError),
    /// Nobody said anything for too long.
    Silent,
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What the driver does about a failed transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Nothing has happened and others were in the way: the whole transaction again, after a moment.
    Repeat,
    /// This connection is of no use any more.
    Reconnect,
    /// The caller must hear of it.
    Report,
}

impl Fault {
    /// A stored value that no version of ours wrote.
    pub(crate) fn damaged(what: &str, detail: impl Display) -> Self {
        Self::Store(StoreError::Broken(format!(
            "the store holds a damaged {what}: {detail}; find it with `windlass doctor` and discard the task or restore a backup"
        )))
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> Remedy {
        let error = match self {
            Self::Sql(error) => error,
            Self::Store(_) => return Remedy::Report,
            Self::Silent => return Remedy::Reconnect,
        };
        let Some(code) = error.code() else { return Remedy::Reconnect };
        match code {
            &SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED => Remedy::Repeat,
            // A plan or a table of before a migration, or a server that may not write: another connection may do better.
            &SqlState::FEATURE_NOT_SUPPORTED
            | &SqlState::READ_ONLY_SQL_TRANSACTION
            | &SqlState::INVALID_SQL_STATEMENT_NAME
            | &SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT => Remedy::Reconnect,
            code if is_going_away(code) => Remedy::Reconnect,
            _ => Remedy::Report,
        }
    }

    /// The answer to the caller.
    pub(crate) fn to_store_error(&self, place: &str) -> StoreError {
        match self {
            Self::Store(error) => again(error),
            Self::Sql(error) => store_error(error, place),
            Self::Silent => StoreError::Unreachable(
                format!("{place} does not answer any more; look at the network and at the server's load").into(),
            ),
        }
    }
}

fn is_going_away(code: &SqlState) -> bool {
    code.code().starts_with("08")
        || [
            &SqlState::ADMIN_SHUTDOWN,
            &SqlState::CRASH_SHUTDOWN,
            &SqlState::CANNOT_CONNECT_NOW,
            &SqlState::DATABASE_DROPPED,
            &SqlState::TOO_MANY_CONNECTIONS,
        ]
        .contains(&code)
}

/// A copy of an error; its source, when it has one, as text.
pub(crate) fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Unreachable(source) => StoreError::Unreachable(source.to_string().into()),
        StoreError::Busy(text) => StoreError::Busy(text.clone()),
        StoreError::NoSpace(text) => StoreError::NoSpace(text.clone()),
        StoreError::Denied(text) => StoreError::Denied(text.clone()),
        StoreError::Broken(text) => StoreError::Broken(text.clone()),
        StoreError::Rejected(text) => StoreError::Rejected(text.clone()),
    }
}

/// The port's error for one of the server or of the connection; `place` is the location without secrets.
pub(crate) fn store_error(error: &tokio_postgres::Error, place: &str) -> StoreError {
    let Some(said) = error.as_db_error() else { return connection_error(error, place) };
    let message = redact::text(said.message());
    let code = said.code();
    let unreachable = |text: String| StoreError::Unreachable(text.into());
    match code {
        &SqlState::INVALID_PASSWORD | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => StoreError::Denied(format!(
            "{place} refused the user or the password ({message}); check both in the URL, and pg_hba.conf of the server"
        )),
        &SqlState::INVALID_CATALOG_NAME => StoreError::Broken(format!(
            "{place} has no such database ({message}); create it with `createdb`, or correct the URL"
        )),
        &SqlState::INSUFFICIENT_PRIVILEGE => StoreError::Denied(format!(
            "this user may not do that in {place} ({message}); let the owner run `windlass migrate up` and grant USAGE on \
             the schema and all rights on its tables, sequences and functions"
        )),
        &SqlState::UNDEFINED_TABLE
        | &SqlState::UNDEFINED_COLUMN
        | &SqlState::UNDEFINED_FUNCTION
        | &SqlState::INVALID_SCHEMA_NAME => StoreError::Broken(format!(
            "{place} does not have the tables that this version expects ({message}); run `windlass migrate up`"
        )),
        &SqlState::READ_ONLY_SQL_TRANSACTION => unreachable(read_only(place, &message)),
        &SqlState::TOO_MANY_CONNECTIONS => unreachable(format!(
            "{place} has no free connection ({message}); raise max_connections, or lower `connections` in the URLs"
        )),
        &SqlState::DISK_FULL => StoreError::NoSpace(format!(
            "the disk of {place} is full ({message}); free some space, the work goes on by itself"
        )),
        &SqlState::OUT_OF_MEMORY | &SqlState::INSUFFICIENT_RESOURCES | &SqlState::CONFIGURATION_LIMIT_EXCEEDED => {
            unreachable(format!("{place} is out of resources ({message}); look at the server's log"))
        }
        &SqlState::QUERY_CANCELED | &SqlState::LOCK_NOT_AVAILABLE => StoreError::Busy(format!(
            "{place} did not get to it in time ({message}); end transactions that were left open, see pg_stat_activity"
        )),
        &SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED => {
            StoreError::Busy(format!("others were in the way again and again in {place} ({message})"))
        }
        &SqlState::DATA_CORRUPTED | &SqlState::INDEX_CORRUPTED => StoreError::Broken(format!(
            "{place} is damaged ({message}); stop all workers, keep a copy, and restore a backup"
        )),
        code if is_going_away(code) => unreachable(format!("{place} is going away or starting ({message})")),
        _ => StoreError::Broken(format!(
            "{place} refused a request ({}: {message}); look at the server's log, and report it if the store is sound",
            code.code()
        )),
    }
}

fn read_only(place: &str, said: &str) -> String {
    format!(
        "{place} is read-only, a standby or set so ({said}); point the URL at the primary server, or set \
         default_transaction_read_only = off; the work goes on by itself"
    )
}

fn connection_error(error: &tokio_postgres::Error, place: &str) -> StoreError {
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(deeper) = source {
        let text = deeper.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        source = deeper.source();
    }
    let said = redact::text(&said);
    if said.contains("certificate") || said.contains("tls") || said.contains("TLS") {
        return StoreError::Broken(format!(
            "{place} cannot be trusted or speaks no TLS ({said}); give its root certificate with sslrootcert=FILE, \
             turn TLS on in the server, or write sslmode=disable on a network that you trust"
        ));
    }
    if said.contains("does not allow writes") {
        return StoreError::Unreachable(read_only(place, &said).into());
    }
    if said.contains("password missing") || said.contains("authentication") {
        return StoreError::Denied(format!("{place} wants a password ({said}); write it into the URL"));
    }
    StoreError::Unreachable(
        format!("{place} does not answer ({said}); check host and port, and whether the server runs").into(),
    )
}
