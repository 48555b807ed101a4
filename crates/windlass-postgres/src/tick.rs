//! Housekeeping: due tasks, lost leases, what came too late, what is kept no longer, and adding up the counts.
//!
//! Every step is bounded, walks an index from its due end, skips what others have locked, and is safe on every node at once:
//! whoever comes first does it, the others find nothing.

use std::collections::HashSet;

use windlass_core::backend::{Order, Ticked};
use windlass_core::state::{self, PARKED_FOR, Rescue};
use windlass_core::time::Leases;
use windlass_core::{DeadReason, NodeId, TaskId, Timestamp, Verdict};

use crate::claim;
use crate::connection::Values;
use crate::errors::Fault;
use crate::retention;
use crate::rows::{id_of, value};
use crate::settle::{self, Back, Held};
use crate::tx::Tx;
use crate::{Moment, Shared};

/// The most tasks of each kind that one tick moves.
pub(crate) const EACH_MAX: i64 = 1_000;

/// Leases that ran out: `$1` the time, `$2` at most how many.
const LOST: &str = "\
SELECT l.seq, l.id, l.fence, l.state, l.cancel, l.crashes, l.name, l.queue, l.priority, CASE WHEN l.has_flow THEN l.body END \
FROM windlass.live l WHERE l.state = 2 AND l.state <> 1 AND l.at <= $1 ORDER BY l.at LIMIT $2 FOR UPDATE OF l SKIP LOCKED";
/// What waits and came too late.
const LATE: &str = "\
SELECT l.seq, l.id, l.fence, l.state, l.cancel, l.crashes, l.name, l.queue, l.priority, CASE WHEN l.has_flow THEN l.body END \
FROM windlass.live l WHERE l.expires IS NOT NULL AND l.state <> 2 AND l.expires <= $1 ORDER BY l.expires LIMIT $2 \
FOR UPDATE OF l SKIP LOCKED";
/// What nobody has known for too long.
const FORLORN: &str = "\
SELECT l.seq, l.id, l.fence, l.state, l.cancel, l.crashes, l.name, l.queue, l.priority, CASE WHEN l.has_flow THEN l.body END \
FROM windlass.live l WHERE l.state = 3 AND l.state <> 1 AND l.at <= $1 ORDER BY l.at LIMIT $2 FOR UPDATE OF l SKIP LOCKED";
/// What ready tasks of these places came too late; the rest of them is left alone.
const LATE_AT: &str = "\
SELECT l.seq, l.id, l.fence, l.state, l.cancel, l.crashes, l.name, l.queue, l.priority, CASE WHEN l.has_flow THEN l.body END \
FROM windlass.live l WHERE l.seq = ANY($2) AND l.state <> 2 AND l.expires <= $1 ORDER BY l.seq FOR UPDATE OF l SKIP LOCKED";

/// Everything once.
pub(crate) async fn tick(tx: &mut Tx<'_>, shared: &Shared, node: &NodeId) -> Result<Ticked, Fault> {
    let now = tx.now.as_micros();
    let forlorn_since = (tx.now - PARKED_FOR).as_micros();
    let (until_now, until_forlorn): (Values<'_>, Values<'_>) = (&[&now, &EACH_MAX], &[&forlorn_since, &EACH_MAX]);
    let name = node.as_str();
    let (of_node, some_of_node): (Values<'_>, Values<'_>) = (&[&name], &[&name, &EACH_MAX]);
    // Sent together, answered together: most ticks find nothing.
    let (promoted, lost, late, forlorn, orders, cancelled, next) = tokio::join!(
        biased;
        claim::promote(tx.connection(), Some(now), EACH_MAX as usize),
        tx.query(LOST, until_now),
        tx.query(LATE, until_now),
        tx.query(FORLORN, until_forlorn),
        tx.query("SELECT number, what, slots FROM windlass.orders WHERE node = $1 ORDER BY number FOR UPDATE", of_node),
        tx.query("SELECT id FROM windlass.live WHERE cancel AND state = 2 AND node = $1 LIMIT $2", some_of_node),
        tx.query(
            "SELECT min(next) FROM windlass.schedule WHERE NOT paused \
             AND NOT EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed')",
            &[],
        ),
    );
    let promoted = promoted?;
    tx.effects.queues.extend(promoted.queues);
    let (rescued, poisoned) = match leases(tx, shared) {
        Leases::Trusted => rescue(tx, held_of(&lost?)?).await?,
        Leases::InDoubt => (0, 0),
    };
    let late = held_of(&late?)?;
    let seen: HashSet<i64> = late.iter().map(|held| held.receipt.row).collect();
    let mut ends: Vec<(Held, Verdict)> = late.into_iter().map(|held| (held, Verdict::Expired)).collect();
    for held in held_of(&forlorn?)? {
        if !seen.contains(&held.receipt.row) {
            let failure = state::unknown_failure(&held.name);
            ends.push((held, Verdict::Dead { reason: DeadReason::Unknown, failure }));
        }
    }
    let ended = poisoned + settle::end_by_store(tx, ends).await?;
    let pruned = retention::prune(tx, &shared.retention).await?;
    retention::add_up(tx).await?;
    Ok(Ticked {
        rescued,
        ended,
        pruned,
        orders: take_orders(tx, &orders?).await?,
        cancelled: cancelled?.iter().map(|row| id_of(row, 0)).collect::<Result<Vec<TaskId>, Fault>>()?,
        next_slot: match next?.first() {
            Some(row) => value::<Option<i64>>(row, 0)?.map(Timestamp::from_micros),
            None => None,
        },
    })
}

