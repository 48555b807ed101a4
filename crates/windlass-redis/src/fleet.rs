//! Nodes that say they are alive, and the housekeeping that each of them asks for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::Value;
use tracing::error;
use windlass_core::backend::Ticked;
use windlass_core::state::{CRASHES_MAX, poison_failure};
use windlass_core::time::{LeaseGuard, Leases};
use windlass_core::view::{Node, NodeInfo, NodePhase};
use windlass_core::{Clock, NodeId, StoreError, TaskId, Timestamp, Verdict};

use crate::command::order_of;
use crate::encode::micros;
use crate::errors::damaged;
use crate::record::{Packed, bytes, from_json, integer, list, optional_text, parse, row_number, text, texts, to_json};
use crate::scripts::Script;
use crate::settle::{PARKED_FOR, end_lost, poison, unknown};
use crate::{Shared, Time};

/// The most tasks of each kind that one tick handles.
const EACH_MAX: usize = 1_000;

/// Records a beat, and makes parked tasks ready whose name the node declares.
pub(crate) async fn beat(shared: &Shared, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
    let stopped = info.phase == NodePhase::Stopped;
    shared
        .run(Script::Beat, |cmd| {
            cmd.arg("beat").arg(info.id.as_str()).arg(if stopped { 0 } else { micros(ttl) }).arg(to_json(info));
            // A node that has left takes nothing; they would only be parked again.
            for name in info.tasks.iter().filter(|_| !stopped) {
                cmd.arg(name.as_str());
            }
        })
        .await
        .map(drop)
}

/// Every node that beat in the last day, the living first.
pub(crate) async fn nodes(shared: &Shared) -> Result<Vec<Node>, StoreError> {
    let answer = shared
        .run(Script::Beat, |cmd| {
            cmd.arg("nodes");
        })
        .await?;
    let mut parts = list(answer)?.into_iter();
    let now = integer(&parts.next().unwrap_or(Value::Nil))?;
    let mut nodes = Vec::new();
    while let (Some(info), Some(beat), Some(until)) = (parts.next(), parts.next(), parts.next()) {
        nodes.push(Node {
            info: from_json("node", &text(info)?)?,
            beat_at: Timestamp::from_micros(integer(&beat)?),
            alive: integer(&until)? > now,
        });
    }
    nodes.sort_by(|one, other| (other.alive, &one.info.id).cmp(&(one.alive, &other.info.id)));
    Ok(nodes)
}

/// What is known of the clock that measures leases.
#[derive(Debug, Default)]
pub(crate) struct Watchman {
    guard: LeaseGuard,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    server: Timestamp,
    at: Instant,
    leases: Leases,
}

/// A clock that shows what the server answered.
#[derive(Debug)]
struct Shown {
    now: Timestamp,
    steady: Duration,
}

impl Clock for Shown {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn steady(&self) -> Duration {
        self.steady
    }
}

impl Watchman {
    /// Whether leases are in doubt, and which time the server should show now.
    fn before(&self, time: &Time) -> (Leases, Option<Timestamp>) {
        match time {
            Time::Given(clock) => (self.guard.look(&**clock), None),
            Time::Server => match *self.seen.lock() {
                Some(seen) => (seen.leases, Some(seen.server + seen.at.elapsed())),
                None => (Leases::Trusted, None),
            },
        }
    }

    fn after(&self, time: &Time, server: Timestamp, began: Instant) {
        if let Time::Server = time {
            let at = Instant::now();
            let leases = self.guard.look(&Shown { now: server, steady: at.duration_since(began) });
            *self.seen.lock() = Some(Seen { server, at, leases });
        }
    }
}

/// Housekeeping.
pub(crate) async fn tick(shared: &Arc<Shared>, node: &NodeId) -> Result<Ticked, StoreError> {
    let (leases, expected) = shared.watchman.before(&shared.time);
    let epoch = TaskId::random().to_string();
    let answer = shared
        .run(Script::Tick, |cmd| {
            cmd.arg(node.as_str())
                .arg(u8::from(leases == Leases::InDoubt))
                .arg(crate::encode::optional_time(expected))
                .arg(micros(PARKED_FOR))
                .arg(EACH_MAX)
                .arg(&epoch);
            for crashes in 1..=CRASHES_MAX {
                cmd.arg(to_json(&poison_failure(crashes)));
            }
        })
        .await?;
    let mut parts = list(answer)?.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    shared.watchman.after(&shared.time, Timestamp::from_micros(integer(&next())?), shared.opened_at);
    notice_epoch(shared, text(next())?);
    let number = |value: Value| integer(&value).map(|number| u64::try_from(number).unwrap_or(0));
    let mut ticked = Ticked {
        rescued: number(next())?,
        ended: number(next())?,
        pruned: number(next())?,
        next_slot: Some(integer(&next())?).filter(|slot| *slot >= 0).map(Timestamp::from_micros),
        orders: texts(next())?.iter().map(|text| order_of(text)).collect::<Result<_, _>>()?,
        cancelled: texts(next())?.iter().map(|id| parse("task id", id)).collect::<Result<_, _>>()?,
    };
    ticked.ended += end_all(shared, next()).await?;
    Ok(ticked)
}

/// Ends what the script could not end by itself: what follows must be computed. Answers how many it ended.
async fn end_all(shared: &Arc<Shared>, open: Value) -> Result<u64, StoreError> {
    let mut parts = list(open)?.into_iter();
    let mut ended = 0;
    while let (Some(verdict), Some(row), Some(packed), Some(body), Some(crashes)) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    {
        let packed = bytes(packed)?;
        let crashes = u32::try_from(integer(&crashes)?).unwrap_or(0);
        let verdict = match text(verdict)?.as_str() {
            "C" => Verdict::Cancelled,
            "E" => Verdict::Expired,
            "P" => poison(crashes),
            "D" => unknown(Packed::of(&packed)?.name.as_str()),
            other => return Err(damaged("answer", format_args!("verdict `{other}`"))),
        };
        let body = optional_text(body)?.unwrap_or_default();
        ended += u64::from(end_lost(shared, row_number(&row)?, &packed, &body, &verdict, crashes).await?);
    }
    Ok(ended)
}

/// The store has an epoch from its first opening on. Another one means that somebody has emptied it.
fn notice_epoch(shared: &Shared, epoch: String) {
    let mut known = shared.epoch.lock();
    if *known != epoch {
        error!(
            event = "store_emptied",
            store = %shared.link.location(),
            "somebody has emptied the store (FLUSHALL, a lost disk): its tasks are gone; it goes on with new ones"
        );
        *known = epoch;
    }
}
