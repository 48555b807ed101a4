//! Circuit breakers: a service that fails is left alone for a while, by every node.
//!
//! Each node counts calls by itself; when too many fail it opens the breaker for all, by a note ([`crate::note`]) that the
//! others see within [`REFRESH`]. When its time has passed, one node tries one call: the breaker closes, or opens again for
//! twice as long. An attempt that meets an open breaker costs nothing: it ends as
//! [`TaskError::Unavailable`], which spends no attempt.
//!
//! ```
//! # use windlass_core::{Cx, TaskError, breaker::Breaker};
//! # struct State { payments: Breaker }
//! # async fn charge() -> Result<u64, std::io::Error> { Ok(1) }
//! async fn pay(cx: Cx<State>) -> Result<u64, TaskError> {
//!     Ok(cx.state().payments.call(cx.client(), || charge()).await?)
//! }
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::call::Call;
use crate::client::Client;
use crate::event::Event;
use crate::middleware::{Middleware, Next};
use crate::note::{Note, NoteAnswer, NoteAsk};
use crate::retry::Outcome;
use crate::{Json, StoreError, TaskError, TaskName, Timestamp};

/// Where breakers are kept.
pub const SPACE: &str = "breaker";
/// How old the knowledge of a breaker may be that is closed.
pub const REFRESH: Duration = Duration::from_millis(500);
/// The longest time that a breaker stays open without a try.
pub const OPEN_MAX: Duration = Duration::from_secs(3600);
/// How long what is known of a breaker is kept.
const KEPT: Duration = Duration::from_secs(30 * 86_400);
/// How long a try may take before another node may try.
const PROBE: Duration = Duration::from_secs(60);
/// When to ask again at a breaker that somebody holds open, or that is being tried.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Calls of this long are looked at; 30 s.
    pub window: Duration,
    /// It opens when at least this many of them have failed; 5.
    pub failures: usize,
    /// And at least this share of them; 0.5.
    pub share: f64,
    /// How long it stays open at first; 10 s. It doubles with every try that fails, up to [`OPEN_MAX`].
    pub open_for: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { window: Duration::from_secs(30), failures: 5, share: 0.5, open_for: Duration::from_secs(10) }
    }
}

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// Calls pass.
    Closed,
    /// One call is tried.
    HalfOpen,
    /// No call passes.
    Open,
}

impl Position {
    /// As listings write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What all nodes know of a breaker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// How it stands.
    pub position: Position,
    /// Until when; a breaker that was forced stays until somebody changes it.
    pub until: Timestamp,
    /// How often it has opened in a row.
    pub opened: u32,
    /// Whether an operator has put it there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forced: bool,
}

/// What a call may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Pass,
    /// Only as the one call that is tried.
    Try,
    Refuse(Timestamp),
}

impl Standing {
    fn way(&self, now: Timestamp) -> Way {
        match (self.position, self.forced) {
            (Position::Closed, _) => Way::Pass,
            (Position::Open | Position::HalfOpen, true) => Way::Refuse(now + ASK_AGAIN),
            (Position::Open | Position::HalfOpen, false) if self.until <= now => Way::Try,
            (Position::Open, false) => Way::Refuse(self.until),
            (Position::HalfOpen, false) => Way::Refuse(self.until.min(now + ASK_AGAIN)),
        }
    }

    /// The standing after a failure that opens it.
    fn opened(policy: &Policy, before: Option<&Self>, now: Timestamp) -> Self {
        let times = before.map_or(0, |before| before.opened);
        let open_for = policy.open_for.saturating_mul(1 << times.min(16)).min(OPEN_MAX);
        Self { position: Position::Open, until: now + open_for, opened: times + 1, forced: false }
    }

    fn of(note: &Note) -> Option<Self> {
        note.value.to().ok()
    }
}

/// The calls of a node within the window.
#[derive(Debug, Default)]
struct Calls(VecDeque<(Timestamp, bool)>);

/// The most calls that a node remembers of a breaker.
const CALLS_MAX: usize = 1_000;

impl Calls {
    /// Counts a call, and says whether the breaker opens.
    fn count(&mut self, policy: &Policy, failed: bool, now: Timestamp) -> bool {
        self.0.push_back((now, failed));
        while self.0.len() > CALLS_MAX || self.0.front().is_some_and(|(at, _)| *at + policy.window < now) {
            self.0.pop_front();
        }
        let failures = self.0.iter().filter(|(_, failed)| *failed).count();
        failed && failures >= policy.failures && failures as f64 >= policy.share * self.0.len() as f64
    }
}

