//! A private RabbitMQ: one node that knows no other, without plugins, and without the daemon that names Erlang nodes.
//!
//! The virtual machine is started as `rabbitmq-server` starts it, but by us: the script asks for a user of its own, a home
//! folder and `epmd`, the daemon that all Erlang programs of a machine share. Here the node listens to its own tools on a
//! port that they are told, so nothing is shared with anybody, and no process stays when it ends.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::child::{self, LastSignal, Rights, Running};
use crate::folder::Folder;
use crate::{Error, port};

/// Where Debian keeps each version: `/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8`.
const VERSIONS: &str = "/usr/lib/rabbitmq/lib";
/// A node takes three seconds of a processor to start; some machines have little of one.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long it may take to write its queues down when it is told to end.
const END_LIMIT: Duration = Duration::from_secs(30);
/// A single answer that takes longer does not come.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How often another program may take a port between choosing and using it.
const PORT_ATTEMPTS: u32 = 5;
/// The user and the password of every server.
const USER: &str = "windlass";
/// What a client of AMQP 0-9-1 says first.
const HELLO: &[u8] = b"AMQP\x00\x00\x09\x01";
/// More than a server says of itself before anybody has logged in.
const GREETING_BYTES: usize = 4096;

/// A RabbitMQ server of one test, or of one test program. It ends, and its data goes, when this value is dropped.
///
/// It takes three to six seconds to start, more on a busy machine, and some 120 MiB: a program shares one where it can.
#[derive(Debug)]
pub struct RabbitMq {
    // Before the folder: fields are dropped in this order, and a server that runs must not lose its files.
    running: Option<Running>,
    programs: Programs,
    settings: Vec<String>,
    address: SocketAddr,
    /// Where the node listens to its own tools.
    tools: SocketAddr,
    folder: Folder,
}

/// What is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Programs {
    erlang: PathBuf,
    /// The folder with the libraries of the server.
    libraries: PathBuf,
}

