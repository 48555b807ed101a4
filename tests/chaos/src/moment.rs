//! Where a worker behind a bridge kills itself: at one moment in the life of a message, when so many have come to it.
//!
//! It is SIGKILL, sent by the process to itself between two steps: nothing is flushed, closed or told, and no other step of
//! the same task comes in between.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use rustix::process::{Signal, getpid, kill_process};
use windlass::backend::Demand;
use windlass::bridge::{Answer, Concern, LetGo, News, Returned, Tag, Taken, Transport, TransportError};
use windlass::event::{Event, Listener};
use windlass::view::NodeInfo;
use windlass::{Envelope, NodeId, QueueName, Verdict};

/// The variable that tells a worker its [`Doom`]; without it, it lives.
pub const DIES: &str = "CHAOS_DIES";

/// A moment in the life of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It was taken from the broker, and is not stored.
    Taken,
    /// It is stored, and the broker has it still.
    Stored,
    /// The broker has let it go; its handler is at work meanwhile.
    Accepted,
    /// Its handler runs.
    Running,
    /// Its handler has ended, and nobody was told.
    Ended,
    /// Its producer was told, and the store was not.
    Told,
    /// Its end is stored.
    Settled,
}

impl Moment {
    /// Every moment, in order.
    pub const ALL: [Self; 7] =
        [Self::Taken, Self::Stored, Self::Accepted, Self::Running, Self::Ended, Self::Told, Self::Settled];

    fn name(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Stored => "stored",
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Told => "told",
            Self::Settled => "settled",
        }
    }
}

/// When a process kills itself.
#[derive(Debug)]
pub struct Doom {
    moment: Moment,
    at: usize,
    passed: AtomicUsize,
}

impl Doom {
    /// As the variable [`DIES`] says it.
    pub fn spelled(moment: Moment, at: usize) -> String {
        format!("{}:{at}", moment.name())
    }

    /// So many messages have come to a moment. Does not return when it is the one.
    pub fn passes(&self, moment: Moment, messages: usize) {
        if moment != self.moment || self.passed.fetch_add(messages, Ordering::SeqCst) + messages < self.at {
            return;
        }
        if let Err(error) = kill_process(getpid(), Signal::KILL) {
            panic!("it cannot kill itself: {error}");
        }
        // The signal may be served on another thread: this one does nothing more.
        loop {
            std::thread::park();
        }
    }
}

impl FromStr for Doom {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let (name, at) = text.split_once(':').context("it is MOMENT:NUMBER")?;
        let Some(moment) = Moment::ALL.into_iter().find(|moment| moment.name() == name) else {
            bail!("`{name}` is no moment");
        };
        Ok(Self { moment, at: at.parse()?, passed: AtomicUsize::new(0) })
    }
}

impl Listener for Doom {
    fn on_event(&self, event: &Event) {
        if let Event::Settled { verdict: Verdict::Succeeded { .. }, .. } = event {
            self.passes(Moment::Settled, 1);
        }
    }
}

/// A transport whose process dies between two of its steps.
#[derive(Debug)]
pub struct Mortal {
    transport: Arc<dyn Transport>,
    doom: Arc<Doom>,
}

impl Mortal {
    /// This transport in a process with this doom.
    pub fn new(transport: Arc<dyn Transport>, doom: Arc<Doom>) -> Self {
        Self { transport, doom }
    }
}

#[async_trait]
impl Transport for Mortal {
    async fn take(&self, demand: &Demand) -> Result<Vec<Taken>, TransportError> {
        let taken = self.transport.take(demand).await?;
        self.doom.passes(Moment::Taken, taken.len());
        Ok(taken)
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        self.doom.passes(Moment::Stored, tags.len());
        let let_go = self.transport.accept(tags).await?;
        self.doom.passes(Moment::Accepted, tags.len());
        Ok(let_go)
    }

    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError> {
        self.transport.put_back(tags, why).await
    }

    fn concern(&self, envelope: &Envelope) -> Concern {
        self.transport.concern(envelope)
    }

    async fn answer(&self, answers: &[Answer]) -> Result<(), TransportError> {
        let is_good_end = |answer: &&Answer| matches!(answer.news, News::Settled(Verdict::Succeeded { .. }));
        let ends = answers.iter().filter(is_good_end).count();
        self.doom.passes(Moment::Ended, ends);
        self.transport.answer(answers).await?;
        self.doom.passes(Moment::Told, ends);
        Ok(())
    }

    async fn recover(&self, living: &[NodeId]) -> Result<u64, TransportError> {
        self.transport.recover(living).await
    }

    fn queues(&self, begun_with: &[QueueName]) -> Vec<QueueName> {
        self.transport.queues(begun_with)
    }

    async fn queues_changed(&self) {
        self.transport.queues_changed().await;
    }

    async fn beat(&self, node: &NodeInfo) {
        self.transport.beat(node).await;
    }
}
