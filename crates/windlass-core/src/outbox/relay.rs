//! Who moves rows from an outbox into a store, until told to stop.
//!
//! 1. take rows   2. read them; what cannot be read is refused   3. push: rows of single tasks together, each workflow by itself
//! 4. settle: moved, refused, or left for later because the queue is full
//!
//! Nothing of that is dropped half-way: who stops the relay stops it between two batches, or while it waits.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Outbox, REFUSAL_BYTES_MAX, Row, of_text};
use crate::QueueName;
use crate::backend::{Backend, Push, Pushed, StoreError};
use crate::envelope::PUSH_MAX;
use crate::error::cut;
use crate::event::{Event, Listener, Log};

/// It looks at least this often, whether or not the database tells it of rows.
const LOOK: Duration = Duration::from_secs(1);
/// The rows of a full queue are tried again after this.
const FULL_PAUSE: Duration = Duration::from_millis(500);
/// That a queue is full is told this often.
const FULL_TOLD_EVERY: Duration = Duration::from_secs(60);
/// A store that has not answered a push within this is tried again.
const PUSH_WITHIN: Duration = Duration::from_secs(30);
/// The pause after a failure; it doubles up to five seconds.
const TRY_AGAIN: Duration = Duration::from_millis(100);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(5);

/// Moves the rows of an outbox into a store.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use windlass_core::{Backend, outbox::{Outbox, Relay}};
/// # async fn example(outbox: Arc<dyn Outbox>, store: Arc<dyn Backend>) {
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let relay = tokio::spawn(async move { Relay::new(outbox, store).run(async { drop(stopped.await) }).await });
/// // At the end of the program:
/// drop(stop);
/// relay.await.expect("the relay does not panic");
/// # }
/// ```
pub struct Relay {
    outbox: Arc<dyn Outbox>,
    to: Arc<dyn Backend>,
    listeners: Vec<Arc<dyn Listener>>,
}

/// What became of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relayed {
    /// They are in the store.
    pub moved: u64,
    /// Of these, those that the store had before, or whose unique key it had.
    pub known: u64,
    /// They are set aside: the store will never take them.
    pub refused: u64,
    /// They wait, because their queue is full.
    pub waiting: u64,
}

/// A row that can be pushed.
struct Parsed {
    place: i64,
    queue: QueueName,
    push: Push,
}

/// What becomes of the rows of one batch.
#[derive(Default)]
struct Fates {
    moved: Vec<i64>,
    known: u64,
    refused: Vec<(i64, String)>,
    waiting: u64,
    failed: Option<StoreError>,
}

/// Queues that were full.
#[derive(Default)]
struct Full(BTreeMap<QueueName, Held>);

/// A queue that was full: until when its rows stay, and when somebody was told.
struct Held {
    until: Instant,
    told: Instant,
}

impl Full {
    /// Those whose rows stay.
    fn now(&self) -> impl Iterator<Item = (&QueueName, Instant)> {
        let now = Instant::now();
        self.0.iter().filter(move |(_, held)| held.until > now).map(|(queue, held)| (queue, held.until))
    }

    fn holds(&self, queue: &QueueName) -> bool {
        self.0.get(queue).is_some_and(|held| held.until > Instant::now())
    }

    /// Notes that a queue is full; answers whether somebody should be told of it.
    fn hold(&mut self, queue: &QueueName) -> bool {
        let now = Instant::now();
        self.0.retain(|_, held| held.until > now || now < held.told + FULL_TOLD_EVERY);
        let fresh = !self.0.contains_key(queue);
        let held = self.0.entry(queue.clone()).or_insert(Held { until: now, told: now });
        held.until = now + FULL_PAUSE;
        fresh
    }
}

/// The database or the store fails.
struct Trouble {
    since: Instant,
    /// Until the next try.
    pause: Duration,
}

