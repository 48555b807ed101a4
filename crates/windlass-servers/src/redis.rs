//! A private Redis (or Valkey), with its append-only log on.

use std::fmt::Write as _;
use std::io::{self, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::child::{self, LastSignal, Rights, Running};
use crate::folder::Folder;
use crate::{Error, port};

/// Loading a large log on a busy machine; an empty server is ready in some 20 ms.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to write its log when it is told to end.
const END_LIMIT: Duration = Duration::from_secs(10);
/// A single answer that takes longer does not come.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How often another program may take the port between choosing and using it.
const PORT_ATTEMPTS: u32 = 5;

/// When the server syncs its append-only log to the disk.
///
/// A machine that loses its power loses what was not synced. A killed server mostly loses nothing, as its writes are with the
/// kernel; but with [`Aof::EverySec`] it puts its writes off while a sync takes long, and what it has answered in up to two
/// seconds is gone. A test that kills a busy server takes [`Aof::Always`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aof {
    /// Every second.
    EverySec,
    /// Before every answer.
    Always,
}

impl Aof {
    fn word(self) -> &'static str {
        match self {
            Self::EverySec => "everysec",
            Self::Always => "always",
        }
    }
}

/// A Redis server of one test. It ends, and its data goes, when this value is dropped.
#[derive(Debug)]
pub struct Redis {
    // Before the folder: fields are dropped in this order, and a server that runs must not lose its files.
    running: Option<Running>,
    program: PathBuf,
    aof: Aof,
    options: Vec<String>,
    address: SocketAddr,
    folder: Folder,
}

impl Redis {
    /// Starts an empty server and waits until it answers.
    ///
    /// # Errors
    /// When no Redis is installed, or it does not start: with the end of its log.
    pub fn start(aof: Aof) -> Result<Self, Error> {
        Self::start_with(aof, &[])
    }

    /// Starts an empty server with options of its command line on top: `&["--maxmemory", "64mb"]`.
    ///
    /// # Errors
    /// As [`Self::start`]; a wrong option is named in the log.
    pub fn start_with(aof: Aof, options: &[&str]) -> Result<Self, Error> {
        let program = find().ok_or(Error::NotInstalled { program: "redis-server", package: "redis-server" })?;
        let options = options.iter().map(|&word| word.to_owned()).collect();
        let (folder, address) = (Folder::new()?, port::free()?);
        let mut redis = Self { running: None, program, aof, options, address, folder };
        for _ in 1..PORT_ATTEMPTS {
            match redis.start_again() {
                Err(error) if error.is_port_taken() => redis.address = port::free()?,
                other => return other.map(|()| redis),
            }
        }
        redis.start_again()?;
        Ok(redis)
    }

    /// Whether a program is installed that [`Self::start`] can start.
    pub fn is_installed() -> bool {
        find().is_some()
    }

    /// `redis://127.0.0.1:PORT/0`.
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// Where it listens; the same for its whole life.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills the server (SIGKILL) and waits for its end. Does nothing when it does not run.
    pub fn kill(&mut self) {
        drop(self.running.take());
    }

    /// Tells the server to end (SIGTERM) and waits for it; after 10 s it is killed. Does nothing when it does not run.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end(Signal::TERM, END_LIMIT);
        }
    }

    /// Starts the server again on the same port with the same data, and waits until it answers. One that runs is killed
    /// first.
    ///
    /// # Errors
    /// When it does not start: with the end of its log.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.kill();
        let (arguments, folder) = (self.arguments(), self.folder.path());
        let mut running = Running::start(&self.program, &arguments, folder, Rights::Same, LastSignal::Kill)?;
        let address = self.address;
        running.wait_until_ready(READY_LIMIT, |process| is_ready(address, process))?;
        self.running = Some(running);
        Ok(())
    }

    /// Sends one command over a new connection, as `redis-cli` does: `redis.cli(&["SET", "key", "value"])`.
    ///
    /// Answers with the text of the reply; the parts of a list stand on lines of their own, a missing value is empty.
    /// # Errors
    /// [`Error::Refused`] with the server's words; [`Error::Unreachable`] when there is no answer within 30 s.
    pub fn cli(&self, words: &[&str]) -> Result<String, Error> {
        ask(self.address, words)
    }

    fn arguments(&self) -> Vec<String> {
        let port = self.address.port().to_string();
        let folder = self.folder.path().to_string_lossy();
        let own = [
            ["--port", &port],
            ["--bind", "127.0.0.1"],
            ["--dir", &folder],
            ["--daemonize", "no"],
            ["--save", ""],
            ["--appendonly", "yes"],
            ["--appendfsync", self.aof.word()],
        ];
        own.iter().flatten().map(|&word| word.to_owned()).chain(self.options.iter().cloned()).collect()
    }
}

fn find() -> Option<PathBuf> {
    child::find("redis-server").or_else(|| child::find("valkey-server"))
}

/// Whether the server with this process id answers here. Another program may have taken the port: then ours ends soon.
fn is_ready(address: SocketAddr, process: u32) -> bool {
    match ask(address, &["PING"]) {
        Ok(_) => ask(address, &["INFO", "server"])
            .is_ok_and(|info| info.lines().any(|line| line == format!("process_id:{process}"))),
        // It was started with a password, which is not ours to know. It loads first and listens to passwords then.
        Err(Error::Refused(why)) => why.starts_with("NOAUTH"),
        Err(_) => false,
    }
}

