//! What a supervisor does next: events and the time in, effects out. Pure, as the engine's dispatcher is.
//!
//! As many children work as are wanted. One that leaves, has died or was killed is replaced; one that is due to be recycled
//! goes only when its replacement takes tasks; children that die soon after they have started are started again later and
//! later.

use std::time::{Duration, Instant};

use windlass::view::NodePhase;

use super::orders::Shown;
use super::word::{Command, Word};
use crate::exit::Exit;

/// How often the supervisor looks at its children.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A child whose engine has said nothing for so long is stuck or stopped: it says something twice a second, whatever its
/// store and its handlers do.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a child may use more memory than it may before it is killed: it should have seen that by itself.
const MEMORY_PATIENCE: Duration = Duration::from_secs(2);
/// After a child has died: the first wait, which doubles, and the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// A child that has worked for so long is healthy: what came before is forgotten.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// How long a child that gives back what runs may take: the engine tries to settle for 10 s and says farewell for 5 s.
const LEAVE_WITHIN: Duration = Duration::from_secs(20);
/// The same for one that finishes what runs, after its grace: it asks handlers to end 5 s before.
const FINISH_WITHIN: Duration = Duration::from_secs(25);
/// The most children.
pub(crate) const CHILDREN_MAX: usize = 256;

/// What the crew is told of how it should be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) children: usize,
    /// How long running handlers may go on after the signal to stop.
    pub(super) grace: Duration,
    pub(super) memory_max: Option<u64>,
}

/// A child for as long as this supervisor lives; its number is used again.
pub(super) type Serial = u64;

#[derive(Debug)]
pub(super) enum Event {
    Heard(Serial, Word),
    /// It could not be started.
    NotStarted(Serial),
    /// Its process has ended, with this exit code if it had one.
    Ended(Serial, Option<i32>),
    /// It is time to look; with the memory of each child.
    Look(Vec<(Serial, u64)>),
    Told(Told),
}

/// What the supervisor is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Stop,
    StopNow,
    Quiet,
    /// Take tasks again; the children are told by an order each.
    Resume,
    More,
    Fewer,
    Resize(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Start {
        serial: Serial,
        /// From 1; no two children have the same at once.
        number: usize,
    },
    Say(Serial, Command),
    Kill(Serial, Reason),
    /// A child died, and another is started after this wait.
    BackOff(Serial, Duration),
    Leave(Exit),
}

/// Why a child is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Silent,
    StillThere,
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not said yet that it takes tasks.
    Starting,
    Working,
    /// It works until another has taken its place.
    Due,
    /// It has until then to end.
    Leaving(Instant),
    Killed,
}

#[derive(Debug)]
struct Child {
    serial: Serial,
    number: usize,
    stage: Stage,
    /// How often those before it have died early.
    failures: u32,
    ready_at: Option<Instant>,
    heard_at: Option<Instant>,
    over_memory_since: Option<Instant>,
}

/// A child that is wanted and not there.
#[derive(Debug, Clone, Copy)]
struct Vacancy {
    failures: u32,
    start_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// New children are told to be quiet as well.
    Quiet,
    Stopping,
}

#[derive(Debug)]
pub(super) struct Crew {
    plan: Plan,
    phase: Phase,
    wanted: usize,
    children: Vec<Child>,
    vacancies: Vec<Vacancy>,
    last_serial: Serial,
    looked_at: Instant,
    /// Whether any child has ever taken tasks.
    proven: bool,
    exit: Exit,
}

impl Crew {
    pub(super) fn new(plan: Plan, now: Instant) -> Self {
        Self {
            plan,
            phase: Phase::Running,
            wanted: plan.children,
            children: Vec::new(),
            vacancies: Vec::new(),
            last_serial: 0,
            looked_at: now,
            proven: false,
            exit: Exit::Ok,
        }
    }

    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// What the fleet is told of it.
    pub(super) fn shown(&self) -> Shown {
        let ready = self.children.iter().filter(|child| matches!(child.stage, Stage::Working | Stage::Due)).count();
        let phase = match self.phase {
            Phase::Running => NodePhase::Running,
            Phase::Quiet => NodePhase::Quiet,
            Phase::Stopping => NodePhase::Stopping,
        };
        Shown { wanted: self.wanted, ready, phase }
    }

