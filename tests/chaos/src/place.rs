//! A store on a server of its own, which can be taken away and brought back.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use windlass_servers::{Aof, Postgres, Redis, Stop};

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A file.
    Sqlite,
    /// A Redis server with its log on disk.
    Redis,
    /// A PostgreSQL server.
    Postgres,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        })
    }
}

/// A store that runs. It is gone with this value.
#[derive(Debug)]
pub enum Place {
    /// The folder of the file.
    Sqlite(tempfile::TempDir),
    /// The server.
    Redis(Redis),
    /// The server.
    Postgres(Postgres),
}

impl Place {
    /// Starts what the store needs.
    ///
    /// # Errors
    /// When a server cannot be started.
    pub fn start(store: Store) -> Result<Self> {
        Ok(match store {
            Store::Sqlite => Self::Sqlite(tempfile::tempdir()?),
            // With `everysec` a server whose disk is slow puts off its writes, not only its syncs, for up to two seconds: a
            // crash forgets what it has answered in that time.
            Store::Redis => Self::Redis(Redis::start(Aof::Always)?),
            Store::Postgres => Self::Postgres(Postgres::start()?),
        })
    }

    /// The URL of the store.
    pub fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite:{}", folder.path().join("tasks.db").display()),
            Self::Redis(redis) => redis.url(),
            Self::Postgres(postgres) => postgres.url("postgres"),
        }
    }

    /// Whether there is a server that can be taken away.
    pub fn has_server(&self) -> bool {
        !matches!(self, Self::Sqlite(_))
    }

    /// Kills the server, waits, and starts it again with what it has on its disk.
    ///
    /// # Errors
    /// When it does not start again.
    pub fn crash(&mut self, away: Duration) -> Result<()> {
        self.take_away();
        // tidy: allow(sleep): for so long the server is away
        std::thread::sleep(away);
        self.bring_back()
    }

    /// Kills the server.
    pub fn take_away(&mut self) {
        match self {
            Self::Sqlite(_) => {}
            Self::Redis(redis) => redis.kill(),
            Self::Postgres(postgres) => postgres.stop(Stop::Immediate),
        }
    }

    /// Starts the server again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn bring_back(&mut self) -> Result<()> {
        match self {
            Self::Sqlite(_) => {}
            Self::Redis(redis) => redis.start_again()?,
            Self::Postgres(postgres) => postgres.start_again()?,
        }
        Ok(())
    }
}
