//! The door to the task that consumes: asks it, and is never kept waiting for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::AmqpError;
use crate::consumer::{Consumer, Prefetch};
use crate::desk::{Finished, Tag};
use crate::link::Link;
use crate::message::Taken;

/// How many messages one take may ask for.
pub const TAKE_MAX: usize = 10_000;
/// What is there already comes within this; a shorter wait would see an empty queue where there is a full one.
const GLANCE: Duration = Duration::from_millis(50);
/// Everything that the task waits for has a limit far below this. It was seen once, in some fifty runs of 12,000 takes, that
/// it never answered again, with all threads idle; why is not known, so it is not trusted.
const STUCK_LIMIT: Duration = Duration::from_secs(60);

/// What is to become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is done with.
    Accept,
    /// It goes back to its place in the queue.
    PutBack,
    /// It goes to the dead letter exchange of the queue, or nowhere when it has none.
    Reject,
}

/// The door to the task that consumes.
pub(crate) struct Intake {
    // Locked before the queues.
    commands: Mutex<Commands>,
    /// What is consumed from, for who starts again.
    consumed: Mutex<Consumed>,
    /// Starts the task, and again when it does not answer.
    start: Box<dyn Fn(Consumed) -> Commands + Send + Sync>,
    takes: AtomicU64,
}

/// What is consumed from, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Consumed {
    pub(crate) queues: Vec<Arc<str>>,
    pub(crate) prefetch: Prefetch,
}

impl Consumed {
    /// Each queue once.
    pub(crate) fn of(queues: &[String], prefetch: Prefetch) -> Self {
        let mut each: Vec<Arc<str>> = Vec::with_capacity(queues.len());
        for queue in queues {
            if !each.iter().any(|known| **known == **queue) {
                each.push(queue.as_str().into());
            }
        }
        Self { queues: each, prefetch }
    }

    /// Whether these are its queues, in any order.
    fn has_all_of(&self, queues: &[String]) -> bool {
        let has = |known: &Arc<str>| queues.iter().any(|queue| **queue == **known);
        self.queues.iter().all(has) && queues.iter().all(|queue| self.queues.iter().any(|known| **known == **queue))
    }
}

/// Unbounded, so that a take that is dropped can always say so.
type Commands = mpsc::UnboundedSender<Command>;
pub(crate) type Answer = oneshot::Sender<Result<Vec<Taken>, AmqpError>>;

/// What the task is asked.
#[derive(Debug)]
pub(crate) enum Command {
    Take {
        id: u64,
        max: usize,
        answer: Answer,
    },
    /// Answer this take now, with what there is.
    Recall(u64),
    /// These were handed to somebody who is gone.
    LayBack(Vec<Taken>),
    /// Consume from these from now on, and say when nothing comes from any other.
    Consume {
        queues: Vec<Arc<str>>,
        prefetch: Prefetch,
        answer: oneshot::Sender<()>,
    },
    Finish {
        tags: Vec<Tag>,
        ending: Ending,
        answer: oneshot::Sender<Vec<Finished>>,
    },
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("takes", &self.takes).finish_non_exhaustive()
    }
}

impl Intake {
    pub(crate) fn start(link: Arc<Link>, consumed: Consumed) -> Self {
        let is_started = std::sync::atomic::AtomicBool::new(false);
        Self::started_by(consumed, move |consumed| {
            // tidy: allow(unbounded): each caller has one command under way and waits for its answer
            let (commands, receiver) = mpsc::unbounded_channel();
            if is_started.swap(true, Ordering::SeqCst) {
                // What the other waits for may be the connection.
                link.give_up();
            }
            let consumer = Consumer::new(Arc::clone(&link), consumed, receiver);
            tokio::spawn(consumer.run());
            commands
        })
    }

    fn started_by(consumed: Consumed, start: impl Fn(Consumed) -> Commands + Send + Sync + 'static) -> Self {
        Self {
            commands: Mutex::new(start(consumed.clone())),
            consumed: Mutex::new(consumed),
            start: Box::new(start),
            takes: AtomicU64::new(0),
        }
    }

    /// Whether these queues are consumed from, in any order.
    pub(crate) fn consumes(&self, queues: &[String]) -> bool {
        self.consumed.lock().has_all_of(queues)
    }

    /// Consumes from these queues from now on. When it answers, nothing comes from any other.
    pub(crate) async fn consume(&self, consumed: Consumed) -> Result<(), AmqpError> {
        let (answer, receiver) = oneshot::channel();
        let commands = {
            // Both are held, so that of two callers the last one counts here and there.
            let (commands, mut known) = (self.commands.lock(), self.consumed.lock());
            known.clone_from(&consumed);
            let Consumed { queues, prefetch } = consumed;
            commands.send(Command::Consume { queues, prefetch, answer }).map_err(|_| AmqpError::Closed)?;
            commands.clone()
        };
        match timeout(STUCK_LIMIT, receiver).await {
            Ok(answer) => answer.map_err(|_| AmqpError::Closed),
            Err(_) => Err(self.start_again(&commands)),
        }
    }