    /// The first children.
    pub(super) fn begin(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.reconcile(now, &mut effects);
        effects
    }

    /// Decides what follows from an event.
    pub(super) fn step(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Heard(serial, word) => self.heard(serial, word, now, &mut effects),
            Event::NotStarted(serial) => self.ended(serial, None, now, &mut effects),
            Event::Ended(serial, code) => self.ended(serial, code, now, &mut effects),
            Event::Look(memory) => self.look(&memory, now, &mut effects),
            Event::Told(told) => self.told(told, now, &mut effects),
        }
        match self.phase {
            Phase::Running | Phase::Quiet => self.reconcile(now, &mut effects),
            Phase::Stopping if self.children.is_empty() => effects.push(Effect::Leave(self.exit)),
            Phase::Stopping => {}
        }
        effects
    }

    fn heard(&mut self, serial: Serial, word: Word, now: Instant, effects: &mut Vec<Effect>) {
        let quiet = self.phase == Phase::Quiet;
        let Some(child) = self.children.iter_mut().find(|child| child.serial == serial) else { return };
        child.heard_at = Some(now);
        match (word, child.stage) {
            (Word::Ready, Stage::Starting) => {
                child.stage = Stage::Working;
                child.ready_at = Some(now);
                self.proven = true;
                if quiet {
                    effects.push(Effect::Say(serial, Command::Quiet));
                }
            }
            (Word::Due, Stage::Working) => child.stage = Stage::Due,
            (Word::Leaving, Stage::Starting | Stage::Working | Stage::Due) => {
                child.stage = Stage::Leaving(now + self.plan.grace + FINISH_WITHIN);
            }
            (Word::Beat | Word::Ready | Word::Due | Word::Leaving, _) => {}
        }
    }

    fn ended(&mut self, serial: Serial, code: Option<i32>, now: Instant, effects: &mut Vec<Effect>) {
        let Some(at) = self.children.iter().position(|child| child.serial == serial) else { return };
        let child = self.children.remove(at);
        match child.stage {
            // Its place has been filled already, or is not wanted any more.
            Stage::Leaving(_) | Stage::Killed => {}
            Stage::Starting | Stage::Working | Stage::Due => {
                if code == Some(i32::from(Exit::Usage.code())) && !self.proven {
                    // None will ever do better: what is wrong is what all of them were told.
                    self.exit = Exit::Usage;
                    return self.told(Told::Stop, now, effects);
                }
                let healthy = child.ready_at.is_some_and(|ready_at| now.duration_since(ready_at) >= HEALTHY_AFTER);
                let failures = if healthy { 1 } else { child.failures + 1 };
                let wait = again_in(failures);
                self.vacancies.push(Vacancy { failures, start_at: now + wait });
                effects.push(Effect::BackOff(serial, wait));
            }
        }
    }

    fn look(&mut self, memory: &[(Serial, u64)], now: Instant, effects: &mut Vec<Effect>) {
        // A supervisor that was stopped itself has heard nobody meanwhile.
        let late = now.duration_since(self.looked_at).saturating_sub(2 * LOOK_EVERY);
        self.looked_at = now;
        for child in &mut self.children {
            if !late.is_zero() {
                child.heard_at = child.heard_at.map(|heard_at| (heard_at + late).min(now));
            }
            let used = memory.iter().find(|(serial, _)| *serial == child.serial).map_or(0, |(_, used)| *used);
            child.over_memory_since = match self.plan.memory_max {
                Some(max) if used > max => child.over_memory_since.or(Some(now)),
                Some(_) | None => None,
            };
            if let Some(reason) = child.must_die(now) {
                child.stage = Stage::Killed;
                effects.push(Effect::Kill(child.serial, reason));
            }
        }
    }

    fn told(&mut self, told: Told, now: Instant, effects: &mut Vec<Effect>) {
        match told {
            Told::Stop => self.stop(Command::Stop, now + self.plan.grace + FINISH_WITHIN, effects),
            Told::StopNow => self.stop(Command::StopNow, now + LEAVE_WITHIN, effects),
            Told::Quiet if self.phase == Phase::Running => {
                self.phase = Phase::Quiet;
                effects.extend(self.children.iter().map(|child| Effect::Say(child.serial, Command::Quiet)));
            }
            Told::Resume if self.phase == Phase::Quiet => self.phase = Phase::Running,
            Told::Quiet | Told::Resume => {}
            Told::More => self.resize(self.wanted + 1),
            Told::Fewer => self.resize(self.wanted.saturating_sub(1)),
            Told::Resize(wanted) => self.resize(wanted),
        }
    }

    fn resize(&mut self, wanted: usize) {
        self.wanted = wanted.clamp(1, CHILDREN_MAX);
    }

    fn stop(&mut self, command: Command, until: Instant, effects: &mut Vec<Effect>) {
        self.phase = Phase::Stopping;
        self.vacancies.clear();
        for child in self.children.iter_mut().filter(|child| child.stage != Stage::Killed) {
            child.stage = match child.stage {
                Stage::Leaving(earlier) => Stage::Leaving(earlier.min(until)),
                _ => Stage::Leaving(until),
            };
            effects.push(Effect::Say(child.serial, command));
        }
    }

    /// Brings the children to the number that is wanted. Of those that are due one at a time is replaced, so that all of
    /// them never begin at once.
    fn reconcile(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let going = self.children.iter().find(|child| child.stage == Stage::Due).map(|child| child.serial);
        let counts = |child: &&Child| {
            let here = matches!(child.stage, Stage::Starting | Stage::Working | Stage::Due);
            here && Some(child.serial) != going
        };
        let here = self.children.iter().filter(counts).count();
        let ready = self.children.iter().filter(counts).filter(|child| child.stage != Stage::Starting).count();
        if let Some(serial) = going.filter(|_| ready >= self.wanted) {
            self.dismiss(serial, now, effects);
        }
        let surplus = (here + self.vacancies.len()).saturating_sub(self.wanted);
        let unfilled = surplus.min(self.vacancies.len());
        self.vacancies.truncate(self.vacancies.len() - unfilled);
        let mut dismissed: Vec<(usize, Serial)> =
            self.children.iter().filter(counts).map(|child| (child.number, child.serial)).collect();
        dismissed.sort_unstable_by(|a, b| b.cmp(a));
        for (_, serial) in dismissed.into_iter().take(surplus - unfilled) {
            self.dismiss(serial, now, effects);
        }
        let missing = self.wanted.saturating_sub(here + self.vacancies.len());
        self.vacancies.extend((0..missing).map(|_| Vacancy { failures: 0, start_at: now }));
        self.fill(now, effects);
    }

    fn dismiss(&mut self, serial: Serial, now: Instant, effects: &mut Vec<Effect>) {
        let until = now + self.plan.grace + FINISH_WITHIN;
        if let Some(child) = self.children.iter_mut().find(|child| child.serial == serial) {
            child.stage = Stage::Leaving(until);
            effects.push(Effect::Say(serial, Command::Stop));
        }
    }

    fn fill(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let (due, later): (Vec<Vacancy>, Vec<Vacancy>) =
            self.vacancies.drain(..).partition(|vacancy| vacancy.start_at <= now);
        self.vacancies = later;
        for vacancy in due {
            self.last_serial += 1;
            let child = Child {
                serial: self.last_serial,
                number: self.free_number(),
                stage: Stage::Starting,
                failures: vacancy.failures,
                ready_at: None,
                heard_at: None,
                over_memory_since: None,
            };
            effects.push(Effect::Start { serial: child.serial, number: child.number });
            self.children.push(child);
        }
    }

    fn free_number(&self) -> usize {
        let most = self.children.len() + 1;
        (1..most).find(|number| self.children.iter().all(|child| child.number != *number)).unwrap_or(most)
    }
}

impl Child {
    fn must_die(&self, now: Instant) -> Option<Reason> {
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| now.duration_since(at));
        match self.stage {
            Stage::Killed => None,
            Stage::Leaving(until) if until <= now => Some(Reason::StillThere),
            _ if since(self.heard_at) > SILENCE_MAX => Some(Reason::Silent),
            _ if since(self.over_memory_since) >= MEMORY_PATIENCE => Some(Reason::Memory),
            Stage::Starting | Stage::Working | Stage::Due | Stage::Leaving(_) => None,
        }
    }
}

fn again_in(failures: u32) -> Duration {
    AGAIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(AGAIN_MAX)
}

#[cfg(test)]
#[path = "crew_tests.rs"]
mod tests;
