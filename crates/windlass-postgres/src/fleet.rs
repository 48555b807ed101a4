//! The fleet: nodes that say they are alive, and the tasks that waited for one that knows their name.

use std::time::Duration;

use windlass_core::view::{Node, NodeInfo, NodePhase};
use windlass_core::{TaskName, Timestamp};

use crate::errors::Fault;
use crate::rows::{from_json, queue_of, to_json, value};
use crate::tx::Tx;

/// The most parked tasks that one beat makes ready; the next beat goes on.
const UNPARK_MAX: i64 = 10_000;

/// A node is shown for a day after its last beat.
pub(crate) const SHOWN: Duration = Duration::from_secs(86_400);

/// Records a beat.
pub(crate) async fn beat(tx: &mut Tx<'_>, node: &NodeInfo, ttl: Duration) -> Result<(), Fault> {
    let stays = match node.phase {
        NodePhase::Running | NodePhase::Quiet | NodePhase::Stopping => true,
        NodePhase::Stopped => false,
    };
    let alive_until = if stays { tx.now + ttl } else { tx.now };
    tx.execute(
        "INSERT INTO windlass.node (id, info, beat_at, alive_until) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (id) DO UPDATE SET info = excluded.info, beat_at = excluded.beat_at, alive_until = excluded.alive_until",
        &[&node.id.as_str(), &to_json(node), &tx.now.as_micros(), &alive_until.as_micros()],
    )
    .await?;
    // A node that has left takes nothing; they would only be parked again.
    if stays { unpark(tx, &node.tasks).await } else { Ok(()) }
}

async fn unpark(tx: &mut Tx<'_>, names: &[TaskName]) -> Result<(), Fault> {
    let names: Vec<&str> = names.iter().map(TaskName::as_str).collect();
    let rows = tx
        .query(
            "WITH p AS MATERIALIZED (SELECT ctid FROM windlass.live WHERE state = 3 AND name = ANY($1) ORDER BY seq LIMIT $2 \
             FOR UPDATE SKIP LOCKED), \
             u AS (UPDATE windlass.live l SET state = 1, at = 0 WHERE l.ctid = ANY (ARRAY(SELECT ctid FROM p)) AND l.state = 3 \
             RETURNING l.queue), \
             q AS MATERIALIZED (SELECT queue, count(*) AS tasks FROM u GROUP BY queue), \
             c AS (INSERT INTO windlass.delta (queue, parked, ready) SELECT queue, -tasks, tasks FROM q) SELECT queue FROM q",
            &[&names, &UNPARK_MAX],
        )
        .await?;
    for row in rows {
        let queue = queue_of(&row, 0)?;
        tx.effects.queues.insert(queue);
    }
    Ok(())
}

/// Every node that beat in the last day, the living first.
pub(crate) async fn nodes(tx: &mut Tx<'_>) -> Result<Vec<Node>, Fault> {
    let rows = tx
        .query(
            "SELECT info, beat_at, alive_until > $1 FROM windlass.node WHERE beat_at > $2 ORDER BY alive_until > $1 DESC, id",
            &[&tx.now.as_micros(), &(tx.now - SHOWN).as_micros()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Node {
                info: from_json("node", value(row, 0)?)?,
                beat_at: Timestamp::from_micros(value(row, 1)?),
                alive: value(row, 2)?,
            })
        })
        .collect()
}
