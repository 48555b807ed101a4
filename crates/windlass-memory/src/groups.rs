//! Groups: members arrive, and what comes after the group starts in the same step.

use std::collections::BTreeMap;
use std::time::Duration;

use windlass_core::flow::{Arrival, FanIn, Follow, NewGroup, fan_in, join};
use windlass_core::{Failure, Json, Timestamp};

use crate::data::Data;

/// How long a group that nobody arrives at is kept: longer than the dead letters of its members, whose retry could mend it.
const UNFINISHED_KEPT: Duration = Duration::from_secs(35 * 86_400);

/// A group, and how far it is.
pub(crate) struct Group {
    pub(crate) new: NewGroup,
    pub(crate) outcomes: BTreeMap<u32, Result<Json, Failure>>,
    pub(crate) succeeded: u32,
    pub(crate) phase: Phase,
    touched_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Its failure has been acted upon; a member that is retried can still complete it.
    Failed,
    Completed,
}

impl Group {
    /// Counts a member by its latest arrival; a success stays. Says whether anything is new.
    fn count(&mut self, index: u32, outcome: Result<Json, Failure>) -> bool {
        if index >= self.new.size || matches!(self.outcomes.get(&index), Some(Ok(_))) {
            return false;
        }
        self.succeeded += u32::from(outcome.is_ok());
        self.outcomes.insert(index, outcome);
        true
    }

    /// What the counts start now.
    fn decide(&mut self) -> Option<Follow> {
        let failed = self.outcomes.len() as u32 - self.succeeded;
        match (fan_in(self.new.policy, self.new.size, self.succeeded, failed), self.phase) {
            (FanIn::Complete, Phase::Open | Phase::Failed) => {
                self.phase = Phase::Completed;
                let outcomes = std::mem::take(&mut self.outcomes);
                let results =
                    join(self.new.policy, outcomes.values().map(|outcome| outcome.as_ref().map(Json::as_str)));
                Some(std::mem::take(&mut self.new.after).complete(results))
            }
            (FanIn::Failed, Phase::Open) => {
                self.phase = Phase::Failed;
                let first = self.outcomes.values().find_map(|outcome| outcome.as_ref().err());
                first.map(|failure| self.new.after.clone().fail(failure))
            }
            (FanIn::Waiting, _) | (FanIn::Failed, Phase::Failed) | (_, Phase::Completed) => None,
        }
    }
}

impl Data {
    /// Creates a group; one that is known is left alone.
    pub(crate) fn create_group(&mut self, new: NewGroup, now: Timestamp) {
        if self.groups.contains_key(&new.id) {
            return;
        }
        let id = new.id.clone();
        self.group_checks.insert((now + self.retention.dead, id.clone()));
        let group = Group { new, outcomes: BTreeMap::new(), succeeded: 0, phase: Phase::Open, touched_at: now };
        self.groups.insert(id, group);
    }

    /// Counts a member. An arrival at a group that is unknown or complete changes nothing.
    pub(crate) fn arrive(&mut self, arrival: Arrival, now: Timestamp) -> Option<Follow> {
        let group = self.groups.get_mut(&arrival.member.group)?;
        if group.phase == Phase::Completed || !group.count(arrival.member.index, arrival.outcome) {
            return None;
        }
        group.touched_at = now;
        group.decide()
    }

    /// Forgets groups that nothing can arrive at any more.
    pub(crate) fn prune_groups(&mut self, now: Timestamp, max: usize) {
        for _ in 0..max {
            if self.group_checks.first().is_none_or(|(check_at, _)| *check_at > now) {
                return;
            }
            let Some((_, id)) = self.group_checks.pop_first() else { return };
            let Some(group) = self.groups.get(&id) else { continue };
            let kept = match group.phase {
                Phase::Completed => self.retention.dead,
                Phase::Open | Phase::Failed => self.retention.dead.max(UNFINISHED_KEPT),
            };
            let kept_until = group.touched_at + kept;
            if kept_until <= now {
                self.groups.remove(&id);
            } else {
                self.group_checks.insert((kept_until, id));
            }
        }
    }
}
