//! What Redis itself allows, with one blocking connection to a thread: the cheapest client there is.
//!
//! **The yardstick: id list + body hash + lease set.** Three keys: `ready` is a list of ids, `bodies` a hash from id to
//! body, `leases` a sorted set of the ids that are claimed, by the end of their lease. Push, one trip and one `MULTI` for
//! each batch: `HSET` of all bodies, `RPUSH` of all ids. Drain, one trip for each batch, one script ([`TURN`], `EVALSHA`):
//! what was claimed before has ended: `ZREM` from `leases`, `HDEL` from `bodies`; the next ids: `LPOP` with a count; their
//! leases: the server's `TIME`, `ZADD`; their bodies: `HMGET`. A task is in exactly one place at any time, a claimed one
//! can be found and given back by the end of its lease, and a body is there until the task has ended.
//!
//! **Streams**, for comparison: `XADD` of a body; drain by `XACK` + `XDEL` of the last batch and `XREADGROUP` of the
//! next, pipelined in one trip. The group remembers what is claimed.
//!
//! **Wake-up**: a connection waits in `BLMOVE` into a list of what is claimed, another pushes at a steady rate.
//!
//! What none of them does: fences, results, counts, priorities, retries, limits, decoding, handlers. How durable a
//! write is, is the server's setting (`appendfsync`), the same as for the store.

use std::time::{Duration, Instant};

use redis::{Cmd, Connection, RedisError, RedisResult, Value};
use serde_json::{Value as Json, json};

use super::Load;
use crate::bench::server::{Cpu, without_parameters};
use crate::bench::stats::Histogram;
use crate::exit::{Exit, Problem};

/// Keys of a measurement that was killed are gone after this many seconds.
const KEEP_SECONDS: u32 = 3_600;
/// A server that says nothing for this long never will.
const PATIENCE: Duration = Duration::from_secs(10);
const LEASE_MICROS: u32 = 30_000_000;
/// A script hands its arguments over on Lua's stack, which ends at 8,000.
pub(super) const BATCH_MAX: usize = 2_000;

/// Ends the last batch and claims the next. Arguments: the lease in microseconds, the most tasks, the ids that have
/// ended.
const TURN: &str = r"
local ended = {unpack(ARGV, 3)}
if #ended > 0 then
  redis.call('ZREM', KEYS[3], unpack(ended))
  redis.call('HDEL', KEYS[2], unpack(ended))
end
local ids = redis.call('LPOP', KEYS[1], ARGV[2])
if not ids then return {{}, {}} end
local time = redis.call('TIME')
local deadline = time[1] * 1000000 + time[2] + ARGV[1]
local leases = {}
for at, id in ipairs(ids) do
  leases[2 * at - 1] = deadline
  leases[2 * at] = id
end
redis.call('ZADD', KEYS[3], unpack(leases))
return {ids, redis.call('HMGET', KEYS[2], unpack(ids))}
";

/// A room in a server, and how to get there.
#[derive(Clone)]
pub(super) struct Room {
    url: String,
    prefix: String,
}

