//! The keys of a queue that have ready tasks, in a circle that begins with whose turn it is; read piece by piece.
//!
//! Each key costs one step of an index. Tasks without a key are one of the circle, before all keys.

use std::collections::{HashSet, VecDeque};

use futures_util::future::try_join_all;
use tokio_postgres::Row;
use windlass_core::fair::KEYS_PER_CLAIM;
use windlass_core::{Key, QueueName};

use crate::connection::Values;
use crate::errors::Fault;
use crate::rows::{parse, value};
use crate::tx::Tx;

/// Keys from one on, and below another, if there is one: `$1` the queue, `$2` at most how many, then the two bounds.
macro_rules! keys {
    ($from:literal, $below:literal) => {
        concat!(
            "WITH RECURSIVE b AS MATERIALIZED (SELECT ",
            $from,
            " AS low, ",
            $below,
            " AS high), \
             k AS ((SELECT l.key FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $1 \
             AND l.key >= (SELECT low FROM b) ORDER BY l.key LIMIT 1) \
             UNION ALL SELECT (SELECT l.key FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $1 \
             AND l.key > k.key ORDER BY l.key LIMIT 1) FROM k, b WHERE k.key IS NOT NULL AND (b.high IS NULL OR k.key < b.high)) \
             SELECT k.key FROM k, b WHERE k.key IS NOT NULL AND (b.high IS NULL OR k.key < b.high) LIMIT $2"
        )
    };
}
const KEYS: &str = keys!("$3::text", "$4::text");
/// From whose turn it is, and up to there.
pub(crate) const KEYS_FROM_TURN: &str =
    keys!("coalesce((SELECT t.key FROM windlass.turn t WHERE t.queue = $1), '')", "NULL::text");
pub(crate) const KEYS_TO_TURN: &str =
    keys!("''", "coalesce((SELECT t.key FROM windlass.turn t WHERE t.queue = $1), '')");
pub(crate) const PLAIN: &str = "\
SELECT NULL::text WHERE EXISTS (SELECT 1 FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = $1)";

type Keys = Vec<Option<Key>>;

/// The first piece of a circle, read before it is known whose turn it is.
#[derive(Debug)]
pub(crate) struct FirstRead {
    from_turn: Keys,
    plain: Keys,
    to_turn: Keys,
    most: usize,
}

/// Reads the first piece, with at least `wanted` keys if there are so many.
pub(crate) async fn read_first(tx: &Tx<'_>, queue: &str, wanted: usize) -> Result<FirstRead, Fault> {
    let most = wanted as i64;
    let (of_keys, of_queue): (Values<'_>, Values<'_>) = (&[&queue, &most], &[&queue]);
    let (from_turn, plain, to_turn) = tokio::join!(
        biased;
        tx.query(KEYS_FROM_TURN, of_keys),
        tx.query(PLAIN, of_queue),
        tx.query(KEYS_TO_TURN, of_keys),
    );
    let (from_turn, to_turn) = (keys_of(&from_turn?)?, keys_of(&to_turn?)?);
    Ok(FirstRead { from_turn, plain: keys_of(&plain?)?, to_turn, most: wanted })
}

/// A part of the circle that has not been read.
#[derive(Debug)]
enum Part {
    Plain,
    Keys { from: String, below: Option<String> },
}

/// The circle.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: String,
    /// What has been read, in order.
    pub(crate) keys: Keys,
    /// Whose turn it is.
    pub(crate) start: usize,
    /// Those of which this claim can take nothing more.
    pub(crate) aside: HashSet<usize>,
    unread: VecDeque<Part>,
}

impl Ring {
    /// Of a queue; with its first piece, when that has been read.
    pub(crate) fn new(queue: &QueueName, turn: Option<&Key>, begun: Option<FirstRead>) -> Self {
        let keys =
            |from: &str, below: Option<&str>| Part::Keys { from: from.to_owned(), below: below.map(str::to_owned) };
        let unread = match turn.map(Key::as_str) {
            Some(key) => VecDeque::from([keys(key, None), Part::Plain, keys("", Some(key))]),
            None => VecDeque::from([Part::Plain, keys("", None)]),
        };
        let queue = queue.as_str().to_owned();
        let mut ring = Self { queue, keys: Vec::new(), start: 0, aside: HashSet::new(), unread };
        if let Some(FirstRead { from_turn, plain, to_turn, most }) = begun {
            let answers = match turn {
                Some(_) => vec![from_turn, plain, to_turn],
                None => vec![plain, from_turn],
            };
            ring.absorb(answers, most);
        }
        ring
    }

    /// Whether everything has been read.
    pub(crate) fn is_complete(&self) -> bool {
        self.unread.is_empty()
    }

    /// Whether some task has a key, as far as has been read.
    pub(crate) fn has_keys(&self) -> bool {
        self.keys.iter().any(Option::is_some)
    }

    /// The places from whose turn it is; what was read before it comes last, after what is unread.
    pub(crate) fn order(&self) -> Vec<usize> {
        let before = if self.is_complete() || self.keys.len() >= KEYS_PER_CLAIM { 0..self.start } else { 0..0 };
        (self.start..self.keys.len()).chain(before).collect()
    }

    /// Reads on; answers where the new ones begin. Each time more, as those before may all be shut.
    pub(crate) async fn fetch(&mut self, tx: &Tx<'_>, wanted: usize) -> Result<usize, Fault> {
        let fresh = self.keys.len();
        let most = wanted.max(self.keys.len()).min(KEYS_PER_CLAIM);
        let answers = try_join_all(self.unread.iter().map(|part| read(tx, &self.queue, part, most))).await?;
        self.absorb(answers, most);
        Ok(fresh)
    }

    /// Takes in what the unread parts have, each read up to `most`.
    fn absorb(&mut self, answers: Vec<Keys>, most: usize) {
        for answer in answers {
            let Some(part) = self.unread.pop_front() else { break };
            let last = answer.last().cloned().flatten();
            let whole = answer.len() < most;
            self.keys.extend(answer);
            if let (Part::Keys { below, .. }, Some(last), false) = (part, last, whole) {
                // The smallest text above the last key: keys have no control characters.
                self.unread.push_front(Part::Keys { from: format!("{last}\u{1}"), below });
                break;
            }
        }
    }
}

async fn read(tx: &Tx<'_>, queue: &str, part: &Part, most: usize) -> Result<Keys, Fault> {
    keys_of(&match part {
        Part::Plain => tx.query(PLAIN, &[&queue]).await?,
        Part::Keys { from, below } => tx.query(KEYS, &[&queue, &(most as i64), from, below]).await?,
    })
}

fn keys_of(rows: &[Row]) -> Result<Keys, Fault> {
    rows.iter().map(|row| value::<Option<&str>>(row, 0)?.map(|key| parse("key", key)).transpose()).collect()
}
