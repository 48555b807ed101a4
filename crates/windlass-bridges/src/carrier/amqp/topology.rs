//! What must be there on a broker for the programs at the other end, as data.
//!
//! They declare it, too, in whatever order they start: names, kinds and arguments are what their versions declare, and what
//! is there otherwise is used as it is.

use serde_json::{Map, Value, json};
use windlass_amqp::{Binding, Exchange, ExchangeBinding, Lasting, Queue, Topology};
use windlass_core::QueueName;

/// The highest level of Celery's delays: a message waits 2ⁿ s in the queue of level n, for each n whose digit is 1.
const DELAY_LEVEL_MAX: usize = 27;
/// Where messages go that have waited.
const DELAYED_DELIVERY: &str = "celery_delayed_delivery";

/// How the queues of a Celery application are declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CeleryQueues {
    /// As Celery does by default.
    Classic {
        /// `task_queue_max_priority`: how many priorities the broker tells apart; without it, none.
        max_priority: Option<u8>,
    },
    /// `task_default_queue_type = "quorum"`. They know no priority of a message.
    Quorum,
    /// The same with exchanges of the type `topic`, for which Celery delays messages in the broker.
    QuorumDelayed,
}

impl CeleryQueues {
    fn queue(self, name: &str) -> Queue {
        match self {
            Self::Classic { max_priority: None } => Queue::new(name),
            Self::Classic { max_priority: Some(max) } => Queue::new(name).with("x-max-priority", max),
            Self::Quorum | Self::QuorumDelayed => Queue::new(name).with("x-queue-type", "quorum"),
        }
    }

    fn exchange(self, name: &str) -> Exchange {
        match self {
            Self::Classic { .. } | Self::Quorum => Exchange::new(name, "direct"),
            Self::QuorumDelayed => Exchange::new(name, "topic"),
        }
    }
}

/// What a worker of Celery 5 declares for these queues.
pub fn celery_topology(queues: &[QueueName], kind: CeleryQueues) -> Topology {
    let names = || queues.iter().map(QueueName::as_str);
    let mut topology = Topology {
        exchanges: names().map(|name| kind.exchange(name)).collect(),
        queues: names().map(|name| kind.queue(name)).collect(),
        bindings: names().map(|name| Binding::new(name, name, name)).collect(),
        exchange_bindings: Vec::new(),
    };
    if kind == CeleryQueues::QuorumDelayed {
        topology.join(&delays());
        for name in names() {
            let any_delay = format!("#.{name}");
            topology.bindings.push(Binding::new(name, name, &any_delay));
            topology.exchange_bindings.push(ExchangeBinding::new(DELAYED_DELIVERY, name, &any_delay));
        }
    }
    topology
}

/// The net in which Celery's messages wait. A routing key begins with 28 binary digits; at each level a message waits when its
/// digit is 1, and goes on to the next level at once when it is 0.
fn delays() -> Topology {
    let name = |level: usize| format!("celery_delayed_{level}");
    let mut net = Topology { exchanges: vec![Exchange::new(DELAYED_DELIVERY, "topic")], ..Topology::default() };
    for level in (0..=DELAY_LEVEL_MAX).rev() {
        let (this, next) = (name(level), level.checked_sub(1).map_or_else(|| DELAYED_DELIVERY.to_owned(), name));
        let digits_before = "*.".repeat(DELAY_LEVEL_MAX - level);
        let queue = Queue::new(&this)
            .with("x-queue-type", "quorum")
            .with("x-overflow", "reject-publish")
            .with("x-message-ttl", (1_u64 << level) * 1000)
            .with("x-dead-letter-exchange", next.as_str())
            .with("x-dead-letter-strategy", "at-least-once");
        net.bindings.push(Binding::new(&this, &this, &format!("{digits_before}1.#")));
        net.exchange_bindings.push(ExchangeBinding::new(&this, &next, &format!("{digits_before}0.#")));
        net.exchanges.push(Exchange::new(&this, "topic"));
        net.queues.push(queue);
    }
    net
}

/// Which version of taskiq-aio-pika declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TaskiqProfile {
    /// 0.6: replicated queues that survive restarts.
    #[default]
    V0_6,
    /// 0.4: classic queues that do not.
    V0_4,
}

