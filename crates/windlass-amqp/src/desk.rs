//! What was delivered and is not acknowledged: what lies here, what somebody holds, and how it is acknowledged in few words.
//! Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lapin::message::Delivery;

use crate::message::{self, Taken};

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

impl Tag {
    /// The tag as bytes, for who keeps tags of several transports in one form.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (epoch, number) = bytes.split_at_mut(8);
        epoch.copy_from_slice(&self.epoch.to_be_bytes());
        number.copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// The tag of such bytes; any others are a tag that is void.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let Some((epoch, number)) = bytes.split_first_chunk::<8>() else { return Self::default() };
        let Ok(number) = number.try_into() else { return Self::default() };
        Self { epoch: u64::from_be_bytes(*epoch), number: u64::from_be_bytes(number) }
    }
}

/// What became of an acceptance, of putting back, of a rejection.
///
/// AMQP has no answer to an acknowledgement. But a channel of the broker deals with one thing after the other, so the answer
/// to something that was asked after it says that it was dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// The broker has heard it: it answered what was asked behind it on the same channel. However the connection ends now, the
    /// message does not come again.
    ///
    /// What remains: a node of the broker that dies in this moment. A classic queue writes acknowledgements down a little
    /// later, without waiting for the disk; a quorum queue has sent them to its leader and may still be replicating them.
    /// After a SIGKILL right behind the answer most of them came again (RabbitMQ 3.10).
    Heard,
    /// The broker is told, and the connection or the channel ended before it said that it has heard: it may deliver the
    /// message again.
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

#[derive(Debug)]
struct Shelf {
    queue: Arc<str>,
    lying: VecDeque<Taken>,
}

/// The deliveries of one channel.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    epoch: u64,
    /// By number: where it is, and which generation of consumers it came by.
    unacked: BTreeMap<u64, (Place, u64)>,
    /// What lies here, one shelf a queue.
    shelves: Vec<Shelf>,
    /// The shelf that is served next.
    turn: usize,
    generation: u64,
}

impl Desk {
    /// An empty desk for these queues.
    pub(crate) fn of(queues: Vec<Arc<str>>) -> Self {
        let mut desk = Self::default();
        desk.change_queues(queues);
        desk
    }

    /// From now on these queues; answers what to say to the broker of what lies here of the others. What is in hands stays.
    pub(crate) fn change_queues(&mut self, queues: Vec<Arc<str>>) -> Vec<Ack> {
        let mut old = std::mem::take(&mut self.shelves);
        let mut shelf_of = |queue: Arc<str>| {
            let position = old.iter().position(|shelf| shelf.queue == queue);
            position.map_or_else(|| Shelf { queue, lying: VecDeque::new() }, |position| old.swap_remove(position))
        };
        self.shelves = queues.into_iter().map(&mut shelf_of).collect();
        let left: BTreeSet<u64> = old.iter().flat_map(|shelf| &shelf.lying).map(|taken| taken.tag.number).collect();
        self.forget(&left)
    }

    /// The queues, in their order.
    pub(crate) fn queues(&self) -> impl ExactSizeIterator<Item = &Arc<str>> {
        self.shelves.iter().map(|shelf| &shelf.queue)
    }

    /// A new channel: everything from the old one is void.
    pub(crate) fn renew(&mut self) {
        // Counted for the whole process: the tag of one transport is void at another.
        static CHANNELS: AtomicU64 = AtomicU64::new(1);
        self.epoch = CHANNELS.fetch_add(1, Ordering::Relaxed);
        self.unacked.clear();
        self.shelves.iter_mut().for_each(|shelf| shelf.lying.clear());
    }

    /// New consumers: what comes now is counted apart from what came by the old ones.
    pub(crate) fn next_generation(&mut self) {
        self.generation += 1;
    }