/// Whether leases that have run out have really run out: not when the store's clock was moved a moment ago.
fn leases(tx: &Tx<'_>, shared: &Shared) -> Leases {
    match &shared.time {
        crate::Time::Server => {
            let steady = windlass_core::Clock::steady(&windlass_core::SystemClock);
            shared.leases.look(&Moment { now: tx.now, steady })
        }
        crate::Time::Given(clock) => shared.leases.look(&**clock),
    }
}

fn held_of(rows: &[tokio_postgres::Row]) -> Result<Vec<Held>, Fault> {
    rows.iter().map(settle::held_of).collect()
}

/// Ends ready tasks that came too late, found by a claim.
pub(crate) async fn expire(tx: &mut Tx<'_>, seqs: &[i64]) -> Result<(), Fault> {
    let late = held_of(&tx.query(LATE_AT, &[&tx.now.as_micros(), &seqs]).await?)?;
    settle::end_by_store(tx, late.into_iter().map(|held| (held, Verdict::Expired)).collect()).await?;
    Ok(())
}

/// Takes tasks back whose lease ran out. Answers how many are ready again and how many ended.
async fn rescue(tx: &mut Tx<'_>, lost: Vec<Held>) -> Result<(u64, u64), Fault> {
    let (mut backs, mut ends): (Vec<Back>, Vec<(Held, Verdict)>) = (Vec::new(), Vec::new());
    for mut held in lost {
        held.crashes += 1;
        match state::rescue(held.crashes, held.cancel) {
            Rescue::Ready => {
                backs.push(Back::rescued(&held.receipt, held.crashes, &state::poison_failure(held.crashes)));
            }
            Rescue::Poison => {
                let failure = state::poison_failure(held.crashes);
                ends.push((held, Verdict::Dead { reason: DeadReason::Poison, failure }));
            }
            Rescue::Cancelled => ends.push((held, Verdict::Cancelled)),
        }
    }
    let rescued = tx.send_back(&backs.iter().collect::<Vec<_>>()).await?.applied.len() as u64;
    let ended = settle::end_by_store(tx, ends).await?;
    Ok((rescued, ended))
}

async fn take_orders(tx: &Tx<'_>, rows: &[tokio_postgres::Row]) -> Result<Vec<Order>, Fault> {
    let mut orders = Vec::new();
    let mut numbers: Vec<i64> = Vec::new();
    for row in rows {
        numbers.push(value(row, 0)?);
        let slots: Option<i64> = value(row, 2)?;
        orders.push(match (value::<&str>(row, 1)?, slots) {
            ("quiet", _) => Order::Quiet,
            ("resume", _) => Order::Resume,
            ("stop", _) => Order::Stop,
            ("resize", Some(slots)) => Order::Resize(usize::try_from(slots).unwrap_or_default()),
            (other, _) => return Err(Fault::damaged("order", format_args!("`{other}`"))),
        });
    }
    if !numbers.is_empty() {
        tx.execute("DELETE FROM windlass.orders WHERE number = ANY($1)", &[&numbers]).await?;
    }
    Ok(orders)
}
