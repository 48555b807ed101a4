//! Whether more tasks can come to the batches of a worker: it has free slots, or slots that something runs in, and it
//! still claims.
//!
//! The event loop tells the room what the worker is up to, the batches say how many tasks wait in them.

use tokio::sync::watch;

use crate::view::NodePhase;

/// Shared by the batches of one worker.
#[derive(Debug)]
pub(crate) struct Room(watch::Sender<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    slots: usize,
    phase: NodePhase,
    /// Tasks that wait in a batch that has not begun; each holds a slot.
    collecting: usize,
}

/// What a batch that has not begun should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    Wait,
    /// Nothing more can come.
    Begin,
    /// The worker stops, and begins nothing.
    GiveBack,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(State { slots: usize::MAX, phase: NodePhase::Running, collecting: 0 }))
    }

    /// The event loop says how the worker is.
    pub(crate) fn look(&self, slots: usize, phase: NodePhase) {
        let now = *self.0.borrow();
        if (now.slots, now.phase) != (slots, phase) {
            self.change(|state| (state.slots, state.phase) = (slots, phase));
        }
    }

    pub(super) fn sat_down(&self) {
        self.change(|state| state.collecting += 1);
    }

    pub(super) fn stood_up(&self, count: usize) {
        self.change(|state| state.collecting -= count);
    }

    /// Waits until waiting is of no use.
    pub(super) async fn nothing_more_comes(&self) -> Advice {
        let mut states = self.0.subscribe();
        match states.wait_for(|state| advice(*state) != Advice::Wait).await {
            Ok(state) => advice(*state),
            Err(_) => unreachable!("the sender is borrowed from `self`"),
        }
    }

    /// Those who wait are woken only when there is something for them: most changes are one task more or less.
    fn change(&self, change: impl FnOnce(&mut State)) {
        self.0.send_if_modified(|state| {
            change(state);
            advice(*state) != Advice::Wait
        });
    }
}

fn advice(state: State) -> Advice {
    match state.phase {
        NodePhase::Stopping | NodePhase::Stopped => Advice::GiveBack,
        NodePhase::Quiet => Advice::Begin,
        // A slot in which something runs becomes free without our doing, one that waits in a batch does not.
        NodePhase::Running if state.collecting >= state.slots => Advice::Begin,
        NodePhase::Running => Advice::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_waits_only_while_more_can_come() {
        use NodePhase::{Quiet, Running, Stopped, Stopping};
        for (slots, collecting, phase, expected) in [
            (4, 3, Running, Advice::Wait),
            (4, 4, Running, Advice::Begin),
            (2, 4, Running, Advice::Begin),
            (4, 1, Quiet, Advice::Begin),
            (4, 1, Stopping, Advice::GiveBack),
            (4, 4, Stopping, Advice::GiveBack),
            (4, 1, Stopped, Advice::GiveBack),
        ] {
            let state = State { slots, phase, collecting };
            assert_eq!(advice(state), expected, "{state:?}");
        }
    }
}
