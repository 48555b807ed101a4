//! Redis as Celery's programs use it, through kombu's virtual transport.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, warn};
use uuid::Uuid;
use windlass_core::QueueName;
use windlass_core::bridge::TransportError;
use windlass_redis::foreign::{Channels, Command, Line, Reply};
use windlass_wire::celery::Broker as Kind;
use windlass_wire::celery::control;
use windlass_wire::celery::control::answer::BrokerInfo;
use windlass_wire::{Frame, kombu};

use super::super::plan::Letter;
use super::super::results::words;
use super::Broker;
use crate::carrier::of_store;

const SEND: &str = include_str!("../lua/send.lua");
const RESTORE: &str = include_str!("../lua/restore.lua");
const GIVE_BACK: &str = include_str!("../lua/give_back.lua");
/// How long it is remembered that the messages of a task were published.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Letters of one trip, and about how many bytes.
const TRIP: (usize, usize) = (100, 8 * 1024 * 1024);
/// How often what others have not acknowledged is looked at, as kombu does it.
const SWEEP_EVERY: Duration = Duration::from_secs(100);
/// What one look gives back.
const RESTORED_MAX: usize = 100;
/// Control requests that nobody has read yet.
const REQUESTS_MAX: usize = 1_000;

/// The lists of a queue: one for each step of priority, the first one first.
pub(in crate::celery) fn task_lists(queue: &str) -> Vec<String> {
    kombu::lists(queue).to_vec()
}

/// A Redis server as a broker.
#[derive(Debug)]
pub(in crate::celery) struct KombuBroker {
    line: Arc<Line>,
    /// In front of every key and channel: `global_keyprefix`.
    prefix: String,
    /// After how long what a worker of Celery's has taken counts as lost.
    visibility: Duration,
    swept_at: Mutex<Option<Instant>>,
    info: BrokerInfo,
}

impl KombuBroker {
    pub(in crate::celery) fn new(line: Arc<Line>, prefix: &str, visibility: Duration, info: BrokerInfo) -> Self {
        Self { line, prefix: prefix.to_owned(), visibility, swept_at: Mutex::new(None), info }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The lists that a frame goes to: that of its queue, or those bound to its exchange.
    async fn lists_of(&self, frame: &Frame) -> Result<Vec<String>, TransportError> {
        let properties = &frame.properties;
        let priority = properties.priority.unwrap_or(0);
        if properties.exchange.is_empty() {
            return Ok(vec![self.key(&kombu::list(&properties.routing_key, priority))]);
        }
        let bindings = self.key(&kombu::bindings(&properties.exchange));
        let members = self.line.ask(&words(["SMEMBERS", &bindings])).await.map_err(of_store)?.list();
        let mut lists = Vec::new();
        for member in members.into_iter().filter_map(Reply::bytes).filter_map(|bytes| String::from_utf8(bytes).ok()) {
            if let Some((key, _, queue)) = kombu::parse_binding(&member)
                && key == properties.routing_key
            {
                lists.push(self.key(&kombu::list(queue, priority)));
            }
        }
        if lists.is_empty() {
            debug!(exchange = properties.exchange, key = properties.routing_key, "nothing is bound there");
        }
        Ok(lists)
    }

    async fn push(&self, letters: &[(String, Vec<(String, String)>)]) -> Result<(), TransportError> {
        let mut keys = Vec::new();
        let mut args = vec![REMEMBERED.as_secs().to_string().into_bytes()];
        for (once, elements) in letters {
            keys.push(once.clone().into_bytes());
            args.push(elements.len().to_string().into_bytes());
            for (list, element) in elements {
                keys.push(list.clone().into_bytes());
                args.push(element.clone().into_bytes());
            }
        }
        self.line.run(SEND, &keys, &args).await.map(drop).map_err(of_store)
    }

    /// Gives one delivery back that a worker of Celery's has not acknowledged in time.
    async fn give_back(&self, tag: Vec<u8>, entry: &[u8]) -> Result<(), TransportError> {
        let restored = match kombu::restored(entry) {
            Ok(restored) => restored,
            Err(reason) => {
                warn!(%reason, "what a worker has taken cannot be read; it is left where it is");
                return Ok(());
            }
        };
        let lists = match kombu::decode(restored.element.as_bytes()) {
            Ok(frame) => self.lists_of(&frame).await?,
            Err(_) => Vec::new(),
        };
        // One whose queue nobody can tell any more is looked at as a message without sense.
        let list = lists.into_iter().next().unwrap_or_else(|| self.key(&restored.routing_key));
        let keys = [self.key(kombu::UNACKED_INDEX), self.key(kombu::UNACKED), list].map(String::into_bytes);
        self.line.run(GIVE_BACK, &keys, &[tag, restored.element.into_bytes()]).await.map(drop).map_err(of_store)
    }
}

#[async_trait]
impl Broker for KombuBroker {
    fn kind(&self) -> Kind {
        Kind::Redis
    }

