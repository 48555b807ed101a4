//! Where results are stored, and what is counted there for chords.

use std::sync::Arc;
use std::time::Duration;

use windlass_core::bridge::TransportError;
use windlass_redis::foreign::{Command, Line, Reply};
use windlass_wire::Frame;
use windlass_wire::celery::event::Kind;
use windlass_wire::celery::result::{ChordPart, group_key, key};

use super::plan::{Document, Over, Part};
use crate::carrier::of_store;

const RESULTS: &str = include_str!("lua/results.lua");
const CHORD_PART: &str = include_str!("lua/chord_part.lua");
/// How long one who has counted the last part may take to send the body, before another may.
const CLAIM: Duration = Duration::from_secs(60);
/// How long it is remembered that a body was sent.
const DONE: Duration = Duration::from_secs(300);
/// The documents of one trip: those of a full batch.
const TRIP: usize = 500;

/// Where clients look for results.
#[derive(Debug)]
pub(super) enum Results {
    /// In keys of a Redis server.
    Redis(RedisResults),
    /// In the queue that each request names.
    Replies,
    /// Nowhere.
    Nowhere,
}

impl Results {
    /// Stores results; answers those that are to be sent to queues instead, and what monitors hear of those that count.
    pub(super) async fn write(&self, documents: Vec<Document>) -> Result<(Vec<Frame>, Vec<Kind>), TransportError> {
        match self {
            Self::Redis(redis) => Ok((Vec::new(), redis.write(documents).await?)),
            Self::Replies => {
                let replies = documents.iter().filter_map(reply).collect();
                Ok((replies, documents.into_iter().filter_map(|document| document.event).collect()))
            }
            Self::Nowhere => Ok((Vec::new(), documents.into_iter().filter_map(|document| document.event).collect())),
        }
    }

    /// The keys that chords are counted in; without them there are no chords.
    pub(super) fn chords(&self) -> Option<&RedisResults> {
        match self {
            Self::Redis(redis) => Some(redis),
            Self::Replies | Self::Nowhere => None,
        }
    }
}

fn reply(document: &Document) -> Option<Frame> {
    let queue = document.reply_to.as_deref().filter(|queue| !queue.is_empty())?;
    Some(document.document.reply(queue))
}

/// Results in a Redis server.
#[derive(Debug)]
pub(super) struct RedisResults {
    pub(super) line: Arc<Line>,
    /// In front of every key, as Celery's `global_keyprefix`.
    pub(super) prefix: String,
    /// How long they are kept; zero keeps them for ever.
    pub(super) expires: Duration,
}

/// What became of a part that was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// Others are missing, or somebody else goes on.
    Waits,
    /// It was the last one: the caller goes on with the body.
    Complete,
}

impl RedisResults {
    /// Answers the events of those that were not there already.
    async fn write(&self, documents: Vec<Document>) -> Result<Vec<Kind>, TransportError> {
        let mut events = Vec::new();
        for trip in documents.chunks(TRIP) {
            let mut keys = Vec::with_capacity(trip.len());
            let mut args = vec![self.expires.as_secs().to_string().into_bytes()];
            for Document { document, over, .. } in trip {
                keys.push(key(&self.prefix, document.task_id.as_deref().unwrap_or_default()).into_bytes());
                args.push(document.encode().into_bytes());
                let over = match over {
                    Over::AllButSuccess => "success",
                    Over::Unready => "ready",
                };
                args.push(over.as_bytes().to_vec());
            }
            let written = self.line.run(RESULTS, &keys, &args).await.map_err(of_store)?.list();
            let places = written.iter().filter_map(|place| usize::try_from(place.number()? - 1).ok());
            events.extend(places.filter_map(|place| trip.get(place)?.event.clone()));
        }
        Ok(events)
    }

    /// Writes the counters of chords that begin.
    pub(super) async fn begin(&self, chords: &[(String, usize)]) -> Result<(), TransportError> {
        let mut commands = Vec::new();
        for (group, size) in chords {
            let key = group_key(&self.prefix, group);
            commands.push(words(["DEL", &format!("{key}.c")]));
            commands.push(match self.expires.as_secs() {
                0 => words(["SET", &format!("{key}.s"), &size.to_string()]),
                seconds => words(["SET", &format!("{key}.s"), &size.to_string(), "EX", &seconds.to_string()]),
            });
        }
        self.line.ask_all(&commands).await.map(drop).map_err(of_store)
    }

    /// Counts a part.
    pub(super) async fn count(&self, part: &Part, token: &str) -> Result<Counted, TransportError> {
        let key = group_key(&self.prefix, &part.group);
        let keys = [".j", ".d", ".c", ".s", ".t", ""].map(|end| format!("{key}{end}").into_bytes());
        let args = [
            part.part.encode(),
            part.index.map_or_else(|| "+inf".to_owned(), |index| index.to_string()),
            format!("{}:{}", part.part.task_id, part.index.map_or_else(|| "None".to_owned(), |it| it.to_string())),
            self.expires.as_secs().to_string(),
            token.to_owned(),
            CLAIM.as_secs().to_string(),
        ];
        let answer = self.line.run(CHORD_PART, &keys, &args.map(String::into_bytes)).await.map_err(of_store)?;
        Ok(if answer.number() == Some(1) { Counted::Complete } else { Counted::Waits })
    }

    /// The parts of a complete chord, in their order.
    pub(super) async fn parts(&self, group: &str) -> Result<Vec<Vec<u8>>, TransportError> {
        let key = format!("{}.j", group_key(&self.prefix, group));
        let kind = self.line.ask(&words(["TYPE", &key])).await.map_err(of_store)?;
        let command = if kind == Reply::Bytes(b"list".to_vec()) { "LRANGE" } else { "ZRANGE" };
        let parts = self.line.ask(&words([command, &key, "0", "-1"])).await.map_err(of_store)?;
        Ok(parts.list().into_iter().filter_map(Reply::bytes).collect())
    }

    /// The body was sent: the counters have done their service.
    pub(super) async fn end(&self, group: &str) -> Result<(), TransportError> {
        let key = group_key(&self.prefix, group);
        let done = words(["SET", &format!("{key}.c"), "done", "EX", &DONE.as_secs().to_string()]);
        let mut forget = words(["DEL"]);
        forget.extend([".j", ".t", ".s", ".d"].map(|end| format!("{key}{end}").into_bytes()));
        self.line.ask_all(&[done, forget]).await.map(drop).map_err(of_store)
    }
}

/// A part as JSON in the counters; one that cannot be read is a failure of its chord.
pub(super) fn read_parts(parts: &[Vec<u8>]) -> Result<Vec<ChordPart>, windlass_wire::Malformed> {
    parts.iter().map(|part| ChordPart::decode(part)).collect()
}

pub(super) fn words<const N: usize>(words: [&str; N]) -> Command {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}
