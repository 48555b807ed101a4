//! Taking tasks: in the order of the queues, of rank and of insertion; and renewing the leases of those taken.

use std::sync::Arc;
use std::time::Duration;

use windlass_core::backend::{Claim, Demand, Receipt, Renewal, Renewed};
use windlass_core::{Timestamp, UniqueHold, Verdict};

use crate::data::{CancelMark, Data, QueueIndex, Stage, Task};
use crate::slab::Slot;

/// How many bits of a receipt's row are the place; the others tell one task at that place from the next.
const SLOT_BITS: u32 = 32;

impl Data {
    /// Takes what the demand may have now.
    pub(crate) fn take(&mut self, demand: &Demand, now: Timestamp) -> Vec<Claim> {
        let mut claims = Vec::new();
        self.limits.opens_at = None;
        if self.closed {
            return claims;
        }
        for name in &demand.queues {
            if let Some(index) = self.queue_by_name.get(name).copied()
                && !self.queues[index].counts.paused
            {
                self.promote(index, now, usize::MAX);
                if self.is_shared(index) {
                    self.take_in_turns(index, demand, now, &mut claims);
                } else {
                    self.take_from(index, demand, now, &mut claims);
                }
            }
        }
        claims
    }

    fn take_from(&mut self, index: QueueIndex, demand: &Demand, now: Timestamp, claims: &mut Vec<Claim>) {
        // What has expired is ended on the way and gives its room back, so one pass may not fill the demand.
        while claims.len() < demand.max {
            let picked = self.pick(index, demand, demand.max - claims.len());
            if picked.is_empty() {
                return;
            }
            claims.reserve(picked.len());
            for slot in picked {
                if self.tasks[slot].envelope.expires.is_some_and(|expires| expires <= now) {
                    self.end_by_store(slot, &Verdict::Expired, now);
                } else {
                    claims.push(self.hand_out(slot, demand, now));
                }
            }
        }
    }

    /// The first ready tasks of a queue that the demand may have.
    fn pick(&self, index: QueueIndex, demand: &Demand, max: usize) -> Vec<Slot> {
        let ready = self.queues[index].ready.values().copied();
        if demand.except.is_empty() && self.paused_names.is_empty() {
            return ready.take(max).collect();
        }
        let wanted = |slot: &Slot| {
            let name = &self.tasks[*slot].envelope.name;
            !demand.except.contains(name) && !self.paused_names.contains(name)
        };
        ready.filter(wanted).take(max).collect()
    }

    pub(crate) fn hand_out(&mut self, slot: Slot, demand: &Demand, now: Timestamp) -> Claim {
        self.leave(slot);
        let task = &mut self.tasks[slot];
        task.attempt += 1;
        task.fence += 1;
        task.node = Some(demand.node.clone());
        task.started_at = Some(now);
        let mut memo = String::new();
        if let Some(story) = &mut task.story {
            story.progress = None;
            story.waits_for = None;
            memo.clone_from(&story.memo);
        }
        if task.envelope.unique.as_ref().is_some_and(|unique| unique.hold == UniqueHold::Started) {
            self.unique.release(&task.envelope);
        }
        let claim = Claim {
            envelope: Arc::clone(&task.envelope),
            receipt: Receipt { id: task.envelope.id.clone(), fence: task.fence, row: row(task, slot) },
            attempt: task.attempt,
            enqueued_at: task.enqueued_at,
            ready_at: task.ready_at,
            memo,
        };
        self.enter(slot, Stage::Running { lease_until: now + demand.lease, cancel: CancelMark::Absent });
        claim
    }

    /// The running task that this receipt is the newest claim of.
    pub(crate) fn held(&self, receipt: &Receipt) -> Option<(Slot, CancelMark)> {
        let slot = (receipt.row & ((1 << SLOT_BITS) - 1)) as Slot;
        let task = self.tasks.get(slot)?;
        let newest = row(task, slot) == receipt.row && task.fence == receipt.fence && task.envelope.id == receipt.id;
        match task.stage {
            Stage::Running { cancel, .. } if newest => Some((slot, cancel)),
            Stage::Running { .. }
            | Stage::Scheduled { .. }
            | Stage::Ready
            | Stage::Parked { .. }
            | Stage::Ended { .. } => None,
        }
    }

    pub(crate) fn renew(&mut self, renewals: &[Renewal], lease: Duration, now: Timestamp) -> Vec<Renewed> {
        renewals.iter().map(|renewal| self.renew_one(renewal, lease, now)).collect()
    }

    fn renew_one(&mut self, renewal: &Renewal, lease: Duration, now: Timestamp) -> Renewed {
        let Some((slot, cancel)) = self.held(&renewal.receipt) else { return Renewed::Lost };
        self.change(slot, Stage::Running { lease_until: now + lease, cancel });
        if let Some(progress) = &renewal.progress {
            self.tasks[slot].story().progress = Some(progress.shortened());
        }
        if let Some(lines) = &renewal.memo {
            self.tasks[slot].story().memo.push_str(lines);
        }
        match cancel {
            CancelMark::Absent => Renewed::Held,
            CancelMark::Requested => Renewed::Cancelled,
        }
    }
}

/// Where a receipt finds its task again: the place, and enough of the insertion number to know another task there.
fn row(task: &Task, slot: Slot) -> i64 {
    debug_assert!(slot < 1 << SLOT_BITS, "a process has no room for that many tasks");
    let of_this_task = (task.seq & 0x7fff_ffff) as i64;
    (of_this_task << SLOT_BITS) | slot as i64
}