impl RabbitMq {
    /// Starts an empty server and waits until it takes connections.
    ///
    /// # Errors
    /// When no RabbitMQ is installed, or it does not start: with the end of its log.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(&[])
    }

    /// Starts an empty server with lines of `rabbitmq.conf` on top: `&["max_message_size = 65536"]`.
    ///
    /// # Errors
    /// As [`Self::start`]; a wrong line is among what Erlang has to say of it.
    pub fn start_with(settings: &[&str]) -> Result<Self, Error> {
        let programs = find().ok_or(Error::NotInstalled { program: "rabbitmq-server", package: "rabbitmq-server" })?;
        let settings = settings.iter().map(|&line| line.to_owned()).collect();
        let (folder, address, tools) = (Folder::new()?, port::free()?, port::free()?);
        let mut rabbit = Self { running: None, programs, settings, address, tools, folder };
        for _ in 1..PORT_ATTEMPTS {
            match rabbit.start_again() {
                Err(error) if is_port_taken(&error) => {
                    (rabbit.address, rabbit.tools) = (port::free()?, port::free()?);
                    // The node is named after its port, and so is its data.
                    drop(fs::remove_dir_all(rabbit.data()));
                }
                other => return other.map(|()| rabbit),
            }
        }
        rabbit.start_again()?;
        Ok(rabbit)
    }

    /// Starts an empty server on this address.
    fn start_on(address: SocketAddr) -> Result<Self, Error> {
        let programs = find().ok_or(Error::NotInstalled { program: "rabbitmq-server", package: "rabbitmq-server" })?;
        let (folder, tools) = (Folder::new()?, port::free()?);
        let mut rabbit = Self { running: None, programs, settings: Vec::new(), address, tools, folder };
        rabbit.start_again()?;
        Ok(rabbit)
    }

    /// Whether a RabbitMQ is installed that [`Self::start`] can start.
    pub fn is_installed() -> bool {
        find().is_some()
    }

    /// `amqp://windlass:windlass@127.0.0.1:PORT/%2f`: the only user, who may do everything.
    pub fn url(&self) -> String {
        self.url_at(self.address)
    }

    /// The same server at another address, that of a [`crate::Proxy`] in front of it.
    pub fn url_at(&self, address: SocketAddr) -> String {
        url_at(address)
    }

    /// Where it listens; the same for its whole life.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills the server (SIGKILL) and waits for its end. Does nothing when it does not run.
    pub fn kill(&mut self) {
        drop(self.running.take());
    }

    /// Tells the server to end (SIGTERM) and waits for it; after 30 s it is killed. Does nothing when it does not run.
    pub fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end(Signal::TERM, END_LIMIT);
        }
    }

    /// Starts the server again on the same port with the same data, and waits until it takes connections. One that runs is
    /// killed first.
    ///
    /// # Errors
    /// When it does not start: with the end of its log.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.kill();
        self.write_configuration().map_err(Error::cannot("write the configuration of a RabbitMQ"))?;
        let (environment, arguments) = (self.environment(), self.arguments());
        let (erlang, folder) = (&self.programs.erlang, self.folder.path());
        let mut running = Running::start_in(&environment, erlang, &arguments, folder, Rights::Same, LastSignal::Kill)?;
        let (address, name) = (self.address, self.name());
        running.wait_until_ready(READY_LIMIT, |_| is_ready(address, &name))?;
        self.running = Some(running);
        Ok(())
    }

    /// Evaluates an expression of Erlang in the server, as `rabbitmqctl eval` does, and answers with its value as text:
    /// `rabbit.eval("rabbit_alarm:get_alarms().")`.
    ///
    /// # Errors
    /// [`Error::Refused`] with what Erlang says of it, or when the server does not run.
    pub fn eval(&self, expression: &str) -> Result<String, Error> {
        // The expression is an argument of its own, so that it needs no quoting.
        let program = "[Text] = init:get_plain_arguments(), \
             {ok, Tokens, _} = erl_scan:string(Text), \
             {ok, Parsed} = erl_parse:parse_exprs(Tokens), \
             [Node] = [list_to_atom(Name) || {asks, [Name]} <- init:get_arguments()], \
             case rpc:call(Node, erl_eval, exprs, [Parsed, []]) of \
               {value, Value, _} -> io:format(\"~tp\", [Value]), halt(0); \
               Other -> io:format(\"~tp\", [Other]), halt(1) \
             end.";
        let asker = format!("windlass-asker-{}@localhost", std::process::id());
        let tools = self.tools.port().to_string();
        let node = self.node();
        let own = ["-sname", &asker, "-dist_listen", "false", "-start_epmd", "false", "-erl_epmd_port", &tools];
        let mut command = Command::new(&self.programs.erlang);
        command.args(own).args([
            "-setcookie",
            &node,
            "-asks",
            &node,
            "-noshell",
            "-eval",
            program,
            "-extra",
            expression,
        ]);
        command.env("HOME", self.folder.path()).stdin(Stdio::null());
        child::without_settings_of_others(&mut command);
        let output = command.output().map_err(Error::cannot("start `erl`"))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(said) } else { Err(Error::Refused(said)) }
    }

    /// How many messages of a queue of the vhost `/` are delivered and not acknowledged yet, as the server counts them.
    ///
    /// # Errors
    /// As [`Self::eval`]; [`Error::Refused`] when there is no such queue.
    pub fn unacknowledged(&self, queue: &str) -> Result<u64, Error> {
        let count = self.eval(&format!(
            "{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
             [{{_, Count}}] = rabbit_amqqueue:info(Queue, [messages_unacknowledged]), Count."
        ))?;
        count.parse().map_err(|_| Error::Refused(count))
    }

    /// Ends every connection of a client, as an operator does.
    ///
    /// # Errors
    /// As [`Self::eval`].
    pub fn close_connections(&self) -> Result<(), Error> {
        self.eval("rabbit_networking:close_all_connections(<<\"a test closes it\">>).").map(drop)
    }

    /// Has the server write down which queues there are. It does so every few seconds: one that is killed before that has
    /// forgotten queues that it had confirmed, with the messages in them, or gives quorum queues no leader, for ever.
    ///
    /// # Errors
    /// As [`Self::eval`].
    pub fn write_down(&self) -> Result<(), Error> {
        self.eval("ok = mnesia:sync_log(), [dets:sync(Table) || Table <- dets:all()].").map(drop)
    }

    /// Raises the alarm of a server that has no memory left: who publishes is blocked. [`Self::allow_publishing`] ends it.
    ///
    /// # Errors
    /// As [`Self::eval`].
    pub fn block_publishing(&self) -> Result<(), Error> {
        self.eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).").map(drop)
    }

    /// Ends what [`Self::block_publishing`] began.
    ///
    /// # Errors
    /// As [`Self::eval`].
    pub fn allow_publishing(&self) -> Result<(), Error> {
        self.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()}).").map(drop)
    }

    /// Also its cookie, the password of its tools: both are its own.
    fn node(&self) -> String {
        format!("{}@localhost", self.name())
    }

    fn name(&self) -> String {
        format!("windlass-{}", self.address.port())
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("rabbitmq.conf")
    }

    fn plugins(&self) -> PathBuf {
        self.folder.path().join("enabled_plugins")
    }

    fn write_configuration(&self) -> std::io::Result<()> {
        let lines = [
            format!("listeners.tcp.1 = {}", self.address),
            format!("default_user = {USER}"),
            format!("default_pass = {USER}"),
            // Alarms are for servers that have the machine to themselves.
            "vm_memory_high_watermark.relative = 0.95".to_owned(),
            "disk_free_limit.absolute = 1MB".to_owned(),
            "log.console = true".to_owned(),
            "log.console.level = warning".to_owned(),
            "log.file = false".to_owned(),
        ];
        fs::write(
            self.configuration(),
            lines.iter().chain(&self.settings).map(String::as_str).collect::<Vec<_>>().join("\n") + "\n",
        )?;
        fs::write(self.plugins(), "[].\n")
    }

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let folder = self.folder.path();
        vec![
            ("HOME", folder.into()),
            ("ERL_LIBS", self.programs.libraries.clone().into()),
            ("ERL_CRASH_DUMP_SECONDS", "0".into()),
            ("RABBITMQ_NODENAME", self.node().into()),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
            ("RABBITMQ_CONFIG_FILE", self.configuration().into()),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", self.plugins().into()),
            ("RABBITMQ_MNESIA_BASE", self.data().into()),
            ("RABBITMQ_LOG_BASE", folder.join("log").into()),
            ("RABBITMQ_LOGS", "-".into()),
        ]
    }

    fn arguments(&self) -> Vec<String> {
        let (node, tools) = (self.node(), self.tools.port().to_string());
        let own = [
            // Without busy waiting: the machine has others to serve.
            "-boot start_sasl +W w +B i +sbwt none +sbwtdcpu none +sbwtdio none -noshell -noinput",
            &format!("-sname {node} -setcookie {node}"),
            &format!("-start_epmd false -erl_epmd_port {tools} -kernel inet_dist_use_interface {{127,0,0,1}}"),
            "-s rabbit boot -syslog logger [] -syslog syslog_error_logger false",
            "-kernel prevent_overlapping_partitions false",
        ];
        own.iter().flat_map(|words| words.split(' ')).map(str::to_owned).collect()
    }
}

