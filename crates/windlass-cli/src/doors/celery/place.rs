//! The broker and the place of results, as a client of Celery's uses them.

use std::time::Duration;

use windlass::bridges::redis::{Command, Line, Reply};
use windlass::bridges::url::Over;
use windlass::bridges::wire::celery::{Broker, control, result};
use windlass::bridges::wire::{Frame, kombu};
use windlass::bridges::{BridgeUrl, RedisLocation};
use windlass::{QueueName, TaskId};

use crate::exit::{Exit, Problem};

/// How long one look for an answer waits.
const LOOK: Duration = Duration::from_millis(200);
/// Keys that one look at the bindings asks for.
const SCAN_COUNT: &str = "1000";
/// More exchanges than any application declares.
const BINDINGS_MAX: usize = 10_000;
/// Drops the elements of lists and counts them, in one step: what comes meanwhile is kept whole.
const DROP: &str = "local dropped = 0
for _, key in ipairs(KEYS) do
  dropped = dropped + redis.call('LLEN', key)
  redis.call('DEL', key)
end
return dropped";

/// A Redis server with the messages of Celery's programs.
#[derive(Debug)]
pub(super) struct Place {
    line: Line,
    /// Of its own: who waits for an answer keeps nobody else waiting.
    waiting: Line,
    results: Option<Line>,
    /// In front of every key.
    prefix: String,
    /// The broker as it may be shown.
    shown: String,
}

/// One row of a listing of bindings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Binding {
    pub(super) queue: String,
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

impl Place {
    /// The place that a bridge leads to; it is connected to when it is asked for the first time.
    pub(super) fn of(bridge: &BridgeUrl) -> Result<Self, Problem> {
        let location = |url: &str| {
            url.parse::<RedisLocation>()
                .map_err(|wrong| Problem::usage(wrong, "write redis://HOST:PORT/DB; see docs/bridges.md"))
        };
        match bridge.over {
            Over::Redis => {}
            Over::Amqp => {
                return Err(Problem::usage(
                    format_args!("this is done over Redis only, not yet over {bridge}"),
                    "ask with Celery's own program: our workers answer it",
                ));
            }
        }
        let server = location(bridge.server())?;
        let results = match bridge.get("results") {
            Some("none" | "rpc" | "rpc://") => None,
            Some(url) => Some(location(url)?),
            None => Some(server.clone()),
        };
        Ok(Self {
            line: Line::to(server.clone()),
            waiting: Line::to(server),
            results: results.map(Line::to),
            prefix: bridge.get("prefix").unwrap_or_default().to_owned(),
            shown: bridge.to_string(),
        })
    }

    /// Which way its priorities run.
    #[expect(clippy::unused_self, reason = "a place over RabbitMQ will answer otherwise")]
    pub(super) fn kind(&self) -> Broker {
        Broker::Redis
    }

