//! The configuration of this run: file, `.env`, environment and the flags of the command line, and the store it names.

use std::sync::Arc;

use windlass::bridges::BridgeUrl;
use windlass::bridges::url::{Over, Wire};
use windlass::config::{Loaded, Sources};
use windlass::{Backend, ConnectOptions, Location, QueueName, connect_with, redact};

use crate::args::Global;
use crate::exit::{Exit, Problem};

/// A flag of the command line that sets a key of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Override {
    /// The key: `worker.slots`.
    pub(crate) key: &'static str,
    /// The flag as it is written: `--slots`.
    pub(crate) flag: &'static str,
    /// Its value.
    pub(crate) value: String,
}

impl Override {
    /// The override that an optional flag makes.
    pub(crate) fn of<T: ToString>(key: &'static str, flag: &'static str, value: Option<&T>) -> Option<Self> {
        value.map(|value| Self { key, flag, value: value.to_string() })
    }
}

/// Everything that makes up the configuration, not loaded yet.
pub(crate) fn sources(global: &Global, overrides: impl IntoIterator<Item = Override>) -> Sources {
    let mut sources = Sources::from_disk(global.config.as_deref());
    if let Some(profile) = &global.profile {
        sources = sources.profile(profile);
    }
    if let Some(store) = &global.store {
        sources = sources.flag("store", "--store", store);
    }
    let sources = sources.rule("bridge", |url| url.parse::<BridgeUrl>().map(drop).map_err(|wrong| wrong.to_string()));
    overrides.into_iter().fold(sources, |sources, one| sources.flag(one.key, one.flag, one.value))
}

/// Loads the configuration; every problem of it at once.
pub(crate) fn load(sources: &Sources) -> Result<Loaded, Problem> {
    let mut loaded = sources.load().map_err(|errors| {
        let count = errors.problems().len();
        let what = if count == 1 { "the configuration has a problem" } else { "the configuration has problems" };
        Problem::usage(
            format_args!("{what}:\n{errors}"),
            "mend the lines above; `windlass config show --origin` says where each value comes from",
        )
    })?;
    follow_bridge(&mut loaded)?;
    Ok(loaded)
}

/// What a bridge decides where nobody has said otherwise: the store is the Redis server that the messages are in, and the
/// queue is the one that its producers send to.
pub(crate) fn follow_bridge(loaded: &mut Loaded) -> Result<(), Problem> {
    let Some(bridge) = bridge(loaded)? else { return Ok(()) };
    match bridge.over {
        Over::Redis => loaded.store_follows("bridge", bridge.server()),
        Over::Amqp if loaded.is_set("store") => {}
        Over::Amqp => {
            return Err(Problem::usage(
                format_args!(
                    "{bridge} keeps no tasks, and no store is named: every node of the fleet must see the same one"
                ),
                "name it with `--store redis://…` or `--store postgres://…`; a file or memory is used when it is named, and is \
                 seen by this machine or process only",
            ));
        }
    }
    match bridge.wire {
        Wire::Celery => loaded.queue_follows("bridge", QueueName::known("celery")),
        Wire::TaskIq => loaded.queue_follows("bridge", QueueName::known("taskiq")),
        Wire::Bare => {}
    }
    Ok(())
}

/// The bridge that the configuration names.
pub(crate) fn bridge(loaded: &Loaded) -> Result<Option<BridgeUrl>, Problem> {
    let url = loaded.config.bridge.as_deref().map(str::parse::<BridgeUrl>).transpose();
    url.map_err(|wrong| Problem::usage(wrong, "see docs/bridges.md for what the URL of a bridge may say"))
}

/// Whether a store that does not exist may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is made.
    Create,
    /// That is an error: looking at a store that is not there would answer "nothing" to a mistyped path.
    Refuse,
}

/// Opens the store that the configuration names.
pub(crate) async fn open(loaded: &Loaded, missing: Missing) -> Result<Arc<dyn Backend>, Problem> {
    open_at(loaded, &loaded.config.store.parse()?, missing).await
}

/// Opens another store with the options of the configuration.
pub(crate) async fn open_at(
    loaded: &Loaded,
    location: &Location,
    missing: Missing,
) -> Result<Arc<dyn Backend>, Problem> {
    let config = &loaded.config;
    if let (Location::Sqlite(path), Missing::Refuse) = (location, missing)
        && !path.exists()
    {
        return Err(no_store(path.display()));
    }
    if let (Location::Postgres(_), Missing::Refuse) = (location, missing)
        && windlass::pending(location).await?.version == 0
    {
        return Err(no_store(location));
    }
    let options = ConnectOptions {
        retention: config.retention,
        busy_timeout: config.sqlite.busy_timeout,
        network_files: if config.sqlite.allow_network_fs {
            windlass::NetworkFiles::Allow
        } else {
            windlass::NetworkFiles::Refuse
        },
        ..ConnectOptions::default()
    };
    Ok(connect_with(location, options).await?)
}

fn no_store(place: impl std::fmt::Display) -> Problem {
    Problem::new(
        Exit::Unreachable,
        format_args!("there is no store at `{place}`"),
        "name another with `--store URL`, or make this one with `windlass migrate up`",
    )
}

/// The store as it may be shown.
pub(crate) fn shown_store(loaded: &Loaded) -> String {
    redact::url(&loaded.config.store)
}

/// The configuration file that is used, when there is one.
pub(crate) fn file(global: &Global) -> Option<String> {
    sources(global, []).file_name().map(str::to_owned)
}
