//! What goes through a broker that works.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Observer, PATIENCE, bodies, consuming, message, name, numbered, open, publish, tags, take, take_all};
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use windlass_amqp::{
    AmqpError, Binding, Exchange, Finished, Lasting, Message, Options, Properties, Published, Queue, Storage, Topology,
    Unrouted,
};
use windlass_servers::rabbitmq_url;

/// Enough for what lies there already.
const MOMENT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_message_comes_with_everything_that_it_was_published_with() {
    let (url, queue) = (rabbitmq_url(), name("round-trip"));
    let amqp = consuming(&url, &[Queue::new(&queue).with("x-max-priority", 10)]).await;
    let text = |text: &str| Some(text.to_owned());
    let headers = json!({
        "task": "add", "retries": 0, "eta": null, "timelimit": [null, 60], "ratio": 0.5, "ok": true,
        "stamps": {"deep": {"er": ["ü", -1]}}, "big": 9_007_199_254_740_993_i64,
    });
    let properties = Properties {
        content_type: text("application/json"),
        content_encoding: text("utf-8"),
        headers: headers.as_object().cloned().expect("an object"),
        storage: Storage::Persistent,
        priority: Some(7),
        correlation_id: text("correlation"),
        reply_to: text("answers"),
        expiration: Some(Duration::from_secs(600)),
        message_id: text("message"),
        timestamp: Some(1_700_000_000),
        kind: text("kind"),
        user_id: text("windlass"),
        app_id: text("app"),
    };
    let sent = Message { properties: properties.clone(), ..message(&queue, [0, 255, b'x']) };
    publish(&amqp, [sent, message(&queue, "")]).await;

    let taken = take_all(&amqp, 2).await;
    assert_eq!((&taken[0].properties, taken[0].body.as_slice()), (&properties, [0, 255, b'x'].as_slice()));
    assert_eq!((&*taken[0].queue, taken[0].exchange.as_str()), (queue.as_str(), ""));
    assert_eq!((taken[0].routing_key.as_str(), taken[0].redelivered), (queue.as_str(), false));
    assert_eq!((&taken[1].properties, taken[1].body_bytes), (&Properties::default(), 0));
}

#[tokio::test]
async fn what_is_accepted_does_not_come_again() {
    let (url, queue) = (rabbitmq_url(), name("accepted"));
    let amqp = consuming(&url, &[Queue::new(&queue)]).await;
    publish(&amqp, numbered(&queue, 250)).await;
    let taken = take_all(&amqp, 250).await;
    assert_eq!(bodies(&taken), (0..250).map(|number| number.to_string()).collect::<Vec<_>>(), "in order");
    let all = tags(&taken);
    // The second half first, so that the first half is one word from the oldest on.
    for part in [&all[100..150], &all[..100], &all[150..]] {
        let finished = amqp.accept(part).await.expect("it is open");
        assert!(finished.iter().all(|finished| *finished == Finished::Heard));
    }
    amqp.close().await;
    Observer::at(&url).await.until_ready(&queue, 0).await;
}

#[tokio::test]
async fn what_a_consumer_held_when_it_ended_comes_again_with_the_flag() {
    let (url, queue) = (rabbitmq_url(), name("crashed"));
    let first = consuming(&url, &[Queue::new(&queue)]).await;
    publish(&first, numbered(&queue, 3)).await;
    let taken = take_all(&first, 3).await;
    assert_eq!(first.accept(&[taken[1].tag]).await.expect("it is open"), [Finished::Heard]);
    publish(&first, [message(&queue, "later")]).await;
    drop(first);

    let second = consuming(&url, &[Queue::new(&queue)]).await;
    let again = take_all(&second, 3).await;
    let mut seen: Vec<_> = bodies(&again).into_iter().zip(again.iter().map(|taken| taken.redelivered)).collect();
    seen.sort();
    assert_eq!(seen, [("0".to_owned(), true), ("2".to_owned(), true), ("later".to_owned(), false)]);
    let finished = second.accept(&tags(&taken)).await.expect("it is open");
    assert_eq!(finished, [Finished::Void; 3], "tags of another transport");
}

