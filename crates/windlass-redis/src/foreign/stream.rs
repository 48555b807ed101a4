//! Messages as entries of streams, read as a consumer of a group.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use windlass_core::StoreError;

use super::line::{Command, Line, Reply};
use super::wake::Wake;

/// An entry that is pending for this consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its stream.
    pub stream: String,
    /// Its id there: its identity, for everybody who ever has it.
    pub id: String,
    /// Names and values.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A consumer of a group.
#[derive(Debug)]
pub struct Stream {
    line: Arc<Line>,
    wake: Wake,
    streams: Vec<String>,
    group: String,
    consumer: String,
}

impl Stream {
    /// A consumer of this name; nothing is asked of the server yet.
    pub fn new(line: Arc<Line>, streams: Vec<String>, group: &str, consumer: &str) -> Self {
        let wake = Wake::new(Arc::clone(&line));
        Self { line, wake, streams, group: group.to_owned(), consumer: consumer.to_owned() }
    }

    /// Makes the group where there is none, beginning with what comes after this id (`$`: from now on, `0`: from the first).
    ///
    /// # Errors
    /// [`StoreError`]; also when a key is no stream.
    pub async fn make_group(&self, from: &str) -> Result<(), StoreError> {
        for stream in &self.streams {
            let command = words(["XGROUP", "CREATE", stream, &self.group, from, "MKSTREAM"]);
            match self.line.ask(&command).await {
                Err(error) if !error.to_string().contains("BUSYGROUP") => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes up to `max` new entries of each stream; waits for the first one up to `wait`, or until `hush`.
    ///
    /// # Errors
    /// [`StoreError`]; what was read without an answer is pending: see [`Stream::own`].
    pub async fn take(&self, max: usize, wait: Duration, hush: &CancellationToken) -> Result<Vec<Entry>, StoreError> {
        let until = Instant::now() + wait;
        let keys: Vec<Vec<u8>> = self.streams.iter().map(|stream| stream.clone().into_bytes()).collect();
        let mut command =
            words(["XREADGROUP", "GROUP", &self.group, &self.consumer, "COUNT", &max.to_string(), "STREAMS"]);
        command.extend(keys.iter().cloned());
        command.extend(keys.iter().map(|_| b">".to_vec()));
        let mut armed = false;
        loop {
            let taken = read(self.line.ask(&command).await?);
            if !taken.is_empty() || Instant::now() >= until || hush.is_cancelled() {
                return Ok(taken);
            }
            if armed {
                tokio::select! {
                    () = self.wake.changed(until) => {}
                    () = hush.cancelled() => {}
                }
            }
            self.wake.arm(&keys).await;
            armed = true;
        }
    }

    /// Takes up to `max` entries of each stream over that have been pending for somebody for so long.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn recover(&self, max: usize, idle: Duration) -> Result<Vec<Entry>, StoreError> {
        let mut taken = Vec::new();
        for stream in &self.streams {
            let idle = idle.as_millis().to_string();
            let command =
                words(["XAUTOCLAIM", stream, &self.group, &self.consumer, &idle, "0-0", "COUNT", &max.to_string()]);
            let entries = self.line.ask(&command).await?.list().into_iter().nth(1).map(Reply::list).unwrap_or_default();
            taken.extend(entries.into_iter().filter_map(|entry| entry_of(stream, entry)));
        }
        Ok(taken)
    }

    /// Up to `max` entries of one stream that are pending for this consumer, those behind this id (`0`: all of them).
    ///
    /// # Errors
    /// [`StoreError`]; nothing is changed.
    pub async fn own(&self, stream: &str, behind: &str, max: usize) -> Result<Vec<Entry>, StoreError> {
        let (group, consumer, max) = (self.group.as_str(), self.consumer.as_str(), max.to_string());
        let command = words(["XREADGROUP", "GROUP", group, consumer, "COUNT", &max, "STREAMS", stream, behind]);
        self.line.ask(&command).await.map(read)
    }

    /// Lets entries go that were adopted.
    ///
    /// # Errors
    /// [`StoreError`]; repeat it.
    pub async fn accept(&self, entries: &[(String, String)]) -> Result<(), StoreError> {
        self.line.ask_all(&self.by_stream(entries, &["XACK"], &[])).await.map(drop)
    }

    /// Leaves entries to whoever recovers next: they count as idle for `idle`.
    ///
    /// # Errors
    /// [`StoreError`]; repeat it.
    pub async fn put_back(&self, entries: &[(String, String)], idle: Duration) -> Result<(), StoreError> {
        let mut commands = Vec::new();
        let idle = idle.as_millis().to_string();
        for (stream, id) in entries {
            commands.push(words(["XCLAIM", stream, &self.group, &self.consumer, "0", id, "IDLE", &idle, "JUSTID"]));
        }
        self.line.ask_all(&commands).await.map(drop)
    }

    /// A command for each stream with its ids.
    fn by_stream(&self, entries: &[(String, String)], before: &[&str], after: &[&str]) -> Vec<Command> {
        let mut commands = Vec::new();
        for stream in &self.streams {
            let mut ids =
                entries.iter().filter(|(of, _)| of == stream).map(|(_, id)| id.clone().into_bytes()).peekable();
            if ids.peek().is_none() {
                continue;
            }
            let mut command: Command = before.iter().map(|word| word.as_bytes().to_vec()).collect();
            command.extend([stream.clone().into_bytes(), self.group.clone().into_bytes()]);
            command.extend(ids);
            command.extend(after.iter().map(|word| word.as_bytes().to_vec()));
            commands.push(command);
        }
        commands
    }
}

fn words<const N: usize>(words: [&str; N]) -> Command {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// The answer of a read: streams with their entries, as pairs or one after the other.
fn read(answer: Reply) -> Vec<Entry> {
    let mut taken = Vec::new();
    let mut parts = answer.list().into_iter().peekable();
    while let Some(part) = parts.next() {
        let (stream, entries) = match part {
            Reply::List(pair) => {
                let mut pair = pair.into_iter();
                (pair.next(), pair.next())
            }
            name => (Some(name), parts.next()),
        };
        let Some(stream) = stream.and_then(Reply::bytes).and_then(|bytes| String::from_utf8(bytes).ok()) else {
            continue;
        };
        let entries = entries.map(Reply::list).unwrap_or_default();
        taken.extend(entries.into_iter().filter_map(|entry| entry_of(&stream, entry)));
    }
    taken
}

/// An entry; `None` when it was deleted while it was pending.
fn entry_of(stream: &str, entry: Reply) -> Option<Entry> {
    let mut parts = entry.list().into_iter();
    let id = String::from_utf8(parts.next()?.bytes()?).ok()?;
    let mut values = parts.next().filter(|values| *values != Reply::Nil)?.list().into_iter();
    let mut fields = Vec::new();
    while let (Some(name), Some(value)) = (values.next(), values.next()) {
        fields.push((name.bytes()?, value.bytes()?));
    }
    Some(Entry { stream: stream.to_owned(), id, fields })
}
