//! Messages as elements of lists. What is taken is held until it is accepted, so that it outlives whoever took it.
//!
//! ```text
//! PREFIXwindlass.held:SESSION   hash   token -> list and message        PREFIXwindlass.sessions   zset   session -> last sign of life
//! ```
//!
//! A session is one [`Lists`] of one process: its name is random, so a token never comes twice. One that gives no sign of life
//! for [`SILENT_AFTER`] has what it holds taken over by the others, under the same tokens. If it only stood still, both have
//! the message: the tokens tell whoever adopts them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windlass_core::{StoreError, TaskId};

use super::LOOK_BYTES;
use super::line::{Line, Reply};
use super::wake::Wake;

/// A session that is silent for so long is taken for dead. Taking and [`Lists::recover`] are its signs of life.
pub const SILENT_AFTER: Duration = Duration::from_secs(60);

const TAKE: &str = include_str!("../lua/foreign/take.lua");
const PUT_BACK: &str = include_str!("../lua/foreign/put_back.lua");
const RECOVER: &str = include_str!("../lua/foreign/recover.lua");

/// A message that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Its identity: the same for everybody who ever holds it.
    pub token: String,
    /// The list that it was taken from.
    pub list: String,
    /// What it says.
    pub message: Vec<u8>,
}

/// One who takes messages from lists.
#[derive(Debug)]
pub struct Lists {
    line: Arc<Line>,
    wake: Wake,
    session: String,
    /// Counts looks here and not in the server, where it would begin anew when the others have taken everything over.
    looks: AtomicU64,
    /// Looks that were not answered: what they took is held and nobody has it.
    unanswered: Mutex<Vec<u64>>,
    prefix: String,
}

impl Lists {
    /// A new session. Every key of ours begins with the prefix; whoever is to recover whom has the same.
    pub fn new(line: Arc<Line>, prefix: &str) -> Self {
        let (wake, session) = (Wake::new(Arc::clone(&line)), TaskId::random().to_string());
        let (looks, unanswered) = (AtomicU64::new(0), Mutex::default());
        Self { line, wake, session, looks, unanswered, prefix: prefix.to_owned() }
    }

    /// Takes up to `max` messages, from the lists in their order; waits for the first one up to `wait`, or until `hush`.
    ///
    /// # Errors
    /// [`StoreError`]; also when a key is no list and the others are empty. What was taken without an answer comes with the
    /// next call that is answered.
    pub async fn take(
        &self,
        lists: &[String],
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Taken>, StoreError> {
        let until = Instant::now() + wait;
        let names: Vec<Vec<u8>> = lists.iter().map(|list| list.clone().into_bytes()).collect();
        let mut armed = false;
        loop {
            let taken = self.look(lists, &names, max).await?;
            if !taken.is_empty() || Instant::now() >= until || hush.is_cancelled() {
                return Ok(taken);
            }
            if armed {
                tokio::select! {
                    () = self.wake.changed(until) => {}
                    () = hush.cancelled() => {}
                }
            }
            self.wake.arm(&names).await;
            armed = true;
        }
    }

    async fn look(&self, lists: &[String], names: &[Vec<u8>], max: usize) -> Result<Vec<Taken>, StoreError> {
        let mut keys = vec![self.holding(), self.sessions()];
        keys.extend_from_slice(names);
        let before = self.of_unanswered_looks().await?;
        if !before.is_empty() {
            return Ok(before);
        }
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        let args = [max.to_string(), self.session.clone(), LOOK_BYTES.to_string(), look.to_string()];
        let answer = self.line.run(TAKE, &keys, &args.map(String::into_bytes)).await.inspect_err(|error| {
            if error.is_transient() {
                self.unanswered.lock().push(look);
            }
        })?;
        let mut parts = answer.list().into_iter();
        let mut taken = Vec::with_capacity(parts.len() / 2);
        while let Some(place) = parts.next() {
            let list = place.number().and_then(|place| lists.get(usize::try_from(place).ok()?));
            let (Some(list), Some(message)) = (list, parts.next().and_then(Reply::bytes)) else {
                return Err(strange());
            };
            let token = format!("{}:{look}:{}", self.session, taken.len() + 1);
            taken.push(Taken { token, list: list.clone(), message });
        }
        Ok(taken)
    }

    /// What was taken by looks whose answer was lost.
    async fn of_unanswered_looks(&self) -> Result<Vec<Taken>, StoreError> {
        let looks = self.unanswered.lock().clone();
        if looks.is_empty() {
            return Ok(Vec::new());
        }
        let mut entries = self.line.ask(&[b"HGETALL".to_vec(), self.holding()]).await?.list().into_iter();
        let mut taken = Vec::new();
        while let (Some(token), Some(entry)) =
            (entries.next().and_then(Reply::bytes), entries.next().and_then(Reply::bytes))
        {
            let Ok(token) = String::from_utf8(token) else { continue };
            let rest = token.strip_prefix(&self.session).and_then(|rest| rest.strip_prefix(':'));
            let look = rest.and_then(|rest| rest.split(':').next()?.parse().ok());
            if look.is_some_and(|look| looks.contains(&look))
                && let Some((list, message)) = list_and_message(&entry)
            {
                taken.push(Taken { token, list, message });
            }
        }
        self.unanswered.lock().retain(|look| !looks.contains(look));
        // By look and place, which is the order in which they were taken.
        taken.sort_by_key(|taken| {
            let mut numbers = taken.token.rsplit(':').filter_map(|part| part.parse::<u64>().ok());
            let place = numbers.next();
            (numbers.next(), place)
        });
        Ok(taken)
    }

    /// Those of these messages that are still held here.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn held(&self, tokens: &[String]) -> Result<Vec<Taken>, StoreError> {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = vec![b"HMGET".to_vec(), self.holding()];
        command.extend(tokens.iter().map(|token| token.clone().into_bytes()));
        let entries = self.line.ask(&command).await?.list();
        let held = tokens.iter().zip(entries).filter_map(|(token, entry)| {
            let (list, message) = list_and_message(&entry.bytes()?)?;
            Some(Taken { token: token.clone(), list, message })
        });
        Ok(held.collect())
    }

