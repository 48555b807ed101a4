//! Which queue gets what, as kombu keeps it in Redis.

use windlass_core::bridge::TransportError;
use windlass_redis::foreign::{Line, Reply};
use windlass_wire::kombu;

use super::super::results::words;
use super::{Over, Producer, literal};
use crate::carrier::of_store;

/// Keys that one look at the bindings asks for.
const SCAN_COUNT: &str = "1000";
/// More than any application declares.
const BINDINGS_MAX: usize = 10_000;

/// A queue that gets what is sent to an exchange with a routing key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// The queue.
    pub queue: String,
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

impl Producer {
    /// Every binding that the broker knows, at most 10,000.
    ///
    /// # Errors
    /// [`TransportError`]; RabbitMQ does not tell its bindings over this protocol.
    pub async fn bindings(&self) -> Result<Vec<Binding>, TransportError> {
        let Over::Redis { line, .. } = &self.over else {
            let why = "RabbitMQ tells its bindings to `rabbitmqctl list_bindings` and to its management pages only";
            return Err(TransportError::Refused(why.to_owned()));
        };
        let before = self.key(&kombu::bindings(""));
        let pattern = format!("{}*", literal(&before));
        let (mut cursor, mut bindings) = ("0".to_owned(), Vec::new());
        loop {
            let page = line.ask(&words(["SCAN", &cursor, "MATCH", &pattern, "COUNT", SCAN_COUNT])).await;
            let mut page = page.map_err(of_store)?.list().into_iter();
            let next = page.next().and_then(text);
            for key in page.next().map(Reply::list).unwrap_or_default().into_iter().filter_map(text) {
                if let Some(exchange) = key.strip_prefix(&before) {
                    bindings.extend(self.bound_to(line, exchange).await?);
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

    /// What is bound to an exchange.
    pub(super) async fn bound_to(&self, line: &Line, exchange: &str) -> Result<Vec<Binding>, TransportError> {
        let members = line.ask(&words(["SMEMBERS", &self.key(&kombu::bindings(exchange))])).await.map_err(of_store)?;
        let binding = |member: String| {
            let (routing_key, _, queue) = kombu::parse_binding(&member)?;
            Some(Binding {
                queue: queue.to_owned(),
                exchange: exchange.to_owned(),
                routing_key: routing_key.to_owned(),
            })
        };
        Ok(members.list().into_iter().filter_map(text).filter_map(binding).collect())
    }
}

fn text(reply: Reply) -> Option<String> {
    String::from_utf8(reply.bytes()?).ok()
}
