//! The server that a store is in: rooms of our own in it, what it is, and how much CPU it uses.
//!
//! A room is a namespace of Redis or a schema of PostgreSQL whose name begins with a prefix that only this process
//! uses. Whatever happens, one call of [`Server::clean`] at the end removes all of them.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;
use windlass::Location;
use windlass_core::redact;

use super::raw::{postgres, redis};
use crate::exit::Problem;

/// A server of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Redis,
    Postgres,
}

/// Where a store can be, besides this process and a file.
pub(super) struct Server {
    kind: Kind,
    url: String,
    /// What the names of all rooms of this process begin with.
    prefix: String,
    rooms: AtomicU32,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::url(&self.url))
    }
}

/// CPU time that a server has used at some moment, in seconds.
pub(super) type Cpu = Option<f64>;

impl Server {
    /// The server of a store; `None` when it is in none.
    pub(super) fn of(location: &Location) -> Option<Self> {
        let kind = match location {
            Location::Memory | Location::Sqlite(_) => return None,
            Location::Redis(_) => Kind::Redis,
            Location::Postgres(_) => Kind::Postgres,
        };
        let prefix = format!("windlass_bench_{:08x}_", fastrand::u32(..));
        Some(Self { kind, url: location.url(), prefix, rooms: AtomicU32::new(0) })
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// As it was given, with whatever secrets it holds.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Whether the URL says which of the stores in this server it means.
    pub(super) fn names_a_room(&self) -> bool {
        let name = self.kind.room_parameter();
        let query = self.url().split_once('?').map_or("", |(_, query)| query);
        query.split('&').any(|part| part.split_once('=').is_some_and(|(key, _)| key == name))
    }

    /// The name of a room that nobody has used.
    pub(super) fn new_room(&self) -> String {
        format!("{}{}", self.prefix, self.rooms.fetch_add(1, Ordering::Relaxed))
    }

    /// The URL of a store in this room.
    pub(super) fn url_of(&self, room: &str) -> String {
        let separator = if self.url().contains('?') { '&' } else { '?' };
        format!("{}{separator}{}={room}", self.url(), self.kind.room_parameter())
    }

    /// Removes one room.
    pub(super) async fn remove(&self, room: &str) -> Result<(), Problem> {
        match self.kind {
            Kind::Redis => redis::remove(self.url(), room).await,
            Kind::Postgres => postgres::remove(self.url(), room).await,
        }
    }

    /// Removes every room of this process.
    pub(super) async fn clean(&self) -> Result<(), Problem> {
        if self.rooms.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        self.remove(&format!("{}*", self.prefix)).await
    }

    /// What it has used until now. Redis says so itself; the processes of PostgreSQL must be on this machine.
    pub(super) async fn cpu(&self) -> Result<Cpu, Problem> {
        match self.kind {
            Kind::Redis => redis::cpu(self.url()).await,
            Kind::Postgres => postgres::cpu(self.url()).await,
        }
    }

    /// Its version and the settings that decide how durable it is.
    pub(super) async fn facts(&self) -> Result<Value, Problem> {
        match self.kind {
            Kind::Redis => redis::facts(self.url()).await,
            Kind::Postgres => postgres::facts(self.url()).await,
        }
    }
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }

    /// What a URL calls the room.
    fn room_parameter(self) -> &'static str {
        match self {
            Self::Redis => "namespace",
            Self::Postgres => "schema",
        }
    }
}

/// Facts for people: `version 7.0.15, appendfsync everysec`.
pub(super) fn facts_text(facts: &Value) -> String {
    let parts = facts.as_object().into_iter().flatten().map(|(name, value)| match value {
        Value::String(text) => format!("{name} {text}"),
        other => format!("{name} {other}"),
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// A URL without what only windlass reads in it.
pub(super) fn without_parameters(url: &str, ours: &[&str]) -> String {
    let Some((base, query)) = url.split_once('?') else { return url.to_owned() };
    let kept: Vec<&str> =
        query.split('&').filter(|part| !ours.contains(&part.split_once('=').map_or(*part, |(name, _)| name))).collect();
    if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) }
}

/// CPU time between two moments for each task, in microseconds, for machines; `null` when nobody knows.
pub(super) fn micros_per_task(before: Cpu, after: Cpu, tasks: u64) -> Option<f64> {
    before.zip(after).map(|(before, after)| (after - before).max(0.0) / tasks.max(1) as f64 * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> Option<Server> {
        Server::of(&url.parse().unwrap())
    }

    #[test]
    fn a_url_names_a_server_and_perhaps_a_room() {
        for (url, kind, named) in [
            ("redis://h:6379/0", Kind::Redis, false),
            ("rediss://h/0?ca=x", Kind::Redis, false),
            ("redis+unix:///s?namespace=a", Kind::Redis, true),
            ("postgres://h/d?schema=x&connections=4", Kind::Postgres, true),
            ("postgresql://h/d?xschema=x", Kind::Postgres, false),
        ] {
            let server = of(url).unwrap();
            assert_eq!((server.kind(), server.names_a_room()), (kind, named), "{url}");
        }
        for url in ["sqlite:a.db", "memory:", "a.db"] {
            assert!(of(url).is_none(), "{url}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let server = of("redis://:hunter2@h/0").unwrap();
        assert!(server.url().contains("hunter2") && !format!("{server:?}").contains("hunter2"));
    }

    #[test]
    fn rooms_are_new_and_share_a_prefix() {
        let server = of("redis://h/0?ca=x").unwrap();
        let (one, other) = (server.new_room(), server.new_room());
        assert!(one != other && one.starts_with(&server.prefix) && other.starts_with(&server.prefix));
        assert_eq!(server.url_of("r"), "redis://h/0?ca=x&namespace=r");
        assert_eq!(of("postgres://h/d").unwrap().url_of("r"), "postgres://h/d?schema=r");
    }

    #[test]
    fn only_our_parameters_are_taken_out_of_a_url() {
        assert_eq!(without_parameters("p://h/d?schema=a&x=1&connections=3", &["schema", "connections"]), "p://h/d?x=1");
        assert_eq!(without_parameters("p://h/d?schema=a", &["schema"]), "p://h/d");
        assert_eq!(without_parameters("p://h/d", &["schema"]), "p://h/d");
    }

    #[test]
    fn cpu_is_per_task_and_never_below_zero() {
        assert_eq!(micros_per_task(Some(1.0), Some(1.5), 500_000), Some(1.0));
        assert_eq!(micros_per_task(Some(1.0), Some(0.5), 10), Some(0.0));
        assert_eq!(micros_per_task(None, Some(0.5), 10), None);
    }
}
