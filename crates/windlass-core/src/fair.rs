//! Fairness by key: the keys of a queue take turns, so that the backlog of one never delays another by more than a turn.
//!
//! Weighted round robin over the keys that have ready tasks, in the order of their names; tasks without a key are one more
//! participant. A queue remembers only where the next turn begins ([`Turn`]), so a key that has nothing to do costs
//! nothing. Within a key, rank decides: priority and waiting time, as in a queue without keys.

use crate::Key;

/// The most keys that one claim looks at.
pub const KEYS_PER_CLAIM: usize = 10_000;

/// Where the next turn of a queue begins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Turn {
    /// The key whose turn it was; `None` for tasks without a key, which come first.
    pub key: Option<Key>,
    /// How many tasks of it are left of that turn.
    pub left: u32,
}

/// Deals places to participants with these weights, in their order; the first has `left` places of its turn to take before a
/// new round begins. Answers how many each gets, and the participant and its rest with which the next deal begins: so it
/// must be told of all participants, or of one more than there are places.
///
/// ```
/// use windlass_core::fair::deal;
/// assert_eq!(deal(&[1, 1, 1], 1, 2).0, [1, 1, 0]);
/// assert_eq!(deal(&[3, 1], 3, 8).0, [6, 2]);
/// ```
pub fn deal(weights: &[u32], left: u32, room: usize) -> (Vec<usize>, (usize, u32)) {
    let mut shares = vec![0; weights.len()];
    let Some(first) = weights.first().copied() else { return (shares, (0, 0)) };
    let mut room = room;
    // What the first has left of its turn.
    let rest = (left.min(first) as usize).min(room);
    shares[0] = rest;
    room -= rest;
    if room == 0 {
        let left = left.min(first) - rest as u32;
        return (shares, if left > 0 { (0, left) } else { after(weights, 0) });
    }
    // The others of this round, then whole rounds, then what is left of the last one.
    let mut next = 1 % weights.len();
    let round: usize = weights.iter().map(|weight| *weight as usize).sum();
    loop {
        if next == 0 && round > 0 {
            let rounds = room / round;
            for (share, weight) in shares.iter_mut().zip(weights) {
                *share += rounds * *weight as usize;
            }
            room -= rounds * round;
        }
        if room == 0 {
            return (shares, (next, weights[next]));
        }
        let taken = (weights[next] as usize).min(room);
        shares[next] += taken;
        room -= taken;
        let left = weights[next] - taken as u32;
        if left > 0 {
            return (shares, (next, left));
        }
        next = (next + 1) % weights.len();
    }
}

fn after(weights: &[u32], index: usize) -> (usize, u32) {
    let next = (index + 1) % weights.len();
    (next, weights[next])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_at_a_time_goes_round_by_weight() {
        let weights = [2, 1, 3];
        let (mut next, mut left) = (0, weights[0]);
        let mut got = [0; 3];
        for _ in 0..60 {
            // The participants as a claim sees them: beginning with whose turn it is.
            let order: Vec<usize> = (0..3).map(|step| (next + step) % 3).collect();
            let turned: Vec<u32> = order.iter().map(|index| weights[*index]).collect();
            let (shares, (then, rest)) = deal(&turned, left, 1);
            for (index, share) in order.iter().zip(&shares) {
                got[*index] += share;
            }
            (next, left) = (order[then], rest);
        }
        assert_eq!(got, [20, 10, 30]);
    }

    #[test]
    fn many_places_at_once_are_the_same_as_one_at_a_time() {
        let mut dice = fastrand::Rng::with_seed(7);
        for _ in 0..1_000 {
            let weights: Vec<u32> = (0..dice.usize(1..6)).map(|_| dice.u32(1..5)).collect();
            let room = dice.usize(0..40);
            let left = dice.u32(0..=weights[0]);
            let (shares, _) = deal(&weights, left, room);
            let mut singly = vec![0; weights.len()];
            let (mut at, mut rest) = (0, left);
            for _ in 0..room {
                while rest == 0 {
                    at = (at + 1) % weights.len();
                    rest = weights[at];
                }
                singly[at] += 1;
                rest -= 1;
            }
            assert_eq!(shares, singly, "weights {weights:?}, left {left}, room {room}");
        }
    }
}
