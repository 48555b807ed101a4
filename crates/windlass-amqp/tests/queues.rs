//! The queues that are taken from change while it goes on.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{
    Observer, PATIENCE, bodies, consuming, drain_until, message, name, numbered, open, publish, tags, take, take_all,
};
use windlass_amqp::{Binding, Exchange, ExchangeBinding, Finished, Message, Options, Queue, Topology};
use windlass_servers::rabbitmq_url;

/// Enough for what lies there already.
const MOMENT: Duration = Duration::from_millis(300);

/// The bodies that one take of each of these numbers brings, sorted.
async fn sorted(amqp: &windlass_amqp::Amqp, count: usize) -> Vec<String> {
    let mut seen = bodies(&take_all(amqp, count).await);
    seen.sort();
    seen
}

#[tokio::test]
async fn a_queue_that_is_left_brings_nothing_and_what_was_taken_from_it_is_accepted() {
    let (url, left, kept) = (rabbitmq_url(), name("left"), name("kept"));
    let amqp = consuming(&url, &[Queue::new(&left), Queue::new(&kept)]).await;
    publish(&amqp, numbered(&left, 2)).await;
    let held = take_all(&amqp, 2).await;
    amqp.consume(std::slice::from_ref(&kept)).await.expect("it is open");
    publish(&amqp, [message(&left, "left"), message(&kept, "kept")]).await;
    assert_eq!(bodies(&take_all(&amqp, 1).await), ["kept"]);
    assert!(take(&amqp, 10, MOMENT).await.is_empty());
    assert_eq!(amqp.accept(&tags(&held)).await.expect("it is open"), [Finished::Heard; 2]);
    let observer = Observer::at(&url).await;
    observer.until_ready(&left, 1).await;

    amqp.consume(&[kept, left.clone()]).await.expect("it is open");
    assert_eq!(bodies(&take_all(&amqp, 1).await), ["left"], "it is taken from again, and what was accepted is gone");
}

#[tokio::test]
async fn what_came_of_a_queue_that_is_left_and_was_not_handed_out_goes_back() {
    let (url, left, kept) = (rabbitmq_url(), name("left"), name("kept"));
    let amqp = consuming(&url, &[Queue::new(&left), Queue::new(&kept)]).await;
    publish(&amqp, numbered(&left, 20)).await;
    // Consumers are there, and more has come than is handed out.
    let held = take(&amqp, 1, PATIENCE).await;
    amqp.consume(std::slice::from_ref(&kept)).await.expect("it is open");
    Observer::at(&url).await.until_ready(&left, 19).await;
    assert_eq!(amqp.accept(&tags(&held)).await.expect("it is open"), [Finished::Heard]);
}

#[tokio::test]
async fn a_take_that_waits_goes_on_with_the_new_queues() {
    let (url, old, new) = (rabbitmq_url(), name("old"), name("new"));
    let amqp = Arc::new(consuming(&url, &[Queue::new(&old)]).await);
    amqp.declare(&Topology { queues: vec![Queue::new(&new)], ..Topology::default() }).await.expect("it is declared");
    let taking = tokio::spawn({
        let amqp = Arc::clone(&amqp);
        async move { take(&amqp, 5, PATIENCE).await }
    });
    amqp.consume(std::slice::from_ref(&new)).await.expect("it is open");
    publish(&amqp, [message(&new, "x")]).await;
    assert_eq!(bodies(&taking.await.expect("it ends")), ["x"]);
}

#[tokio::test]
async fn without_any_queue_nothing_comes_until_there_is_one() {
    let (url, queue) = (rabbitmq_url(), name("none"));
    let amqp = consuming(&url, &[Queue::new(&queue)]).await;
    publish(&amqp, [message(&queue, "x")]).await;
    amqp.consume(&[]).await.expect("it is open");
    assert!(take(&amqp, 5, MOMENT).await.is_empty());
    amqp.consume(&[queue]).await.expect("it is open");
    assert_eq!(bodies(&take_all(&amqp, 1).await), ["x"]);
}

#[tokio::test]
async fn a_quorum_queue_joins_a_classic_one_whose_messages_are_held() {
    let (url, classic, quorum) = (rabbitmq_url(), name("classic"), name("quorum"));
    let amqp = consuming(&url, &[Queue::new(&classic)]).await;
    let more = Topology { queues: vec![Queue::new(&quorum).with("x-queue-type", "quorum")], ..Topology::default() };
    amqp.declare(&more).await.expect("it is declared");
    publish(&amqp, numbered(&classic, 2)).await;
    let held = take_all(&amqp, 2).await;
    amqp.consume(&[classic.clone(), quorum.clone()]).await.expect("it is open");
    publish(&amqp, [message(&classic, "classic"), message(&quorum, "quorum")]).await;
    assert_eq!(sorted(&amqp, 2).await, ["classic", "quorum"]);
    assert_eq!(amqp.accept(&tags(&held)).await.expect("it is open"), [Finished::Heard; 2], "the channel is the same");

    amqp.consume(std::slice::from_ref(&classic)).await.expect("it is open");
    publish(&amqp, [message(&quorum, "not now"), message(&classic, "now")]).await;
    assert_eq!(bodies(&take_all(&amqp, 1).await), ["now"]);
}