/// A breaker of one service; cheap to clone. Breakers of the same name share their standing.
#[derive(Debug, Clone)]
pub struct Breaker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: String,
    policy: Policy,
    calls: Mutex<Calls>,
    known: Mutex<Option<Known>>,
}

/// What this node saw last.
#[derive(Debug, Clone)]
struct Known {
    at: Timestamp,
    note: Option<(i64, Standing)>,
}

impl Breaker {
    /// A breaker of this service, with the default [`Policy`]. The name is that of a note's key: at most 255 bytes.
    pub fn new(service: &str) -> Self {
        Self::with(service, Policy::default())
    }

    /// A breaker with a policy of its own.
    pub fn with(service: &str, policy: Policy) -> Self {
        let known = Mutex::new(None);
        Self(Arc::new(Inner { service: service.to_owned(), policy, calls: Mutex::default(), known }))
    }

    /// Calls the service, unless the breaker is open. A store that does not answer lets calls pass.
    ///
    /// # Errors
    /// [`Broken::Open`] when nothing was called, [`Broken::Failed`] with the error of the service. Both become a
    /// [`TaskError`] by `?`.
    pub async fn call<T, E, F, Fut>(&self, client: &Client, work: F) -> Result<T, Broken<E>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.enter(client).await.map_err(|until| Broken::Open { service: self.0.service.clone(), until })?;
        let result = work().await;
        self.left(client, result.is_err()).await;
        result.map_err(Broken::Failed)
    }

    /// Middleware that takes the attempts of these tasks for calls of the service: an attempt that fails, panics or runs out
    /// of time is a failure; a fatal error is not, because it says something of the task.
    pub fn around(&self, tasks: impl IntoIterator<Item = TaskName>) -> Around {
        Around { breaker: self.clone(), tasks: tasks.into_iter().collect() }
    }

    /// Whether a call may pass; if not, when to come again.
    async fn enter(&self, client: &Client) -> Result<(), Timestamp> {
        let now = client.now();
        let known = match self.look(client, now).await {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!(service = self.0.service, %error, "the breaker is not known, the call passes");
                return Ok(());
            }
        };
        let Some((seen, standing)) = known else { return Ok(()) };
        match standing.way(now) {
            Way::Pass => Ok(()),
            Way::Refuse(until) => Err(until),
            Way::Try => {
                let trying = Standing { position: Position::HalfOpen, until: now + PROBE, ..standing };
                match self.write(client, Some(seen), &trying).await {
                    Ok(true) => {
                        self.tell(client, Position::HalfOpen);
                        Ok(())
                    }
                    Ok(false) => Err(now + ASK_AGAIN),
                    Err(_) => Ok(()),
                }
            }
        }
    }

    /// Counts what became of a call.
    async fn left(&self, client: &Client, failed: bool) {
        let now = client.now();
        let opens = self.0.calls.lock().count(&self.0.policy, failed, now);
        let known = self.0.known.lock().clone().and_then(|known| known.note);
        let tried = known.as_ref().filter(|(_, standing)| standing.position == Position::HalfOpen && !standing.forced);
        let changed = match tried {
            Some((seen, _)) if !failed => self.forget(client, *seen).await.map(|gone| (gone, Position::Closed)),
            Some((seen, standing)) => {
                let again = Standing::opened(&self.0.policy, Some(standing), now);
                self.write(client, Some(*seen), &again).await.map(|written| (written, Position::Open))
            }
            None if opens && known.as_ref().is_none_or(|(_, standing)| !standing.forced) => {
                let standing = known.as_ref().map(|(_, standing)| standing);
                let opened = Standing::opened(&self.0.policy, standing, now);
                let seen = known.as_ref().map(|(seen, _)| *seen);
                self.write(client, seen, &opened).await.map(|written| (written, Position::Open))
            }
            None => return,
        };
        match changed {
            Ok((true, to)) => self.tell(client, to),
            Ok((false, _)) => {}
            Err(error) => {
                tracing::debug!(service = self.0.service, %error, "what became of a call is not known to others");
            }
        }
    }

    fn tell(&self, client: &Client, to: Position) {
        client.tell(&Event::BreakerMoved { service: self.0.service.clone(), to });
    }

    /// What is known of the breaker, at most [`REFRESH`] old.
    async fn look(&self, client: &Client, now: Timestamp) -> Result<Option<(i64, Standing)>, StoreError> {
        let known = self.0.known.lock().clone();
        if let Some(known) = known.filter(|known| known.at + REFRESH > now && known.at <= now) {
            return Ok(known.note);
        }
        let ask = NoteAsk::Read { space: SPACE.to_owned(), key: self.0.service.clone() };
        let note = match client.backend().note(&ask).await? {
            NoteAnswer::Notes(notes) => notes.first().cloned(),
            NoteAnswer::Written(_) | NoteAnswer::Forgotten | NoteAnswer::Conflict(_) => None,
        };
        self.know(now, note.as_ref());
        Ok(note.and_then(|note| Some((note.version, Standing::of(&note)?))))
    }

    fn know(&self, at: Timestamp, note: Option<&Note>) {
        let note = note.and_then(|note| Some((note.version, Standing::of(note)?)));
        *self.0.known.lock() = Some(Known { at, note });
    }

    /// Writes the standing if it is still what this node saw; answers whether it was.
    async fn write(&self, client: &Client, seen: Option<i64>, standing: &Standing) -> Result<bool, StoreError> {
        let answer = client.backend().note(&writing(&self.0.service, seen, standing)?).await?;
        let now = client.now();
        match answer {
            NoteAnswer::Written(version) => {
                *self.0.known.lock() = Some(Known { at: now, note: Some((version, standing.clone())) });
                Ok(true)
            }
            NoteAnswer::Conflict(note) => {
                self.know(now, note.as_ref());
                Ok(false)
            }
            NoteAnswer::Notes(_) | NoteAnswer::Forgotten => Ok(false),
        }
    }

    /// Closes it if it is still what this node saw; answers whether it was.
    async fn forget(&self, client: &Client, seen: i64) -> Result<bool, StoreError> {
        let ask = NoteAsk::Forget { space: SPACE.to_owned(), key: self.0.service.clone(), seen };
        let answer = client.backend().note(&ask).await?;
        self.0.calls.lock().0.clear();
        let left = if let NoteAnswer::Conflict(note) = &answer { note.as_ref() } else { None };
        self.know(client.now(), left);
        Ok(answer == NoteAnswer::Forgotten)
    }
}

