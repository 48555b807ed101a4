//! The carrier of queues of RabbitMQ, and what is declared for the programs at the other end.

mod carrier;
mod recorded;
mod topology;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use windlass_amqp::{Published, Topology};
use windlass_bridges::carrier::{AmqpQueues, Carried, Carrier as _, Content, Outgoing, all_confirmed, publish};
use windlass_core::QueueName;
use windlass_core::bridge::Tag;
use windlass_wire::Frame;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Enough for what lies there already.
pub(crate) const MOMENT: Duration = Duration::from_millis(300);

/// A name that no other test has.
pub(crate) fn name(of: &str) -> QueueName {
    QueueName::known(&format!("{of}-{:016x}", fastrand::u64(..)))
}

pub(crate) async fn open(url: &str, topology: &Topology, queues: &[QueueName]) -> AmqpQueues {
    let location = url.parse().expect("a URL");
    AmqpQueues::open(location, topology, queues).await.unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn with_body(body: &str) -> Frame {
    Frame { body: body.as_bytes().to_vec(), ..Frame::default() }
}

/// Publishes, and every message is confirmed.
pub(crate) async fn send(carrier: &AmqpQueues, outgoing: impl IntoIterator<Item = Outgoing>) {
    let published = publish(carrier.amqp(), outgoing.into_iter().collect()).await;
    assert!(all_confirmed(&published).is_ok(), "{published:?}");
    assert!(published.iter().all(|published| *published == Published::Confirmed), "{published:?}");
}

/// Takes exactly so many, however many calls it needs.
pub(crate) async fn take_all(carrier: &AmqpQueues, queues: &[QueueName], count: usize) -> Vec<Carried> {
    let mut all = Vec::new();
    while all.len() < count {
        let taken = carrier.take(queues, count - all.len(), PATIENCE, &CancellationToken::new()).await;
        let taken = taken.unwrap_or_else(|error| panic!("{error}"));
        assert!(!taken.is_empty(), "{} of {count} came", all.len());
        all.extend(taken);
    }
    all
}

/// What lies there already, up to ten.
pub(crate) async fn glance(carrier: &AmqpQueues, queues: &[QueueName]) -> Vec<Carried> {
    carrier.take(queues, 10, MOMENT, &CancellationToken::new()).await.unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn tags(carried: &[Carried]) -> Vec<Tag> {
    carried.iter().map(|carried| carried.tag.clone()).collect()
}

pub(crate) fn bodies(carried: &[Carried]) -> Vec<String> {
    carried.iter().map(|carried| String::from_utf8_lossy(carried.content.raw()).into_owned()).collect()
}

pub(crate) fn frame(carried: &Carried) -> &Frame {
    match &carried.content {
        Content::Frame(frame) => frame,
        other @ (Content::Bytes(_) | Content::Unreadable(..)) => panic!("no frame: {other:?}"),
    }
}
