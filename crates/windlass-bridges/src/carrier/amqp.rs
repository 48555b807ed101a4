//! Messages in queues of RabbitMQ.
//!
//! | what happens | what becomes of a message |
//! |---|---|
//! | it was accepted, and the broker has heard it | it does not come again, unless a node of the broker dies in this moment and had not written it down: [`LetGo::Unconfirmed`], so a redelivery within a minute is known |
//! | it was accepted, and the connection ended before the broker said that it has heard | it may come again, whenever somebody next takes from its queue: [`LetGo::Perhaps`] |
//! | its channel was gone before it was accepted | it is on its way to somebody already: [`LetGo::Perhaps`] |
//! | it is put back, or its taker dies | it comes next, to anybody, with `redelivered` |
//!
//! No message is let go for certain. A classic queue writes acknowledgements down behind the answer and without waiting for
//! the disk, a quorum queue replicates them behind it: of 200 acceptances that RabbitMQ 3.10 had heard in the moment of its
//! SIGKILL, 200 and 182 came again. Nor has a message an identity of its own: it is known by what it says.

mod frame;
mod topology;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use windlass_amqp::{Amqp, AmqpError, Finished, Location, Options, Published, Taken, Topology, Unrouted};
use windlass_core::QueueName;
use windlass_core::bridge::{LetGo, Returned, Tag, TransportError};
use windlass_wire::Frame;

use super::{Carried, Carrier, Content};

pub use topology::{Beside, CeleryQueues, TaskiqProfile, TaskiqTopology, celery_topology, taskiq_topology};

/// A message on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Where it goes; the empty one knows every queue by its name.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// What happens when no queue takes it.
    pub unrouted: Unrouted,
    /// What it is. Where the frame says that it is addressed to does not count.
    pub frame: Frame,
}

impl Outgoing {
    /// A message to a queue. That there is no such queue is reported.
    pub fn to_queue(queue: &str, frame: Frame) -> Self {
        Self { exchange: String::new(), routing_key: queue.to_owned(), unrouted: Unrouted::Report, frame }
    }

    /// An answer to somebody who waits at this queue: it does not outlive the broker, and that nobody waits any more is no
    /// error.
    pub fn answer(reply_to: &str, mut frame: Frame) -> Self {
        frame.properties.delivery_mode = Some(frame::TRANSIENT);
        Self { exchange: String::new(), routing_key: reply_to.to_owned(), unrouted: Unrouted::Drop, frame }
    }
}

/// Publishes messages and says what became of each; one that cannot be written as AMQP harms no other.
pub async fn publish(amqp: &Amqp, outgoing: Vec<Outgoing>) -> Vec<Published> {
    let mut published: Vec<Option<Published>> = Vec::with_capacity(outgoing.len());
    let mut messages = Vec::with_capacity(outgoing.len());
    for outgoing in outgoing {
        published.push(match frame::message(outgoing) {
            Ok(message) => {
                messages.push(message);
                None
            }
            Err(error) => Some(Published::Refused(error)),
        });
    }
    let mut answers = amqp.publish(messages).await.into_iter();
    let closed = || Published::NotSent(AmqpError::Closed);
    let answered = published.into_iter().map(|known| known.or_else(|| answers.next()).unwrap_or_else(closed));
    answered.collect()
}

/// Nothing when all messages of a batch are confirmed.
///
/// # Errors
/// [`TransportError::Unreachable`] when one of them may be confirmed later: repeat the batch, readers know what comes twice.
/// Otherwise [`TransportError::Refused`] when one of them never will be: with how many, and the reason of the first.
pub fn all_confirmed(published: &[Published]) -> Result<(), TransportError> {
    let mut never: Option<String> = None;
    let mut amount: usize = 0;
    for one in published {
        let reason = match one {
            Published::Confirmed => continue,
            Published::Unroutable(said) => {
                format!("no queue takes it ({said}); declare its queue, or correct the name")
            }
            Published::Refused(error) | Published::Unknown(error) | Published::NotSent(error) => {
                if error.is_transient() {
                    return Err(of_amqp(error.clone()));
                }
                error.to_string()
            }
        };
        amount += 1;
        never.get_or_insert(reason);
    }
    match never {
        Some(reason) => Err(TransportError::Refused(format!(
            "{amount} of {} messages were not published, the first because: {reason}",
            published.len()
        ))),
        None => Ok(()),
    }
}

/// The frame of a message that is not to be adopted: control, events. `None` when it cannot be read.
pub(crate) fn frame_of(taken: Taken) -> Option<Frame> {
    match frame::content(taken) {
        Content::Frame(frame) => Some(*frame),
        Content::Bytes(_) | Content::Unreadable(..) => None,
    }
}

/// What a broker said, as the word of a transport.
pub(crate) fn of_amqp(error: AmqpError) -> TransportError {
    if error.is_transient() {
        TransportError::Unreachable(error.into())
    } else {
        TransportError::Refused(error.to_string())
    }
}

