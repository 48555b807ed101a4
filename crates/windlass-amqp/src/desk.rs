//! What was delivered and is not acknowledged: what lies here, what somebody holds, and how it is acknowledged in few words.
//! Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::message::Taken;

/// What a delivery is accepted, put back or rejected by. It is void when the channel that it came by is gone: the broker
/// delivers the message again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Tag {
    /// Counts channels. Never 0 for a delivery.
    epoch: u64,
    number: u64,
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

/// What became of an acceptance, of putting back, of a rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The broker is told. It does not answer: when the connection ends on the way, it delivers the message again.
    Told,
    /// The tag is void: its channel is gone, or it was finished before. Nothing was said to the broker.
    Void,
}

/// One acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ack {
    /// Of this number.
    One(u64),
    /// Of this number and all below it.
    Through(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Shelf,
    Hand,
}

/// The deliveries of one channel.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    epoch: u64,
    /// By number: where it is, and which generation of consumers it came by.
    unacked: BTreeMap<u64, (Place, u64)>,
    /// What lies here, by queue.
    shelves: Vec<VecDeque<Taken>>,
    /// The shelf that is served next.
    turn: usize,
    generation: u64,
}

impl Desk {
    pub(crate) fn new(queues: usize) -> Self {
        Self { shelves: (0..queues).map(|_| VecDeque::new()).collect(), ..Self::default() }
    }

    /// A new channel: everything from the old one is void.
    pub(crate) fn renew(&mut self) {
        // Counted for the whole process: the tag of one transport is void at another.
        static CHANNELS: AtomicU64 = AtomicU64::new(1);
        self.epoch = CHANNELS.fetch_add(1, Ordering::Relaxed);
        self.unacked.clear();
        self.shelves.iter_mut().for_each(VecDeque::clear);
    }

    /// New consumers: what comes now is counted apart from what came by the old ones.
    pub(crate) fn next_generation(&mut self) {
        self.generation += 1;
    }

    pub(crate) fn tag(&self, number: u64) -> Tag {
        Tag { epoch: self.epoch, number }
    }

    pub(crate) fn arrived(&mut self, queue: usize, taken: Taken) {
        self.unacked.insert(taken.tag.number, (Place::Shelf, self.generation));
        self.shelves[queue].push_back(taken);
    }

    pub(crate) fn on_shelves(&self) -> usize {
        self.shelves.iter().map(VecDeque::len).sum()
    }

    pub(crate) fn in_hands(&self) -> usize {
        self.unacked.len() - self.on_shelves()
    }

    /// Those in hands that came by the consumers of today.
    pub(crate) fn in_hands_of_generation(&self) -> usize {
        self.unacked.values().filter(|entry| **entry == (Place::Hand, self.generation)).count()
    }

    /// Hands out up to `max`, one queue after the other.
    pub(crate) fn hand_out(&mut self, max: usize) -> Vec<Taken> {
        let mut handed = Vec::with_capacity(max.min(self.on_shelves()));
        let mut empty = 0;
        while handed.len() < max && empty < self.shelves.len() {
            let shelf = self.turn % self.shelves.len();
            self.turn = shelf + 1;
            match self.shelves[shelf].pop_front() {
                Some(taken) => {
                    self.unacked.entry(taken.tag.number).and_modify(|(place, _)| *place = Place::Hand);
                    handed.push(taken);
                    empty = 0;
                }
                None => empty += 1,
            }
        }
        handed
    }

    /// Lays back what was handed out to somebody who is gone, to the front.
    pub(crate) fn lay_back(&mut self, queues: &[Arc<str>], handed: Vec<Taken>) {
        for taken in handed.into_iter().rev() {
            let is_ours = taken.tag.epoch == self.epoch && self.unacked.contains_key(&taken.tag.number);
            let shelf = queues.iter().position(|queue| *queue == taken.queue);
            if let Some(shelf) = shelf.filter(|_| is_ours) {
                self.unacked.entry(taken.tag.number).and_modify(|(place, _)| *place = Place::Shelf);
                self.shelves[shelf].push_front(taken);
            }
        }
    }

    /// Forgets what has these tags; answers what to say to the broker, and what became of each.
    pub(crate) fn finish(&mut self, tags: &[Tag]) -> (Vec<Ack>, Vec<Finished>) {
        let mut numbers = BTreeSet::new();
        let in_hand =
            |tag: &Tag| tag.epoch == self.epoch && matches!(self.unacked.get(&tag.number), Some((Place::Hand, _)));
        let become_of = |tag: &Tag| {
            if in_hand(tag) && numbers.insert(tag.number) { Finished::Told } else { Finished::Void }
        };
        let finished = tags.iter().map(become_of).collect();
        (self.forget(&numbers), finished)
    }

    /// Forgets what lies here beyond the first `kept`: the newest of the longest shelves.
    pub(crate) fn clear_shelves(&mut self, kept: usize) -> Vec<Ack> {
        let mut numbers = BTreeSet::new();
        while self.on_shelves() > kept {
            let longest = self.shelves.iter_mut().max_by_key(|shelf| shelf.len());
            let Some(taken) = longest.and_then(VecDeque::pop_back) else { break };
            numbers.insert(taken.tag.number);
        }
        self.forget(&numbers)
    }

