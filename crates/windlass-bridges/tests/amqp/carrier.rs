//! Messages in and out, and what breaks meanwhile.

use std::time::Instant;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use windlass_amqp::{BODY_BYTES_MAX, BODY_BYTES_OF_TOO_LARGE, Published, Queue, Topology, VALUES_MAX};
use windlass_bridges::carrier::{
    AmqpQueues, Carrier as _, CeleryQueues, Content, Outgoing, all_confirmed, celery_topology, publish,
};
use windlass_core::QueueName;
use windlass_core::bridge::{LetGo, Returned, Tag, TransportError};
use windlass_servers::{Proxy, RabbitMq, rabbitmq_url};
use windlass_wire::{Frame, Properties};

use crate::{MOMENT, PATIENCE, bodies, frame, glance, name, open, recorded, send, tags, take_all, with_body};

fn classic(queues: &[QueueName]) -> Topology {
    celery_topology(queues, CeleryQueues::Classic { max_priority: None })
}

fn numbered(queue: &QueueName, count: usize) -> Vec<Outgoing> {
    (0..count).map(|number| Outgoing::to_queue(queue.as_str(), with_body(&number.to_string()))).collect()
}

/// A line to the shared server that can break, and the URL at this end of it.
fn line() -> (Proxy, String) {
    let url = rabbitmq_url();
    let address = url.split(['@', '/']).nth(3).expect("an address").to_owned();
    let proxy = Proxy::to(address.parse().expect("an address")).unwrap_or_else(|error| panic!("{error}"));
    let url = url.replace(&address, &proxy.address().to_string());
    (proxy, url)
}

/// Takes one, however often the transport is away.
async fn take_when_it_is_back(carrier: &AmqpQueues, queues: &[QueueName]) -> Vec<windlass_bridges::carrier::Carried> {
    let began = Instant::now();
    loop {
        match carrier.take(queues, 1, MOMENT, &CancellationToken::new()).await {
            Ok(taken) if !taken.is_empty() => return taken,
            Ok(_) | Err(TransportError::Unreachable(_)) => assert!(began.elapsed() < PATIENCE, "it comes back"),
            Err(refused) => panic!("{refused}"),
        }
    }
}

#[tokio::test]
async fn what_is_accepted_is_let_go_and_does_not_come_again() {
    let queues = [name("accepted")];
    let carrier = open(&rabbitmq_url(), &classic(&queues), &queues).await;
    send(&carrier, numbered(&queues[0], 3)).await;
    let taken = take_all(&carrier, &queues, 3).await;
    assert_eq!(bodies(&taken), ["0", "1", "2"]);
    assert!(taken.iter().all(|one| one.identity.is_none() && !one.again && one.queue == queues[0]));
    assert_eq!(carrier.accept(&tags(&taken)).await.expect("it is open"), [LetGo::Unconfirmed; 3]);
    assert_eq!(carrier.accept(&tags(&taken)).await.expect("safe to repeat"), [LetGo::Perhaps; 3]);
    let foreign = Tag(b"of another carrier".as_slice().into());
    assert_eq!(carrier.accept(&[foreign]).await.expect("it is open"), [LetGo::Perhaps]);
    assert_eq!(carrier.recover().await.expect("there is nothing to do"), 0);
    drop(carrier);
    let other = open(&rabbitmq_url(), &Topology::default(), &queues).await;
    assert!(glance(&other, &queues).await.is_empty());
}

#[tokio::test]
async fn only_the_queues_that_are_asked_for_are_taken_from() {
    let queues = [name("one"), name("two")];
    let carrier = open(&rabbitmq_url(), &classic(&queues), &queues).await;
    for queue in &queues {
        send(&carrier, [Outgoing::to_queue(queue.as_str(), with_body(queue.as_str()))]).await;
    }
    let first = glance(&carrier, &queues[1..]).await;
    assert_eq!(bodies(&first), [queues[1].as_str()]);
    assert!(glance(&carrier, &[]).await.is_empty());
    assert_eq!(bodies(&glance(&carrier, &queues).await), [queues[0].as_str()]);
    assert_eq!(carrier.accept(&tags(&first)).await.expect("it is open"), [LetGo::Unconfirmed]);
}

