use super::*;

const SECOND: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(25);

/// A crew with a clock of its own.
struct Sea {
    crew: Crew,
    now: Instant,
}

impl Sea {
    fn with(children: usize) -> (Self, Vec<Effect>) {
        let now = Instant::now();
        let plan = Plan { children, grace: GRACE, memory_max: Some(1_000) };
        let mut crew = Crew::new(plan, now);
        let effects = crew.begin(now);
        (Self { crew, now }, effects)
    }

    /// As many children, all of which take tasks.
    fn at_work(children: usize) -> Self {
        let (mut sea, _) = Self::with(children);
        for serial in 1..=children as u64 {
            assert_eq!(sea.hears(serial, Word::Ready), []);
        }
        sea
    }

    fn hears(&mut self, serial: Serial, word: Word) -> Vec<Effect> {
        self.crew.step(Event::Heard(serial, word), self.now)
    }

    fn ends(&mut self, serial: Serial, code: Option<i32>) -> Vec<Effect> {
        self.crew.step(Event::Ended(serial, code), self.now)
    }

    fn is_told(&mut self, told: Told) -> Vec<Effect> {
        self.crew.step(Event::Told(told), self.now)
    }

    /// Time passes as it does for a supervisor that runs.
    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        self.pass_with(time, &[], &[])
    }

    fn pass_with(&mut self, time: Duration, beating: &[Serial], memory: &[(Serial, u64)]) -> Vec<Effect> {
        let until = self.now + time;
        let mut effects = Vec::new();
        while self.now < until {
            self.now = until.min(self.now + LOOK_EVERY);
            for serial in beating {
                effects.extend(self.hears(*serial, Word::Beat));
            }
            effects.extend(self.crew.step(Event::Look(memory.to_vec()), self.now));
        }
        effects
    }
}

/// So many looks before that.
fn before(time: Duration, looks: u32) -> Duration {
    time.saturating_sub(looks * LOOK_EVERY)
}

fn start(serial: Serial, number: usize) -> Effect {
    Effect::Start { serial, number }
}

#[test]
fn as_many_children_start_as_are_wanted() {
    let (_, effects) = Sea::with(3);
    assert_eq!(effects, [start(1, 1), start(2, 2), start(3, 3)]);
}

#[test]
fn a_child_that_leaves_is_replaced_at_once_under_a_number_that_is_free() {
    let mut sea = Sea::at_work(2);
    assert_eq!(sea.hears(1, Word::Leaving), [start(3, 3)]);
    assert_eq!(sea.ends(1, Some(75)), []);
    assert_eq!(sea.hears(2, Word::Leaving), [start(4, 1)]);
}

