//! A private PostgreSQL cluster, as durable as a real one: only making it skips the sync, serving does not.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::child::{self, LastSignal, Rights, Running, User};
use crate::folder::Folder;
use crate::{Error, port};

/// The oldest version that the store supports.
const VERSION_MIN: u32 = 13;
/// The first version that can sync a cluster by one call.
const SYNC_AT_ONCE: u32 = 14;
/// Where Debian keeps each version: `/usr/lib/postgresql/15/bin`.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Making a cluster takes a second or two of a whole processor.
const INIT_LIMIT: Duration = Duration::from_secs(120);
/// Recovery after a crash on a busy machine; a clean start takes 100 ms.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// A fast stop writes a checkpoint.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How often another program may take the port between choosing and using it.
const PORT_ATTEMPTS: u32 = 5;
/// The superuser of every cluster; it needs no password.
const SUPERUSER: &str = "postgres";

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Ends every session, writes everything down, ends (`pg_ctl stop -m fast`).
    Fast,
    /// Ends at once, as in a crash; the next start recovers what was committed (`pg_ctl stop -m immediate`).
    Immediate,
}

impl Stop {
    fn signal(self) -> Signal {
        match self {
            Self::Fast => Signal::INT,
            Self::Immediate => Signal::QUIT,
        }
    }
}

/// A PostgreSQL server of one test. It ends, and its data goes, when this value is dropped.
#[derive(Debug)]
pub struct Postgres {
    // Before the folder: fields are dropped in this order, and a server that runs must not lose its files.
    running: Option<Running>,
    programs: Programs,
    options: Vec<String>,
    rights: Rights,
    address: SocketAddr,
    folder: Folder,
}

/// The programs of one installed version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Programs {
    /// The major version. First, because the newest is the greatest.
    version: u32,
    folder: PathBuf,
}