    pub(crate) async fn take(
        &self,
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Taken>, AmqpError> {
        if max == 0 || hush.is_cancelled() {
            return Ok(Vec::new());
        }
        let id = self.takes.fetch_add(1, Ordering::Relaxed);
        let (answer, receiver) = oneshot::channel();
        let commands = self.send(Command::Take { id, max: max.min(TAKE_MAX), answer })?;
        let mut ticket = Ticket { receiver, commands };
        tokio::select! {
            biased;
            answer = &mut ticket.receiver => return answer.unwrap_or(Err(AmqpError::Closed)),
            () = sleep(wait.max(GLANCE)) => {}
            () = hush.cancelled() => {}
        }
        ticket.commands.send(Command::Recall(id)).map_err(|_| AmqpError::Closed)?;
        let answer = timeout(STUCK_LIMIT, &mut ticket.receiver).await;
        answer
            .map_or_else(|_| Err(self.start_again(&ticket.commands)), |answer| answer.unwrap_or(Err(AmqpError::Closed)))
    }

    pub(crate) async fn finish(&self, tags: &[Tag], ending: Ending) -> Result<Vec<Finished>, AmqpError> {
        let (answer, receiver) = oneshot::channel();
        let commands = self.send(Command::Finish { tags: tags.to_vec(), ending, answer })?;
        match timeout(STUCK_LIMIT, receiver).await {
            Ok(finished) => finished.map_err(|_| AmqpError::Closed),
            Err(_) => Err(self.start_again(&commands)),
        }
    }

    /// Sends a command and answers with the way that it went.
    fn send(&self, command: Command) -> Result<Commands, AmqpError> {
        let commands = self.commands.lock().clone();
        commands.send(command).map_err(|_| AmqpError::Closed)?;
        Ok(commands)
    }

    /// Leaves a task alone that does not answer, and starts another; unless somebody else has.
    fn start_again(&self, stuck: &Commands) -> AmqpError {
        let mut commands = self.commands.lock();
        if commands.same_channel(stuck) {
            error!(
                event = "amqp_stuck",
                "the task that consumes has not answered for {STUCK_LIMIT:?}; it is started again"
            );
            *commands = (self.start)(self.consumed.lock().clone());
        }
        AmqpError::Unreachable("the task that consumes did not answer; it is started again".to_owned())
    }
}

/// A take that somebody waits for. When they are gone before they have read the answer, its messages are laid back.
struct Ticket {
    receiver: oneshot::Receiver<Result<Vec<Taken>, AmqpError>>,
    commands: Commands,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(Ok(taken)) = self.receiver.try_recv() {
            // It fails when the transport is closed; then they are void.
            let _ = self.commands.send(Command::LayBack(taken));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn queues_are_the_same_in_any_order_and_number() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let consumed = Consumed::of(&names(&["a", "b", "a"]), Prefetch::OfChannel);
        assert_eq!(consumed.queues, ["a".into(), "b".into()]);
        for (queues, is_same) in
            [(&["b", "a"][..], true), (&["a", "b", "b"], true), (&["a"], false), (&["a", "b", "c"], false)]
        {
            assert_eq!(consumed.has_all_of(&names(queues)), is_same, "{queues:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_answer_is_started_again_once() {
        let starts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&starts);
        let consumed = Consumed::of(&[], Prefetch::OfChannel);
        let intake = Intake::started_by(consumed, move |_| {
            let (commands, mut receiver) = mpsc::unbounded_channel();
            let is_stuck = count.fetch_add(1, Ordering::SeqCst) == 0;
            tokio::spawn(async move {
                let mut unanswered = Vec::new();
                while let Some(command) = receiver.recv().await {
                    match command {
                        Command::Finish { tags, answer, .. } if !is_stuck => {
                            drop(answer.send(vec![Finished::Void; tags.len()]));
                        }
                        other => unanswered.push(other),
                    }
                }
            });
            commands
        });
        let hush = CancellationToken::new();
        let tags = [Tag::default()];
        let (taken, finished) =
            tokio::join!(intake.take(1, Duration::ZERO, &hush), intake.finish(&tags, Ending::Accept));
        assert!(taken.is_err_and(|error| error.is_transient()));
        assert!(finished.is_err_and(|error| error.is_transient()));
        assert_eq!(starts.load(Ordering::SeqCst), 2, "once for both");
        assert_eq!(intake.finish(&tags, Ending::Accept).await, Ok(vec![Finished::Void]));
    }
}