fn writing(service: &str, seen: Option<i64>, standing: &Standing) -> Result<NoteAsk, StoreError> {
    let value = Json::of(standing).map_err(|error| StoreError::Rejected(error.to_string()))?;
    Ok(NoteAsk::Write { space: SPACE.to_owned(), key: service.to_owned(), seen, value, ttl: KEPT })
}

/// Every breaker that has opened or was forced, by service. Those that are not here are closed.
///
/// # Errors
/// [`StoreError`].
pub async fn list(backend: &dyn Backend) -> Result<Vec<(String, Standing)>, StoreError> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let ask = NoteAsk::List { space: Some(SPACE.to_owned()), after: after.take() };
        let NoteAnswer::Notes(notes) = backend.note(&ask).await? else { return Ok(all) };
        let Some(last) = notes.last() else { return Ok(all) };
        after = Some((last.space.clone(), last.key.clone()));
        all.extend(notes.into_iter().filter_map(|note| Some((note.key.clone(), Standing::of(&note)?))));
    }
}

/// Puts a breaker open or closed until somebody changes that; `None` gives it back to its policy, closed.
///
/// # Errors
/// [`StoreError`].
pub async fn force(backend: &dyn Backend, service: &str, to: Option<Position>) -> Result<(), StoreError> {
    put(backend, service, to.map(|position| Standing { position, until: Timestamp::MAX, opened: 0, forced: true }))
        .await
}

/// Opens a breaker until this time; then one call is tried, as after any opening. A node whose calls fail meanwhile may
/// open it for another time.
///
/// # Errors
/// [`StoreError`].
pub async fn open_until(backend: &dyn Backend, service: &str, until: Timestamp) -> Result<(), StoreError> {
    put(backend, service, Some(Standing { position: Position::Open, until, opened: 1, forced: false })).await
}

/// Writes how a breaker stands, whatever was written before.
async fn put(backend: &dyn Backend, service: &str, to: Option<Standing>) -> Result<(), StoreError> {
    let mut seen = None;
    loop {
        let ask = match (&to, seen) {
            (Some(standing), _) => writing(service, seen, standing)?,
            (None, Some(seen)) => NoteAsk::Forget { space: SPACE.to_owned(), key: service.to_owned(), seen },
            (None, None) => NoteAsk::Read { space: SPACE.to_owned(), key: service.to_owned() },
        };
        seen = match backend.note(&ask).await? {
            NoteAnswer::Conflict(None) if to.is_none() => return Ok(()),
            NoteAnswer::Written(_) | NoteAnswer::Forgotten => return Ok(()),
            NoteAnswer::Conflict(now) => now.map(|note| note.version),
            NoteAnswer::Notes(notes) => match notes.first() {
                Some(note) => Some(note.version),
                None => return Ok(()),
            },
        };
    }
}