/// What a relay does after a batch.
enum Next {
    AtOnce,
    /// When a row is written, at the latest after this.
    WhenWritten(Duration),
    After(Duration),
}

impl Relay {
    /// From an outbox to a store; with log lines, without metrics.
    pub fn new(outbox: Arc<dyn Outbox>, to: Arc<dyn Backend>) -> Self {
        Self { outbox, to, listeners: vec![Arc::new(Log)] }
    }

    /// Tells this one, too; [`Metrics`](crate::metrics::Metrics) counts.
    #[must_use]
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Moves rows until `stop` is ready; a batch that has begun is brought to its end first. Failures of the database and of the
    /// store are told to the listeners, and tried again without end.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let (mut full, mut trouble) = (Full::default(), None);
        loop {
            let next = self.turn(&mut full, &mut trouble).await;
            let pause = async {
                match next {
                    Next::AtOnce => {}
                    Next::WhenWritten(wait) => self.outbox.written(wait).await,
                    Next::After(pause) => tokio::time::sleep(pause).await,
                }
            };
            tokio::select! {
                biased;
                () = &mut stop => return,
                () = pause => {}
            }
        }
    }

    /// Moves what there is, and returns; rows of full queues stay.
    ///
    /// # Errors
    /// [`StoreError`], of the database or the store; what was moved before is moved.
    pub async fn drain(&self) -> Result<Relayed, StoreError> {
        let (mut full, mut sum) = (Full::default(), Relayed::default());
        while let Some(relayed) = self.batch(&mut full).await.map_err(|(_, error)| error)? {
            sum.moved += relayed.moved;
            sum.known += relayed.known;
            sum.refused += relayed.refused;
            sum.waiting += relayed.waiting;
        }
        Ok(sum)
    }

    async fn turn(&self, full: &mut Full, trouble: &mut Option<Trouble>) -> Next {
        match self.batch(full).await {
            Ok(relayed) => {
                if let Some(trouble) = trouble.take() {
                    self.tell(&Event::StoreBack { after: trouble.since.elapsed() });
                }
                match (relayed, full.now().map(|(_, until)| until).min()) {
                    (Some(_), _) => Next::AtOnce,
                    (None, None) => Next::WhenWritten(LOOK),
                    (None, Some(until)) => Next::WhenWritten(LOOK.min(until.duration_since(Instant::now()))),
                }
            }
            Err((operation, error)) => {
                let trouble = trouble.get_or_insert(Trouble { since: Instant::now(), pause: TRY_AGAIN });
                let again_in = trouble.pause;
                trouble.pause = (again_in * 2).min(TRY_AGAIN_MAX);
                self.tell(&Event::StoreFailed { operation, error, again_in });
                Next::After(again_in)
            }
        }
    }

    /// One batch; `None` when there is no row to be moved. An error names what failed: the outbox, or the push.
    async fn batch(&self, full: &mut Full) -> Result<Option<Relayed>, (&'static str, StoreError)> {
        let of_outbox = |error| ("outbox", error);
        let except: Vec<QueueName> = full.now().map(|(queue, _)| queue.clone()).collect();
        let Some(taken) = self.outbox.take(&except).await.map_err(of_outbox)? else { return Ok(None) };
        let oldest = taken.rows().first().map(|row| row.age).unwrap_or_default();
        let mut fates = Fates::default();
        let parts = sort(taken.rows(), &mut fates);
        self.push(parts, full, &mut fates).await;
        taken.settle(&fates.moved, &fates.refused).await.map_err(of_outbox)?;
        let relayed = Relayed {
            moved: fates.moved.len() as u64,
            known: fates.known,
            refused: fates.refused.len() as u64,
            waiting: fates.waiting,
        };
        if relayed.moved > 0 {
            self.tell(&Event::Relayed { moved: relayed.moved, known: relayed.known, oldest });
        }
        for (place, why) in fates.refused {
            self.tell(&Event::RelayRefused { place, why });
        }
        match fates.failed {
            None => Ok(Some(relayed)),
            Some(error) => Err(("relay", error)),
        }
    }

    /// Pushes parts in their order, until the store fails.
    async fn push(&self, parts: VecDeque<Vec<Parsed>>, full: &mut Full, fates: &mut Fates) {
        let mut parts = parts;
        while let Some(mut part) = parts.pop_front() {
            // What comes after a row that found no place does not overtake it.
            let before = part.len();
            part.retain(|row| !full.holds(&row.queue));
            fates.waiting += (before - part.len()) as u64;
            if part.is_empty() {
                continue;
            }
            match self.answers(&joined(&part)).await {
                Ok(pushed) => self.heed(&part, &pushed, full, fates),
                // One of them is to blame: each by itself.
                Err(StoreError::Rejected(_)) if part.len() > 1 => {
                    for row in part.into_iter().rev() {
                        parts.push_front(vec![row]);
                    }
                }
                Err(StoreError::Rejected(why)) => {
                    fates.refused.extend(part.iter().map(|row| (row.place, cut(&why, REFUSAL_BYTES_MAX))));
                }
                Err(error) => {
                    fates.failed = Some(error);
                    return;
                }
            }
        }
    }

    async fn answers(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        match timeout(PUSH_WITHIN, self.to.push(push)).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unreachable("the store did not answer a push".into())),
        }
    }

    /// Notes what a store has answered to a part.
    fn heed(&self, part: &[Parsed], pushed: &[Pushed], full: &mut Full, fates: &mut Fates) {
        let mut answers = pushed.iter();
        for row in part {
            let answers = answers.by_ref().take(row.push.envelopes.len());
            let (mut limit, mut known) = (None, false);
            for answer in answers {
                match answer {
                    Pushed::Stored | Pushed::Replaced(_) => {}
                    Pushed::Exists(_) => known = true,
                    Pushed::Full { limit: length } => limit = Some(*length),
                }
            }
            match limit {
                None => {
                    fates.moved.push(row.place);
                    fates.known += u64::from(known);
                }
                Some(limit) => {
                    fates.waiting += 1;
                    if full.hold(&row.queue) {
                        self.tell(&Event::RelayWaits { queue: row.queue.clone(), limit });
                    }
                }
            }
        }
    }

    fn tell(&self, event: &Event) {
        for listener in &self.listeners {
            listener.on_event(event);
        }
    }
}

