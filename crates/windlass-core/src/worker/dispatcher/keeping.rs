//! Keeping what is held: leases are renewed, handlers that do not end are dropped or spoken for, cancellations arrive.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{BEAT, BEAT_TTL, Dispatcher, Effect, Ending, Handler, LEAVE_WITHIN, STOP_GRACE, TICK};
use crate::StoreError;
use crate::backend::{BATCH_MAX, Renewal, Renewed, Ticked};
use crate::call::StopReason;
use crate::error::TaskError;
use crate::event::Event as Told;
use crate::retry::Outcome;
use crate::view::{NodeInfo, NodePhase};
use crate::worker::ShutdownStep;
use crate::worker::executor;
use crate::worker::guard::{Advice, Process, Why};

/// The class of an attempt that ran when its process had used up its memory.
const MEMORY_LIMIT: &str = "memory_limit";

impl Dispatcher {
    pub(super) fn look_at_the_time(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.claim_again.look_at_the_time(now);
        self.settle_again.look_at_the_time(now);
        if self.ask_at.is_some_and(|ask_at| ask_at <= now) {
            self.ask_at = None;
            self.ask_all(StopReason::Shutdown, now + STOP_GRACE);
            self.leave_at = Some(now + STOP_GRACE + LEAVE_WITHIN);
        }
        if self.watch_at <= now {
            self.watch_at = now + TICK;
            self.watch_handlers(now, effects);
            self.watch_threads(now, effects);
            self.renew(now, effects);
        }
        if self.tick_at <= now && !self.ticking {
            self.ticking = true;
            self.tick_at = now + TICK;
            effects.push(Effect::Tick);
        }
        if self.beat_at <= now && !self.beating {
            self.beat(now, effects);
        }
    }

    /// Drops handlers that were asked to end and did not, and speaks for those that block their thread. Looks again when
    /// the next of them is overdue.
    pub(super) fn watch_handlers(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let mut stuck = false;
        for slot in 0..self.held.len() {
            let Some(held) = self.held[slot].as_mut() else { continue };
            if held.handler == Handler::Gone {
                continue;
            }
            if let Some((drop_at, reason)) = held.drop_at
                && drop_at <= now
            {
                held.call.stop.drop_now(reason);
                held.overdue_at = held.overdue_at.min(drop_at + self.process.overdue());
            }
            if held.overdue_at > now {
                self.watch_at = self.watch_at.min(held.overdue_at);
                continue;
            }
            // One that the worker itself has dropped, because it stops, ends with the process in any case.
            let starved = self.process == Process::Own && !held.call.stop.has_begun();
            stuck |= !starved && held.call.stop.dropped() != Some(StopReason::Shutdown);
            if matches!(held.ending, Ending::Open) {
                if !starved {
                    effects.push(Effect::Tell(Told::Stuck(Arc::clone(&held.call))));
                }
                let outcome = match held.call.stop.dropped() {
                    Some(StopReason::Cancelled) => Outcome::Cancelled,
                    Some(StopReason::Shutdown | StopReason::LeaseLost) => Outcome::Released,
                    // It has done nothing yet: it is not the one that blocks the threads.
                    Some(StopReason::SoftLimit) | None if starved => {
                        held.call.stop.drop_now(StopReason::Shutdown);
                        Outcome::Released
                    }
                    Some(StopReason::SoftLimit) | None => {
                        held.call.stop.drop_now(StopReason::SoftLimit);
                        Outcome::TimedOut { limit: executor::hard_limit(&held.call, &self.registry) }
                    }
                };
                self.speak_for(slot, outcome);
            }
        }
        if stuck && self.process == Process::Own {
            self.abandon(Why::Stuck, now, effects);
        }
    }

    /// Says in place of a handler how its attempt has ended.
    fn speak_for(&mut self, slot: usize, outcome: Outcome) {
        let Some(held) = self.held[slot].as_mut() else { return };
        let ran = self.surroundings.clock.now().since(held.call.started_at);
        let ended = executor::decide_for(Arc::clone(&held.call), &self.registry, outcome, ran);
        held.ending = Ending::Ended(ended.verdict, ended.follow, ended.ran);
        self.unsettled.push(slot);
    }

    /// A blocking thread goes on after its attempt is over: nobody can take it back, but the process can end.
    fn watch_threads(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.threads.retain(|(call, _)| call.has_thread());
        let Some(free_at) = self.threads.iter().map(|(_, free_at)| *free_at).min() else { return };
        if free_at > now {
            self.watch_at = self.watch_at.min(free_at);
            return;
        }
        for (call, _) in std::mem::take(&mut self.threads) {
            effects.push(Effect::Tell(Told::Stuck(call)));
        }
        self.abandon(Why::Stuck, now, effects);
    }

    /// What runs in a process that has used up its memory has failed: nobody can say whose memory it is.
    pub(super) fn looked(&mut self, advice: Advice, now: Instant, effects: &mut Vec<Effect>) {
        let Advice::OutOfMemory { used, limit } = advice else { return };
        if self.why == Why::OutOfMemory {
            return;
        }
        for slot in 0..self.held.len() {
            if self.held[slot].as_ref().is_some_and(|held| matches!(held.ending, Ending::Open)) {
                let text =
                    format_args!("the process used {} MiB of memory, it may use {} MiB", used >> 20, limit >> 20);
                self.speak_for(slot, Outcome::Error(TaskError::failed(text).class(MEMORY_LIMIT)));
            }
        }
        self.why = Why::OutOfMemory;
        self.shut_down(ShutdownStep::Immediate, now, effects);
    }