impl Room {
    pub(super) fn new(url: &str, room: &str) -> Self {
        Self { url: url.to_owned(), prefix: format!("{{{room}}}:") }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Pushes the tasks of a load for the yardstick.
    pub(super) fn push(&self, load: &Load) -> RedisResult<()> {
        let mut connection = connect(&self.url)?;
        let (ready, bodies) = (self.key("ready"), self.key("bodies"));
        for numbers in load.batches(load.push_batch.min(BATCH_MAX)) {
            let mut pipe = redis::pipe();
            let mut bodies_of = Cmd::new();
            bodies_of.arg("HSET").arg(&bodies);
            let mut ids = Cmd::new();
            ids.arg("RPUSH").arg(&ready);
            for number in numbers {
                let id = super::id(number);
                bodies_of.arg(&id).arg(&load.body);
                ids.arg(&id);
            }
            pipe.atomic().add_command(bodies_of).ignore().add_command(ids).ignore();
            pipe.query::<()>(&mut connection)?;
        }
        self.let_expire(&mut connection, &["ready", "bodies"])
    }

    /// Drains them, and answers how many there were.
    pub(super) fn drain(&self, batch: usize, connections: usize) -> RedisResult<u64> {
        on_connections(connections, || {
            let mut connection = connect(&self.url)?;
            let keys = [self.key("ready"), self.key("bodies"), self.key("leases")];
            let turn = Turn::load(&mut connection, keys)?;
            let (mut held, mut done): (Vec<Vec<u8>>, u64) = (Vec::new(), 0);
            loop {
                let (ids, bodies): (Vec<Vec<u8>>, Vec<Vec<u8>>) = turn.take(&mut connection, batch, &held)?;
                if done == 0 && held.is_empty() {
                    self.let_expire(&mut connection, &["leases"])?;
                }
                assert_eq!(ids.len(), bodies.len(), "a claimed task has its body");
                done += held.len() as u64;
                held = ids;
                if held.is_empty() {
                    return Ok(done);
                }
            }
        })
    }

    /// Adds the tasks of a load to a stream.
    pub(super) fn push_stream(&self, load: &Load) -> RedisResult<()> {
        let mut connection = connect(&self.url)?;
        let stream = self.key("stream");
        redis::cmd("XGROUP").arg(&["CREATE", &stream, "workers", "0", "MKSTREAM"]).query::<()>(&mut connection)?;
        for numbers in load.batches(load.push_batch) {
            let mut pipe = redis::pipe();
            for _ in numbers {
                pipe.cmd("XADD").arg(&stream).arg("*").arg("body").arg(&load.body).ignore();
            }
            pipe.query::<()>(&mut connection)?;
        }
        self.let_expire(&mut connection, &["stream"])
    }

    /// Drains it, and answers how many tasks there were.
    pub(super) fn drain_stream(&self, batch: usize, connections: usize) -> RedisResult<u64> {
        on_connections(connections, || {
            let mut connection = connect(&self.url)?;
            let stream = self.key("stream");
            let consumer = format!("{:08x}", fastrand::u32(..));
            let (mut held, mut done): (Vec<Vec<u8>>, u64) = (Vec::new(), 0);
            loop {
                let mut pipe = redis::pipe();
                if !held.is_empty() {
                    pipe.cmd("XACK").arg(&stream).arg("workers").arg(&held).ignore();
                    pipe.cmd("XDEL").arg(&stream).arg(&held).ignore();
                }
                pipe.cmd("XREADGROUP").arg(&["GROUP", "workers", &consumer, "COUNT"]).arg(batch);
                pipe.arg("STREAMS").arg(&stream).arg(">");
                let (read,): (Value,) = pipe.query(&mut connection)?;
                done += held.len() as u64;
                held = entries(read);
                if held.is_empty() {
                    return Ok(done);
                }
            }
        })
    }

    /// From before a push to after the read that waited for it, in microseconds.
    pub(super) fn wake_ups(&self, tasks: usize, every: Duration) -> RedisResult<Histogram> {
        let (ready, claimed) = (self.key("bell"), self.key("rung"));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| -> RedisResult<Histogram> {
                let mut connection = connect(&self.url)?;
                let mut times = Histogram::default();
                for _ in 0..tasks {
                    let mut read = redis::cmd("BLMOVE");
                    read.arg(&[&ready, &claimed, "LEFT", "RIGHT"]).arg(PATIENCE.as_secs());
                    let sent_at: Option<i64> = read.query(&mut connection)?;
                    let sent_at = sent_at.ok_or_else(|| unexpected("a push has not woken the reader within 10 s"))?;
                    times.add((crate::bench::bed::now().as_micros() - sent_at).max(0) as u64);
                }
                Ok(times)
            });
            let mut connection = connect(&self.url)?;
            let began = Instant::now();
            for number in 0..tasks {
                let next = began + every * number as u32;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
                let sent_at = crate::bench::bed::now().as_micros();
                redis::cmd("RPUSH").arg(&ready).arg(sent_at).query::<()>(&mut connection)?;
            }
            self.let_expire(&mut connection, &["rung"])?;
            reader.join().map_err(|_| unexpected("the reader has panicked"))?
        })
    }

    fn let_expire(&self, connection: &mut Connection, names: &[&str]) -> RedisResult<()> {
        for name in names {
            redis::cmd("EXPIRE").arg(self.key(name)).arg(KEEP_SECONDS).query::<()>(connection)?;
        }
        Ok(())
    }

    /// The keys that are there; for tests.
    #[cfg(test)]
    pub(super) fn keys(&self) -> Vec<String> {
        let mut connection = connect(&self.url).unwrap();
        redis::cmd("KEYS").arg(format!("{}*", self.prefix)).query(&mut connection).unwrap()
    }
}

/// The script, once the server knows it.
struct Turn {
    digest: String,
    keys: [String; 3],
}

