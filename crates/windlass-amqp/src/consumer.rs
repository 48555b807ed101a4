//! Consuming: takes as many messages as there are free slots, and says what became of them.
//!
//! One task owns the channel. It hands out what has arrived to those who wait, and keeps the prefetch of the broker at what
//! is in hands plus what is waited for. So the backlog stays with the broker, where other workers see it:
//!
//! 1. a take raises the prefetch and makes consumers, when there are none
//! 2. what arrives is handed out at once; the rest of what was asked for may still come, and lies here for the next take
//! 3. before anything is accepted the prefetch is lowered, so that nothing replaces it
//! 4. when nobody has waited for a moment, the consumers are cancelled and what lies here is put back
//!
//! An acknowledgement has no answer. Behind each batch of them the prefetch is set to what it is: the answer to that says that
//! the broker has dealt with the batch. Nothing waits for it but whoever has finished the batch.
//!
//! A quorum queue knows no common prefetch of a channel, and that of a consumer is fixed when it is made. There the prefetch
//! is shared out among the queues, and consumers are made anew when it no longer fits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use crate::AmqpError;
use crate::desk::{Desk, Finished};
use crate::intake::{Answer, Command, Consumed, Ending};
use crate::line::{self, NO_PREFETCH, PREFETCH_MAX};
use crate::link::{ANSWER_LIMIT, Link, Session, Standing};
use crate::message::Taken;
use crate::table::short;

/// How long consumers stay when nobody waits: longer than from one take to the next in a worker that has free slots.
const LINGER: Duration = Duration::from_millis(100);
/// Before a channel that the broker has closed is replaced.
const CHANNEL_PAUSE: Duration = Duration::from_millis(500);

/// How the prefetch is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefetch {
    /// One for the channel, changed at any time. Classic queues have it.
    OfChannel,
    /// One for each consumer, fixed when it is made. All queues have it.
    OfConsumers,
}

impl Prefetch {
    /// That which all queues of both have.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::OfChannel, Self::OfChannel) => Self::OfChannel,
            (Self::OfConsumers, _) | (_, Self::OfConsumers) => Self::OfConsumers,
        }
    }
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    max: usize,
    answer: Answer,
}

/// The task that consumes.
pub(crate) struct Consumer {
    link: Arc<Link>,
    standing: watch::Receiver<Standing>,
    prefetch: Prefetch,
    commands: mpsc::UnboundedReceiver<Command>,
    waiting: VecDeque<Waiter>,
    desk: Desk,
    idle_since: Instant,
    /// How many the last take asked for and did not get: so many may still come.
    unfilled: usize,
}

/// A channel and the consumers on it.
struct Open {
    channel: Channel,
    /// Deliveries with the position of their queue.
    deliveries: SelectAll<BoxStream<'static, (usize, lapin::Result<Delivery>)>>,
    consumer_tags: Vec<ShortString>,
    /// What the broker was told last.
    prefetch: usize,
}

impl Open {
    fn has_consumers(&self) -> bool {
        !self.consumer_tags.is_empty()
    }
}

/// Why the task no longer serves a session.
enum Ended {
    /// The transport is closed.
    Closed,
    /// The session or the channel is gone.
    Lost(AmqpError),
}

impl From<AmqpError> for Ended {
    fn from(error: AmqpError) -> Self {
        Self::Lost(error)
    }
}

impl Consumer {
    pub(crate) fn new(
        link: Arc<Link>,
        Consumed { queues, prefetch }: Consumed,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self {
            standing: link.standing(),
            link,
            desk: Desk::of(queues),
            prefetch,
            commands,
            waiting: VecDeque::new(),
            idle_since: Instant::now(),
            unfilled: 0,
        }
    }

    pub(crate) async fn run(mut self) {
        while let Some(session) = self.session().await {
            let ended = self.serve(&session).await;
            self.desk.renew();
            match ended {
                Ended::Closed => break,
                Ended::Lost(error) if session.is_over().is_cancelled() => {
                    debug!(event = "amqp_consumer_lost", %error, "it goes on with the next connection");
                    self.mind_refusal(&error);
                }
                Ended::Lost(error) => {
                    warn!(event = "amqp_channel_closed", %error, "the channel for consuming is opened again");
                    self.mind_refusal(&error);
                    self.answer_all(&error);
                    if !self.rest(&session).await {
                        break;
                    }
                }
            }
        }
        self.answer_all(&AmqpError::Closed);
    }

