//! What [`Receipt::row`](windlass_core::backend::Receipt::row) says: where the task is, and whether it is plain.
//!
//! Most tasks give nothing back when they end: no unique key, no result with a time of its own. The claim has seen that,
//! so it writes it down together with the queue, and the settle of such a task is one statement that reads nothing first.
//! The receipt is a hint only: that statement checks id, fence and state like every other.

/// The bits of the place; 280,000 billion tasks.
const PLACE_BITS: u32 = 48;
const PLACE_MASK: i64 = (1 << PLACE_BITS) - 1;
/// Queues with a higher number are not written down; a file with so many has other worries.
const QUEUE_MAX: i64 = (1 << (63 - PLACE_BITS)) - 1;

/// The row of a receipt; `plain_queue` is the queue of a task that gives nothing back.
pub(crate) fn row_of(place: i64, plain_queue: Option<i64>) -> i64 {
    debug_assert!((0..=PLACE_MASK).contains(&place), "places are counted from 1");
    place | plain_queue.filter(|queue| (1..=QUEUE_MAX).contains(queue)).unwrap_or(0) << PLACE_BITS
}

/// Where the task is.
pub(crate) fn place_of(row: i64) -> i64 {
    row & PLACE_MASK
}

/// The queue of a plain task.
pub(crate) fn plain_queue_of(row: i64) -> Option<i64> {
    Some(row >> PLACE_BITS).filter(|queue| *queue > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_was_written_into_it() {
        for (place, queue) in [(1, Some(1)), (PLACE_MASK, Some(QUEUE_MAX)), (7, None)] {
            let row = row_of(place, queue);
            assert_eq!((place_of(row), plain_queue_of(row)), (place, queue));
            assert!(row > 0);
        }
        assert_eq!(plain_queue_of(row_of(1, Some(QUEUE_MAX + 1))), None);
    }
}