    /// Lays what has arrived from the queue at this position.
    pub(crate) fn arrived(&mut self, queue: usize, delivery: Delivery) {
        let (shelf, number) = (&mut self.shelves[queue], delivery.delivery_tag);
        let tag = Tag { epoch: self.epoch, number };
        self.unacked.insert(number, (Place::Shelf, self.generation));
        shelf.lying.push_back(message::taken(delivery, tag, Arc::clone(&shelf.queue)));
    }

    pub(crate) fn on_shelves(&self) -> usize {
        self.shelves.iter().map(|shelf| shelf.lying.len()).sum()
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
            match self.shelves[shelf].lying.pop_front() {
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

    /// Lays back what was handed out to somebody who is gone, to the front; answers what to say to the broker of what has no
    /// shelf any more.
    pub(crate) fn lay_back(&mut self, handed: Vec<Taken>) -> Vec<Ack> {
        let mut left = BTreeSet::new();
        for taken in handed.into_iter().rev() {
            let number = taken.tag.number;
            if taken.tag.epoch != self.epoch {
                continue;
            }
            let Some((place, _)) = self.unacked.get_mut(&number) else { continue };
            match self.shelves.iter_mut().find(|shelf| shelf.queue == taken.queue) {
                Some(shelf) => {
                    *place = Place::Shelf;
                    shelf.lying.push_front(taken);
                }
                None => drop(left.insert(number)),
            }
        }
        self.forget(&left)
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
            let longest = self.shelves.iter_mut().map(|shelf| &mut shelf.lying).max_by_key(|lying| lying.len());
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
    use super::*;

    fn queues() -> Vec<Arc<str>> {
        vec!["a".into(), "b".into()]
    }

    /// A desk of two queues with these numbers on their shelves.
    fn desk(a: &[u64], b: &[u64]) -> Desk {
        let mut desk = Desk::of(queues());
        desk.renew();
        for (queue, numbers) in [a, b].into_iter().enumerate() {
            for number in numbers {
                desk.arrived(queue, Delivery::mock(*number, "".into(), "q".into(), false, Vec::new()));
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
        desk.lay_back(handed);
        assert_eq!(numbers(&desk.hand_out(3)), [1, 2, 3]);
        let handed = desk.hand_out(3);
        desk.renew();
        desk.lay_back(handed);
        assert_eq!(desk.on_shelves(), 0, "it is void");
    }

    #[test]
    fn what_lies_here_of_a_queue_that_is_left_goes_back_and_what_is_in_hands_stays() {
        let mut desk = desk(&[1, 3], &[2, 4]);
        let handed = tags(&desk.hand_out(1));
        assert_eq!(desk.change_queues(vec!["c".into(), "b".into()]), [Ack::One(3)], "what lies of `a`");
        assert_eq!(desk.queues().map(|queue| &**queue).collect::<Vec<_>>(), ["c", "b"]);
        assert_eq!((desk.in_hands(), desk.on_shelves()), (1, 2));
        assert_eq!(desk.finish(&handed), (vec![Ack::One(1)], vec![Finished::Told]));
        assert_eq!(numbers(&desk.hand_out(3)), [2, 4], "what lies of `b` is still here");
    }

    #[test]
    fn what_was_handed_to_somebody_who_is_gone_goes_back_when_its_queue_is_left() {
        let mut desk = desk(&[1, 2], &[3]);
        let handed = desk.hand_out(3);
        desk.change_queues(vec!["b".into()]);
        assert_eq!(desk.lay_back(handed), [Ack::Through(2)]);
        assert_eq!(numbers(&desk.hand_out(3)), [3]);
    }

    #[test]
    fn a_tag_is_the_same_after_its_time_as_bytes() {
        let desk = desk(&[1, 2], &[]);
        for number in [1, u64::MAX] {
            let tag = Tag { epoch: desk.epoch, number };
            assert_eq!(Tag::of_bytes(&tag.to_bytes()), tag);
        }
        for foreign in [&b""[..], b"seven b", b"eight by", b"more than sixteen bytes"] {
            assert_eq!(Tag::of_bytes(foreign), Tag::default());
        }
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
