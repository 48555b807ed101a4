//! `--processes N`: a supervisor and its children, which are workers in processes of their own.
//!
//! A thread cannot be ended, a process can. So a handler that never gives its thread back, or eats the memory, costs one
//! child and not the worker. The supervisor runs no task and needs no store: it only hears orders from there.
//!
//! | file | owns |
//! |---|---|
//! | `crew.rs` | what the supervisor does next: pure |
//! | `word.rs` | what supervisor and child say to each other |
//! | `tether.rs` | the child's end |
//! | `proc.rs` | what the system knows of processes |
//! | `ears.rs` | the signals of a supervisor |
//! | `orders.rs` | the supervisor as a node of the fleet, which hears orders |
//!
//! This file is the event loop: it starts, hears, tells, kills and buries.

mod crew;
mod ears;
mod orders;
mod proc;
mod tether;
mod word;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::io::AsyncReadExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use windlass::NodeId;
use windlass::config::Loaded;
use windlass::view::NodePhase;

use crate::exit::{Exit, Outcome};
use crate::signals::Stops;
pub(crate) use crew::CHILDREN_MAX;
use crew::{Crew, Effect, Event, LOOK_EVERY, Plan, Reason, Serial, Told};
use ears::{Ears, Heard};
use orders::Shown;
pub(crate) use orders::is_supervisor;
pub(crate) use tether::Tether;
use word::{Command, Word};

/// Words that wait to be heard; children wait for a place.
const WORDS_MAX: usize = 1_024;
/// Orders that wait to be obeyed.
const ORDERS_MAX: usize = 16;
/// How long the farewell to the fleet may take.
const FAREWELL_WITHIN: Duration = Duration::from_secs(2);

/// Which child a process is; the supervisor says it on its command line.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// From 1.
    pub(crate) number: u16,
    /// Its name in the fleet.
    pub(crate) node: NodeId,
}

impl Place {
    /// Where it answers probes: every child has a port of its own, from the one that was asked for on.
    pub(crate) fn listen(&self, first: SocketAddr) -> SocketAddr {
        let port = if first.port() == 0 { 0 } else { first.port().saturating_add(self.number - 1) };
        SocketAddr::new(first.ip(), port)
    }
}

/// A process that was started and has not been buried.
struct Process {
    node: String,
    pid: u32,
    started_at: Instant,
    channel: OwnedWriteHalf,
}

struct Supervisor {
    crew: Crew,
    node: NodeId,
    program: PathBuf,
    args: Vec<OsString>,
    processes: BTreeMap<Serial, Process>,
    words: mpsc::Sender<(Serial, Word)>,
    shown: watch::Sender<Shown>,
}

/// Supervises children until it is told to stop and all of them have ended.
pub(crate) async fn run(loaded: &Loaded, node: NodeId) -> Outcome {
    let config = &loaded.config.worker;
    let ears = Ears::open()?;
    let plan = Plan { children: config.processes, grace: config.grace, memory_max: config.memory_max };
    let (words, heard) = mpsc::channel(WORDS_MAX);
    tracing::info!(event = "supervisor_starting", node = %node, processes = plan.children, "supervisor starting");
    let crew = Crew::new(plan, Instant::now());
    let (shown, showing) = watch::channel(crew.shown());
    let (told, orders) = mpsc::channel(ORDERS_MAX);
    let hearing = tokio::spawn(orders::hear(loaded.clone(), node.clone(), showing, told));
    let supervisor = Supervisor {
        crew,
        node,
        shown,
        // Remembered before it can be replaced: the path of a program that was is gone.
        program: std::env::current_exe()?,
        args: crate::program::given(),
        processes: BTreeMap::new(),
        words,
    };
    let (exit, shown) = supervisor.run(ears, heard, orders).await;
    shown.send_modify(|shown| shown.phase = NodePhase::Stopped);
    // Without a farewell it counts as lost, once its last beat is old.
    let _ = tokio::time::timeout(FAREWELL_WITHIN, hearing).await;
    tracing::info!(event = "supervisor_stopped", "supervisor stopped");
    Ok(exit)
}

impl Supervisor {
    async fn run(
        mut self,
        mut ears: Ears,
        mut heard: mpsc::Receiver<(Serial, Word)>,
        mut orders: mpsc::Receiver<Told>,
    ) -> (Exit, watch::Sender<Shown>) {
        let stops = Stops::default();
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut effects = self.crew.begin(Instant::now());
        loop {
            for effect in effects {
                match effect {
                    Effect::Leave(exit) => return (if exit == Exit::Ok { stops.exit() } else { exit }, self.shown),
                    other => self.perform(other),
                }
            }
            let shown = self.crew.shown();
            self.shown.send_if_modified(|before| std::mem::replace(before, shown) != shown);
            // What children have said comes before the time: whoever was stopped must not take them for silent.
            let events = tokio::select! {
                biased;
                Some((serial, word)) = heard.recv() => vec![Event::Heard(serial, word)],
                signal = ears.next() => self.hear(signal, &stops),
                Some(told) = orders.recv() => vec![Event::Told(told)],
                _ = look.tick() => vec![Event::Look(self.memory())],
            };
            let now = Instant::now();
            effects = events.into_iter().flat_map(|event| self.crew.step(event, now)).collect();
        }
    }