#[test]
fn a_child_that_dies_is_replaced_after_a_wait_that_doubles() {
    let mut sea = Sea::at_work(1);
    let mut waits = Vec::new();
    for serial in 1..=7 {
        let effects = sea.ends(serial, None);
        let [Effect::BackOff(_, wait)] = effects[..] else { panic!("{effects:?}") };
        assert_eq!(sea.pass(before(wait, 1)), [], "not before its time");
        assert_eq!(sea.pass(LOOK_EVERY), [start(serial + 1, 1)]);
        waits.push(wait.as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
}

#[test]
fn a_minute_of_health_ends_the_waiting() {
    let mut sea = Sea::at_work(1);
    sea.ends(1, None);
    sea.pass(SECOND);
    assert_eq!(sea.ends(2, None), [Effect::BackOff(2, 2 * SECOND)]);
    sea.pass(2 * SECOND);
    sea.hears(3, Word::Ready);
    sea.pass_with(60 * SECOND, &[3], &[]);
    assert_eq!(sea.ends(3, Some(1)), [Effect::BackOff(3, SECOND)]);
}

#[test]
fn a_child_goes_to_be_recycled_only_when_another_has_taken_its_place_and_one_at_a_time() {
    let mut sea = Sea::at_work(2);
    assert_eq!(sea.hears(1, Word::Due), [start(3, 3)]);
    assert_eq!(sea.hears(2, Word::Due), [], "the second waits for its turn");
    assert_eq!(sea.hears(3, Word::Ready), [Effect::Say(1, Command::Stop)]);
    assert_eq!(sea.ends(1, Some(0)), [start(4, 1)]);
    assert_eq!(sea.hears(4, Word::Ready), [Effect::Say(2, Command::Stop)]);
    assert_eq!(sea.ends(2, Some(0)), []);
    assert_eq!(sea.pass_with(SECOND, &[3, 4], &[]), []);
}

#[test]
fn a_child_that_is_due_and_dies_is_replaced_once() {
    let mut sea = Sea::at_work(1);
    assert_eq!(sea.hears(1, Word::Due), [start(2, 2)]);
    assert_eq!(sea.ends(1, None), [Effect::BackOff(1, SECOND)]);
    sea.hears(2, Word::Ready);
    assert_eq!(sea.pass_with(3 * SECOND, &[2], &[]), []);
}

#[test]
fn a_silent_child_is_killed_and_replaced_at_once() {
    let mut sea = Sea::at_work(2);
    assert_eq!(sea.pass_with(SILENCE_MAX, &[1], &[]), []);
    assert_eq!(sea.pass_with(LOOK_EVERY, &[1], &[]), [Effect::Kill(2, Reason::Silent), start(3, 3)]);
    assert_eq!(sea.pass_with(SECOND, &[1], &[]), [], "once");
    assert_eq!(sea.ends(2, None), []);
}

#[test]
fn a_child_that_has_never_said_anything_may_still_wait_for_its_store() {
    let (mut sea, _) = Sea::with(1);
    assert_eq!(sea.pass(10 * SILENCE_MAX), []);
}

#[test]
fn a_supervisor_that_was_stopped_itself_takes_nobody_for_silent() {
    let mut sea = Sea::at_work(1);
    sea.now += 60 * SECOND;
    assert_eq!(sea.crew.step(Event::Look(Vec::new()), sea.now), []);
    assert_eq!(sea.pass(before(SILENCE_MAX, 3)), []);
    assert_eq!(sea.pass(2 * LOOK_EVERY)[0], Effect::Kill(1, Reason::Silent));
}

#[test]
fn a_child_that_does_not_leave_for_its_memory_is_killed() {
    let mut sea = Sea::at_work(1);
    assert_eq!(sea.pass_with(60 * SECOND, &[1], &[(1, 1_000)]), [], "at the limit");
    assert_eq!(sea.pass_with(2 * SECOND, &[1], &[(1, 1_001)]), [], "it has a moment to leave by itself");
    assert_eq!(sea.pass_with(LOOK_EVERY, &[1], &[(1, 1_001)])[0], Effect::Kill(1, Reason::Memory));
}

#[test]
fn all_end_in_order_and_then_the_supervisor_leaves() {
    let mut sea = Sea::at_work(2);
    let stops = [Effect::Say(1, Command::Stop), Effect::Say(2, Command::Stop)];
    assert_eq!(sea.is_told(Told::Stop), stops);
    assert_eq!(sea.hears(1, Word::Leaving), []);
    assert_eq!(sea.ends(1, Some(0)), [], "nobody is replaced any more");
    assert_eq!(sea.ends(2, Some(0)), [Effect::Leave(Exit::Ok)]);
}

#[test]
fn a_second_signal_shortens_the_time_and_what_is_still_there_is_killed() {
    let mut sea = Sea::at_work(1);
    sea.is_told(Told::Stop);
    assert_eq!(sea.is_told(Told::StopNow), [Effect::Say(1, Command::StopNow)]);
    assert_eq!(sea.pass_with(before(LEAVE_WITHIN, 1), &[1], &[]), []);
    assert_eq!(sea.pass_with(LOOK_EVERY, &[1], &[]), [Effect::Kill(1, Reason::StillThere)]);
    assert_eq!(sea.ends(1, None), [Effect::Leave(Exit::Ok)]);
}

#[test]
fn the_crew_grows_and_shrinks_by_one_and_never_to_none() {
    let mut sea = Sea::at_work(1);
    assert_eq!(sea.is_told(Told::More), [start(2, 2)]);
    assert_eq!(sea.is_told(Told::Fewer), [Effect::Say(2, Command::Stop)]);
    assert_eq!(sea.is_told(Told::Fewer), []);
    assert_eq!(sea.crew.wanted(), 1);
    assert_eq!(sea.is_told(Told::Resize(3)), [start(3, 3), start(4, 4)]);
    sea.is_told(Told::Resize(0));
    assert_eq!(sea.crew.wanted(), 1);
    sea.is_told(Told::Resize(1_000));
    assert_eq!(sea.crew.wanted(), CHILDREN_MAX);
}

#[test]
fn a_place_that_waits_is_the_first_to_go() {
    let mut sea = Sea::at_work(2);
    sea.ends(2, None);
    assert_eq!(sea.is_told(Told::Fewer), []);
    assert_eq!(sea.pass_with(5 * SECOND, &[1], &[]), []);
}

#[test]
fn who_comes_while_all_are_quiet_is_quiet_too() {
    let mut sea = Sea::at_work(1);
    assert_eq!(sea.is_told(Told::Quiet), [Effect::Say(1, Command::Quiet)]);
    assert_eq!(sea.is_told(Told::Quiet), []);
    assert_eq!(sea.hears(1, Word::Leaving), [start(2, 2)]);
    assert_eq!(sea.hears(2, Word::Ready), [Effect::Say(2, Command::Quiet)]);
    sea.is_told(Told::Resume);
    assert_eq!(sea.hears(2, Word::Leaving), [start(3, 3)]);
    assert_eq!(sea.hears(3, Word::Ready), []);
}

#[test]
fn a_command_line_that_no_child_understands_is_not_tried_for_ever() {
    let (mut sea, _) = Sea::with(2);
    assert_eq!(sea.ends(1, Some(2)), [Effect::Say(2, Command::Stop)]);
    assert_eq!(sea.ends(2, Some(2)), [Effect::Leave(Exit::Usage)]);

    let mut sea = Sea::at_work(1);
    assert_eq!(sea.ends(1, Some(2)), [Effect::BackOff(1, SECOND)], "it was right once: a file may be mended");
}