    /// Renews every lease that a third of has passed; those that wait to be settled as well.
    pub(super) fn renew(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.renewing {
            return;
        }
        let (mut renewals, mut slots) = (Vec::new(), Vec::new());
        for (slot, held) in self.held.iter().enumerate() {
            let Some(held) = held else { continue };
            // A report is taken only when it is sent: what does not fit into this batch goes with the next.
            if matches!(held.ending, Ending::Over) || renewals.len() == BATCH_MAX {
                continue;
            }
            let due = now.saturating_duration_since(held.renewed_at) >= self.settings.lease / 3;
            let progress = held.call.take_progress();
            if due || progress.is_some() {
                renewals.push(Renewal { receipt: held.call.receipt.clone(), progress, memo: None });
                slots.push(slot);
            }
        }
        if !renewals.is_empty() {
            self.renewing = true;
            effects.push(Effect::Renew { renewals, slots });
        }
    }

    pub(super) fn renewed(
        &mut self,
        slots: &[usize],
        answer: Result<Vec<Renewed>, StoreError>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.renewing = false;
        match answer {
            Ok(renewed) => {
                for (slot, renewed) in slots.iter().zip(renewed) {
                    match renewed {
                        Renewed::Held => self.set_renewed(*slot, now),
                        Renewed::Cancelled => {
                            self.set_renewed(*slot, now);
                            self.cancel(*slot, now);
                        }
                        Renewed::Lost => self.lost(*slot, now, effects),
                    }
                }
            }
            Err(error) => self.store_failed("renew", error, TICK, now, effects),
        }
    }

    pub(super) fn set_renewed(&mut self, slot: usize, now: Instant) {
        if let Some(held) = &mut self.held[slot] {
            held.renewed_at = now;
        }
    }

    pub(super) fn cancel(&mut self, slot: usize, now: Instant) {
        if let Some(held) = &mut self.held[slot]
            && held.handler == Handler::Running
            && held.drop_at.is_none()
        {
            held.call.stop.ask(StopReason::Cancelled);
            held.drop_at = Some((now + self.settings.cancel_grace, StopReason::Cancelled));
        }
    }

    /// The lease is gone. An attempt whose end is known may have been settled by a request whose answer was lost, so it is
    /// left to the settle; one that runs belongs to somebody else.
    pub(super) fn lost(&mut self, slot: usize, now: Instant, effects: &mut Vec<Effect>) {
        let Some(held) = &mut self.held[slot] else { return };
        if matches!(held.ending, Ending::Open) {
            held.call.stop.drop_now(StopReason::LeaseLost);
            held.overdue_at = held.overdue_at.min(now + self.process.overdue());
            held.ending = Ending::Over;
            effects.push(Effect::Tell(Told::LeaseLost(Arc::clone(&held.call))));
            if held.handler == Handler::Gone {
                self.forget(slot);
            }
        }
    }

    pub(super) fn ticked(&mut self, answer: Result<Ticked, StoreError>, now: Instant, effects: &mut Vec<Effect>) {
        self.ticking = false;
        let ticked = match answer {
            Ok(ticked) => ticked,
            Err(error) => return self.store_failed("tick", error, TICK, now, effects),
        };
        if let Some(since) = self.store_failed_at.take() {
            // What failed meanwhile need not wait any longer.
            self.settle_again.try_now();
            self.claim_again.try_now();
            effects.push(Effect::Tell(Told::StoreBack { after: now.saturating_duration_since(since) }));
        }
        if ticked.rescued > 0 {
            effects.push(Effect::Tell(Told::Rescued { count: ticked.rescued }));
        }
        if ticked.ended > 0 {
            effects.push(Effect::Tell(Told::EndedByStore { count: ticked.ended }));
        }
        effects.push(Effect::NextSlot(ticked.next_slot));
        for id in &ticked.cancelled {
            let found = self.held.iter().position(|held| held.as_ref().is_some_and(|held| held.call.id() == id));
            if let Some(slot) = found {
                self.cancel(slot, now);
            }
        }
        for order in ticked.orders {
            self.obey(order, now, effects);
        }
    }

    /// Tells that the store failed; the next tick that succeeds tells that it is back.
    pub(super) fn store_failed(
        &mut self,
        operation: &'static str,
        error: StoreError,
        again_in: Duration,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.store_failed_at.get_or_insert(now);
        effects.push(Effect::Tell(Told::StoreFailed { operation, error, again_in }));
    }

    pub(super) fn beat(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.beating = true;
        self.beat_at = now + BEAT;
        let info = NodeInfo { slots: self.slots, busy: self.busy, phase: self.phase, ..self.info.clone() };
        effects.push(Effect::Beat(Box::new(info), BEAT_TTL));
    }

    pub(super) fn beaten(&mut self, answer: Result<(), StoreError>, now: Instant, effects: &mut Vec<Effect>) {
        self.beating = false;
        if let Err(error) = answer {
            let again_in = self.beat_at.saturating_duration_since(now);
            self.store_failed("beat", error, again_in, now, effects);
        }
        if std::mem::take(&mut self.farewell_waits) {
            self.beat(now, effects);
        } else if self.phase == NodePhase::Stopped {
            effects.push(Effect::Leave);
        }
    }
}
