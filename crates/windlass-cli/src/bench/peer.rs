//! Other products, each as a small program of its own that pushes and drains the same tasks.
//!
//! A peer is a folder with a program and the list of what it needs. It is called as `PROGRAM TASKS PROCESSES` with the
//! URL of its server in `BENCH_URL`, and writes one JSON line at its end ([`Said`]); `bench/README.md` says with which
//! settings each of them works. Nothing is installed by itself: a peer that is not there is answered with the line that
//! installs it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::bed::Place;
use super::server::Kind;
use crate::exit::{Exit, Problem};

/// A peer that has not ended by then never will.
const PATIENCE: Duration = Duration::from_secs(600);

/// A product to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Peer {
    /// BullMQ on Redis, Node.js.
    Bullmq,
    /// Celery on Redis, Python; by `bench bridges` also on RabbitMQ.
    Celery,
    /// TaskIQ on Redis, Python.
    Taskiq,
    /// Graphile Worker on PostgreSQL, Node.js.
    GraphileWorker,
}

/// What a peer answers.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Said {
    pub(super) version: String,
    pub(super) enqueue_tasks_per_s: f64,
    pub(super) drain_tasks_per_s: f64,
    /// CPU of its workers while they drained.
    pub(super) cpu_s: f64,
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bullmq => "bullmq",
            Self::Celery => "celery",
            Self::Taskiq => "taskiq",
            Self::GraphileWorker => "graphile-worker",
        }
    }

    /// The server that it works on.
    pub(super) fn server(self) -> Kind {
        match self {
            Self::Bullmq | Self::Celery | Self::Taskiq => Kind::Redis,
            Self::GraphileWorker => Kind::Postgres,
        }
    }

    /// What runs it, what must be there for that, and how to get it; paths are below its folder.
    fn program(self, folder: &Path) -> (PathBuf, PathBuf, String) {
        let shown = folder.display();
        match self {
            Self::Bullmq | Self::GraphileWorker => {
                let program = if self == Self::Bullmq { "bullmq" } else { "graphile-worker" };
                let installed = folder.join("node_modules").join(program);
                ("node".into(), installed, format!("npm ci --prefix {shown}"))
            }
            Self::Celery | Self::Taskiq => {
                let python = folder.join(".venv/bin/python");
                let install = format!(
                    "python3 -m venv {shown}/.venv && {shown}/.venv/bin/pip install -r {shown}/requirements.txt"
                );
                (python.clone(), python, install)
            }
        }
    }

    fn script(self) -> &'static str {
        match self {
            Self::Bullmq | Self::GraphileWorker => "peer.mjs",
            Self::Celery | Self::Taskiq => "peer.py",
        }
    }

    /// Checks that it can be run.
    ///
    /// # Errors
    /// A usage problem whose next step is the line that installs it.
    pub(super) fn check(self, peers: &Path) -> Result<(), Problem> {
        let folder = peers.join(self.name());
        let name = self.name();
        if !folder.join(self.script()).is_file() {
            return Err(Problem::usage(
                format_args!("{} is not there, so {name} cannot be run", folder.join(self.script()).display()),
                "call it in the folder of the sources, or name the folder: --peers PATH/bench/peers",
            ));
        }
        let (_, installed, install) = self.program(&folder);
        if !installed.exists() {
            return Err(Problem::usage(format_args!("{name} is not installed"), install));
        }
        Ok(())
    }

    /// The URL of its server among the places that are compared.
    pub(super) fn url(self, places: &[Place]) -> Result<String, Problem> {
        let server = places.iter().filter_map(Place::server).find(|server| server.kind() == self.server());
        let server = server.ok_or_else(|| {
            let (name, example) = match self.server() {
                Kind::Redis => ("Redis", "--store redis://127.0.0.1/0"),
                Kind::Postgres => ("PostgreSQL", "--store postgres://127.0.0.1/test"),
            };
            Problem::usage(format_args!("{} needs {name}", self.name()), format_args!("add {example}"))
        })?;
        Ok(super::server::without_parameters(server.url(), &["namespace", "schema", "connections"]))
    }

    /// Pushes and drains so many tasks.
    pub(super) async fn run(self, peers: &Path, url: &str, tasks: u32, processes: u32) -> Result<Said, Problem> {
        self.run_with_results(peers, url, None, tasks, processes).await
    }

    /// The same, with the results of the tasks stored in this Redis.
    pub(super) async fn run_with_results(
        self,
        peers: &Path,
        url: &str,
        results: Option<&str>,
        tasks: u32,
        processes: u32,
    ) -> Result<Said, Problem> {
        let folder = peers.join(self.name());
        let (program, ..) = self.program(&folder);
        let mut command = Command::new(program);
        command.arg(folder.join(self.script())).args([tasks.to_string(), processes.to_string()]);
        // Where no list of processes shows the password in it.
        command.env("BENCH_URL", url).envs(results.map(|results| ("BENCH_RESULTS", results)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or_else(|| self.failed("it has no output"))?;
        let mut lines = BufReader::new(output).lines();
        let said = async {
            let mut said = None;
            while let Some(line) = lines.next_line().await? {
                said = serde_json::from_str(&line).ok().or(said);
            }
            Ok::<_, Problem>((child.wait().await?, said))
        };
        let (status, said) =
            tokio::time::timeout(PATIENCE, said).await.map_err(|_| self.failed("it has not ended within 10 min"))??;
        match said {
            Some(said) if status.success() => Ok(said),
            _ => Err(self.failed(&format!("it ended with {status}"))),
        }
    }

    fn failed(self, what: &str) -> Problem {
        Problem::new(
            Exit::Failed,
            format_args!("{} could not be measured: {what}", self.name()),
            "see what it said above, and whether its server answers",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_is_not_installed_is_answered_with_the_line_that_installs_it() {
        let peers = tempfile::tempdir().unwrap();
        let problem = Peer::Bullmq.check(peers.path()).unwrap_err();
        assert!(problem.next_step().contains("--peers"), "{problem:?}");
        for (peer, script, line) in
            [(Peer::Bullmq, "peer.mjs", "npm ci --prefix"), (Peer::Celery, "peer.py", "pip install -r")]
        {
            let folder = peers.path().join(peer.name());
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(script), "").unwrap();
            let problem = peer.check(peers.path()).unwrap_err();
            assert_eq!(problem.exit_code(), Exit::Usage);
            assert!(problem.next_step().contains(line), "{problem:?}");
        }
    }

    /// A program that answers what it was asked, and a folder as if it had been installed.
    #[cfg(unix)]
    fn installed(program: &str) -> tempfile::TempDir {
        let peers = tempfile::tempdir().unwrap();
        let programs = peers.path().join("celery/.venv/bin");
        std::fs::create_dir_all(&programs).unwrap();
        std::fs::write(peers.path().join("celery/peer.py"), program).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let python = std::env::split_paths(&path).map(|folder| folder.join("python3"));
        let python = python.into_iter().find(|program| program.exists()).unwrap();
        std::os::unix::fs::symlink(python, programs.join("python")).unwrap();
        peers
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_peer_gets_its_server_and_its_load_and_its_answer_is_read() {
        let peers = installed(
            "import json, os, sys\n\
             assert os.environ['BENCH_URL'] == 'redis://h/0' and sys.argv[2] == '2'\n\
             print('starting')\n\
             answer = {'peer': 'x', 'version': '1.2', 'enqueue_tasks_per_s': 3, 'drain_tasks_per_s': 4.5}\n\
             print(json.dumps({**answer, 'cpu_s': int(sys.argv[1])}))",
        );
        Peer::Celery.check(peers.path()).unwrap();
        let said = Peer::Celery.run(peers.path(), "redis://h/0", 70, 2).await.unwrap();
        assert_eq!((said.version.as_str(), said.cpu_s, said.drain_tasks_per_s), ("1.2", 70.0, 4.5));
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_peer_that_fails_is_a_problem_whatever_it_has_said() {
        let peers = installed(
            "print('{\"version\": \"1\", \"enqueue_tasks_per_s\": 1, \"drain_tasks_per_s\": 1, \"cpu_s\": 1}')\n\
             raise SystemExit(3)",
        );
        let problem = Peer::Celery.run(peers.path(), "redis://h/0", 1, 1).await.unwrap_err();
        assert!(problem.text().contains("exit status: 3"), "{problem:?}");
        let silent = installed("");
        assert!(Peer::Celery.run(silent.path(), "redis://h/0", 1, 1).await.is_err());
    }

    #[test]
    fn a_peer_works_on_the_server_of_its_kind() {
        let places = [Place::of(None).unwrap(), Place::of(Some("redis://h/0")).unwrap()];
        assert_eq!(Peer::Celery.url(&places).unwrap(), "redis://h/0");
        let problem = Peer::GraphileWorker.url(&places).unwrap_err();
        assert!(problem.next_step().contains("postgres://"), "{problem:?}");
    }
}