    async fn declare(&self, queues: &[QueueName]) -> Result<(), TransportError> {
        let mut commands: Vec<Command> = Vec::new();
        for queue in queues {
            // The exchange of a queue has its name.
            let member = kombu::binding(queue.as_str(), queue.as_str());
            for set in [kombu::bindings(queue.as_str()), kombu::permanent_bindings(queue.as_str())] {
                commands.push(words(["SADD", &self.key(&set), &member]));
            }
        }
        self.line.ask_all(&commands).await.map(drop).map_err(of_store)
    }

    async fn send(&self, letters: &[Letter]) -> Result<(), TransportError> {
        let (mut trip, mut bytes) = (Vec::new(), 0);
        for letter in letters {
            let mut elements = Vec::with_capacity(letter.frames.len());
            for frame in &letter.frames {
                let element = kombu::encode(frame);
                for list in self.lists_of(frame).await? {
                    bytes += element.len();
                    elements.push((list, element.clone()));
                }
            }
            trip.push((self.key(&format!("windlass.sent:{}", letter.once)), elements));
            if trip.len() >= TRIP.0 || bytes >= TRIP.1 {
                self.push(&std::mem::take(&mut trip)).await?;
                bytes = 0;
            }
        }
        if trip.is_empty() { Ok(()) } else { self.push(&trip).await }
    }

    async fn reply(&self, frames: &[Frame]) -> Result<(), TransportError> {
        let mut elements = Vec::new();
        for frame in frames {
            let tagged = Frame { properties: tagged(frame), ..frame.clone() };
            let element = kombu::encode(&tagged);
            for list in self.lists_of(frame).await? {
                elements.push((list, element.clone()));
            }
        }
        if elements.is_empty() {
            return Ok(());
        }
        self.push(&[(String::new(), elements)]).await
    }

    async fn emit(&self, frames: &[Frame]) -> Result<(), TransportError> {
        let database = u32::try_from(self.line.database()).unwrap_or(0);
        let publish = |frame: &Frame| {
            let channel = kombu::channel(database, &frame.properties.exchange, &frame.properties.routing_key);
            let element = kombu::encode(&Frame { properties: tagged(frame), ..frame.clone() });
            words(["PUBLISH", &self.key(&channel), &element])
        };
        let commands: Vec<Command> = frames.iter().map(publish).collect();
        self.line.ask_all(&commands).await.map(drop).map_err(of_store)
    }

    async fn requests(&self, node: &str) -> Result<mpsc::Receiver<Frame>, TransportError> {
        let database = u32::try_from(self.line.database()).unwrap_or(0);
        let channel = self.key(&kombu::channel(database, control::EXCHANGE, ""));
        // Clients look there whether anybody is bound at all.
        let queue = format!("{node}.{}", control::EXCHANGE);
        let bindings = self.key(&kombu::bindings(control::EXCHANGE));
        self.line.ask(&words(["SADD", &bindings, &kombu::binding("", &queue)])).await.map_err(of_store)?;
        let mut channels = Channels::listen(Arc::clone(&self.line), vec![literal(&channel)]);
        let (send, requests) = mpsc::channel(REQUESTS_MAX);
        tokio::spawn(async move {
            loop {
                let heard = tokio::select! {
                    heard = channels.next() => heard,
                    () = send.closed() => None,
                };
                let Some(heard) = heard else { return };
                match kombu::decode(&heard.message) {
                    Ok(frame) => drop(send.try_send(frame)),
                    Err(reason) => debug!(%reason, "a control request cannot be read"),
                }
            }
        });
        Ok(requests)
    }

    async fn tidy_up(&self) -> Result<(), TransportError> {
        let now = Instant::now();
        {
            let mut swept_at = self.swept_at.lock();
            let every = SWEEP_EVERY.min(self.visibility);
            if swept_at.is_some_and(|at| now.saturating_duration_since(at) < every) {
                return Ok(());
            }
            *swept_at = Some(now);
        }
        let keys = [kombu::UNACKED_INDEX, kombu::UNACKED, kombu::UNACKED_MUTEX].map(|key| self.key(key).into_bytes());
        let args = [self.visibility.as_secs_f64().to_string(), RESTORED_MAX.to_string(), Uuid::new_v4().to_string()];
        let answer = self.line.run(RESTORE, &keys, &args.map(String::into_bytes)).await.map_err(of_store)?;
        let mut parts = answer.list().into_iter().filter_map(Reply::bytes);
        while let (Some(tag), Some(entry)) = (parts.next(), parts.next()) {
            self.give_back(tag, &entry).await?;
        }
        Ok(())
    }

    fn info(&self) -> BrokerInfo {
        self.info.clone()
    }
}

/// The properties with a delivery tag, which kombu's readers need.
fn tagged(frame: &Frame) -> windlass_wire::Properties {
    let mut properties = frame.properties.clone();
    properties.delivery_tag.get_or_insert_with(|| Uuid::new_v4().to_string());
    properties
}

/// A channel as a pattern that matches nothing else.
fn literal(channel: &str) -> String {
    let mut pattern = String::with_capacity(channel.len());
    for character in channel.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}
