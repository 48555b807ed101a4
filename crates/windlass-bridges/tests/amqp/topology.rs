//! What is declared, compared with what real programs declared, and on a real broker.

use serde_json::{Map, json};
use windlass_amqp::{Amqp, Options, Published, Queue, Topology};
use windlass_bridges::carrier::{
    Beside, Carrier as _, CeleryQueues, Outgoing, TaskiqProfile, TaskiqTopology, celery_topology, publish,
    taskiq_topology,
};
use windlass_core::QueueName;
use windlass_servers::{RabbitMq, rabbitmq_url};
use windlass_wire::Frame;
use windlass_wire::celery::delayed_routing_key;

use crate::recorded::{declared, recording};
use crate::{bodies, frame, glance, name, open, send, tags, take_all, with_body};

/// Every declaration as text, in one order.
fn sorted(topology: &Topology) -> Vec<String> {
    let Topology { exchanges, queues, bindings, exchange_bindings } = topology;
    let mut lines: Vec<String> = exchanges.iter().map(|exchange| format!("{exchange:?}")).collect();
    lines.extend(queues.iter().map(|queue| format!("{queue:?}")));
    lines.extend(bindings.iter().map(|binding| format!("{binding:?}")));
    lines.extend(exchange_bindings.iter().map(|binding| format!("{binding:?}")));
    lines.sort();
    lines.dedup();
    lines
}

#[test]
fn celery_queues_are_declared_as_celery_declares_them() {
    let cases = [
        ("flow-amqp-startup", "worker_to_broker", "celery", CeleryQueues::Classic { max_priority: None }),
        ("amqp-max-priority", "client_frames", "interop.prio2", CeleryQueues::Classic { max_priority: Some(10) }),
        ("amqp-quorum-native-delay", "declarations_by_worker", "interop.quorum2", CeleryQueues::QuorumDelayed),
    ];
    for (recorded, frames, queue, kind) in cases {
        let theirs = declared(&recording("celery", recorded)[frames]);
        let ours = celery_topology(&[QueueName::known(queue)], kind);
        assert_eq!(sorted(&ours), sorted(&theirs), "{recorded}");
    }
    let quorum = celery_topology(&[QueueName::known("q")], CeleryQueues::Quorum);
    assert_eq!(quorum.queues, [Queue::new("q").with("x-queue-type", "quorum")]);
}

#[test]
fn taskiq_queues_are_declared_as_taskiq_declares_them() {
    let theirs = declared(&recording("taskiq", "aiopika-startup")["client_frames"]);
    let of = TaskiqTopology {
        delay_queue: Some(Beside::All("taskiq.delay".to_owned())),
        ..TaskiqTopology::of(TaskiqProfile::V0_6)
    };
    assert_eq!(sorted(&taskiq_topology(&of)), sorted(&theirs));
}

#[test]
fn arguments_of_taskiq_queues_go_over_those_of_the_version() {
    let arguments = json!({"x-max-priority": 9, "x-queue-type": "classic"});
    let arguments: Map<_, _> = arguments.as_object().cloned().expect("an object");
    let topology = taskiq_topology(&TaskiqTopology { arguments, ..TaskiqTopology::of(TaskiqProfile::V0_6) });
    let [dead_letters, tasks] = topology.queues.as_slice() else { panic!("two queues: {topology:?}") };
    assert_eq!(dead_letters.arguments["x-queue-type"], "quorum");
    assert_eq!((&tasks.arguments["x-max-priority"], &tasks.arguments["x-queue-type"]), (&json!(9), &json!("classic")));
    assert_eq!(tasks.arguments["x-dead-letter-routing-key"], "taskiq.dead_letter");
}

/// Its sources say so: there is one application for each queue, and all of its queues are named after that one.
#[test]
fn queues_of_taskiq_0_4_have_dead_letters_and_delays_of_their_own() {
    let queues = vec![QueueName::known("orders"), QueueName::known("mail")];
    let topology = taskiq_topology(&TaskiqTopology { queues, ..TaskiqTopology::of(TaskiqProfile::V0_4) });
    let argument = |queue: &Queue, name: &str| queue.arguments.get(name).cloned().unwrap_or_default();
    let declared = topology.queues.iter().map(|queue| {
        let (exchange, then) =
            (argument(queue, "x-dead-letter-exchange"), argument(queue, "x-dead-letter-routing-key"));
        (queue.name.as_str(), exchange, then)
    });
    let dead = |name| (name, json!(null), json!(null));
    let goes = |name, then: &str| (name, json!(""), json!(then));
    assert_eq!(
        declared.collect::<Vec<_>>(),
        [
            dead("orders.dead_letter"),
            dead("mail.dead_letter"),
            goes("orders", "orders.dead_letter"),
            goes("mail", "mail.dead_letter"),
            goes("orders.delay", "orders"),
            goes("mail.delay", "mail"),
        ]
    );
}

/// Declares it twice on the shared broker, by two programs: it differs in nothing.
async fn differs_in_nothing(topology: &Topology) {
    for _ in 0..2 {
        let options = Options { topology: topology.clone(), consume: Vec::new() };
        let amqp = Amqp::open(rabbitmq_url().parse().expect("a URL"), options).await.expect("it opens");
        assert_eq!(amqp.differences(), []);
    }
}