#[tokio::test]
async fn what_is_put_back_comes_again_and_what_is_rejected_goes_to_the_dead_letters() {
    let (url, queue, dead) = (rabbitmq_url(), name("put-back"), name("dead"));
    let queue_with_dead_letters =
        Queue::new(&queue).with("x-dead-letter-exchange", "").with("x-dead-letter-routing-key", dead.as_str());
    let amqp = consuming(&url, &[queue_with_dead_letters, Queue::new(&dead)]).await;
    publish(&amqp, [message(&queue, "x")]).await;
    let taken = take_all(&amqp, 1).await;
    assert_eq!(amqp.put_back(&tags(&taken)).await.expect("it is open"), [Finished::Heard]);
    let again = take_all(&amqp, 1).await;
    assert!(again[0].redelivered && *again[0].queue == *queue);
    amqp.reject(&tags(&again)).await.expect("it is open");
    assert_eq!(amqp.accept(&tags(&again)).await.expect("it is open"), [Finished::Void], "it is finished");
    let letter = take_all(&amqp, 1).await;
    assert_eq!((&*letter[0].queue, bodies(&letter)), (dead.as_str(), vec!["x".to_owned()]));
    let deaths = &letter[0].properties.headers["x-death"];
    assert_eq!((&deaths[0]["queue"], &deaths[0]["reason"]), (&json!(queue), &json!("rejected")));
}

#[tokio::test]
async fn each_message_that_no_queue_takes_is_named() {
    let (url, queue) = (rabbitmq_url(), name("routed"));
    let amqp = consuming(&url, &[Queue::new(&queue)]).await;
    let nowhere = name("nowhere");
    let mut messages = numbered(&queue, 100);
    for lost in [0, 17, 18, 99] {
        messages[lost].routing_key.clone_from(&nowhere);
    }
    messages[50] = Message { unrouted: Unrouted::Drop, ..message(&nowhere, "nobody") };
    let published = amqp.publish(messages).await;
    for (position, published) in published.iter().enumerate() {
        match position {
            0 | 17 | 18 | 99 => assert!(
                matches!(published, Published::Unroutable(said) if said.contains("NO_ROUTE")),
                "{position}: {published:?}"
            ),
            _ => assert_eq!(*published, Published::Confirmed, "{position}"),
        }
    }
    assert_eq!(take_all(&amqp, 95).await.len(), 95);
}

#[tokio::test]
async fn a_message_that_the_broker_refuses_harms_no_other() {
    let (url, queue) = (rabbitmq_url(), name("refused"));
    let amqp = consuming(&url, &[Queue::new(&queue)]).await;
    let mut messages = numbered(&queue, 10);
    messages[4].exchange = name("no-such-exchange");
    messages[6].properties.reply_to = Some("x".repeat(256));
    messages[8].properties.user_id = Some("somebody-else".to_owned());
    let published = amqp.publish(messages).await;
    for (position, published) in published.iter().enumerate() {
        let wanted = match position {
            4 => "no exchange",
            6 => "reply_to takes 256 bytes",
            8 => "user_id",
            _ => {
                assert_eq!(*published, Published::Confirmed, "{position}");
                continue;
            }
        };
        let Published::Refused(error) = published else { panic!("{position}: {published:?}") };
        assert!(error.to_string().contains(wanted) && !error.is_transient(), "{position}: {error}");
    }
}

#[tokio::test]
async fn a_queue_that_is_there_otherwise_is_used_as_it_is_and_the_difference_is_named() {
    let (url, queue, exchange) = (rabbitmq_url(), name("differs"), name("differs"));
    let observer = Observer::at(&url).await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    observer.declare(&queue, durable, FieldTable::default()).await;
    let exchange_as = |kind: &str| Topology { exchanges: vec![Exchange::new(&exchange, kind)], ..Topology::default() };
    let other = open(&url, Options { topology: exchange_as("fanout"), consume: Vec::new() }).await.expect("it opens");
    assert_eq!(other.differences(), []);

    let topology = Topology {
        queues: vec![Queue::new(&queue).with("x-max-priority", 10)],
        bindings: vec![Binding::new(&queue, &exchange, "any")],
        ..exchange_as("topic")
    };
    let amqp = open(&url, Options { topology, consume: vec![queue.clone()] }).await.expect("it opens all the same");
    let named: Vec<_> = amqp.differences().into_iter().map(|it| (it.what, it.name, it.argument)).collect();
    assert_eq!(
        named,
        [("exchange", exchange.clone(), "type".to_owned()), ("queue", queue.clone(), "x-max-priority".to_owned())]
    );
    publish(&amqp, [Message { exchange, ..message("whatever", "x") }]).await;
    assert_eq!(bodies(&take_all(&amqp, 1).await), ["x"]);
}