/// What a queue beside the task queues is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beside {
    /// There is one for all of them, with this name.
    All(String),
    /// Each has its own, whose name is that of the task queue with this behind it.
    Each(&'static str),
}

impl Beside {
    /// The name of the one beside this task queue.
    pub fn name_for(&self, queue: &QueueName) -> String {
        match self {
            Self::All(name) => name.clone(),
            Self::Each(ending) => format!("{queue}{ending}"),
        }
    }

    /// Each of them with the first task queue that it is beside.
    fn names<'queue>(&self, queues: &'queue [QueueName]) -> Vec<(String, &'queue QueueName)> {
        let mut names: Vec<_> = queues.iter().map(|queue| (self.name_for(queue), queue)).collect();
        names.dedup_by(|later, first| later.0 == first.0);
        names
    }
}

/// What an application of TaskIQ declares on RabbitMQ.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskiqTopology {
    /// How.
    pub profile: TaskiqProfile,
    /// `taskiq`, where messages are published to.
    pub exchange: String,
    /// The task queues, `taskiq` alone by default. Not empty.
    pub queues: Vec<QueueName>,
    /// Where rejected messages go.
    pub dead_letter_queue: Beside,
    /// Where messages with the label `delay` wait. Of 0.4 every application has one; of 0.6 who asks for it.
    pub delay_queue: Option<Beside>,
    /// Arguments of the task queues, over those of the profile: `x-max-priority`, another `x-queue-type`.
    pub arguments: Map<String, Value>,
}

impl TaskiqTopology {
    /// What is declared when nothing else is said.
    pub fn of(profile: TaskiqProfile) -> Self {
        let (dead_letter_queue, delay_queue) = match profile {
            TaskiqProfile::V0_6 => (Beside::All("taskiq.dead_letter".to_owned()), None),
            TaskiqProfile::V0_4 => (Beside::Each(".dead_letter"), Some(Beside::Each(".delay"))),
        };
        Self {
            profile,
            exchange: "taskiq".to_owned(),
            queues: vec![QueueName::known("taskiq")],
            dead_letter_queue,
            delay_queue,
            arguments: Map::new(),
        }
    }
}

/// What taskiq-aio-pika declares.
pub fn taskiq_topology(of: &TaskiqTopology) -> Topology {
    let (lasting, kind) = match of.profile {
        TaskiqProfile::V0_6 => (Lasting::Durable, Some("quorum")),
        TaskiqProfile::V0_4 => (Lasting::Transient, None),
    };
    let queue = |name: &str| {
        let queue = Queue::new(name).lasting(lasting);
        kind.into_iter().fold(queue, |queue, kind| queue.with("x-queue-type", kind))
    };
    let task_queue = |name: &QueueName| {
        let mut queue = queue(name.as_str())
            .with("x-dead-letter-exchange", "")
            .with("x-dead-letter-routing-key", of.dead_letter_queue.name_for(name));
        queue.arguments.extend(of.arguments.clone());
        queue
    };
    let binding = |name: &QueueName| {
        let routing_key = match of.profile {
            TaskiqProfile::V0_6 => name.as_str(),
            TaskiqProfile::V0_4 => "#",
        };
        Binding::new(name.as_str(), &of.exchange, routing_key)
    };
    let mut queues: Vec<Queue> = of.dead_letter_queue.names(&of.queues).iter().map(|(name, _)| queue(name)).collect();
    queues.extend(of.queues.iter().map(task_queue));
    let delays = of.delay_queue.iter().flat_map(|beside| beside.names(&of.queues));
    queues.extend(delays.map(|(name, first)| delay_queue(of, &name, first).lasting(lasting)));
    Topology {
        exchanges: vec![Exchange { lasting, ..Exchange::new(&of.exchange, "topic") }],
        queues,
        bindings: of.queues.iter().map(binding).collect(),
        exchange_bindings: Vec::new(),
    }
}

/// The queue whose dead letters are messages that have waited.
fn delay_queue(of: &TaskiqTopology, name: &str, then: &QueueName) -> Queue {
    let queue = Queue::new(name).with("x-dead-letter-routing-key", then.as_str());
    match of.profile {
        TaskiqProfile::V0_6 => {
            queue.with("x-dead-letter-exchange", of.exchange.as_str()).with("x-queue-type", json!("classic"))
        }
        TaskiqProfile::V0_4 => queue.with("x-dead-letter-exchange", ""),
    }
}
