//! The tasks that the `windlass` program knows without anybody writing Rust.
//!
//! | task | what it does |
//! |---|---|
//! | `http.request` | sends a request and judges the answer |
//! | `shell.run` | runs a command; off unless it is allowed |
//! | `sleep`, `noop`, `fail` | for trying things out, and for measuring |

mod duration;
mod http;
mod plain;
mod shell;

use std::sync::OnceLock;

use windlass::App;
use windlass::config::{Sources, TasksConfig};

pub use duration::DurationText;
pub use http::{BodyForm, HttpAnswer, HttpRequest};
pub use plain::{Fail, Noop, Sleep};
pub use shell::{ShellDone, ShellRun};

/// What the built-in tasks share.
#[derive(Debug)]
pub struct Services {
    http: http::HttpClient,
    shell: shell::Shell,
}

/// What the built-in tasks of this process may do, once somebody has said it.
static CONFIGURED: OnceLock<TasksConfig> = OnceLock::new();

/// Says what the built-in tasks of this process may do. The command line calls it when it has read the configuration and
/// the flags; the first call counts. Without it the configuration is read when a worker starts.
pub fn configure(tasks: &TasksConfig) {
    CONFIGURED.get_or_init(|| tasks.clone());
}

/// The application of the `windlass` program.
pub fn app() -> App<Services> {
    App::new("windlass")
        .state(async || Services::connect())
        .task(http::request)
        .task(shell::run)
        .task(plain::sleep)
        .task(plain::noop)
        .task(plain::fail)
}

impl Services {
    fn connect() -> anyhow::Result<Self> {
        match CONFIGURED.get() {
            Some(tasks) => Self::new(tasks),
            None => Self::new(&Sources::from_disk(None).load()?.config.tasks),
        }
    }

    fn new(tasks: &TasksConfig) -> anyhow::Result<Self> {
        Ok(Self { http: http::HttpClient::new(&tasks.http)?, shell: shell::Shell::new(tasks) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_documents_every_task_and_every_argument() {
        for definition in app().definitions() {
            assert!(!definition.doc.is_empty(), "{}", definition.name);
            for field in definition.fields.named().unwrap_or_default() {
                assert!(!field.doc.is_empty(), "{}: {}", definition.name, field.name);
                assert!(field.name == "json" || field.schema != serde_json::json!({}), "{}", field.name);
            }
        }
    }

    #[tokio::test]
    async fn every_task_is_registered_once() {
        let registry = app().build().await.unwrap();
        let names: Vec<String> = registry.names().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["fail", "http.request", "noop", "shell.run", "sleep"]);
    }
}