    fn hear(&mut self, heard: Heard, stops: &Stops) -> Vec<Event> {
        match heard {
            Heard::ChildEnded => return self.bury(),
            Heard::Dump => self.signal_all(Signal::USR2),
            Heard::Stop(exit) => {
                let told = if stops.add(exit) == windlass::worker::ShutdownStep::Graceful {
                    tracing::info!(event = "signal", "told to stop: children finish what runs; once more: at once");
                    Told::Stop
                } else {
                    tracing::warn!(event = "signal", "told to stop at once: children give back what runs");
                    Told::StopNow
                };
                return vec![Event::Told(told)];
            }
            Heard::Quiet => {
                tracing::info!(event = "signal", "told to be quiet: no child takes more tasks");
                return vec![Event::Told(Told::Quiet)];
            }
            Heard::More => return vec![Event::Told(Told::More)],
            Heard::Fewer => return vec![Event::Told(Told::Fewer)],
        }
        Vec::new()
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Start { serial, number } => self.start(serial, number),
            Effect::Say(serial, command) => self.say(serial, command),
            Effect::Kill(serial, reason) => self.kill(serial, reason),
            Effect::BackOff(_, wait) => tracing::warn!(
                event = "child_backoff",
                again_in_ms = wait.as_millis() as u64,
                "a child has died: another is started later"
            ),
            Effect::Leave(_) => {}
        }
    }

    /// A child is this program with the same command line, and two flags that say which child it is.
    fn start(&mut self, serial: Serial, number: usize) {
        match self.spawn(serial, number) {
            Ok(process) => {
                tracing::info!(
                    event = "child_started",
                    child = %process.node,
                    child_pid = process.pid,
                    children_wanted = self.crew.wanted(),
                    "child started"
                );
                self.processes.insert(serial, process);
            }
            Err(error) => {
                tracing::error!(event = "child_not_started", %error, "a child cannot be started");
                for effect in self.crew.step(Event::NotStarted(serial), Instant::now()) {
                    self.perform(effect);
                }
            }
        }
    }

    fn spawn(&self, serial: Serial, number: usize) -> std::io::Result<Process> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let (reader, channel) = tokio::net::UnixStream::from_std(ours)?.into_split();
        let node = format!("{}-{number}", self.node);
        let child = std::process::Command::new(&self.program)
            .args(&self.args)
            .args(["--child-number", &number.to_string(), "--child-name", &node])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        tokio::spawn(listen(serial, reader, self.words.clone()));
        // Its end is seen by `bury`, as that of every other process that has come to be ours.
        Ok(Process { node, pid: child.id(), started_at: Instant::now(), channel })
    }

    fn say(&self, serial: Serial, command: Command) {
        let Some(process) = self.processes.get(&serial) else { return };
        // One that has just ended is buried soon; the channel has room for all that is ever said.
        let _ = process.channel.try_write(&[command.byte()]);
        // One that still waits for its store hears signals only.
        if command == Command::Stop
            && let Some(pid) = proc::pid(process.pid)
        {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn kill(&self, serial: Serial, reason: Reason) {
        let Some(process) = self.processes.get(&serial) else { return };
        let why = match reason {
            Reason::Silent => "its engine has said nothing for too long",
            Reason::StillThere => "it does not end",
            Reason::Memory => "it uses more memory than it may and does not end",
        };
        tracing::error!(event = "child_killed", child = %process.node, child_pid = process.pid, why, "child is killed");
        if let Some(pid) = proc::pid(process.pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.processes.values().filter_map(|process| proc::pid(process.pid)) {
            let _ = kill_process(pid, signal);
        }
    }

    fn memory(&self) -> Vec<(Serial, u64)> {
        let used = |(serial, process): (&Serial, &Process)| Some((*serial, proc::resident(process.pid)?));
        self.processes.iter().filter_map(used).collect()
    }

    /// Takes note of every process that has ended. As process 1 of a container the supervisor also gets those that lost
    /// their parent: nobody else would ever take them away.
    fn bury(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_pid().unsigned_abs();
            let Some(serial) = self.processes.iter().find(|(_, process)| process.pid == pid).map(|(serial, _)| *serial)
            else {
                continue;
            };
            proc::end_session(pid);
            if let Some(process) = self.processes.remove(&serial) {
                log_end(&process, status);
            }
            events.push(Event::Ended(serial, status.exit_status()));
        }
        events
    }
}

fn log_end(process: &Process, status: WaitStatus) {
    let why = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) if code == i32::from(Exit::Stuck.code()) => "a handler does not give its thread back",
        (Some(code), _) if code == i32::from(Exit::OutOfMemory.code()) => "it used more memory than it may",
        (Some(0), _) => "in order",
        (Some(_), _) => "with an error",
        (None, _) => "by a signal",
    };
    tracing::info!(
        event = "child_ended",
        child = %process.node,
        child_pid = process.pid,
        why,
        exit_code = status.exit_status(),
        signal = status.terminating_signal(),
        lived_ms = process.started_at.elapsed().as_millis() as u64,
        "child ended"
    );
}

/// Hears a child until its end of the channel closes.
async fn listen(serial: Serial, mut channel: OwnedReadHalf, words: mpsc::Sender<(Serial, Word)>) {
    let mut bytes = [0; 64];
    while let Ok(count @ 1..) = channel.read(&mut bytes).await {
        for word in bytes[..count].iter().filter_map(|byte| Word::of(*byte)) {
            if words.send((serial, word)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_child_answers_probes_at_a_port_of_its_own() {
        let listen = |number, first: &str| {
            let place = Place { number, node: NodeId::known("w") };
            place.listen(first.parse().unwrap()).to_string()
        };
        assert_eq!(listen(1, "127.0.0.1:9100"), "127.0.0.1:9100");
        assert_eq!(listen(3, "127.0.0.1:9100"), "127.0.0.1:9102");
        assert_eq!(listen(3, "127.0.0.1:0"), "127.0.0.1:0", "any that is free");
    }
}
