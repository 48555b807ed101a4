//! How fast messages go through: 100,000 of 200 bytes, published with confirmations and taken with acceptances, on a private
//! broker. `cargo bench -p windlass-amqp`

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use windlass_amqp::{Amqp, Message, Options, Published, Queue, Topology};
use windlass_servers::RabbitMq;

const COUNT: usize = 100_000;
const BODY_BYTES: usize = 200;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rabbit = RabbitMq::start()?;
    for kind in ["classic", "quorum"] {
        let queue = Queue::new(&format!("rates-{kind}")).with("x-queue-type", kind);
        let consume = vec![queue.name.clone()];
        let options = Options { topology: Topology { queues: vec![queue], ..Topology::default() }, consume };
        let amqp = Arc::new(Amqp::open(rabbit.url().parse()?, options).await?);
        let to = Message { routing_key: format!("rates-{kind}"), body: vec![b'x'; BODY_BYTES], ..Message::default() };
        for (callers, batch) in [(1, 1000), (64, 1)] {
            let count = if batch == 1 { COUNT / 5 } else { COUNT };
            let began = Instant::now();
            let publishing = (0..callers).map(|_| {
                let (amqp, message) = (Arc::clone(&amqp), to.clone());
                tokio::spawn(async move {
                    for _ in 0..count / callers / batch {
                        let published = amqp.publish(vec![message.clone(); batch]).await;
                        assert!(published.iter().all(|published| *published == Published::Confirmed), "{published:?}");
                    }
                })
            });
            for caller in publishing.collect::<Vec<_>>() {
                caller.await?;
            }
            println!("{kind}: publish, {callers} callers of {batch}: {}", rate(count, began.elapsed()));
        }
        for max in [10, 100, 1000] {
            let (began, mut count, mut takes) = (Instant::now(), 0, 0);
            while count < COUNT / 4 {
                let taken = amqp.take(max, Duration::from_secs(5), &CancellationToken::new()).await?;
                if taken.is_empty() {
                    break;
                }
                let tags: Vec<_> = taken.iter().map(|taken| taken.tag).collect();
                (count, takes) = (count + tags.len(), takes + 1);
                amqp.accept(&tags).await?;
            }
            let size = count as f64 / f64::from(takes);
            println!("{kind}: take {max} and accept: {}, {size:.0} at once", rate(count, began.elapsed()));
        }
        amqp.close().await;
    }
    Ok(())
}

fn rate(count: usize, took: Duration) -> String {
    format!("{:.0}/s ({count} in {took:.2?})", count as f64 / took.as_secs_f64())
}
