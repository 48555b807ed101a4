//! A foreign transport in memory: what a broker does to a bridge, at the word of a test.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use windlass_core::backend::Demand;
use windlass_core::bridge::{
    Answer, Concern, Identity, LetGo, Message, Returned, Tag, Taken, Transport, TransportError,
};
use windlass_core::{DeliveryId, Envelope, NodeId};

/// The header of tasks whose producers want to hear of them.
pub const ANSWERED: &str = "answered";

/// A transport in memory. Clones are handles to the same messages.
#[derive(Debug, Clone, Default)]
pub struct MemoryTransport {
    shared: Arc<Shared>,
    killed: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Sent>,
    held: HashMap<NodeId, Vec<(Tag, Sent)>>,
    answers: Vec<Answer>,
    /// Answers of tasks with this name are refused.
    refused: Option<String>,
    last_tag: u64,
    /// Whether requests fail.
    down: bool,
    accepts: Accepts,
    takes: u64,
    most_taken: usize,
}

#[derive(Debug, Clone)]
struct Sent {
    id: DeliveryId,
    message: Message,
    identity: Identity,
    /// Somebody has taken it before.
    again: bool,
}

/// What becomes of whoever accepts a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Accepts {
    #[default]
    Answered,
    Failing,
    Hanging,
}

impl MemoryTransport {
    /// Without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// The transport as another process sees it, which can be killed.
    #[must_use]
    pub fn of_process(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), killed: Arc::default() }
    }

    /// Kills the process of this handle and its clones: what it asks is never answered, and does nothing.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }

    /// A producer sends a task.
    pub fn send(&self, id: &str, envelope: Envelope) {
        self.send_message(id, Message::Task(Box::new(envelope)));
    }

    /// A producer sends anything.
    pub fn send_message(&self, id: &str, message: Message) {
        self.queue(id, message, Identity::Own);
    }

    /// A producer sends a task through a transport without identities: this one is made of what the message says.
    pub fn send_without_identity(&self, says: &str, envelope: Envelope) {
        self.queue(says, Message::Task(Box::new(envelope)), Identity::First);
    }

    fn queue(&self, id: &str, message: Message, identity: Identity) {
        let sent = Sent { id: DeliveryId::known(id), message, identity, again: false };
        self.shared.inner.lock().waiting.push_back(sent);
        self.shared.changed.notify_waiters();
    }

    /// Nothing can be asked any more; what waits for an answer gets an error.
    pub fn cut(&self) {
        self.shared.inner.lock().down = true;
        self.shared.changed.notify_waiters();
    }

    /// From now on no message can be accepted.
    pub fn fail_accepts(&self) {
        self.shared.inner.lock().accepts = Accepts::Failing;
    }

    /// From now on it refuses to tell what becomes of tasks with this name.
    pub fn refuse_answers_of(&self, task: &str) {
        self.shared.inner.lock().refused = Some(task.to_owned());
    }

    /// Everything works again.
    pub fn mend(&self) {
        let mut inner = self.shared.inner.lock();
        (inner.down, inner.accepts, inner.refused) = (false, Accepts::Answered, None);
    }

    /// From now on whoever accepts waits for ever, as a process that dies there.
    pub fn hang_accepts(&self) {
        self.shared.inner.lock().accepts = Accepts::Hanging;
    }

    /// Messages that nobody has taken.
    pub fn waiting(&self) -> usize {
        self.shared.inner.lock().waiting.len()
    }

    /// Messages that were taken and neither accepted nor put back.
    pub fn held(&self) -> usize {
        self.shared.inner.lock().held.values().map(Vec::len).sum()
    }

    /// How often messages were asked for, and the most that one answer had.
    pub fn takes(&self) -> (u64, usize) {
        let inner = self.shared.inner.lock();
        (inner.takes, inner.most_taken)
    }

    /// What producers were told.
    pub fn answers(&self) -> Vec<Answer> {
        self.shared.inner.lock().answers.clone()
    }

    /// Waits until this is so.
    pub async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if is_so(self) {
                return;
            }
            changed.await;
        }
    }

    async fn stop_if_killed(&self) {
        if self.killed.load(Ordering::Relaxed) {
            pending::<()>().await;
        }
    }

    /// One request, unless the transport is down; wakes those who wait for what it changes.
    async fn ask<T>(&self, request: impl FnOnce(&mut Inner) -> T) -> Result<T, TransportError> {
        self.stop_if_killed().await;
        let mut inner = self.shared.inner.lock();
        if inner.down {
            return Err(TransportError::Unreachable("it is down".into()));
        }
        let answer = request(&mut inner);
        drop(inner);
        self.shared.changed.notify_waiters();
        Ok(answer)
    }
}