/// Takes messages from queues and holds them until they are accepted.
#[derive(Debug)]
pub struct AmqpQueues {
    amqp: Arc<Amqp>,
}

impl AmqpQueues {
    /// Connects, declares, and will take from these queues.
    ///
    /// # Errors
    /// When the broker does not answer within 10 s, does not let us in, or refuses a declaration. That something is there
    /// otherwise is no error: it is used as it is, and the log names it once.
    pub async fn open(location: Location, topology: &Topology, queues: &[QueueName]) -> Result<Self, TransportError> {
        let options = Options { topology: Topology::default(), consume: names(queues) };
        let amqp = Amqp::open(location, options).await.map_err(of_amqp)?;
        // Not with the connection, whose limit is short: the delays of Celery are 28 replicated queues.
        amqp.declare(topology).await.map_err(of_amqp)?;
        Ok(Self { amqp: Arc::new(amqp) })
    }

    /// The transport: to declare more, to publish answers, to listen to what is broadcast.
    pub fn amqp(&self) -> &Arc<Amqp> {
        &self.amqp
    }

    /// Joins what was taken with the queues that were asked for. What came from another goes back: somebody else has asked
    /// for it at the same time.
    async fn carry(&self, taken: Vec<Taken>, queues: &[QueueName]) -> Result<Vec<Carried>, TransportError> {
        let mut carried = Vec::with_capacity(taken.len());
        let mut unasked = Vec::new();
        for taken in taken {
            match queues.iter().find(|queue| queue.as_str() == &*taken.queue) {
                Some(queue) => carried.push(Carried {
                    tag: Tag(taken.tag.to_bytes().as_slice().into()),
                    identity: None,
                    again: taken.redelivered,
                    queue: queue.clone(),
                    content: frame::content(taken),
                }),
                None => unasked.push(taken.tag),
            }
        }
        if !unasked.is_empty() {
            self.amqp.put_back(&unasked).await.map_err(of_amqp)?;
        }
        Ok(carried)
    }
}

fn names(queues: &[QueueName]) -> Vec<String> {
    queues.iter().map(|queue| queue.as_str().to_owned()).collect()
}

fn tags(tags: &[Tag]) -> Vec<windlass_amqp::Tag> {
    tags.iter().map(|tag| windlass_amqp::Tag::of_bytes(&tag.0)).collect()
}

#[async_trait]
impl Carrier for AmqpQueues {
    async fn turn_to(&self, queues: &[QueueName]) -> Result<(), TransportError> {
        self.amqp.consume(&names(queues)).await.map_err(of_amqp)
    }

    async fn take(
        &self,
        queues: &[QueueName],
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Carried>, TransportError> {
        let names = names(queues);
        tokio::select! {
            biased;
            // A change that is under way goes on without anybody who waits for it.
            () = hush.cancelled() => return Ok(Vec::new()),
            consumes = self.amqp.consume(&names) => consumes.map_err(of_amqp)?,
        }
        let taken = self.amqp.take(max, wait, hush).await.map_err(of_amqp)?;
        self.carry(taken, queues).await
    }

    async fn accept(&self, accepted: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        let finished = self.amqp.accept(&tags(accepted)).await.map_err(of_amqp)?;
        let let_go = finished.into_iter().map(|finished| match finished {
            Finished::Heard => LetGo::Unconfirmed,
            Finished::Told | Finished::Void => LetGo::Perhaps,
        });
        Ok(let_go.collect())
    }

    async fn put_back(&self, returned: &[Tag], _why: Returned) -> Result<(), TransportError> {
        // Those that are void are on their way to somebody already.
        self.amqp.put_back(&tags(returned)).await.map(drop).map_err(of_amqp)
    }

    async fn recover(&self) -> Result<u64, TransportError> {
        // The broker knows who is dead: their connections end, and it delivers again what they had.
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_repeated_while_that_may_help_and_refused_otherwise() {
        let away = || AmqpError::Unreachable("it is away".to_owned());
        let missing = || Published::Unroutable("NO_ROUTE".to_owned());
        assert!(all_confirmed(&[]).is_ok() && all_confirmed(&[Published::Confirmed]).is_ok());
        for passing in [Published::Unknown(away()), Published::NotSent(away()), Published::Refused(away())] {
            let said = all_confirmed(&[Published::Confirmed, missing(), passing]);
            assert!(matches!(said, Err(TransportError::Unreachable(_))), "{said:?}");
        }
        let broken = Published::Refused(AmqpError::Refused("too long".to_owned()));
        let said = all_confirmed(&[missing(), broken, Published::Confirmed]).expect_err("two never will be");
        assert!(matches!(&said, TransportError::Refused(text) if text.contains("2 of 3") && text.contains("NO_ROUTE")));
    }
}