#[tokio::test]
async fn what_is_put_back_or_was_held_by_one_that_is_gone_comes_again_and_says_so() {
    let queues = [name("again")];
    let first = open(&rabbitmq_url(), &classic(&queues), &queues).await;
    send(&first, numbered(&queues[0], 2)).await;
    let taken = take_all(&first, &queues, 2).await;
    for (one, why) in taken.iter().zip([Returned::Unstored, Returned::Doubtful]) {
        first.put_back(std::slice::from_ref(&one.tag), why).await.expect("it is open");
    }
    let taken = take_all(&first, &queues, 2).await;
    assert!(taken.iter().all(|one| one.again && frame(one).properties.redelivered), "{taken:?}");
    drop(first);
    let second = open(&rabbitmq_url(), &Topology::default(), &queues).await;
    let taken = take_all(&second, &queues, 2).await;
    let mut came = bodies(&taken);
    came.sort();
    assert_eq!(came, ["0", "1"]);
    assert!(taken.iter().all(|one| one.again));
}

#[tokio::test]
async fn a_hush_ends_a_take_at_once() {
    let queues = [name("hush")];
    let carrier = open(&rabbitmq_url(), &classic(&queues), &queues).await;
    let hush = CancellationToken::new();
    let (taken, ()) = tokio::join!(carrier.take(&queues, 1, PATIENCE * 10, &hush), async { hush.cancel() });
    assert!(taken.expect("it is open").is_empty());
}

#[tokio::test]
async fn a_connection_that_is_cut_brings_again_what_was_not_accepted() {
    let (proxy, url) = line();
    let queues = [name("cut")];
    let carrier = open(&url, &classic(&queues), &queues).await;
    send(&carrier, numbered(&queues[0], 1)).await;
    let taken = take_all(&carrier, &queues, 1).await;
    proxy.cut();
    let again = take_when_it_is_back(&carrier, &queues).await;
    assert!(again[0].again);
    assert_eq!(carrier.accept(&tags(&taken)).await.expect("it is open"), [LetGo::Perhaps], "it is in other hands");
    assert_eq!(carrier.accept(&tags(&again)).await.expect("it is open"), [LetGo::Unconfirmed]);
    assert!(glance(&carrier, &queues).await.is_empty());
}

