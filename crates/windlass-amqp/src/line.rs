//! What is put in the line of a channel: frames go out in the order in which they are put there, and the broker deals with
//! them one after the other.

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions, BasicQosOptions};

use crate::desk::Ack;
use crate::intake::Ending;

/// The largest prefetch of the protocol.
pub(crate) const PREFETCH_MAX: usize = u16::MAX as usize;
/// A prefetch without limit.
pub(crate) const NO_PREFETCH: usize = 0;

/// Tells the broker what became of deliveries.
pub(crate) fn tell(channel: &Channel, acks: &[Ack], ending: Ending) {
    for ack in acks {
        let channel = channel.clone();
        let (number, multiple) = match *ack {
            Ack::One(number) => (number, false),
            Ack::Through(number) => (number, true),
        };
        match ending {
            Ending::Accept => put(async move { channel.basic_ack(number, BasicAckOptions { multiple }).await }),
            Ending::PutBack | Ending::Reject => {
                let options = BasicNackOptions { multiple, requeue: ending == Ending::PutBack };
                put(async move { channel.basic_nack(number, options).await });
            }
        }
    }
}

/// Sets the prefetch of the whole channel. It takes effect in its place in the line.
pub(crate) fn set_prefetch_of_channel(channel: &Channel, count: usize) {
    put(ask_prefetch(channel, count, BasicQosOptions { global: true }));
}

/// Sets the prefetch of the consumers that are made behind it in the line.
pub(crate) fn set_prefetch_of_consumers(channel: &Channel, count: usize) {
    put(ask_prefetch(channel, count, BasicQosOptions { global: false }));
}

/// As [`set_prefetch_of_channel`], with the broker's answer: it has then dealt with everything before it in the line.
pub(crate) fn ask_prefetch_of_channel(channel: &Channel, count: usize) -> BoxFuture<'static, lapin::Result<()>> {
    begun(ask_prefetch(channel, count, BasicQosOptions { global: true }))
}

/// As [`set_prefetch_of_consumers`], with the broker's answer.
pub(crate) fn ask_prefetch_of_consumers(channel: &Channel, count: usize) -> BoxFuture<'static, lapin::Result<()>> {
    begun(ask_prefetch(channel, count, BasicQosOptions { global: false }))
}

fn ask_prefetch(channel: &Channel, count: usize, options: BasicQosOptions) -> BoxFuture<'static, lapin::Result<()>> {
    let channel = channel.clone();
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    async move { channel.basic_qos(count, options).await }.boxed()
}

/// Puts a request in the line, now; its answer is still to be waited for.
pub(crate) fn begun<T: Send + 'static>(mut request: BoxFuture<'static, T>) -> BoxFuture<'static, T> {
    match (&mut request).now_or_never() {
        Some(answer) => ready(answer).boxed(),
        None => request,
    }
}

/// Puts a frame in the line, now and in this order, and waits for nothing. When the connection ends, the session tells.
fn put(frame: impl Future<Output = lapin::Result<()>> + Send + 'static) {
    let mut frame = Box::pin(frame);
    if frame.as_mut().now_or_never().is_none() {
        tokio::spawn(frame);
    }
}