impl Turn {
    fn load(connection: &mut Connection, keys: [String; 3]) -> RedisResult<Self> {
        let digest = redis::cmd("SCRIPT").arg("LOAD").arg(TURN).query(connection)?;
        Ok(Self { digest, keys })
    }

    /// Ends what is held; answers the ids and the bodies of the next.
    fn take<T: redis::FromRedisValue>(
        &self,
        connection: &mut Connection,
        batch: usize,
        held: &[Vec<u8>],
    ) -> RedisResult<(Vec<T>, Vec<T>)> {
        let mut turn = redis::cmd("EVALSHA");
        turn.arg(&self.digest).arg(self.keys.len()).arg(&self.keys[..]);
        turn.arg(LEASE_MICROS).arg(batch.min(BATCH_MAX)).arg(held);
        turn.query(connection)
    }
}

/// The ids in the answer to `XREADGROUP`: a list of streams with one stream, or nil.
fn entries(answer: Value) -> Vec<Vec<u8>> {
    let Value::Array(mut streams) = answer else { return Vec::new() };
    let Some(Value::Array(mut stream)) = streams.pop() else { return Vec::new() };
    let Some(Value::Array(entries)) = stream.pop() else { return Vec::new() };
    let id = |entry: Value| match entry {
        Value::Array(parts) => match parts.into_iter().next() {
            Some(Value::BulkString(id)) => Some(id),
            _ => None,
        },
        _ => None,
    };
    entries.into_iter().filter_map(id).collect()
}

/// The same on several connections at once; answers the sum.
fn on_connections(count: usize, work: impl Fn() -> RedisResult<u64> + Sync) -> RedisResult<u64> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| unexpected("a thread has panicked"))?);
        joined.sum()
    })
}

fn connect(url: &str) -> RedisResult<Connection> {
    let plain = without_parameters(url, &["namespace"]).replacen("valkey", "redis", 1);
    let connection = redis::Client::open(plain)?.get_connection_with_timeout(PATIENCE)?;
    // A read that waits ends by itself before this.
    connection.set_read_timeout(Some(PATIENCE * 3))?;
    Ok(connection)
}

fn unexpected(text: &'static str) -> RedisError {
    RedisError::from((redis::ErrorKind::UnexpectedReturnType, text))
}

/// Does something on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> RedisResult<T> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await.map_err(anyhow::Error::from)?;
    done.map_err(|error| {
        let exit = if error.is_io_error() || error.is_connection_refusal() { Exit::Unreachable } else { Exit::Failed };
        let text = windlass_core::redact::text(&error.to_string());
        Problem::new(
            exit,
            format_args!("Redis alone cannot be measured: {text}"),
            "check that the server answers: redis-cli -u URL ping; one server is measured, without TLS or sentinels",
        )
    })
}

/// Removes all keys of a room; a `*` at the end of its name stands for anything.
pub(in crate::bench) async fn remove(url: &str, room: &str) -> Result<(), Problem> {
    let (url, pattern) = (url.to_owned(), format!("{{{room}}}:*"));
    blocking(move || {
        let mut connection = connect(&url)?;
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg(&["MATCH", &pattern, "COUNT", "1000"]);
            let (next, keys): (u64, Vec<Vec<u8>>) = scan.query(&mut connection)?;
            if !keys.is_empty() {
                redis::cmd("UNLINK").arg(&keys).query::<()>(&mut connection)?;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    })
    .await
}

/// The fields of a section of `INFO`.
async fn info(url: &str, section: &'static str) -> Result<impl Fn(&str) -> Option<String> + use<>, Problem> {
    let url = url.to_owned();
    let text: String = blocking(move || redis::cmd("INFO").arg(section).query(&mut connect(&url)?)).await?;
    Ok(move |field: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    })
}

/// CPU time that the server says it has used, all its threads together, in seconds.
pub(in crate::bench) async fn cpu(url: &str) -> Result<Cpu, Problem> {
    let info = info(url, "cpu").await?;
    let seconds = |field| -> Option<f64> { info(field)?.parse().ok() };
    Ok(seconds("used_cpu_user").zip(seconds("used_cpu_sys")).map(|(user, system)| user + system))
}

