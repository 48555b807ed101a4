//! The child's end: what its supervisor wants is heard on a thread of its own, and the engine's thread says that it lives.
//!
//! Neither needs the threads that handlers run on: all of those may be blocked.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use windlass::config::WorkerConfig;
use windlass::event::{Event, Listener};
use windlass::view::NodePhase;
use windlass::worker::{Advice, Guard, Shutdown, ShutdownStep};

use super::proc;
use super::word::{Command, Word};
use crate::exit::{Exit, Problem};

/// A beat is sent with every fifth look of the guard: twice a second.
const LOOKS_PER_BEAT: u32 = 5;
/// How long a child whose supervisor has ended may take to give back what runs.
const END_LIMIT: Duration = Duration::from_secs(15);

/// What ties a child to its supervisor.
#[derive(Debug)]
pub(crate) struct Tether {
    channel: UnixStream,
    recycle_tasks: u64,
    recycle_memory: u64,
    memory_max: u64,
    settled: AtomicU64,
    looks: AtomicU32,
    said_due: AtomicBool,
}

impl Tether {
    /// Takes the channel that the supervisor has put in the place of standard input, and hears it from now on.
    ///
    /// # Errors
    /// When there is none: nobody but a supervisor starts children.
    pub(crate) fn take(config: &WorkerConfig, shutdown: Shutdown) -> Result<Self, Problem> {
        let channel = channel().map_err(|error| {
            Problem::usage(
                format_args!("there is no supervisor at standard input: {error}"),
                "start `windlass worker --processes N`, which starts its children itself",
            )
        })?;
        let hearing = channel.try_clone()?;
        // A supervisor that does not read must not hold up the engine.
        channel.set_write_timeout(Some(Duration::from_millis(1)))?;
        std::thread::Builder::new().name("windlass-tether".to_owned()).spawn(move || hear(hearing, &shutdown))?;
        Ok(Self {
            channel,
            recycle_tasks: if config.recycle_tasks == 0 { u64::MAX } else { config.recycle_tasks },
            recycle_memory: config.recycle_memory.unwrap_or(u64::MAX),
            memory_max: config.memory_max.unwrap_or(u64::MAX),
            settled: AtomicU64::new(0),
            looks: AtomicU32::new(0),
            said_due: AtomicBool::new(false),
        })
    }

    fn say(&self, word: Word) {
        // A supervisor that is gone is noticed where it is heard.
        let _ = (&self.channel).write_all(&[word.byte()]);
    }

    fn say_due_once(&self) {
        if !self.said_due.swap(true, Ordering::Relaxed) {
            self.say(Word::Due);
        }
    }
}

/// The channel, moved away from standard input: what a task starts must not inherit it.
fn channel() -> std::io::Result<UnixStream> {
    let channel = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    // Fails for anything but a socket.
    channel.peer_addr()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    // All that this process starts is in its session, so that it can be found when this process has ended.
    rustix::process::setsid()?;
    Ok(channel)
}

fn hear(mut channel: UnixStream, shutdown: &Shutdown) {
    let mut byte = [0];
    loop {
        match channel.read(&mut byte) {
            Ok(1) => match Command::of(byte[0]) {
                Some(Command::Quiet) => shutdown.begin(ShutdownStep::Quiet),
                Some(Command::Stop) => shutdown.begin(ShutdownStep::Graceful),
                Some(Command::StopNow) => shutdown.begin(ShutdownStep::Immediate),
                None => {}
            },
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    tracing::warn!(event = "supervisor_gone", "the supervisor has ended: giving back what runs");
    shutdown.begin(ShutdownStep::Immediate);
    // tidy: allow(sleep): so long the engine may take; this thread ends with the process
    std::thread::sleep(END_LIMIT);
    // The store does not answer, and nobody is left to be told: leases return what could not be given back.
    std::process::exit(i32::from(Exit::Failed.code()));
}

impl Guard for Tether {
    fn look(&self) -> Advice {
        if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKS_PER_BEAT) {
            self.say(Word::Beat);
        }
        if self.recycle_memory == u64::MAX && self.memory_max == u64::MAX {
            return Advice::GoOn;
        }
        let used = proc::resident(std::process::id()).unwrap_or(0);
        if used > self.recycle_memory {
            self.say_due_once();
        }
        if used > self.memory_max {
            return Advice::OutOfMemory { used, limit: self.memory_max };
        }
        Advice::GoOn
    }
}

impl Listener for Tether {
    fn on_event(&self, event: &Event) {
        match event {
            Event::Settled { .. } if self.settled.fetch_add(1, Ordering::Relaxed) + 1 >= self.recycle_tasks => {
                self.say_due_once();
            }
            Event::Phase(NodePhase::Running) => self.say(Word::Ready),
            Event::Phase(NodePhase::Stopping) => self.say(Word::Leaving),
            _ => {}
        }
    }
}
