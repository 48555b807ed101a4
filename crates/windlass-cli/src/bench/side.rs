//! `bench worker`: a worker in a process of its own. Nobody but the other measurements calls it.
//!
//! The store's URL is the first line of its standard input, where no list of processes shows the password in it. It
//! opens the store, says `ready`, and works after the next line until it is told to terminate or its standard input is
//! closed. Each line that it writes is a [`Word`].

use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use windlass::QueueName;
use windlass::worker::SLOTS_MAX;

use super::bed::{self, Open, Place, Watch, Working, keep_everything};
use super::measured::Batches;
use super::stats::Histogram;
use super::{latency, machine};
use crate::exit::{Exit, Problem};

/// How often a worker says how many tasks it has done; when the last one ended is exact.
const COUNT_EVERY: Duration = Duration::from_millis(5);

/// A worker of `bench` in a process of its own
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench worker --queue bench-1              the URL of the store is read from standard input")]
pub(crate) struct Args {
    /// The queue that it works on
    #[arg(long, value_name = "NAME")]
    queue: QueueName,
    /// What its tasks are
    #[arg(long, value_name = "WORK", default_value = "noop")]
    work: Work,
    /// Tasks that run at once
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX as i64))]
    slots: u32,
}

/// What the tasks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Work {
    /// Nothing.
    Noop,
    /// They say when they have started.
    Stamp,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// It has opened the store.
    Ready,
    /// A task has started so many microseconds after its enqueue.
    Started(u64),
    /// So many tasks have ended until now.
    Settled(u64),
    /// What it has done, at its end.
    Done(Box<Done>),
}

/// What a worker has done.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) settled: u64,
    pub(super) wrong: u64,
    /// When the last task ended, in microseconds since 1970.
    pub(super) last_at: i64,
    pub(super) cpu_seconds: Option<f64>,
    pub(super) memory_peak: Option<u64>,
    pub(super) held: Histogram,
    pub(super) claims: Batches,
    pub(super) settles: Batches,
}

/// The process itself.
pub(super) async fn run(args: &Args) -> Result<(), Problem> {
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    let Some(url) = orders.next_line().await? else { return Ok(()) };
    let open = Place::of(Some(&url))?.open(keep_everything()).await?;
    let (sender, mut starts) = mpsc::unbounded_channel();
    let registry = match args.work {
        Work::Noop => bed::noop_registry().await?,
        Work::Stamp => latency::stamp_registry(sender.clone()).await?,
    };
    say(&Word::Ready)?;
    if orders.next_line().await?.is_none() {
        return Ok(());
    }
    machine::forget_peak();
    let cpu = machine::cpu_seconds();
    let watch = Arc::new(Watch::default());
    let worker = Working::start(&open.backend, registry, &args.queue, Some(args.slots as usize), &watch);
    let mut counts = tokio::time::interval(COUNT_EVERY);
    let mut said = 0;
    let mut ended = std::pin::pin!(super::interrupted());
    loop {
        tokio::select! {
            Some(after) = starts.recv() => say(&Word::Started(after))?,
            _ = counts.tick() => if watch.settled() != said {
                said = watch.settled();
                say(&Word::Settled(said))?;
            },
            _ = &mut ended => break,
            order = orders.next_line() => if order?.is_none() { break },
        }
    }
    let cpu_after = machine::cpu_seconds();
    let memory_peak = machine::memory_peak();
    worker.stop().await?;
    say(&Word::Done(Box::new(Done {
        settled: watch.settled(),
        wrong: watch.wrong(),
        last_at: watch.last_at(),
        cpu_seconds: cpu.zip(cpu_after).map(|(before, after)| after - before),
        memory_peak,
        held: watch.held(),
        claims: open.tally.claims.lock().clone(),
        settles: open.tally.settles.lock().clone(),
    })))
}

fn say(word: &Word) -> Result<(), Problem> {
    let line = serde_json::to_string(word).map_err(anyhow::Error::from)?;
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}

/// The process as the one sees it that started it. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Helper {
    child: Child,
    orders: ChildStdin,
    words: Lines<BufReader<ChildStdout>>,
}

impl Helper {
    /// Starts it, and waits until it has opened the store.
    pub(super) async fn start(open: &Open, queue: &QueueName, work: Work, slots: u32) -> Result<Self, Problem> {
        if !open.location.is_shared() {
            return Err(Problem::usage("a store in memory has one process only", "leave out `--store memory`"));
        }
        let work = match work {
            Work::Noop => "noop",
            Work::Stamp => "stamp",
        };
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "worker", "--queue", queue.as_str(), "--work", work, "--slots", &slots.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let (Some(orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Err(gone()) };
        let mut helper = Self { child, orders, words: BufReader::new(output).lines() };
        helper.order(&open.location.url()).await?;
        match helper.next().await? {
            Word::Ready => Ok(helper),
            Word::Started(_) | Word::Settled(_) | Word::Done(_) => Err(gone()),
        }
    }

    /// Lets it work.
    pub(super) async fn go(&mut self) -> Result<(), Problem> {
        self.order("go").await
    }

    async fn order(&mut self, line: &str) -> Result<(), Problem> {
        self.orders.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.orders.flush().await?)
    }

    /// What it says next; an error when it has ended.
    pub(super) async fn next(&mut self) -> Result<Word, Problem> {
        let line = self.words.next_line().await?.ok_or_else(gone)?;
        Ok(serde_json::from_str(&line).map_err(anyhow::Error::from)?)
    }

    /// Tells it to terminate, as a service manager does, and answers what it has done.
    pub(super) async fn stop(mut self) -> Result<Done, Problem> {
        terminate(&self.child)?;
        let done = loop {
            if let Word::Done(done) = self.next().await? {
                break done;
            }
        };
        if self.child.wait().await?.success() { Ok(*done) } else { Err(gone()) }
    }
}

#[cfg(unix)]
fn terminate(child: &Child) -> Result<(), Problem> {
    use rustix::process::{Pid, Signal, kill_process};
    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32)).ok_or_else(gone)?;
    Ok(kill_process(pid, Signal::TERM).map_err(std::io::Error::from)?)
}

#[cfg(not(unix))]
fn terminate(_: &Child) -> Result<(), Problem> {
    Err(Problem::usage("workers in processes of their own need Unix signals", "leave out `--processes`"))
}

fn gone() -> Problem {
    Problem::new(Exit::Failed, "a worker's process has ended early", "see what it said above")
}