/// What decides how fast and how durable it is.
pub(in crate::bench) async fn facts(url: &str) -> Result<Json, Problem> {
    let (server, memory, persistence) =
        (info(url, "server").await?, info(url, "memory").await?, info(url, "persistence").await?);
    let url = url.to_owned();
    let settings: RedisResult<Vec<(String, String)>> =
        blocking(move || Ok(redis::cmd("CONFIG").arg(&["GET", "appendfsync"]).query(&mut connect(&url)?))).await?;
    // Hosted servers do not show their settings.
    let sync = settings.ok().and_then(|pairs| pairs.into_iter().next()).map(|(_, value)| value);
    let appends = persistence("aof_enabled").is_some_and(|enabled| enabled == "1");
    Ok(json!({
        "version": server("redis_version"),
        "appendonly": if appends { "yes" } else { "no" },
        "appendfsync": if appends { sync.unwrap_or_else(|| "unknown".to_owned()) } else { "off".to_owned() },
        "memory_rss_bytes": memory("used_memory_rss").and_then(|bytes| bytes.parse::<u64>().ok()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Room {
        Room::new(&windlass_servers::redis_url(), &format!("windlass_bench_test_{:08x}", fastrand::u32(..)))
    }

    fn load(tasks: usize, batch: usize) -> Load {
        Load { tasks, body: "{}".to_owned(), push_batch: 30, batch, connections: 1 }
    }

    #[test]
    fn one_script_drains_everything_that_was_pushed_and_leaves_no_lease() {
        for connections in [1, 3] {
            let room = room();
            room.push(&load(250, 40)).unwrap();
            assert_eq!(room.drain(40, connections).unwrap(), 250);
            assert_eq!(room.keys(), Vec::<String>::new(), "ids, bodies and leases are gone");
        }
    }

    #[test]
    fn a_claimed_task_has_a_lease_and_its_body_until_it_has_ended() {
        let room = room();
        room.push(&load(3, 2)).unwrap();
        let mut connection = connect(&room.url).unwrap();
        let keys = [room.key("ready"), room.key("bodies"), room.key("leases")];
        let turn = Turn::load(&mut connection, keys.clone()).unwrap();
        let (ids, _): (Vec<Vec<u8>>, Vec<Vec<u8>>) = turn.take(&mut connection, 2, &[]).unwrap();
        assert_eq!(ids.len(), 2);
        let count = |command: &str, key: &str, connection: &mut Connection| -> u64 {
            redis::cmd(command).arg(key).query(connection).unwrap()
        };
        assert_eq!(count("ZCARD", &keys[2], &mut connection), 2);
        assert_eq!(count("HLEN", &keys[1], &mut connection), 3);
        let deadline: i64 = redis::cmd("ZSCORE").arg(&keys[2]).arg(&ids[0]).query(&mut connection).unwrap();
        let left = deadline - crate::bench::bed::now().as_micros();
        assert!((0..=31_000_000).contains(&left), "a lease of 30 s by the server's clock: {left}");
        redis::cmd("UNLINK").arg(&keys[..]).query::<()>(&mut connection).unwrap();
    }

    #[tokio::test]
    async fn a_stream_is_drained_and_a_room_is_removed() {
        let (url, name) = (windlass_servers::redis_url(), format!("windlass_bench_test_{:08x}", fastrand::u32(..)));
        let (room, in_room) = (Room::new(&url, &name), Room::new(&url, &name));
        let drained = blocking(move || {
            in_room.push_stream(&load(250, 40))?;
            in_room.drain_stream(40, 2)
        });
        assert_eq!(drained.await.unwrap(), 250);
        assert!(
            !tokio::task::spawn_blocking({
                let room = room.clone();
                move || room.keys()
            })
            .await
            .unwrap()
            .is_empty()
        );
        remove(&url, &format!("{}*", &name[..name.len() - 1])).await.unwrap();
        assert_eq!(tokio::task::spawn_blocking(move || room.keys()).await.unwrap(), Vec::<String>::new());
    }

    #[test]
    fn every_wake_up_is_timed() {
        let room = room();
        assert_eq!(room.wake_ups(20, Duration::from_millis(1)).unwrap().count(), 20);
        redis::cmd("UNLINK").arg(room.key("rung")).query::<()>(&mut connect(&room.url).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_a_problem_without_its_password() {
        let url = "redis://:hunter2@127.0.0.1:1/0";
        let problem = cpu(url).await.unwrap_err();
        assert_eq!(problem.exit_code(), Exit::Unreachable);
        assert!(!format!("{problem:?}").contains("hunter2"));
        assert!(cpu(&windlass_servers::redis_url()).await.unwrap().unwrap() > 0.0);
    }
}