/// Why a call has no result.
#[derive(Debug)]
pub enum Broken<E> {
    /// Nothing was called.
    Open {
        /// Whose breaker it is.
        service: String,
        /// When to come again.
        until: Timestamp,
    },
    /// The service failed.
    Failed(E),
}

impl<E: fmt::Display> fmt::Display for Broken<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { service, until } => write!(f, "the breaker of `{service}` is open until {until}"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl<E: Into<TaskError>> From<Broken<E>> for TaskError {
    fn from(broken: Broken<E>) -> Self {
        match broken {
            Broken::Open { until, .. } => Self::Unavailable { until },
            Broken::Failed(error) => error.into(),
        }
    }
}

/// A breaker around tasks; made by [`Breaker::around`].
#[derive(Debug)]
pub struct Around {
    breaker: Breaker,
    tasks: Vec<TaskName>,
}

#[async_trait]
impl Middleware for Around {
    async fn run(&self, call: &Call, next: Next<'_>) -> Outcome {
        if !self.tasks.contains(&call.envelope.name) {
            return next.run().await;
        }
        if let Err(until) = self.breaker.enter(call.client()).await {
            return Outcome::Error(TaskError::Unavailable { until });
        }
        let outcome = next.run().await;
        match &outcome {
            Outcome::Done(_) | Outcome::Error(TaskError::Skipped { .. } | TaskError::Fatal(_)) => {
                self.breaker.left(call.client(), false).await;
            }
            Outcome::Error(TaskError::Failed(_) | TaskError::Retry { .. })
            | Outcome::Panicked(_)
            | Outcome::TimedOut { .. } => self.breaker.left(call.client(), true).await,
            // They say nothing of the service.
            Outcome::Error(
                TaskError::Throttled { .. }
                | TaskError::Unavailable { .. }
                | TaskError::Snooze { .. }
                | TaskError::Awaits { .. },
            )
            | Outcome::Malformed(_)
            | Outcome::Unknown
            | Outcome::Cancelled
            | Outcome::Expired
            | Outcome::Released => {}
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn standing(position: Position, until: Timestamp) -> Standing {
        Standing { position, until, opened: 1, forced: false }
    }

    #[test]
    fn a_breaker_opens_when_enough_and_a_large_share_have_failed() {
        let policy = Policy { failures: 3, ..Policy::default() };
        let mut calls = Calls::default();
        let counted: Vec<bool> =
            [true, false, true, true].iter().map(|failed| calls.count(&policy, *failed, NOW)).collect();
        assert_eq!(counted, [false, false, false, true]);
        let mut mostly_good = Calls::default();
        for _ in 0..10 {
            mostly_good.count(&policy, false, NOW);
        }
        assert!((0..5).all(|_| !mostly_good.count(&policy, true, NOW)), "a third has failed");
    }

    #[test]
    fn failures_outside_of_the_window_do_not_count() {
        let policy = Policy { failures: 2, ..Policy::default() };
        let mut calls = Calls::default();
        calls.count(&policy, true, NOW);
        let later = NOW + policy.window + Duration::from_secs(1);
        assert!(!calls.count(&policy, true, later));
        assert!(calls.count(&policy, true, later));
    }

    #[test]
    fn one_call_is_tried_when_the_time_has_passed() {
        let until = NOW + Duration::from_secs(10);
        assert_eq!(standing(Position::Open, until).way(NOW), Way::Refuse(until));
        assert_eq!(standing(Position::Open, until).way(until), Way::Try);
        assert_eq!(standing(Position::HalfOpen, until).way(NOW), Way::Refuse(NOW + ASK_AGAIN));
        assert_eq!(standing(Position::HalfOpen, until).way(until), Way::Try, "who tried is gone");
        assert_eq!(standing(Position::Closed, until).way(NOW), Way::Pass);
        let forced = Standing { forced: true, ..standing(Position::Open, NOW) };
        assert_eq!(forced.way(until), Way::Refuse(until + ASK_AGAIN));
    }

    #[test]
    fn it_stays_open_for_twice_as_long_each_time() {
        let policy = Policy::default();
        let mut last = Standing::opened(&policy, None, NOW);
        let mut lengths = Vec::new();
        for _ in 0..12 {
            lengths.push(last.until.since(NOW).as_secs());
            last = Standing::opened(&policy, Some(&last), NOW);
        }
        assert_eq!(lengths[..4], [10, 20, 40, 80]);
        assert_eq!(lengths[11], OPEN_MAX.as_secs());
    }
}