    /// Whether the broker does not know a prefetch of a channel: then from now on each consumer has its own.
    fn mind_refusal(&mut self, error: &AmqpError) {
        let said = error.to_string();
        if self.prefetch == Prefetch::OfChannel && (said.contains("global qos") || said.contains("global_qos")) {
            debug!(event = "amqp_prefetch_of_consumers", "a queue knows no prefetch of a channel");
            self.prefetch = Prefetch::OfConsumers;
        }
    }

    /// Waits for the next session and answers meanwhile. Nothing when the transport is closed.
    async fn session(&mut self) -> Option<Arc<Session>> {
        loop {
            let standing = self.standing.borrow_and_update().clone();
            match standing {
                Standing::Up(session) if !session.is_over().is_cancelled() => return Some(session),
                Standing::Closed => return None,
                Standing::Down(Some(error)) if !error.is_transient() => self.answer_all(&error),
                Standing::Up(_) | Standing::Down(_) => {}
            }
            tokio::select! {
                changed = self.standing.changed() => changed.ok()?,
                command = self.commands.recv() => self.answer_while_down(command?),
            }
        }
    }

    /// Waits before a channel is opened again; what was declared may be gone with it.
    async fn rest(&mut self, session: &Arc<Session>) -> bool {
        let until = Instant::now() + CHANNEL_PAUSE;
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.answer_while_down(command),
                    None => return false,
                },
            }
        }
        if let Err(error) = self.link.declare_again(session).await {
            debug!(event = "amqp_declare_failed", %error, "the topology is not declared again");
        }
        true
    }

    fn answer_while_down(&mut self, command: Command) {
        match command {
            Command::Take { id, max, answer } => self.waiting.push_back(Waiter { id, max, answer }),
            Command::Recall(id) => {
                let error = self.link.trouble();
                self.answer_one(id, || Err(error));
            }
            // Their channel is gone.
            Command::LayBack(_) => {}
            Command::Consume { queues, prefetch, answer } => {
                // Nothing lies here, so nothing goes back.
                self.desk.change_queues(queues);
                self.prefetch = self.prefetch.or(prefetch);
                let _ = answer.send(());
            }
            Command::Finish { tags, answer, .. } => drop(answer.send(vec![Finished::Void; tags.len()])),
        }
    }

    fn answer_one(&mut self, id: u64, with: impl FnOnce() -> Result<Vec<Taken>, AmqpError>) {
        if let Some(position) = self.waiting.iter().position(|waiter| waiter.id == id)
            && let Some(waiter) = self.waiting.remove(position)
        {
            drop(waiter.answer.send(with()));
        }
    }

    fn answer_all(&mut self, error: &AmqpError) {
        for waiter in self.waiting.drain(..) {
            drop(waiter.answer.send(Err(error.clone())));
        }
    }

    async fn serve(&mut self, session: &Arc<Session>) -> Ended {
        let channel = match session.channel().await {
            Ok(channel) => channel,
            Err(error) => return Ended::Lost(error),
        };
        self.desk.renew();
        let mut open = Open { channel, deliveries: SelectAll::new(), consumer_tags: Vec::new(), prefetch: 0 };
        loop {
            if let Err(ended) = self.step(&mut open, session).await {
                return ended;
            }
        }
    }

    /// Adjusts what the broker may deliver, then deals with one thing that happens.
    async fn step(&mut self, open: &mut Open, session: &Arc<Session>) -> Result<(), Ended> {
        self.adjust(open, session).await?;
        let is_idle = self.waiting.is_empty() && (open.has_consumers() || self.desk.on_shelves() > 0);
        let consumers = open.consumer_tags.len();
        tokio::select! {
            biased;
            command = self.commands.recv() => self.obey(command.ok_or(Ended::Closed)?, open, session).await?,
            () = session.is_over().cancelled() => {
                return Err(Ended::Lost(AmqpError::Unreachable("its connection ended".to_owned())));
            }
            arrived = open.deliveries.next(), if consumers > 0 => {
                let mut arrived = arrived;
                while let Some((queue, delivery)) = arrived {
                    self.desk.arrived(queue, delivery.map_err(|error| session.error(&error))?);
                    arrived = open.deliveries.next().now_or_never().flatten();
                }
                self.hand_out(&open.channel);
            }
            () = sleep_until(self.idle_since + LINGER), if is_idle => self.retire(open, session).await?,
        }
        if open.deliveries.len() < open.consumer_tags.len() {
            return Err(Ended::Lost(AmqpError::Broken(
                "the broker cancelled a consumer: its queue was deleted, or moves to another node".to_owned(),
            )));
        }
        Ok(())
    }

    /// Hands out what lies here to those who wait.
    fn hand_out(&mut self, channel: &Channel) {
        while self.desk.on_shelves() > 0
            && let Some(waiter) = self.waiting.pop_front()
        {
            let taken = self.desk.hand_out(waiter.max);
            self.unfilled = waiter.max - taken.len();
            if let Err(Ok(taken)) = waiter.answer.send(Ok(taken)) {
                line::tell(channel, &self.desk.lay_back(taken), Ending::PutBack);
            }
            self.idle_since = Instant::now();
        }
    }

    async fn obey(&mut self, command: Command, open: &mut Open, session: &Arc<Session>) -> Result<(), AmqpError> {
        match command {
            Command::Take { id, max, answer } => {
                self.waiting.push_back(Waiter { id, max, answer });
                self.hand_out(&open.channel);
            }
            Command::Recall(id) => {
                self.answer_one(id, || Ok(Vec::new()));
                self.idle_since = Instant::now();
            }
            Command::LayBack(taken) => {
                line::tell(&open.channel, &self.desk.lay_back(taken), Ending::PutBack);
                self.hand_out(&open.channel);
            }
            Command::Consume { queues, prefetch, answer } => {
                let stopped = self.stop(open, session).await;
                let left = self.desk.change_queues(queues);
                line::tell(&open.channel, &left, Ending::PutBack);
                self.switch_prefetch(open, self.prefetch.or(prefetch));
                let _ = answer.send(());
                stopped?;
                self.hand_out(&open.channel);
            }
            Command::Finish { tags, ending, answer } => {
                if !open.channel.status().connected() {
                    self.desk.renew();
                }
                let (acks, finished) = self.desk.finish(&tags);
                // Otherwise what is accepted would be replaced by messages that nobody has asked for.
                match self.prefetch {
                    Prefetch::OfChannel => self.adjust(open, session).await?,
                    Prefetch::OfConsumers if self.waiting.is_empty() => self.stop(open, session).await?,
                    Prefetch::OfConsumers => {}
                }
                line::tell(&open.channel, &acks, ending);
                if acks.is_empty() {
                    drop(answer.send(finished));
                } else {
                    self.answer_when_heard(open, session, finished, answer);
                }
                if !open.channel.status().connected() {
                    return Err(AmqpError::Broken("the broker closed the channel".to_owned()));
                }
            }
        }
        Ok(())
    }

    /// Keeps the prefetch in another way from now on. There are no consumers.
    fn switch_prefetch(&mut self, open: &Open, prefetch: Prefetch) {
        if self.prefetch != prefetch {
            // A queue that knows no prefetch of a channel takes no consumer on a channel that has one.
            line::set_prefetch_of_channel(&open.channel, NO_PREFETCH);
            self.prefetch = prefetch;
        }
    }

    /// Answers when the broker has dealt with everything that it was told so far.
    fn answer_when_heard(
        &self,
        open: &Open,
        session: &Arc<Session>,
        mut finished: Vec<Finished>,
        answer: oneshot::Sender<Vec<Finished>>,
    ) {
        // What the prefetch is already; where each consumer has its own, it is for those that are made without one.
        let count = open.prefetch.max(1);
        let asked = match self.prefetch {
            Prefetch::OfChannel => line::ask_prefetch_of_channel(&open.channel, count),
            Prefetch::OfConsumers => line::ask_prefetch_of_consumers(&open.channel, count),
        };
        let session = Arc::clone(session);
        tokio::spawn(async move {
            let is_heard = tokio::select! {
                biased;
                said = session.limited(asked) => said.is_ok(),
                () = session.is_over().cancelled() => false,
            };
            if is_heard {
                let told = finished.iter_mut().filter(|finished| **finished == Finished::Told);
                told.for_each(|finished| *finished = Finished::Heard);
            }
            drop(answer.send(finished));
        });
    }

    /// Lets the broker deliver what is waited for, and no more.
    async fn adjust(&mut self, open: &mut Open, session: &Arc<Session>) -> Result<(), AmqpError> {
        let queues = self.desk.queues().len();
        if queues == 0 {
            return Ok(());
        }
        let wanted: usize = self.waiting.iter().map(|waiter| waiter.max).sum();
        // More came than somebody has room for now. One may always come, as there is no prefetch of nothing.
        let excess = if wanted == 0 { self.desk.clear_shelves(self.unfilled.max(1)) } else { Vec::new() };
        let lying = self.desk.on_shelves();
        match self.prefetch {
            Prefetch::OfChannel => {
                // What a take did not get may come while what it got is stored: the next take finds it here.
                let coming = if wanted == 0 && open.has_consumers() { self.unfilled } else { 0 };
                let here = self.desk.in_hands() + wanted.max(lying).max(coming);
                let prefetch = here.clamp(1, PREFETCH_MAX);
                let is_new = wanted > 0 && !open.has_consumers();
                if is_new || (open.has_consumers() && prefetch != open.prefetch) {
                    // It takes effect in its place in the line: there is no answer to wait for.
                    line::set_prefetch_of_channel(&open.channel, prefetch);
                    open.prefetch = prefetch;
                }
                if is_new {
                    self.consume(open, session, &[]).await?;
                }
            }
            Prefetch::OfConsumers if wanted > 0 => {
                let allowed = self.desk.in_hands_of_generation() + wanted.max(lying);
                let most: usize = shares(allowed, queues).iter().sum();
                let fits = open.prefetch <= most && allowed < open.prefetch * 2;
                if open.has_consumers() && !fits {
                    self.stop(open, session).await?;
                    line::tell(&open.channel, &self.desk.clear_shelves(wanted), Ending::PutBack);
                    self.hand_out(&open.channel);
                }
                let wanted: usize = self.waiting.iter().map(|waiter| waiter.max).sum();
                let room = wanted.saturating_sub(self.desk.on_shelves()).min(PREFETCH_MAX);
                if room > 0 && !open.has_consumers() {
                    let shares = shares(room, queues);
                    open.prefetch = shares.iter().sum();
                    self.consume(open, session, &shares).await?;
                }
            }
            Prefetch::OfConsumers if !excess.is_empty() => self.stop(open, session).await?,
            Prefetch::OfConsumers => {}
        }
        line::tell(&open.channel, &excess, Ending::PutBack);
        Ok(())
    }

    /// Makes a consumer for every queue, each with its share of the prefetch where they have one.
    async fn consume(&mut self, open: &mut Open, session: &Arc<Session>, shares: &[usize]) -> Result<(), AmqpError> {
        self.desk.next_generation();
        let mut made = Vec::with_capacity(self.desk.queues().len());
        for (position, queue) in self.desk.queues().enumerate() {
            if let Some(share) = shares.get(position) {
                line::set_prefetch_of_consumers(&open.channel, *share);
            }
            let (channel, queue) = (open.channel.clone(), short("a queue", queue)?);
            let making = async move {
                let options = BasicConsumeOptions::default();
                channel.basic_consume(queue, "".into(), options, FieldTable::default()).await
            }
            .boxed();
            // Each prefetch is for the consumer behind it in the line.
            made.push(line::begun(making));
        }
        for (position, making) in made.into_iter().enumerate() {
            let consumer = session.limited(making).await?;
            open.consumer_tags.push(consumer.tag());
            open.deliveries.push(consumer.map(move |delivery| (position, delivery)).boxed());
        }
        Ok(())
    }

    /// Cancels all consumers; what they had on the way is laid here.
    async fn stop(&mut self, open: &mut Open, session: &Arc<Session>) -> Result<(), AmqpError> {
        if !open.has_consumers() {
            return Ok(());
        }
        let mut cancels = Vec::with_capacity(open.consumer_tags.len());
        for tag in std::mem::take(&mut open.consumer_tags) {
            let channel = open.channel.clone();
            cancels.push(async move { channel.basic_cancel(tag, BasicCancelOptions::default()).await }.boxed());
        }
        for cancelled in session.limited(join_all(cancels).map(Ok)).await? {
            cancelled.map_err(|error| session.error(&error))?;
        }
        open.prefetch = 0;
        // Each ends when the broker has confirmed; nothing comes after that.
        let rest = async {
            while let Some((queue, delivery)) = open.deliveries.next().await {
                self.desk.arrived(queue, delivery.map_err(|error| session.error(&error))?);
            }
            Ok(())
        };
        if let Ok(ended) = timeout(ANSWER_LIMIT, rest).await {
            return ended;
        }
        session.give_up();
        Err(AmqpError::Unreachable("a consumer does not end".to_owned()))
    }

    /// Nobody waits: others shall have what lies here.
    async fn retire(&mut self, open: &mut Open, session: &Arc<Session>) -> Result<(), AmqpError> {
        self.stop(open, session).await?;
        line::tell(&open.channel, &self.desk.clear_shelves(0), Ending::PutBack);
        Ok(())
    }
}

/// Shares `room` out among the queues, at least 1 for each: a consumer without would mean one without limit.
fn shares(room: usize, queues: usize) -> Vec<usize> {
    (0..queues).map(|position| (room / queues + usize::from(position < room % queues)).max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefetch_is_shared_out_whole_and_never_nothing() {
        assert_eq!(shares(10, 3), [4, 3, 3]);
        assert_eq!(shares(1, 3), [1, 1, 1]);
        assert_eq!(shares(7, 1), [7]);
    }
}