impl Postgres {
    /// Makes a cluster, starts its server and waits until it takes connections: about two seconds.
    ///
    /// Its database is `postgres`; more are made by [`Self::psql`].
    /// # Errors
    /// When no PostgreSQL from version 13 on is installed, or it does not start: with the end of its log.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(&[])
    }

    /// Starts a server with settings on top, as they stand in `postgresql.conf`: `&["max_connections=20"]`.
    ///
    /// # Errors
    /// As [`Self::start`]; a wrong setting is named in the log.
    pub fn start_with(settings: &[&str]) -> Result<Self, Error> {
        let programs = find().ok_or(Error::NotInstalled { program: "postgres", package: "postgresql" })?;
        let options = settings.iter().flat_map(|&setting| ["-c".to_owned(), setting.to_owned()]).collect();
        let (folder, address, rights) = (Folder::new()?, port::free()?, rights()?);
        let mut postgres = Self { running: None, programs, options, rights, address, folder };
        postgres.make_cluster()?;
        for _ in 1..PORT_ATTEMPTS {
            match postgres.start_again() {
                Err(error) if error.is_port_taken() => postgres.address = port::free()?,
                other => return other.map(|()| postgres),
            }
        }
        postgres.start_again()?;
        Ok(postgres)
    }

    /// Whether a PostgreSQL is installed that [`Self::start`] can start.
    pub fn is_installed() -> bool {
        find().is_some()
    }

    /// `postgres://postgres@127.0.0.1:PORT/DATABASE`: the superuser, who needs no password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}@{}/{database}", self.address)
    }

    /// Where it listens; the same for its whole life.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server and waits for it; after 30 s it is killed. Does nothing when it does not run.
    pub fn stop(&mut self, how: Stop) {
        if let Some(running) = self.running.take() {
            running.end(how.signal(), END_LIMIT);
        }
    }

    /// Starts the server again on the same port with the same data, and waits until it takes connections. One that runs is
    /// stopped immediately first.
    ///
    /// # Errors
    /// When it does not start: with the end of its log.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.stop(Stop::Immediate);
        let data = self.data();
        let mut running = self.run("postgres", &self.arguments())?;
        running.wait_until_ready(READY_LIMIT, |process| {
            fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|status| says_ready(&status, process))
        })?;
        self.running = Some(running);
        Ok(())
    }

    /// Crashes the server and starts it again, as `pg_ctl restart -m immediate` does: every session ends, everything that
    /// was committed is recovered.
    ///
    /// # Errors
    /// When it does not start again: with the end of its log.
    pub fn restart_immediately(&mut self) -> Result<(), Error> {
        self.start_again()
    }

    /// Runs SQL in a database as superuser through `psql`, and answers with its output: one line a row, columns joined by
    /// `|`, no headings.
    ///
    /// Several statements are one transaction; `CREATE DATABASE` must stand alone.
    /// # Errors
    /// [`Error::Refused`] with what `psql` says.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, Error> {
        let mut command = Command::new(self.programs.folder.join("psql"));
        child::without_settings_of_others(&mut command);
        command.env("PGCONNECT_TIMEOUT", "30").args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"]);
        command.args(["--set", "ON_ERROR_STOP=1", "--no-password"]);
        command.args(["--dbname", &self.url(database), "--command", sql]);
        let output = command.output().map_err(Error::cannot("run `psql`"))?;
        if !output.status.success() {
            return Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    fn make_cluster(&self) -> Result<(), Error> {
        let folder = self.folder.path();
        if let Rights::Of(User { user, group }) = self.rights {
            std::os::unix::fs::chown(folder, Some(user), Some(group))
                .map_err(Error::cannot(format!("give {} to another user", folder.display())))?;
        }
        let data = self.data().to_string_lossy().into_owned();
        let arguments =
            ["-D", &data, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"];
        self.run("initdb", &arguments.map(str::to_owned))?.wait_until_done(INIT_LIMIT)
    }

    fn arguments(&self) -> Vec<String> {
        let port = self.address.port().to_string();
        let (data, folder) = (self.data(), self.folder.path());
        let own = ["-D", &data.to_string_lossy(), "-p", &port, "-k", &folder.to_string_lossy(), "-h", "127.0.0.1"];
        // Recovery syncs the whole cluster first. By one call instead of one for each of a thousand files, a server is back
        // in 150 ms after a crash and not in three seconds.
        let at_once = ["-c", "recovery_init_sync_method=syncfs"];
        let quick = if cfg!(target_os = "linux") && self.programs.version >= SYNC_AT_ONCE { &at_once[..] } else { &[] };
        own.iter().chain(quick).map(|&word| word.to_owned()).chain(self.options.iter().cloned()).collect()
    }

    fn run(&self, program: &str, arguments: &[String]) -> Result<Running, Error> {
        let program = self.programs.folder.join(program);
        Running::start(&program, arguments, self.folder.path(), self.rights, LastSignal::Quit)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Postgres {
    /// Ends the server and all its processes. The data goes too, so nothing is written down first.
    fn drop(&mut self) {
        self.stop(Stop::Immediate);
    }
}

/// The newest version that is complete and new enough.
fn find() -> Option<Programs> {
    let versions = fs::read_dir(VERSIONS).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let on_path = child::find("initdb").and_then(|program| program.parent().map(Path::to_path_buf));
    let complete = |folder: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).is_file());
    let folders = versions.chain(on_path).filter(complete);
    let known = folders.filter_map(|folder| Some(Programs { version: version(&folder)?, folder }));
    known.filter(|programs| programs.version >= VERSION_MIN).max()
}

/// The major version of the programs in a folder.
fn version(programs: &Path) -> Option<u32> {
    let output = Command::new(programs.join("postgres")).arg("--version").output().ok()?;
    major(&String::from_utf8_lossy(&output.stdout))
}

/// Reads `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`; also `17devel`.
fn major(text: &str) -> Option<u32> {
    let number = text.split_whitespace().nth(2)?;
    number.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
}

/// PostgreSQL refuses to run as root: then it runs as the user that Debian made for it, or as one who owns nothing.
fn rights() -> Result<Rights, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Rights::Same);
    }
    let user = ["postgres", "nobody"].iter().find_map(|name| user(name));
    user.map(Rights::Of).ok_or_else(|| Error::Machine {
        what: "run PostgreSQL as root, and there is no user `postgres` or `nobody` to run it as".to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })
}