    /// Lets messages go that were adopted. Answers how many of them were still held here; who has been silent for too long may
    /// have been taken for dead.
    ///
    /// # Errors
    /// [`StoreError`]; repeat it.
    pub async fn accept(&self, tokens: &[String]) -> Result<usize, StoreError> {
        if tokens.is_empty() {
            return Ok(0);
        }
        let mut command = vec![b"HDEL".to_vec(), self.holding()];
        command.extend(tokens.iter().map(|token| token.clone().into_bytes()));
        let held = self.line.ask(&command).await?.number();
        Ok(held.and_then(|held| usize::try_from(held).ok()).unwrap_or(0))
    }

    /// Puts messages back to where they were, to be served next.
    ///
    /// # Errors
    /// [`StoreError`]; repeat it: what is back already is not put back again.
    pub async fn put_back(&self, tokens: &[String]) -> Result<(), StoreError> {
        if tokens.is_empty() {
            return Ok(());
        }
        let args: Vec<Vec<u8>> = tokens.iter().map(|token| token.clone().into_bytes()).collect();
        self.line.run(PUT_BACK, &[self.holding()], &args).await.map(drop)
    }

    /// Says that this session lives, and takes up to `max` messages over from sessions that do not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn recover(&self, max: usize, silent_after: Duration) -> Result<Vec<Taken>, StoreError> {
        let args = [
            self.session.clone(),
            silent_after.as_secs().to_string(),
            max.to_string(),
            format!("{}windlass.held:", self.prefix),
        ];
        let keys = [self.holding(), self.sessions()];
        let answer = self.line.run(RECOVER, &keys, &args.map(String::into_bytes)).await?;
        triples(answer)
    }

    fn holding(&self) -> Vec<u8> {
        format!("{}windlass.held:{}", self.prefix, self.session).into_bytes()
    }

    fn sessions(&self) -> Vec<u8> {
        format!("{}windlass.sessions", self.prefix).into_bytes()
    }
}

/// An entry of a holding: the length of the list's name, the name, the message.
fn list_and_message(entry: &[u8]) -> Option<(String, Vec<u8>)> {
    let head = entry.iter().position(|byte| *byte == b':')?;
    let length: usize = std::str::from_utf8(&entry[..head]).ok()?.parse().ok()?;
    let (list, message) = entry[head + 1..].split_at_checked(length)?;
    Some((String::from_utf8(list.to_vec()).ok()?, message.to_vec()))
}

fn strange() -> StoreError {
    StoreError::Broken("the server answered something else than messages".to_owned())
}

/// Reads tokens, lists and messages.
fn triples(answer: Reply) -> Result<Vec<Taken>, StoreError> {
    let text = |part: Reply| part.bytes().and_then(|bytes| String::from_utf8(bytes).ok());
    let mut parts = answer.list().into_iter();
    let mut taken = Vec::with_capacity(parts.len() / 3);
    while let Some(token) = parts.next() {
        let token = text(token).ok_or_else(strange)?;
        let list = parts.next().and_then(text).ok_or_else(strange)?;
        let message = parts.next().and_then(Reply::bytes).ok_or_else(strange)?;
        taken.push(Taken { token, list, message });
    }
    Ok(taken)
}
