//! What breaks while messages are under way: connections, the broker, its memory.

mod common;

use std::time::{Duration, Instant};

use common::{
    Observer, PATIENCE, consuming, drain_until, message, name, numbered, open, publish, tags, take, take_all,
};
use tokio_util::sync::CancellationToken;
use windlass_amqp::{Amqp, Binding, Exchange, Finished, Lasting, Message, Options, Published, Queue};
use windlass_servers::{Proxy, RabbitMq, rabbitmq_url};

/// A broker that returns must be in use again within this.
const RETURN_LIMIT: Duration = Duration::from_secs(5);

/// A line to the shared server that can break, and the URL at this end of it.
fn line() -> (Proxy, String) {
    let url = rabbitmq_url();
    let address = url.split(['@', '/']).nth(3).expect("an address").to_owned();
    let proxy = Proxy::to(address.parse().expect("an address")).unwrap_or_else(|error| panic!("{error}"));
    let url = url.replace(&address, &proxy.address().to_string());
    (proxy, url)
}

/// Publishes until it is confirmed.
async fn publish_until_confirmed(amqp: &Amqp, message: Message) {
    let began = Instant::now();
    loop {
        match amqp.publish(vec![message.clone()]).await.pop() {
            Some(Published::Confirmed) => return,
            Some(Published::Unknown(error) | Published::NotSent(error)) => assert!(error.is_transient(), "{error}"),
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < PATIENCE, "it is confirmed");
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_made_again_and_nothing_is_lost() {
    let (proxy, url) = line();
    let queue = name("cut");
    let amqp = consuming(&url, &[Queue::new(&queue)]).await;
    publish(&amqp, numbered(&queue, 20)).await;
    let taken = take_all(&amqp, 5).await;
    for _ in 0..3 {
        let began = Instant::now();
        proxy.cut();
        publish_until_confirmed(&amqp, message(&queue, "after")).await;
        drain_until(&amqp, ["after".to_owned()]).await;
        println!("cut: publishing and consuming again after {:?}", began.elapsed());
        assert!(began.elapsed() < RETURN_LIMIT);
    }
    let void = amqp.accept(&tags(&taken)).await.expect("it is open");
    assert_eq!(void, [Finished::Void; 5], "the broker has delivered them again");
    assert!(take(&amqp, 1, Duration::from_millis(300)).await.is_empty(), "all have come");
}

#[tokio::test]
async fn a_publish_whose_confirmation_is_lost_is_not_known_and_may_be_repeated() {
    let (proxy, url) = line();
    let queue = name("lost-answer");
    let amqp = open(&url, Options::default()).await.expect("it opens");
    let observer = Observer::at(&rabbitmq_url()).await;
    observer.declare(&queue, lapin::options::QueueDeclareOptions::default(), lapin::types::FieldTable::default()).await;
    publish(&amqp, [message(&queue, "x")]).await;
    proxy.cut_after_next_request();
    let published = amqp.publish(vec![message(&queue, "y")]).await;
    assert!(matches!(published.as_slice(), [Published::Unknown(error)] if error.is_transient()), "{published:?}");
    observer.until_ready(&queue, 2).await;
    publish_until_confirmed(&amqp, message(&queue, "y")).await;
    observer.until_ready(&queue, 3).await;
}

#[tokio::test]
async fn what_is_accepted_in_the_moment_of_a_cut_is_told_and_perhaps_not_heard() {
    let (proxy, url) = line();
    let queue = name("cut-answer");
    let amqp = consuming(&url, &[Queue::new(&queue)]).await;
    publish(&amqp, numbered(&queue, 2)).await;
    let taken = take_all(&amqp, 2).await;
    assert_eq!(amqp.accept(&[taken[0].tag]).await.expect("it is open"), [Finished::Heard]);
    proxy.stall();
    let second = [taken[1].tag];
    let (finished, ()) = tokio::join!(amqp.accept(&second), async { proxy.cut() });
    assert_eq!(finished.expect("it is open"), [Finished::Told]);
    proxy.resume();
    let again = take_all(&amqp, 1).await;
    assert_eq!((common::bodies(&again), again[0].redelivered), (vec!["1".to_owned()], true), "and not the one before");
    assert_eq!(amqp.accept(&tags(&again)).await.expect("it is open"), [Finished::Heard]);
}

#[tokio::test]
async fn queues_are_changed_while_the_broker_is_away() {
    let (proxy, url) = line();
    let (before, after) = (name("before"), name("after"));
    let amqp = consuming(&url, &[Queue::new(&before), Queue::new(&after)]).await;
    publish(&amqp, [message(&before, "x"), message(&after, "y")]).await;
    let taken = take_all(&amqp, 2).await;
    proxy.refuse();
    proxy.cut();
    amqp.consume(std::slice::from_ref(&after)).await.expect("it is open");
    proxy.resume();
    let again = take_all(&amqp, 1).await;
    assert_eq!(common::bodies(&again), ["y"]);
    assert_eq!(amqp.accept(&tags(&taken)).await.expect("it is open"), [Finished::Void; 2]);
    Observer::at(&rabbitmq_url()).await.until_ready(&before, 1).await;
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_by_its_silence() {
    let (proxy, url) = line();
    let queue = name("half-open");
    let amqp = consuming(&format!("{url}?heartbeat=1"), &[Queue::new(&queue)]).await;
    publish(&amqp, [message(&queue, "before")]).await;
    drain_until(&amqp, ["before".to_owned()]).await;
    proxy.stall();
    let began = Instant::now();
    let error = loop {
        if let Err(error) = amqp.take(1, Duration::from_millis(200), &CancellationToken::new()).await {
            break error;
        }
        assert!(began.elapsed() < PATIENCE, "it is noticed");
    };
    println!("half open: noticed after {:?}: {error}", began.elapsed());
    assert!(error.is_transient(), "{error}");
    let began = Instant::now();
    proxy.cut();
    proxy.resume();
    publish_until_confirmed(&amqp, message(&queue, "after")).await;
    drain_until(&amqp, ["after".to_owned()]).await;
    println!("half open: publishing and consuming again after {:?}", began.elapsed());
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_connections_and_is_silent_leaves_no_threads() {
    let (proxy, url) = line();
    let queue = name("silent");
    let amqp = consuming(&url, &[Queue::new(&queue)]).await;
    proxy.stall();
    proxy.cut();
    // Two attempts at least, each of which has a thread in the client library.
    proxy.wait_for(PATIENCE, |counts| counts.accepted >= 4).expect("it tries again");
    let threads = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
    let of_library = threads.filter(|thread| {
        std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("lapin"))
    });
    let count = of_library.count();
    assert!(count <= 3, "{count} threads");
    proxy.resume();
    publish_until_confirmed(&amqp, message(&queue, "after")).await;
    drain_until(&amqp, ["after".to_owned()]).await;
}

#[tokio::test]
async fn a_listener_goes_on_after_its_connection() {
    let (proxy, url) = line();
    let exchange = name("listen");
    let amqp = open(&url, Options::default()).await.expect("it opens");
    let queue = Queue::new(&exchange).lasting(Lasting::Exclusive);
    let fanout = Exchange { lasting: Lasting::Transient, ..Exchange::new(&exchange, "fanout") };
    let bindings = vec![Binding::new(&exchange, &exchange, "")];
    let mut listener = amqp.listen(&queue, vec![fanout], bindings).await.expect("it listens");
    proxy.cut();
    let began = Instant::now();
    loop {
        // Lost while nobody listens: that is how control messages are.
        drop(amqp.publish(vec![Message { exchange: exchange.clone(), ..message("", "ping") }]).await);
        if tokio::time::timeout(Duration::from_millis(100), listener.next()).await.is_ok_and(|heard| heard.is_some()) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it listens again");
    }
    println!("listener: heard again after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_returns_is_used_again_by_itself() {
    let mut rabbit = RabbitMq::start().unwrap_or_else(|error| panic!("{error}"));
    let queue = name("killed");
    let amqp = consuming(&rabbit.url(), &[Queue::new(&queue)]).await;
    publish(&amqp, numbered(&queue, 100)).await;
    let taken = take(&amqp, 10, PATIENCE).await;
    assert_eq!(rabbit.unacknowledged(&queue).expect("it answers"), taken.len() as u64);
    rabbit.write_down().expect("written down");
    rabbit.kill();
    let unknown = amqp.take(1, Duration::from_millis(500), &CancellationToken::new()).await;
    assert!(unknown.as_ref().is_err_and(windlass_amqp::AmqpError::is_transient), "{unknown:?}");
    assert_eq!(amqp.accept(&tags(&taken)).await.expect("it is open"), vec![Finished::Void; taken.len()]);

    rabbit.start_again().unwrap_or_else(|error| panic!("{error}"));
    let began = Instant::now();
    publish_until_confirmed(&amqp, message(&queue, "after")).await;
    println!("killed: publishing again {:?} after the broker's return", began.elapsed());
    assert!(began.elapsed() < RETURN_LIMIT, "{:?}", began.elapsed());
    let wanted = (0..100).map(|number| number.to_string()).chain(["after".to_owned()]);
    drain_until(&amqp, wanted).await;
    println!("killed: everything has come {:?} after the broker's return", began.elapsed());

    // An operator closes connections, too.
    rabbit.close_connections().expect("it answers");
    publish_until_confirmed(&amqp, message(&queue, "closed")).await;
    drain_until(&amqp, ["closed".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_memory_blocks_publishing_only_and_until_it_has_some() {
    let rabbit = RabbitMq::start().unwrap_or_else(|error| panic!("{error}"));
    let queue = name("blocked");
    let amqp = consuming(&rabbit.url(), &[Queue::new(&queue)]).await;
    publish(&amqp, numbered(&queue, 10)).await;
    rabbit.block_publishing().expect("it answers");
    let amqp = std::sync::Arc::new(amqp);
    // The first makes the broker say that it is blocked and waits; it is confirmed in the end.
    let first = tokio::spawn({
        let (amqp, message) = (std::sync::Arc::clone(&amqp), message(&queue, "first"));
        async move { amqp.publish(vec![message]).await }
    });
    drain_until(&amqp, (0..10).map(|number| number.to_string())).await;
    let second = amqp.publish(vec![message(&queue, "second")]).await;
    let [Published::NotSent(error)] = second.as_slice() else { panic!("{second:?}") };
    assert!(error.is_transient() && error.to_string().contains("memory"), "{error}");
    rabbit.allow_publishing().expect("it answers");
    assert_eq!(first.await.expect("it ends"), [Published::Confirmed]);
    publish(&amqp, [message(&queue, "third")]).await;
    drain_until(&amqp, ["first".to_owned(), "third".to_owned()]).await;
}
