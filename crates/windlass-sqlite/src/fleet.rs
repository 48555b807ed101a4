//! The fleet: nodes that say they are alive, and the tasks that waited for one that knows their name.

use std::time::Duration;

use rusqlite::{Connection, params};
use windlass_core::view::{Node, NodeInfo, NodePhase};
use windlass_core::{State, Timestamp};

use crate::errors::Fault;
use crate::rows::{from_json, text};
use crate::tx::Tx;

/// The most parked tasks that one beat makes ready; the next beat goes on.
const UNPARK_MAX: usize = 10_000;

/// A node is shown for a day after its last beat.
pub(crate) const SHOWN: Duration = Duration::from_secs(86_400);

/// Records a beat; `info` is the node's own words as JSON.
pub(crate) fn beat(tx: &mut Tx<'_>, node: &NodeInfo, info: &str, ttl: Duration) -> Result<(), Fault> {
    let alive_until = match node.phase {
        NodePhase::Running | NodePhase::Quiet | NodePhase::Stopping => tx.now + ttl,
        NodePhase::Stopped => tx.now,
    };
    tx.execute(
        "INSERT INTO windlass_node (id, info, beat_at, alive_until) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (id) DO UPDATE SET info = excluded.info, beat_at = excluded.beat_at, alive_until = excluded.alive_until",
        params![node.id.as_str(), info, tx.now_micros(), alive_until.as_micros()],
    )?;
    match node.phase {
        NodePhase::Running | NodePhase::Quiet | NodePhase::Stopping => unpark(tx, node),
        // A node that has left takes nothing; they would only be parked again.
        NodePhase::Stopped => Ok(()),
    }
}

fn unpark(tx: &mut Tx<'_>, node: &NodeInfo) -> Result<(), Fault> {
    let anything =
        tx.prepare("SELECT 1 FROM windlass_task INDEXED BY windlass_task_parked WHERE state = 3 LIMIT 1")?.exists([])?;
    if !anything {
        return Ok(());
    }
    let mut left = UNPARK_MAX;
    for name in &node.tasks {
        let Some(number) = tx.known_name(name)? else { continue };
        let parked: Vec<(i64, i64)> = tx
            .prepare(
                "SELECT seq, queue FROM windlass_task INDEXED BY windlass_task_parked \
                 WHERE state = 3 AND name = ?1 ORDER BY seq LIMIT ?2",
            )?
            .query_map([number, left as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        left -= parked.len();
        for (seq, queue) in parked {
            tx.execute("UPDATE windlass_task SET state = 1, at = 0 WHERE seq = ?1", [seq])?;
            tx.count(queue, Some(State::Parked), Some(State::Ready));
            tx.wake(queue);
        }
    }
    Ok(())
}

/// Every node that beat in the last day, the living first.
pub(crate) fn nodes(db: &Connection, now: Timestamp) -> Result<Vec<Node>, Fault> {
    let mut select = db.prepare_cached(
        "SELECT info, beat_at, alive_until > ?1 FROM windlass_node \
         WHERE info IS NOT NULL AND beat_at > ?2 ORDER BY alive_until > ?1 DESC, id",
    )?;
    let mut rows = select.query([now.as_micros(), (now - SHOWN).as_micros()])?;
    let mut nodes = Vec::new();
    while let Some(row) = rows.next()? {
        nodes.push(Node {
            info: from_json("node", text(row, 0)?)?,
            beat_at: Timestamp::from_micros(row.get(1)?),
            alive: row.get(2)?,
        });
    }
    Ok(nodes)
}