fn user(name: &str) -> Option<User> {
    let ask = |flag: &str| {
        let output = Command::new("id").args([flag, name]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    Some(User { user: ask("-u")?, group: ask("-g")? })
}

/// Whether the status file of a server is that of this process and says that it takes connections.
///
/// Its lines: process id, folder, start, port, folder of the socket, address, shared memory, state.
fn says_ready(status: &str, process: u32) -> bool {
    let lines: Vec<&str> = status.lines().map(str::trim).collect();
    lines.first().is_some_and(|id| *id == process.to_string()) && lines.get(7) == Some(&"ready")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postgres() -> Postgres {
        Postgres::start().expect("PostgreSQL starts: is it installed?")
    }

    #[test]
    fn a_server_answers_and_syncs() {
        let postgres = postgres();
        assert_eq!(postgres.psql("postgres", "select 1, 'a b'").expect("select"), "1|a b");
        assert_eq!(postgres.psql("postgres", "show fsync").expect("show"), "on");
        assert_eq!(postgres.psql("postgres", "show server_encoding").expect("show"), "UTF8");
        postgres.psql("postgres", "create database other").expect("create");
        assert_eq!(postgres.psql("other", "select current_database()").expect("select"), "other");
    }

    #[test]
    fn a_wrong_statement_is_answered_with_the_words_of_the_server() {
        let postgres = postgres();
        let error = postgres.psql("postgres", "select nonsense").expect_err("no such column");
        assert!(matches!(&error, Error::Refused(why) if why.contains("\"nonsense\" does not exist")), "{error}");
    }

    #[test]
    fn committed_rows_survive_a_crash_and_a_stop() {
        let mut postgres = postgres();
        let address = postgres.address();
        postgres.psql("postgres", "create table kept (number int)").expect("create");
        let stops: [fn(&mut Postgres); 3] = [
            |postgres| postgres.stop(Stop::Immediate),
            |postgres| postgres.stop(Stop::Fast),
            |postgres| postgres.restart_immediately().expect("restarts"),
        ];
        for (number, stop) in stops.iter().enumerate() {
            postgres.psql("postgres", &format!("insert into kept values ({number})")).expect("insert");
            stop(&mut postgres);
            if postgres.running.is_none() {
                assert!(postgres.psql("postgres", "select 1").is_err(), "it still answers");
                postgres.start_again().expect("starts again");
            }
            let kept = postgres.psql("postgres", "select count(*) from kept").expect("select");
            assert_eq!(kept, (number + 1).to_string());
            assert_eq!(postgres.address(), address);
        }
    }

    #[test]
    fn a_dropped_server_leaves_neither_process_nor_folder() {
        let postgres = postgres();
        let ours = postgres.running.as_ref().expect("it runs").id();
        let others = postgres.psql("postgres", "select pid from pg_stat_activity").expect("select");
        let folder = postgres.folder.path().to_path_buf();
        drop(postgres);
        for process in others.lines().chain([ours.to_string().as_str()]) {
            assert!(!Path::new("/proc").join(process).exists(), "process {process} is left");
        }
        assert!(!folder.exists());
    }

    #[test]
    fn settings_reach_the_server_and_a_wrong_one_is_named() {
        let postgres = Postgres::start_with(&["max_connections=20"]).expect("starts");
        assert_eq!(postgres.psql("postgres", "show max_connections").expect("show"), "20");
        let error = Postgres::start_with(&["no_such_setting=1"]).expect_err("wrong setting");
        assert!(error.to_string().contains("no_such_setting"), "{error}");
    }

    #[test]
    fn the_major_version_is_read_from_what_the_program_says() {
        assert_eq!(major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 17devel"), Some(17));
        assert_eq!(major("sh: not found"), None);
    }

    #[test]
    fn a_server_is_ready_when_its_own_status_says_so() {
        let status =
            |state: &str| format!("71\n/data\n1700000000\n20001\n/folder\n127.0.0.1\n  4211   0\n{state}   \n");
        assert!(says_ready(&status("ready"), 71));
        assert!(!says_ready(&status("starting"), 71));
        assert!(!says_ready(&status("ready"), 72));
        assert!(!says_ready("71\n", 71));
    }
}