    /// One word for all from the oldest on, one for each other.
    fn forget(&mut self, numbers: &BTreeSet<u64>) -> Vec<Ack> {
        let oldest: Vec<u64> = self.unacked.keys().take_while(|number| numbers.contains(number)).copied().collect();
        let through = match oldest.as_slice() {
            [] => None,
            [only] => Some(Ack::One(*only)),
            [.., last] => Some(Ack::Through(*last)),
        };
        let others = numbers.iter().skip(oldest.len()).map(|number| Ack::One(*number));
        let acks = through.into_iter().chain(others).collect();
        for number in numbers {
            self.unacked.remove(number);
        }
        acks
    }
}

#[cfg(test)]
mod tests {
    use lapin::message::Delivery;

    use super::*;
    use crate::message;

    fn queues() -> Vec<Arc<str>> {
        vec!["a".into(), "b".into()]
    }

    /// A desk of two queues with these numbers on their shelves.
    fn desk(a: &[u64], b: &[u64]) -> Desk {
        let mut desk = Desk::new(2);
        desk.renew();
        for (queue, numbers) in [a, b].into_iter().enumerate() {
            for number in numbers {
                let delivery = Delivery::mock(*number, "".into(), "q".into(), false, Vec::new());
                let taken = message::taken(delivery, desk.tag(*number), Arc::clone(&queues()[queue]));
                desk.arrived(queue, taken);
            }
        }
        desk
    }

    fn numbers(taken: &[Taken]) -> Vec<u64> {
        taken.iter().map(|taken| taken.tag.number).collect()
    }

    fn tags(taken: &[Taken]) -> Vec<Tag> {
        taken.iter().map(|taken| taken.tag).collect()
    }

    #[test]
    fn queues_take_turns() {
        let mut desk = desk(&[1, 2, 3, 4], &[5, 6]);
        assert_eq!(numbers(&desk.hand_out(3)), [1, 5, 2]);
        assert_eq!((desk.in_hands(), desk.on_shelves()), (3, 3));
        assert_eq!(numbers(&desk.hand_out(10)), [6, 3, 4]);
        assert!(desk.hand_out(10).is_empty());
    }

    #[test]
    fn what_is_finished_from_the_oldest_on_is_one_word() {
        let mut desk = desk(&[1, 2, 3, 4, 5, 6], &[]);
        let handed = tags(&desk.hand_out(6));
        let told = |acks: Vec<Ack>, count: usize| (acks, vec![Finished::Told; count]);
        assert_eq!(desk.finish(&[handed[3], handed[1], handed[0]]), told(vec![Ack::Through(2), Ack::One(4)], 3));
        assert_eq!(desk.finish(&[handed[2]]), told(vec![Ack::One(3)], 1));
        assert_eq!(desk.finish(&[handed[5]]), told(vec![Ack::One(6)], 1));
        assert_eq!(desk.finish(&[handed[4]]), told(vec![Ack::One(5)], 1));
    }

    #[test]
    fn one_word_never_covers_what_lies_on_a_shelf() {
        let mut desk = desk(&[1, 3], &[2, 4]);
        desk.turn = 1;
        let handed = desk.hand_out(1);
        assert_eq!(numbers(&handed), [2]);
        assert_eq!(desk.finish(&tags(&handed)).0, [Ack::One(2)], "1 is not accepted");
    }

    #[test]
    fn a_tag_is_void_when_it_was_finished_or_its_channel_is_gone() {
        let mut desk = desk(&[1, 2], &[]);
        let handed = tags(&desk.hand_out(2));
        assert_eq!(desk.finish(&[handed[0], handed[0]]).1, [Finished::Told, Finished::Void]);
        assert_eq!(desk.finish(&[handed[0]]), (Vec::new(), vec![Finished::Void]));
        desk.renew();
        assert_eq!(desk.finish(&[handed[1]]), (Vec::new(), vec![Finished::Void]));
        assert_eq!(desk.finish(&[Tag::default()]), (Vec::new(), vec![Finished::Void]));
    }

    #[test]
    fn what_was_handed_to_somebody_who_is_gone_comes_first_again() {
        let mut desk = desk(&[1, 2, 3], &[]);
        let handed = desk.hand_out(2);
        desk.lay_back(&queues(), handed);
        assert_eq!(numbers(&desk.hand_out(3)), [1, 2, 3]);
        let handed = desk.hand_out(3);
        desk.renew();
        desk.lay_back(&queues(), handed);
        assert_eq!(desk.on_shelves(), 0, "it is void");
    }

    #[test]
    fn shelves_are_cleared_from_the_end_of_the_longest() {
        let mut desk = desk(&[1, 2, 3], &[4]);
        assert_eq!(desk.clear_shelves(2), [Ack::One(2), Ack::One(3)]);
        assert_eq!(desk.clear_shelves(0), [Ack::Through(4)]);
        assert_eq!(desk.in_hands(), 0);
    }

    #[test]
    fn generations_are_counted_apart() {
        let mut desk = desk(&[1, 2], &[]);
        desk.hand_out(1);
        assert_eq!(desk.in_hands_of_generation(), 1);
        desk.next_generation();
        assert_eq!((desk.in_hands_of_generation(), desk.in_hands()), (0, 1));
    }
}
