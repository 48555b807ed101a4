//! Messages in Redis streams, read as a consumer of a group.
//!
//! An entry is pending for its consumer until it is accepted. Who dies leaves its entries pending; whoever recovers takes over
//! what has been pending for `idle`, whatever program read it. An entry keeps its id: the store knows it again.
//!
//! When a request to read was not answered, what it has read is pending here and nobody has it: everything that is pending
//! here is read once more then. What is in the hands of somebody comes twice by that, which the store knows.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windlass_core::bridge::{LetGo, Returned, Tag, TransportError};
use windlass_core::{QueueName, StoreError};
use windlass_redis::foreign::{Entry, Line, Stream};

use super::{Carried, Carrier, Content, of_store, tag, text_of};

/// How many entries of the dead are taken over at once, of each stream: they wait here until there is room for them.
const RECOVER_MAX: usize = 100;

/// How streams are read.
#[derive(Debug, Clone)]
pub struct StreamReading {
    /// The group that shares the entries.
    pub group: String,
    /// The name of this consumer in it; no other process may have it.
    pub consumer: String,
    /// Where a group begins that is not there yet: `$` is what comes from now on, `0` everything.
    pub from: String,
    /// The field that holds the message.
    pub field: String,
    /// What has been pending for so long belongs to a consumer that is dead.
    pub idle: Duration,
}

/// Takes messages from streams whose names are those of their queues.
#[derive(Debug)]
pub struct RedisStreams {
    line: Arc<Line>,
    reading: StreamReading,
    /// The ages of deliveries count from here.
    began: Instant,
    state: Mutex<State>,
    /// Rings when something waits here for whoever waits for new entries.
    bell: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Streams whose group is there, with the last entry that was read here.
    known: HashMap<String, Option<String>>,
    /// What reads the queues that were asked for last.
    reader: Option<Reader>,
    /// Entries that are pending for this consumer and were not handed out yet; `true` when somebody has had them before.
    waiting: VecDeque<(Entry, bool)>,
    /// Streams of which entries were put back.
    returned: BTreeSet<String>,
    /// Streams of which answers were lost, with the last entry that was read again.
    unanswered: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Reader {
    streams: Vec<String>,
    stream: Arc<Stream>,
}

impl RedisStreams {
    /// Streams of the server at the end of this line; nothing is asked of it yet.
    pub fn new(line: Arc<Line>, reading: StreamReading) -> Self {
        Self { line, reading, began: Instant::now(), state: Mutex::default(), bell: Notify::new() }
    }

    /// Makes the groups of these queues where there are none, so that nothing is missed that is sent from now on.
    ///
    /// # Errors
    /// [`TransportError`]; also when a key is no stream.
    pub async fn declare(&self, queues: &[QueueName]) -> Result<(), TransportError> {
        self.make_groups(&names(queues)).await.map_err(of_store)
    }

    async fn make_groups(&self, streams: &[String]) -> Result<(), StoreError> {
        for stream in streams {
            // A group that is gone with its stream goes on after what was read of it, if anything was.
            let from = match self.state.lock().known.get(stream) {
                Some(Some(last)) => last.clone(),
                Some(None) | None => self.reading.from.clone(),
            };
            self.over(vec![stream.clone()]).make_group(&from).await?;
            self.state.lock().known.entry(stream.clone()).or_default();
        }
        Ok(())
    }

    /// A consumer of these streams that connects only when it has to wait.
    fn over(&self, streams: Vec<String>) -> Stream {
        Stream::new(Arc::clone(&self.line), streams, &self.reading.group, &self.reading.consumer)
    }

    /// The reader of these streams; their groups are there.
    async fn reader(&self, streams: Vec<String>) -> Result<Arc<Stream>, StoreError> {
        let unknown: Vec<String> = {
            let state = self.state.lock();
            if let Some(reader) = state.reader.as_ref().filter(|reader| reader.streams == streams) {
                return Ok(Arc::clone(&reader.stream));
            }
            streams.iter().filter(|stream| !state.known.contains_key(*stream)).cloned().collect()
        };
        self.make_groups(&unknown).await?;
        let stream = Arc::new(self.over(streams.clone()));
        self.state.lock().reader = Some(Reader { streams, stream: Arc::clone(&stream) });
        Ok(stream)
    }

