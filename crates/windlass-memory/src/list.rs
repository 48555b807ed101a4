//! What people see: records, listings and counters.

use std::ops::{Bound, RangeBounds as _};

use windlass_core::backend::StoreError;
use windlass_core::view::{Counts, Cursor, Filter, Listing, PAGE_MAX, Page, QueueCounts, Record};
use windlass_core::{TaskId, Timestamp};

use crate::data::{Data, Stage, Task};
use crate::slab::Slot;

impl Data {
    pub(crate) fn find(&self, ids: &[TaskId]) -> Vec<Option<Record>> {
        ids.iter().map(|id| self.by_id.get(id).map(|slot| self.tasks[*slot].record())).collect()
    }

    pub(crate) fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        if page.limit == 0 || page.limit > PAGE_MAX {
            return Err(StoreError::Rejected(format!("a page takes 1 to {PAGE_MAX} tasks, not {}", page.limit)));
        }
        let found: Vec<Slot> = self.newest_first(filter, page.after.as_ref())?.take(page.limit).collect();
        Ok(Listing {
            next: self.cursor_after(&found, page.limit),
            tasks: found.into_iter().map(|slot| self.tasks[slot].record()).collect(),
        })
    }

    /// The tasks that match, newest first, after the place that a cursor names.
    pub(crate) fn newest_first<'a>(
        &'a self,
        filter: &'a Filter,
        after: Option<&Cursor>,
    ) -> Result<Box<dyn Iterator<Item = Slot> + 'a>, StoreError> {
        let before = match after {
            None => Bound::Unbounded,
            Some(Cursor(text)) => match text.parse::<u64>() {
                Ok(seq) => Bound::Excluded(seq),
                Err(_) => return Err(StoreError::Rejected("the cursor was not made by this store".to_owned())),
            },
        };
        if let Some(since) = filter.finished_since {
            return Ok(Box::new(self.ended_newest_first(filter, since, before).into_iter()));
        }
        let slots = self.by_seq.range((Bound::Unbounded, before)).rev().map(|(_, slot)| *slot);
        Ok(Box::new(slots.filter(|slot| is_match(filter, &self.tasks[*slot]))))
    }

    /// The same of those that ended since then: what ended before is not looked at.
    fn ended_newest_first(&self, filter: &Filter, since: Timestamp, before: Bound<u64>) -> Vec<Slot> {
        let is_before = |seq: u64| (Bound::Unbounded, before).contains(&seq);
        let mut found: Vec<(u64, Slot)> = self
            .ended_since(since)
            .map(|slot| (self.tasks[slot].seq, slot))
            .filter(|(seq, slot)| is_before(*seq) && is_match(filter, &self.tasks[*slot]))
            .collect();
        found.sort_unstable_by(|one, other| other.cmp(one));
        found.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Where to go on after a page that is full.
    pub(crate) fn cursor_after(&self, page: &[Slot], limit: usize) -> Option<Cursor> {
        let last = page.last().filter(|_| page.len() == limit)?;
        Some(Cursor(self.tasks[*last].seq.to_string()))
    }

    pub(crate) fn counts(&self) -> Counts {
        let paused_tasks = self.paused_names.iter().cloned().collect();
        let mut counts = Counts { paused_tasks, closed: self.closed, ..Counts::default() };
        for (name, index) in &self.queue_by_name {
            let queue = &self.queues[*index];
            // A queue that was only asked for is not worth a line.
            if queue.ever_used || queue.counts.paused {
                let next = queue.first_ready().map(|slot| self.tasks[slot].ready_at).min();
                counts.queues.insert(name.clone(), QueueCounts { oldest_ready_at: next, ..queue.counts });
            }
        }
        counts
    }
}

/// The same as [`Filter::matches`] without copying the task into a record first.
fn is_match(filter: &Filter, task: &Task) -> bool {
    let envelope = &task.envelope;
    let reason = task.story.as_ref().and_then(|story| story.reason);
    (filter.states.is_empty() || filter.states.contains(&task.stage.state()))
        && (filter.queues.is_empty() || filter.queues.contains(&envelope.queue))
        && (filter.names.is_empty() || filter.names.contains(&envelope.name))
        && filter.key.as_ref().is_none_or(|key| envelope.key.as_ref() == Some(key))
        && filter
            .workflow
            .as_ref()
            .is_none_or(|workflow| envelope.workflow.as_ref() == Some(workflow) || envelope.id == *workflow)
        && filter.reason.is_none_or(|wanted| reason == Some(wanted))
        && filter.since.is_none_or(|since| task.enqueued_at >= since)
        && filter.until.is_none_or(|until| task.enqueued_at < until)
        && filter.finished_since.is_none_or(|since| matches!(task.stage, Stage::Ended { at, .. } if at >= since))
}