#[tokio::test]
async fn a_number_in_an_argument_is_the_same_in_every_width() {
    let (url, queue) = (rabbitmq_url(), name("widths"));
    let mut theirs = FieldTable::default();
    theirs.insert("x-max-priority".into(), AMQPValue::ShortShortInt(10));
    theirs.insert("x-message-ttl".into(), AMQPValue::LongInt(60_000));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    Observer::at(&url).await.declare(&queue, durable, theirs).await;
    let amqp = consuming(&url, &[Queue::new(&queue).with("x-max-priority", 10).with("x-message-ttl", 60_000)]).await;
    assert_eq!(amqp.differences(), []);
}

#[tokio::test]
async fn quorum_queues_are_consumed_without_a_prefetch_of_the_channel() {
    let (url, queue) = (rabbitmq_url(), name("quorum"));
    let observer = Observer::at(&url).await;
    let amqp = consuming(&url, &[Queue::new(&queue).with("x-queue-type", "quorum")]).await;
    publish(&amqp, numbered(&queue, 60)).await;
    let mut seen = Vec::new();
    while seen.len() < 60 {
        let max = 1 + seen.len() % 7;
        let taken = take(&amqp, max, PATIENCE).await;
        assert!((1..=max).contains(&taken.len()), "{} of {max}", taken.len());
        assert!(observer.ready(&queue).await + seen.len() + max >= 60, "no more are with us than were asked for");
        seen.extend(bodies(&taken));
        amqp.accept(&tags(&taken)).await.expect("it is open");
    }
    seen.sort_by_key(|body| body.parse::<u32>().expect("a number"));
    assert_eq!(seen, (0..60).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_quorum_queue_that_others_declared_is_found_out() {
    let (url, queue) = (rabbitmq_url(), name("quorum-of-others"));
    let quorum = Queue::new(&queue).with("x-queue-type", "quorum");
    let producer = consuming(&url, &[quorum]).await;
    publish(&producer, [message(&queue, "x")]).await;
    let options = Options { topology: Topology::default(), consume: vec![queue] };
    let amqp = open(&url, options).await.expect("it opens");
    let began = Instant::now();
    let taken = loop {
        // The broker ends the connection once for it.
        match amqp.take(1, Duration::from_secs(1), &CancellationToken::new()).await {
            Ok(taken) if !taken.is_empty() => break taken,
            Ok(_) | Err(_) => assert!(began.elapsed() < PATIENCE, "it comes"),
        }
    };
    assert_eq!(bodies(&taken), ["x"]);
}

#[tokio::test]
async fn no_more_is_delivered_than_was_asked_for() {
    const COUNT: usize = 300;
    let (url, queue) = (rabbitmq_url(), name("prefetch"));
    let (amqp, observer) = (consuming(&url, &[Queue::new(&queue)]).await, Observer::at(&url).await);
    publish(&amqp, numbered(&queue, COUNT)).await;
    let mut random = fastrand::Rng::with_seed(4711);
    let (mut held, mut accepted) = (Vec::new(), 0);
    while accepted < COUNT {
        let max = random.usize(1..=20);
        let taken = take(&amqp, max, MOMENT).await;
        assert!(taken.len() <= max);
        held.extend(tags(&taken));
        // What an earlier take had asked for and this one has not, is on its way back.
        let allowed = held.len() - taken.len() + max;
        observer.until(&queue, |ready| COUNT - accepted - ready <= allowed).await;
        random.shuffle(&mut held);
        let some = held.split_off(random.usize(0..=held.len().min(25)).min(held.len()));
        amqp.accept(&held).await.expect("it is open");
        accepted += held.len();
        held = some;
    }
    assert_eq!(observer.ready(&queue).await, 0);
}

#[tokio::test]
async fn what_nobody_waits_for_is_left_to_others() {
    let (url, queue) = (rabbitmq_url(), name("backlog"));
    let (amqp, observer) = (consuming(&url, &[Queue::new(&queue)]).await, Observer::at(&url).await);
    publish(&amqp, numbered(&queue, 50)).await;
    let taken = take(&amqp, 10, PATIENCE).await;
    amqp.accept(&tags(&taken[..1])).await.expect("it is open");
    // Busy with the others, it asks for nothing.
    observer.until_ready(&queue, 50 - taken.len()).await;
    assert!(!take(&amqp, 10, PATIENCE).await.is_empty(), "it goes on when it has room again");
}

#[tokio::test]
async fn a_take_that_is_dropped_leaves_its_messages_to_the_next() {
    let (url, queue) = (rabbitmq_url(), name("dropped"));
    let amqp = Arc::new(consuming(&url, &[Queue::new(&queue)]).await);
    for _ in 0..20 {
        let taking = tokio::spawn({
            let amqp = Arc::clone(&amqp);
            async move { take(&amqp, 5, PATIENCE).await }
        });
        publish(&amqp, [message(&queue, "x")]).await;
        taking.abort();
        let taken = match taking.await {
            Ok(taken) => taken,
            Err(aborted) => {
                assert!(aborted.is_cancelled(), "{aborted}");
                take_all(&amqp, 1).await
            }
        };
        amqp.accept(&tags(&taken)).await.expect("it is open");
    }
    assert!(take(&amqp, 5, MOMENT).await.is_empty());
}

#[tokio::test]
async fn a_hush_ends_a_take_at_once() {
    let (url, queue) = (rabbitmq_url(), name("hush"));
    let amqp = Arc::new(consuming(&url, &[Queue::new(&queue)]).await);
    let hush = CancellationToken::new();
    let taking = tokio::spawn({
        let (amqp, hush) = (Arc::clone(&amqp), hush.clone());
        async move { amqp.take(1, PATIENCE * 10, &hush).await }
    });
    hush.cancel();
    assert_eq!(taking.await.expect("it ends"), Ok(Vec::new()));
}

#[tokio::test]
async fn no_queue_waits_until_the_others_are_empty() {
    let (url, names) = (rabbitmq_url(), [name("fair-a"), name("fair-b"), name("fair-c")]);
    let queues = names.each_ref().map(|name| Queue::new(name));
    let amqp = consuming(&url, &queues).await;
    for queue in &names {
        publish(&amqp, numbered(queue, 300)).await;
    }
    let mut counts = [0; 3];
    for _ in 0..45 {
        let taken = take_all(&amqp, 10).await;
        for taken in &taken {
            counts[names.iter().position(|name| **name == *taken.queue).expect("one of ours")] += 1;
        }
        amqp.accept(&tags(&taken)).await.expect("it is open");
    }
    // How the broker shares them out is its own affair; one after the other would leave nothing for the third.
    assert!(counts.iter().all(|count| *count > 0), "of 450: {counts:?}");
}

#[tokio::test]
async fn the_greater_priority_goes_first() {
    let (url, queue) = (rabbitmq_url(), name("priority"));
    let amqp = consuming(&url, &[Queue::new(&queue).with("x-max-priority", 9)]).await;
    let with = |priority: u8| {
        let properties = Properties { priority: Some(priority), ..Properties::default() };
        Message { properties, ..message(&queue, priority.to_string()) }
    };
    publish(&amqp, [0, 5, 9, 1].map(with)).await;
    assert_eq!(bodies(&take_all(&amqp, 4).await), ["9", "5", "1", "0"]);
}

#[tokio::test]
async fn callers_at_the_same_time_each_have_their_own_answers() {
    let (url, queue) = (rabbitmq_url(), name("callers"));
    let amqp = Arc::new(consuming(&url, &[Queue::new(&queue)]).await);
    let callers = (0..200).map(|number: usize| {
        let (amqp, queue) = (Arc::clone(&amqp), queue.clone());
        tokio::spawn(async move {
            let to = if number.is_multiple_of(3) { "nowhere" } else { queue.as_str() };
            (number, amqp.publish(vec![message(to, number.to_string())]).await)
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        let (number, published) = caller.await.expect("it ends");
        let is_lost = matches!(published.as_slice(), [Published::Unroutable(_)]);
        assert_eq!(is_lost, number.is_multiple_of(3), "{number}: {published:?}");
    }
}

#[tokio::test]
async fn who_is_not_let_in_learns_why() {
    let url = rabbitmq_url();
    let wrong_password = url.replace("windlass:windlass", "windlass:wrong");
    let no_vhost = url.replace("%2f", "no-such-vhost");
    for (url, part) in [(wrong_password, "the password in the URL"), (no_vhost, "add_vhost")] {
        let error = open(&url, Options::default()).await.expect_err("it is not let in");
        assert!(matches!(&error, AmqpError::Denied(text) if text.contains(part)), "{error}");
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
    let nobody = open("amqp://127.0.0.1:1", Options::default()).await.expect_err("nobody listens");
    assert!(nobody.is_transient() && nobody.to_string().contains("nothing listens"), "{nobody}");
}

#[tokio::test]
async fn a_queue_that_is_missing_is_named_and_used_when_it_comes() {
    let (url, queue) = (rabbitmq_url(), name("late"));
    let options = Options { topology: Topology::default(), consume: vec![queue.clone()] };
    let amqp = open(&url, options).await.expect("it opens");
    let error = amqp.take(1, PATIENCE, &CancellationToken::new()).await.expect_err("there is none");
    assert!(matches!(&error, AmqpError::Broken(text) if text.contains(&queue)), "{error}");
    Observer::at(&url).await.declare(&queue, QueueDeclareOptions::default(), FieldTable::default()).await;
    publish(&amqp, [message(&queue, "x")]).await;
    common::drain_until(&amqp, ["x".to_owned()]).await;
}

#[tokio::test]
async fn a_queue_that_was_deleted_is_made_again() {
    let (url, queue) = (rabbitmq_url(), name("deleted"));
    let amqp = consuming(&url, &[Queue::new(&queue)]).await;
    assert!(take(&amqp, 1, MOMENT).await.is_empty());
    let taking = take(&amqp, 1, PATIENCE);
    Observer::at(&url).await.delete(&queue).await;
    drop(taking);
    let began = Instant::now();
    while amqp.publish(vec![message(&queue, "x")]).await != [Published::Confirmed] {
        assert!(began.elapsed() < PATIENCE, "it is made again");
        // The consumer notices by itself, and here by the next take.
        drop(amqp.take(1, MOMENT, &CancellationToken::new()).await);
    }
    common::drain_until(&amqp, ["x".to_owned()]).await;
}

#[tokio::test]
async fn every_listener_of_an_exchange_hears_everything_once() {
    let (url, exchange) = (rabbitmq_url(), name("control"));
    let amqp = open(&url, Options::default()).await.expect("it opens");
    let fanout = Exchange { lasting: Lasting::Transient, ..Exchange::new(&exchange, "fanout") };
    let mut listeners = Vec::new();
    for number in 0..2 {
        let queue = Queue::new(&format!("{exchange}-{number}"))
            .lasting(Lasting::Exclusive)
            .with("x-expires", 10_000)
            .with("x-message-ttl", 5_000);
        let bindings = vec![Binding::new(&queue.name, &exchange, "")];
        listeners.push(amqp.listen(&queue, vec![fanout.clone()], bindings).await.expect("it listens"));
    }
    for word in ["ping", "stats"] {
        publish(&amqp, [Message { exchange: exchange.clone(), ..message("", word) }]).await;
    }
    for listener in &mut listeners {
        for word in ["ping", "stats"] {
            let heard = tokio::time::timeout(PATIENCE, listener.next()).await.expect("in time").expect("it is open");
            assert_eq!(heard.body, word.as_bytes());
        }
    }
    amqp.close().await;
    assert!(listeners[0].next().await.is_none(), "it ends with its transport");
}