    /// The broker as it may be shown.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn ask(&self, words: &[&str]) -> Result<Reply, Problem> {
        Ok(self.line.ask(&command(words)).await?)
    }

    /// Publishes a request to every worker.
    pub(super) async fn broadcast(&self, frame: &Frame) -> Result<(), Problem> {
        let database = u32::try_from(self.line.database()).unwrap_or(0);
        let channel = self.key(&kombu::channel(database, control::EXCHANGE, ""));
        self.ask(&["PUBLISH", &channel, &kombu::encode(frame)]).await.map(drop)
    }

    /// Opens a place for answers to this client.
    pub(super) async fn expect(&self, client: &str) -> Result<(), Problem> {
        let (bindings, member) = self.reply_binding(client);
        self.ask(&["SADD", &bindings, &member]).await.map(drop)
    }

    /// The next answer to this client; `None` when there is none for a moment.
    pub(super) async fn next_answer(&self, client: &str, wait: Duration) -> Result<Option<Frame>, Problem> {
        let list = self.key(&reply_queue(client));
        let seconds = wait.clamp(Duration::from_millis(10), LOOK).as_secs_f64().to_string();
        let reply = self.waiting.ask(&command(&["BRPOP", &list, &seconds])).await?;
        let Some(element) = reply.list().into_iter().nth(1).and_then(Reply::bytes) else { return Ok(None) };
        // What cannot be read is nobody's answer.
        Ok(kombu::decode(&element).ok())
    }

    /// Takes the place for answers away, with those that came too late.
    pub(super) async fn expect_no_more(&self, client: &str) -> Result<(), Problem> {
        let (bindings, member) = self.reply_binding(client);
        let list = self.key(&reply_queue(client));
        self.line.ask_all(&[command(&["SREM", &bindings, &member]), command(&["DEL", &list])]).await?;
        Ok(())
    }

    fn reply_binding(&self, client: &str) -> (String, String) {
        (self.key(&kombu::bindings(control::REPLY_EXCHANGE)), kombu::binding(client, &reply_queue(client)))
    }

    /// Puts a message into the queues that it is addressed to, and answers how many those are.
    pub(super) async fn send(&self, frame: &Frame) -> Result<usize, Problem> {
        let properties = &frame.properties;
        let priority = properties.priority.unwrap_or(0);
        let queues = if properties.exchange.is_empty() {
            self.declare(&properties.routing_key).await?;
            vec![properties.routing_key.clone()]
        } else {
            let bound = self.bound_to(&properties.exchange).await?;
            bound.into_iter().filter(|one| one.routing_key == properties.routing_key).map(|one| one.queue).collect()
        };
        let element = kombu::encode(frame);
        let pushes: Vec<Command> = queues
            .iter()
            .map(|queue| command(&["LPUSH", &self.key(&kombu::list(queue, priority)), &element]))
            .collect();
        self.line.ask_all(&pushes).await?;
        Ok(pushes.len())
    }

    /// Declares a queue as Celery's producers do.
    async fn declare(&self, queue: &str) -> Result<(), Problem> {
        let member = kombu::binding(queue, queue);
        let sets = [kombu::bindings(queue), kombu::permanent_bindings(queue)];
        let commands: Vec<Command> = sets.iter().map(|set| command(&["SADD", &self.key(set), &member])).collect();
        self.line.ask_all(&commands).await?;
        Ok(())
    }

    async fn bound_to(&self, exchange: &str) -> Result<Vec<Binding>, Problem> {
        let members = self.ask(&["SMEMBERS", &self.key(&kombu::bindings(exchange))]).await?.list();
        let members = members.into_iter().filter_map(|member| String::from_utf8(member.bytes()?).ok());
        let binding = |member: String| {
            let (routing_key, _, queue) = kombu::parse_binding(&member)?;
            Some(Binding {
                queue: queue.to_owned(),
                exchange: exchange.to_owned(),
                routing_key: routing_key.to_owned(),
            })
        };
        Ok(members.filter_map(binding).collect())
    }

    /// Every binding that the broker knows, at most 10,000.
    pub(super) async fn bindings(&self) -> Result<Vec<Binding>, Problem> {
        let before = self.key(&kombu::bindings(""));
        let pattern = format!("{}*", literal(&before));
        let (mut cursor, mut bindings) = ("0".to_owned(), Vec::new());
        loop {
            let mut page =
                self.ask(&["SCAN", &cursor, "MATCH", &pattern, "COUNT", SCAN_COUNT]).await?.list().into_iter();
            let next = page.next().and_then(Reply::bytes).and_then(|bytes| String::from_utf8(bytes).ok());
            let keys = page.next().map(Reply::list).unwrap_or_default();
            for key in keys.into_iter().filter_map(|key| String::from_utf8(key.bytes()?).ok()) {
                if let Some(exchange) = key.strip_prefix(&before) {
                    bindings.extend(self.bound_to(exchange).await?);
                }
            }
            match next {
                Some(next) if next != "0" && bindings.len() < BINDINGS_MAX => cursor = next,
                Some(_) | None => break,
            }
        }
        bindings.sort();
        bindings.dedup();
        bindings.truncate(BINDINGS_MAX);
        Ok(bindings)
    }

    /// Drops what waits in queues, and answers how much that was.
    pub(super) async fn drop_waiting(&self, queues: &[QueueName]) -> Result<u64, Problem> {
        let lists = queues.iter().flat_map(|queue| kombu::lists(queue.as_str()));
        let keys: Vec<Vec<u8>> = lists.map(|list| self.key(&list).into_bytes()).collect();
        let dropped = self.line.run(DROP, &keys, &[]).await?.number();
        Ok(dropped.and_then(|dropped| u64::try_from(dropped).ok()).unwrap_or(0))
    }

    /// What is stored of a task; `None` when nothing is.
    pub(super) async fn result(&self, id: &TaskId) -> Result<Option<Vec<u8>>, Problem> {
        let Some(results) = &self.results else {
            return Err(Problem::new(
                Exit::NotFound,
                "results are not kept where they can be asked for",
                "name their place with `--result-backend redis://…`, or see the task with `windlass task show ID`",
            ));
        };
        let key = result::key(&self.prefix, &id.to_string());
        Ok(results.ask(&command(&["GET", &key])).await?.bytes())
    }
}

fn reply_queue(client: &str) -> String {
    format!("{client}.{}", control::REPLY_EXCHANGE)
}

fn command(words: &[&str]) -> Command {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// A text as a pattern that matches nothing else.
fn literal(text: &str) -> String {
    let special = |char| matches!(char, '*' | '?' | '[' | ']' | '\\');
    text.chars().flat_map(|char| special(char).then_some('\\').into_iter().chain([char])).collect()
}