#[tokio::test]
async fn what_came_of_a_second_quorum_queue_goes_back_though_its_consumer_has_ended() {
    let (url, names) = (rabbitmq_url(), [name("quorum-a"), name("quorum-b")]);
    let queues = names.each_ref().map(|name| Queue::new(name).with("x-queue-type", "quorum"));
    let (amqp, observer) = (consuming(&url, &queues).await, Observer::at(&url).await);
    for queue in &names {
        publish(&amqp, [message(queue, "x")]).await;
    }
    // Each consumer brings one at least; the acceptance ends them.
    let taken = take(&amqp, 1, PATIENCE).await;
    amqp.accept(&tags(&taken)).await.expect("it is open");
    let other = names.iter().find(|name| ***name != *taken[0].queue).expect("another");
    observer.until_ready(other, 1).await;
}

#[tokio::test]
async fn queues_that_change_all_the_time_lose_nothing() {
    const COUNT: usize = 120;
    let (url, names) = (rabbitmq_url(), [name("storm-a"), name("storm-b"), name("storm-c")]);
    let queues = names.each_ref().map(|name| Queue::new(name));
    let amqp = Arc::new(consuming(&url, &queues).await);
    for queue in &names {
        publish(&amqp, (0..COUNT).map(|number| message(queue, format!("{queue} {number}")))).await;
    }
    let changing = tokio::spawn({
        let (amqp, names) = (Arc::clone(&amqp), names.clone());
        async move {
            let mut random = fastrand::Rng::with_seed(4711);
            for _ in 0..50 {
                let some: Vec<String> = names.iter().filter(|_| random.bool()).cloned().collect();
                amqp.consume(&some).await.expect("it is open");
            }
            amqp.consume(&names).await.expect("it is open");
        }
    });
    let wanted = names.iter().flat_map(|queue| (0..COUNT).map(move |number| format!("{queue} {number}")));
    drain_until(&amqp, wanted).await;
    changing.await.expect("it ends");
    assert!(take(&amqp, 1, MOMENT).await.is_empty(), "each came once");
}

#[tokio::test]
async fn acknowledgements_are_heard_with_consumers_of_every_kind_and_without() {
    let url = rabbitmq_url();
    for kind in ["classic", "quorum"] {
        let queue = name(kind);
        let amqp = consuming(&url, &[Queue::new(&queue).with("x-queue-type", kind)]).await;
        publish(&amqp, numbered(&queue, 6)).await;
        let held = tags(&take_all(&amqp, 6).await);
        assert_eq!(amqp.accept(&held[..2]).await.expect("it is open"), [Finished::Heard; 2], "{kind}");
        amqp.consume(&[]).await.expect("it is open");
        let twice = [held[2], held[0], held[2]];
        let finished = [Finished::Heard, Finished::Void, Finished::Void];
        assert_eq!(amqp.accept(&twice).await.expect("it is open"), finished, "{kind}, without consumers");
        assert_eq!(amqp.put_back(&held[3..4]).await.expect("it is open"), [Finished::Heard], "{kind}");
        drop(amqp);
        Observer::at(&url).await.until_ready(&queue, 3).await;
    }
}

#[tokio::test]
async fn exchanges_are_bound_to_each_other() {
    let (url, queue, first, second) = (rabbitmq_url(), name("bound"), name("first"), name("second"));
    let topology = Topology {
        exchanges: [&first, &second].map(|name| Exchange::new(name, "topic")).to_vec(),
        queues: vec![Queue::new(&queue)],
        bindings: vec![Binding::new(&queue, &second, "#.end")],
        exchange_bindings: vec![ExchangeBinding::new(&first, &second, "*.middle.#")],
    };
    let amqp = open(&url, Options { topology, consume: vec![queue] }).await.expect("it opens");
    let to = |routing_key: &str| Message { exchange: first.clone(), ..message(routing_key, routing_key) };
    publish(&amqp, [to("a.middle.end")]).await;
    assert_eq!(bodies(&take_all(&amqp, 1).await), ["a.middle.end"]);
}