fn url_at(address: SocketAddr) -> String {
    format!("amqp://{USER}:{USER}@{address}/%2f")
}

/// A RabbitMQ that is started when somebody connects for the first time, for test programs that share one.
///
/// Who connects first is turned away, as by a server that is down, until it is there: [`crate::rabbitmq_url`] waits for that.
#[derive(Debug)]
pub struct RabbitMqOnDemand {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    starter: Option<JoinHandle<Result<Option<RabbitMq>, Error>>>,
}

impl RabbitMqOnDemand {
    /// Listens for the first connection.
    ///
    /// # Errors
    /// When no port is free.
    pub fn listen() -> Result<Self, Error> {
        let listener = port::listen()?;
        let address = listener.local_addr().map_err(Error::cannot("read the address of a listener"))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let starter = thread::spawn(move || {
            let came = listener.accept().map_err(Error::cannot("accept a connection"));
            drop(listener);
            drop(came?);
            if ends.load(Ordering::SeqCst) {
                return Ok(None);
            }
            let started = RabbitMq::start_on(address);
            if let Err(error) = &started {
                // tidy: allow(print): nobody else learns why the tests that wait for it fail
                eprintln!("servers: a RabbitMQ on {address} does not start: {error}");
            }
            started.map(Some)
        });
        Ok(Self { address, is_over, starter: Some(starter) })
    }

    /// Where it will listen.
    pub fn url(&self) -> String {
        url_at(self.address)
    }
}

impl Drop for RabbitMqOnDemand {
    /// Ends the server, if it was ever started.
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread, if nobody has yet.
        drop(TcpStream::connect_timeout(&self.address, ANSWER_LIMIT));
        drop(self.starter.take().map(JoinHandle::join));
    }
}

/// Waits until a server at this address greets, whatever its name is. Answers whether it does.
pub(crate) fn wait_for(address: SocketAddr) -> bool {
    let limit = Instant::now() + READY_LIMIT;
    while Instant::now() < limit {
        if greeting(address).is_ok_and(|greeting| !greeting.is_empty()) {
            return true;
        }
        thread::sleep(Duration::from_millis(50));
    }
    false
}

/// The newest RabbitMQ that is installed, and the Erlang that runs it.
fn find() -> Option<Programs> {
    let erlang = child::find("erl")?;
    let versions = fs::read_dir(VERSIONS).ok()?.flatten().map(|version| version.path());
    let newest = versions.filter(|folder| is_server(folder)).max_by_key(|folder| version_of(folder))?;
    Some(Programs { erlang, libraries: newest.join("plugins") })
}

