//! Fires what is due.
//!
//! 1. read the source, when it was last read long ago   2. which slots have come since the last look: pure
//! 3. for each: set the key, send, mark it as sent   4. a schedule for one time goes away

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;
use windlass_core::bridge::TransportError;
use windlass_core::{Clock, QueueName, SystemClock, Timestamp};
use windlass_redis::foreign::Reply;
use windlass_wire::taskiq::Label;
use windlass_wire::taskiq::schedule::ScheduledTask;

use super::source::{Source, shown};
use crate::carrier::of_store;
use crate::taskiq::producer::{Outlet, words};

/// Who has set a key and not sent after so long is dead, or has no broker: somebody else fires the slot.
const CLAIM: Duration = Duration::from_secs(60);
/// How long it is remembered that a slot was sent: longer than any scheduler may think of it.
const SENT: Duration = Duration::from_secs(900);
/// A slot that passed longer ago when somebody looks is not fired.
const LATE_MAX: Duration = Duration::from_secs(60);
/// How long a slot is tried for that nobody could send.
const TRY_FOR: Duration = Duration::from_secs(300);
/// The longest time between two reads of the source.
const REFRESH_MAX: Duration = Duration::from_secs(300);
/// Between two looks at the clock.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The most slots that wait for their broker; beyond that nothing is added.
const WAITING_MAX: usize = 10_000;

const _: () = assert!(
    SENT.as_secs() >= TRY_FOR.as_secs() + REFRESH_MAX.as_secs() + 2 * LATE_MAX.as_secs(),
    "a scheduler with an old list must find that a slot was sent"
);

/// How schedules are fired.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Where messages go whose labels name no queue: `taskiq`.
    pub queue: QueueName,
    /// How often the source is read, five minutes at most: once a minute.
    pub refresh: Duration,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self { queue: QueueName::known("taskiq"), refresh: Duration::from_secs(60) }
    }
}

/// A scheduler; any number of them may work on one source.
#[derive(Debug)]
pub struct Scheduler {
    source: Source,
    outlet: Arc<dyn Outlet>,
    options: SchedulerOptions,
    clock: Arc<dyn Clock>,
    /// What a key says while its slot is being sent.
    token: String,
    schedules: Vec<Arc<ScheduledTask>>,
    read_at: Option<Timestamp>,
    looked_at: Option<Timestamp>,
    /// Slots that are due and not known to be sent.
    waiting: BTreeMap<Slot, Arc<ScheduledTask>>,
}

/// One planned instant of a schedule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    at: Timestamp,
    schedule_id: String,
}

/// What became of an attempt to send a slot.
enum Fired {
    Here,
    Elsewhere,
    /// Somebody is about to.
    Perhaps,
}

impl Scheduler {
    /// A scheduler of what is in this source, which sends through this outlet.
    pub fn new(source: Source, outlet: Arc<dyn Outlet>, options: SchedulerOptions) -> Self {
        Self {
            source,
            outlet,
            options,
            clock: Arc::new(SystemClock),
            token: Uuid::new_v4().to_string(),
            schedules: Vec::new(),
            read_at: None,
            looked_at: None,
            waiting: BTreeMap::new(),
        }
    }

