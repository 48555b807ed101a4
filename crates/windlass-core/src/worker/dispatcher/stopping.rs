//! Orders from operators, and the three steps of the end.

use tokio::time::Instant;

use super::{BEAT, Dispatcher, Effect, Ending, Handler, LEAVE_WITHIN};
use crate::backend::Order;
use crate::call::StopReason;
use crate::event::Event as Told;
use crate::view::NodePhase;
use crate::worker::guard::Why;
use crate::worker::{SLOTS_MAX, ShutdownStep};

impl Dispatcher {
    pub(super) fn obey(&mut self, order: Order, now: Instant, effects: &mut Vec<Effect>) {
        match (order, self.phase) {
            (Order::Quiet, NodePhase::Running) => self.enter(NodePhase::Quiet, now, effects),
            (Order::Resume, NodePhase::Quiet) => self.enter(NodePhase::Running, now, effects),
            (Order::Stop, NodePhase::Running | NodePhase::Quiet) => {
                self.shut_down(ShutdownStep::Graceful, now, effects);
            }
            (Order::Resize(slots), _) => {
                self.slots = slots.min(SLOTS_MAX);
                // The claim on its way asked for the old number.
                if let Some(hush) = &self.claiming {
                    hush.cancel();
                }
            }
            (Order::Quiet | Order::Resume | Order::Stop, _) => {}
        }
    }

    pub(super) fn enter(&mut self, phase: NodePhase, now: Instant, effects: &mut Vec<Effect>) {
        self.phase = phase;
        if phase != NodePhase::Running
            && let Some(hush) = &self.claiming
        {
            hush.cancel();
        }
        effects.push(Effect::Tell(Told::Phase(phase)));
        // The fleet should see it now.
        self.beat_at = now;
    }

    /// The three steps: stop claiming and finish; after the grace ask handlers to end; then give back what still runs. A
    /// second signal takes the last step at once.
    pub(super) fn shut_down(&mut self, step: ShutdownStep, now: Instant, effects: &mut Vec<Effect>) {
        if step == ShutdownStep::Quiet {
            return self.obey(Order::Quiet, now, effects);
        }
        if !matches!(self.phase, NodePhase::Stopping | NodePhase::Stopped) {
            self.enter(NodePhase::Stopping, now, effects);
            self.ask_at = Some(now + self.settings.grace);
        }
        if step == ShutdownStep::Immediate {
            self.ask_at = None;
            self.leave_at = Some(now + LEAVE_WITHIN);
            self.ask_all(StopReason::Shutdown, now);
            self.watch_handlers(now, effects);
        }
    }

    /// Leaves without those that still run: they are given back, and the end of the process ends what cannot be ended
    /// otherwise. A worker that stops already goes on with that.
    pub(super) fn abandon(&mut self, why: Why, now: Instant, effects: &mut Vec<Effect>) {
        if matches!(self.phase, NodePhase::Running | NodePhase::Quiet) {
            self.why = why;
            self.shut_down(ShutdownStep::Immediate, now, effects);
        }
    }

    pub(super) fn ask_all(&mut self, reason: StopReason, drop_at: Instant) {
        for held in self.held.iter_mut().flatten().filter(|held| held.handler == Handler::Running) {
            held.call.stop.ask(reason);
            held.drop_at = Some(held.drop_at.unwrap_or((drop_at, reason))).map(|(at, why)| (at.min(drop_at), why));
        }
    }

    pub(super) fn leave(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let nothing_held = self.held.iter().flatten().all(|held| matches!(held.ending, Ending::Over));
        let done = nothing_held && self.claiming.is_none() && !self.settling && self.repeat.is_empty();
        if done || self.leave_at.is_some_and(|leave_at| leave_at <= now) {
            self.ask_at = None;
            self.leave_at = Some(now + BEAT);
            self.phase = NodePhase::Stopped;
            effects.push(Effect::Tell(Told::Phase(NodePhase::Stopped)));
            // Two on their way could arrive in either order, and the answer to the first would end the process.
            self.farewell_waits = self.beating;
            if !self.beating {
                self.beat(now, effects);
            }
        }
    }
}