    /// New entries; a group that has gone meanwhile is made again.
    async fn read(
        &self,
        streams: Vec<String>,
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Entry>, StoreError> {
        let reader = self.reader(streams.clone()).await?;
        // Each stream may give as many as are asked for; what is too much waits here.
        let of_each = (max / streams.len().max(1)).max(1);
        let taken = match self.until_rung(&reader, of_each, wait, hush).await {
            Err(error) if error.to_string().contains("NOGROUP") => {
                self.make_groups(&streams).await?;
                self.heard(&streams, reader.take(of_each, wait, hush).await)?
            }
            other => self.heard(&streams, other)?,
        };
        let mut state = self.state.lock();
        for entry in &taken {
            state.known.insert(entry.stream.clone(), Some(entry.id.clone()));
        }
        Ok(taken)
    }

    /// Waits for new entries, and no longer when there is something here.
    async fn until_rung(
        &self,
        reader: &Stream,
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Entry>, StoreError> {
        let hush = hush.child_token();
        let take = reader.take(max, wait, &hush);
        tokio::pin!(take);
        // The request is never dropped: what it has read by then would wait for somebody to recover it.
        tokio::select! {
            taken = &mut take => taken,
            () = self.bell.notified() => {
                hush.cancel();
                take.await
            }
        }
    }

    /// Notes that an answer was lost, if it may have been.
    fn heard(&self, streams: &[String], said: Result<Vec<Entry>, StoreError>) -> Result<Vec<Entry>, StoreError> {
        said.inspect_err(|error| {
            if error.is_transient() {
                let from_the_first = streams.iter().map(|stream| (stream.clone(), "0".to_owned()));
                self.state.lock().unanswered.extend(from_the_first);
            }
        })
    }

    /// What is pending here of one of these streams of which an answer was lost.
    async fn unanswered(&self, streams: &[String], max: usize) -> Result<Vec<Entry>, StoreError> {
        let next = |state: &State| {
            let mut unanswered = state.unanswered.iter().filter(|(stream, _)| streams.contains(stream));
            unanswered.next().map(|(stream, behind)| (stream.clone(), behind.clone()))
        };
        loop {
            let Some((stream, behind)) = next(&self.state.lock()) else { return Ok(Vec::new()) };
            let taken = match self.over(vec![stream.clone()]).own(&stream, &behind, max).await {
                // Nothing is pending in a group that is not there.
                Err(error) if error.to_string().contains("NOGROUP") => Vec::new(),
                other => other?,
            };
            let mut state = self.state.lock();
            match taken.last() {
                Some(last) => drop(state.unanswered.insert(stream, last.id.clone())),
                None => drop(state.unanswered.remove(&stream)),
            }
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
    }

    /// Takes over what was put back to these streams.
    async fn returned(&self, streams: &[String], max: usize) -> Result<Vec<Entry>, StoreError> {
        let returned: Vec<String> = {
            let mut state = self.state.lock();
            streams.iter().filter(|stream| state.returned.remove(*stream)).cloned().collect()
        };
        if returned.is_empty() {
            return Ok(Vec::new());
        }
        let taken = self.over(returned.clone()).recover(max, self.reading.idle).await;
        // There may be more of them, or the answer was lost: looked for once more.
        if taken.as_ref().map_or(true, |taken| !taken.is_empty()) {
            self.state.lock().returned.extend(returned.iter().cloned());
        }
        self.heard(&returned, taken)
    }

    /// Hands out what waits here and is of these streams.
    fn hand_out(&self, streams: &[String], max: usize) -> Vec<Carried> {
        let mut state = self.state.lock();
        let (mut carried, mut rest) = (Vec::new(), VecDeque::new());
        for (entry, again) in std::mem::take(&mut state.waiting) {
            if carried.len() < max && streams.contains(&entry.stream) {
                carried.extend(self.carried(entry, again));
            } else {
                rest.push_back((entry, again));
            }
        }
        state.waiting = rest;
        carried
    }

    fn carried(&self, entry: Entry, again: bool) -> Option<Carried> {
        let Entry { stream, id, fields } = entry;
        let field = self.reading.field.as_bytes();
        // An entry without the field makes no sense, and its reader says so.
        let message = fields.into_iter().find(|(name, _)| name == field).map(|(_, message)| message);
        Some(Carried {
            tag: self.tag(&stream, &id, again),
            identity: Some(format!("{stream}:{id}")),
            again,
            queue: QueueName::new(&stream).ok()?,
            content: Content::Bytes(message.unwrap_or_default()),
        })
    }

    /// `ms:again:id:stream`: when it was delivered here, and whether somebody had it before.
    fn tag(&self, stream: &str, id: &str, again: bool) -> Tag {
        tag(&format!("{}:{}:{id}:{stream}", self.began.elapsed().as_millis(), u8::from(again)))
    }

    /// Whether nobody else can have had an entry that is accepted now: it came here first, and a moment ago.
    fn let_go(&self, delivered: &Delivered) -> LetGo {
        let age = self.began.elapsed().saturating_sub(delivered.at);
        if delivered.again || age > self.reading.idle / 2 { LetGo::Perhaps } else { LetGo::Certainly }
    }
}

/// What a tag says.
struct Delivered {
    at: Duration,
    again: bool,
    id: String,
    stream: String,
}

impl Delivered {
    /// `None` for a tag that is none of ours.
    fn of(tag: &Tag) -> Option<Self> {
        let text = text_of(tag);
        let mut parts = text.splitn(4, ':');
        let at = Duration::from_millis(parts.next()?.parse().ok()?);
        let again = parts.next()? != "0";
        Some(Self { at, again, id: parts.next()?.to_owned(), stream: parts.next()?.to_owned() })
    }
}

fn names(queues: &[QueueName]) -> Vec<String> {
    queues.iter().map(ToString::to_string).collect()
}

/// Streams and ids of tags, and the streams by themselves.
fn entries(tags: &[Tag]) -> (Vec<(String, String)>, Vec<String>) {
    let delivered = tags.iter().filter_map(Delivered::of);
    let entries: Vec<(String, String)> = delivered.map(|delivered| (delivered.stream, delivered.id)).collect();
    let streams: BTreeSet<&String> = entries.iter().map(|(stream, _)| stream).collect();
    let streams = streams.into_iter().cloned().collect();
    (entries, streams)
}

#[async_trait]
impl Carrier for RedisStreams {
    async fn take(
        &self,
        queues: &[QueueName],
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Carried>, TransportError> {
        let streams = names(queues);
        if streams.is_empty() {
            return Ok(Vec::new());
        }
        let carried = self.hand_out(&streams, max);
        if !carried.is_empty() {
            return Ok(carried);
        }
        let mut before = self.unanswered(&streams, max).await.map_err(of_store)?;
        if before.is_empty() {
            before = self.returned(&streams, max).await.map_err(of_store)?;
        }
        let (taken, again) = if before.is_empty() {
            (self.read(streams.clone(), max, wait, hush).await.map_err(of_store)?, false)
        } else {
            (before, true)
        };
        self.state.lock().waiting.extend(taken.into_iter().map(|entry| (entry, again)));
        Ok(self.hand_out(&streams, max))
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        let (entries, streams) = entries(tags);
        self.over(streams).accept(&entries).await.map_err(of_store)?;
        let let_go = |tag| Delivered::of(tag).map_or(LetGo::Perhaps, |delivered| self.let_go(&delivered));
        Ok(tags.iter().map(let_go).collect())
    }

    /// They count as left behind: whoever looks next for what the dead have left takes them over, this process at its next
    /// take.
    async fn put_back(&self, tags: &[Tag], _why: Returned) -> Result<(), TransportError> {
        let (entries, streams) = entries(tags);
        self.over(streams.clone()).put_back(&entries, self.reading.idle).await.map_err(of_store)?;
        self.state.lock().returned.extend(streams);
        Ok(())
    }

    async fn recover(&self) -> Result<u64, TransportError> {
        let streams: Vec<String> = {
            let state = self.state.lock();
            // Who has no room for what it took over leaves the rest to others.
            let full = |stream: &&String| {
                state.waiting.iter().filter(|(entry, _)| entry.stream == **stream).count() >= RECOVER_MAX
            };
            state.known.keys().filter(|stream| !full(stream)).cloned().collect()
        };
        if streams.is_empty() {
            return Ok(0);
        }
        let recovered = match self.over(streams.clone()).recover(RECOVER_MAX, self.reading.idle).await {
            // The next take makes the group, and nothing is pending in a group that is not there.
            Err(error) if error.to_string().contains("NOGROUP") => return Ok(0),
            other => self.heard(&streams, other).map_err(of_store)?,
        };
        let amount = recovered.len() as u64;
        self.state.lock().waiting.extend(recovered.into_iter().map(|entry| (entry, true)));
        if amount > 0 {
            self.bell.notify_one();
        }
        Ok(amount)
    }
}