#[tokio::test]
async fn celery_messages_come_by_their_exchange_and_by_the_name_of_their_queue() {
    for kind in [CeleryQueues::Classic { max_priority: Some(9) }, CeleryQueues::Quorum] {
        let queues = [name("celery-a"), name("celery-b")];
        let topology = celery_topology(&queues, kind);
        differs_in_nothing(&topology).await;
        let carrier = open(&rabbitmq_url(), &topology, &queues).await;
        for queue in &queues {
            let by_exchange =
                Outgoing { exchange: queue.to_string(), ..Outgoing::to_queue(queue.as_str(), with_body("exchange")) };
            send(&carrier, [by_exchange, Outgoing::to_queue(queue.as_str(), with_body("name"))]).await;
            let mut came = bodies(&take_all(&carrier, std::slice::from_ref(queue), 2).await);
            came.sort();
            assert_eq!(came, ["exchange", "name"], "{kind:?}");
        }
        assert_eq!(carrier.amqp().differences(), []);
    }
}

#[tokio::test]
async fn a_celery_queue_that_is_there_otherwise_is_used_as_it_is_and_named() {
    let queue = name("otherwise");
    let queues = std::slice::from_ref(&queue);
    differs_in_nothing(&celery_topology(queues, CeleryQueues::Classic { max_priority: None })).await;
    let expected = celery_topology(queues, CeleryQueues::Classic { max_priority: Some(9) });
    let carrier = open(&rabbitmq_url(), &expected, queues).await;
    let differences: Vec<_> = carrier.amqp().differences().into_iter().map(|it| (it.name, it.argument)).collect();
    assert_eq!(differences, [(queue.to_string(), "x-max-priority".to_owned())]);
    send(&carrier, [Outgoing::to_queue(queue.as_str(), with_body("x"))]).await;
    assert_eq!(bodies(&take_all(&carrier, queues, 1).await), ["x"]);
}

#[tokio::test]
async fn taskiq_messages_come_at_once_and_delayed_and_rejected_ones_are_dead_letters() {
    for (profile, has_delay) in [(TaskiqProfile::V0_6, true), (TaskiqProfile::V0_4, true), (TaskiqProfile::V0_6, false)]
    {
        let (queue, dead) = (name("taskiq"), name("dead"));
        let delay = name("delay").to_string();
        let of = TaskiqTopology {
            exchange: name("taskiq-exchange").to_string(),
            queues: vec![queue.clone()],
            dead_letter_queue: Beside::All(dead.to_string()),
            delay_queue: has_delay.then(|| Beside::All(delay.clone())),
            ..TaskiqTopology::of(profile)
        };
        let topology = taskiq_topology(&of);
        differs_in_nothing(&topology).await;
        let queues = [queue.clone(), dead.clone()];
        let carrier = open(&rabbitmq_url(), &topology, &queues).await;
        let routing_key = match profile {
            TaskiqProfile::V0_6 => queue.to_string(),
            TaskiqProfile::V0_4 => "interop:add".to_owned(),
        };
        let now = Outgoing { exchange: of.exchange.clone(), routing_key, ..Outgoing::to_queue("", with_body("now")) };
        send(&carrier, [now]).await;
        let taken = take_all(&carrier, &queues, 1).await;
        assert_eq!((bodies(&taken), &taken[0].queue), (vec!["now".to_owned()], &queue), "{profile:?}");
        let tag = windlass_amqp::Tag::of_bytes(&taken[0].tag.0);
        carrier.amqp().reject(&[tag]).await.expect("it is open");
        let letter = take_all(&carrier, &queues, 1).await;
        assert_eq!((bodies(&letter), &letter[0].queue), (vec!["now".to_owned()], &dead), "{profile:?}");

        let mut later = with_body("later");
        later.properties.expiration = Some("50".to_owned());
        let published = publish(carrier.amqp(), vec![Outgoing::to_queue(&delay, later)]).await;
        if has_delay {
            assert_eq!(published, [Published::Confirmed]);
            let delayed = take_all(&carrier, &queues, 1).await;
            assert_eq!((bodies(&delayed), &delayed[0].queue), (vec!["later".to_owned()], &queue), "{profile:?}");
        } else {
            assert!(matches!(published.as_slice(), [Published::Unroutable(_)]), "{published:?}");
        }
    }
}

/// On a broker of its own: the names of the queues in which messages wait are the same everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn celery_messages_wait_in_the_broker_and_come_with_their_own_routing_key() {
    let rabbit = RabbitMq::start().unwrap_or_else(|error| panic!("{error}"));
    let queues = [name("delayed")];
    let queue = queues[0].as_str();
    let carrier = open(&rabbit.url(), &celery_topology(&queues, CeleryQueues::QuorumDelayed), &queues).await;
    let after = |seconds: u64| Outgoing {
        exchange: "celery_delayed_27".to_owned(),
        routing_key: delayed_routing_key(seconds, queue),
        ..Outgoing::to_queue("", with_body(&seconds.to_string()))
    };
    send(&carrier, [after(3), after(1), after(0)]).await;
    let mut came = Vec::new();
    for _ in 0..3 {
        let taken = take_all(&carrier, &queues, 1).await;
        let Frame { properties, .. } = frame(&taken[0]);
        assert_eq!((properties.routing_key.as_str(), properties.redelivered), (queue, false));
        came.extend(bodies(&taken));
        carrier.accept(&tags(&taken)).await.expect("it is open");
    }
    assert_eq!(came, ["0", "1", "3"]);
    // Somebody who declares it all again finds no difference, and what waits for a year waits.
    send(&carrier, [after(31_536_000)]).await;
    let again = open(&rabbit.url(), &celery_topology(&queues, CeleryQueues::QuorumDelayed), &queues).await;
    assert_eq!(again.amqp().differences(), []);
    assert!(glance(&again, &queues).await.is_empty());
}