/// What is pushed together: single tasks up to [`PUSH_MAX`], a workflow with groups by itself. Rows that cannot be read are
/// refused.
fn sort(rows: &[Row], fates: &mut Fates) -> VecDeque<Vec<Parsed>> {
    let mut parts: VecDeque<Vec<Parsed>> = VecDeque::new();
    let mut tasks = 0;
    for row in rows {
        let push = match of_text(row) {
            Ok(push) => push,
            Err(why) => {
                fates.refused.push((row.place, cut(&why, REFUSAL_BYTES_MAX)));
                continue;
            }
        };
        let (size, alone) = (push.envelopes.len(), !push.groups.is_empty());
        let parsed = Parsed { place: row.place, queue: super::queue_of(&push), push };
        match parts.back_mut() {
            Some(part) if !alone && tasks + size <= PUSH_MAX => part.push(parsed),
            Some(_) | None => {
                tasks = 0;
                parts.push_back(vec![parsed]);
            }
        }
        // Nothing joins a workflow.
        tasks = if alone { PUSH_MAX } else { tasks + size };
    }
    parts
}

/// The rows of a part as one push.
fn joined(part: &[Parsed]) -> Push {
    Push {
        envelopes: part.iter().flat_map(|row| row.push.envelopes.iter().cloned()).collect(),
        groups: part.iter().flat_map(|row| row.push.groups.iter().cloned()).collect(),
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("outbox", &self.outbox).field("to", &self.to).finish_non_exhaustive()
    }
}