#[tokio::test]
async fn an_acceptance_that_may_not_have_been_heard_may_come_again() {
    let (proxy, url) = line();
    let queues = [name("unheard")];
    let carrier = open(&url, &classic(&queues), &queues).await;
    send(&carrier, numbered(&queues[0], 1)).await;
    let accepted = tags(&take_all(&carrier, &queues, 1).await);
    proxy.stall();
    let (let_go, ()) = tokio::join!(carrier.accept(&accepted), async { proxy.cut() });
    assert_eq!(let_go.expect("it is open"), [LetGo::Perhaps]);
    proxy.resume();
    assert!(take_when_it_is_back(&carrier, &queues).await[0].again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_returns_brings_everything_that_was_not_accepted() {
    let mut rabbit = RabbitMq::start().unwrap_or_else(|error| panic!("{error}"));
    let queues = [name("restarted")];
    let carrier = open(&rabbit.url(), &classic(&queues), &queues).await;
    send(&carrier, numbered(&queues[0], 3)).await;
    let taken = take_all(&carrier, &queues, 2).await;
    assert_eq!(carrier.accept(&tags(&taken[..1])).await.expect("it is open"), [LetGo::Unconfirmed]);
    rabbit.stop();
    let away = carrier.take(&queues, 1, MOMENT, &CancellationToken::new()).await;
    assert!(matches!(away, Err(TransportError::Unreachable(_))), "{away:?}");
    let published = publish(carrier.amqp(), vec![]).await;
    assert!(published.is_empty());
    rabbit.start_again().unwrap_or_else(|error| panic!("{error}"));
    let mut came = Vec::new();
    while came.len() < 2 {
        let again = take_when_it_is_back(&carrier, &queues).await;
        carrier.accept(&tags(&again)).await.expect("it is open");
        came.extend(bodies(&again));
    }
    came.sort();
    assert_eq!(came, ["1", "2"], "what was accepted is not among them");
}

#[tokio::test]
async fn the_greater_priority_comes_first() {
    let queues = [name("priority")];
    let topology = celery_topology(&queues, CeleryQueues::Classic { max_priority: Some(9) });
    let carrier = open(&rabbitmq_url(), &topology, &queues).await;
    let with = |priority: i64| {
        let properties = Properties { priority: Some(priority), ..Properties::default() };
        let body = priority.to_string().into_bytes();
        Outgoing::to_queue(queues[0].as_str(), Frame { properties, body, ..Frame::default() })
    };
    send(&carrier, [0, 4, 9, 1].map(with)).await;
    assert_eq!(bodies(&take_all(&carrier, &queues, 4).await), ["9", "4", "1", "0"]);
}

#[tokio::test]
async fn recorded_messages_of_real_clients_come_as_they_were_published() {
    let queues = [name("recorded")];
    let carrier = open(&rabbitmq_url(), &classic(&queues), &queues).await;
    for (recording, mut sent) in recorded::messages() {
        send(&carrier, [Outgoing::to_queue(queues[0].as_str(), sent.clone())]).await;
        let taken = take_all(&carrier, &queues, 1).await;
        sent.properties.routing_key = queues[0].to_string();
        assert_eq!(*frame(&taken[0]), sent, "{recording}");
        carrier.accept(&tags(&taken)).await.expect("it is open");
    }
}

#[tokio::test]
async fn what_is_too_large_to_be_read_says_so_and_the_next_one_comes() {
    let queues = [name("too-large")];
    let carrier = open(&rabbitmq_url(), &classic(&queues), &queues).await;
    let known_by = json!({"task": "add", "id": "42"}).as_object().cloned().expect("an object");
    let mut many = known_by.clone();
    many.insert("z".to_owned(), json!(vec![0; VALUES_MAX]));
    let large = Frame { headers: known_by, body: vec![b'x'; BODY_BYTES_MAX + 1], ..Frame::default() };
    let many = Frame { headers: many, ..with_body("many") };
    for frame in [large, many, with_body("next")] {
        send(&carrier, [Outgoing::to_queue(queues[0].as_str(), frame)]).await;
    }
    let taken = take_all(&carrier, &queues, 3).await;
    for (carried, (reason, bytes)) in
        taken.iter().zip([("the body takes", BODY_BYTES_OF_TOO_LARGE), ("4096 values", 4)])
    {
        let Content::Unreadable(frame, malformed) = &carried.content else { panic!("it can be read: {carried:?}") };
        assert!(malformed.to_string().contains(reason), "{malformed}");
        assert_eq!((&frame.headers["task"], &frame.headers["id"]), (&json!("add"), &json!("42")));
        assert_eq!(carried.content.raw().len(), bytes);
    }
    assert_eq!(frame(&taken[2]).body, b"next");
}

#[tokio::test]
async fn an_answer_to_somebody_who_is_gone_is_no_error_and_holds_nobody_up() {
    let (waits, gone, tasks) = (name("reply"), name("gone"), name("tasks"));
    let topology = Topology { queues: vec![Queue::new(waits.as_str())], ..Topology::default() };
    let queues = [waits.clone()];
    let carrier = open(&rabbitmq_url(), &topology, &queues).await;
    let mut outgoing = Vec::new();
    for number in 0..50 {
        outgoing.push(Outgoing::answer(gone.as_str(), with_body("nobody reads this")));
        outgoing.push(Outgoing::answer(waits.as_str(), with_body(&number.to_string())));
    }
    let published = publish(carrier.amqp(), outgoing).await;
    assert!(all_confirmed(&published).is_ok() && published == vec![Published::Confirmed; 100], "{published:?}");
    let taken = take_all(&carrier, &queues, 50).await;
    assert_eq!(bodies(&taken), (0..50).map(|number| number.to_string()).collect::<Vec<_>>(), "in order");
    assert!(taken.iter().all(|answer| frame(answer).properties.delivery_mode == Some(1)));

    // A task is another matter.
    let lost = Outgoing::to_queue(tasks.as_str(), with_body("x"));
    let wrong_properties = Properties { expiration: Some("soon".to_owned()), ..Properties::default() };
    let wrong = Outgoing::answer(waits.as_str(), Frame { properties: wrong_properties, ..Frame::default() });
    let published =
        publish(carrier.amqp(), vec![wrong, lost, Outgoing::answer(waits.as_str(), with_body("last"))]).await;
    let [Published::Refused(_), Published::Unroutable(_), Published::Confirmed] = published.as_slice() else {
        panic!("{published:?}")
    };
    let error = all_confirmed(&published).expect_err("two are nowhere");
    assert!(matches!(&error, TransportError::Refused(text) if text.contains("2 of 3")), "{error}");
}

#[tokio::test]
async fn who_is_not_let_in_is_refused_and_who_finds_nobody_tries_again() {
    let wrong_password = rabbitmq_url().replace("windlass:windlass", "windlass:wrong");
    let location = wrong_password.parse().expect("a URL");
    let refused = AmqpQueues::open(location, &Topology::default(), &[name("any")]).await.expect_err("it is not let in");
    assert!(matches!(&refused, TransportError::Refused(text) if text.contains("the password")), "{refused}");
    assert!(!refused.to_string().contains("wrong"), "{refused}");
    let location = "amqp://127.0.0.1:1".parse().expect("a URL");
    let nobody = AmqpQueues::open(location, &Topology::default(), &[name("any")]).await.expect_err("nobody listens");
    assert!(matches!(nobody, TransportError::Unreachable(_)), "{nobody}");
}