fn is_server(folder: &Path) -> bool {
    folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rabbitmq_server-"))
        && folder.join("plugins").is_dir()
}

/// The numbers in the name of a folder, so that 3.10 is newer than 3.9.
fn version_of(folder: &Path) -> Vec<u32> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    name.split(['-', '.']).filter_map(|part| part.parse().ok()).collect()
}

/// Erlang has its own words for it.
fn is_port_taken(error: &Error) -> bool {
    error.is_port_taken() || matches!(error, Error::Ended { log, .. } if log.contains("eaddrinuse"))
}

/// Whether the node with this name takes connections here. Another program may have taken the port: then ours ends soon.
fn is_ready(address: SocketAddr, name: &str) -> bool {
    // It names its cluster in the first thing that it says: the name of its first node, at the name of the machine.
    let mark = format!("{name}@");
    greeting(address).is_ok_and(|greeting| greeting.windows(mark.len()).any(|part| part == mark.as_bytes()))
}

/// The first thing that a server says.
fn greeting(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(HELLO)?;
    let mut greeting = vec![0; GREETING_BYTES];
    let length = stream.read(&mut greeting)?;
    greeting.truncate(length);
    Ok(greeting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_answers_is_killed_comes_back_and_leaves_nothing() {
        let mut rabbit = RabbitMq::start_with(&["max_message_size = 65536"]).expect("it starts: is it installed?");
        let address = rabbit.address();
        let setting = "application:get_env(rabbit, max_message_size).";
        assert_eq!(rabbit.eval(setting).expect("it answers"), "{ok,65536}");
        assert_eq!(rabbit.eval("rabbit_mnesia:is_clustered().").expect("it answers"), "false");
        assert_eq!(rabbit.eval("[V || #{name := V} <- []].").expect("it answers"), "[]");
        let error = rabbit.eval("1 = 2.").expect_err("no match");
        assert!(matches!(&error, Error::Refused(why) if why.contains("badmatch")), "{error}");
        assert!(matches!(rabbit.unacknowledged("nothing"), Err(Error::Refused(_))));

        let add = "rabbit_vhost:add(<<\"kept\">>, <<\"a test\">>).";
        rabbit.eval(add).expect("a vhost");
        for end in [RabbitMq::kill, RabbitMq::stop] {
            end(&mut rabbit);
            assert!(TcpStream::connect(address).is_err(), "it still listens");
            assert!(rabbit.eval("ok.").is_err(), "it still answers");
            rabbit.start_again().expect("starts again");
            assert_eq!(rabbit.address(), address);
            assert_eq!(rabbit.eval("rabbit_vhost:exists(<<\"kept\">>).").expect("it answers"), "true");
        }

        let process = rabbit.running.as_ref().expect("it runs").id();
        let children = children_of(process);
        let folder = rabbit.folder.path().to_path_buf();
        assert!(listeners_of(process).iter().all(|listener| listener.starts_with("0100007F:")), "loopback only");
        drop(rabbit);
        assert!(!PathBuf::from(format!("/proc/{process}")).exists());
        assert!(!folder.exists());
        let limit = std::time::Instant::now() + ANSWER_LIMIT;
        while children.iter().any(|child| PathBuf::from(format!("/proc/{child}")).exists()) {
            assert!(std::time::Instant::now() < limit, "left behind: {children:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_newest_version_is_the_greatest_number() {
        let version = |name: &str| version_of(Path::new(name));
        assert!(version("rabbitmq_server-3.10.8") > version("rabbitmq_server-3.9.27"));
        assert!(version("rabbitmq_server-4.0.1") > version("rabbitmq_server-3.13.0"));
    }

    fn children_of(process: u32) -> Vec<String> {
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).collect()
    }

    /// The local addresses on which a process listens, as `/proc/net/tcp` spells them.
    fn listeners_of(process: u32) -> Vec<String> {
        let files = fs::read_dir(format!("/proc/{process}/fd")).expect("its files").flatten();
        let sockets: Vec<String> = files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .filter_map(|link| Some(link.to_string_lossy().strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
            .collect();
        let tables =
            ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default());
        let rows = tables.iter().flat_map(|table| table.lines().skip(1));
        rows.map(|row| row.split_whitespace().collect::<Vec<_>>())
            .filter(|row| row[3] == "0A" && sockets.iter().any(|socket| socket == row[9]))
            .map(|row| row[1].to_owned())
            .collect()
    }
}