    /// Reads the time elsewhere than from the wall clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Fires until it is stopped. What fails is tried again with the next look, a second later.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Err(error) = self.look().await {
                warn!(%error, "schedules could not be fired; it is tried again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Looks at the clock once and sends what is due; answers how many messages.
    ///
    /// # Errors
    /// [`TransportError`] of the source or of the broker; what was not sent is tried again with the next look.
    pub async fn look(&mut self) -> Result<usize, TransportError> {
        let now = self.clock.now();
        self.refresh(now).await?;
        let earliest = now - LATE_MAX;
        let since = self.looked_at.map_or(earliest, |looked_at| looked_at.max(earliest));
        for schedule in &self.schedules {
            for at in due(schedule, since, now) {
                if self.waiting.len() < WAITING_MAX {
                    let slot = Slot { at, schedule_id: schedule.schedule_id.clone() };
                    self.waiting.entry(slot).or_insert_with(|| Arc::clone(schedule));
                }
            }
        }
        // A clock that was set back does not fire again what it has fired.
        self.looked_at = Some(self.looked_at.map_or(now, |looked_at| looked_at.max(now)));
        self.send_waiting(now).await
    }

    async fn refresh(&mut self, now: Timestamp) -> Result<(), TransportError> {
        let refresh = self.options.refresh.min(REFRESH_MAX);
        if self.read_at.is_some_and(|read_at| read_at <= now && now.since(read_at) < refresh) {
            return Ok(());
        }
        let schedules = self.source.read(now, refresh).await?;
        self.schedules = schedules.into_iter().map(Arc::new).collect();
        self.read_at = Some(now);
        Ok(())
    }

    /// Sends what waits, the oldest first. A slot that the broker refuses does not hold up the others; a server that cannot be
    /// reached does.
    async fn send_waiting(&mut self, now: Timestamp) -> Result<usize, TransportError> {
        self.give_up(now);
        let (mut sent, mut refused) = (0, None);
        for (slot, schedule) in self.waiting.clone() {
            match self.fire(&slot, &schedule).await {
                Ok(Fired::Here) => {
                    sent += 1;
                    info!(schedule = shown(&slot.schedule_id), slot = %slot.at, "a schedule was fired");
                }
                Ok(Fired::Elsewhere) => debug!(schedule = shown(&slot.schedule_id), "another scheduler fired"),
                Ok(Fired::Perhaps) => continue,
                Err(error @ TransportError::Unreachable(_)) => return Err(error),
                Err(error @ TransportError::Refused(_)) => {
                    refused.get_or_insert(error);
                    continue;
                }
            }
            self.waiting.remove(&slot);
            if schedule.time == Some(slot.at) {
                self.schedules.retain(|known| known.schedule_id != slot.schedule_id);
            }
        }
        match refused {
            Some(error) if sent == 0 => Err(error),
            Some(_) | None => Ok(sent),
        }
    }

    /// Slots that nobody could send for too long are given up. Those of one time are not: they have no other slot.
    fn give_up(&mut self, now: Timestamp) {
        self.waiting.retain(|slot, schedule| {
            let late = schedule.time != Some(slot.at) && now.since(slot.at) > TRY_FOR;
            if late {
                warn!(schedule = shown(&slot.schedule_id), slot = %slot.at, "a slot could not be fired in time");
            }
            !late
        });
    }

    async fn fire(&self, slot: &Slot, schedule: &ScheduledTask) -> Result<Fired, TransportError> {
        let key = format!("windlass.fired:{}:{}:{}", self.source.prefix, slot.schedule_id, slot.at.as_micros());
        let claim = words(&["SET", &key, &self.token, "NX", "PX", &CLAIM.as_millis().to_string()]);
        let line = &self.source.line;
        if line.ask(&claim).await.map_err(of_store)? == Reply::Nil {
            let said = line.ask(&words(&["GET", &key])).await.map_err(of_store)?;
            // A claim of our own is one whose answer was lost.
            match said.bytes() {
                Some(said) if said == b"sent" => {
                    self.forget(slot, schedule).await?;
                    return Ok(Fired::Elsewhere);
                }
                Some(said) if said == self.token.as_bytes() => {}
                Some(_) | None => return Ok(Fired::Perhaps),
            }
        }
        let (message, queue) = self.message(slot, schedule)?;
        self.outlet.send(&message, &queue).await?;
        let sent = words(&["SET", &key, "sent", "EX", &SENT.as_secs().to_string()]);
        line.ask(&sent).await.map_err(of_store)?;
        self.forget(slot, schedule).await?;
        Ok(Fired::Here)
    }

    /// A schedule for one time has done its service.
    async fn forget(&self, slot: &Slot, schedule: &ScheduledTask) -> Result<(), TransportError> {
        if schedule.time == Some(slot.at) {
            self.source.remove(&slot.schedule_id).await?;
        }
        Ok(())
    }

    fn message(
        &self,
        slot: &Slot,
        schedule: &ScheduledTask,
    ) -> Result<(windlass_wire::taskiq::Message, QueueName), TransportError> {
        // The same for every scheduler: who sends a slot twice sends the same task.
        let name = format!("{}:{}:{}", self.source.prefix, slot.schedule_id, slot.at.as_micros());
        let message = schedule.message(&Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).simple().to_string());
        let queue = match message.labels.0.get("queue_name").map(Label::text) {
            None => self.options.queue.clone(),
            Some(name) => QueueName::new(name).map_err(|error| TransportError::Refused(error.to_string()))?,
        };
        Ok((message, queue))
    }
}

/// The slots of a schedule after `since` up to `now`: the last of each cron line and interval, and its time, however long ago.
fn due(schedule: &ScheduledTask, since: Timestamp, now: Timestamp) -> Vec<Timestamp> {
    let recurring = ScheduledTask { time: None, ..schedule.clone() };
    let specs = recurring.specs(Timestamp::MIN).unwrap_or_default();
    let last = |spec: windlass_core::schedule::Spec| {
        std::iter::successors(spec.next(since), |slot| spec.next(*slot)).take_while(|slot| *slot <= now).last()
    };
    specs.into_iter().filter_map(last).chain(schedule.time.filter(|time| *time <= now)).collect()
}