/// Sends one command and reads its reply.
fn ask(address: SocketAddr, words: &[&str]) -> Result<String, Error> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        // Writing to a string does not fail.
        let _ = write!(request, "${}\r\n{word}\r\n", word.len());
    }
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(request.as_bytes())?;
        read_reply(&mut BufReader::new(stream))
    };
    exchange().map_err(Error::Unreachable)?.map_err(Error::Refused)
}

/// Reads one reply: its text, or the error that the server answered with.
fn read_reply(reader: &mut impl io::BufRead) -> io::Result<Result<String, String>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("the reply `{}` is cut off", line.trim_end()));
    let Some((kind, rest)) = line.strip_suffix("\r\n").and_then(|line| line.split_at_checked(1)) else {
        return Err(broken());
    };
    let length = || rest.parse::<i64>().map_err(|_| broken());
    match kind {
        "+" | ":" => Ok(Ok(rest.to_owned())),
        "-" => Ok(Err(rest.to_owned())),
        "$" => {
            // A missing value has the length -1.
            let Ok(length) = usize::try_from(length()?) else { return Ok(Ok(String::new())) };
            let mut text = vec![0; length + 2];
            reader.read_exact(&mut text)?;
            text.truncate(length);
            Ok(Ok(String::from_utf8_lossy(&text).into_owned()))
        }
        "*" => {
            let parts = (0..length()?).map(|_| read_reply(reader));
            Ok(parts.collect::<io::Result<Result<Vec<String>, String>>>()?.map(|parts| parts.join("\n")))
        }
        _ => Err(broken()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(aof: Aof) -> Redis {
        Redis::start(aof).expect("Redis starts: is it installed?")
    }

    #[test]
    fn a_server_answers_and_keeps_what_it_was_told() {
        let redis = redis(Aof::EverySec);
        assert_eq!(redis.cli(&["SET", "key", "two words"]).expect("set"), "OK");
        assert_eq!(redis.cli(&["GET", "key"]).expect("get"), "two words");
        assert_eq!(redis.cli(&["GET", "nothing"]).expect("get"), "");
        assert_eq!(redis.cli(&["MGET", "key", "nothing", "key"]).expect("mget"), "two words\n\ntwo words");
        let error = redis.cli(&["INCR", "key"]).expect_err("not a number");
        assert!(matches!(&error, Error::Refused(why) if why.starts_with("ERR value is not an integer")), "{error}");
    }

    #[test]
    fn the_log_is_on_and_snapshots_are_off() {
        for (aof, word) in [(Aof::EverySec, "everysec"), (Aof::Always, "always")] {
            let redis = redis(aof);
            assert_eq!(redis.cli(&["CONFIG", "GET", "appendonly"]).expect("config"), "appendonly\nyes");
            assert_eq!(redis.cli(&["CONFIG", "GET", "appendfsync"]).expect("config"), format!("appendfsync\n{word}"));
            assert_eq!(redis.cli(&["CONFIG", "GET", "save"]).expect("config"), "save\n");
        }
    }

    #[test]
    fn what_was_answered_is_there_after_a_kill_and_after_a_stop() {
        let mut redis = redis(Aof::EverySec);
        let address = redis.address();
        for (number, end) in [Redis::kill, Redis::stop].into_iter().enumerate() {
            let value = number.to_string();
            redis.cli(&["SET", "key", &value]).expect("set");
            end(&mut redis);
            assert!(matches!(redis.cli(&["PING"]), Err(Error::Unreachable(_))), "it still answers");
            redis.start_again().expect("starts again");
            assert_eq!(redis.cli(&["GET", "key"]).expect("get"), value);
            assert_eq!(redis.address(), address);
        }
    }

    #[test]
    fn a_dropped_server_leaves_neither_process_nor_folder() {
        let redis = redis(Aof::Always);
        let process = redis.running.as_ref().expect("it runs").id();
        let folder = redis.folder.path().to_path_buf();
        drop(redis);
        assert!(!PathBuf::from(format!("/proc/{process}")).exists());
        assert!(!folder.exists());
    }

    #[test]
    fn options_reach_the_server_and_a_wrong_one_is_named() {
        let redis = Redis::start_with(Aof::EverySec, &["--maxmemory", "64mb"]).expect("starts");
        assert_eq!(redis.cli(&["CONFIG", "GET", "maxmemory"]).expect("config"), "maxmemory\n67108864");
        let error = Redis::start_with(Aof::EverySec, &["--no-such-option", "1"]).expect_err("wrong option");
        assert!(error.to_string().contains("no-such-option"), "{error}");
    }

    #[test]
    fn a_server_with_a_password_is_ready_when_it_asks_for_it() {
        let redis = Redis::start_with(Aof::EverySec, &["--requirepass", "secret"]).expect("starts");
        assert!(matches!(redis.cli(&["PING"]), Err(Error::Refused(why)) if why.starts_with("NOAUTH")));
    }

    #[test]
    fn two_servers_know_nothing_of_each_other() {
        let (one, two) = (redis(Aof::EverySec), redis(Aof::EverySec));
        one.cli(&["SET", "key", "1"]).expect("set");
        assert_eq!(two.cli(&["EXISTS", "key"]).expect("exists"), "0");
    }

    #[test]
    fn a_reply_that_is_cut_off_is_an_error() {
        for reply in ["", "+OK", "$5\r\nab", "*2\r\n+a\r\n", "?1\r\n", "$x\r\n"] {
            assert!(read_reply(&mut reply.as_bytes()).is_err(), "{reply:?}");
        }
    }
}