impl Inner {
    fn take(&mut self, demand: &Demand) -> Vec<Taken> {
        self.takes += 1;
        let most = demand.max.min(self.waiting.len());
        self.most_taken = self.most_taken.max(most);
        let messages: Vec<_> = self.waiting.drain(..most).collect();
        let held = self.held.entry(demand.node.clone()).or_default();
        let mut taken = Vec::with_capacity(most);
        for sent in messages {
            self.last_tag += 1;
            let tag = Tag(Arc::from(self.last_tag.to_be_bytes()));
            held.push((tag.clone(), sent.clone()));
            taken.push(Taken { id: sent.id, identity: sent.identity, tag, message: sent.message });
        }
        taken
    }

    fn accept(&mut self, tag: &Tag) -> LetGo {
        let Some(sent) = self.release(tag) else { return LetGo::Perhaps };
        let held = self.held.values().flatten().map(|(_, sent)| sent);
        let is_there_twice = self.waiting.iter().chain(held).any(|other| other.id == sent.id);
        if sent.again || is_there_twice { LetGo::Perhaps } else { LetGo::Certainly }
    }

    /// Takes a message out of the hands of whoever holds it.
    fn release(&mut self, tag: &Tag) -> Option<Sent> {
        for held in self.held.values_mut() {
            if let Some(place) = held.iter().position(|(of, _)| of == tag) {
                return Some(held.remove(place).1);
            }
        }
        None
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    async fn take(&self, demand: &Demand) -> Result<Vec<Taken>, TransportError> {
        let deadline = tokio::time::Instant::now() + demand.wait;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.stop_if_killed().await;
            let taken = {
                let mut inner = self.shared.inner.lock();
                if inner.down {
                    inner.takes += 1;
                    return Err(TransportError::Unreachable("it is down".into()));
                }
                if inner.waiting.is_empty() { Vec::new() } else { inner.take(demand) }
            };
            if !taken.is_empty() || tokio::time::Instant::now() >= deadline || demand.hush.is_cancelled() {
                self.shared.changed.notify_waiters();
                return Ok(taken);
            }
            tokio::select! {
                () = &mut changed => {}
                () = demand.hush.cancelled() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        let accepts = self.shared.inner.lock().accepts;
        match accepts {
            Accepts::Answered => {}
            Accepts::Failing => return Err(TransportError::Unreachable("nothing is accepted".into())),
            Accepts::Hanging => pending().await,
        }
        self.ask(|inner| tags.iter().map(|tag| inner.accept(tag)).collect()).await
    }

    async fn put_back(&self, tags: &[Tag], _why: Returned) -> Result<(), TransportError> {
        self.ask(|inner| {
            for tag in tags.iter().rev() {
                if let Some(sent) = inner.release(tag) {
                    inner.waiting.push_front(Sent { again: true, identity: Identity::Own, ..sent });
                }
            }
        })
        .await
    }

    fn concern(&self, envelope: &Envelope) -> Concern {
        if envelope.headers.contains_key(ANSWERED) { Concern::Everything } else { Concern::Nothing }
    }

    async fn answer(&self, answers: &[Answer]) -> Result<(), TransportError> {
        let told = self.ask(|inner| {
            let is_refused = |answer: &Answer| inner.refused.as_deref() == Some(answer.envelope.name.as_str());
            if answers.iter().any(is_refused) {
                return Err(TransportError::Refused("nobody may hear of it".to_owned()));
            }
            inner.answers.extend_from_slice(answers);
            Ok(())
        });
        told.await?
    }

    async fn recover(&self, living: &[NodeId]) -> Result<u64, TransportError> {
        self.ask(|inner| {
            let dead = inner.held.extract_if(|node, _| !living.contains(node));
            let messages: Vec<_> = dead.flat_map(|(_, held)| held).collect();
            let recovered = messages.len() as u64;
            inner.waiting.extend(messages.into_iter().map(|(_, sent)| Sent {
                again: true,
                identity: Identity::Own,
                ..sent
            }));
            recovered
        })
        .await
    }
}
