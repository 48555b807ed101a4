//! Messages in Redis lists.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use windlass_core::QueueName;
use windlass_core::backend::BATCH_MAX;
use windlass_core::bridge::{LetGo, Returned, Tag, TransportError};
use windlass_redis::foreign::{Line, Lists, Taken};

use super::{Carried, Carrier, Content, of_store, tag, text_of};

/// Which lists a queue has, the one that is served first first.
pub type ListsOf = fn(&str) -> Vec<String>;

/// A queue that is one list of the same name.
pub fn one_list(queue: &str) -> Vec<String> {
    vec![queue.to_owned()]
}

/// Takes messages from lists and holds them until they are accepted.
#[derive(Debug)]
pub struct RedisLists {
    lists: Lists,
    lists_of: ListsOf,
    /// In front of every list.
    prefix: String,
    /// Who is silent for so long is taken for dead.
    silent_after: Duration,
    /// Tokens of what is held here and is to be handed out again: what dead processes held, and what may be stored.
    again: Mutex<Vec<String>>,
    /// Something was added there: who waits need not wait.
    bell: Notify,
}

impl RedisLists {
    /// Lists of the server at the end of this line, whose names all begin with the prefix.
    pub fn new(line: Arc<Line>, prefix: &str, lists_of: ListsOf, silent_after: Duration) -> Self {
        Self {
            lists: Lists::new(line, prefix),
            lists_of,
            prefix: prefix.to_owned(),
            silent_after,
            again: Mutex::default(),
            bell: Notify::new(),
        }
    }

    /// The lists of these queues with the place of their queue: the first of each, then the second of each.
    fn names(&self, queues: &[QueueName]) -> Vec<String> {
        let of_each: Vec<Vec<String>> = queues.iter().map(|queue| (self.lists_of)(queue.as_str())).collect();
        let most = of_each.iter().map(Vec::len).max().unwrap_or(0);
        let by_step = (0..most).flat_map(|step| of_each.iter().filter_map(move |lists| lists.get(step)));
        by_step.map(|list| format!("{}{list}", self.prefix)).collect()
    }

    fn queue_of(&self, list: &str, queues: &[QueueName]) -> Option<QueueName> {
        let list = list.strip_prefix(&self.prefix)?;
        let is_of = |queue: &&QueueName| (self.lists_of)(queue.as_str()).iter().any(|name| name == list);
        queues.iter().find(is_of).cloned()
    }

    /// Hands out what was taken; what is of a queue that nobody asks for waits.
    fn hand_out(&self, taken: Vec<Taken>, queues: &[QueueName], again: bool) -> Vec<Carried> {
        let mut carried = Vec::with_capacity(taken.len());
        for Taken { token, list, message } in taken {
            match self.queue_of(&list, queues) {
                Some(queue) => carried.push(Carried {
                    tag: tag(&token),
                    identity: Some(token),
                    again,
                    queue,
                    content: Content::Bytes(message),
                }),
                None => self.again.lock().push(token),
            }
        }
        carried
    }

    fn hand_out_again(&self, tokens: impl IntoIterator<Item = String>) {
        let mut again = self.again.lock();
        again.extend(tokens);
        if !again.is_empty() {
            self.bell.notify_one();
        }
    }

    /// Takes what is to be handed out again.
    fn tokens_of_again(&self, max: usize) -> Vec<String> {
        let mut again = self.again.lock();
        let amount = again.len().min(max);
        again.drain(..amount).collect()
    }
}

#[async_trait]
impl Carrier for RedisLists {
    async fn take(
        &self,
        queues: &[QueueName],
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Carried>, TransportError> {
        let again = self.tokens_of_again(max);
        if !again.is_empty() {
            let held = self.lists.held(&again).await.map_err(|error| {
                self.again.lock().extend(again);
                of_store(error)
            })?;
            let carried = self.hand_out(held, queues, true);
            if !carried.is_empty() {
                return Ok(carried);
            }
        }
        let (names, hush) = (self.names(queues), hush.child_token());
        let taking = self.lists.take(&names, max, wait, &hush);
        tokio::pin!(taking);
        // Never dropped half-way: what it has taken by then would be held and nobody would have it.
        let taken = tokio::select! {
            taken = &mut taking => taken,
            () = self.bell.notified() => {
                hush.cancel();
                taking.await
            }
        };
        Ok(self.hand_out(taken.map_err(of_store)?, queues, false))
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        let mut let_go = Vec::with_capacity(tags.len());
        for batch in tags.chunks(BATCH_MAX) {
            let tokens: Vec<String> = batch.iter().map(text_of).collect();
            let held = self.lists.accept(&tokens).await.map_err(of_store)?;
            let all = if held == tokens.len() { LetGo::Certainly } else { LetGo::Perhaps };
            let_go.extend(std::iter::repeat_n(all, batch.len()));
        }
        Ok(let_go)
    }

    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError> {
        let tokens: Vec<String> = tags.iter().map(text_of).collect();
        match why {
            Returned::Unstored => self.lists.put_back(&tokens).await.map_err(of_store)?,
            Returned::Doubtful => self.hand_out_again(tokens),
        }
        Ok(())
    }

    async fn recover(&self) -> Result<u64, TransportError> {
        let recovered = self.lists.recover(BATCH_MAX, self.silent_after).await.map_err(of_store)?;
        let amount = recovered.len() as u64;
        self.hand_out_again(recovered.into_iter().map(|taken| taken.token));
        Ok(amount)
    }
}
